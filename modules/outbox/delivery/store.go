package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// errOtherServer says that the database is no longer the server that was read from. The new one may
// have given the same ids to other events.
var errOtherServer = errors.New("the database is another server now")

// onServer runs a transaction on the given server and no other.
func (d *Deliverer) onServer(ctx context.Context, server string, fn func(context.Context, database.Tx) error) error {
	return d.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if d.db.IsPostgres() {
			if err := schema.Bounded(ctx, tx, d.cfg.Lease/2); err != nil {
				return err
			}
			var same bool
			if err := tx.QueryRowContext(ctx, `SELECT `+schema.ThisServer(tx)+` = ?`, server).Scan(&same); err != nil {
				return err
			}
			if !same {
				return errOtherServer
			}
		}
		return fn(ctx, tx)
	})
}

// eachShard is a table of the first rows that a query finds in each shard. The query names the shard
// s.shard, and is sorted by all columns of an index, so that the planner reads that index in order even
// without statistics. On SQLite there is only one shard, and no LATERAL.
func (d *Deliverer) eachShard(shards []int, query string) (table string, args []any) {
	if !d.db.IsPostgres() {
		return "(" + strings.ReplaceAll(query, "s.shard", "0") + ")", nil
	}
	rows := make([][]int64, len(shards))
	for i, shard := range shards {
		rows[i] = []int64{int64(shard)}
	}
	list, arg := schema.Rows(d.db, rows, "shard")
	return list + " s CROSS JOIN LATERAL (" + query + ")", []any{arg}
}

// readyRows returns the first rows of each shard that are not marked as held, in the order of ids: at most
// depth of each shard. held is set in those whose key is held by now.
func (d *Deliverer) readyRows(ctx context.Context, server string, target int, shards []int, depth int) ([]row, error) {
	table, args := d.eachShard(shards, `SELECT d.id, d.segment, d.replay, d.shard, d.key FROM outbox_delivery d
		WHERE d.target = ? AND d.shard = s.shard AND NOT d.held ORDER BY d.target, d.shard, d.id LIMIT ?`)
	args = append(args, target, depth, target)
	list, err := database.Collect(ctx, d.db, "read what waits for a target", func(
		from database.Row,
	) (r row, err error) {
		var on string
		err = from.Scan(&r.id, &r.segment, &r.replay, &r.shard, &r.key, &r.held, &on)
		if err == nil && on != server {
			err = errOtherServer
		}
		return r, err
	}, `SELECT r.id, r.segment, r.replay, r.shard, r.key, k.key IS NOT NULL, (SELECT `+schema.ThisServer(d.db)+`)
		FROM `+table+` r LEFT JOIN outbox_held_key k ON k.target = ? AND k.key = r.key ORDER BY r.id`, args...)
	return list, err
}

// dueKey is a held key whose time has come, with the first of its events: 0 if it has none.
type dueKey struct {
	key       string
	shard     int
	event, id int64 // the one that was tried last, and the one to try now
	attempts  int
	since     int64
	next      int64 // when its time came
	segment   int
	replay    bool
}

func (d *Deliverer) dueKeys(ctx context.Context, server string, target int, shards []int, most int) ([]dueKey, error) {
	table, args := d.eachShard(shards, `SELECT k.key, k.shard, k.event, k.attempts, k.since_ms, k.next_ms,
			(SELECT min(d.id) FROM outbox_delivery d WHERE d.target = k.target AND d.key = k.key AND d.held) AS first
		FROM outbox_held_key k WHERE k.target = ? AND k.shard = s.shard AND k.parked_ms IS NULL AND k.next_ms <= ?
		ORDER BY k.target, k.shard, k.next_ms LIMIT ?`)
	args = append(args, target, d.databaseNow(), most, target, most)
	return database.Collect(ctx, d.db, "read the keys to try again", func(from database.Row) (k dueKey, err error) {
		var on string
		err = from.Scan(&k.key, &k.shard, &k.event, &k.attempts, &k.since, &k.next, &k.id, &k.segment, &k.replay, &on)
		if err == nil && on != server {
			err = errOtherServer
		}
		return k, err
	}, `SELECT r.key, r.shard, r.event, r.attempts, coalesce(r.since_ms, 0), r.next_ms, coalesce(d.id, 0), coalesce(d.segment, 0),
			coalesce(d.replay, false), (SELECT `+schema.ThisServer(d.db)+`)
		FROM `+table+` r LEFT JOIN outbox_delivery d ON d.target = ? AND d.id = r.first ORDER BY r.next_ms LIMIT ?`, args...)
}

// voidPauses ends pauses that are longer than any can be: the database's clock was ahead when they were
// written, or has been set back since.
func (d *Deliverer) voidPauses(ctx context.Context, server string, target int, shards []int) error {
	now := d.databaseNow()
	err := d.onServer(ctx, server, func(ctx context.Context, tx database.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE outbox_held_key SET next_ms = ?, asked_ms = NULL
			WHERE target = ? AND shard IN (?) AND parked_ms IS NULL AND next_ms > ?`,
			now, target, database.List(shards), now+(longestAsk+lastPause).Milliseconds())
		return err
	})
	if err != nil {
		return fmt.Errorf("end pauses of keys that cannot be right: %w", err)
	}
	return nil
}

// unpark lets parked keys come again when it is their turn.
const unpark = `UPDATE outbox_held_key SET attempts = 0, since_ms = NULL, next_ms = ?3, asked_ms = NULL, parked_ms = NULL
	WHERE target = ?1 AND parked_ms < ?2 AND key IN `

// unparkPointless lets keys come again that were parked so long ago that their events are pointless: the sink drops
// them. It takes some at a time, the oldest first, since deliveries wait meanwhile; others follow a minute later.
func (d *Deliverer) unparkPointless(ctx context.Context, server string, target int, shards []int,
	life time.Duration, atOnce int) error {
	now := d.databaseNow()
	err := d.onServer(ctx, server, func(ctx context.Context, tx database.Tx) error {
		_, err := tx.ExecContext(ctx, unpark+`(SELECT key FROM outbox_held_key
			WHERE target = ?1 AND shard IN (?4) AND parked_ms < ?2 ORDER BY parked_ms LIMIT ?5)`,
			target, now-life.Milliseconds(), now, database.List(shards), atOnce)
		return err
	})
	if err != nil {
		return fmt.Errorf("let parked keys come again: %w", err)
	}
	return nil
}

// unparkFor does it at once for the keys of events that have just come, ahead of all others.
func (d *Deliverer) unparkFor(ctx context.Context, tx database.Tx, target int, ids []int64, life time.Duration) error {
	if len(ids) == 0 {
		return nil
	}
	return database.Exec(ctx, tx, "let parked keys come again",
		unpark+`(SELECT key FROM outbox_delivery WHERE target = ?1 AND id IN (?4))`,
		target, d.databaseNow()-life.Milliseconds(), 0, database.List(ids))
}

const recordColumns = `e.created_ms, e.event_id, e.type, e.key, e.subject, e.source, e.dataschema, e.time, e.data, e.traceparent`

// records reads the events of attempts. It does not say which are replays.
func (d *Deliverer) records(ctx context.Context, server string, list []*flight) (map[int64]*outbox.Record, error) {
	out := make(map[int64]*outbox.Record, len(list))
	var logged, messages [][]int64
	for _, f := range list {
		if f.segment == schema.MessageSegment {
			messages = append(messages, []int64{f.id})
		} else {
			logged = append(logged, []int64{f.id, int64(f.segment)})
		}
	}
	scan := func(from database.Row) (one struct{}, err error) {
		r := &outbox.Record{}
		var on string
		err = from.Scan(&r.ID, &r.Seq, &r.Generation, &r.CreatedMS, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source,
			&r.DataSchema, &r.Time, &r.Data, &r.TraceParent, &on)
		if err == nil && on != server {
			err = errOtherServer
		}
		out[r.ID] = r
		return one, err
	}
	this := "(SELECT " + schema.ThisServer(d.db) + ")"
	if len(logged) > 0 {
		table, arg := schema.Rows(d.db, logged, "id", "segment")
		same := ""
		if d.db.IsPostgres() {
			same = " AND e.segment = v.segment"
		}
		_, err := database.Collect(ctx, d.db, "read events for a target", scan,
			`SELECT e.id, e.key_seq, e.generation, `+recordColumns+`, `+this+` FROM `+table+` v JOIN outbox_event e ON e.id = v.id`+same, arg)
		if err != nil {
			return nil, err
		}
	}
	if len(messages) > 0 {
		table, arg := schema.Rows(d.db, messages, "id")
		_, err := database.Collect(ctx, d.db, "read messages for a target", scan,
			`SELECT e.id, 0, 0, `+recordColumns+`, `+this+` FROM `+table+` v JOIN outbox_message e ON e.id = v.id`, arg)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// owned locks the leases among the given ones of a target that are still this deliverer's, if the target
// still exists.
func (d *Deliverer) owned(ctx context.Context, tx database.Tx, target int, list []*lease) (map[*lease]bool, error) {
	out := map[*lease]bool{}
	if len(list) == 0 {
		return out, nil
	}
	shards := make([]int, len(list))
	for i, l := range list {
		shards[i] = l.shard
	}
	epochs := map[int]int64{}
	_, err := database.Collect(ctx, tx, "lock leases", func(row database.Row) (shard int, err error) {
		var epoch int64
		err = row.Scan(&shard, &epoch)
		epochs[shard] = epoch
		return shard, err
	}, `SELECT shard, epoch FROM outbox_delivery_lease WHERE target = ? AND shard IN (?) AND owner = ?
		AND EXISTS (SELECT 1 FROM outbox_subscription s WHERE s.id = target AND s.state <> 'removed')
		ORDER BY shard`+database.ForUpdate(tx), target, database.List(shards), d.id)
	for _, l := range list {
		if epoch, have := epochs[l.shard]; have && epoch == l.epoch {
			out[l] = true
		}
	}
	return out, err
}

// whereOwned does something to rows or keys of a target, of those leases that are still the deliverer's.
func whereOwned[T any](
	ctx context.Context, d *Deliverer, target int, of map[*lease][]T,
	do func(ctx context.Context, tx database.Tx, target int, list []T) error,
) error {
	if len(of) == 0 {
		return nil
	}
	return d.onServer(ctx, d.server.Load(), func(ctx context.Context, tx database.Tx) error {
		owned, err := d.owned(ctx, tx, target, slices.Collect(maps.Keys(of)))
		if err != nil {
			return err
		}
		var list []T
		for l := range owned {
			list = append(list, of[l]...)
		}
		return do(ctx, tx, target, list)
	})
}

// markHeld sets rows of held keys aside.
func markHeld(ctx context.Context, tx database.Tx, target int, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	return database.Exec(ctx, tx, "set aside events of keys that wait",
		`UPDATE outbox_delivery SET held = true WHERE target = ? AND id IN (?) AND NOT held`, target, database.List(ids))
}

// forgetKeys deletes held keys without waiting events. The caller has locked their leases: another owner may just be
// setting events of such a key aside, and without the key nobody would ever try them again.
func forgetKeys(ctx context.Context, tx database.Tx, target int, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return database.Exec(ctx, tx, "free keys of a target",
		`DELETE FROM outbox_held_key WHERE target = ?1 AND key IN (?2) AND parked_ms IS NULL
		AND NOT EXISTS (SELECT 1 FROM outbox_delivery d WHERE d.target = ?1 AND d.key = outbox_held_key.key AND d.held)`,
		target, database.List(keys))
}

// errClockJumped says that the times of an outcome are not those of the database's clock any more.
var errClockJumped = errors.New("the database's clock has jumped")

// sameClock makes sure that the database's clock is still as this deliverer knows it. Otherwise the next tick moves
// what is stored, and must not meet times of after the jump, or be followed by times of before: see followClock.
// The caller has locked its leases.
func (d *Deliverer) sameClock(ctx context.Context, tx database.Tx) error {
	var now int64
	if err := tx.QueryRowContext(ctx, "SELECT "+schema.Now(tx)).Scan(&now); err != nil {
		return err
	}
	if apart := time.Duration(now-d.databaseNow()) * time.Millisecond; apart.Abs() >= leastJump {
		poke(d.leases)
		return errClockJumped
	}
	return nil
}

// outcome is the result of some attempts.
type outcome struct {
	target  int
	now     int64 // by the database's clock
	patient bool  // the sink decides when to give up
	done    []*flight
	holds   []hold
	gone    error // the target says that it is gone
	goneMS  int64 // since when the target had its state at the attempt that says so
	paused  bool  // whether the target was paused for that
}

// hold is an attempt that failed.
type hold struct {
	*flight
	err     error
	refused bool  // for good
	next    int64 // when it is tried again
	asked   int64 // until when the target asked for a pause; 0: it did not
	park    bool
	ids     []int64 // the known rows of its key
	saved   bool
}

// taken deletes delivered events of keys that are not held, on PostgreSQL in one statement, since this
// happens every few events. It does not wait for the disk: a crash may bring back the row of a delivered
// event, which repeats the event and loses none.
func (d *Deliverer) taken(ctx context.Context, server string, target int, ids []int64) error {
	slices.Sort(ids)
	var n int
	err := d.db.QueryRowContext(ctx, `WITH done AS (
			DELETE FROM outbox_delivery WHERE target = ? AND id IN (?) AND (SELECT `+schema.ThisServer(d.db)+`) = ?
				AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off' RETURNING id, segment
		), messages AS (DELETE FROM outbox_message WHERE id IN (SELECT id FROM done WHERE segment = ?))
		SELECT count(*) FROM done`, target, database.List(ids), server, schema.MessageSegment).Scan(&n)
	if err != nil {
		return fmt.Errorf("record deliveries: %w", err)
	}
	if n == len(ids) {
		return nil
	}
	// The target was removed, or this is another server.
	return d.onServer(ctx, server, func(context.Context, database.Tx) error { return nil })
}

// record writes an outcome. It holds no key of a lease that was lost meanwhile: another deliverer decides about it.
func (d *Deliverer) record(ctx context.Context, server string, out *outcome) error {
	waited := slices.ContainsFunc(out.done, func(f *flight) bool { return f.held })
	if d.db.IsPostgres() && !waited && len(out.holds) == 0 && out.gone == nil {
		if len(out.done) == 0 {
			return nil
		}
		ids := make([]int64, len(out.done))
		for i, f := range out.done {
			ids[i] = f.id
		}
		return d.taken(ctx, server, out.target, ids)
	}
	err := d.onServer(ctx, server, func(ctx context.Context, tx database.Tx) error {
		var leases []*lease
		for _, h := range out.holds {
			leases = append(leases, h.lease)
		}
		for _, f := range out.done {
			if f.held {
				leases = append(leases, f.lease)
			}
		}
		owned, err := d.owned(ctx, tx, out.target, leases)
		if err != nil {
			return err
		}
		if err := d.sameClock(ctx, tx); err != nil {
			return err
		}
		if err := recordDone(ctx, tx, out, owned); err != nil {
			return err
		}
		for i := range out.holds {
			h := &out.holds[i]
			if h.saved = owned[h.lease]; !h.saved {
				continue
			}
			if err := d.recordHold(ctx, tx, out, h); err != nil {
				return err
			}
		}
		if out.gone == nil {
			return nil
		}
		// An attempt that began before an operator resumed the target says nothing about it now.
		res, err := tx.ExecContext(ctx, `UPDATE outbox_subscription SET state = 'paused', reason = ?, since_ms = `+schema.Now(tx)+`
			WHERE id = ? AND state = 'active' AND since_ms <= ?`, outbox.ErrorText(out.gone), out.target, out.goneMS)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		out.paused = n > 0
		return err
	})
	if err != nil {
		return fmt.Errorf("record deliveries: %w", err)
	}
	return nil
}

// recordDone deletes delivered events. The next event of a held key is due at once; a key without one is
// no longer held.
func recordDone(ctx context.Context, tx database.Tx, out *outcome, owned map[*lease]bool) error {
	var ids []int64
	var keys []string
	for _, f := range out.done {
		ids = append(ids, f.id)
		if f.held && owned[f.lease] {
			keys = append(keys, f.key)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := outbox.DeleteDeliveries(ctx, tx, out.target, ids); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	_, err := tx.ExecContext(ctx, `UPDATE outbox_held_key SET attempts = 0, since_ms = NULL, next_ms = 0, error = ''
		WHERE target = ? AND key IN (?) AND parked_ms IS NULL`, out.target, database.List(keys))
	if err != nil {
		return err
	}
	return forgetKeys(ctx, tx, out.target, keys)
}

// endPauses lets keys of some shards come at once that were held during an outage of the target: some at a time, since
// deliveries wait meanwhile. more says that there may be others. It does not end the pauses of keys that failed before
// the target last took an event: they failed while others did not, so the next attempt would fail too. Nor does it end
// a pause that the target asked for.
func (d *Deliverer) endPauses(ctx context.Context, tx database.Tx, target int, shards []int, outage recovery,
	atOnce int) (more bool, err error) {
	if len(shards) == 0 {
		return false, nil
	}
	if err := d.sameClock(ctx, tx); err != nil {
		return false, err
	}
	res, err := tx.ExecContext(ctx, `UPDATE outbox_held_key SET next_ms = CASE WHEN asked_ms > ?1 THEN asked_ms ELSE ?1 END
		WHERE target = ?2 AND key IN (SELECT key FROM outbox_held_key WHERE target = ?2 AND shard IN (?3)
			AND parked_ms IS NULL AND next_ms > ?1 AND next_ms > coalesce(asked_ms, 0) AND since_ms BETWEEN ?4 AND ?5
			LIMIT ?6)`,
		d.databaseNow(), target, database.List(shards), outage.beforeMS, d.databaseAt(outage.at), atOnce)
	if err != nil {
		return false, fmt.Errorf("end the pauses of an outage: %w", err)
	}
	n, err := res.RowsAffected()
	return n == int64(atOnce), err
}

// recordHold holds the key of an attempt that failed, and parks it if the event was refused or has failed for long
// enough. Since when, and how often, is what the key's row says now: since the attempt began an operator may have
// released the key, so that it starts again, or its times may have followed the database's clock.
func (d *Deliverer) recordHold(ctx context.Context, tx database.Tx, out *outcome, h *hold) error {
	// Only if the event still waits: an operator may have discarded it, and the target may have been removed.
	var attempts int
	var since int64
	err := tx.QueryRowContext(ctx, `SELECT coalesce(k.attempts, 0), coalesce(k.since_ms, 0) FROM outbox_delivery d
		LEFT JOIN outbox_held_key k ON k.target = d.target AND k.key = d.key AND k.event = d.id
		WHERE d.target = ? AND d.id = ?`, out.target, h.id).Scan(&attempts, &since)
	if database.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if since == 0 {
		attempts, since = 0, out.now
	} else {
		since = min(since+h.idle, out.now)
	}
	// Whatever the next pause is: a target that asks for a long one must get another attempt.
	h.park = h.refused || !out.patient && out.now-since >= d.cfg.RetryFor.Milliseconds()
	_, err = tx.ExecContext(ctx, `INSERT INTO outbox_held_key AS k (target, key, shard, event, attempts, since_ms, next_ms, asked_ms, parked_ms, error)
		VALUES (?, ?, ?, ?, ?, ?, ?, nullif(CAST(? AS bigint), 0), CASE WHEN ? THEN `+schema.Now(tx)+` END, ?)
		ON CONFLICT (target, key) DO UPDATE SET event = excluded.event, attempts = excluded.attempts, since_ms = excluded.since_ms,
			next_ms = excluded.next_ms, asked_ms = excluded.asked_ms, parked_ms = excluded.parked_ms, error = excluded.error`,
		out.target, h.key, h.shard, h.id, attempts+1, since, h.next, h.asked, h.park, outbox.ErrorText(h.err))
	if err != nil {
		return err
	}
	return markHeld(ctx, tx, out.target, h.ids)
}
