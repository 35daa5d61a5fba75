package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// State is what the outbox does now.
type State struct {
	Pending      int64         `json:"pending"`       // events that wait to be published
	OldestAge    time.Duration `json:"oldest_age_ns"` // of those
	ParkedKeys   int64         `json:"parked_keys"`
	ParkedEvents int64         `json:"parked_events"`          // that wait with their keys
	Rate         float64       `json:"rate"`                   // events a second, all relays, lately
	LeasesAhead  int           `json:"leases_ahead,omitempty"` // leases that end later than they can: nobody's
	LastID       int64         `json:"last_id"`
	Relays       []RelayState  `json:"relays"`
	Shards       []ShardState  `json:"shards"`
	Targets      []Target      `json:"targets"` // the active one first
	Trouble      []Trouble     `json:"trouble"` // of relays that are alive and, for a day, that are gone
}

// RelayState is a living relay.
type RelayState struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	Shards  int       `json:"shards"` // it holds the lease of
	Rate    float64   `json:"rate"`   // events a second
}

// ShardState is one shard. Owner is empty while nobody holds the lease.
type ShardState struct {
	Shard     int           `json:"shard"`
	Owner     string        `json:"owner,omitempty"`
	Epoch     int64         `json:"epoch"`
	LeaseLeft time.Duration `json:"lease_left_ns"`
	Low       int64         `json:"low"`
	Pending   int64         `json:"pending"`
	OldestAge time.Duration `json:"oldest_age_ns"`
}

// Target returns the active target, nil while there is none.
func (st State) Target() *Target {
	if len(st.Targets) == 0 || st.Targets[0].State != active {
		return nil
	}
	return &st.Targets[0]
}

// Status tells what the outbox does now. It counts, which takes a moment when millions wait.
func Status(ctx context.Context, db *database.DB) (State, error) {
	st, err := status(ctx, db)
	if err != nil {
		return State{}, fmt.Errorf("read the state of the outbox: %w", err)
	}
	return st, nil
}

func status(ctx context.Context, db *database.DB) (st State, err error) {
	var nowMS int64
	err = db.QueryRowContext(ctx, `SELECT `+now(db)+`, (SELECT count(*) FROM outbox_parked_key), (SELECT count(*) FROM outbox_dead)`).
		Scan(&nowMS, &st.ParkedKeys, &st.ParkedEvents)
	if err != nil {
		return st, err
	}
	if st.LastID, err = lastID(ctx, db); err != nil {
		return st, err
	}
	age := func(ms int64) time.Duration { return time.Duration(max(0, nowMS-ms)) * time.Millisecond }

	// A lease that ends later than it can was written by a clock that was ahead, or before the
	// clock was set back. A step of a second is none. The clock is read again for that: since
	// the first time everybody may have renewed.
	latest := now(db) + ` + coalesce(r.lease_ms, ?1) + 1000`
	rows, err := db.QueryContext(ctx, `SELECT s.shard, s.owner, s.epoch, s.until_ms, `+latest+`, s.low, coalesce(p.n, 0), coalesce(e.created_ms, `+now(db)+`)
		FROM outbox_shard s
		LEFT JOIN outbox_relay r ON r.id = s.owner
		LEFT JOIN (SELECT shard, count(*) AS n, min(id) AS first FROM outbox_pending GROUP BY shard) p ON p.shard = s.shard
		LEFT JOIN outbox_event e ON e.id = p.first ORDER BY s.shard`, longestLease.Milliseconds())
	if err != nil {
		return st, err
	}
	defer rows.Close()
	owned := map[string]int{}
	for rows.Next() {
		var s ShardState
		var owner *string
		var until, latest, created int64
		if err := rows.Scan(&s.Shard, &owner, &s.Epoch, &until, &latest, &s.Low, &s.Pending, &created); err != nil {
			return st, err
		}
		switch {
		case owner == nil || until <= nowMS:
		case until > latest:
			st.LeasesAhead++
		default:
			s.Owner, s.LeaseLeft = *owner, time.Duration(until-nowMS)*time.Millisecond
			owned[s.Owner]++
		}
		if s.Pending > 0 {
			s.OldestAge = age(created)
		}
		st.Pending += s.Pending
		st.OldestAge = max(st.OldestAge, s.OldestAge)
		st.Shards = append(st.Shards, s)
	}
	if err := rows.Err(); err != nil {
		return st, err
	}

	relays, err := db.QueryContext(ctx, `SELECT id, name, started_ms, rate FROM outbox_relay r WHERE until_ms > ?2 AND until_ms <= `+latest+` ORDER BY id`,
		longestLease.Milliseconds(), nowMS)
	if err != nil {
		return st, err
	}
	defer relays.Close()
	for relays.Next() {
		var r RelayState
		var started int64
		if err := relays.Scan(&r.ID, &r.Name, &started, &r.Rate); err != nil {
			return st, err
		}
		r.Started, r.Shards = time.UnixMilli(started).UTC(), owned[r.ID]
		st.Rate += r.Rate
		st.Relays = append(st.Relays, r)
	}
	if err := relays.Err(); err != nil {
		return st, err
	}
	if st.Targets, err = Targets(ctx, db); err != nil {
		return st, err
	}
	if st.Trouble, err = troubles(ctx, db); database.IsForbidden(err) {
		err = nil // grants.sql has not been run since: what else there is can be shown
	}
	return st, err
}

// Entry is an event as the operator sees it.
type Entry struct {
	Record
	Where string // pending, parked, published
}

// TailOptions say which events to show.
type TailOptions struct {
	Last   int    // begin with so many of the newest; 0: none of them
	From   int64  // or begin with this id
	Key    string // only of this key
	Type   string // only of this type
	Follow bool   // go on with new ones until ctx ends
}

// Tail calls fn with events, oldest first, each once. New events come in the order of their
// commits, as far as that can be seen from outside. However many events there are, it
// remembers only those that came after the oldest transaction that is still open.
func Tail(ctx context.Context, db *database.DB, opt TailOptions, fn func(Entry) error) error {
	return tail(ctx, db, opt, &idSet{}, fn)
}

func tail(ctx context.Context, db *database.DB, opt TailOptions, shown *idSet, fn func(Entry) error) error {
	s := settler{db: db}
	settled, err := s.step(ctx, "")
	if err != nil {
		return fmt.Errorf("follow the outbox: %w", err)
	}
	if !settled { // relays may know better
		err := db.QueryRowContext(ctx, `SELECT coalesce(min(low), 0) FROM outbox_shard`).Scan(&s.bound)
		if err != nil {
			return fmt.Errorf("follow the outbox: %w", err)
		}
	}
	above := s.bound
	switch {
	case opt.From > 0:
		above = opt.From - 1
	case opt.Last > 0:
		where, args := Selection{Key: opt.Key, Type: opt.Type}.where()
		err := db.QueryRowContext(ctx, `SELECT coalesce(min(id), 1) - 1 FROM (SELECT e.id FROM outbox_event e WHERE `+where+` ORDER BY e.id DESC LIMIT ?) l`,
			append(args, opt.Last)...).Scan(&above)
		if err != nil {
			return fmt.Errorf("find where to begin: %w", err)
		}
	case !settled:
		if above, err = lastID(ctx, db); err != nil {
			return fmt.Errorf("find where to begin: %w", err)
		}
	}
	for {
		begun := time.Now()
		bound := s.bound // before the reading: above it late ones may come in between, and it is read again
		last := above
		for {
			list, err := entries(ctx, db, Selection{FromID: last + 1, Key: opt.Key, Type: opt.Type}, 500)
			if opt.Follow && interrupted(ctx) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, e := range list {
				last = e.ID
				if shown.has(e.ID) {
					continue
				}
				if e.ID > bound && opt.Follow {
					shown.add(e.ID)
				}
				if err := fn(e); err != nil {
					return err
				}
			}
			if len(list) < 500 {
				break
			}
		}
		if !opt.Follow {
			return nil
		}
		above = max(above, bound)
		shown.forget(above)
		// While a transaction stays open for long, all after it is read again and again.
		select {
		case <-time.After(max(100*time.Millisecond, time.Since(begun))):
		case <-ctx.Done():
			return nil
		}
		if _, err := s.step(ctx, ""); err != nil && ctx.Err() == nil && !database.IsUnavailable(err) {
			return fmt.Errorf("follow the outbox: %w", err)
		}
	}
}

func interrupted(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	default:
		return false
	}
}

// idSet is a set of ids most of which follow each other: about a bit for each.
type idSet struct{ bits map[int64]uint64 }

func (s *idSet) has(id int64) bool { return s.bits[id/64]>>(id%64)&1 != 0 }

func (s *idSet) add(id int64) {
	if s.bits == nil {
		s.bits = map[int64]uint64{}
	}
	s.bits[id/64] |= 1 << (id % 64)
}

// forget removes the ids up to one, or a few less.
func (s *idSet) forget(through int64) {
	maps.DeleteFunc(s.bits, func(word int64, _ uint64) bool { return word < through/64 })
}

func entries(ctx context.Context, db *database.DB, sel Selection, limit int) ([]Entry, error) {
	where, args := sel.where()
	rows, err := db.QueryContext(ctx, `SELECT e.id, coalesce(p.replay, false), e.created_ms, e.key_seq, e.event_id, e.type, e.key, e.subject,
			e.source, e.dataschema, e.time, e.data, CASE WHEN p.id IS NOT NULL THEN 'pending' WHEN d.id IS NOT NULL THEN 'parked' ELSE 'published' END
		FROM (SELECT e.* FROM outbox_event e WHERE `+where+` ORDER BY e.id LIMIT ?) e
		LEFT JOIN outbox_pending p ON p.id = e.id LEFT JOIN outbox_dead d ON d.id = e.id ORDER BY e.id`, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		var e Entry
		err := rows.Scan(&e.ID, &e.Replay, &e.CreatedMS, &e.Seq, &e.EventID, &e.Type, &e.Key, &e.Subject, &e.Source, &e.DataSchema, &e.Time, &e.Data, &e.Where)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return out, nil
}

// Selection says which events; what is zero does not narrow it.
type Selection struct {
	FromID, ToID int64     // both included
	From, To     time.Time // when it was written; To is not included
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

// Oldest returns the id of the oldest event that is kept and when it was written, 0 while there
// is none. Earlier ones are gone: see outbox.retention.
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

// ReplayResult counts what a replay met.
type ReplayResult struct {
	Matched  int64 `json:"matched"`
	Enqueued int64 `json:"enqueued"` // the others wait anyway
	Parked   int64 `json:"parked"`   // chosen as well, and left with their parked keys
	FirstID  int64 `json:"first_id"`
	LastID   int64 `json:"last_id"`
}

// Replay has published events published again: the same ids, the same bytes, and the
// extension attribute replay to tell them by. A dry run only counts. progress, if not nil,
// hears after each step how many were met. It works in steps of one transaction each, and
// can be run again: what waits already is not enqueued twice.
func Replay(ctx context.Context, db *database.DB, sel Selection, dryRun bool, progress func(ReplayResult)) (ReplayResult, error) {
	var res ReplayResult
	if sel.ToID == 0 { // not what is written while this runs
		last, err := lastID(ctx, db)
		if err != nil {
			return res, fmt.Errorf("replay: %w", err)
		}
		sel.ToID = last
	}
	where, args := sel.where()
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM outbox_event e JOIN outbox_dead d ON d.id = e.id WHERE `+where, args...).Scan(&res.Parked)
	if err != nil {
		return res, fmt.Errorf("replay: count what is parked: %w", err)
	}
	for {
		var step ReplayResult
		err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
			step, err = replayStep(ctx, tx, sel, dryRun)
			return err
		})
		if err != nil {
			return res, fmt.Errorf("replay: %w", err)
		}
		if step.Matched == 0 {
			return res, nil
		}
		if res.Matched == 0 {
			res.FirstID = step.FirstID
		}
		res.Matched, res.Enqueued, res.LastID = res.Matched+step.Matched, res.Enqueued+step.Enqueued, step.LastID
		if progress != nil {
			progress(res)
		}
		sel.FromID = step.LastID + 1
	}
}

func replayStep(ctx context.Context, tx database.Tx, sel Selection, dryRun bool) (res ReplayResult, err error) {
	share, segment := "", "0"
	if database.IsPostgres(tx) {
		share, segment = " FOR SHARE", "e.segment"
	}
	var shards int // which must not change before the commit
	if err := tx.QueryRowContext(ctx, `SELECT shards FROM outbox_setting`+share).Scan(&shards); err != nil {
		return res, err
	}
	where, args := sel.where()
	rows, err := tx.QueryContext(ctx, `SELECT e.id, `+segment+`, e.key, octet_length(e.data) + octet_length(e.subject) + octet_length(e.source) + octet_length(e.dataschema) + octet_length(e.type)
		FROM outbox_event e WHERE `+where+` AND NOT EXISTS (SELECT 1 FROM outbox_dead d WHERE d.id = e.id) ORDER BY e.id LIMIT 1000`, args...)
	if err != nil {
		return res, err
	}
	defer rows.Close()
	lows := map[int]int64{}
	var values []string
	for rows.Next() {
		var id, bytes int64
		var segment int
		var key string
		if err := rows.Scan(&id, &segment, &key, &bytes); err != nil {
			return res, err
		}
		if res.Matched == 0 {
			res.FirstID = id
		}
		res.Matched, res.LastID = res.Matched+1, id
		shard := Partition(key, shards)
		if low, ok := lows[shard]; !ok || id < low {
			lows[shard] = id
		}
		value := fmt.Sprintf("(%d, %d, %d, true", shard, id, bytes+512+2*int64(len(key)))
		if database.IsPostgres(tx) {
			value += fmt.Sprintf(", %d", segment)
		}
		values = append(values, value+")")
	}
	if err := rows.Err(); err != nil {
		return res, err
	}
	if dryRun || len(values) == 0 {
		res.Enqueued = 0
		return res, nil
	}
	if err := lower(ctx, tx, lows); err != nil {
		return res, err
	}
	column := ""
	if database.IsPostgres(tx) {
		column = ", segment"
	}
	// With the shards locked nothing more is parked; what was parked since the events were
	// read waits with its key.
	done, err := tx.ExecContext(ctx, `INSERT INTO outbox_pending (shard, id, bytes, replay`+column+`)
		SELECT v.* FROM (VALUES `+strings.Join(values, ", ")+`) AS v WHERE NOT EXISTS (SELECT 1 FROM outbox_dead d WHERE d.id = v.column2) ON CONFLICT DO NOTHING`)
	if err != nil {
		return res, err
	}
	res.Enqueued, err = done.RowsAffected()
	return res, err
}

// lower makes owners look again from the given ids on. The new epoch voids what they
// remember; the leases stay theirs.
func lower(ctx context.Context, tx database.Tx, firsts map[int]int64) error {
	for _, shard := range slices.Sorted(maps.Keys(firsts)) { // in one order: see renew
		_, err := tx.ExecContext(ctx, `UPDATE outbox_shard SET epoch = epoch + 1, low = CASE WHEN low < ?1 THEN low ELSE ?1 END WHERE shard = ?2`, firsts[shard]-1, shard)
		if err != nil {
			return err
		}
	}
	if database.IsPostgres(tx) {
		if _, err := tx.ExecContext(ctx, "SELECT pg_notify('"+channel+"', 'lease')"); err != nil {
			return err
		}
	}
	return nil
}

// ErrNotParked says that a key is not parked.
var ErrNotParked = errors.New("the key is not parked")

// ParkedKey is a key of which nothing is sent because one of its events was refused.
type ParkedKey struct {
	Key      string    `json:"key"`
	Shard    int       `json:"shard"`
	Events   int       `json:"events"` // that wait: the refused one and later ones met so far
	ID       int64     `json:"id"`     // of the refused one
	EventID  string    `json:"event_id"`
	Type     string    `json:"type"`
	Error    string    `json:"error"`
	ParkedAt time.Time `json:"parked_at"`
}

// Parked lists the parked keys, the oldest first.
func Parked(ctx context.Context, db *database.DB) ([]ParkedKey, error) {
	rows, err := db.QueryContext(ctx, `SELECT k.key, k.shard, k.event, k.error, k.parked_ms, e.event_id, e.type, (SELECT count(*) FROM outbox_dead d WHERE d.key = k.key)
		FROM outbox_parked_key k JOIN outbox_event e ON e.id = k.event ORDER BY k.parked_ms, k.key`)
	if err != nil {
		return nil, fmt.Errorf("list parked keys: %w", err)
	}
	defer rows.Close()
	var out []ParkedKey
	for rows.Next() {
		var k ParkedKey
		var ms int64
		if err := rows.Scan(&k.Key, &k.Shard, &k.ID, &k.Error, &ms, &k.EventID, &k.Type, &k.Events); err != nil {
			return nil, fmt.Errorf("list parked keys: %w", err)
		}
		k.ParkedAt = time.UnixMilli(ms).UTC()
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list parked keys: %w", err)
	}
	return out, nil
}

// ParkedEvents returns the events that wait with a parked key, the refused one first.
func ParkedEvents(ctx context.Context, db *database.DB, key string) ([]Record, error) {
	rows, err := db.QueryContext(ctx, `SELECT e.id, d.replay, e.created_ms, e.key_seq, e.event_id, e.type, e.key, e.subject, e.source, e.dataschema, e.time, e.data
		FROM outbox_parked_key k JOIN outbox_dead d ON d.key = k.key JOIN outbox_event e ON e.id = d.id WHERE k.key = ? ORDER BY e.id`, key)
	if err != nil {
		return nil, fmt.Errorf("read parked events: %w", err)
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		var r Record
		err := rows.Scan(&r.ID, &r.Replay, &r.CreatedMS, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source, &r.DataSchema, &r.Time, &r.Data)
		if err != nil {
			return nil, fmt.Errorf("read parked events: %w", err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read parked events: %w", err)
	}
	if len(out) == 0 {
		return nil, ErrNotParked
	}
	return out, nil
}

// RetryParked sends a parked key's events again, the refused one first, and returns how
// many. Whether it is taken this time shows when it is tried: if not, it is parked again.
func RetryParked(ctx context.Context, db *database.DB, key string) (int64, error) {
	return unpark(ctx, db, key, false)
}

// DiscardParked gives up the refused event of a key and sends the later ones; it returns how
// many. Consumers will see a gap in the key's sequence. Until retention drops it, the event
// can still be sent with [Replay].
func DiscardParked(ctx context.Context, db *database.DB, key string) (int64, error) {
	return unpark(ctx, db, key, true)
}

func unpark(ctx context.Context, db *database.DB, key string, discard bool) (n int64, err error) {
	err = db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		shard, event, err := lockParked(ctx, tx, key)
		if err != nil {
			return err
		}
		if discard {
			if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_dead WHERE id = ?`, event); err != nil {
				return err
			}
		}
		var first *int64
		if err := tx.QueryRowContext(ctx, `SELECT min(id) FROM outbox_dead WHERE key = ?`, key).Scan(&first); err != nil {
			return err
		}
		if first != nil && *first < event {
			event = *first
		}
		if err := lower(ctx, tx, map[int]int64{shard: event}); err != nil {
			return err
		}
		segment := ""
		if database.IsPostgres(tx) {
			segment = "segment, "
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO outbox_pending (shard, id, `+segment+`bytes, replay)
			SELECT ?, id, `+segment+`bytes, replay FROM outbox_dead WHERE key = ? ON CONFLICT DO NOTHING`, shard, key)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM outbox_dead WHERE key = ?`, key)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM outbox_parked_key WHERE key = ?`, key)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotParked) {
		return 0, fmt.Errorf("unpark a key: %w", err)
	}
	return n, err
}

// lockParked locks the shard of a parked key and then the key, the order in which an owner
// parks: it parks nothing meanwhile, and sees all that is done under the locks or nothing.
func lockParked(ctx context.Context, tx database.Tx, key string) (shard int, event int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT shard FROM outbox_parked_key WHERE key = ?`, key).Scan(&shard)
	if err == nil {
		var one int
		err = tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_shard WHERE shard = ?`+database.ForUpdate(tx), shard).Scan(&one)
	}
	if err == nil {
		err = tx.QueryRowContext(ctx, `SELECT event FROM outbox_parked_key WHERE key = ?`+database.ForUpdate(tx), key).Scan(&event)
	}
	if database.IsNotFound(err) {
		return 0, 0, ErrNotParked
	}
	return shard, event, err
}
