package throttle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/batch"
	"github.com/toppira/authctl/platform/database"
)

const (
	// lockClass distinguishes our advisory lock from others.
	lockClass = 0x6c696d69 // "limi"
	// lockIdle is how long a process that stops in the middle of a change may block the others.
	lockIdle = 5 * time.Second
)

// postgres keeps the counters of all processes in the database. The rules are in this program, like
// those for the counters of one process, so that changing them needs no migration.
//
// Operations that come at the same time share a batch. First they are decided without a lock. Those that
// change nothing, such as every refusal, are answered then. The others are decided again under
// one lock that all processes share, as they share the one thread of Redis, and written before the lock
// is released. So no two processes give the same room away, and no order of locks can be wrong.
//
// Each process uses at most two connections for this, however many people sign in. The lock is held for one
// round trip. Nothing waits for the disk: a crash may lose the counts of the last second.
type postgres struct {
	db       *database.DB
	rules    rules
	timeout  time.Duration
	patience time.Duration    // for a batch that carries the operation of a sign-in
	clock    func() time.Time // instead of the database's own; nil but in tests
	batch    *batch.Batcher[operation, answer]
	reach
}

// operation reads and perhaps changes counters.
type operation struct {
	ids    []id // of the counters that it may read and write, besides those of the owners of pairs
	looks  bool // whether it may turn out to change nothing, and then needs no lock
	decide func(decision) answer
}

// answer is the answer of an operation. Each kind has fields of its own.
type answer struct {
	verdict  verdict
	result   result
	wait     time.Duration
	failures int64
}

func newPostgres(db *database.DB, r rules, timeout time.Duration, now func() time.Time, log *zap.Logger) *postgres {
	p := &postgres{db: db, rules: r, timeout: timeout, patience: turnPatience,
		reach: reach{engine: "postgres", now: now, log: log}}
	p.batch = batch.New(batch.Config{Linger: 5 * time.Millisecond, Concurrency: 2, MaxBatch: 64, Timeout: timeout},
		p.ask)
	return p
}

func (p *postgres) begin(ctx context.Context, k keys) (verdict, error) {
	crowded := ErrCrowded
	if k.device != (id{}) { // its owner need not wait for strangers
		crowded = errAway
	}
	op := operation{k.ids(k.known), true, func(d decision) answer { return answer{verdict: d.begin(k)} }}
	a, err := p.do(ctx, op, p.patience, crowded)
	return a.verdict, err
}

func (p *postgres) finish(ctx context.Context, k keys, in tier, how outcome, known, owner id) (result, error) {
	a, err := p.do(ctx, operation{k.ids(known, owner), false, func(d decision) answer {
		return answer{result: d.finish(k, in, how, known, owner)}
	}}, commandTimeout, errAway) // longer than any flood: a failure that is not shared is a guess for free
	return a.result, err
}

func (p *postgres) take(ctx context.Context, i id) (time.Duration, error) {
	op := operation{[]id{i}, true, func(d decision) answer { return answer{wait: d.take(i)} }}
	a, err := p.do(ctx, op, p.patience, errAway)
	return a.wait, err
}

func (p *postgres) clear(ctx context.Context, k keys) error {
	_, err := p.command(ctx, operation{[]id{k.account}, false, func(d decision) answer {
		d.clear(k)
		return answer{}
	}})
	return err
}

func (p *postgres) state(ctx context.Context, k keys) (failures int64, wait time.Duration, err error) {
	a, err := p.command(ctx, operation{[]id{k.account}, true, func(d decision) answer {
		failures, wait := d.state(k)
		return answer{failures: failures, wait: wait}
	}})
	return a.failures, a.wait, err
}

func (k keys) ids(others ...id) []id {
	all := append([]id{k.account, k.pair, k.device, k.address, k.prefix, k.global}, others...)
	return slices.DeleteFunc(all, func(i id) bool { return i == (id{}) })
}

// do runs an operation of a sign-in. The error is [errAway] if the caller must go on without the database,
// that of ctx if the caller has left, and crowded if others were asked for all the time that patience allows, which
// is no fault of the database.
func (p *postgres) do(ctx context.Context, op operation, patience time.Duration, crowded error) (answer, error) {
	if !p.usable() {
		return answer{}, errAway
	}
	bounded, cancel := context.WithTimeout(ctx, patience+p.timeout)
	defer cancel()
	a, err := p.batch.Do(bounded, op) // a batch takes no longer than the timeout
	switch {
	case err != nil && ctx.Err() != nil:
		return answer{}, ctx.Err() // says nothing about the database
	case errors.Is(err, batch.ErrClosed):
		return answer{}, errAway
	case err != nil && bounded.Err() != nil && p.up():
		return answer{}, crowded
	}
	p.note(err)
	if err != nil {
		return answer{}, errAway
	}
	return a, nil
}

// command runs an operation of an operator's command, which can wait longer than a sign-in.
func (p *postgres) command(ctx context.Context, op operation) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	answers, err := p.ask(ctx, []operation{op})
	if err != nil {
		return answer{}, err
	}
	return answers[0], nil
}

func (p *postgres) gauge() prometheus.GaugeOpts {
	return prometheus.GaugeOpts{
		Name: "authctl_throttle_postgres_up", Help: "1 while limits are shared through PostgreSQL, 0 while each " +
			"process limits by itself.",
	}
}

func (p *postgres) close() { p.batch.Close() }

// ask answers operations in one round trip, or in three if some of them change something.
func (p *postgres) ask(ctx context.Context, asked []operation) ([]answer, error) {
	answers := make([]answer, len(asked))
	err := p.db.Postgres(ctx, func(conn *pgx.Conn) error {
		rest, err := p.look(ctx, conn, asked, answers)
		if err == nil && len(rest) > 0 {
			err = p.change(ctx, conn, asked, rest, answers)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask the counters of sign-ins: %w", err)
	}
	return answers, nil
}

// look answers the operations that change nothing, and returns the numbers of the others.
func (p *postgres) look(ctx context.Context, conn *pgx.Conn, asked []operation, answers []answer) ([]int, error) {
	var looking, rest []int
	for n, op := range asked {
		if op.looks {
			looking = append(looking, n)
		} else {
			rest = append(rest, n)
		}
	}
	if len(looking) == 0 {
		return rest, nil
	}
	b := &pgx.Batch{}
	read := p.read(b, asked, looking)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	for _, n := range looking {
		alone := *read
		alone.written = make(map[id]kept) // the operations must not see each other's changes
		answers[n] = asked[n].decide(p.decision(&alone))
		if len(alone.written) > 0 {
			rest = append(rest, n)
		}
		if alone.unread {
			return nil, errUnread
		}
	}
	return rest, nil
}

// change answers operations one after the other, while no other process changes counters.
func (p *postgres) change(ctx context.Context, conn *pgx.Conn, asked []operation, which []int,
	answers []answer) (err error) {
	defer func() {
		if err != nil && !conn.IsClosed() && conn.PgConn().TxStatus() != 'I' {
			_, failed := conn.Exec(ctx, "ROLLBACK")
			err = errors.Join(err, failed)
		}
	}()
	b := &pgx.Batch{}
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	wait := int64(0) // without a limit
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(1, time.Until(deadline).Milliseconds()*4/5) // ends before ctx does, which would close the connection
	}
	b.Queue(`SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', $1::bigint::text, true),
		set_config('idle_in_transaction_session_timeout', $2::bigint::text, true)`, wait, lockIdle.Milliseconds())
	// The next statements see what was committed before the lock was released: each takes a new snapshot.
	b.Queue("SELECT pg_advisory_xact_lock($1, 'throttle_counter'::regclass::oid::integer)", lockClass)
	t := p.read(b, asked, which)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	for _, n := range which {
		answers[n] = asked[n].decide(p.decision(t))
	}
	if t.unread {
		return errUnread
	}
	b = &pgx.Batch{}
	t.write(b)
	b.Queue("COMMIT")
	return conn.SendBatch(ctx, b).Close()
}

func (p *postgres) decision(t *table) decision {
	now := t.now
	if p.clock != nil {
		now = p.clock().UnixMilli()
	}
	return decision{p.rules, t, now}
}

// errUnread says that an operation needed a counter that it had not named: a bug in this package.
var errUnread = errors.New("a decision needs a counter that was not read")

// table has the counters of a batch.
type table struct {
	now     int64 // by the database's clock
	read    map[id]record
	written map[id]kept
	unread  bool // an operation needed a counter that is not here
}

// kept is a record and for how long it is kept; 0: not at all.
type kept struct {
	rec  record
	life int64
}

func (t *table) get(i id) record {
	if w, ok := t.written[i]; ok {
		return w.rec
	}
	rec, ok := t.read[i]
	t.unread = t.unread || !ok
	return rec
}

func (t *table) put(i id, rec record, _, life int64) {
	if life <= 0 {
		rec, life = record{}, 0
	}
	t.written[i] = kept{rec, life}
}

// The LIMITs force PostgreSQL to look up each counter in the index, even with statistics from when the
// table was small.
const readCounters = `WITH named AS MATERIALIZED (SELECT c.* FROM unnest($1::bytea[]) AS q (id)
		CROSS JOIN LATERAL (SELECT * FROM throttle_counter WHERE id = q.id LIMIT 1) c)
	SELECT id, failed, pending, at_ms, until_ms, mark_ms, owner, counted FROM named
	UNION ALL SELECT c.id, c.failed, c.pending, c.at_ms, c.until_ms, c.mark_ms, c.owner, c.counted
		FROM (SELECT DISTINCT owner FROM named WHERE owner IS NOT NULL) q
		CROSS JOIN LATERAL (SELECT * FROM throttle_counter WHERE id = q.owner LIMIT 1) c`

// read queues the queries for the counters that the operations may read. The table is filled when the
// batch has run.
func (p *postgres) read(b *pgx.Batch, asked []operation, which []int) *table {
	t := &table{read: make(map[id]record), written: make(map[id]kept)}
	var ids [][]byte
	for _, n := range which {
		for _, i := range asked[n].ids {
			if _, ok := t.read[i]; !ok {
				t.read[i] = record{}
				ids = append(ids, i[:])
			}
		}
	}
	b.Queue("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint").QueryRow(func(row pgx.Row) error {
		return row.Scan(&t.now)
	})
	b.Queue(readCounters, ids).Query(func(rows pgx.Rows) error {
		var i, owner []byte
		var owners []id
		var rec record
		into := []any{&i, &rec.failed, &rec.pending, &rec.at, &rec.until, &rec.mark, &owner, &rec.counted}
		_, err := pgx.ForEachRow(rows, into, func() error {
			if len(i) != len(id{}) || owner != nil && len(owner) != len(id{}) {
				return fmt.Errorf("a counter has a name of %d bytes and an owner of %d", len(i), len(owner))
			}
			rec.owner = id{}
			if owner != nil {
				rec.owner = id(owner)
				owners = append(owners, rec.owner)
			}
			t.read[id(i)] = rec
			return nil
		})
		for _, owner := range owners {
			if _, ok := t.read[owner]; !ok {
				t.read[owner] = record{} // it has none
			}
		}
		return err
	})
	return t
}

const writeCounters = `INSERT INTO throttle_counter (id, failed, pending, at_ms, until_ms, mark_ms, owner, counted, expires_hour)
	SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bigint[], $9::integer[])
	ON CONFLICT (id) DO UPDATE SET failed = excluded.failed, pending = excluded.pending, at_ms = excluded.at_ms,
		until_ms = excluded.until_ms, mark_ms = excluded.mark_ms, owner = excluded.owner, counted = excluded.counted,
		expires_hour = excluded.expires_hour`

func (t *table) write(b *pgx.Batch) {
	var ids, owners, gone [][]byte
	var numbers [6][]int64
	var expires []int32
	for i, w := range t.written {
		switch {
		case w.life > 0:
			ids = append(ids, i[:])
			for n, number := range []int64{w.rec.failed, w.rec.pending, w.rec.at, w.rec.until, w.rec.mark,
				w.rec.counted} {
				numbers[n] = append(numbers[n], number)
			}
			var owner []byte
			if w.rec.owner != (id{}) {
				owner = w.rec.owner[:]
			}
			owners = append(owners, owner)
			expires = append(expires, int32((w.rec.at+w.life)/time.Hour.Milliseconds()+1))
		case t.read[i] != (record{}):
			gone = append(gone, i[:])
		}
	}
	if len(ids) > 0 {
		b.Queue(writeCounters, ids, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], owners, numbers[5],
			expires)
	}
	if len(gone) > 0 {
		b.Queue("DELETE FROM throttle_counter WHERE id = ANY ($1::bytea[])", gone)
	}
}

// Purge deletes expired counters from the database, at most limit of them, and returns how many. It also
// deletes counters that a clock that was ahead would have kept for years. On SQLite there are none.
func Purge(ctx context.Context, db *database.DB, limit int) (purged int64, err error) {
	if !db.IsPostgres() {
		return 0, nil
	}
	for _, which := range []string{"<= %s ORDER BY expires_hour",
		"> %s + 17520 ORDER BY expires_hour DESC"} { // two years
		// It skips counters that are being changed, so nobody waits. The ORDER BY makes PostgreSQL use the index.
		query := fmt.Sprintf("DELETE FROM throttle_counter WHERE ctid = ANY (ARRAY (SELECT ctid FROM throttle_counter "+
			"WHERE expires_hour "+which+" LIMIT ? FOR UPDATE SKIP LOCKED))",
			"(SELECT floor(extract(epoch FROM now()) / 3600)::integer)")
		n, err := db.Write(ctx, query, int64(limit)-purged)
		if err != nil {
			return 0, err
		}
		purged += n
	}
	return purged, nil
}
