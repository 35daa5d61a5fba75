package relay

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
)

const (
	settleEvery = 500 * time.Millisecond
	sweepEvery  = 30 * time.Second
	watchEvery  = 30 * time.Second
	retainEvery = 10 * time.Minute
	gaugeEvery  = 5 * time.Second
)

// watchTarget notices when the number of partitions changes under way, and when the target
// has become another one under the same name and address.
func (r *Relay) watchTarget(ctx context.Context, fail func(error)) {
	for sleep(ctx, r.watchEvery) {
		if identity, err := r.sink.Identity(ctx); err == nil {
			if err := outbox.CheckTarget(ctx, r.db, r.sink.Name(), &identity); errors.Is(err, outbox.ErrOtherTarget) {
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
			fail(outbox.Repartitioned(now, r.partitions))
			return
		}
	}
}

// settleIDs raises the bound below which no id can appear any more.
func (r *Relay) settleIDs(ctx context.Context) {
	s := schema.Settler{DB: r.db}
	for wait := settleEvery; sleep(ctx, wait); {
		settled, err := s.Step(ctx, r.serverName())
		if err != nil {
			s = schema.Settler{DB: r.db}
		}
		r.mu.Lock()
		if known := r.serverName(); s.Server == known {
			r.settle.Store(s.Bound)
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
			err := r.db.QueryRowContext(ctx, `SELECT count(*), `+schema.ThisServer(r.db)+` FROM outbox_pending p JOIN outbox_shard s ON s.shard = p.shard
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

// retain drops what is older than the retention and not waiting.
func (r *Relay) retain(ctx context.Context) {
	for {
		if err := outbox.Retain(ctx, r.db, r.cfg.Retention); err != nil && ctx.Err() == nil {
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

// gauge keeps the figures about the whole outbox up to date. Counting a long backlog takes
// time; it is done the less often the longer it takes.
func (r *Relay) gauge(ctx context.Context) {
	for {
		start := r.now()
		st, err := outbox.Status(ctx, r.db)
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
