package outboxtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/toppira/authctl/platform/engines"
	"github.com/toppira/authctl/platform/testenv"
)

// Cluster is a Kafka cluster that a test starts and may kill.
type Cluster struct{ *engines.Kafka }

// StartKafka starts brokers with deploy/kafka.sh, which end with the test. It skips the test where
// Kafka cannot be had, or fails it where the real engines are demanded.
func StartKafka(t testing.TB, brokers int, args ...string) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*testenv.Patience) // the script itself waits long
	defer cancel()
	kafka, err := engines.StartKafka(ctx, t.TempDir(), append([]string{"--brokers", strconv.Itoa(brokers)}, args...)...)
	need(t, err)
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Log(err)
		}
	})
	return &Cluster{kafka}
}

// need ends the test if there is an error. Where an engine is missing it skips the test, unless engines are demanded.
func need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, engines.ErrMissing) {
		testenv.Lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Signal sends a signal to a broker. The first one is 1.
func (c *Cluster) Signal(t testing.TB, id int, sig syscall.Signal) {
	t.Helper()
	need(t, c.Kafka.Signal(id, sig))
}

// Restart starts a killed broker and returns once it serves.
func (c *Cluster) Restart(t testing.TB, id int) { t.Helper(); need(t, c.Kafka.Restart(id)) }

// Server is a PostgreSQL server that a test starts and may kill.
type Server struct{ *engines.Postgres }

// StartPostgres starts a new server, which ends with the test. It skips the test where there are no
// binaries of the server, or fails it where the real engines are demanded.
func StartPostgres(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := newServer(t)
	need(t, s.Create(append(settings, small)...))
	return s
}

const small = "shared_buffers = 32MB"

func newServer(t testing.TB) *Server {
	t.Helper()
	server, err := engines.NewPostgres(testenv.FreePort(t))
	need(t, err)
	t.Cleanup(func() { _ = server.Remove() })
	return &Server{server}
}

// Standby makes a streaming standby of the server and starts it.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	b := newServer(t)
	need(t, b.Follow(s.Postgres, small))
	return b
}

// Start starts the server and returns once it serves.
func (s *Server) Start(t testing.TB) { t.Helper(); need(t, s.Postgres.Start()) }

// Crash stops the server as a power failure would, except that the system keeps what it has
// received.
func (s *Server) Crash(t testing.TB) { t.Helper(); need(t, s.Stop("immediate")) }

// Promote makes a standby the primary.
func (s *Server) Promote(t testing.TB) { t.Helper(); need(t, s.Postgres.Promote()) }

// Shell runs lines in a shell as the server's user, with its programs in the path, and returns the
// output. PGDATA is the data folder, and ADMIN_URL a superuser.
func (s *Server) Shell(t testing.TB, lines string) string {
	t.Helper()
	out, err := s.Execute([]string{"PATH=" + s.Bin + ":" + os.Getenv("PATH"), "HOME=" + s.Dir, "PGDATA=" + s.Data(),
		"PGCTLTIMEOUT=180", "ADMIN_URL=" + s.URL}, "sh", "-eu", "-c", lines)
	if err != nil {
		log, _ := os.ReadFile(s.Data() + ".log")
		t.Fatalf("%v\n%s\n%s\n%s", err, lines, out, log)
	}
	return out
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
