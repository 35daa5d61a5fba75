package outbox

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/uptrace/bun"

	"github.com/toppira/authctl/platform/database"
)

// store is the relay's SQL: the two statements every event passes through, prepared, and
// those that move events of a parked key aside.
type store struct {
	db         *database.DB
	fetch, ack *sql.Stmt
	segment    [segments]*sql.Stmt // prepared when first used
}

// recordColumns are of a pending row p and its event e, in the order of [scanRecord].
const recordColumns = `p.shard, e.id, p.replay, e.created_ms, e.key_seq, e.event_id, e.type, e.key, e.subject, e.source, e.dataschema, e.time, e.data`

// On PostgreSQL the events are read from their segment in a second step: a join with all of
// the ring chooses a segment anew for every row, which takes three times as long.
const fetchPostgres = `SELECT w.shard, w.id, w.segment, w.replay
	FROM unnest($1::integer[], $2::bigint[]) AS s(shard, low)
	CROSS JOIN LATERAL (
		SELECT q.*, sum(q.bytes) OVER (ORDER BY q.id) - q.bytes AS before FROM (
			SELECT shard, id, segment, replay, bytes FROM outbox_pending WHERE shard = s.shard AND id > s.low ORDER BY id LIMIT $3
		) q
	) w WHERE w.before < $4`

const segmentPostgres = `SELECT id, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data
	FROM outbox_event_%02d WHERE id = ANY($1::bigint[]) ORDER BY id`

const fetchSQLite = `SELECT ` + recordColumns + `
	FROM json_each(?1) s
	JOIN outbox_pending p ON p.shard = s.value AND p.id IN (
		SELECT w.id FROM (
			SELECT q.*, sum(q.bytes) OVER (ORDER BY q.id) - q.bytes AS before FROM (
				SELECT id, bytes FROM outbox_pending WHERE shard = s.value ORDER BY id LIMIT ?2
			) q
		) w WHERE w.before < ?3
	)
	JOIN outbox_event e ON e.id = p.id`

// A crash may bring an acknowledged row back, which repeats an event; it can lose none. So
// the deletion need not wait for the disk.
const ackPostgres = `WITH hasty AS (SELECT set_config('synchronous_commit', 'off', true))
	DELETE FROM outbox_pending p USING hasty, unnest($1::integer[], $2::bigint[], $3::boolean[]) AS d(shard, id, replay)
	WHERE p.shard = d.shard AND p.id = d.id AND p.replay = d.replay`

// The row must be as it was sent: one that was marked for replay meanwhile is work to do.
const ackSQLite = `DELETE FROM outbox_pending WHERE (shard, id, replay) IN
	(SELECT value->>0, value->>1, value->>2 FROM json_each(?1))`

func openStore(ctx context.Context, db *database.DB) (*store, error) {
	s := &store{db: db}
	fetch, ack := fetchSQLite, ackSQLite
	if db.IsPostgres() {
		fetch, ack = fetchPostgres, ackPostgres
	}
	var err error
	if s.fetch, err = db.DB.DB.PrepareContext(ctx, fetch); err != nil {
		return nil, fmt.Errorf("prepare to read pending events: %w", err)
	}
	if s.ack, err = db.DB.DB.PrepareContext(ctx, ack); err != nil {
		_ = s.fetch.Close()
		return nil, fmt.Errorf("prepare to delete pending events: %w", err)
	}
	return s, nil
}

func (s *store) close() {
	_ = s.fetch.Close()
	_ = s.ack.Close()
	for _, stmt := range s.segment {
		if stmt != nil {
			_ = stmt.Close()
		}
	}
}

// pendingOf returns the first pending events of each shard above its low, at most limit of
// each and the first that passes bytes the last. Within a shard the order is that of ids
// only after sorting.
func (s *store) pendingOf(ctx context.Context, shards []int, lows []int64, limit, bytes int) ([]Record, error) {
	out, err := s.read(ctx, shards, lows, limit, bytes)
	if err != nil {
		return nil, fmt.Errorf("read pending events: %w", err)
	}
	return out, nil
}

func (s *store) read(ctx context.Context, shards []int, lows []int64, limit, bytes int) ([]Record, error) {
	if s.db.IsPostgres() {
		return s.readPostgres(ctx, shards, lows, limit, bytes)
	}
	rows, err := s.fetch.QueryContext(ctx, jsonText(shards), limit, bytes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		r, err := scanRecord(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

func (s *store) readPostgres(ctx context.Context, shards []int, lows []int64, limit, bytes int) ([]Record, error) {
	rows, err := s.fetch.QueryContext(ctx, shards, lows, limit, bytes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var bySegment [segments][]Record
	for rows.Next() {
		var r Record
		var segment int
		if err := rows.Scan(&r.shard, &r.ID, &segment, &r.Replay); err != nil {
			return nil, err
		}
		bySegment[segment] = append(bySegment[segment], r)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	var out []Record
	for n, records := range bySegment {
		if len(records) == 0 {
			continue
		}
		full, err := s.complete(ctx, n, records)
		if err != nil {
			return nil, err
		}
		out = append(out, full...)
	}
	return out, nil
}

// complete reads the events of pending rows of one segment.
func (s *store) complete(ctx context.Context, segment int, records []Record) ([]Record, error) {
	stmt := s.segment[segment]
	if stmt == nil {
		var err error
		if stmt, err = s.db.DB.DB.PrepareContext(ctx, fmt.Sprintf(segmentPostgres, segment)); err != nil {
			return nil, err
		}
		s.segment[segment] = stmt
	}
	slices.SortFunc(records, func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
	ids := make([]int64, len(records))
	for i := range records {
		ids[i] = records[i].ID
	}
	rows, err := stmt.QueryContext(ctx, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		if n == len(records) {
			return nil, errors.New("more events than pending rows")
		}
		r := &records[n]
		want := r.ID
		if err := rows.Scan(&r.ID, &r.CreatedMS, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source, &r.DataSchema, &r.Time, &r.Data); err != nil {
			return nil, err
		}
		if r.ID != want {
			return nil, fmt.Errorf("the pending event %d has no event", want)
		}
		n++
	}
	return records[:n], rows.Err()
}

func scanRecord(rows *sql.Rows) (r Record, err error) {
	err = rows.Scan(&r.shard, &r.ID, &r.Replay, &r.CreatedMS, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source, &r.DataSchema, &r.Time, &r.Data)
	return r, err
}

// published deletes the pending rows of what the sink has acknowledged.
func (s *store) published(ctx context.Context, records []Record) error {
	if s.db.IsPostgres() {
		shards, ids, replays := make([]int, len(records)), make([]int64, len(records)), make([]bool, len(records))
		for i, r := range records {
			shards[i], ids[i], replays[i] = r.shard, r.ID, r.Replay
		}
		if _, err := s.ack.ExecContext(ctx, shards, ids, replays); err != nil {
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
	return s.db.Tx(ctx, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.Tx.StmtContext(ctx, s.ack).ExecContext(ctx, jsonText(list)); err != nil {
			return fmt.Errorf("delete pending events: %w", err)
		}
		return nil
	})
}

// setAside moves pending events of parked keys of one shard to the dead ones, where they
// wait with their key. It does nothing, and returns false, unless the caller is still the
// owner: who is not must not decide about a key.
func (s *store) setAside(ctx context.Context, sh *shard, owner string, epoch int64, ids []int64) (bool, error) {
	owned := false
	err := s.db.Tx(ctx, func(ctx context.Context, tx bun.Tx) error {
		var err error
		if owned, err = ownsForUpdate(ctx, tx, sh.id, owner, epoch); err != nil || !owned {
			return err
		}
		return moveToDead(ctx, tx, sh.id, ids)
	})
	if err != nil {
		return false, fmt.Errorf("set aside events of parked keys: %w", err)
	}
	return owned, nil
}

// park parks the key of a refused record and moves the record to the dead ones. Later
// events of the key follow when they are met.
func (s *store) park(ctx context.Context, r Record, owner string, epoch int64, cause string) (bool, error) {
	owned := false
	err := s.db.Tx(ctx, func(ctx context.Context, tx bun.Tx) error {
		var err error
		if owned, err = ownsForUpdate(ctx, tx, r.shard, owner, epoch); err != nil || !owned {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO outbox_parked_key (key, shard, event, error, parked_ms) VALUES (?, ?, ?, ?, `+now(tx)+`) ON CONFLICT DO NOTHING`,
			r.Key, r.shard, r.ID, cause)
		if err != nil {
			return err
		}
		return moveToDead(ctx, tx, r.shard, []int64{r.ID})
	})
	if err != nil {
		return false, fmt.Errorf("park the key of a refused event: %w", err)
	}
	return owned, nil
}

// bounded keeps a transaction of a relay from holding its locks when the relay stops in the
// middle, as a suspended machine or a cut network does: nobody could take over from it.
// Its server ends it when nothing is heard for so long.
func bounded(ctx context.Context, tx bun.Tx, d time.Duration) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', ?0, true), set_config('lock_timeout', ?0, true)`,
		strconv.FormatInt(d.Milliseconds(), 10))
	return err
}

func ownsForUpdate(ctx context.Context, tx bun.Tx, shard int, owner string, epoch int64) (bool, error) {
	if err := bounded(ctx, tx, 2*time.Second); err != nil {
		return false, err
	}
	var n int
	err := tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_shard WHERE shard = ? AND owner = ? AND epoch = ?`+database.ForUpdate(tx), shard, owner, epoch).Scan(&n)
	if database.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// moveToDead moves pending rows whose keys are parked.
func moveToDead(ctx context.Context, tx bun.Tx, shard int, ids []int64) error {
	segment := ""
	if database.IsPostgres(tx) {
		segment = "segment, "
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO outbox_dead (id, key, `+segment+`bytes, replay)
		SELECT p.id, e.key, `+prefixed("p.", segment)+`p.bytes, p.replay FROM outbox_pending p JOIN outbox_event e ON e.id = p.id
		WHERE p.shard = ? AND p.id IN (?) AND EXISTS (SELECT 1 FROM outbox_parked_key k WHERE k.key = e.key)`, shard, bun.List(ids))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM outbox_pending WHERE shard = ? AND id IN (SELECT id FROM outbox_dead WHERE id IN (?))`, shard, bun.List(ids))
	return err
}

func prefixed(prefix, column string) string {
	if column == "" {
		return ""
	}
	return prefix + column
}

func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil { // only ever numbers
		panic(err)
	}
	return string(text)
}
