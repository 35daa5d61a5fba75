package relay_test

import (
	"context"
	"testing"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// A transaction that is prepared (two-phase commit) leaves its session, and can commit an
// hour later.
func TestTheBoundWaitsForAPreparedTransaction(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, outboxtest.StartPostgres(t, "max_prepared_transactions = 2").URL)
	if _, err := migrations.Up(t.Context(), db, nil); err != nil {
		t.Fatal(err)
	}
	step := relay.Settling(db)
	bound := func() int64 {
		t.Helper()
		var n int64
		for range 4 {
			outboxtest.AddKeys(t, db, "other")
			var err error
			if n, err = step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	before := bound()
	open, end := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), open, outboxtest.Event("slow")); err != nil {
		t.Fatal(err)
	}
	if n := bound(); n != before {
		t.Fatalf("the bound went from %d to %d past an open transaction", before, n)
	}
	if _, err := open.ExecContext(t.Context(), "PREPARE TRANSACTION 'slow'"); err != nil {
		t.Fatal(err)
	}
	if err := end(true); err != nil {
		t.Log(err) // there is no transaction any more
	}
	if n := bound(); n != before {
		t.Fatalf("the bound went from %d to %d past a prepared transaction", before, n)
	}
	if _, err := db.ExecContext(t.Context(), "COMMIT PREPARED 'slow'"); err != nil {
		t.Fatal(err)
	}
	if n := bound(); n <= before {
		t.Errorf("the bound stays at %d", n)
	}
}

// A server one of whose processes is killed has lost what was not on disk, and does not start
// anew: relays must take it for another one.
func TestAServerThatLostAProcessIsAnotherOne(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, outboxtest.StartPostgres(t).URL)
	before, err := relay.Server(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := relay.Server(t.Context(), db); err != nil || again != before {
		t.Fatalf("the same server is %q and %q, %v", before, again, err)
	}
	_ = db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		var pid int
		if err := tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		outboxtest.KillProcess(t, pid)
		return nil
	})
	eventually(t, "the server to be back, as another one", func() bool {
		after, err := relay.Server(t.Context(), db)
		return err == nil && after != before
	})
}
