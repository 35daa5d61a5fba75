package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/metric"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/tracing"
)

const (
	busyPoll   = 5 * time.Millisecond // between two polls while they find events
	idlePoll   = 250 * time.Millisecond
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	stallRetry = 5 * time.Second
)

// Relay publishes the events of the outbox. Any number of relays, in any number of processes,
// share the work.
type Relay struct {
	db                     *database.DB
	sink                   Sink
	cfg                    Config
	log                    *zap.Logger
	met                    *metrics
	now                    func() time.Time
	tracer                 *tracing.Tracer
	waker                  *Waker
	watchEvery, sweepEvery time.Duration

	id         string
	name       string
	store      *store
	target     outbox.Target // as admitted
	partitions int

	until  schema.Deadline // of all its leases
	server schema.Server   // of the database: which answered last
	clock  atomic.Int64    // the database's clock minus this one, in milliseconds
	stable atomic.Int64    // the stable watermark: see schema.StableWatermark

	poked   chan struct{} // something may be pending
	more    chan struct{} // a partition with a backlog is idle
	leases  chan struct{} // shards may have become free, or can be handed over now
	acks    chan struct{} // the queue has acknowledgements
	outages outages

	draining atomic.Bool // it takes no more shards

	seen schema.Sightings // of the other relays; only keepLeases uses it

	mu      sync.Mutex
	shards  int          // how many there were when the leases were renewed; 0: as many as set
	woken   map[int]bool // shards that may have new pending events
	all     bool         // any shard may
	held    map[int]*shard
	workers []partitionWorker // by partition
	batches int64             // made so far
	queue   []*ack
	rate    rate

	refusals map[int64]time.Duration // the next pause of records that were refused, by id
}

// Options are what the settings alone do not say.
type Options struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Waker    *Waker                // of this process; nil: the relay polls
	Tracer   *tracing.Tracer       // nil: none
	Now      func() time.Time      // nil: time.Now
	Name     string                // for people; "": host and process id
}

// New makes a relay from the database to the sink. The caller closes the sink.
func New(db *database.DB, sink Sink, cfg Config, opt Options) (*Relay, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make a relay id: %w", err)
	}
	met, err := newMetrics(opt.Registry)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		db: db, sink: sink, cfg: cfg.withDefaults(), log: opt.Log, met: met, now: opt.Now, waker: opt.Waker,
		tracer: opt.Tracer, id: id.String(), name: opt.Name, held: map[int]*shard{}, woken: map[int]bool{},
		refusals:   map[int64]time.Duration{},
		watchEvery: watchEvery, sweepEvery: sweepEvery,
		poked: make(chan struct{}, 1), more: make(chan struct{}, 1),
		leases: make(chan struct{}, 1), acks: make(chan struct{}, 1),
	}
	r.log = cmp.Or(r.log, zap.NewNop())
	if r.now == nil {
		r.now = time.Now
	}
	if r.name == "" {
		r.name = schema.ProcessName()
	}
	r.outages = outages{log: r.log, now: r.now, met: met, patience: slowAnswer, lacksRights: func(err error) error {
		return schema.LacksRights(context.Background(), db, "relay events", err)
	}}
	if err := metric.Register(opt.Registry, "the outbox's metrics", &r.outages); err != nil {
		return nil, err
	}
	return r, nil
}

// Admit makes sure that the outbox publishes to this relay's sink: see [outbox.AdmitTarget]. It
// checks the name first, so that a relay with other settings is refused even when it cannot reach
// what they name, and then what the target says of itself.
func (r *Relay) Admit(ctx context.Context) (err error) {
	if r.target, err = outbox.AdmitTarget(ctx, r.db, r.sink.Name(), nil); err != nil {
		return err
	}
	var identity string
	err = r.outages.awaiting(targetOutage, r.target, func() (err error) {
		identity, err = r.sink.Identity(ctx)
		return err
	})
	if err != nil {
		return sinkError{fmt.Errorf("ask %s which it is: %w", r.target, err)}
	}
	r.target, err = outbox.AdmitTarget(ctx, r.db, r.sink.Name(), &identity)
	return err
}

// Prepare makes the number of shards the one of this relay's settings, where that can be done. It is
// for the start of a process, before it adds an event: while one waits, the number must stay. It
// asks the target for a moment at most. Run meets every error again, but for
// [outbox.ErrOtherTarget] none has to end the process.
func (r *Relay) Prepare(ctx context.Context) error {
	soon, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := r.Admit(soon); err != nil {
		if _, ofSink := errors.AsType[sinkError](err); !ofSink {
			return err
		}
		// The target is away. If no relay has ever reached one, none counts on another number.
		targets, listErr := outbox.Targets(ctx, r.db)
		reached := slices.ContainsFunc(targets, func(t outbox.Target) bool { return t.Partitions > 0 })
		if listErr != nil || reached {
			return errors.Join(err, listErr)
		}
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.adopt(short)
}

// PrepareFirst is [Relay.Prepare] for a command that may add the first event of a database, before any process relays.
// A database that has had an event, or a relay, stays as it is.
func PrepareFirst(ctx context.Context, db *database.DB, cfg Config) error {
	var begun bool
	err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM outbox_event) OR
		EXISTS (SELECT 1 FROM outbox_target WHERE partitions > 0)`).Scan(&begun)
	if err != nil || begun {
		return err
	}
	return (&Relay{db: db, cfg: cfg}).adopt(ctx)
}

// Run relays until ctx ends. Then it waits for the batches in flight, at most for
// Config.Drain, releases its leases and returns nil. An outage of Kafka or of the database
// does not end it. Errors that only a person can resolve do: [outbox.ErrOtherTarget],
// [outbox.ErrPartitionsChanged], [outbox.ErrShards].
func (r *Relay) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// They end in this order: what starts new work, the deliveries, what the deliveries need.
	var outer, deliveries, inner sync.WaitGroup
	// It shows a backlog even if the target is away from the start.
	outer.Go(func() { r.gauge(ctx, func(outbox.State) {}) })
	outer.Go(func() { r.reportOutage(ctx) })
	if err := r.open(ctx); err != nil {
		stopped := ctx.Err() != nil
		fail(nil)
		outer.Wait()
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		r.reportLastOutage(leaving, err)
		if stopped {
			return nil
		}
		return err
	}
	defer r.store.close()
	if r.waker != nil {
		unsubscribe := r.waker.Subscribe(r.wake)
		defer unsubscribe()
	}

	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	deliver, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	defer abandon()

	inner.Go(func() { r.keepLeases(keep, fail) })
	inner.Go(func() { r.acknowledge(keep) })
	send := func(batches []*batch) {
		for _, b := range batches {
			deliveries.Go(func() { r.deliver(deliver, ctx, b) })
		}
	}
	outer.Go(func() { r.fetchLoop(ctx, send) })
	outer.Go(func() { r.fetchAhead(ctx, send) })
	outer.Go(func() { r.watchTarget(ctx, fail) })
	outer.Go(func() { r.sweep(ctx) })
	outer.Go(func() { r.retain(ctx) })
	if r.db.IsPostgres() {
		outer.Go(func() { r.trackStable(ctx) })
		outer.Go(func() {
			listen(ctx, r.db, func(payload string) {
				if r.waker != nil {
					r.waker.hear(payload) // this relay as well
				} else {
					r.wake(hashesIn(payload))
				}
				if payload == "lease" {
					poke(r.leases)
				}
			})
		})
	}
	outer.Wait()

	r.draining.Store(true)
	drained := time.AfterFunc(r.cfg.Drain, abandon)
	deliveries.Wait()
	drained.Stop()
	stopKeeping()
	inner.Wait()

	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := r.releaseLeases(releasing); err != nil {
		r.log.Warn("relay_leases_not_released", zap.Error(err),
			zap.String("hint", "other relays take over when they expire"))
	}
	cause := context.Cause(ctx)
	r.reportLastOutage(releasing, cause)
	if fatal(cause) {
		return cause
	}
	return nil
}

func fatal(err error) bool {
	return errors.Is(err, outbox.ErrPartitionsChanged) || errors.Is(err, outbox.ErrShards) ||
		errors.Is(err, outbox.ErrOtherTarget)
}

// open waits for the sink and the database, and makes sure that they fit each other.
func (r *Relay) open(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := r.tryOpen(ctx)
		if err == nil {
			r.outages.resolved(targetOutage)
			r.outages.resolved(databaseOutage)
			return nil
		}
		if fatal(err) || ctx.Err() != nil {
			return err
		}
		if _, ofSink := errors.AsType[sinkError](err); ofSink {
			r.outages.target(targetOutage, err)
			r.outages.resolved(databaseOutage)
		} else {
			r.outages.database(databaseOutage, err)
		}
		if !retry.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}

func (r *Relay) tryOpen(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := r.Admit(short); err != nil {
		return err
	}
	var partitions int
	err := r.outages.awaiting(targetOutage, r.target, func() (err error) {
		partitions, err = r.sink.Partitions(short)
		return err
	})
	if err != nil {
		return sinkError{fmt.Errorf("ask %s for its partitions: %w", r.target, err)}
	}
	if err := r.adopt(short); err != nil {
		return err
	}
	if err := outbox.PinPartitions(short, r.db, r.target, partitions, r.cfg.Shards); err != nil {
		return err
	}
	store, err := openStore(short, r.db)
	if err != nil {
		return err
	}
	r.store, r.partitions, r.workers = store, partitions, make([]partitionWorker, partitions)
	return nil
}

// adopt writes the settings of this relay that all writers use. The order of a key depends on the
// number of shards, so that changes only while no event waits and nobody writes.
func (r *Relay) adopt(ctx context.Context) error {
	return r.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		// Writers wait while the number changes.
		if err := schema.Bounded(ctx, tx, 5*time.Second); err != nil {
			return err
		}
		var shards int
		err := tx.QueryRowContext(ctx, `SELECT shards FROM outbox_setting`+database.ForUpdate(tx)).Scan(&shards)
		if err != nil {
			return fmt.Errorf("read the outbox's settings: %w", err)
		}
		if r.db.IsPostgres() {
			// The segment of an event matters only for when it is dropped.
			_, err := tx.ExecContext(ctx, `UPDATE outbox_setting SET segment_ms = ?1 WHERE segment_ms <> ?1`,
				segmentLength(r.cfg.Retention).Milliseconds())
			if err != nil {
				return fmt.Errorf("set the length of a segment: %w", err)
			}
		}
		if shards == r.cfg.Shards {
			return nil
		}
		err = r.changeShards(ctx, tx, shards)
		if err != nil && !errors.Is(err, outbox.ErrShards) {
			err = fmt.Errorf("change the number of shards from %d to %d: %w", shards, r.cfg.Shards, err)
		}
		return err
	})
}

func (r *Relay) changeShards(ctx context.Context, tx database.Tx, from int) error {
	if r.db.IsPostgres() {
		if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
			return err
		}
		// Waits for every transaction that has added an event, and keeps new ones waiting.
		if _, err := tx.ExecContext(ctx, `LOCK TABLE outbox_event IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return fmt.Errorf("writers do not pause: %w", err)
		}
	}
	var waiting int
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM
		(SELECT 1 AS one FROM outbox_pending UNION ALL SELECT 1 FROM outbox_parked_key) w`).Scan(&waiting)
	if err != nil {
		return fmt.Errorf("count what waits: %w", err)
	}
	if waiting > 0 {
		return fmt.Errorf("%w: outbox.shards is %d but %d are in use, and %d events or parked keys are waiting. "+
			"Set it back to %d until they are gone", outbox.ErrShards, r.cfg.Shards, from, waiting, from)
	}
	var epoch int64
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(epoch), 0) + 1 FROM outbox_shard`).Scan(&epoch); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_shard`); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `WITH RECURSIVE shards (shard) AS (SELECT 0 UNION ALL SELECT shard + 1 FROM shards WHERE shard + 1 < ?1)
		INSERT INTO outbox_shard (shard, epoch) SELECT shard, ?2 FROM shards`, r.cfg.Shards, epoch)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE outbox_setting SET shards = ?`, r.cfg.Shards)
	return err
}

// segmentLength is how long events go to one segment of the ring: short enough that a segment is
// dropped soon after the retention, long enough that its events are old before its turn comes
// again.
func segmentLength(retention time.Duration) time.Duration {
	return max(retention/(schema.Segments-2), time.Minute)
}

// keepLeases renews the leases every third of their length, and looks for free shards in between.
func (r *Relay) keepLeases(ctx context.Context, fail func(error)) {
	look := time.NewTicker(min(idlePoll, r.cfg.Lease/8))
	defer look.Stop()
	var last time.Time
	for {
		if err := r.tick(ctx); err == nil {
			last = r.now()
			r.outages.resolved(databaseOutage)
		} else if fatal(err) {
			r.mu.Lock()
			r.dropAll()
			r.mu.Unlock()
			fail(err)
			return
		} else if ctx.Err() == nil {
			r.outages.database(databaseOutage, err)
			if !retry.Sleep(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.leases:
			case <-look.C:
				if r.now().Sub(last) < r.cfg.Lease/3 {
					if n, err := r.unowned(ctx); (err != nil || n == 0) && !r.overdue() {
						continue
					}
				}
			}
			break
		}
	}
}

// rate is a moving average of events a second.
type rate struct {
	since time.Time
	count int
	value float64
}

func (r *rate) add(n int) { r.count += n }

func (r *rate) perSecond(now time.Time) float64 {
	if dt := now.Sub(r.since).Seconds(); r.since.IsZero() || dt <= 0 {
		r.since = now
	} else if dt > 0.5 {
		const memory = 10 // seconds
		w := 1 - math.Exp(-dt/memory)
		r.value += w * (float64(r.count)/dt - r.value)
		r.since, r.count = now, 0
	}
	return math.Round(r.value*100) / 100
}
