package delivery

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/tracing"
)

// Deliverer delivers events to the targets besides the log. Any number of deliverers, in any number
// of processes, share the work. No target waits for the log or for another target.
type Deliverer struct {
	db    *database.DB
	sinks map[string]Sink // by kind
	cfg   Config
	log   *zap.Logger
	met   *metrics
	now   func() time.Time
	waker *relay.Waker

	tracer *tracing.Tracer

	id, name string
	kinds    []string

	until  schema.Deadline // of all its leases
	server schema.Server   // of the database: which answered last
	clock  atomic.Pointer[reading]

	poked    chan struct{} // something may be waiting
	leases   chan struct{} // leases may have become free, or can be handed over now
	draining atomic.Bool

	seen schema.Sightings // of the other deliverers; only keepLeases uses it
	made map[int]bool     // targets whose rows of leases exist; only keepLeases uses it
	had  map[place]int64  // its places and their epochs at the last tick; only keepLeases uses it
	slow bool             // the last tick could not follow the database's clock in time; only keepLeases uses it

	reported time.Time // when [outbox.ReportOutage] was last called; zero: none lasts; only keepLeases uses it

	mu      sync.Mutex
	workers map[int]*worker // by target
	running sync.WaitGroup  // the workers
	stop    context.Context // of Run: no attempt begins after it ends
	abandon context.Context // no attempt goes on after it ends
	told    time.Time       // since when the outage of the database lasts that was logged; zero: none

	// failing is since when, and why, workers cannot use the database; nil: since when leases cannot be renewed. Rights
	// may be missing for one of them alone.
	failing map[*worker]failure
}

type failure struct {
	since time.Time
	err   error
}

// Options are what a [Deliverer] needs besides its settings.
type Options struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Waker    *relay.Waker          // of this process; nil: the deliverer polls
	Tracer   *tracing.Tracer       // nil: none
	Now      func() time.Time      // nil: time.Now
	Name     string                // for people; "": host and process id
}

// New makes a deliverer to the targets whose kind has a sink here.
func New(db *database.DB, sinks map[string]Sink, cfg Config, opt Options) (*Deliverer, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make the id of a deliverer: %w", err)
	}
	d := &Deliverer{
		db: db, sinks: sinks, cfg: cfg.withDefaults(), log: opt.Log, now: opt.Now, waker: opt.Waker,
		tracer: opt.Tracer, id: id.String(), name: opt.Name, kinds: slices.Sorted(maps.Keys(sinks)),
		poked: make(chan struct{}, 1), leases: make(chan struct{}, 1),
		seen: schema.Sightings{}, made: map[int]bool{}, workers: map[int]*worker{}, failing: map[*worker]failure{},
	}
	d.log = cmp.Or(d.log, zap.NewNop())
	if d.now == nil {
		d.now = time.Now
	}
	if d.name == "" {
		d.name = schema.ProcessName()
	}
	if d.cfg.Drain == 0 {
		for _, sink := range sinks {
			d.cfg.Drain = max(d.cfg.Drain, sink.AnswerTimeout()+saveTimeout)
		}
	}
	d.met, err = newMetrics(opt.Registry, d.outage)
	return d, err
}

// outage is for how long the database cannot be used because of the role's rights, or for other reasons.
func (d *Deliverer) outage(lacksRights bool) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	lasted, _ := d.lasted(lacksRights)
	return lasted
}

// lasted is outage, with the error of what has failed longest. The caller holds mu.
func (d *Deliverer) lasted(lacksRights bool) (longest time.Duration, cause error) {
	for _, f := range d.failing {
		if lasted := d.now().Sub(f.since); database.IsForbidden(f.err) == lacksRights && lasted >= longest {
			longest, cause = lasted, f.err
		}
	}
	return longest, cause
}

// Run delivers until ctx ends. Then it sends nothing more, hands over the places without attempts under way,
// waits for the answers to what was sent, records them, releases its leases and returns nil. Nothing
// else ends it: while the database is away, events wait.
func (d *Deliverer) Run(ctx context.Context) error {
	abandon, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer stopKeeping()
	d.stop, d.abandon = ctx, abandon
	if d.waker != nil {
		unsubscribe := d.waker.Subscribe(func([]int32) { poke(d.poked) })
		defer unsubscribe()
	}
	var outer, inner sync.WaitGroup
	outer.Go(func() { d.spread(ctx) })
	outer.Go(func() { d.gauge(ctx) })
	outer.Go(func() { d.sweep(ctx) })
	inner.Go(func() { d.keepLeases(keep) })
	<-ctx.Done()
	d.mu.Lock() // [Deliverer.apply] starts workers under it: none begins once they are waited for
	d.draining.Store(true)
	d.mu.Unlock()
	poke(d.leases)
	if n := d.underWay(); n > 0 {
		d.log.Info("deliverer_draining", zap.Int("attempts", n),
			zap.Duration("at_most", d.cfg.Drain))
	}
	drained := time.AfterFunc(d.cfg.Drain, giveUp)
	outer.Wait()
	d.running.Wait()
	drained.Stop()
	stopKeeping()
	inner.Wait()
	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := schema.Release(releasing, d.db, d.cfg.Lease/2, schema.Deliverers, d.id)
	if err != nil {
		d.log.Warn("deliverer_leases_not_released", zap.Error(err),
			zap.String("hint", "other deliverers take over when they expire"))
	}
	return nil
}

// underWay counts the attempts under way.
func (d *Deliverer) underWay() (n int) {
	for _, l := range d.held() {
		n += int(l.flying.Load())
	}
	return n
}

// spread wakes the workers of all targets.
func (d *Deliverer) spread(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.poked:
		}
		d.mu.Lock()
		for _, w := range d.workers {
			poke(w.poked)
		}
		d.mu.Unlock()
	}
}

// gauge updates the metrics of waiting events. While the database does not answer there are none, since others may
// have changed what an old value says.
func (d *Deliverer) gauge(ctx context.Context) {
	for {
		start := d.now()
		list, err := outbox.Deliveries(ctx, d.db)
		if ctx.Err() != nil {
			return
		}
		d.met.show(list)
		if !retry.Sleep(ctx, schema.CountAgain(d.now().Sub(start), err)) {
			return
		}
	}
}

// sweep deletes rows that transactions have added for targets that were removed meanwhile.
func (d *Deliverer) sweep(ctx context.Context) {
	var failures retry.Failures
	for retry.Sleep(ctx, sweepEvery) {
		const what = "removed_targets"
		if err := outbox.SweepRemoved(ctx, d.db); failures.Say(what, err, d.now()) && ctx.Err() == nil {
			d.log.Warn("housekeeping_failed", zap.String("what", what), zap.Error(err))
		}
	}
}

// failed logs an error of the database, which a worker has met, or who renews the leases, once until the database
// works again for all. Errors that may pass within a second are not logged.
func (d *Deliverer) failed(who *worker, err error) {
	if database.IsForbidden(err) {
		err = schema.LacksRights(context.Background(), d.db, "deliver events", err)
	}
	d.mu.Lock()
	f, again := d.failing[who]
	if !again {
		f.since = d.now()
	}
	f.err = err
	d.failing[who] = f
	first := d.told.IsZero() && (database.IsForbidden(err) || d.now().Sub(f.since) >= time.Second)
	if first {
		d.told = f.since
	}
	d.mu.Unlock()
	if !first {
		return
	}
	name, hint := "deliverer_database_away", "events wait in order"
	if database.IsForbidden(err) {
		name, hint = "deliverer_stalled", "events wait in order until the cause is removed; see: authctl outbox status"
	}
	d.log.Error(name, zap.Error(err), zap.String("hint", hint))
}

// tellOutage writes to the database, for authctl outbox status and doctor, that this deliverer lacks
// rights there. An outage of the database itself cannot be written to it.
func (d *Deliverer) tellOutage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Lease/2)
	defer cancel()
	d.mu.Lock()
	lasted, cause := d.lasted(true)
	d.mu.Unlock()
	switch {
	case cause == nil && !d.reported.IsZero():
		if outbox.EndOutage(ctx, d.db, d.id) == nil {
			d.reported = time.Time{}
		}
	case cause != nil && d.now().Sub(d.reported) >= repeatReport:
		err := outbox.ReportOutage(ctx, d.db, d.id, outbox.Outage{
			Target: outbox.DeliveryTargets, Relay: d.name, Kind: "rights", Error: outbox.ErrorText(cause),
		}, lasted, schema.OutageHolds)
		if err == nil {
			d.reported = d.now()
		}
	}
}

// worked says that a worker, or who renews the leases, meets no error, or has ended.
func (d *Deliverer) worked(who *worker) {
	d.mu.Lock()
	delete(d.failing, who)
	lasted := d.now().Sub(d.told).Round(time.Millisecond)
	ended := !d.told.IsZero() && len(d.failing) == 0
	if ended {
		d.told = time.Time{}
	}
	d.mu.Unlock()
	if ended {
		d.log.Info("deliverer_outage_ended", zap.Duration("lasted", lasted))
	}
}

// reading is a time of the database's clock, in milliseconds, and when it was read.
type reading struct {
	ms int64
	at time.Time
}

// on is the time of the database's clock at a moment of this process, in milliseconds, unless it has jumped.
// The wall clock of this process may jump meanwhile: time that has passed is that of the monotonic one.
func (r *reading) on(t time.Time) int64 {
	if r == nil {
		return t.UnixMilli()
	}
	return r.ms + t.Sub(r.at).Milliseconds()
}

// agrees reports whether a later reading, which was asked for at a moment, can be the same clock: its answer may have
// been slow. While it can, the former reading stays, so that times of what came one after the other keep their order.
func (r *reading) agrees(asked time.Time, later reading) bool {
	return r != nil && r.on(asked) <= later.ms && later.ms <= r.on(later.at)
}

// databaseNow is the estimated time of the database's clock, in milliseconds.
func (d *Deliverer) databaseNow() int64 { return d.databaseAt(d.now()) }

// databaseAt is a moment of this process by the database's clock as it is set now, in milliseconds.
func (d *Deliverer) databaseAt(t time.Time) int64 { return d.clock.Load().on(t) }

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
