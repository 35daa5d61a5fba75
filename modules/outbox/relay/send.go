package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"
)

func (p *parcel) lost() bool {
	return slices.ContainsFunc(p.shards, func(q *question) bool { return q.lost.Load() })
}

// deliver brings one batch to the sink, however long that takes, and marks it done. It
// gives up only when the leases are gone, the relay is to stop and no attempt is under way,
// or ctx ends.
func (r *Relay) deliver(ctx context.Context, stopping <-chan struct{}, p *parcel) {
	defer r.unload(p)
	rest := []*Batch{&p.Batch}
	for len(rest) > 0 {
		b := rest[0]
		refused, ok := r.publish(ctx, stopping, p, b)
		switch {
		case !ok:
			return
		case refused == nil:
			if !r.markDone(ctx, stopping, p, b) {
				return
			}
			if b == &p.Batch {
				r.pass(p)
			}
			rest = rest[1:]
		case len(refused.Records) == 0 && len(b.Records) > 1: // someone in there
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
				if !r.pauseRefused(stopping, b.Records[i].ID) || !r.park(ctx, p, b.Records[i], refused.Err) {
					return
				}
				done[b.Records[i].ID] = true
			}
			rest = r.withoutParked(p, rest, done)
		}
	}
}

// pass raises the bound of shards behind a parcel that is done as a whole, so that the next
// reading does not begin with the rows just deleted. What is not settled may still come, and
// under another epoch an operator may have put something back.
func (r *Relay) pass(p *parcel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range p.shards {
		if q.epoch == q.shard.epoch && len(q.aside) == 0 {
			q.low = max(q.low, min(p.settled, q.through))
		}
	}
}

// publish tries until the sink has the batch (nil, true), refuses it (…, true), or the
// batch is to be given up (nil, false).
func (r *Relay) publish(ctx context.Context, stopping <-chan struct{}, p *parcel, b *Batch) (*Refused, bool) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := r.sink.Publish(ctx, b)
		var refused *Refused
		switch {
		case err == nil:
			r.trouble.over(b.Partition)
			r.observe(b)
			return nil, true
		case ctx.Err() != nil:
			return nil, false
		case errors.As(err, &refused):
			r.trouble.count("refused")
			r.trouble.over(b.Partition) // it answers
			return refused, true
		case errors.Is(err, ErrNotOwned):
			r.trouble.count("not_owned")
			wait = firstRetry // a renewal may be on its way
		default:
			if !passing(r.trouble.target(b.Partition, err)) {
				wait = stallRetry
			}
		}
		if p.lost() {
			return nil, false
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-stopping:
			t.Stop()
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

// pauseRefused makes a record that was refused before wait before it is dealt with again, the
// longer the more often that happens: whatever the reason, nothing is sent and refused without
// a pause. It returns false when the relay is to stop.
func (r *Relay) pauseRefused(stopping <-chan struct{}, id int64) bool {
	const most = 1000 // which are remembered
	r.mu.Lock()
	wait := r.refusals[id]
	if len(r.refusals) >= most {
		clear(r.refusals)
	}
	r.refusals[id] = min(max(2*wait, firstRetry), lastRetry)
	r.mu.Unlock()
	if wait == 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stopping:
		return false
	}
}

// park parks the key of a record the sink refused for good. It returns false when the
// delivery is to be given up.
func (r *Relay) park(ctx context.Context, p *parcel, rec Record, cause error) bool {
	i := slices.IndexFunc(p.shards, func(q *question) bool { return q.id == rec.shard })
	sh := p.shards[i].shard
	for {
		r.mu.Lock()
		epoch := sh.epoch
		r.mu.Unlock()
		parked, owned, err := r.store.park(ctx, rec, ownership{p.server, r.id, epoch}, cause.Error())
		switch {
		case err == nil && !owned: // the lease is gone, or an operator has changed the shard
			poke(r.leases) // which of them
			return false
		case err == nil && !parked:
			return true
		case err == nil:
			r.mu.Lock()
			sh.park(rec.Key, rec.ID)
			r.mu.Unlock()
			r.met.refused.Inc()
			r.log.Error("an event was refused for good; its key is parked", zap.String("key", rec.Key), zap.Int64("id", rec.ID),
				zap.String("event_id", rec.EventID), zap.String("type", rec.Type), zap.Error(cause))
			return true
		}
		r.trouble.database(err)
		if p.lost() || !sleep(ctx, idlePoll) {
			return false
		}
	}
}

// withoutParked leaves out the refused records that are done with, and what must not follow
// one of its key.
func (r *Relay) withoutParked(p *parcel, rest []*Batch, done map[int64]bool) []*Batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	shards := map[int]*shard{}
	for _, q := range p.shards {
		shards[q.id] = q.shard
	}
	var out []*Batch
	for _, b := range rest {
		left := slices.DeleteFunc(slices.Clone(b.Records), func(rec Record) bool { return done[rec.ID] || shards[rec.shard].parks(&rec) })
		if len(left) > 0 {
			out = append(out, &Batch{Partition: b.Partition, Records: left, Owned: b.Owned})
		}
	}
	return out
}

// ack is what one delivery waits for.
type ack struct {
	server  string // that the records were read from
	records []Record
	done    chan error
}

// markDone deletes the pending rows of an acknowledged batch.
func (r *Relay) markDone(ctx context.Context, stopping <-chan struct{}, p *parcel, b *Batch) bool {
	for {
		a := &ack{server: p.server, records: b.Records, done: make(chan error, 1)}
		r.mu.Lock()
		r.queue = append(r.queue, a)
		r.mu.Unlock()
		poke(r.acks)
		select {
		case err := <-a.done:
			if err == nil {
				return true
			}
			r.trouble.database(err)
		case <-ctx.Done():
			return false
		}
		select {
		case <-stopping:
			return false
		default:
		}
		if p.lost() || !sleep(ctx, firstRetry) {
			return false // they will be published again
		}
	}
}

// acknowledge deletes what all deliveries have waiting in one statement at a time.
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
		for len(queue) > 0 { // of one server, but for the moment in which it is another
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
			bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := r.store.published(bounded, server, all)
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

// unload makes the lane and its shards idle.
func (r *Relay) unload(p *parcel) {
	r.mu.Lock()
	r.lanes[p.Partition].busy = false
	leaving := false
	for _, sh := range p.shards {
		sh.busy = false
		leaving = leaving || sh.leaving
	}
	r.mu.Unlock()
	poke(r.poked)
	if leaving {
		poke(r.leases)
	}
}

func recordBytes(r *Record) int {
	return 512 + len(r.Type) + 2*len(r.Key) + len(r.Subject) + len(r.Source) + len(r.DataSchema) + len(r.Data)
}
