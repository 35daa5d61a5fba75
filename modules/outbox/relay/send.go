package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/retry"
)

// deliver publishes one batch, however long that takes, and marks it published. It gives up
// only when the leases are lost, when the relay is to stop between two attempts, or when ctx
// ends.
func (r *Relay) deliver(ctx context.Context, stopping context.Context, whole *batch) {
	sent := false
	defer func() { r.releaseBatch(whole, sent) }()
	rest := []*Batch{&whole.Batch}
	for len(rest) > 0 {
		b := rest[0]
		refused, ok := r.publish(ctx, stopping, whole, b)
		switch {
		case !ok:
			return
		case refused == nil:
			if !r.markPublished(ctx, stopping, whole, b) {
				return
			}
			if b == &whole.Batch {
				r.advance(whole)
			}
			rest = rest[1:]
		case len(refused.Records) == 0 && len(b.Records) > 1: // one of them, and the sink does not say which
			half := len(b.Records) / 2
			rest = append([]*Batch{
				{Partition: b.Partition, Records: b.Records[:half:half], Owned: b.Owned},
				{Partition: b.Partition, Records: b.Records[half:], Owned: b.Owned},
			}, rest[1:]...)
		default:
			which := refused.Records
			if len(which) == 0 {
				which = []int{0}
			}
			done := map[int64]bool{}
			for _, i := range which {
				if !r.pauseRefused(stopping, b.Records[i].ID) || !r.park(ctx, whole, b.Records[i], refused.Err) {
					return
				}
				done[b.Records[i].ID] = true
			}
			rest = r.withoutParked(whole, rest, done)
		}
	}
	sent = true
}

// advance raises the watermarks of the shards of a batch that was published as a whole, so that
// the next fetch does not start with the rows just deleted. It raises none above the stable
// watermark, since lower ids can still appear there, and none of a shard whose epoch has changed,
// since an operator may have put events back.
func (r *Relay) advance(b *batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range b.requests {
		if q.epoch == q.shard.epoch && len(q.aside) == 0 {
			q.watermark = max(q.watermark, min(b.stable, q.through))
		}
	}
}

// publish tries until the sink has the batch (nil, true), until it refuses it (…, true), or until
// the relay gives the batch up (nil, false).
func (r *Relay) publish(ctx context.Context, stopping context.Context, whole *batch, b *Batch) (
	refused *Refused, ok bool,
) {
	attempts, spans := 0, r.traced(ctx, b)
	defer func() { spans.end(attempts, refused, ok) }()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		attempts++
		err := r.outages.awaiting(b.Partition, r.target, func() error { return r.sink.Publish(ctx, b) })
		switch {
		case err == nil:
			r.outages.resolved(b.Partition)
			r.observe(b)
			return nil, true
		case ctx.Err() != nil:
			return nil, false
		case errors.As(err, &refused):
			r.outages.count("refused")
			r.outages.resolved(b.Partition) // it answers
			return refused, true
		case errors.Is(err, ErrNotOwned):
			r.outages.count("not_owned")
			wait = firstRetry // a renewal may be on its way
		default:
			if !transient(r.outages.target(b.Partition, err)) {
				wait = stallRetry
			}
		}
		if whole.lost() || !retry.Sleep(stopping, wait) {
			return nil, false
		}
	}
}

func (r *Relay) observe(b *Batch) {
	now := r.now().UnixMilli() + r.clock.Load()
	replays := 0
	for i := range b.Records {
		if b.Records[i].Replay {
			replays++
			continue
		}
		r.met.latency.Observe(float64(max(0, now-b.Records[i].CreatedMS)) / 1000)
	}
	r.met.published.Add(float64(len(b.Records) - replays))
	r.met.replayed.Add(float64(replays))
	r.met.batchEvents.Observe(float64(len(b.Records)))
	r.mu.Lock()
	r.rate.add(len(b.Records))
	r.mu.Unlock()
}

// pauseRefused delays a record that was refused before, with growing pauses, so that nothing is
// sent and refused in a tight loop, whatever the reason. It returns false when the relay is to
// stop.
func (r *Relay) pauseRefused(stopping context.Context, id int64) bool {
	const remembered = 1000
	r.mu.Lock()
	wait := r.refusals[id]
	if len(r.refusals) >= remembered {
		clear(r.refusals)
	}
	r.refusals[id] = min(max(2*wait, firstRetry), lastRetry)
	r.mu.Unlock()
	return wait == 0 || retry.Sleep(stopping, wait)
}

// park parks the key of a record that the sink refused for good. It returns false when the
// relay gives the batch up.
func (r *Relay) park(ctx context.Context, b *batch, rec Record, cause error) bool {
	i := slices.IndexFunc(b.requests, func(q *fetchRequest) bool { return q.id == rec.shard })
	sh := b.requests[i].shard
	defer r.outages.resolved(b.Partition)
	for {
		r.mu.Lock()
		epoch := sh.epoch
		r.mu.Unlock()
		parked, owned, err := r.store.park(ctx, rec, ownership{b.server, r.id, epoch}, cause.Error())
		switch {
		case err == nil && !owned: // the lease is lost, or an operator has changed the shard
			poke(r.leases) // to find out which
			return false
		case err == nil && !parked:
			return true
		case err == nil:
			r.mu.Lock()
			sh.park(rec.Key, rec.ID)
			r.mu.Unlock()
			r.met.refused.Inc()
			r.log.Error("relay_key_parked", zap.String("target", r.sink.Name()), zap.String("key", rec.Key),
				zap.Int64("id", rec.ID), zap.String("event_id", rec.EventID), zap.String("type", rec.Type),
				zap.Error(cause),
				zap.String("hint", "the target refused an event for good, and the later ones of its key wait; "+
					"decide with: authctl outbox parked"))
			return true
		}
		r.outages.database(b.Partition, err)
		if b.lost() || !retry.Sleep(ctx, idlePoll) {
			return false
		}
	}
}

// withoutParked leaves out the refused records that were dealt with, and all records that must
// wait with a parked key.
func (r *Relay) withoutParked(whole *batch, rest []*Batch, done map[int64]bool) []*Batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	shards := map[int]*shard{}
	for _, q := range whole.requests {
		shards[q.id] = q.shard
	}
	var out []*Batch
	for _, b := range rest {
		left := slices.DeleteFunc(slices.Clone(b.Records), func(rec Record) bool {
			return done[rec.ID] || shards[rec.shard].parks(&rec)
		})
		if len(left) > 0 {
			out = append(out, &Batch{Partition: b.Partition, Records: left, Owned: b.Owned})
		}
	}
	return out
}

// ack is what one delivery waits for: that its pending rows are deleted.
type ack struct {
	server  string // the records were read from it
	records []Record
	done    chan error
}

// markPublished deletes the pending rows of a published batch.
func (r *Relay) markPublished(ctx context.Context, stopping context.Context, whole *batch, b *Batch) bool {
	defer r.outages.resolved(b.Partition) // who publishes them again meets it again
	for {
		a := &ack{server: whole.server, records: b.Records, done: make(chan error, 1)}
		r.mu.Lock()
		r.queue = append(r.queue, a)
		r.mu.Unlock()
		poke(r.acks)
		select {
		case err := <-a.done:
			if err == nil {
				return true
			}
			r.outages.database(b.Partition, err)
		case <-ctx.Done():
			return false
		}
		select {
		case <-stopping.Done():
			return false
		default:
		}
		if whole.lost() || !retry.Sleep(ctx, firstRetry) {
			return false // they will be published again
		}
	}
}

// acknowledge deletes the pending rows of all deliveries that wait, with one statement at a time.
func (r *Relay) acknowledge(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.acks:
		}
		r.mu.Lock()
		queue := r.queue
		r.queue = nil
		r.mu.Unlock()
		for len(queue) > 0 { // all of one server, except around a fail-over
			server := queue[0].server
			var all []Record
			var others []*ack
			for _, a := range queue {
				if a.server == server {
					all = append(all, a.records...)
				} else {
					others = append(others, a)
				}
			}
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := r.store.published(short, server, all)
			cancel()
			r.otherServer(err)
			for _, a := range queue {
				if a.server == server {
					a.done <- err
				}
			}
			queue = others
		}
	}
}

// releaseBatch makes the worker of the partition and the shards idle. sent says that nothing of it is
// left to do.
func (r *Relay) releaseBatch(b *batch, sent bool) {
	r.mu.Lock()
	r.all = r.all || b.rest || !sent
	r.workers[b.Partition].busy = false
	leaving := false
	for _, q := range b.requests {
		q.busy = false
		leaving = leaving || q.leaving
	}
	r.mu.Unlock()
	poke(r.poked)
	if leaving {
		poke(r.leases)
	}
}
