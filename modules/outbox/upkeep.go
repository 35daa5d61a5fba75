package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
)

const (
	settleEvery = 500 * time.Millisecond
	sweepEvery  = 30 * time.Second
	watchEvery  = 30 * time.Second
	retainEvery = 10 * time.Minute
	gaugeEvery  = 5 * time.Second
)

// open waits for the sink and the database and makes sure that they fit each other.
func (r *Relay) open(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := r.tryOpen(ctx)
		if err == nil {
			r.trouble.over(targetTrouble)
			r.trouble.over(databaseTrouble)
			return nil
		}
		if fatal(err) || ctx.Err() != nil {
			return err
		}
		if _, ofSink := errors.AsType[sinkError](err); ofSink {
			r.trouble.target(targetTrouble, err)
			r.trouble.over(databaseTrouble)
		} else {
			r.trouble.database(err)
		}
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}

func (r *Relay) tryOpen(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := r.Admit(bounded); err != nil {
		return err
	}
	partitions, err := r.sink.Partitions(bounded)
	if err != nil {
		return sinkError{fmt.Errorf("ask %s for its partitions: %w", r.target, err)}
	}
	if err := r.adopt(bounded); err != nil {
		return err
	}
	if err := PinPartitions(bounded, r.db, r.target, partitions, r.cfg.Shards); err != nil {
		return err
	}
	store, err := openStore(bounded, r.db)
	if err != nil {
		return err
	}
	r.store, r.partitions, r.lanes = store, partitions, make([]lane, partitions)
	return nil
}

// adopt makes the settings that all writers share those of this relay. The number of shards
// is part of what orders a key, so it changes only while nothing waits and no one writes.
func (r *Relay) adopt(ctx context.Context) error {
	return r.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		var shards int
		if err := tx.QueryRowContext(ctx, `SELECT shards FROM outbox_setting`+database.ForUpdate(tx)).Scan(&shards); err != nil {
			return fmt.Errorf("read the outbox's settings: %w", err)
		}
		if r.db.IsPostgres() {
			// Which segment of the ring an event goes to is only about when it is dropped.
			_, err := tx.ExecContext(ctx, `UPDATE outbox_setting SET segment_ms = ?1 WHERE segment_ms <> ?1`, segmentLength(r.cfg.Retention).Milliseconds())
			if err != nil {
				return fmt.Errorf("set the length of a segment: %w", err)
			}
		}
		if shards == r.cfg.Shards {
			return nil
		}
		if r.db.IsPostgres() {
			if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
				return err
			}
			// Waits for every transaction that has added an event and keeps new ones waiting.
			if _, err := tx.ExecContext(ctx, `LOCK TABLE outbox_event IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return fmt.Errorf("change the number of shards from %d to %d: writers do not pause: %w", shards, r.cfg.Shards, err)
			}
		}
		var waiting int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 AS one FROM outbox_pending UNION ALL SELECT 1 FROM outbox_parked_key) w`).Scan(&waiting)
		if err != nil {
			return fmt.Errorf("count what waits: %w", err)
		}
		if waiting > 0 {
			return fmt.Errorf("%w: outbox.shards is %d but %d are in use, and %d events or parked keys are waiting. "+
				"Set it back to %d until they are gone", ErrShards, r.cfg.Shards, shards, waiting, shards)
		}
		var epoch int64
		if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(epoch), 0) + 1 FROM outbox_shard`).Scan(&epoch); err != nil {
			return fmt.Errorf("change the number of shards: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_shard`); err != nil {
			return fmt.Errorf("change the number of shards: %w", err)
		}
		values := make([]string, r.cfg.Shards)
		for i := range values {
			values[i] = fmt.Sprintf("(%d, %d)", i, epoch)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO outbox_shard (shard, epoch) VALUES `+strings.Join(values, ", ")); err != nil {
			return fmt.Errorf("change the number of shards: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE outbox_setting SET shards = ?`, r.cfg.Shards); err != nil {
			return fmt.Errorf("change the number of shards: %w", err)
		}
		return nil
	})
}

// Admit makes sure that the outbox publishes to this relay's sink: see [AdmitTarget]. Once
// with what is known without asking, so that a relay with other settings is refused although
// they name what cannot be reached, and once with what the sink itself says.
func (r *Relay) Admit(ctx context.Context) (err error) {
	if r.target, err = AdmitTarget(ctx, r.db, r.sink.Name(), nil); err != nil {
		return err
	}
	identity, err := r.sink.Identity(ctx)
	if err != nil {
		return sinkError{fmt.Errorf("ask %s which it is: %w", r.target, err)}
	}
	r.target, err = AdmitTarget(ctx, r.db, r.sink.Name(), &identity)
	return err
}

// PinPartitions remembers how many partitions the target had when it was first used, and
// compares.
func PinPartitions(ctx context.Context, db *database.DB, now Target, partitions, shards int) error {
	now.Partitions = partitions
	if err := fits(now, shards); err != nil {
		return err
	}
	var pinned int
	err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE outbox_target SET partitions = ? WHERE name = ? AND partitions IS NULL`, partitions, now.Name); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT partitions FROM outbox_target WHERE name = ?`, now.Name).Scan(&pinned)
	})
	if err != nil {
		return fmt.Errorf("pin the number of partitions: %w", err)
	}
	if pinned != partitions {
		return repartitioned(now, pinned)
	}
	return nil
}

// fits reports whether shards can be divided among the partitions of a target.
func fits(t Target, shards int) error {
	if shards%t.Partitions == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has %d partitions, and outbox.shards is %d, which is no multiple of it. Set outbox.shards to %d",
		ErrShards, t, t.Partitions, shards, (shards/t.Partitions+1)*t.Partitions)
}

// Repartitioned says that a target has another number of partitions than the pinned one.
func repartitioned(now Target, pinned int) error {
	return fmt.Errorf("%w: %s has %d partitions, and events were published to it with %d. Keys would move to other partitions, "+
		"where their new events could overtake old ones. Nothing is lost: events wait. Once consumers have read everything published so far, "+
		"accept the new number with: authctl outbox topic ensure --accept-partitions %d", ErrPartitionsChanged, now, now.Partitions, pinned, now.Partitions)
}

// AcceptPartitions makes a new number of partitions of the target the one that the order of
// keys is built on. Consumers must have read everything that was published with the old one,
// so it is refused with [ErrRelaysAlive] while relays run.
func AcceptPartitions(ctx context.Context, db *database.DB, name string, identity *string, partitions int) error {
	err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		t, is, err := compareTarget(ctx, tx, name, identity)
		switch {
		case err != nil:
			return err
		case is == first || t.Partitions == 0:
			return errors.New("nothing was published there yet: there is no other number to replace")
		case t.Partitions == partitions:
			return nil
		}
		if err := noRelays(ctx, tx, "they publish by the old number"); err != nil {
			return err
		}
		t.Partitions = partitions
		return activate(ctx, tx, t)
	})
	if err != nil {
		return fmt.Errorf("accept the number of partitions: %w", err)
	}
	return nil
}

// watchTarget notices when the number of partitions changes under way, and when the target
// has become another one under the same name and address.
func (r *Relay) watchTarget(ctx context.Context, fail func(error)) {
	for sleep(ctx, r.watchEvery) {
		if identity, err := r.sink.Identity(ctx); err == nil {
			if err := CheckTarget(ctx, r.db, r.sink.Name(), &identity); errors.Is(err, ErrOtherTarget) {
				fail(err)
				return
			}
		}
		n, err := r.sink.Partitions(ctx)
		if err != nil || n == r.partitions {
			continue // of an error, publishing will tell
		}
		// A broker that lags may be wrong for a moment.
		if !sleep(ctx, r.watchEvery/10) {
			return
		}
		if again, err := r.sink.Partitions(ctx); err == nil && again == n {
			now := r.target
			now.Partitions = n
			fail(repartitioned(now, r.partitions))
			return
		}
	}
}

// settleIDs raises the bound below which no id can appear any more.
func (r *Relay) settleIDs(ctx context.Context) {
	s := settler{db: r.db}
	for wait := settleEvery; sleep(ctx, wait); {
		settled, err := s.step(ctx, r.serverName())
		if err != nil {
			s = settler{db: r.db}
		}
		r.mu.Lock()
		if known := r.serverName(); s.server == known {
			r.settle.Store(s.bound)
		} else { // what one server has settled is nothing to another
			r.settle.Store(0)
			poke(r.leases) // to learn which one it is
		}
		r.mu.Unlock()
		if wait = settleEvery; !settled {
			wait = settleEvery / 10
		}
	}
}

// settler finds the bound below which no id can appear any more.
//
// A transaction takes a lock on the event table, of a kind nobody else takes, before it draws
// an id, and holds it until its end. So once none of those who held it after the sequence was
// read holds it any longer, every id up to what was read is committed or gone. Readers, dumps
// and writers of other tables do not matter. On SQLite ids appear in order.
type settler struct {
	db    *database.DB
	bound int64

	server  string // that the bound is of
	next    int64  // becomes the bound
	waitFor []string
}

// step returns true when the bound is as high as it was going to be. Which server it expects
// may be "".
func (s *settler) step(ctx context.Context, expected string) (bool, error) {
	if !s.db.IsPostgres() {
		last, err := lastID(ctx, s.db)
		s.bound = last
		return true, err
	}
	var last int64
	var have []string
	var server string
	err := s.db.Postgres(ctx, func(conn *pgx.Conn) (err error) {
		if server, err = serverOf(ctx, conn, expected); err != nil {
			return err
		}
		if err = conn.QueryRow(ctx, lastIDPostgres).Scan(&last); err != nil {
			return err
		}
		have, err = writers(ctx, conn) // after the sequence was read
		return err
	})
	if err != nil {
		return false, err
	}
	if server != s.server {
		*s = settler{db: s.db, server: server}
	}
	if last < s.bound { // a standby that had not heard of everything is the primary now
		s.bound, s.next = 0, 0
	}
	if last == s.bound {
		return true, nil
	}
	if s.next == 0 {
		s.next, s.waitFor = last, have
	} else {
		s.waitFor = slices.DeleteFunc(s.waitFor, func(w string) bool { return !slices.Contains(have, w) })
	}
	if len(s.waitFor) > 0 {
		return false, nil
	}
	s.bound, s.next = max(s.bound, s.next), 0
	return true, nil
}

const lastIDPostgres = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_event_id`

func lastID(ctx context.Context, db *database.DB) (last int64, err error) {
	query := `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox_event'`
	if db.IsPostgres() {
		query = lastIDPostgres
	}
	err = db.QueryRowContext(ctx, query).Scan(&last)
	return last, err
}

// writers are the transactions that may have drawn an id and not committed. One that is
// prepared (two-phase commit) keeps its name.
func writers(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND relation = 'outbox_event'::regclass AND mode = 'RowExclusiveLock'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// sweep looks below the settled bound, where nothing must be.
func (r *Relay) sweep(ctx context.Context) {
	for sleep(ctx, r.sweepEvery) {
		r.mu.Lock()
		asked := make([]claim, 0, len(r.held))
		for _, sh := range r.held {
			if sh.low > 0 {
				asked = append(asked, claim{shard: sh.id, epoch: sh.epoch, low: sh.low})
			}
		}
		r.mu.Unlock()
		for _, c := range asked {
			// Only where no operator has put something back meanwhile, which raises the epoch, and
			// on the server that the bound is of: one that crashed has forgotten acknowledgements.
			var n int64
			var server string
			err := r.db.QueryRowContext(ctx, `SELECT count(*), `+thisServer(r.db)+` FROM outbox_pending p JOIN outbox_shard s ON s.shard = p.shard
				WHERE p.shard = ? AND p.id <= ? AND s.epoch = ? AND s.owner = ?`, c.shard, c.low, c.epoch, r.id).Scan(&n, &server)
			if err != nil || n == 0 || server != r.serverName() {
				continue
			}
			r.met.sweepFound.Add(float64(n))
			r.log.Error("events were found below the settled bound; they are published late", zap.Int64("events", n), zap.Int("shard", c.shard))
			r.mu.Lock()
			if sh := r.held[c.shard]; sh != nil && sh.epoch == c.epoch {
				sh.low = 0
			}
			r.mu.Unlock()
			poke(r.poked)
		}
	}
}

// segments is how many the ring has.
const segments = 16

// segmentLength is how long events go to one segment of the ring: short enough that all of
// it is dropped not much later than the retention, long enough that it is over before its
// turn comes again.
func segmentLength(retention time.Duration) time.Duration {
	return max(retention/(segments-2), time.Minute)
}

// retain drops what is older than the retention and not waiting.
func (r *Relay) retain(ctx context.Context) {
	for {
		if err := Retain(ctx, r.db, r.cfg.Retention); err != nil && ctx.Err() == nil {
			r.log.Warn("old events were not dropped; trying again later", zap.Error(err))
		}
		if err := forgetTroubles(ctx, r.db); err != nil && ctx.Err() == nil {
			r.log.Warn("old reports of relays that are gone were not dropped; trying again later", zap.Error(err))
		}
		if !sleep(ctx, retainEvery) {
			return
		}
	}
}

// Retain drops published events older than the retention, and the counters of keys that were
// finished before it (see [Finish]). Whatever waits or is parked stays. Any number of processes
// may do it at once. A part of the events that somebody holds locked, as a dump does for hours,
// is left for the next time, and the error says so.
func Retain(ctx context.Context, db *database.DB, retention time.Duration) error {
	errs := []error{forgetKeys(ctx, db, retention)}
	if !db.IsPostgres() {
		return errors.Join(append(errs, retainSQLite(ctx, db, retention))...)
	}
	for n := range segments {
		if err := emptySegment(ctx, db, n, retention); err != nil {
			errs = append(errs, fmt.Errorf("empty segment %d: %w", n, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// forgetKeys removes the counters of finished keys. One that has counted on since is in use
// again, and loses the mark only.
func forgetKeys(ctx context.Context, db *database.DB, retention time.Duration) error {
	const step = 500
	for n := step; n == step; {
		err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
			if err := bounded(ctx, tx, 200*time.Millisecond); err != nil {
				return err
			}
			var nowMS int64
			if err := tx.QueryRowContext(ctx, "SELECT "+now(tx)).Scan(&nowMS); err != nil {
				return err
			}
			// One from a clock that was ahead: its time begins now.
			if _, err := tx.ExecContext(ctx, `UPDATE outbox_finished_key SET finished_ms = ? WHERE finished_ms > ?`, nowMS, nowMS+60_000); err != nil {
				return err
			}
			before := nowMS - retention.Milliseconds()
			keys, err := column[string](tx.QueryContext(ctx, `SELECT key FROM outbox_finished_key WHERE finished_ms < ? ORDER BY finished_ms LIMIT ?`, before, step))
			if n = len(keys); err != nil || n == 0 {
				return err
			}
			// The counter first, as whoever adds and finishes does.
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
	const idle = `NOT EXISTS (SELECT 1 FROM outbox_pending WHERE segment = ?1) AND NOT EXISTS (SELECT 1 FROM outbox_dead WHERE segment = ?1)`
	var newest, writtenMS, nowMS int64
	err := briefly(ctx, db, func(ctx context.Context, tx database.Tx) error {
		// Events are written in the order of time but for what transactions that were open
		// together mix.
		err := tx.QueryRowContext(ctx, `SELECT max(id), max(created_ms), `+postgresNow+` FROM (SELECT id, created_ms FROM `+table+` ORDER BY id DESC LIMIT 1000) n
			HAVING count(*) > 0 AND `+idle, n).Scan(&newest, &writtenMS, &nowMS)
		if err != nil || writtenMS <= nowMS {
			return err
		}
		// A time that has not come yet was written by a clock that was ahead: the event is at
		// least as old as the next one whose time has come.
		return tx.QueryRowContext(ctx, `SELECT created_ms FROM outbox_event WHERE id > ? AND created_ms <= ? ORDER BY id LIMIT 1`, newest, nowMS).Scan(&writtenMS)
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
		// A replay locks what it puts back in the same way, so this is the last word.
		var same bool
		err := tx.QueryRowContext(ctx, `SELECT (SELECT max(id) FROM `+table+`) = ?2 AND `+idle, n, newest).Scan(&same)
		if err != nil || !same {
			return err
		}
		_, err = tx.ExecContext(ctx, `TRUNCATE ONLY `+table)
		return err
	})
}

// briefly runs a transaction that waits for no lock for long: who waits for an exclusive one
// keeps everyone behind it waiting.
func briefly(ctx context.Context, db *database.DB, fn func(context.Context, database.Tx) error) error {
	return db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '200ms'`); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
}

func retainSQLite(ctx context.Context, db *database.DB, retention time.Duration) error {
	for {
		// In small steps: writers come in between. An event from the future is as old as on
		// PostgreSQL.
		res, err := db.Write(ctx, `DELETE FROM outbox_event WHERE id IN (
			SELECT id FROM outbox_event WHERE (created_ms < `+sqliteNow+` - ?1
					OR created_ms > `+sqliteNow+` AND id < (SELECT max(id) FROM outbox_event WHERE created_ms < `+sqliteNow+` - ?1))
				AND id < coalesce((SELECT min(id) FROM outbox_pending), 9223372036854775807)
				AND id NOT IN (SELECT id FROM outbox_dead)
			ORDER BY id LIMIT 1000)`, retention.Milliseconds())
		if err != nil {
			return fmt.Errorf("delete old events: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n < 1000 {
			return err
		}
	}
}

// gauge keeps the figures about the whole outbox up to date. Counting a long backlog takes
// time; it is done the less often the longer it takes.
func (r *Relay) gauge(ctx context.Context) {
	for {
		start := r.now()
		st, err := Status(ctx, r.db)
		if err == nil {
			r.met.pending.Set(float64(st.Pending))
			r.met.oldestAge.Set(st.OldestAge.Seconds())
			r.met.parked.Set(float64(st.ParkedKeys))
		}
		if !sleep(ctx, max(gaugeEvery, 50*r.now().Sub(start))) {
			return
		}
	}
}

func fatal(err error) bool {
	return errors.Is(err, ErrPartitionsChanged) || errors.Is(err, ErrShards) || errors.Is(err, ErrOtherTarget)
}
