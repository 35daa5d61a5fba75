package outbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// Selection selects events. A field that is zero does not narrow it.
type Selection struct {
	FromID, ToID int64     // both included
	From, To     time.Time // when the event was written; To is excluded
	Key, Type    string
}

func (s Selection) where() (string, []any) {
	parts, args := []string{"e.id > 0"}, []any{}
	add := func(part string, arg any) { parts, args = append(parts, part), append(args, arg) }
	if s.FromID > 0 {
		add("e.id >= ?", s.FromID)
	}
	if s.ToID > 0 {
		add("e.id <= ?", s.ToID)
	}
	if !s.From.IsZero() {
		add("e.created_ms >= ?", s.From.UnixMilli())
	}
	if !s.To.IsZero() {
		add("e.created_ms < ?", s.To.UnixMilli())
	}
	if s.Key != "" {
		add("e.key = ?", s.Key)
	}
	if s.Type != "" {
		add("e.type = ?", s.Type)
	}
	return strings.Join(parts, " AND "), args
}

// Oldest returns the id of the oldest event that is kept and when it was written, 0 while there is
// none. Earlier events were dropped: see outbox.retention.
func Oldest(ctx context.Context, db *database.DB) (id int64, at time.Time, err error) {
	var ms int64
	err = db.QueryRowContext(ctx, `SELECT id, created_ms FROM outbox_event ORDER BY id LIMIT 1`).Scan(&id, &ms)
	switch {
	case database.IsNotFound(err):
		return 0, at, nil
	case err != nil:
		return 0, at, fmt.Errorf("find the oldest event: %w", err)
	}
	return id, time.UnixMilli(ms).UTC(), nil
}

// ReplayResult counts the events of a replay.
type ReplayResult struct {
	Matched  int64 `json:"matched"`
	Enqueued int64 `json:"enqueued"` // the others are pending already
	Parked   int64 `json:"parked"`   // selected as well, but they wait with their parked keys
	FirstID  int64 `json:"first_id"`
	LastID   int64 `json:"last_id"`
}

// Replay has published events published again, with the same ids and bytes, and marked by the
// extension attribute replay. A dry run only counts. It calls progress, if not nil, after each
// step. Each step is a transaction of its own, and a replay can be repeated: it enqueues no event
// that is pending already.
func Replay(
	ctx context.Context, db *database.DB, sel Selection, dryRun bool, progress func(ReplayResult),
) (res ReplayResult, err error) {
	if sel.ToID == 0 { // not the events written while this runs
		if sel.ToID, err = schema.LastID(ctx, db); err != nil {
			return res, fmt.Errorf("replay: %w", err)
		}
	}
	where, args := sel.where()
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM outbox_event e JOIN outbox_dead d ON d.id = e.id
		WHERE `+where, args...).Scan(&res.Parked)
	if err != nil {
		return res, fmt.Errorf("replay: count the parked events: %w", err)
	}
	err = res.add(ctx, db, sel, progress, func(
		ctx context.Context, tx database.Tx, sel Selection,
	) (ReplayResult, error) {
		return replayStep(ctx, tx, sel, dryRun)
	})
	if err != nil {
		return res, fmt.Errorf("replay: %w", err)
	}
	return res, nil
}

// add runs the steps of a replay, each in a transaction, until one finds no event.
func (r *ReplayResult) add(
	ctx context.Context, db *database.DB, sel Selection, progress func(ReplayResult),
	do func(context.Context, database.Tx, Selection) (ReplayResult, error),
) error {
	for {
		var step ReplayResult
		err := bounded(ctx, db, func(ctx context.Context, tx database.Tx) (err error) {
			step, err = do(ctx, tx, sel)
			return err
		})
		if err != nil || step.Matched == 0 {
			return err
		}
		if r.Matched == 0 {
			r.FirstID = step.FirstID
		}
		r.Matched, r.Enqueued, r.LastID = r.Matched+step.Matched, r.Enqueued+step.Enqueued, step.LastID
		if progress != nil {
			progress(*r)
		}
		sel.FromID = step.LastID + 1
	}
}

func replayStep(ctx context.Context, tx database.Tx, sel Selection, dryRun bool) (res ReplayResult, err error) {
	share, segment := "", "0"
	if database.IsPostgres(tx) {
		share, segment = " FOR SHARE", "e.segment"
	}
	var shards int // must not change before the commit
	if err := tx.QueryRowContext(ctx, `SELECT shards FROM outbox_setting`+share).Scan(&shards); err != nil {
		return res, err
	}
	where, args := sel.where()
	firsts := map[int]int64{} // the lowest id of each shard
	events, err := database.Collect(ctx, tx, "choose events", func(row database.Row) ([]int64, error) {
		var id, segment, bytes int64
		var key string
		err := row.Scan(&id, &segment, &key, &bytes)
		shard := Partition(key, shards)
		if _, ok := firsts[shard]; !ok {
			firsts[shard] = id
		}
		return []int64{int64(shard), id, frameBytes + bytes + 2*int64(len(key)), segment}, err
	}, `SELECT e.id, `+segment+`, e.key, octet_length(e.data) + octet_length(e.subject)
			+ octet_length(e.source) + octet_length(e.dataschema) + octet_length(e.type)
		FROM outbox_event e WHERE `+where+` AND NOT EXISTS (SELECT 1 FROM outbox_dead d WHERE d.id = e.id)
		ORDER BY e.id LIMIT 1000`, args...)
	if err != nil || len(events) == 0 {
		return res, err
	}
	res = ReplayResult{Matched: int64(len(events)), FirstID: events[0][1], LastID: events[len(events)-1][1]}
	if dryRun {
		return res, nil
	}
	if err := lowerWatermarks(ctx, tx, firsts); err != nil {
		return res, err
	}
	column := ""
	if database.IsPostgres(tx) {
		column = ", segment"
	}
	// No key is parked while the shards are locked. Events that were parked since they were read
	// wait with their key.
	table, arg := schema.Rows(tx, events, "shard", "id", "bytes", "segment")
	done, err := tx.ExecContext(ctx, `INSERT INTO outbox_pending (shard, id, bytes, replay`+column+`)
		SELECT shard, id, bytes, true`+column+` FROM `+table+` AS v
		WHERE NOT EXISTS (SELECT 1 FROM outbox_dead d WHERE d.id = v.id) ON CONFLICT DO NOTHING`, arg)
	if err != nil {
		return res, err
	}
	res.Enqueued, err = done.RowsAffected()
	return res, err
}

// lowerWatermarks makes the owners of shards fetch again from the given ids on. The new epoch
// invalidates what they remember; they keep their leases.
func lowerWatermarks(ctx context.Context, tx database.Tx, firsts map[int]int64) error {
	for _, shard := range slices.Sorted(maps.Keys(firsts)) { // everyone locks shards in this order
		_, err := tx.ExecContext(ctx, `UPDATE outbox_shard
			SET epoch = epoch + 1, low = CASE WHEN low < ?1 THEN low ELSE ?1 END WHERE shard = ?2`, firsts[shard]-1, shard)
		if err != nil {
			return err
		}
	}
	return schema.NotifyLeases(ctx, tx)
}
