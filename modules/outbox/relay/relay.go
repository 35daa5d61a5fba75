package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

const (
	busyPoll   = 5 * time.Millisecond // how soon to look again while there is traffic
	idlePoll   = 250 * time.Millisecond
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	stallRetry = 5 * time.Second
)

// Relay publishes what is in the outbox. Any number of them, in any number of processes,
// share the work.
type Relay struct {
	db                     *database.DB
	sink                   Sink
	cfg                    Config
	log                    *zap.Logger
	met                    *metrics
	now                    func() time.Time
	waker                  *Waker
	watchEvery, sweepEvery time.Duration

	id         string
	name       string
	store      *store
	target     outbox.Target // as it was admitted
	partitions int

	until  atomic.Pointer[time.Time] // this relay's own end of all its leases
	server atomic.Pointer[string]
	clock  atomic.Int64 // the database's clock less this one, in milliseconds
	settle atomic.Int64 // no id at or below will ever appear again

	poked   chan struct{} // something may be pending
	more    chan struct{} // something is: lanes are idle that have a backlog
	leases  chan struct{} // shards may be free, or be free to go
	acks    chan struct{}
	trouble trouble

	draining atomic.Bool // it takes no more shards

	seen map[string]sighting // of the other relays; of keepLeases alone

	mu     sync.Mutex
	held   map[int]*shard
	lanes  []lane // by partition
	living int
	rounds int64
	queue  []*ack
	rate   rate

	refusals map[int64]time.Duration // how long a record waits that is refused again
}

// Options are what the settings alone do not say.
type Options struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Waker    *Waker                // of this process; nil: it looks by itself
	Now      func() time.Time      // nil: time.Now
	Name     string                // for people; "": host and process id
}

// New makes a relay from the database to the sink, which stays the caller's to close.
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
		id: id.String(), name: opt.Name, held: map[int]*shard{}, refusals: map[int64]time.Duration{},
		watchEvery: watchEvery, sweepEvery: sweepEvery,
		poked: make(chan struct{}, 1), more: make(chan struct{}, 1), leases: make(chan struct{}, 1), acks: make(chan struct{}, 1),
	}
	if r.log == nil {
		r.log = zap.NewNop()
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		r.name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	r.trouble = trouble{log: r.log, now: r.now, met: met}
	if opt.Registry != nil {
		if err := opt.Registry.Register(&r.trouble); err != nil {
			return nil, fmt.Errorf("register the outbox's metrics: %w", err)
		}
	}
	return r, nil
}

// Admit makes sure that the outbox publishes to this relay's sink: see [outbox.AdmitTarget]. Once
// with what is known without asking, so that a relay with other settings is refused although
// they name what cannot be reached, and once with what the sink itself says.
func (r *Relay) Admit(ctx context.Context) (err error) {
	if r.target, err = outbox.AdmitTarget(ctx, r.db, r.sink.Name(), nil); err != nil {
		return err
	}
	identity, err := r.sink.Identity(ctx)
	if err != nil {
		return sinkError{fmt.Errorf("ask %s which it is: %w", r.target, err)}
	}
	r.target, err = outbox.AdmitTarget(ctx, r.db, r.sink.Name(), &identity)
	return err
}

// Run relays until ctx ends; then it waits for what is under way, at most for
// outbox.drain_timeout, gives its leases back and returns nil. Kafka or the database being
// away does not end it. What does is an error that only a person can resolve:
// [outbox.ErrOtherTarget], [outbox.ErrPartitionsChanged], [outbox.ErrShards].
func (r *Relay) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// Three circles, the inner ones outliving the outer ones: what begins new work, the
	// deliveries under way, what those need.
	var outer, deliveries, inner sync.WaitGroup
	outer.Go(func() { r.gauge(ctx) }) // a backlog shows even while the target is away from the start
	outer.Go(func() { r.reportTrouble(ctx) })
	if err := r.open(ctx); err != nil {
		stopped := ctx.Err() != nil
		fail(nil)
		outer.Wait()
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		r.endTrouble(leaving, err)
		if stopped {
			return nil
		}
		return err
	}
	defer r.store.close()
	if r.waker != nil {
		defer r.waker.subscribe(r.poked)()
	}

	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	deliver, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	defer abandon()

	inner.Go(func() { r.keepLeases(keep, fail) })
	inner.Go(func() { r.acknowledge(keep) })
	outer.Go(func() { r.dispatch(ctx, deliver, &deliveries) })
	outer.Go(func() { r.assist(ctx, deliver, &deliveries) })
	outer.Go(func() { r.watchTarget(ctx, fail) })
	outer.Go(func() { r.sweep(ctx) })
	outer.Go(func() { r.retain(ctx) })
	if r.db.IsPostgres() {
		outer.Go(func() { r.settleIDs(ctx) })
		outer.Go(func() {
			listen(ctx, r.db, func(payload string) {
				poke(r.poked)
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
	if err := r.release(releasing); err != nil {
		r.log.Warn("leases were not given back; others take over when they run out", zap.Error(err))
	}
	cause := context.Cause(ctx)
	r.endTrouble(releasing, cause)
	if fatal(cause) {
		return cause
	}
	return nil
}

func fatal(err error) bool {
	return errors.Is(err, outbox.ErrPartitionsChanged) || errors.Is(err, outbox.ErrShards) || errors.Is(err, outbox.ErrOtherTarget)
}

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
	if err := outbox.PinPartitions(bounded, r.db, r.target, partitions, r.cfg.Shards); err != nil {
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
				"Set it back to %d until they are gone", outbox.ErrShards, r.cfg.Shards, shards, waiting, shards)
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

// segmentLength is how long events go to one segment of the ring: short enough that all of
// it is dropped not much later than the retention, long enough that it is over before its
// turn comes again.
func segmentLength(retention time.Duration) time.Duration {
	return max(retention/(schema.Segments-2), time.Minute)
}

// keepLeases renews every third of the lease, and looks for free shards in between.
func (r *Relay) keepLeases(ctx context.Context, fail func(error)) {
	look := time.NewTicker(min(idlePoll, r.cfg.Lease/8))
	defer look.Stop()
	var last time.Time
	for {
		if err := r.tick(ctx); err == nil {
			last = r.now()
			r.trouble.over(databaseTrouble)
		} else if fatal(err) {
			r.mu.Lock()
			r.dropAll()
			r.mu.Unlock()
			fail(err)
			return
		} else if ctx.Err() == nil {
			r.trouble.database(err)
			if !sleep(ctx, 100*time.Millisecond) {
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
