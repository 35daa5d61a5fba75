// Package cache opens the one Redis of the service. It knows how to
// connect, what an error means, and whether a server is fit to keep state.
//
// Redis is one server, or a primary that Sentinels watch, or a cluster. This package hides the
// difference: its users get a [Client], keep the keys of a script in one slot, and call
// [Servers] if they have to see every key.
package cache

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/toppira/authctl/platform/config"
)

// Config says which Redis to use. With nothing set there is none.
type Config struct {
	URL      config.Secret `config:"redis.url" doc:"Redis as one URL: redis://USER:PASSWORD@HOST:PORT/DB, rediss://… with TLS, unix://USER:PASSWORD@/PATH; options such as ?dial_timeout=5s&read_timeout=5s&pool_size=32 may follow. With ?addr=HOST:PORT&addr=… they are nodes of a Redis Cluster. With ?master_name=NAME&addr=HOST:PORT&… they are Sentinels, and so is USER:PASSWORD@; those of Redis are then &username=USER&password=PASSWORD. Overrides cache.redis.*. If it and cache.redis.host are empty, there is no Redis."`
	Host     string        `config:"cache.redis.host" doc:"Redis host. Empty means no Redis, unless redis.url names one."`
	Port     int           `config:"cache.redis.port" default:"6379" min:"1" max:"65535" doc:"Redis port."`
	Password config.Secret `config:"cache.redis.password" doc:"Redis password."`
	DB       int           `config:"cache.redis.db" default:"0" min:"0" max:"1023" doc:"Redis database number."`
	TLS      bool          `config:"redis.tls" default:"false" doc:"Use TLS to cache.redis.host and verify its certificate. A rediss:// URL does the same."`
	CAFile   string        `config:"redis.ca_file" doc:"PEM file of the authorities that sign Redis' certificate, instead of the system's."`
	Cluster  bool          `config:"redis.cluster" default:"false" doc:"The one address in redis.url or cache.redis.host is that of a Redis Cluster. More than one node in redis.url means a cluster anyway."`

	AllowPlaintext bool `config:"redis.allow_plaintext" default:"false" doc:"Allow prod mode to use a Redis on another machine without verified TLS. Session data then crosses the network unencrypted."`
}

// timeout is how long to wait for a connection and for the answer to a command. A healthy Redis
// answers within milliseconds, and with an unhealthy one a request still gets its 503 in time.
// It is not a setting; options of redis.url override it where a network needs that.
const timeout = 2 * time.Second

// Prefix begins every key that the service writes. An ACL has to allow it.
const Prefix = "authctl:"

// Enabled reports whether the settings name a Redis.
func (c Config) Enabled() bool { return c.URL != "" || c.Host != "" }

// Validate reports settings that cannot work.
func (c Config) Validate(report func(path, problem string)) {
	if c.URL != "" {
		if _, err := parseURL(c); err != nil {
			report("redis.url", err.Error())
		}
	} else if c.Host != "" {
		if problem := config.HostProblem(c.Host); problem != "" {
			report("cache.redis.host", problem)
		}
		if c.Cluster && c.DB != 0 {
			report("cache.redis.db", "must be 0 with redis.cluster: a cluster has no other database")
		}
	}
	if c.CAFile != "" {
		if _, err := readCAs(c.CAFile); err != nil {
			report("redis.ca_file", "must be a readable file of PEM certificates")
		}
	}
}

// ValidateProd reports what prod mode does not allow. It checks what the client made of the
// settings, whichever of them named the servers. Servers that these announce are checked when a connection
// is made.
func (c Config) ValidateProd(report func(path, problem string)) {
	t, err := targetOf(c)
	if !c.Enabled() || err != nil { // Validate reports it
		return
	}
	if t.refusedInProd(c) {
		path := "cache.redis.host"
		if c.URL != "" {
			path = "redis.url"
		}
		report(path, "must be reached over TLS with a verified certificate in prod mode: rediss:// or "+
			"redis.tls; or set redis.allow_plaintext")
	}
}

func (t target) refusedInProd(c Config) bool {
	return !c.AllowPlaintext && !t.local() && !t.verified()
}

// Overridden reports settings without effect.
func (c Config) Overridden(report func(path, by string)) {
	if t, err := targetOf(c); c.Enabled() && err == nil && t.tls() == nil {
		report("redis.ca_file", "a connection without TLS")
	}
	if c.URL == "" {
		return
	}
	for _, path := range []string{"cache.redis.host", "cache.redis.port", "cache.redis.password", "cache.redis.db",
		"redis.tls"} {
		report(path, "redis.url")
	}
}

// Describe names the servers for a person, without credentials.
func (c Config) Describe() string {
	t, err := targetOf(c)
	if err != nil {
		return "Redis"
	}
	return t.String()
}

// ErrPlaintext is the refusal of a server that prod mode must not use as it is configured.
var ErrPlaintext = errors.New("without verified TLS; use rediss:// (or redis.tls), or set redis.allow_plaintext")

// Options are what [Open] needs besides the settings.
type Options struct {
	Prod    bool   // a server on another machine must be reached over verified TLS
	AppName string // shown in CLIENT LIST
	Untried bool   // do not check that it answers: the caller can work without Redis
}

// Client sends commands to Redis. It is a [redis.Client], a [redis.ClusterClient] or a client that follows
// Sentinels, and lists the methods of them that the service uses.
//
// Those types contain an instance of a generic type. Each package that refers to them compiles some 1,500
// methods of it, which takes two seconds. So nothing that this package exports refers to them: no field, not
// even an unexported one, no signature of a method, and no body that is small enough to be inlined.
type Client interface {
	redis.Scripter
	Pipelined(ctx context.Context, fn func(redis.Pipeliner) error) ([]redis.Cmder, error)
	TxPipelined(ctx context.Context, fn func(redis.Pipeliner) error) ([]redis.Cmder, error)
	Process(ctx context.Context, cmd redis.Cmder) error
	Do(ctx context.Context, words ...any) *redis.Cmd
	HMGet(ctx context.Context, key string, fields ...string) *redis.SliceCmd
	SMembers(ctx context.Context, key string) *redis.StringSliceCmd
	ZRange(ctx context.Context, key string, start, stop int64) *redis.StringSliceCmd
	Ping(ctx context.Context) *redis.StatusCmd
	AddHook(redis.Hook)
	Close() error
}

// Open connects to Redis and checks that it answers: the server, the primary that the Sentinels
// know, or any node of the cluster. The caller closes the client.
//
// The client repeats commands after a broken connection, so a command that changes something
// must have the same effect when it runs twice. It follows fail-overs and never reads from a replica.
func Open(ctx context.Context, cfg Config, o Options) (Client, error) {
	t, err := targetOf(cfg)
	if err != nil {
		return nil, err
	}
	if o.Prod && t.refusedInProd(cfg) {
		return nil, fmt.Errorf("connect to %s: refused in prod mode: %w", t, ErrPlaintext)
	}
	logging.Disable() // the client writes its own lines to stderr; every error also reaches the caller
	client := t.open(o, o.Prod && !cfg.AllowPlaintext)
	client.AddHook(spans{})
	if o.Untried {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	problem := t.try(ctx, client)
	// Options of the URL may bound a command of a request. The start of a process has more time.
	for begun := time.Now(); problem != nil && timedOut(problem) && ctx.Err() == nil && time.Since(begun) < timeout; {
		problem = t.try(ctx, client)
	}
	if problem != nil {
		_ = client.Close()
		return nil, fmt.Errorf("connect to %s: %w", t, problem)
	}
	return client, nil
}

// named sets the name of a connection that CLIENT LIST shows. It does not use the client's option for it,
// with which a Redis user without the right to CLIENT SETNAME could not connect.
func named(name string) func(ctx context.Context, conn *redis.Conn) error {
	return func(ctx context.Context, conn *redis.Conn) error {
		var refusal redis.Error
		if err := conn.ClientSetName(ctx, name).Err(); err != nil && !errors.As(err, &refusal) {
			return err
		}
		return nil
	}
}

func readCAs(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read redis.ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("redis.ca_file holds no PEM certificate")
	}
	return roots, nil
}

// address is the address in cache.redis.host and cache.redis.port.
func (c Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }
