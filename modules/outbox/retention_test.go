package outbox_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// published adds an event of each key, as one that was published so long ago.
func published(t *testing.T, db *database.DB, key string, age time.Duration) {
	t.Helper()
	add(t, db, event(key))
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

// A dump reads one segment for hours, or VACUUM FULL rewrites it: the others are emptied.
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
	if err := outbox.Retain(t.Context(), db, time.Hour); err == nil || !strings.Contains(err.Error(), "segment 1:") || strings.Contains(err.Error(), "segment 2:") {
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

// An event whose time has not come yet was written by a clock that was ahead. It goes when the
// events after it are old, and keeps nothing else.
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
		retain("future future2") // nothing tells how old they are
		published(t, db, "young", 0)
		apart()
		retain("future future2 young")
		if _, err := db.Write(t.Context(), `UPDATE outbox_event SET created_ms = created_ms - 172800000 WHERE key = 'young'`); err != nil {
			t.Fatal(err)
		}
		published(t, db, "new", 0)
		apart()
		retain("new")
	})
}
