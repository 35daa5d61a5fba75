package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

const (
	clientID     = "bench"
	clientSecret = "the secret of the client that the benchmark introspects with"
	password     = "a password of the benchmark"
)

// server is an authctl under test: a process of its own, as in production.
type server struct {
	base    string
	pid     int
	started time.Duration // from exec to the first answer
	client  *fasthttp.Client
	stop    func() error
	dir     string
	env     []string
}

// binary builds authctl once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "authctl-bench-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "authctl")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/toppira/authctl/cmd/authctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build authctl: %w\n%s", err, out)
	}
	return path, nil
})

// startServer runs authctl serve on a fresh database. extra are environment variables.
func startServer(ctx context.Context, o options, extra ...string) (s *server, err error) {
	path, err := binary()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "authctl-bench-data-")
	if err != nil {
		return nil, err
	}
	cleanups := []func() error{func() error { return os.RemoveAll(dir) }}
	cleanup := func() error {
		var err error
		for i := len(cleanups) - 1; i >= 0; i-- {
			err = errors.Join(err, cleanups[i]())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, cleanup())
		}
	}()
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(clientSecret))
	env := append(os.Environ(),
		"APP_PORT="+strconv.Itoa(port), "APP_HOST=127.0.0.1", "APP_OPERATOR_ADDR=off", "APP_DATA_DIR="+dir,
		"APP_HTTP_MAX_CONNECTIONS_PER_IP=4096",
		// its own, or it would meet an earlier run's counters in Redis
		"AUTH_TOKEN_SECRET="+uuid.NewString()+uuid.NewString(),
		"AUTH_PASSWORD_BCRYPT_COST="+strconv.Itoa(o.cost),
		"AUTH_CLIENTS="+clientID+":"+hex.EncodeToString(digest[:]),
		"LOG_LEVEL=warn", "APP_MODE=dev", "OUTBOX_RELAY=off",
	)
	if dsn := os.Getenv("AUTHCTL_TEST_POSTGRES"); dsn != "" {
		fresh, drop, err := freshDatabase(ctx, dsn)
		if err != nil {
			return nil, err
		}
		cleanups = append(cleanups, drop)
		env = append(env, "DATABASE_URL="+fresh)
		migrate := exec.CommandContext(ctx, path, "migrate", "up")
		migrate.Env, migrate.Dir = env, dir
		if out, err := migrate.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("migrate: %w\n%s", err, out)
		}
	}
	if dsn := os.Getenv("AUTHCTL_TEST_REDIS"); dsn != "" {
		env = append(env, "REDIS_URL="+dsn)
	}
	env = append(env, extra...)
	if o.prepare != nil {
		err := o.prepare(func(stdin string, args ...string) error {
			cmd := exec.CommandContext(ctx, path, args...)
			cmd.Env, cmd.Dir, cmd.Stdin = env, dir, strings.NewReader(stdin)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("authctl %s: %w\n%s", args[0], err, out)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(path, "serve")
	cmd.Env, cmd.Dir = env, dir
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // received by stop
	cleanups = append(cleanups, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-exited:
			return err
		case <-time.After(20 * time.Second):
			return errors.Join(errors.New("authctl did not stop in 20 s"), cmd.Process.Kill())
		}
	})
	s = &server{base: "http://127.0.0.1:" + strconv.Itoa(port), pid: cmd.Process.Pid, client: newClient(), stop: cleanup,
		dir: dir, env: env}
	for {
		if status, _, err := s.call("GET", "/healthz", nil); err == nil && status == 200 {
			s.started = time.Since(begin)
			return s, nil
		}
		if time.Since(begin) > 15*time.Second || ctx.Err() != nil {
			return nil, fmt.Errorf("authctl did not start: %s", output.String())
		}
		time.Sleep(time.Millisecond)
	}
}

// command runs another authctl beside the server, with the settings of that.
func (s *server) command(ctx context.Context, args ...string) error {
	path, err := binary()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = s.env, s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("authctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func newClient() *fasthttp.Client {
	return &fasthttp.Client{MaxConnsPerHost: 4096, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		MaxIdemponentCallAttempts: 1}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// freshDatabase makes an empty database on a PostgreSQL server, and a function to drop it.
func freshDatabase(ctx context.Context, dsn string) (fresh string, drop func() error, err error) {
	admin, err := database.Open(ctx, database.Config{URL: config.Secret(dsn), MaxConns: 1},
		database.Options{AppName: "authctl-bench"})
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
func (s *server) call(method, path string, body any, headers ...string) (int, []byte, error) {
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
			return 0, nil, err
		}
		req.Header.SetContentType("application/json")
		req.SetBody(data)
	}
	if err := s.client.Do(req, res); err != nil {
		return 0, nil, err
	}
	return res.StatusCode(), bytes.Clone(res.Body()), nil
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
	errs := make(chan error, n)
	slots := make(chan struct{}, 4)
	for i := range n {
		names[i] = "bench-" + uuid.NewString()
		go func() { // each sends once, all are received below
			slots <- struct{}{}
			defer func() { <-slots }()
			var err error
			list[i], err = s.signIn("/api/v1/auth/register", names[i])
			errs <- err
		}()
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	return names, list, err
}

// memory returns resident and peak resident memory in MiB.
func (s *server) memory() (now, peak float64) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(s.pid) + "/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			now = kb / 1024
		case "VmHWM":
			peak = kb / 1024
		}
	}
	return now, peak
}
