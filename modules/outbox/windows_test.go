package outbox

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// Tests that hold a transaction at one point of outbox_add while others go on: what is true
// between two statements is what the relay's bound relies on.

// stoppable gives the function a stop before, between and behind its statements, and returns
// how many those are. [stopped] holds a transaction at one of them.
func stoppable(t *testing.T, db *database.DB) int {
	t.Helper()
	var text string
	if err := db.QueryRowContext(t.Context(), `SELECT pg_get_functiondef('outbox_add'::regproc)`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	head, body, found := strings.Cut(text, "\nBEGIN\n")
	if !found {
		t.Fatalf("outbox_add is written otherwise now:\n%s", text)
	}
	stops := 0
	var out strings.Builder
	stop := func() {
		fmt.Fprintf(&out, "IF current_setting('outbox.stop_at', true) = '%d' THEN PERFORM pg_advisory_xact_lock(1); END IF;\n", stops)
		stops++
	}
	out.WriteString(head + "\nBEGIN\n")
	stop()
	for line := range strings.Lines(body) {
		out.WriteString(line)
		if strings.HasSuffix(line, ";\n") {
			stop()
		}
	}
	if stops < 5 {
		t.Fatalf("only %d stops in:\n%s", stops, out.String())
	}
	if _, err := db.ExecContext(t.Context(), out.String()); err != nil {
		t.Fatal(err)
	}
	return stops
}

// stopped begins a transaction that adds an event of the key, and returns once it is held at
// the stop. What is returned lets it commit.
func stopped(t *testing.T, db *database.DB, at int, key string) (goOn func()) {
	t.Helper()
	gate, open := dbtest.Begin(t, db)
	if _, err := gate.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			if _, err := tx.ExecContext(ctx, fmt.Sprintf(`SET LOCAL outbox.stop_at = '%d'`, at)); err != nil {
				return err
			}
			addOne(t, ctx, tx, key)
			return nil
		})
	}()
	waiting(t, db, "advisory", 1)
	return func() {
		t.Helper()
		if err := open(false); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// waiting returns once so many wait for a lock of a kind: advisory, relation, transactionid.
func waiting(t *testing.T, db *database.DB, kind string, want int) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(5 * time.Millisecond) {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = ?`, kind).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute %d wait for a lock of kind %s, want %d", n, kind, want)
		}
	}
}

func eventID(t *testing.T, db *database.DB, key string) (id int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `SELECT id FROM outbox_event WHERE key = ?`, key).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// eachStop runs a test at each stop of outbox_add, each in a database of its own.
func eachStop(t *testing.T, test func(t *testing.T, db *database.DB, at int)) {
	t.Helper()
	t.Parallel()
	for at := range stoppable(t, dbtest.Postgres(t)) {
		t.Run(fmt.Sprint("stop ", at), func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			stoppable(t, db)
			test(t, db, at)
		})
	}
}

func TestTheBoundWaitsForWhoeverHasDrawnAnID(t *testing.T) {
	eachStop(t, func(t *testing.T, db *database.DB, at int) {
		addKeys(t, db, "first")
		goOn := stopped(t, db, at, "slow")
		s := settler{db: db}
		for range 5 {
			addKeys(t, db, "quick")
			if _, err := s.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		goOn()
		if id := eventID(t, db, "slow"); id <= s.bound {
			t.Errorf("the event %d was committed when the bound was at %d", id, s.bound)
		}
	})
}

func TestTheShardOfAnEventIsOneOfThoseInUse(t *testing.T) {
	eachStop(t, func(t *testing.T, db *database.DB, at int) {
		goOn := stopped(t, db, at, "slow")
		r := &Relay{db: db, cfg: Config{Shards: 7}.withDefaults()}
		err := r.adopt(t.Context()) // it may have to give up: writers come first
		goOn()
		var shard, shards int
		if err := db.QueryRowContext(t.Context(), `SELECT p.shard, s.shards FROM outbox_pending p, outbox_setting s`).Scan(&shard, &shards); err != nil {
			t.Fatal(err)
		}
		if (err == nil) != (shards == 7) || shard != Partition("slow", shards) {
			t.Errorf("the event is in shard %d of %d, want %d; the change of the number: %v", shard, shards, Partition("slow", shards), err)
		}
	})
}

// CREATE INDEX and its like hold the table for as long as they take. Whoever comes meanwhile
// draws no id, and of one key the order is kept.
func TestTheBoundWaitsBehindALockedTable(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	addKeys(t, db, "first")
	locked, unlock := dbtest.Begin(t, db)
	if _, err := locked.ExecContext(t.Context(), `LOCK TABLE outbox_event IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { addKeys(t, db, fmt.Sprint("k", i)) })
	}
	waiting(t, db, "relation", 3)
	s := settler{db: db}
	for range 5 {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := unlock(true); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for i := range 3 {
		if id := eventID(t, db, fmt.Sprint("k", i)); id <= s.bound {
			t.Errorf("the event %d was committed when the bound was at %d", id, s.bound)
		}
	}
}
