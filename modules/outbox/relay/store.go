package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// store has the statements that every event passes through, prepared (for PostgreSQL in
// store_postgres.go), and those that move events of a parked key aside.
type store struct {
	db         *database.DB
	fetch, ack *database.Stmt // on SQLite
}

const fetchSQLite = `SELECT p.shard, e.id, p.replay, e.created_ms, e.key_seq, e.event_id, e.type, e.key, e.subject,
		e.source, e.dataschema, e.time, e.data, e.generation, e.traceparent
	FROM json_each(?1) s
	JOIN outbox_pending p ON p.shard = s.value AND p.id IN (
		SELECT w.id FROM (
			SELECT q.*, sum(q.bytes) OVER (ORDER BY q.id) - q.bytes AS before FROM (
				SELECT id, bytes FROM outbox_pending WHERE shard = s.value ORDER BY id LIMIT ?2
			) q
		) w WHERE w.before < ?3
	)
	JOIN outbox_event e ON e.id = p.id`

// The row must be as it was read: if it was marked for replay since, it must be sent again.
const ackSQLite = `DELETE FROM outbox_pending WHERE (shard, id, replay) IN
	(SELECT value->>0, value->>1, value->>2 FROM json_each(?1))`

func openStore(ctx context.Context, db *database.DB) (*store, error) {
	s := &store{db: db}
	if db.IsPostgres() {
		return s, nil
	}
	var err error
	if s.fetch, err = db.PrepareContext(ctx, fetchSQLite); err != nil {
		return nil, fmt.Errorf("prepare to read pending events: %w", err)
	}
	if s.ack, err = db.PrepareContext(ctx, ackSQLite); err != nil {
		_ = s.fetch.Close()
		return nil, fmt.Errorf("prepare to delete pending events: %w", err)
	}
	return s, nil
}

func (s *store) close() {
	if s.fetch != nil {
		_ = s.fetch.Close()
		_ = s.ack.Close()
	}
}

// pendingOf returns the first pending events of each shard above its watermark: at most limit of
// each shard, of which the one that exceeds bytes is the last. They are not sorted. The watermarks
// are of the given server, and it reads from no other.
func (s *store) pendingOf(
	ctx context.Context, server string, shards []int, watermarks []int64, limit, bytes int,
) ([]Record, error) {
	read := s.readSQLite
	if s.db.IsPostgres() {
		read = s.readPostgres
	}
	out, err := read(ctx, server, shards, watermarks, limit, bytes)
	if err != nil {
		return nil, fmt.Errorf("read pending events: %w", err)
	}
	return out, nil
}

func (s *store) readSQLite(ctx context.Context, _ string, shards []int, _ []int64, limit, bytes int) ([]Record, error) {
	rows, err := s.fetch.QueryContext(ctx, schema.JSON(shards), limit, bytes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		var r Record
		err := rows.Scan(&r.shard, &r.ID, &r.Replay, &r.CreatedMS, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject,
			&r.Source, &r.DataSchema, &r.Time, &r.Data, &r.Generation, &r.TraceParent)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// published deletes the pending rows of records that the sink has acknowledged. It does so only on
// the server that they were read from, since another one may have given their ids to other events.
func (s *store) published(ctx context.Context, server string, records []Record) error {
	if s.db.IsPostgres() {
		if err := s.publishedPostgres(ctx, server, records); err != nil {
			return fmt.Errorf("delete pending events: %w", err)
		}
		return nil
	}
	list := make([][3]int64, len(records))
	for i, r := range records {
		list[i] = [3]int64{int64(r.shard), r.ID, 0}
		if r.Replay {
			list[i][2] = 1
		}
	}
	return s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.StmtContext(ctx, s.ack).ExecContext(ctx, schema.JSON(list)); err != nil {
			return fmt.Errorf("delete pending events: %w", err)
		}
		return nil
	})
}

// setAside moves pending events of parked keys of one shard to outbox_dead, where they wait with
// their key, and returns how many. It moves none unless the caller still owns the shard.
func (s *store) setAside(ctx context.Context, sh *shard, by ownership, ids []int64) (moved int64, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		moved = 0
		owned, err := ownsForUpdate(ctx, tx, sh.id, by)
		if err != nil || !owned {
			return err
		}
		moved, err = moveToDead(ctx, tx, sh.id, ids)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("set aside events of parked keys: %w", err)
	}
	return moved, nil
}

// parkKey parks a key from an event on. If a replay of earlier events meets a key that is parked
// from a later event, the key is parked from the earlier one: no event of a key is sent past one
// that was refused.
const parkKey = `INSERT INTO outbox_parked_key AS k (key, shard, event, error, parked_ms) VALUES (?, ?, ?, ?, %s)
	ON CONFLICT (key) DO UPDATE SET event = excluded.event, error = excluded.error, parked_ms = excluded.parked_ms
	WHERE excluded.event < k.event`

// park parks the key of a refused record and moves the record to outbox_dead. Later events of the
// key follow when they are fetched. If the record is no longer pending, park does nothing and
// returns false, true.
func (s *store) park(ctx context.Context, r Record, by ownership, cause string) (parked, owned bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		parked = false
		var err error
		if owned, err = ownsForUpdate(ctx, tx, r.shard, by); err != nil || !owned {
			return err
		}
		var one int
		err = tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_pending WHERE shard = ? AND id = ?`, r.shard, r.ID).Scan(&one)
		if database.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(parkKey, schema.Now(tx)), r.Key, r.shard, r.ID,
			cause); err != nil {
			return err
		}
		parked = true
		_, err = moveToDead(ctx, tx, r.shard, []int64{r.ID})
		return err
	})
	if err != nil {
		return false, false, fmt.Errorf("park the key of a refused event: %w", err)
	}
	return parked, owned, nil
}

// ownership is what a relay must still have to decide about events of a shard.
type ownership struct {
	server, relay string
	epoch         int64
}

func ownsForUpdate(ctx context.Context, tx database.Tx, shard int, by ownership) (bool, error) {
	if err := schema.Bounded(ctx, tx, 2*time.Second); err != nil {
		return false, err
	}
	var n int
	err := tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_shard WHERE shard = ? AND owner = ? AND epoch = ?
		AND `+schema.ThisServer(tx)+` = ?`+database.ForUpdate(tx), shard, by.relay, by.epoch, by.server).Scan(&n)
	if database.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// moveToDead moves pending rows whose keys are parked, and returns how many. A row that outbox_dead
// has already is only deleted from the pending ones. Caller has locked the shard.
func moveToDead(ctx context.Context, tx database.Tx, shard int, ids []int64) (int64, error) {
	segment, pSegment := "", ""
	if database.IsPostgres(tx) {
		segment, pSegment = "segment, ", "p.segment, "
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO outbox_dead (id, key, `+segment+`bytes, replay)
		SELECT p.id, e.key, `+pSegment+`p.bytes, p.replay FROM outbox_pending p JOIN outbox_event e ON e.id = p.id
		WHERE p.shard = ? AND p.id IN (?) AND EXISTS (SELECT 1 FROM outbox_parked_key k WHERE k.key = e.key)
		ON CONFLICT (id) DO NOTHING`, shard, database.List(ids))
	if err != nil {
		return 0, err
	}
	res, err := tx.ExecContext(ctx, `DELETE FROM outbox_pending WHERE shard = ?
		AND id IN (SELECT id FROM outbox_dead WHERE id IN (?))`, shard, database.List(ids))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
