package outbox_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// A relay asks sixteen times in ten minutes whether a segment can be emptied. It must not read a
// backlog of millions in another segment each time.
func TestWhetherASegmentIsIdleIsAskedWithoutReadingTheBacklog(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for _, q := range []string{
		`INSERT INTO outbox_event SELECT g, 0, 1, gen_random_uuid(), (g - 1) / 10000, '', '', '', '', '', '', '{}' FROM generate_series(1, 40000) g`,
		`INSERT INTO outbox_pending (shard, segment, bytes, id) SELECT g % 96, (g - 1) / 10000, 100, g FROM generate_series(30001, 40000) g`,
		`INSERT INTO outbox_dead (id, key, segment, bytes, replay) SELECT g, '', (g - 1) / 10000, 100, false FROM generate_series(20001, 30000) g`,
		`INSERT INTO outbox_delivery (id, target, shard, segment, key) SELECT g, 2, 0, 2, '' FROM generate_series(20001, 30000) g`,
		`ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range []bool{true, true, false, false} {
		table := []string{"outbox_event_00", "outbox_event_01", "outbox_event_02", "outbox_event_03"}[n]
		var idle bool
		if err := db.QueryRowContext(t.Context(), "SELECT "+outbox.IdleSegment(table), n).Scan(&idle); err != nil ||
			idle != want {
			t.Errorf("segment %d is idle: %v, want %v: %v", n, idle, want, err)
		}
		err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
			query := strings.ReplaceAll(outbox.IdleSegment(table), "?1", "$1")
			rows, err := conn.Query(t.Context(), "EXPLAIN SELECT "+query, pgx.QueryExecModeExec, int16(n))
			if err != nil {
				return err
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if plan := strings.Join(lines, "\n"); err == nil &&
				(strings.Contains(plan, "Seq Scan on outbox_pending") ||
					strings.Contains(plan, "Seq Scan on outbox_d")) {
				t.Errorf("segment %d:\n%s", n, plan)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
