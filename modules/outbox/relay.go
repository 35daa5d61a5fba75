package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
)

// ErrPartitionsChanged ends a relay: the target has another number of partitions than the
// order of keys was built on. To go on would put events of a key behind later ones.
var ErrPartitionsChanged = errors.New("the number of partitions has changed")

// ErrShards ends a relay whose number of shards does not fit.
var ErrShards = errors.New("the number of shards does not fit")

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
	target     Target // as it was admitted
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

// RelayOptions are what the settings alone do not say.
type RelayOptions struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Waker    *Waker                // of this process; nil: it looks by itself
	Now      func() time.Time      // nil: time.Now
	Name     string                // for people; "": host and process id
}

// NewRelay makes a relay from the database to the sink, which stays the caller's to close.
func NewRelay(db *database.DB, sink Sink, cfg Config, opt RelayOptions) (*Relay, error) {
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

// Run relays until ctx ends; then it waits for what is under way, at most for
// outbox.drain_timeout, gives its leases back and returns nil. Kafka or the database being
// away does not end it. What does is an error that only a person can resolve:
// [ErrOtherTarget], [ErrPartitionsChanged], [ErrShards].
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
func (r *Relay) load(asked map[int]*question, records []RelayRecord, settled int64) (out []*parcel) {
	maps.DeleteFunc(asked, func(id int, q *question) bool {
		return r.held[id] != q.shard || q.shard.epoch != q.epoch || q.leaving
	})
	sizes := make([]int, r.partitions)
	for i := range records {
		sizes[records[i].shard%r.partitions]++
	}
	byLane, active := make([][]RelayRecord, r.partitions), make([]int, r.partitions)
	for p, n := range sizes {
		byLane[p] = make([]RelayRecord, 0, n)
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
func (r *Relay) parcel(partition int, records []RelayRecord, active int, asked map[int]*question, settled int64) *parcel {
	slices.SortFunc(records, func(a, b RelayRecord) int { return cmp.Compare(a.ID, b.ID) })
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
func (r *Relay) park(ctx context.Context, p *parcel, rec RelayRecord, cause error) bool {
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
		left := slices.DeleteFunc(slices.Clone(b.Records), func(rec RelayRecord) bool { return done[rec.ID] || shards[rec.shard].parks(&rec) })
		if len(left) > 0 {
			out = append(out, &Batch{Partition: b.Partition, Records: left, Owned: b.Owned})
		}
	}
	return out
}

// ack is what one delivery waits for.
type ack struct {
	server  string // that the records were read from
	records []RelayRecord
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
			var all []RelayRecord
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

func recordBytes(r *RelayRecord) int {
	return 512 + len(r.Type) + 2*len(r.Key) + len(r.Subject) + len(r.Source) + len(r.DataSchema) + len(r.Data)
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
