package delivery

import (
	"context"
	"fmt"
	"maps"
	"os"
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
// of processes, share the work. None waits for the relay of the log, or for another target.
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

	until  schema.Deadline        // of all its leases
	server atomic.Pointer[string] // which database server answered last
	clock  atomic.Int64           // the database's clock minus this one, in milliseconds

	poked    chan struct{} // something may be waiting
	leases   chan struct{} // leases may have become free, or can be handed over now
	draining atomic.Bool

	seen map[string]schema.Sighting // of the other deliverers; only keepLeases uses it
	made map[int]bool               // targets whose rows of leases exist; only keepLeases uses it

	reported time.Time // when [outbox.ReportOutage] was last called; zero: none lasts; only keepLeases uses it

	mu      sync.Mutex
	workers map[int]*worker // by target
	running sync.WaitGroup  // the workers
	stop    context.Context // of Run: no attempt begins after it ends
	abandon context.Context // no attempt goes on after it ends
	failing time.Time       // since when the database cannot be used; zero: it can
	told    bool            // that was logged
}

// Options are what the settings alone do not say.
type Options struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Waker    *relay.Waker          // of this process; nil: the deliverer polls
	Tracer   *tracing.Tracer       // nil: none
	Now      func() time.Time      // nil: time.Now
	Name     string                // for people; "": host and process id
}

// New makes a deliverer to the targets of the kinds that have a sink here.
func New(db *database.DB, sinks map[string]Sink, cfg Config, opt Options) (*Deliverer, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make the id of a deliverer: %w", err)
	}
	d := &Deliverer{
		db: db, sinks: sinks, cfg: cfg.withDefaults(), log: opt.Log, now: opt.Now, waker: opt.Waker,
		tracer: opt.Tracer, id: id.String(), name: opt.Name, kinds: slices.Sorted(maps.Keys(sinks)),
		poked: make(chan struct{}, 1), leases: make(chan struct{}, 1),
		seen: map[string]schema.Sighting{}, made: map[int]bool{}, workers: map[int]*worker{},
	}
	if d.log == nil {
		d.log = zap.NewNop()
	}
	if d.now == nil {
		d.now = time.Now
	}
	if d.name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		d.name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	d.met, err = newMetrics(opt.Registry)
	return d, err
}

// Run delivers until ctx ends. Then it waits for the attempts under way, at most for Config.Drain,
// releases its leases and returns nil. Nothing else ends it: while the database is away, events wait.
func (d *Deliverer) Run(ctx context.Context) error {
	abandon, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer stopKeeping()
	d.stop, d.abandon = ctx, abandon
	if d.waker != nil {
		defer d.waker.Subscribe(d.poked)()
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
	drained := time.AfterFunc(d.cfg.Drain, giveUp)
	outer.Wait()
	d.running.Wait()
	drained.Stop()
	stopKeeping()
	inner.Wait()
	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := d.release(releasing); err != nil {
		d.log.Warn("leases of targets were not released; others take over when they expire", zap.Error(err))
	}
	return nil
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

// gauge keeps the metrics of what waits up to date. The longer it takes to count, the less often it
// counts.
func (d *Deliverer) gauge(ctx context.Context) {
	for {
		start := d.now()
		if list, err := outbox.Deliveries(ctx, d.db); err == nil {
			d.met.show(list)
		}
		if !retry.Sleep(ctx, max(gaugeEvery, 50*d.now().Sub(start))) {
			return
		}
	}
}

// sweep deletes what transactions have added for targets that were removed meanwhile.
func (d *Deliverer) sweep(ctx context.Context) {
	for retry.Sleep(ctx, sweepEvery) {
		if err := outbox.SweepRemoved(ctx, d.db); err != nil && ctx.Err() == nil {
			d.log.Warn("what waits for a removed target was not deleted; trying again later", zap.Error(err))
		}
	}
}

// failed logs an error of the database once until it works again, unless it may be over in a moment.
func (d *Deliverer) failed(err error) {
	if database.IsForbidden(err) {
		err = lacksRights(err)
	}
	d.mu.Lock()
	if d.failing.IsZero() {
		d.failing = d.now()
	}
	first := !d.told && (database.IsForbidden(err) || d.now().Sub(d.failing) >= time.Second)
	d.told = d.told || first
	d.mu.Unlock()
	if first {
		d.log.Error("the deliverer cannot use the database now; events wait in order", zap.Error(err))
	}
}

// tellOutage writes to the database, for authctl outbox status and doctor, that this deliverer lacks
// rights there. An outage of the database itself cannot be written to it.
func (d *Deliverer) tellOutage(ctx context.Context, cause error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Lease/2)
	defer cancel()
	switch {
	case cause == nil && !d.reported.IsZero():
		if outbox.EndOutage(ctx, d.db, d.id) == nil {
			d.reported = time.Time{}
		}
	case database.IsForbidden(cause) && d.now().Sub(d.reported) >= repeatReport:
		d.mu.Lock()
		lasted := d.now().Sub(d.failing)
		d.mu.Unlock()
		err := outbox.ReportOutage(ctx, d.db, d.id, outbox.Outage{
			Target: outbox.DeliveryTargets, Relay: d.name, Kind: "rights", Error: outbox.ErrorText(lacksRights(cause)),
		}, lasted, schema.OutageHolds)
		if err == nil {
			d.reported = d.now()
		}
	}
}

// lacksRights says what to do about an error that the database forbids something.
func lacksRights(err error) error {
	return fmt.Errorf("this database role may not deliver events: run deploy/postgres/grants.sql after each "+
		"migration: %w", err)
}

func (d *Deliverer) worked() {
	d.mu.Lock()
	told := d.told
	d.failing, d.told = time.Time{}, false
	d.mu.Unlock()
	if told {
		d.log.Info("the deliverer can use the database again")
	}
}

// databaseNow is the database's clock as far as it is known, in milliseconds.
func (d *Deliverer) databaseNow() int64 { return d.now().UnixMilli() + d.clock.Load() }

// serverName is the database server that answered last; empty before any did, and on SQLite.
func (d *Deliverer) serverName() string {
	if name := d.server.Load(); name != nil {
		return *name
	}
	return ""
}

func (d *Deliverer) release(ctx context.Context) error {
	return d.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := schema.Bounded(ctx, tx, d.cfg.Lease/2); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE outbox_delivery_lease SET owner = NULL, until_ms = 0 WHERE owner = ?`, d.id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_deliverer WHERE id = ?`, d.id); err != nil {
			return err
		}
		return schema.NotifyLeases(ctx, tx)
	})
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
