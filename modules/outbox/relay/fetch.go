package relay

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"time"
)

// partitionWorker is the state of one partition, which has one batch in flight at a time.
type partitionWorker struct {
	reading bool      // its pending events are being fetched
	busy    bool      // a batch is in flight
	full    bool      // its last batch was as large as a batch may be
	served  int64     // the number of its last batch
	active  int       // how many of its shards had pending events at the last fetch
	asked   time.Time // when all its shards were asked; zero: they are to be
}

// share returns among how many of its idle shards the limits of a batch are divided: those that
// had pending events at the last fetch, and at least a quarter of all, so that the answer is
// never far larger than a batch.
func (w partitionWorker) share(idle int) int {
	if w.active == 0 {
		return idle
	}
	return max(w.active, (idle+3)/4)
}

// wake has the shards of keys asked for pending events at once, by the hashes of the keys. Without
// any, all shards are asked.
func (r *Relay) wake(hashes []int32) {
	r.mu.Lock()
	for _, h := range hashes {
		r.woken[int(h)%cmp.Or(r.shards, r.cfg.Shards)] = true
	}
	r.all = r.all || len(hashes) == 0
	r.mu.Unlock()
	poke(r.poked)
}

// due reports whether all shards are to be asked, and not only those with newly committed events.
func (r *Relay) due(anyway bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := anyway || r.all
	if r.all { // a partition with a batch in flight cannot be asked before that has ended
		for p := range r.workers {
			r.workers[p].asked = time.Time{}
		}
	}
	r.all = false
	return all
}

// fetchLoop fetches pending events of idle partitions with one statement, and sends them. It asks all
// shards when it polls, and in between those that it is woken for: each shard that is asked costs the
// database a search, of which most find nothing. A partition that is busy at each poll, with what it is woken for, has
// all its shards asked between two batches.
func (r *Relay) fetchLoop(ctx context.Context, send func([]*batch)) {
	wait, polled, backlog := busyPoll, time.Time{}, false
	for ctx.Err() == nil {
		all := r.due(backlog || time.Since(polled) >= wait)
		batches, err := r.fetch(ctx, all)
		if all || err != nil {
			polled = time.Now()
		}
		if err != nil && ctx.Err() == nil {
			r.outages.database(fetchOutage, err)
			wait = idlePoll
		} else {
			wait = nextPoll(wait, all, len(batches) > 0)
		}
		send(batches)
		t := time.NewTimer(time.Until(polled.Add(wait)))
		backlog = false
		select {
		case <-ctx.Done():
		case <-r.poked:
		case <-r.more:
			backlog = true
		case <-t.C:
		}
		t.Stop()
	}
}

// nextPoll is the pause between two polls, which gets short when a poll finds events. What is found because the relay
// was woken for it says nothing about events that nobody names.
func nextPoll(pause time.Duration, all, found bool) time.Duration {
	switch {
	case !all:
		return pause
	case found:
		return busyPoll
	}
	return min(2*pause, idlePoll)
}

// fetchAhead is a second reader during a backlog: the database works for one of the two while
// this process works for the other.
func (r *Relay) fetchAhead(ctx context.Context, send func([]*batch)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.more:
		}
		batches, _ := r.fetch(ctx, true) // fetchLoop meets the same error and reports it
		send(batches)
	}
}

// batch is a [Batch] with what the relay must remember about it.
type batch struct {
	Batch
	requests []*fetchRequest // of the shards that have records in it
	stable   int64           // the stable watermark before the fetch
	server   string          // the records were read from it
	rest     bool            // there may be more pending events of its partition, of which nobody is told
}

// fetchRequest asks for the pending events of one shard, and keeps what came back.
type fetchRequest struct {
	*shard
	epoch, above int64   // epoch and watermark of the shard at the time of asking
	first        int64   // the lowest pending id; math.MaxInt64: none
	through      int64   // the highest id in the batch, which has all up to it except those aside
	aside        []int64 // pending ids that must wait with their parked keys
}

// fetch reads the pending events of idle partitions and makes a batch for each. Their workers
// and shards are busy from then on. It asks all shards, or those that the relay was woken for.
func (r *Relay) fetch(ctx context.Context, all bool) ([]*batch, error) {
	r.mu.Lock()
	// Before the fetch, which then sees everything up to the stable watermark.
	stable, server := r.stable.Load(), r.server.Load()
	if !r.until.HoldsAt(r.now()) {
		r.mu.Unlock()
		return nil, nil
	}
	idle, requests, share := r.choose(all, time.Now())
	defer r.doneReading(idle)
	r.mu.Unlock()
	if len(requests) == 0 {
		return nil, nil
	}
	shards, watermarks := make([]int, 0, len(requests)), make([]int64, 0, len(requests))
	for id, q := range requests {
		shards, watermarks = append(shards, id), append(watermarks, q.above)
	}
	limit, bytes := max(1, r.cfg.BatchEvents/share), MaxBatchBytes/share
	records, err := r.store.pendingOf(ctx, server, shards, watermarks, limit, bytes)
	if err != nil {
		r.otherServer(err)
		return nil, err
	}

	r.mu.Lock()
	batches := r.dispatch(requests, records, stable)
	for _, b := range batches {
		b.server, b.rest = server, all || len(records) >= limit || bytesOf(records) >= bytes
	}
	r.mu.Unlock()
	for _, q := range requests {
		if len(q.aside) == 0 {
			continue
		}
		moved, err := r.store.setAside(ctx, q.shard, ownership{server, r.id, q.epoch}, q.aside)
		if err != nil {
			return batches, err
		}
		if moved > 0 {
			r.wake(nil) // there may be more events after them
		}
	}
	r.outages.resolved(fetchOutage)
	return batches, nil
}

func bytesOf(records []Record) (n int) {
	for i := range records {
		n += records[i].Bytes()
	}
	return n
}

// otherServer has the leases checked when the database turns out to be another server.
func (r *Relay) otherServer(err error) {
	if errors.Is(err, errOtherServer) {
		poke(r.leases)
	}
}

// choose returns the partitions to fetch, the requests for their shards, and by how much the limits of a
// batch are divided for each. Shards that are woken in other partitions stay so. Caller holds mu.
func (r *Relay) choose(all bool, now time.Time) (idle []bool, requests map[int]*fetchRequest, share int) {
	missed := func(p int) bool { return now.Sub(r.workers[p].asked) >= idlePoll }
	asks := func(shard int) bool {
		p := shard % r.partitions
		// Only fetches that ask all shards make up for a backlog.
		return all || !r.workers[p].full && (r.woken[shard] || missed(p))
	}
	idle = r.idlePartitions(asks)
	requests, share = r.fetchRequests(idle, asks)
	for p := range idle {
		if idle[p] && (all || missed(p)) {
			r.workers[p].asked = now
		}
	}
	maps.DeleteFunc(r.woken, func(id int, _ bool) bool { return requests[id] != nil || r.held[id] == nil })
	return idle, requests, share
}

// fetchRequests returns a request for each idle shard of the given partitions that is to be asked, and
// by how much the limits of a batch are divided for each. Caller holds mu.
func (r *Relay) fetchRequests(idle []bool, asks func(shard int) bool) (requests map[int]*fetchRequest, share int) {
	requests, share = map[int]*fetchRequest{}, 1
	members := make([]int, r.partitions)
	for _, sh := range r.held {
		if p := sh.id % r.partitions; !sh.busy && !sh.leaving && idle[p] && asks(sh.id) {
			requests[sh.id] = &fetchRequest{shard: sh, epoch: sh.epoch, above: sh.watermark, first: math.MaxInt64}
			members[p]++
		}
	}
	for p, n := range members {
		share = max(share, r.workers[p].share(n))
	}
	return requests, share
}

// dispatch makes batches of the records that were fetched. It removes requests that are no
// longer valid: the shard was lost, or changed by an operator. Caller holds mu.
func (r *Relay) dispatch(requests map[int]*fetchRequest, records []Record, stable int64) (out []*batch) {
	maps.DeleteFunc(requests, func(id int, q *fetchRequest) bool {
		return r.held[id] != q.shard || q.shard.epoch != q.epoch || q.leaving
	})
	sizes := make([]int, r.partitions)
	for i := range records {
		sizes[records[i].shard%r.partitions]++
	}
	byPartition, active := make([][]Record, r.partitions), make([]int, r.partitions)
	for p, n := range sizes {
		byPartition[p] = make([]Record, 0, n)
	}
	for i := range records {
		rec := &records[i]
		q := requests[rec.shard]
		switch {
		case q == nil:
			continue
		case q.parks(rec):
			q.aside = append(q.aside, rec.ID)
		default:
			p := rec.shard % r.partitions
			byPartition[p] = append(byPartition[p], *rec)
		}
		q.first = min(q.first, rec.ID)
	}
	for id, q := range requests {
		if q.first != math.MaxInt64 {
			active[id%r.partitions]++
		}
		q.watermark = max(q.watermark, min(stable, q.first-1))
	}
	for p, recs := range byPartition {
		if len(recs) > 0 && !r.workers[p].busy {
			out = append(out, r.newBatch(p, recs, active[p], requests, stable))
		}
	}
	return out
}

// doneReading ends the fetch of partitions.
func (r *Relay) doneReading(read []bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range read {
		if read[p] {
			r.workers[p].reading = false
		}
	}
}

// idlePartitions chooses the partitions to fetch, of those that have a shard to ask. It takes only some
// at a time of those with a backlog, so that fetching, sending and acknowledging overlap; if all were
// fetched at once, each step would wait for the one before. Caller holds mu.
func (r *Relay) idlePartitions(asks func(shard int) bool) []bool {
	idle, asked := make([]bool, len(r.workers)), make([]bool, len(r.workers))
	for id := range r.held {
		asked[id%r.partitions] = asked[id%r.partitions] || asks(id)
	}
	var full []int
	for p, w := range r.workers {
		idle[p] = asked[p] && !w.busy && !w.reading && !w.full
		if asked[p] && !w.busy && !w.reading && w.full {
			full = append(full, p)
		}
	}
	slices.SortFunc(full, func(a, b int) int { return cmp.Compare(r.workers[a].served, r.workers[b].served) })
	some := (len(r.workers) + 3) / 4
	for i, p := range full {
		if i == some {
			poke(r.more)
			break
		}
		idle[p] = true
		r.workers[p].full = false // until the next batch shows
	}
	for p := range idle {
		r.workers[p].reading = r.workers[p].reading || idle[p]
	}
	return idle
}

// newBatch makes the batch of a partition: its oldest records, as many as fit. Caller holds mu.
func (r *Relay) newBatch(
	partition int, records []Record, active int, requests map[int]*fetchRequest, stable int64,
) *batch {
	slices.SortFunc(records, func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
	size, n := 0, 0
	for n < len(records) && n < r.cfg.BatchEvents {
		size += records[n].Bytes()
		if n > 0 && size > MaxBatchBytes {
			break
		}
		n++
	}
	b := &batch{Batch: Batch{Partition: partition, Records: records[:n:n]}, stable: stable}
	r.batches++
	r.workers[partition] = partitionWorker{
		busy: true, full: 2*n > r.cfg.BatchEvents || 2*size > MaxBatchBytes, served: r.batches, active: active,
		asked: r.workers[partition].asked,
	}
	for i := range b.Records {
		q := requests[b.Records[i].shard]
		if !q.busy {
			q.busy = true
			b.requests = append(b.requests, q)
		}
		q.through = b.Records[i].ID
	}
	b.Owned = func() bool { return !b.lost() && r.until.HoldsAt(r.now()) }
	return b
}

func (b *batch) lost() bool {
	return slices.ContainsFunc(b.requests, func(q *fetchRequest) bool { return q.lost.Load() })
}
