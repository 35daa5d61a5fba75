// Package cache opens the one Redis of the service and holds what its users share: how to
// connect, what an error means, whether the server is fit to keep state.
package cache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/toppira/authctl/platform/config"
)

// Config says which Redis to use. With nothing set there is none.
type Config struct {
	URL      config.Secret `config:"redis.url" doc:"Redis as one URL: redis://USER:PASSWORD@HOST:PORT/DB, rediss://… with TLS, unix://USER:PASSWORD@/PATH; options such as ?dial_timeout=5s&read_timeout=5s&pool_size=32 may follow. Overrides cache.redis.*. If it and cache.redis.host are empty, there is no Redis."`
	Host     string        `config:"cache.redis.host" doc:"Redis host. Empty means no Redis, unless redis.url names one."`
	Port     int           `config:"cache.redis.port" default:"6379" min:"1" max:"65535" doc:"Redis port."`
	Password config.Secret `config:"cache.redis.password" doc:"Redis password."`
	DB       int           `config:"cache.redis.db" default:"0" min:"0" max:"1023" doc:"Redis database number."`
	TLS      bool          `config:"redis.tls" default:"false" doc:"Use TLS to cache.redis.host and verify its certificate. A rediss:// URL does the same."`
	CAFile   string        `config:"redis.ca_file" doc:"PEM file of the authorities that sign Redis' certificate, instead of the system's."`

	AllowPlaintext bool `config:"redis.allow_plaintext" default:"false" doc:"Allow prod mode to use a Redis on another machine without verified TLS. Session data then crosses the network unencrypted."`
}

// timeout is how long to wait for a connection and for the answer to a command. A healthy Redis
// answers within milliseconds, and with an unhealthy one a request still ends in time to say so.
// It is not a setting; options of redis.url override it where a network needs that.
const timeout = 2 * time.Second

// Prefix begins every key that the service writes. It is what an ACL has to allow.
const Prefix = "authctl:"

// Enabled reports whether the settings name a Redis.
func (c Config) Enabled() bool { return c.URL != "" || c.Host != "" }

// Validate reports settings that cannot work.
func (c Config) Validate(report func(path, problem string)) {
	if c.URL != "" {
		if _, err := c.parseURL(); err != nil {
			report("redis.url", err.Error())
		}
	} else if c.Host != "" {
		if problem := config.HostProblem(c.Host); problem != "" {
			report("cache.redis.host", problem)
		}
	}
	if c.CAFile != "" {
		if _, err := readCAs(c.CAFile); err != nil {
			report("redis.ca_file", "must be a readable file of PEM certificates")
		}
	}
}

// ValidateProd reports what prod mode does not allow. What counts is what the client made of the
// settings, whichever of them named the server.
func (c Config) ValidateProd(report func(path, problem string)) {
	opt, err := c.options()
	if !c.Enabled() || err != nil { // Validate reports it
		return
	}
	if c.refusedInProd(opt) {
		path := "cache.redis.host"
		if c.URL != "" {
			path = "redis.url"
		}
		report(path, "must be reached over TLS with a verified certificate in prod mode: rediss:// or redis.tls; or set "+
			"redis.allow_plaintext")
	}
}

func (c Config) refusedInProd(opt *redis.Options) bool {
	return !c.AllowPlaintext && !isLocal(opt) && (opt.TLSConfig == nil || opt.TLSConfig.InsecureSkipVerify)
}

// Overridden reports settings without effect.
func (c Config) Overridden(report func(path, by string)) {
	if c.URL == "" {
		return
	}
	for _, path := range []string{"cache.redis.host", "cache.redis.port", "cache.redis.password", "cache.redis.db",
		"redis.tls"} {
		report(path, "redis.url")
	}
}

// Describe names the server for a person, without credentials.
func (c Config) Describe() string {
	opt, err := c.options()
	if err != nil {
		return "Redis"
	}
	return "Redis " + opt.Addr + "/" + strconv.Itoa(opt.DB)
}

// ErrPlaintext refuses a server that prod mode must not use as it is configured.
var ErrPlaintext = errors.New("without verified TLS; use rediss:// (or redis.tls), or set redis.allow_plaintext")

// Options are what the settings alone do not say.
type Options struct {
	Prod    bool   // a server on another machine must be reached over verified TLS
	AppName string // shown in CLIENT LIST
	Untried bool   // skip the check that it answers: the caller can work without Redis
}

// Open connects to Redis and checks that it answers. The caller closes the client.
//
// The client repeats commands after a broken connection, so a command that changes something
// must have the same effect when it runs twice.
func Open(ctx context.Context, cfg Config, o Options) (*redis.Client, error) {
	opt, err := cfg.options()
	if err != nil {
		return nil, err
	}
	if o.Prod && cfg.refusedInProd(opt) {
		return nil, fmt.Errorf("connect to %s: refused in prod mode: %w", cfg.Describe(), ErrPlaintext)
	}
	if o.AppName != "" {
		// Not as an option: a Redis user without the right to CLIENT SETNAME could not connect.
		opt.ClientName = ""
		opt.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
			var refusal redis.Error
			if err := conn.ClientSetName(ctx, o.AppName).Err(); err != nil && !errors.As(err, &refusal) {
				return err
			}
			return nil
		}
	}
	logging.Disable() // the client writes its own lines to stderr; every error also reaches the caller
	client := redis.NewClient(opt)
	client.AddHook(spans{})
	if o.Untried {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		problem := cannotConnect(ctx, opt, err)
		_ = client.Close()
		return nil, fmt.Errorf("connect to %s: %w", cfg.Describe(), problem)
	}
	return client, nil
}

func (c Config) options() (*redis.Options, error) {
	opt := &redis.Options{Addr: net.JoinHostPort(c.Host, strconv.Itoa(c.Port)), Password: c.Password.Reveal(), DB: c.DB}
	if c.TLS {
		opt.TLSConfig = &tls.Config{ServerName: c.Host, MinVersion: tls.VersionTLS12}
	}
	if c.URL != "" {
		var err error
		if opt, err = c.parseURL(); err != nil {
			return nil, fmt.Errorf("redis.url %w", err)
		}
	}
	if c.CAFile != "" && opt.TLSConfig != nil {
		roots, err := readCAs(c.CAFile)
		if err != nil {
			return nil, err
		}
		opt.TLSConfig.RootCAs = roots
	}

	// What the URL says is kept; the rest gets these defaults.
	setDefault(&opt.PoolSize, max(16, 8*runtime.GOMAXPROCS(0)))
	setDefault(&opt.MaxActiveConns, opt.PoolSize)
	setDefault(&opt.DialTimeout, timeout)
	setDefault(&opt.ReadTimeout, timeout)
	setDefault(&opt.WriteTimeout, opt.ReadTimeout)
	setDefault(&opt.PoolTimeout, opt.ReadTimeout)
	setDefault(&opt.MaxRetries, 2)
	setDefault(&opt.MaxRetryBackoff, 100*time.Millisecond)
	setDefault(&opt.ConnMaxIdleTime, 5*time.Minute)
	opt.DialerRetries = 1            // MaxRetries is enough; the default would dial five times for each
	opt.ContextTimeoutEnabled = true // otherwise deadlines are checked only between commands
	opt.PipelinePoolSize = -1        // one pool is enough
	// The default of 32 KiB each way is for large values. These commands take a few hundred
	// bytes, and idle memory matters.
	opt.ReadBufferSize, opt.WriteBufferSize = 4<<10, 4<<10
	// These save two round trips for each connection.
	opt.DisableIdentity = true
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return opt, nil
}

// parseURL parses the URL as the client does, and nothing else parses it. An error says what is
// wrong without quoting the URL, since the part that cannot be parsed may be a password.
func (c Config) parseURL() (*redis.Options, error) {
	opt, err := redis.ParseURL(c.URL.Reveal())
	_, rest, _ := strings.Cut(c.URL.Reveal(), ":")
	if err != nil || !strings.HasPrefix(rest, "//") { // without the slashes it would mean localhost
		return nil, errors.New("must be a URL that begins with redis://, rediss:// or unix://, without options that the " +
			"client does not know; characters such as / ? # % @ in a password are percent-encoded")
	}
	for _, n := range []int{opt.DB, opt.PoolSize, opt.MinIdleConns, opt.MaxIdleConns, opt.MaxActiveConns,
		opt.MaxConcurrentDials} {
		if n < 0 || n > 1<<16 { // the client panics, or takes another number
			return nil, errors.New("has a number that is negative or too large")
		}
	}
	if opt.Network == "unix" {
		return opt, nil
	}
	host, port, err := net.SplitHostPort(opt.Addr)
	if err != nil || config.HostProblem(host) != "" || config.AddressProblem(opt.Addr, false) != "" || port == "0" {
		return nil, errors.New("does not name one host, and a port from 1 to 65535; characters such as / ? # % @ in a " +
			"password are percent-encoded")
	}
	return opt, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
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

func isLocal(opt *redis.Options) bool {
	host, _, err := net.SplitHostPort(opt.Addr)
	if opt.Network == "unix" || err == nil && host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
