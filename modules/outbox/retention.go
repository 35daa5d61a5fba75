package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// Retain drops published events older than the retention, and the counters of keys that were
// finished before then (see [Finish]). Events that wait for a target, or with a parked key, stay.
// Any number of processes may call it at once. It leaves segments that somebody has locked, as a
// dump does for hours, for the next call, and the error says so.
func Retain(ctx context.Context, db *database.DB, retention time.Duration) error {
	errs := []error{forgetKeys(ctx, db, retention)}
	if !db.IsPostgres() {
		return errors.Join(append(errs, retainSQLite(ctx, db, retention))...)
	}
	for n := range schema.Segments {
		if err := emptySegment(ctx, db, n, retention); err != nil {
			errs = append(errs, fmt.Errorf("empty segment %d: %w", n, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// forgetKeys removes the counters of finished keys. A key that had events since then is in use
// again, and loses only its mark.
func forgetKeys(ctx context.Context, db *database.DB, retention time.Duration) error {
	const step = 500
	for n := step; n == step; {
		err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
			if err := schema.Bounded(ctx, tx, 200*time.Millisecond); err != nil {
				return err
			}
			var nowMS int64
			if err := tx.QueryRowContext(ctx, "SELECT "+schema.Now(tx)).Scan(&nowMS); err != nil {
				return err
			}
			// A clock that was ahead wrote these: their retention starts now.
			if _, err := tx.ExecContext(ctx, `UPDATE outbox_finished_key SET finished_ms = ? WHERE finished_ms > ?`, nowMS, nowMS+60_000); err != nil {
				return err
			}
			before := nowMS - retention.Milliseconds()
			keys, err := database.Collect(ctx, tx, "list finished keys", database.Value[string],
				`SELECT key FROM outbox_finished_key WHERE finished_ms < ? ORDER BY finished_ms LIMIT ?`, before, step)
			if n = len(keys); err != nil || n == 0 {
				return err
			}
			// The counter first, the order in which [Add] and [Finish] lock.
			_, err = tx.ExecContext(ctx, `DELETE FROM outbox_key WHERE key IN (?1)
				AND seq = (SELECT f.seq FROM outbox_finished_key f WHERE f.key = outbox_key.key AND f.finished_ms < ?2)`, database.List(keys), before)
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `DELETE FROM outbox_finished_key WHERE key IN (?1) AND finished_ms < ?2`, database.List(keys), before)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget finished keys: %w", err)
		}
	}
	return nil
}

func emptySegment(ctx context.Context, db *database.DB, n int, retention time.Duration) error {
	table := fmt.Sprintf("outbox_event_%02d", n)
	idle := idleSegment(table)
	var newest, writtenMS, nowMS int64
	err := briefly(ctx, db, func(ctx context.Context, tx database.Tx) error {
		// Events are in the order of time, except those of transactions that were open together.
		err := tx.QueryRowContext(ctx, `SELECT max(id), max(created_ms), `+schema.PostgresNow+`
			FROM (SELECT id, created_ms FROM `+table+` ORDER BY id DESC LIMIT 1000) n HAVING count(*) > 0 AND `+idle, n).Scan(&newest, &writtenMS, &nowMS)
		if err != nil || writtenMS <= nowMS {
			return err
		}
		// A clock that was ahead wrote this time: the event is at least as old as the next one whose
		// time has come.
		return tx.QueryRowContext(ctx, `SELECT created_ms FROM outbox_event WHERE id > ? AND created_ms <= ? ORDER BY id LIMIT 1`,
			newest, nowMS).Scan(&writtenMS)
	})
	if database.IsNotFound(err) || err == nil && writtenMS >= nowMS-retention.Milliseconds() {
		return nil
	}
	if err != nil {
		return err
	}
	return briefly(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE ONLY `+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		// With the lock no replay can put anything back, so this check is final. It is the only one that
		// looks at every pending event, whatever its shard.
		var same bool
		err := tx.QueryRowContext(ctx, `SELECT (SELECT max(id) FROM `+table+`) = ?2 AND `+idle+`
			AND NOT EXISTS (SELECT 1 FROM outbox_pending WHERE segment = ?1)`, n, newest).Scan(&same)
		if err != nil || !same {
			return err
		}
		_, err = tx.ExecContext(ctx, `TRUNCATE ONLY `+table)
		return err
	})
}

// idleSegment is the condition that no event of a segment waits. It goes by the ids of the segment, so
// that a backlog in another one is not read.
func idleSegment(table string) string {
	ids := `BETWEEN (SELECT min(id) FROM ` + table + `) AND (SELECT max(id) FROM ` + table + `)`
	return `NOT EXISTS (SELECT 1 FROM outbox_shard s CROSS JOIN LATERAL (SELECT 1 FROM outbox_pending p
			WHERE p.shard = s.shard AND p.segment = ?1 AND p.id ` + ids + ` LIMIT 1) waits)
		AND NOT EXISTS (SELECT 1 FROM outbox_dead WHERE segment = ?1 AND id ` + ids + `)
		AND NOT EXISTS (SELECT 1 FROM outbox_delivery WHERE segment = ?1 AND id ` + ids + `)`
}

// briefly runs a transaction that waits only briefly for locks: everyone else queues after a
// transaction that waits for an exclusive lock.
func briefly(ctx context.Context, db *database.DB, fn func(context.Context, database.Tx) error) error {
	return bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '200ms'`); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
}

func retainSQLite(ctx context.Context, db *database.DB, retention time.Duration) error {
	for {
		// In small steps, so that writers get their turn. Events from the future are treated as on
		// PostgreSQL.
		n, err := db.Write(ctx, `DELETE FROM outbox_event WHERE id IN (
			SELECT id FROM outbox_event WHERE (created_ms < `+schema.SQLiteNow+` - ?1
					OR created_ms > `+schema.SQLiteNow+` AND id < (SELECT max(id) FROM outbox_event WHERE created_ms < `+schema.SQLiteNow+` - ?1))
				AND id < coalesce((SELECT min(id) FROM outbox_pending), 9223372036854775807)
				AND id NOT IN (SELECT id FROM outbox_dead)
				AND NOT EXISTS (SELECT 1 FROM outbox_delivery d WHERE d.id = outbox_event.id AND d.segment <> ?2)
			ORDER BY id LIMIT 1000)`, retention.Milliseconds(), schema.MessageSegment)
		if err != nil {
			return fmt.Errorf("delete old events: %w", err)
		}
		if n < 1000 {
			return nil
		}
	}
}
