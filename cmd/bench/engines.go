package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/toppira/authctl/platform/engines"
	"github.com/toppira/authctl/platform/retry"
)

// Engines that a part of the benchmark starts on loopback, because it fills them, stops them or
// makes them slow. Each has its own folder, which is deleted with it.

// startPostgres makes a new server. settings are lines of postgresql.conf, env is added to its
// environment.
func startPostgres(env []string, settings ...string) (*engines.Postgres, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := engines.NewPostgres(port, env...)
	if err != nil {
		return nil, err
	}
	if err := p.Create(append(settings, "max_connections = 200")...); err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

type redisServer struct {
	url, addr string
	dir       string
	args      []string
	cmd       *exec.Cmd
}

// startRedis makes a new server. args are added to its command line.
func startRedis(args ...string) (*redisServer, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("the server of Redis is needed: install the package redis-server: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "authctl-bench-redis-")
	if err != nil {
		return nil, err
	}
	logging.Disable() // of the client, while the server is stopped
	r := &redisServer{dir: dir, addr: fmt.Sprintf("127.0.0.1:%d", port)}
	r.url = "redis://" + r.addr + "/0"
	r.args = append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", dir, "--save", "",
		"--maxmemory-policy", "noeviction"}, args...)
	if err := r.start(); err != nil {
		return nil, errors.Join(err, r.remove())
	}
	return r, nil
}

// settle waits until Redis has moved its keys to the tables whose size fits them, which it does after they have
// doubled: for minutes, in a hundredth of its time, and each command meanwhile moves some too and takes twice as long.
func (r *redisServer) settle(ctx context.Context) error {
	client := redis.NewClient(&redis.Options{Addr: r.addr, ReadTimeout: time.Minute})
	defer client.Close()
	hz, err := client.ConfigGet(ctx, "hz").Result()
	if err != nil {
		return err
	}
	if err := client.ConfigSet(ctx, "hz", "500").Err(); err != nil { // half of its time
		return err
	}
	for {
		state, err := client.Do(ctx, "debug", "htstats", "0").Text()
		if err != nil {
			return fmt.Errorf("ask Redis for its tables: %w", err)
		}
		if !strings.Contains(state, "rehashing target") {
			return client.ConfigSet(ctx, "hz", hz["hz"]).Err()
		}
		if !retry.Sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// start returns when the server has loaded its data and answers.
func (r *redisServer) start() error {
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command("redis-server", r.args...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.SysProcAttr = log, log, engines.OwnGroup()
	if err := r.cmd.Start(); err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: r.addr})
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for client.Ping(ctx).Err() != nil {
		if !retry.Sleep(ctx, 20*time.Millisecond) {
			text, _ := os.ReadFile(filepath.Join(r.dir, "log"))
			return fmt.Errorf("the Redis of this run does not answer: %s", text)
		}
	}
	return nil
}

func (r *redisServer) kill() {
	if r.cmd != nil && r.cmd.Process != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

func (r *redisServer) remove() error {
	r.kill()
	return os.RemoveAll(r.dir)
}
