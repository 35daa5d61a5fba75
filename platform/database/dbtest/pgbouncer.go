package dbtest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// PgBouncer starts a PgBouncer that hands over its few connections after each transaction, and
// returns the URL of the database through it. Without PgBouncer the test is skipped, or fails where
// the real engines are demanded.
func PgBouncer(t testing.TB, dsn string) string {
	t.Helper()
	program := testenv.Program(t, "install PgBouncer", "pgbouncer")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pgbouncer") // its user may not enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	password, _ := u.User.Password()
	// Another process may take the free port first.
	for range 5 {
		port := testenv.FreePort(t)
		files := map[string]string{
			"users": fmt.Sprintf("\"%s\" \"%s\"\n", u.User.Username(), password),
			"ini": fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = plain
auth_file = %s
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
server_reset_query =
`, u.Hostname(), u.Port(), port, filepath.Join(dir, "users")),
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		args := []string{"-q", filepath.Join(dir, "ini")}
		if os.Getuid() == 0 { // it refuses to run as root
			args = append([]string{"-u", "nobody"}, args...)
		}
		cmd := exec.Command(program, args...)
		var log strings.Builder
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		if !listens(port, ended) {
			_ = cmd.Process.Kill()
			<-ended
			t.Logf("pgbouncer did not start: %s", log.String())
			continue
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // at once, even with open connections
			<-ended
		})
		u.Host = fmt.Sprintf("127.0.0.1:%d", port)
		return u.String()
	}
	t.Fatal("pgbouncer does not start")
	return ""
}

// listens waits until something accepts connections at the port.
func listens(port int, ended <-chan struct{}) bool {
	for deadline := time.Now().Add(testenv.Patience); time.Now().Before(deadline); {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = conn.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return false
}
