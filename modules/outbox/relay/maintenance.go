package relay

import (
	"context"
	"errors"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/retry"
)

const (
	stableEvery = 500 * time.Millisecond
	sweepEvery  = 30 * time.Second
	watchEvery  = 30 * time.Second
	retainEvery = 10 * time.Minute
)

// watchTarget ends the relay when the number of partitions changes, and when another target has
// taken the name and address of this one.
func (r *Relay) watchTarget(ctx context.Context, fail func(error)) {
	for retry.Sleep(ctx, r.watchEvery) {
		if identity, err := r.sink.Identity(ctx); err == nil {
			if err := outbox.CheckTarget(ctx, r.db, r.sink.Name(), &identity); errors.Is(err, outbox.ErrOtherTarget) {
				fail(err)
				return
			}
		}
		n, err := r.sink.Partitions(ctx)
		if err != nil || n == r.partitions {
			continue // publishing meets the same error, and reports it
		}
		// A broker that lags may be wrong for a moment.
		if !retry.Sleep(ctx, r.watchEvery/10) {
			return
		}
		if again, err := r.sink.Partitions(ctx); err == nil && again == n {
			now := r.target
			now.Partitions = n
			fail(outbox.Repartitioned(now, r.partitions))
			return
		}
	}
}

// trackStable keeps the stable watermark up to date.
func (r *Relay) trackStable(ctx context.Context) {
	w := schema.StableWatermark{DB: r.db}
	for wait := stableEvery; retry.Sleep(ctx, wait); {
		current, err := w.Advance(ctx, r.server.Load())
		if err != nil {
			w = schema.StableWatermark{DB: r.db}
		}
		r.mu.Lock()
		if w.Server == r.server.Load() {
			r.stable.Store(w.ID)
		} else { // the watermark of one server says nothing about another
			r.stable.Store(0)
			poke(r.leases) // to find out which server it is
		}
		r.mu.Unlock()
		if wait = stableEvery; !current {
			wait = stableEvery / 10
		}
	}
}

// sweep looks for pending events below the watermarks. There must be none.
func (r *Relay) sweep(ctx context.Context) {
	for retry.Sleep(ctx, r.sweepEvery) {
		r.mu.Lock()
		asked := make([]claim, 0, len(r.held))
		for _, sh := range r.held {
			if sh.watermark > 0 {
				asked = append(asked, claim{shard: sh.id, epoch: sh.epoch, watermark: sh.watermark})
			}
		}
		r.mu.Unlock()
		for _, c := range asked {
			// Only under the same epoch, which an operator raises who puts events back, and only on
			// the server that the watermark is of: one that crashed has lost acknowledgements.
			var n int64
			var server string
			err := r.db.QueryRowContext(ctx, `SELECT count(*), `+schema.ThisServer(r.db)+` FROM outbox_pending p
				JOIN outbox_shard s ON s.shard = p.shard
				WHERE p.shard = ? AND p.id <= ? AND s.epoch = ? AND s.owner = ?`,
				c.shard, c.watermark, c.epoch, r.id).Scan(&n, &server)
			if err != nil || n == 0 || server != r.server.Load() {
				continue
			}
			r.met.sweepFound.Add(float64(n))
			r.log.Error("events_found_below_watermark", zap.Int64("events", n), zap.Int("shard", c.shard),
				zap.String("hint", "they are published late, perhaps out of order; please report it with this log"))
			r.mu.Lock()
			if sh := r.held[c.shard]; sh != nil && sh.epoch == c.epoch {
				sh.watermark = 0
			}
			r.mu.Unlock()
			r.wake(nil)
		}
	}
}

// retain drops what is older than the retention and neither pending nor parked.
func (r *Relay) retain(ctx context.Context) {
	for {
		if err := outbox.Retain(ctx, r.db, r.cfg.Retention); err != nil && ctx.Err() == nil {
			r.log.Warn("housekeeping_failed", zap.String("what", "outbox_event"), zap.Error(err))
		}
		if err := forgetOutages(ctx, r.db); err != nil && ctx.Err() == nil {
			r.log.Warn("housekeeping_failed", zap.String("what", "outbox_trouble"), zap.Error(err))
		}
		if !retry.Sleep(ctx, retainEvery) {
			return
		}
	}
}

// Observe keeps the metrics of the whole outbox up to date until ctx ends, for a process that goes on
// after its relay has ended: what it showed last would hide that events wait, and that nobody relays.
func (r *Relay) Observe(ctx context.Context) {
	r.gauge(ctx, func(st outbox.State) { r.met.living.Set(float64(len(st.Relays))) })
}

// gauge keeps the metrics of the whole outbox up to date, and hands each state on. While the database does not
// answer, they say that nothing is known: others may have changed it, and an old value would hide theirs.
func (r *Relay) gauge(ctx context.Context, also func(outbox.State)) {
	for {
		start := r.now()
		st, err := outbox.Status(ctx, r.db)
		if ctx.Err() != nil {
			return
		}
		pending, oldestAge, parked := float64(st.Pending), st.OldestAge.Seconds(), float64(st.ParkedKeys)
		if err != nil {
			st, pending, oldestAge, parked = outbox.State{}, math.NaN(), math.NaN(), math.NaN()
		}
		r.met.pending.Set(pending)
		r.met.oldestAge.Set(oldestAge)
		r.met.parked.Set(parked)
		also(st)
		if !retry.Sleep(ctx, schema.CountAgain(r.now().Sub(start), err)) {
			return
		}
	}
}
