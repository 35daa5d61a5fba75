package database_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/engines"
	"github.com/toppira/authctl/platform/testenv"
)

func TestTryWriteChangesNothingAndSucceedsWhileOthersWrite(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if err := db.TryWrite(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A long import holds the writer's lock.
		err := db.Tx(t.Context(), func(context.Context, database.Tx) error { return db.TryWrite(t.Context()) })
		if err != nil {
			t.Errorf("while others write: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.TryWrite(ended); err == nil {
			t.Error("no error after the caller has left")
		}
	})
}

// As by a command that was suspended in the middle of a transaction.
func TestTryWriteFindsALockOfSQLiteThatNobodyUses(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	find := func(what string, lasts bool) {
		t.Helper()
		err := db.TryWrite(t.Context())
		if lasts != (err != nil && strings.Contains(err.Error(), "held its write lock for 1m")) || !lasts && err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := db.Tx(t.Context(), func(context.Context, database.Tx) error {
		find("at first", false)
		db.LockedFor(time.Minute)
		find("after a minute", true)
		return nil
	})
	testenv.Must(t, err)
	find("later", false)
	err = db.Tx(t.Context(), func(context.Context, database.Tx) error {
		find("another one", false)
		return nil
	})
	testenv.Must(t, err)
}

func TestTryWriteFindsAServerThatTakesNoWrites(t *testing.T) {
	t.Parallel()
	db := dbtest.OpenLimited(t, dbtest.PostgresURL(t), 1)
	// What an old connection sees of a primary that has become a standby, also where it may write no temporary file.
	for _, limit := range []string{"-1", "0"} {
		for _, readOnly := range []string{"off", "on"} {
			for _, setting := range []string{"temp_file_limit = " + limit, "default_transaction_read_only = " + readOnly} {
				if _, err := db.ExecContext(t.Context(), "SET "+setting); err != nil {
					t.Fatal(err)
				}
			}
			err := db.TryWrite(t.Context())
			if found := err != nil && strings.Contains(err.Error(), "read-only"); found != (readOnly == "on") {
				t.Errorf("with the limit %s, read-only %s: %v", limit, readOnly, err)
			}
		}
	}
}

// PostgreSQL stops when its log has no room, but not when only its tables have none.
func TestTryWriteNeedsRoomOnTheDisk(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	written := func() (bytes int64) {
		err := db.QueryRowContext(t.Context(), "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()").
			Scan(&bytes)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	before := written()
	testenv.Eventually(t, "a file that was written is counted", func() bool {
		if err := db.TryWrite(t.Context()); err != nil {
			t.Fatal(err)
		}
		return written() > before
	})
	var memory string // is what it was for the statements after it
	if err := db.QueryRowContext(t.Context(), "SHOW work_mem").Scan(&memory); err != nil || memory == "64kB" {
		t.Errorf("work_mem is %s, %v", memory, err)
	}
}

// A server whose synchronous standby is gone reads, and takes no commit.
func TestTryWriteFindsCommitsThatWaitForAStandby(t *testing.T) {
	t.Parallel()
	server, err := engines.NewPostgres(testenv.FreePort(t))
	if errors.Is(err, engines.ErrMissing) {
		testenv.Lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Remove() })
	if err := server.Create("fsync = off", "shared_buffers = 32MB"); err != nil {
		t.Fatal(err)
	}
	admin := dbtest.Open(t, server.URL)
	run := func(statements ...string) {
		t.Helper()
		for _, q := range statements {
			if _, err := admin.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
	}
	// As most roles it sees the names of standbys, and nothing else.
	run("CREATE ROLE plain LOGIN", "CREATE TABLE thing (n int)", "GRANT ALL ON thing TO plain",
		"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (there, \"other\")'", "SELECT pg_reload_conf()")
	plain := strings.Replace(server.URL, "//postgres@", "//plain@", 1)
	db := dbtest.Open(t, plain)
	waits := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "commits wait for a synchronous standby") &&
			database.Remedy(err, database.AnyTask) != ""
	}
	// Nobody has asked for readiness.
	testenv.Eventually(t, "an error says that commits wait", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := db.ExecContext(ctx, "INSERT INTO thing VALUES (1)")
		return database.IsUncertain(err) && database.IsUnavailable(err) && waits(err)
	})
	testenv.Eventually(t, "commits wait", func() bool { return waits(db.TryWrite(t.Context())) })
	// Commits that wait have all connections, and hold them for longer than the probe may take.
	few := dbtest.OpenLimited(t, plain, 1)
	held, leave := context.WithCancel(t.Context())
	taken := make(chan error, 1)
	go func() { _, err := few.ExecContext(held, "INSERT INTO thing VALUES (1)"); taken <- err }()
	testenv.Eventually(t, "the only connection is taken", func() bool {
		var n int
		err := admin.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").Scan(&n)
		return err == nil && n > 0
	})
	probing, done := context.WithTimeout(t.Context(), 30*time.Second)
	if err := few.TryWrite(probing); err == nil || !strings.Contains(err.Error(), "standby") {
		t.Errorf("without a connection: %v", err)
	}
	done()
	leave()
	<-taken
	if err := dbtest.Open(t, plain+"&synchronous_commit=local").TryWrite(t.Context()); err != nil {
		t.Errorf("of a role that does not wait: %v", err)
	}

	standby := exec.CommandContext(t.Context(), filepath.Join(server.Bin, "pg_receivewal"), "--synchronous", //nolint:gosec // for tests
		"--directory="+t.TempDir(), "--dbname="+server.URL+"&application_name=there")
	if err := standby.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standby.Process.Kill(); _ = standby.Wait() }()
	testenv.Eventually(t, "the standby follows", func() bool { return db.TryWrite(t.Context()) == nil })
	if _, err := db.ExecContext(t.Context(), "INSERT INTO thing VALUES (2)"); err != nil {
		t.Error(err)
	}
	// It hangs, and the server takes it for one that follows.
	if err := standby.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := db.ExecContext(t.Context(), "INSERT INTO thing VALUES (3)"); waiting <- err }()
	testenv.Eventually(t, "a commit waits for a second", func() bool { return db.TryWrite(t.Context()) != nil })
	if err := standby.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if err := db.TryWrite(t.Context()); err != nil {
		t.Errorf("at the end: %v", err)
	}
}
