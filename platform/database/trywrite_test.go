package database_test

import (
	"context"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
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
