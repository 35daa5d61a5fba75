package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestTheMetadataNamesThePortThatIsServed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ issuer, certificate, want string }{
		{auth.DefaultIssuer, "", "http://localhost:8081"},
		{auth.DefaultIssuer, "cert.pem", "https://localhost:8081"},
		{"https://auth.example.com", "", "https://auth.example.com"},
	} {
		var s settings
		s.Auth.Token.Issuer, s.HTTP.TLS.CertFile, s.HTTP.Port = test.issuer, test.certificate, 8081
		if got := s.baseURL(); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// Anybody may ask /readyz, as often as he likes.
func TestReadinessWritesAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if check := (&app{db: db}).databaseCheck(); check.Holds < time.Second {
			t.Errorf("it writes again after %s", check.Holds)
		}
	})
}

// When the last part of serve cannot start, the parts that run must end before the database that
// they use is closed.
func TestAFailedStartWaitsForTheRelay(t *testing.T) {
	for range 5 {
		o := &serveOptions{global: &global{set: []string{
			"app.data_dir=" + t.TempDir(), fmt.Sprint("app.port=", testenv.FreePort(t)), "auth.password.bcrypt_cost=4",
			"app.operator_addr=203.0.113.1:9", // belongs to no machine: RFC 5737
		}}}
		if err := o.run(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
			t.Fatalf("it ended with: %v", err)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if strings.Contains(string(stacks), "relayInline") {
			t.Fatalf("the relay still runs:\n%s", stacks)
		}
	}
}

// The requests of serve hold every connection that they may have, and wait. Its relay publishes meanwhile.
func TestTheRelayOfServeDoesNotWaitForTheConnectionsOfRequests(t *testing.T) {
	for _, conns := range []int{2, 4} {
		dsn := dbtest.PostgresURL(t)
		t.Setenv("DATABASE_URL", dsn)
		a, _ := serveOn(t, fmt.Sprint("database.max_conns=", conns), "app.http.request_timeout=60s",
			"auth.password.hash_workers=12") // each looks its account up
		a.want(201, "POST", "/api/v1/auth/register", "",
			map[string]string{"username": "alice", "password": goodPassword})
		db := dbtest.Open(t, dsn)
		tx, end := dbtest.Begin(t, db)
		if _, err := tx.ExecContext(t.Context(), "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
		wait := holdConnections(t, a)
		testenv.Eventually(t, "requests hold their connections", func() bool {
			var n int
			err := db.QueryRowContext(t.Context(),
				`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
				AND application_name = 'authctl' AND wait_event_type = 'Lock'`).Scan(&n)
			return err == nil && n >= conns-1
		})
		for range 5 { // one connection may have been free at first
			e := outbox.Event{ID: uuid.Must(uuid.NewV7()), Type: "test.Happened.v1", Key: "k",
				Source: "https://auth.example",
				Data:   json.RawMessage(`{}`)}
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
			testenv.Must(t, err)
			testenv.Eventually(t, "the event is published", func() bool {
				log, err := os.ReadFile("data/events.ndjson")
				return err == nil && bytes.Contains(log, []byte(e.ID.String()))
			})
		}
		testenv.Must(t, end(false))
		wait()
	}
}

// holdConnections sends sign-ins until the function that it returns is called.
func holdConnections(t *testing.T, a api) (wait func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			for ctx.Err() == nil {
				request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+"/api/v1/auth/login",
					strings.NewReader(`{"username":"alice","password":"`+goodPassword+`"}`))
				if err != nil {
					t.Error(err)
					return
				}
				request.Header.Set("Content-Type", "application/json")
				if response, err := http.DefaultClient.Do(request); err == nil {
					_ = response.Body.Close()
				}
			}
		})
	}
	wait = func() { stop(); all.Wait() }
	t.Cleanup(wait)
	return wait
}

// A service manager that stops what is still starting has nothing to report.
func TestWhoIsStoppedWhileStartingHasNotFailed(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	defer silent.Close()
	program, err := exec.LookPath("authctl")
	testenv.Must(t, err)
	for args, want := range map[string]int{"serve": 0, "relay": 0, "user list": 1} {
		var said bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, strings.Fields(args)...)
		cmd.Dir, cmd.Stderr = t.TempDir(), &said
		cmd.Env = append(os.Environ(), "DATABASE_URL=postgres://u@"+silent.Addr().String()+"/d?sslmode=disable",
			"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD", "APP_PORT=0", "APP_OPERATOR_ADDR=off")
		testenv.Must(t, cmd.Start())
		conn, err := silent.Accept() // it waits for an answer from now on
		testenv.Must(t, err)
		testenv.Must(t, cmd.Process.Signal(syscall.SIGTERM))
		_ = cmd.Wait()
		conn.Close()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s ends with %d, want %d: %s", args, got, want, &said)
		}
	}
}
