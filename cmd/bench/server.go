package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/engines"
)

const (
	clientID     = "bench"
	clientSecret = "the secret of the client that the benchmark introspects with"
	password     = "a password of the benchmark"
)

// server is an authctl under test in its own process, as in production.
type server struct {
	base    string
	client  *fasthttp.Client
	process *process // nil for one that another part of the run has started
	db      string   // URL of its database
	stop    func() error
}

// built is the folder of the binary; empty: none was built.
var built string

// binary builds authctl once.
var binary = sync.OnceValues(func() (_ string, err error) {
	if built, err = os.MkdirTemp("", "authctl-bench-"); err != nil {
		return "", err
	}
	path := filepath.Join(built, "authctl")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/toppira/authctl/cmd/authctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build authctl: %w\n%s", err, out)
	}
	return path, nil
})

// authctl returns the binary to measure.
func (o options) authctl() (string, error) {
	if o.binary != "" {
		return o.binary, nil
	}
	return binary()
}

// startServer runs authctl serve on a fresh database. env is added to its environment.
func startServer(ctx context.Context, o options, env ...string) (s *server, err error) {
	dir, err := os.MkdirTemp("", "authctl-bench-data-")
	if err != nil {
		return nil, err
	}
	cleanup := undo{func() error { return os.RemoveAll(dir) }}
	defer func() {
		if err != nil {
			err = errors.Join(err, cleanup.run())
		}
	}()
	database := "sqlite:" + filepath.Join(dir, "authctl.db")
	if dsn := os.Getenv("AUTHCTL_TEST_POSTGRES"); dsn != "" && !o.embedded {
		fresh, drop, err := freshDatabase(ctx, dsn)
		if err != nil {
			return nil, err
		}
		cleanup = append(cleanup, drop)
		database = fresh
	}
	redis := os.Getenv("AUTHCTL_TEST_REDIS")
	if o.embedded {
		redis = ""
	}
	s, err = o.newServer(dir, "serve", database, redis,
		// its own secret, or it would find an earlier run's counters in Redis
		append(env, "AUTH_TOKEN_SECRET="+uuid.NewString()+uuid.NewString())...)
	if err != nil {
		return nil, err
	}
	s.process.env = append(s.process.env, "APP_OPERATOR_ADDR=off")
	if err := s.process.command(ctx, "", "migrate", "up"); err != nil {
		return nil, err
	}
	if o.users != "" {
		if err := s.process.command(ctx, o.users, "user", "import", "-"); err != nil {
			return nil, err
		}
	}
	cleanup = append(cleanup, s.process.stop)
	s.stop = cleanup.run
	return s, s.process.start(ctx)
}

// newServer says how to run a serve. Without a Redis it keeps its sessions in the database.
func (o options) newServer(dir, name, database, redis string, env ...string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(clientSecret))
	p, err := o.newProcess(dir, name, append([]string{
		"APP_PORT=" + strconv.Itoa(port), "APP_HOST=127.0.0.1", "APP_HTTP_MAX_CONNECTIONS_PER_IP=4096",
		"OUTBOX_RELAY=off", "AUTH_PASSWORD_BCRYPT_COST=" + strconv.Itoa(o.cost), "DATABASE_URL=" + database,
		"REDIS_URL=" + redis, "AUTH_CLIENTS=" + clientID + ":" + hex.EncodeToString(digest[:]),
	}, env...), "serve")
	if err != nil {
		return nil, err
	}
	s := &server{base: "http://127.0.0.1:" + strconv.Itoa(port), client: newClient(), process: p, db: database}
	p.ready = s.base + "/healthz"
	return s, nil
}

// basicAuth is how that client introduces itself.
func basicAuth() string {
	pair := url.QueryEscape(clientID) + ":" + url.QueryEscape(clientSecret)
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
}

// command runs another authctl with the settings of the process.
func (p *process) command(ctx context.Context, stdin string, args ...string) error {
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env, cmd.Dir, cmd.Stdin = p.env, p.dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("authctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func newClient() *fasthttp.Client {
	return &fasthttp.Client{MaxConnsPerHost: 4096, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		MaxIdemponentCallAttempts: 1}
}

// freePort returns a port that nothing listens on.
func freePort() (int, error) {
	port, reservation, err := engines.FreePort()
	if err != nil {
		return 0, err
	}
	return port, reservation.Close()
}

// openDatabase opens a pool of at most so many connections; 0 is the usual number.
func openDatabase(ctx context.Context, dsn string, conns int) (*database.DB, error) {
	return database.Open(ctx, database.Config{URL: config.Secret(dsn), MaxConns: conns},
		database.Options{AppName: "authctl-bench"})
}

// freshDatabase makes an empty database on a PostgreSQL server, and a function to drop it.
func freshDatabase(ctx context.Context, dsn string) (fresh string, drop func() error, err error) {
	admin, err := openDatabase(ctx, dsn, 1)
	if err != nil {
		return "", nil, err
	}
	name := "bench_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, errors.Join(err, admin.Close())
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", nil, err
	}
	u.Path = "/" + name
	return u.String(), func() error {
		_, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		return errors.Join(err, admin.Close())
	}, nil
}

// call sends one request and returns status and body.
func (s *server) call(method, path string, body any, headers ...string) (status int, answer []byte, err error) {
	err = s.exchange(method, path, body, headers, func(res *fasthttp.Response, _ time.Duration) {
		status, answer = res.StatusCode(), bytes.Clone(res.Body())
	})
	return status, answer, err
}

// exchange sends one request and passes the answer, which is valid until read returns, with the time that it took.
func (s *server) exchange(method, path string, body any, headers []string,
	read func(res *fasthttp.Response, took time.Duration)) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(method)
	req.SetRequestURI(s.base + path)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	switch body := body.(type) {
	case nil:
	case string:
		req.SetBodyString(body)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		req.Header.SetContentType("application/json")
		req.SetBody(data)
	}
	start := time.Now()
	if err := s.client.Do(req, res); err != nil {
		return err
	}
	read(res, time.Since(start))
	return nil
}

type tokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func (s *server) signIn(path, name string) (tokens, error) {
	var t tokens
	status, body, err := s.call("POST", path, map[string]string{"username": name, "password": password})
	if err != nil {
		return t, err
	}
	if status >= 300 {
		return t, fmt.Errorf("%s: %d %s", path, status, body)
	}
	return t, json.Unmarshal(body, &t)
}

// users registers accounts in parallel and returns their tokens.
func (s *server) users(n int) ([]string, []tokens, error) {
	names, list := make([]string, n), make([]tokens, n)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range n {
		names[i] = "bench-" + uuid.NewString()
		group.Go(func() (err error) {
			list[i], err = s.signIn("/api/v1/auth/register", names[i])
			return err
		})
	}
	return names, list, group.Wait()
}
