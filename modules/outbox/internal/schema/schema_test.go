package schema_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestRowsAreATable(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		for _, rows := range [][][]int64{{}, {{1, 1 << 40}}, {{1, 10}, {2, -20}, {3, 1 << 40}}} {
			var want, got [3]int64
			for _, row := range rows {
				want[0], want[1], want[2] = want[0]+1, want[1]+row[0], want[2]+row[1]
			}
			table, arg := schema.Rows(db, rows, "a", "b")
			err := db.QueryRowContext(t.Context(), `SELECT count(*), coalesce(sum(a), 0), coalesce(sum(b), 0) FROM `+
				table+` AS r
				WHERE a < ?`, arg, 10).Scan(&got[0], &got[1], &got[2])
			if err != nil || got != want {
				t.Errorf("%v: count and sums are %v, %v; want %v", rows, got, err, want)
			}
		}
	})
}

// Tests that need their own server run one after the other.
func TestOnAServerOfItsOwn(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, outboxtest.StartPostgres(t, "max_prepared_transactions = 2").URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	t.Run("the stable watermark waits for a prepared transaction", func(t *testing.T) { waitsForPrepared(t, db) })
	t.Run("a server that lost a process is another one", func(t *testing.T) { losesAProcess(t, db) })
}

// A prepared transaction (two-phase commit) is no longer part of its session, and can commit an
// hour later.
func waitsForPrepared(t *testing.T, db *database.DB) {
	stable := schema.StableWatermark{DB: db}
	advance := func() int64 {
		t.Helper()
		for range 4 {
			outboxtest.AddKeys(t, db, "other")
			if _, err := stable.Advance(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
		return stable.ID
	}
	before := advance()
	open, end := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), open, outboxtest.Event("slow")); err != nil {
		t.Fatal(err)
	}
	if id := advance(); id != before {
		t.Fatalf("it went from %d to %d past an open transaction", before, id)
	}
	if _, err := open.ExecContext(t.Context(), "PREPARE TRANSACTION 'slow'"); err != nil {
		t.Fatal(err)
	}
	if err := end(true); err != nil {
		t.Log(err) // the session no longer has a transaction
	}
	if id := advance(); id != before {
		t.Fatalf("it went from %d to %d past a prepared transaction", before, id)
	}
	if _, err := db.ExecContext(t.Context(), "COMMIT PREPARED 'slow'"); err != nil {
		t.Fatal(err)
	}
	if id := advance(); id <= before {
		t.Errorf("it stays at %d", id)
	}
}

// When a process of a server is killed, the server recovers without a restart and loses what was
// not on disk. It must count as another server.
func losesAProcess(t *testing.T, db *database.DB) {
	server := func() (name string, err error) {
		err = db.QueryRowContext(t.Context(), "SELECT "+schema.ThisServer(db)).Scan(&name)
		return name, err
	}
	before, err := server()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := server(); err != nil || again != before {
		t.Fatalf("the same server is %q and %q, %v", before, again, err)
	}
	_ = db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		var pid int
		if err := tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return nil
	})
	testenv.Eventually(t, "the server is back, as another one", func() bool {
		after, err := server()
		return err == nil && after != before
	})
}

// A count that failed since the server was frozen for half a minute is not repeated half an hour later.
func TestAFailedCountIsRepeatedSoon(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for _, c := range []struct {
		took time.Duration
		err  error
		want time.Duration
	}{
		{0, nil, 5 * time.Second}, {10 * time.Second, nil, 500 * time.Second},
		{0, away, 5 * time.Second}, {30 * time.Second, away, time.Minute},
	} {
		if got := schema.CountAgain(c.took, c.err); got != c.want {
			t.Errorf("after %s and %v: %s, want %s", c.took, c.err, got, c.want)
		}
	}
}
