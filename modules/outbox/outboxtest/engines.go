package outboxtest

import (
	"bufio"
	"bytes"
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
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// Cluster is a Kafka cluster that a test starts and may kill.
type Cluster struct {
	Brokers []string
	SCRAM   []string // listeners that require authentication, if any
	dir     string
	script  string
}

// startFast saves a broker that lives for seconds from optimising its code.
const startFast = "KAFKA_JVM_OPTIONS=-XX:TieredStopAtLevel=1"

// StartKafka starts brokers with deploy/kafka.sh, which end with the test. It skips the test where
// Kafka cannot be had, or fails it where the real engines are demanded.
func StartKafka(t testing.TB, brokers int, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{dir: t.TempDir(), script: filepath.Join(root(t), "deploy", "kafka.sh")}
	ctx, cancel := context.WithTimeout(context.Background(), 2*testenv.Patience) // the script itself waits long
	defer cancel()
	// A broker that was killed keeps its partitions, and may not return, until its session ends.
	args = append([]string{
		"start", "--dir", c.dir, "--brokers", strconv.Itoa(brokers),
		"--set", "broker.session.timeout.ms=4000", "--set", "broker.heartbeat.interval.ms=500",
	}, args...)
	cmd := exec.CommandContext(ctx, c.script, args...)
	cmd.Env = append(os.Environ(), startFast)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	t.Cleanup(func() {
		if out, err := exec.Command(c.script, "stop", "--dir", c.dir).CombinedOutput(); err != nil {
			t.Logf("stop Kafka: %v: %s", err, out)
		}
	})
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 3 && !testenv.Demanded():
		t.Skipf("no Kafka to be had: %s", stderr.String())
	case err != nil:
		t.Fatalf("start Kafka: %v: %s", err, stderr.String())
	}
	for line := range strings.Lines(string(out)) {
		name, list, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "BROKERS":
			c.Brokers = strings.Split(list, ",")
		case "SCRAM_BROKERS":
			c.SCRAM = strings.Split(list, ",")
		}
	}
	return c
}

// Signal sends a signal to a broker. The first one is 1.
func (c *Cluster) Signal(t testing.TB, id int, sig syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("broker-%d.pid", id)))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for ; sig == syscall.SIGKILL && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); err != nil {
			return
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil &&
			strings.Contains(string(stat), ") Z ") {
			return
		}
	}
}

// Restart starts a killed broker and returns once it serves.
func (c *Cluster) Restart(t testing.TB, id int) {
	t.Helper()
	cmd := exec.Command(c.script, "start-broker", "--dir", c.dir, strconv.Itoa(id))
	cmd.Env = append(os.Environ(), startFast)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("start broker %d again: %v: %s", id, err, out)
	}
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}

// Server is a PostgreSQL server that a test starts and may kill.
type Server struct {
	URL  string
	dir  string
	port int
	bin  string
	cred *syscall.SysProcAttr
}

// StartPostgres starts a new server, which ends with the test. It skips the test where there are no
// binaries of the server, or fails it where the real engines are demanded.
func StartPostgres(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := newServer(t)
	s.run(t, "initdb", "-D", s.dir, "-U", "postgres", "-A", "trust", "-N", "--no-sync")
	s.configure(t, settings...)
	s.Start(t)
	return s
}

func newServer(t testing.TB) *Server {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_ctl")
	if path, err := exec.LookPath("pg_ctl"); err == nil && len(found) == 0 {
		found = append(found, path)
	}
	if len(found) == 0 {
		testenv.Lacking(t, "no server binaries of PostgreSQL")
	}
	slices.Sort(found)
	// Not t.TempDir, which the server's user may not enter.
	dir, err := os.MkdirTemp("", "authctl-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: filepath.Join(dir, "data"), bin: filepath.Dir(found[len(found)-1]), port: testenv.FreePort(t)}
	s.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	t.Cleanup(func() {
		_, _ = s.try("pg_ctl", "-D", s.dir, "-m", "immediate", "-w", "stop")
		_ = os.RemoveAll(dir)
	})
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("root, and no user postgres to run a server as")
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.cred = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *Server) configure(t testing.TB, settings ...string) {
	t.Helper()
	conf := fmt.Sprintf("port = %d\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = "+
		"100\nshared_buffers = 32MB\n", s.port) + strings.Join(settings, "\n") + "\n"
	f, err := os.OpenFile(filepath.Join(s.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(conf); err != nil {
		t.Fatal(err)
	}
}

// Standby makes a streaming standby of the server and starts it.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	b := newServer(t)
	b.run(t, "pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres", "-D", b.dir, "-R", "-X",
		"stream", "-c", "fast", "--no-sync")
	b.configure(t)
	b.Start(t)
	return b
}

// waits is how long pg_ctl waits, in seconds: [testenv.Patience]. A busy disk may stall.
const waits = "180"

// Start starts the server and returns once it serves.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.run(t, "pg_ctl", "-D", s.dir, "-l", filepath.Join(filepath.Dir(s.dir), "log"), "-w", "-t", waits, "start")
}

// Crash stops the server as a power failure would, except that the system keeps what it has
// received.
func (s *Server) Crash(t testing.TB) {
	t.Helper()
	s.run(t, "pg_ctl", "-D", s.dir, "-m", "immediate", "-w", "-t", waits, "stop")
}

// Promote makes a standby the primary.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.run(t, "pg_ctl", "-D", s.dir, "-w", "-t", waits, "promote")
}

// Folder is the server's own folder, which contains its data folder.
func (s *Server) Folder() string { return filepath.Dir(s.dir) }

// Shell runs lines in a shell as the server's user, with its programs in the path, and returns the
// output. PGDATA is the data folder, and ADMIN_URL a superuser.
func (s *Server) Shell(t testing.TB, lines string) string {
	t.Helper()
	out, err := s.execute("sh", []string{"-eu", "-c", lines}, "PATH="+s.bin+":"+os.Getenv("PATH"), "HOME="+s.Folder(),
		"PGDATA="+s.dir, "PGCTLTIMEOUT=180", "ADMIN_URL="+s.URL)
	if err != nil {
		log, _ := os.ReadFile(s.dir + ".log")
		t.Fatalf("%v\n%s\n%s\n%s", err, lines, out, log)
	}
	return out
}

func (s *Server) run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := s.try(name, args...); err != nil {
		log, _ := os.ReadFile(filepath.Join(filepath.Dir(s.dir), "log"))
		t.Fatalf("%s: %v: %s\n%s", name, err, out, log)
	}
}

func (s *Server) try(name string, args ...string) (string, error) {
	return s.execute(filepath.Join(s.bin, name), args)
}

// execute runs a program as the server's user, with the given environment if there is one.
func (s *Server) execute(program string, args []string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = s.Folder(), env
	cmd.SysProcAttr = s.cred
	// Not a pipe: the server that pg_ctl starts would keep it open.
	out, err := os.CreateTemp("", "authctl-postgres-out-")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	return string(text), err
}

// Process is a child process that a test may stop and kill.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// StartProcess runs this test binary again with an environment variable, and returns once the child
// has written its first line. It logs what the process writes to stderr.
func StartProcess(t testing.TB, env ...string) *Process {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Stdout = in
	p := Start(t, cmd, env...)
	_ = in.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the child did not begin: %v", err)
	}
	return p
}

// Start starts a command with further environment variables, and logs what it writes to stderr.
func Start(t testing.TB, cmd *exec.Cmd, env ...string) *Process {
	t.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() { p.Kill() })
	return p
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Stopped reports whether the process is stopped by a signal.
func (p *Process) Stopped() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	return err == nil && strings.Contains(string(stat), ") T ")
}

// Wait waits for the end and returns its error.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}
