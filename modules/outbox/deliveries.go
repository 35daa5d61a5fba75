package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// DeliveryState is a target besides the log, and what waits for it.
type DeliveryState struct {
	Subscription
	Waiting      int64         `json:"waiting"`       // events, those of parked keys included
	OldestAge    time.Duration `json:"oldest_age_ns"` // of those whose keys are not parked; see [State.OldestAge]
	HeldKeys     int64         `json:"held_keys"`     // whose first event is tried again
	ParkedKeys   int64         `json:"parked_keys"`
	ParkedEvents int64         `json:"parked_events"`        // that wait with them
	LastError    string        `json:"last_error,omitempty"` // of a key that is tried again, the first such; else of a parked one
	Deliverers   int           `json:"deliverers"`           // that live and deliver to targets of its kind
}

// delivers is the condition that a deliverer lives and delivers to targets of the kind ?2, on the clock of now.
func delivers(now string) string {
	return `until_ms > ` + now + ` AND until_ms <= ` + now + ` + lease_ms + 1000 AND kinds LIKE '%"' || ?2 || '"%'`
}

// Deliverers counts the processes that live and deliver to a target.
func Deliverers(ctx context.Context, db database.IDB, s Subscription) (n int, err error) {
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM outbox_subscription, outbox_deliverer
		WHERE outbox_subscription.id = ?1 AND `+delivers(schema.Now(db)), s.ID, s.Kind).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count who delivers to the target %s: %w", s.Name, err)
	}
	return n, nil
}

// Deliveries lists the targets besides the log with what waits for them, the oldest target first. It
// counts, which takes a moment when millions wait.
func Deliveries(ctx context.Context, db *database.DB) ([]DeliveryState, error) {
	list, err := Subscriptions(ctx, db)
	if err != nil {
		return nil, err
	}
	out := make([]DeliveryState, len(list))
	for i, s := range list {
		out[i] = DeliveryState{Subscription: s}
		if err := out[i].count(ctx, db); err != nil {
			return nil, fmt.Errorf("count what waits for the target %s: %w", s.Name, err)
		}
	}
	return out, nil
}

func (t *DeliveryState) count(ctx context.Context, db *database.DB) error {
	now := schema.Now(db)
	var ready, held, first, firstHeld, failing, age int64
	err := db.QueryRowContext(ctx, `SELECT
			(SELECT count(*) FROM outbox_delivery WHERE target = ?1 AND NOT held),
			(SELECT count(*) FROM outbox_delivery WHERE target = ?1 AND held),
			(SELECT coalesce(min(id), 0) FROM outbox_delivery WHERE target = ?1 AND NOT held AND NOT replay),
			(SELECT coalesce(min(d.id), 0) FROM outbox_held_key k JOIN outbox_delivery d ON d.target = k.target AND d.key = k.key AND d.held
				WHERE k.target = ?1 AND k.parked_ms IS NULL AND NOT d.replay),
			(SELECT coalesce(`+now+` - min(since_ms), 0) FROM outbox_held_key WHERE target = ?1 AND parked_ms IS NULL),
			(SELECT count(*) FROM outbox_held_key WHERE target = ?1 AND parked_ms IS NULL),
			(SELECT count(*) FROM outbox_held_key WHERE target = ?1 AND parked_ms IS NOT NULL),
			(SELECT count(*) FROM outbox_held_key k JOIN outbox_delivery d ON d.target = k.target AND d.key = k.key AND d.held
				WHERE k.target = ?1 AND k.parked_ms IS NOT NULL),
			(SELECT count(*) FROM outbox_deliverer WHERE `+delivers(now)+`)`, t.ID, t.Kind).
		Scan(&ready, &held, &first, &firstHeld, &failing, &t.HeldKeys, &t.ParkedKeys, &t.ParkedEvents, &t.Deliverers)
	if err != nil {
		return err
	}
	t.Waiting = ready + held
	if first == 0 || firstHeld > 0 && firstHeld < first {
		first = firstHeld
	}
	if first > 0 {
		table := "outbox_event"
		if len(t.Types) == 0 {
			table = "outbox_message"
		}
		err := db.QueryRowContext(ctx, `SELECT `+now+` - created_ms FROM `+table+` WHERE id = ?`, first).Scan(&age)
		if err != nil && !database.IsNotFound(err) {
			return err
		}
	}
	t.OldestAge = time.Duration(max(0, age, failing)) * time.Millisecond
	if t.HeldKeys+t.ParkedKeys > 0 {
		err := db.QueryRowContext(ctx, `SELECT error FROM outbox_held_key WHERE target = ? AND since_ms IS NOT NULL
			ORDER BY parked_ms IS NOT NULL, since_ms LIMIT 1`, t.ID).Scan(&t.LastError)
		if err != nil && !database.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// HeldKeys lists the keys of a target that wait because it did not take their first event: the parked
// ones, and with all also those that are tried again.
func HeldKeys(ctx context.Context, db *database.DB, s Subscription, all bool) ([]ParkedKey, error) {
	return database.Collect(ctx, db, "list the keys that wait for a target", func(
		row database.Row,
	) (k ParkedKey, err error) {
		var parked, since, next int64
		err = row.Scan(&k.Key, &k.Shard, &k.ID, &k.Error, &parked, &since, &next, &k.Attempts, &k.EventID, &k.Type,
			&k.Events)
		switch {
		case parked > 0:
			k.ParkedAt = time.UnixMilli(parked).UTC()
		case next > 0 && s.Active():
			k.NextAt = time.UnixMilli(next).UTC()
		}
		if since > 0 {
			k.FailedAt = time.UnixMilli(since).UTC()
		}
		k.Target = s.Name
		return k, err
	}, `SELECT k.key, k.shard, k.event, k.error, coalesce(k.parked_ms, 0), coalesce(k.since_ms, 0), k.next_ms, k.attempts,
			coalesce(CAST(e.event_id AS text), CAST(m.event_id AS text), ''), coalesce(e.type, m.type, ''),
			(SELECT count(*) FROM outbox_delivery d WHERE d.target = k.target AND d.key = k.key)
		FROM outbox_held_key k
		LEFT JOIN outbox_event e ON e.id = k.event AND ?3
		LEFT JOIN outbox_message m ON m.id = k.event AND NOT ?3
		WHERE k.target = ?1 AND (k.parked_ms IS NOT NULL OR ?2) ORDER BY coalesce(k.parked_ms, k.since_ms, 0), k.key`,
		s.ID, all, len(s.Types) > 0)
}

// HeldEvents returns the events that wait with a held key of a target, the refused one first. The data
// of an event for one target alone is not shown: it is sealed, and nobody's but the target's.
func HeldEvents(ctx context.Context, db *database.DB, s Subscription, key string) ([]Record, error) {
	table, columns := "outbox_event", recordColumns
	if len(s.Types) == 0 {
		table = "outbox_message"
		columns = `e.created_ms, 0, e.event_id, e.type, e.key, e.subject, e.source, e.dataschema, e.time, '{}', 0, e.traceparent`
	}
	list, err := database.Collect(ctx, db, "read the events of a key that waits", func(
		row database.Row,
	) (r Record, err error) {
		err = row.Scan(r.fields()...)
		return r, err
	}, `SELECT e.id, d.replay, `+columns+` FROM outbox_held_key k
		JOIN outbox_delivery d ON d.target = k.target AND d.key = k.key JOIN `+table+` e ON e.id = d.id
		WHERE k.target = ? AND k.key = ? ORDER BY e.id`, s.ID, key)
	if err == nil && len(list) == 0 {
		err = ErrNotParked
	}
	return list, err
}

// RetryHeld has the events of a key of a target sent again now, the refused one first, and returns how
// many. If the target does not take it, it is tried again as if for the first time.
func RetryHeld(ctx context.Context, db *database.DB, s Subscription, key string) (int64, error) {
	return releaseKey(ctx, db, s, key, false, 0)
}

// unparked makes a held key as if its first event had not been tried.
const unparked = `attempts = 0, since_ms = NULL, next_ms = 0, asked_ms = NULL, parked_ms = NULL`

// RetryAllHeld is [RetryHeld] for all parked keys of a target. It returns how many there were.
func RetryAllHeld(ctx context.Context, db *database.DB, s Subscription) (keys int64, err error) {
	for shard := range schema.DeliveryShards(db) { // as owners do: the lease, then the keys
		var n int64
		err := bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
			_, err := tx.ExecContext(ctx, `SELECT 1 FROM outbox_delivery_lease WHERE target = ? AND shard = ?`+database.ForUpdate(tx),
				s.ID, shard)
			if err != nil {
				return err
			}
			res, err := tx.ExecContext(ctx, `UPDATE outbox_held_key SET `+unparked+`
				WHERE target = ? AND shard = ? AND parked_ms IS NOT NULL`, s.ID, shard)
			if err != nil {
				return err
			}
			if n, err = res.RowsAffected(); err != nil || n == 0 {
				return err
			}
			return schema.NotifyLeases(ctx, tx)
		})
		if err == nil {
			keys += n
		} else {
			return keys, fmt.Errorf("release the parked keys of the target %s: %w", s.Name, err)
		}
	}
	return keys, nil
}

// DiscardHeld gives up the refused event of a parked key of a target, has the later ones sent, and
// returns how many. event is as for [DiscardParked]. The target sees a gap in the key's sequence.
// [ReplayTo] can send the event again until the retention drops it, unless it was for this target alone.
func DiscardHeld(ctx context.Context, db *database.DB, s Subscription, key string, event int64) (int64, error) {
	return releaseKey(ctx, db, s, key, true, event)
}

func releaseKey(
	ctx context.Context, db *database.DB, s Subscription, key string, discard bool, only int64,
) (n int64, err error) {
	err = bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		// The lease of the shard first, as its owner does, and then the key.
		var shard, one int
		var event int64
		var parked bool
		err := tx.QueryRowContext(ctx, `SELECT shard FROM outbox_held_key WHERE target = ? AND key = ?`, s.ID, key).Scan(&shard)
		if err == nil {
			err = tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_delivery_lease WHERE target = ? AND shard = ?`+database.ForUpdate(tx),
				s.ID, shard).Scan(&one)
		}
		if err == nil {
			err = tx.QueryRowContext(ctx, `SELECT event, parked_ms IS NOT NULL FROM outbox_held_key
				WHERE target = ? AND key = ?`+database.ForUpdate(tx), s.ID, key).Scan(&event, &parked)
		}
		if database.IsNotFound(err) || err == nil && discard && !parked {
			return ErrNotParked
		}
		if err != nil {
			return err
		}
		if only != 0 && only != event {
			return ErrOtherRefused
		}
		if discard { // it is not under way, since its key is parked
			if err := DeleteDeliveries(ctx, tx, s.ID, []int64{event}); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE outbox_held_key SET `+unparked+` WHERE target = ? AND key = ?`, s.ID, key)
		if err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, `SELECT count(*) FROM outbox_delivery WHERE target = ? AND key = ?`, s.ID, key).Scan(&n)
		if err != nil {
			return err
		}
		return schema.NotifyLeases(ctx, tx)
	})
	if err != nil && !errors.Is(err, ErrNotParked) && !errors.Is(err, ErrOtherRefused) {
		return 0, fmt.Errorf("release a key of the target %s: %w", s.Name, err)
	}
	return n, err
}

// ReplayTo is [Replay] for one target besides the log. Only events of the types that it wants count.
func ReplayTo(
	ctx context.Context, db *database.DB, s Subscription, sel Selection, dryRun bool, progress func(ReplayResult),
) (res ReplayResult, err error) {
	if sel.ToID == 0 { // not the events written while this runs
		if sel.ToID, err = schema.LastID(ctx, db); err != nil {
			return res, fmt.Errorf("replay: %w", err)
		}
	}
	err = res.add(ctx, db, sel, progress, func(
		ctx context.Context, tx database.Tx, sel Selection,
	) (ReplayResult, error) {
		return replayToStep(ctx, tx, s, sel, dryRun)
	})
	if err != nil {
		return res, fmt.Errorf("replay to the target %s: %w", s.Name, err)
	}
	return res, nil
}

func replayToStep(
	ctx context.Context, tx database.Tx, s Subscription, sel Selection, dryRun bool,
) (res ReplayResult, err error) {
	// It must not be removed before the commit: nothing of it may stay.
	share, segment := "", "0"
	if database.IsPostgres(tx) {
		share, segment = " FOR SHARE", "e.segment"
	}
	var types string
	err = tx.QueryRowContext(ctx, `SELECT types FROM outbox_subscription WHERE id = ? AND state <> 'removed'`+share, s.ID).Scan(&types)
	if database.IsNotFound(err) {
		return res, fmt.Errorf("%w %q", ErrNoTarget, s.Name)
	}
	if err != nil {
		return res, err
	}
	wants := `EXISTS (SELECT 1 FROM json_each(?) t WHERE e.type GLOB t.value)`
	if database.IsPostgres(tx) {
		wants = `EXISTS (SELECT 1 FROM json_array_elements_text(?::json) t (pattern)
			WHERE e.type LIKE replace(replace(pattern, '_', '\_'), '*', '%'))`
	}
	where, args := sel.where()
	shards := schema.DeliveryShards(tx)
	events, err := database.Collect(ctx, tx, "choose events", func(row database.Row) (e [3]int64, err error) {
		var key string
		err = row.Scan(&e[0], &e[2], &key)
		e[1] = int64(Partition(key, shards))
		return e, err
	}, `SELECT e.id, `+segment+`, e.key FROM outbox_event e WHERE `+where+` AND `+wants+` ORDER BY e.id LIMIT 1000`,
		append(args, types)...)
	if err != nil || len(events) == 0 {
		return res, err
	}
	res = ReplayResult{Matched: int64(len(events)), FirstID: events[0][0], LastID: events[len(events)-1][0]}
	if dryRun {
		return res, nil
	}
	rows := make([][]int64, len(events))
	for i, e := range events {
		rows[i] = e[:]
	}
	table, arg := schema.Rows(tx, rows, "id", "shard", "segment")
	same := ""
	if database.IsPostgres(tx) {
		same = " AND e.segment = v.segment"
	}
	done, err := tx.ExecContext(ctx, `INSERT INTO outbox_delivery (id, target, shard, segment, replay, key)
		SELECT v.id, ?, v.shard, v.segment, true, e.key FROM `+table+` AS v JOIN outbox_event e ON e.id = v.id`+same+`
		WHERE true ON CONFLICT DO NOTHING`, s.ID, arg)
	if err != nil {
		return res, err
	}
	res.Enqueued, err = done.RowsAffected()
	return res, err
}
