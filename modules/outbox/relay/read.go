package relay

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// lane is the way to one partition: one batch at a time.
type lane struct {
	reading bool // what is pending of it is being read
	busy    bool
	full    bool  // its last batch took all that one takes
	served  int64 // the round of its last batch
	active  int   // how many of its shards had something pending last time
}

// share is among how many shards of a lane a batch is divided, of which it has so many: those
// that had something last time, and never so few that all of them together are far too much.
func (l lane) share(members int) int {
	if l.active == 0 {
		return members
	}
	return max(l.active, (members+3)/4)
}

// dispatch looks for pending events of whatever is idle, in one statement, and sends them
// on their way.
func (r *Relay) dispatch(ctx, deliver context.Context, deliveries *sync.WaitGroup) {
	wait := busyPoll
	for ctx.Err() == nil {
		batches, err := r.round(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			r.trouble.database(err)
			wait = idlePoll
		case len(batches) > 0:
			wait = busyPoll
		default:
			wait = min(2*wait, idlePoll)
		}
		r.send(batches, deliver, ctx.Done(), deliveries)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.poked:
		case <-r.more:
		case <-t.C:
		}
		t.Stop()
	}
}

// assist reads as well while there is a backlog: what the database does for one reading and
// what this process does for another go on at once.
func (r *Relay) assist(ctx, deliver context.Context, deliveries *sync.WaitGroup) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.more:
		}
		batches, _ := r.round(ctx) // dispatch meets the same error, and says so
		r.send(batches, deliver, ctx.Done(), deliveries)
	}
}

func (r *Relay) send(batches []*parcel, deliver context.Context, stopping <-chan struct{}, deliveries *sync.WaitGroup) {
	for _, b := range batches {
		deliveries.Go(func() { r.deliver(deliver, stopping, b) })
	}
}

// parcel is a batch with what the relay must remember of it.
type parcel struct {
	Batch
	shards  []*question
	settled int64  // before it was read
	server  string // that it was read from
}

// question is what a round asks of a shard, and what becomes of the answer.
type question struct {
	*shard
	epoch, from int64   // epoch and bound when it was asked
	first       int64   // pending id; math.MaxInt64: none
	through     int64   // the last id in the parcel, which has all up to it but those aside
	aside       []int64 // pending ids that must wait with their keys
}

// round reads what is pending for the idle lanes and makes a batch for each. Their lanes
// and shards are busy from then on.
func (r *Relay) round(ctx context.Context) ([]*parcel, error) {
	r.mu.Lock()
	settled, server := r.settle.Load(), r.serverName() // before the reading: what is settled then is seen by it
	if !r.ownedAt(r.now()) {
		r.mu.Unlock()
		return nil, nil
	}
	open := r.openLanes()
	defer r.haveRead(open)
	asked, share := r.ask(open)
	r.mu.Unlock()
	if len(asked) == 0 {
		return nil, nil
	}
	shards, lows := make([]int, 0, len(asked)), make([]int64, 0, len(asked))
	for id, q := range asked {
		shards, lows = append(shards, id), append(lows, q.from)
	}
	records, err := r.store.pendingOf(ctx, server, shards, lows, max(1, r.cfg.BatchEvents/share), r.cfg.BatchBytes/share)
	if err != nil {
		r.otherServer(err)
		return nil, err
	}

	r.mu.Lock()
	parcels := r.load(asked, records, settled)
	for _, p := range parcels {
		p.server = server
	}
	r.mu.Unlock()
	for _, q := range asked {
		if len(q.aside) == 0 {
			continue
		}
		moved, err := r.store.setAside(ctx, q.shard, ownership{server, r.id, q.epoch}, q.aside)
		if err != nil {
			r.trouble.database(err)
			break
		}
		if moved > 0 {
			poke(r.poked) // there may be more behind them
		}
	}
	return parcels, nil
}

// otherServer sees to it that the leases are looked at when it turns out that the database is
// another server.
func (r *Relay) otherServer(err error) {
	if errors.Is(err, errOtherServer) {
		poke(r.leases)
	}
}

// ask returns the idle shards of open lanes, and among how many a batch is divided. Caller
// holds mu.
func (r *Relay) ask(open []bool) (asked map[int]*question, share int) {
	asked, share = map[int]*question{}, 1
	members := make([]int, r.partitions)
	for _, sh := range r.held {
		if p := sh.id % r.partitions; !sh.busy && !sh.leaving && open[p] {
			asked[sh.id] = &question{shard: sh, epoch: sh.epoch, from: sh.low, first: math.MaxInt64}
			members[p]++
		}
	}
	for p, n := range members {
		share = max(share, r.lanes[p].share(n))
	}
	return asked, share
}

// load makes parcels of what was read. It removes questions whose answers are of a time that
// is over. Caller holds mu.
func (r *Relay) load(asked map[int]*question, records []Record, settled int64) (out []*parcel) {
	maps.DeleteFunc(asked, func(id int, q *question) bool {
		return r.held[id] != q.shard || q.shard.epoch != q.epoch || q.leaving
	})
	sizes := make([]int, r.partitions)
	for i := range records {
		sizes[records[i].shard%r.partitions]++
	}
	byLane, active := make([][]Record, r.partitions), make([]int, r.partitions)
	for p, n := range sizes {
		byLane[p] = make([]Record, 0, n)
	}
	for i := range records {
		rec := &records[i]
		q := asked[rec.shard]
		switch {
		case q == nil:
			continue
		case q.parks(rec):
			q.aside = append(q.aside, rec.ID)
		default:
			p := rec.shard % r.partitions
			byLane[p] = append(byLane[p], *rec)
		}
		q.first = min(q.first, rec.ID)
	}
	for id, q := range asked {
		if q.first != math.MaxInt64 {
			active[id%r.partitions]++
		}
		q.low = max(q.low, min(settled, q.first-1))
	}
	for p, recs := range byLane {
		if len(recs) > 0 && !r.lanes[p].busy {
			out = append(out, r.parcel(p, recs, active[p], asked, settled))
		}
	}
	return out
}

// haveRead is the end of reading lanes.
func (r *Relay) haveRead(open []bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range open {
		if open[p] {
			r.lanes[p].reading = false
		}
	}
}

// openLanes tells for which lanes to look: the idle ones. Of those that have a backlog only
// some at a time: while these are read, others are being sent and others being marked done;
// all at once, each step would wait for the one before it. Caller holds mu.
func (r *Relay) openLanes() []bool {
	open := make([]bool, len(r.lanes))
	var full []int
	for p, l := range r.lanes {
		open[p] = !l.busy && !l.reading && !l.full
		if !l.busy && !l.reading && l.full {
			full = append(full, p)
		}
	}
	slices.SortFunc(full, func(a, b int) int { return cmp.Compare(r.lanes[a].served, r.lanes[b].served) })
	some := (len(r.lanes) + 3) / 4
	for i, p := range full {
		if i == some {
			poke(r.more)
			break
		}
		open[p] = true
		r.lanes[p].full = false // until the batch shows
	}
	for p := range open {
		r.lanes[p].reading = r.lanes[p].reading || open[p]
	}
	return open
}

// parcel makes the batch of a lane: the oldest first, as many as one batch takes. Caller
// holds mu.
func (r *Relay) parcel(partition int, records []Record, active int, asked map[int]*question, settled int64) *parcel {
	slices.SortFunc(records, func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
	size, n := 0, 0
	for n < len(records) && n < r.cfg.BatchEvents {
		size += recordBytes(&records[n])
		if n > 0 && size > r.cfg.BatchBytes {
			break
		}
		n++
	}
	p := &parcel{Batch: Batch{Partition: partition, Records: records[:n:n]}, settled: settled}
	r.rounds++
	r.lanes[partition] = lane{busy: true, full: 2*n > r.cfg.BatchEvents || 2*size > r.cfg.BatchBytes, served: r.rounds, active: active}
	for i := range p.Records {
		q := asked[p.Records[i].shard]
		if !q.busy {
			q.busy = true
			p.shards = append(p.shards, q)
		}
		q.through = p.Records[i].ID
	}
	p.Owned = func() bool { return !p.lost() && r.ownedAt(r.now()) }
	return p
}
