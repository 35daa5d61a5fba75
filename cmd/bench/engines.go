package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/retry"
)

// Engines that a part of the benchmark starts on loopback, because it fills them, stops them or
// makes them slow. Each has its own folder, which is deleted with it.

// postgres is a server of PostgreSQL.
type postgres struct {
	url  string
	dir  string // with data and log
	bin  string
	cred *syscall.SysProcAttr
	env  []string // of the server
}

// startPostgres makes a new server. settings are lines of postgresql.conf, env is added to its
// environment.
func startPostgres(env []string, settings ...string) (p *postgres, err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_ctl")
	if path, err := exec.LookPath("pg_ctl"); err == nil && len(found) == 0 {
		found = append(found, path)
	}
	if len(found) == 0 {
		return nil, errors.New("PostgreSQL's server programs are needed: install the package postgresql")
	}
	slices.Sort(found)
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "authctl-bench-postgres-")
	if err != nil {
		return nil, err
	}
	p = &postgres{dir: dir, bin: filepath.Dir(found[len(found)-1]), env: env,
		url: fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)}
	made := p // what is returned with an error is nil
	defer func() {
		if err != nil {
			err = errors.Join(err, made.remove())
		}
	}()
	p.cred = ownGroup(nil)
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, fmt.Errorf("PostgreSQL refuses to run as root: %w", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		p.cred = ownGroup(&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)})
		if err := os.Chown(dir, uid, gid); err != nil {
			return nil, err
		}
	}
	if err := p.run("initdb", "-D", p.data(), "-U", "postgres", "-A", "trust", "-N", "--no-sync", "-E", "UTF8",
		"--locale=C"); err != nil {
		return nil, err
	}
	lines := append([]string{fmt.Sprintf("port = %d", port), "listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''", "max_connections = 200"}, settings...)
	f, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return p, p.start()
}

// ownGroup keeps Ctrl-C at the terminal from the process: the benchmark stops it when it ends.
func ownGroup(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred}
}

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

func (p *postgres) start() error {
	return p.run("pg_ctl", "-D", p.data(), "-l", filepath.Join(p.dir, "log"), "-w", "-t", "60", "start")
}

// stop ends the server, as an operator does (fast) or a crash (immediate).
func (p *postgres) stop(mode string) error {
	return p.run("pg_ctl", "-D", p.data(), "-m", mode, "-w", "-t", "120", "stop")
}

// remove ends the server and deletes its folder.
func (p *postgres) remove() error {
	if _, err := os.Stat(filepath.Join(p.data(), "postmaster.pid")); err == nil {
		_ = p.stop("immediate") // its data is deleted anyway
	}
	return os.RemoveAll(p.dir)
}

func (p *postgres) run(name string, args ...string) error {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = p.dir, p.cred
	cmd.Env = append(os.Environ(), p.env...)
	// Not a pipe: the server that pg_ctl starts would keep it open.
	out, err := os.CreateTemp("", "authctl-bench-out-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		return fmt.Errorf("%s: %w: %s%s", name, err, text, log[max(0, len(log)-2000):])
	}
	return nil
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
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.SysProcAttr = log, log, ownGroup(nil)
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

// kafkaBroker is one broker that deploy/kafka.sh runs.
type kafkaBroker struct {
	brokers string
	dir     string
	script  string
}

func startKafka(ctx context.Context) (k *kafkaBroker, err error) {
	script, err := filepath.Abs(filepath.Join("deploy", "kafka.sh"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(script); err != nil {
		return nil, fmt.Errorf("run the benchmark at the root of the repository: %w", err)
	}
	dir, err := os.MkdirTemp("", "authctl-bench-kafka-")
	if err != nil {
		return nil, err
	}
	k = &kafkaBroker{dir: dir, script: script}
	out, err := k.run(ctx, "start", "--set", "broker.session.timeout.ms=4000", "--set",
		"broker.heartbeat.interval.ms=500")
	if err != nil {
		return nil, errors.Join(err, k.remove())
	}
	k.brokers = strings.TrimPrefix(strings.TrimSpace(out), "BROKERS=")
	return k, nil
}

// run runs a command of the script and returns what it prints.
func (k *kafkaBroker) run(ctx context.Context, command string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.script, append([]string{command, "--dir", k.dir}, args...)...)
	// Without its optimising compiler a broker starts sooner, and only the whole is measured.
	cmd.Env = append(os.Environ(), "KAFKA_JVM_OPTIONS=-XX:TieredStopAtLevel=1")
	cmd.SysProcAttr = ownGroup(nil)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("deploy/kafka.sh %s: %w: %s", command, err, stderr.String())
	}
	return string(out), err
}

// stop kills the broker; start-broker restarts it with its data.
func (k *kafkaBroker) stop() error {
	text, err := os.ReadFile(filepath.Join(k.dir, "broker-1.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func (k *kafkaBroker) start() error {
	_, err := k.run(context.Background(), "start-broker", "1")
	return err
}

func (k *kafkaBroker) remove() error {
	_, err := k.run(context.Background(), "stop")
	return errors.Join(err, os.RemoveAll(k.dir))
}
