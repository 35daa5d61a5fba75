package database_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// freezer is a proxy in front of a server. While it is frozen it accepts connections and confirms what it gets, as the
// system of a stopped process does, and hands nothing on.
type freezer struct {
	server string
	wall   sync.RWMutex // write-locked while frozen
	dialed atomic.Int64
	change func(sent []byte) // by the server
}

// freezable puts a freezer in front of a database.
func freezable(t *testing.T, dsn string) (*freezer, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{server: u.Host}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			f.dialed.Add(1)
			go f.serve(client)
		}
	}()
	u.Host = l.Addr().String()
	return f, u.String()
}

func (f *freezer) serve(client net.Conn) {
	defer client.Close()
	f.wait()
	server, err := net.Dial("tcp", f.server)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { f.copy(client, server, f.change); _ = client.Close() }()
	f.copy(server, client, nil)
}

// wait returns once it is not frozen.
func (f *freezer) wait() {
	f.wall.RLock()
	defer f.wall.RUnlock()
}

func (f *freezer) copy(to io.Writer, from io.Reader, change func([]byte)) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		f.wall.RLock()
		if n > 0 {
			if change != nil {
				change(buffer[:n])
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				f.wall.RUnlock()
				return
			}
		}
		f.wall.RUnlock()
		if err != nil {
			return
		}
	}
}

// A statement that a frozen server does not answer fails, also without a deadline of its own, and a change
// counts as one that may have been made.
func TestAFrozenServerIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string]func(*testing.T, string) string{
		"itself":    func(_ *testing.T, dsn string) string { return dsn },
		"pgbouncer": func(t *testing.T, dsn string) string { return dbtest.PgBouncer(t, dsn) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, dsn := freezable(t, behind(t, dbtest.PostgresURL(t)))
			db := dbtest.Open(t, dsn)
			if _, err := db.ExecContext(t.Context(), "SELECT 1"); err != nil {
				t.Fatal(err)
			}
			f.wall.Lock()
			db.Watch(50*time.Millisecond, 200*time.Millisecond, 0)
			_, err := db.ExecContext(context.WithoutCancel(t.Context()), "SELECT 1")
			f.wall.Unlock()
			if err == nil || !database.IsUnavailable(err) || !database.IsUncertain(err) {
				t.Fatalf("unavailable and uncertain: %v", err)
			}
			words := err.Error() + "; " + database.Remedy(err, database.AnyTask)
			if !strings.Contains(words, "has answered nothing") || !strings.Contains(words, "it hangs, or was paused") {
				t.Errorf("it says: %s", words)
			}
			testenv.Eventually(t, "it works again", func() bool {
				_, err := db.ExecContext(t.Context(), "SELECT 1")
				return err == nil
			})
		})
	}
}

// A commit without an answer may have been done. One that failed before it was sent has not.
func TestACommitWithoutAnAnswerIsUncertain(t *testing.T) {
	t.Parallel()
	f, dsn := freezable(t, dbtest.PostgresURL(t))
	db := dbtest.Open(t, dsn)
	err := db.Tx(t.Context(), func(context.Context, database.Tx) error {
		f.wall.Lock()
		db.Watch(50*time.Millisecond, 200*time.Millisecond, 0)
		return nil
	})
	f.wall.Unlock()
	if !database.IsUncertain(err) || !database.IsUnavailable(err) {
		t.Errorf("frozen during the commit: %v", err)
	}
	db = dbtest.Open(t, dsn)
	err = db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		f.wall.Lock()
		defer f.wall.Unlock()
		db.Watch(50*time.Millisecond, 200*time.Millisecond, 0)
		_, err := tx.ExecContext(ctx, "SELECT 1")
		return err
	})
	if database.IsUncertain(err) || !database.IsUnavailable(err) {
		t.Errorf("frozen before the commit: %v", err)
	}
	db = dbtest.Open(t, dsn)
	ctx, cancel := context.WithCancel(t.Context())
	err = db.Tx(ctx, func(context.Context, database.Tx) error { cancel(); return nil })
	if database.IsUncertain(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before the commit: %v", err)
	}
}

// A server that answers others may take long for a statement. Where a bound is set, it holds all the same.
func TestALongStatementIsGivenUpOnlyWhereABoundIsSet(t *testing.T) {
	t.Parallel()
	f, dsn := freezable(t, dbtest.PostgresURL(t))
	holder := dbtest.Open(t, dsn)
	tx, end := dbtest.Begin(t, holder)
	if _, err := tx.ExecContext(t.Context(), "LOCK TABLE users"); err != nil {
		t.Fatal(err)
	}
	bounded := dbtest.Open(t, dsn)
	bounded.Watch(20*time.Millisecond, testenv.Patience, 200*time.Millisecond)
	_, err := bounded.ExecContext(t.Context(), "UPDATE users SET id = id")
	if !database.IsUncertain(err) || !strings.Contains(err.Error(), "has not answered a statement") {
		t.Errorf("with a bound: %v", err)
	}
	if remedy := database.Remedy(err, database.AnyTask); !strings.Contains(remedy, "pg_stat_activity") {
		t.Errorf("with a bound it says: %s", remedy)
	}
	free := dbtest.Open(t, dsn)
	free.Watch(5*time.Millisecond, testenv.Patience, 0)
	before := f.dialed.Load()
	ended := make(chan error, 1)
	go func() {
		_, err := free.ExecContext(t.Context(), "UPDATE users SET id = id")
		ended <- err
	}()
	testenv.Eventually(t, "the server is tried three times", func() bool { return f.dialed.Load() >= before+3 })
	if err := end(false); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("without a bound: %v", err)
	}
}
