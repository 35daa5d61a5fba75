package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// published adds an event of each key, as published the given time ago.
func published(t *testing.T, db *database.DB, key string, age time.Duration) {
	t.Helper()
	outboxtest.AddKeys(t, db, key)
	for _, q := range []string{
		`DELETE FROM outbox_pending`,
		fmt.Sprintf(`UPDATE outbox_event SET created_ms = created_ms - %d WHERE key = '%s'`, age.Milliseconds(), key),
	} {
		if _, err := db.Write(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
}

func keys(t *testing.T, db *database.DB) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT key FROM outbox_event ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var k string
		if err := rows.Scan(&k); err != nil {
			t.Fatal(err)
		}
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

// A dump reads one segment for hours, or VACUUM FULL rewrites it. The other segments are still
// emptied.
func TestRetentionPassesOverALockedSegment(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"ACCESS SHARE", "ACCESS EXCLUSIVE"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			passOverALockedSegment(t, mode)
		})
	}
}

func passOverALockedSegment(t *testing.T, mode string) {
	db := dbtest.Postgres(t)
	for i := range 4 {
		published(t, db, fmt.Sprint(i), 48*time.Hour)
	}
	if _, err := db.Write(t.Context(), `UPDATE outbox_event SET segment = key::smallint`); err != nil {
		t.Fatal(err)
	}
	dump, end := dbtest.Begin(t, db)
	if _, err := dump.ExecContext(t.Context(), `LOCK TABLE ONLY outbox_event_01 IN `+mode+` MODE`); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Retain(t.Context(), db, time.Hour); err == nil || !strings.Contains(err.Error(), "segment 1:") ||
		strings.Contains(err.Error(), "segment 2:") {
		t.Errorf("it says %v", err)
	}
	if err := end(true); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, db); got != "1" {
		t.Errorf("left %s", got)
	}
	if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
		t.Error(err)
	}
	if got := keys(t, db); got != "" {
		t.Errorf("left %s", got)
	}
}

// An event from the future was written while a clock was ahead. It is deleted when the events after
// it are old, and holds up no other event.
func TestRetentionIsNotStoppedByAnEventFromTheFuture(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		apart := func() {
			t.Helper()
			if !db.IsPostgres() {
				return
			}
			if _, err := db.Write(t.Context(), `UPDATE outbox_event SET segment = id % 16`); err != nil {
				t.Fatal(err)
			}
		}
		retain := func(want string) {
			t.Helper()
			if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
				t.Fatal(err)
			}
			if got := keys(t, db); got != want {
				t.Errorf("left %q, want %q", got, want)
			}
		}
		const years = 10 * 8760 * time.Hour
		published(t, db, "old", 48*time.Hour)
		published(t, db, "future", -years)
		published(t, db, "future2", -years)
		apart()
		retain("future future2") // nothing says how old they are
		published(t, db, "young", 0)
		apart()
		retain("future future2 young")
		if _, err := db.Write(t.Context(),
			`UPDATE outbox_event SET created_ms = created_ms - 172800000 WHERE key = 'young'`); err != nil {
			t.Fatal(err)
		}
		published(t, db, "new", 0)
		apart()
		retain("new")
	})
}

func finish(t *testing.T, db *database.DB, keys ...string) {
	t.Helper()
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		for _, k := range keys {
			if err := outbox.Add(ctx, tx, outboxtest.Event(k)); err != nil {
				return err
			}
			if err := outbox.Finish(ctx, tx, k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// counters lists key:seq, with * if the key is marked as finished.
func counters(t *testing.T, db *database.DB) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(),
		`SELECT k.key, k.seq, f.key IS NOT NULL FROM outbox_key k LEFT JOIN outbox_finished_key f ON f.key = k.key ORDER BY k.key`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var key string
		var seq int64
		var finished bool
		if err := rows.Scan(&key, &seq, &finished); err != nil {
			t.Fatal(err)
		}
		mark := ""
		if finished {
			mark = "*"
		}
		out = append(out, fmt.Sprintf("%s:%d%s", key, seq, mark))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

// A finished key is forgotten one retention later, unless it has had an event since.
func TestFinishedKeysAreForgottenAfterTheRetention(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		retain := func(want string) {
			t.Helper()
			if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
				t.Fatal(err)
			}
			if got := counters(t, db); got != want {
				t.Errorf("left %q, want %q", got, want)
			}
		}
		later := func(d time.Duration) {
			t.Helper()
			if _, err := db.Write(t.Context(), `UPDATE outbox_finished_key SET finished_ms = finished_ms - ?`,
				d.Milliseconds()); err != nil {
				t.Fatal(err)
			}
		}
		outboxtest.AddKeys(t, db, "gone", "lives", "lives", "returns", "twice")
		finish(t, db, "gone", "returns", "twice")
		retain("gone:2* lives:2 returns:2* twice:2*")
		outboxtest.AddKeys(t, db, "returns")
		later(30 * time.Minute)
		finish(t, db, "twice")
		retain("gone:2* lives:2 returns:3* twice:3*")
		later(45 * time.Minute)
		retain("lives:2 returns:3 twice:3*")
		later(time.Hour)
		retain("lives:2 returns:3")
		outboxtest.AddKeys(t, db, "lives", "returns")
		finish(t, db, "returns")
		later(-8760 * time.Hour) // the clock was ahead
		retain("lives:3 returns:5*")
		later(61 * time.Minute)
		retain("lives:3")

		var many []string
		for i := range 1100 {
			many = append(many, fmt.Sprintf("many-%04d", i))
		}
		finish(t, db, many...)
		later(2 * time.Hour)
		retain("lives:3")
		var marks int
		if err := db.QueryRowContext(t.Context(),
			`SELECT count(*) FROM outbox_finished_key`).Scan(&marks); err != nil || marks != 0 {
			t.Errorf("%d marks remain, %v", marks, err)
		}
	})
}

// An event of a finished key is being added when the retention ends: the counter stays.
func TestAKeyThatIsBeingCountedIsNotForgotten(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	finish(t, db, "k")
	if _, err := db.Write(t.Context(), `UPDATE outbox_finished_key SET finished_ms = 1`); err != nil {
		t.Fatal(err)
	}
	open, end := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), open, outboxtest.Event("k")); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Retain(t.Context(), db, time.Hour); err == nil ||
		!strings.Contains(err.Error(), "forget finished keys") {
		t.Errorf("it says %v", err)
	}
	if err := end(true); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
		t.Error(err)
	}
	if got := counters(t, db); got != "k:2" {
		t.Errorf("left %q", got)
	}
}
