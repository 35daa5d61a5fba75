package database_test

import (
	"context"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
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

func TestTryWriteFindsAServerThatTakesNoWrites(t *testing.T) {
	t.Parallel()
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret(dbtest.PostgresURL(t)), MaxConns: 1},
		database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// What an old connection sees of a primary that has become a standby.
	if _, err := db.ExecContext(t.Context(), "SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	if err := db.TryWrite(t.Context()); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a read-only server: %v", err)
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
