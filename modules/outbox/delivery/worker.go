package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/tracing"
)

// worker delivers to one target. One goroutine makes all decisions and writes them to the database;
// attempts run in goroutines of their own and only report. So two goroutines never decide about one key.
type worker struct {
	d       *Deliverer
	poked   chan struct{}
	results chan result
	ended   context.Context // the target was removed, or the deliverer is to stop
	quit    context.CancelFunc

	mu     sync.Mutex
	target outbox.Subscription
	held   map[int]*lease // by shard
	limit  int            // of attempts under way

	// Only run uses what follows.
	ready    map[string]*queue // by key: events that can be delivered, in order
	order    []string          // keys of ready without an attempt under way, oldest first
	flying   map[string]*flight
	retrying int                      // of flying
	look     lull                     // when to read what is ready
	depth    int                      // how far each shard is read
	ahead    map[int64]*outbox.Record // events that come soon, read from aheadOn
	aheadOn  string
	dueAt    time.Time // when to look for keys whose time has come
	voidAt   time.Time // … and for those whose time cannot be right
	atOnce   int       // how many of them come again together
	unsaved  []result  // not written to the database yet
	saveBy   time.Time // when a stopping worker gives up writing them; zero: attempts are under way
	missed   int       // consecutive attempts that failed
	untold   int       // attempts that failed since a line of the log said so
	toldAt   time.Time
	parked   parkings
	began    time.Time // when the worker began
	took     time.Time // when the target last took an event; zero: not since then
	tookMS   int64     // … by the database's clock, or earlier if that was set back
	recovery *recovery // the last one; nil: none since the worker began
}

// recovery is when a target took an event again, and when it last took one before, by the database's clock.
type recovery struct {
	at       time.Time
	beforeMS int64
}

// parkings counts the keys that were parked since the last line of the log. All keys of a target that was
// away for outbox.webhook.retry_for are parked.
type parkings struct {
	keys    int
	example hold
	toldAt  time.Time
}

// queue has a key's ready events, as far as they were read.
type queue struct {
	lease *lease
	rows  []row
}

// row is a row of outbox_delivery.
type row struct {
	id      int64
	segment int
	replay  bool
	shard   int
	key     string
	held    bool // its key waits
}

// flight is one attempt under way.
type flight struct {
	row
	lease    *lease
	attempts int   // that failed before
	since    int64 // when the first one failed, by the database's clock; 0: none
	idle     int64 // for how long nobody could try it again, in milliseconds
	began    time.Time
	stateMS  int64 // since when the target had its state when it began
	created  int64
	asked    atomic.Bool // its sink has asked whether it may send
}

type result struct {
	*flight
	err error
}

// How many rows of a shard one read returns.
const (
	minDepth = 64
	maxDepth = 4096
)

// maxAhead is how many events are read before their turn.
const maxAhead = 128

func newWorker(d *Deliverer, s outbox.Subscription) *worker {
	w := &worker{
		d: d, target: s, poked: make(chan struct{}, 1), results: make(chan result, maxOfTarget),
		ready: map[string]*queue{}, flying: map[string]*flight{}, depth: minDepth, atOnce: keysAtOnce, began: d.now(),
	}
	w.ended, w.quit = context.WithCancel(d.stop)
	return w
}

// assign gives the worker what the last tick found.
func (w *worker) assign(s outbox.Subscription, list []*lease, limit int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target, w.limit, w.held = s, limit, map[int]*lease{}
	for _, l := range list {
		w.held[l.shard] = l
	}
	poke(w.poked)
}

func (w *worker) leases() []*lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.held))
}

func (w *worker) subscription() outbox.Subscription {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.target
}

// assigned returns the leases that this worker keeps, and the rest of what assign set.
func (w *worker) assigned() (held map[int]*lease, s outbox.Subscription, limit int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	held = maps.Clone(w.held)
	maps.DeleteFunc(held, func(_ int, l *lease) bool { return l.leaving.Load() || l.lost.Load() })
	return held, w.target, w.limit
}

func (w *worker) run() {
	defer w.d.worked(w)
	for wait := busyPoll; ; {
		busy := w.once()
		if w.ended.Err() != nil && len(w.flying) == 0 {
			w.tellParked(true)
			return
		}
		if wait = min(2*wait, idlePoll); busy {
			wait = busyPoll
		}
		pause, all := wait, true
		if left, put := w.look.left(w.d.now()); put && left < wait {
			pause, all = left, false
		}
		timer := time.NewTimer(pause)
		stopped := w.ended.Done()
		if w.ended.Err() != nil {
			stopped = nil // it waits for attempts alone
		}
		select {
		case r := <-w.results:
			w.unsaved = append(w.unsaved, r)
		case <-w.poked:
		case <-stopped:
		case <-timer.C:
			if all {
				w.dueAt = time.Time{}
			}
		}
		timer.Stop()
	}
}

// once saves what attempts have reported and begins new ones. It reports whether there was anything
// to do.
func (w *worker) once() (busy bool) {
	w.look.put = false
	w.tellParked(false)
	for more := true; more; {
		select {
		case r := <-w.results:
			w.unsaved = append(w.unsaved, r)
		default:
			more = false
		}
	}
	if len(w.unsaved) > 0 {
		busy = true
		if err := w.save(); err != nil {
			if w.d.abandon.Err() == nil {
				w.d.failed(w, err)
			}
			if errors.Is(err, errOtherServer) || w.d.abandon.Err() != nil || w.lateToSave() {
				w.forget()
			}
			retry.Sleep(w.d.abandon, 100*time.Millisecond)
			return true
		}
	}
	w.forgetLost()
	err := w.comeAtOnce()
	if w.ended.Err() != nil || !w.d.until.HoldsAt(w.d.now()) {
		return busy
	}
	if err == nil {
		err = w.begin(&busy)
	}
	if err != nil && w.ended.Err() == nil {
		w.d.failed(w, err)
		retry.Sleep(w.ended, 100*time.Millisecond)
	}
	if err == nil {
		w.d.worked(w)
	}
	return busy
}

// comeAtOnce ends the pauses of keys that were held while the target took nothing: their pauses have grown with its
// outage, up to lastPause. It does so once for each lease, since one may be lost in the moment of the recovery and come
// back, or come later. Between some keys and the next, events are delivered. The keys come no faster than others that
// are tried again: see begin.
func (w *worker) comeAtOnce() error {
	shards := map[*lease][]int{}
	for _, l := range w.leases() {
		if l.recovery != w.recovery {
			shards[l] = []int{l.shard}
		}
	}
	if len(shards) == 0 || w.recovery == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.d.abandon, 10*time.Second)
	defer cancel()
	more := false
	err := whereOwned(ctx, w.d, w.subscription().ID, shards,
		func(ctx context.Context, tx database.Tx, target int, shards []int) (err error) {
			more, err = w.d.endPauses(ctx, tx, target, shards, *w.recovery, w.atOnce)
			return err
		})
	if w.adapt(err); err != nil {
		return err
	}
	w.dueAt = time.Time{}
	if more {
		poke(w.poked)
		return nil
	}
	for l := range shards {
		l.recovery = w.recovery
	}
	return nil
}

// adapt follows what the database can do in the time that it has. With a fixed number a slow one would begin with the
// same keys for ever, and nothing would be delivered.
func (w *worker) adapt(err error) {
	if err != nil {
		w.atOnce = max(w.atOnce/2, fewAtOnce)
	} else {
		w.atOnce = min(w.atOnce+fewAtOnce, keysAtOnce)
	}
}

// lateToSave reports whether a stopping worker has tried for long enough to save its results. The time
// begins when all attempts have reported.
func (w *worker) lateToSave() bool {
	if w.ended.Err() == nil || len(w.unsaved) < len(w.flying) {
		return false
	}
	now := w.d.now()
	if w.saveBy.IsZero() {
		w.saveBy = now.Add(saveTimeout)
	}
	return !now.Before(w.saveBy)
}

// forget drops what was read from another database server, and results that cannot be saved.
func (w *worker) forget() {
	taken := 0
	for _, r := range w.unsaved {
		w.landed(r.flight)
		if r.err == nil {
			taken++
		}
	}
	if taken > 0 {
		w.d.log.Warn("deliveries_not_recorded", zap.String("target", w.subscription().Name), zap.Int("events", taken),
			zap.String("hint", "the target took these events, and gets them again"))
	}
	w.unsaved, w.order, w.ahead = nil, nil, nil
	clear(w.ready)
	poke(w.d.leases)
}

// forgetLost drops the events of places that are no longer this deliverer's.
func (w *worker) forgetLost() {
	lost := false
	for key, q := range w.ready {
		if q.lease.lost.Load() {
			delete(w.ready, key)
			lost = true
		}
	}
	if lost {
		w.order = slices.DeleteFunc(w.order, func(key string) bool { return w.ready[key] == nil })
	}
}

// landed says that an attempt is over.
func (w *worker) landed(f *flight) {
	delete(w.flying, f.key)
	if f.held {
		w.retrying--
	}
	if f.lease.flying.Add(-1); f.lease.leaving.Load() {
		poke(w.d.leases)
	}
}

// begin begins as many attempts as the limits allow: at most half of them for keys that failed
// before, so that those leave room for the others.
func (w *worker) begin(busy *bool) error {
	held, s, limit := w.assigned()
	if !s.Active() || len(held) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.ended, 10*time.Second)
	defer cancel()
	if now := w.d.now(); !now.Before(w.voidAt) {
		server, shards := w.d.server.Load(), slices.Collect(maps.Keys(held))
		if err := w.d.voidPauses(ctx, server, s.ID, shards); err != nil {
			return err
		}
		w.voidAt = now.Add(voidEvery)
		if p, ok := w.d.sinks[s.Kind].(Patient); ok {
			err := w.d.unparkPointless(ctx, server, s.ID, shards, p.Life(), w.atOnce)
			if w.adapt(err); err != nil {
				return err // events are delivered before it is tried again
			}
		}
	}
	var chosen []*flight
	if free := min(limit/2-w.retrying, limit-len(w.flying)); free > 0 && !w.d.now().Before(w.dueAt) {
		due, err := w.due(ctx, held, free)
		if err != nil {
			return err
		}
		chosen = due
		w.dueAt = w.d.now().Add(busyPoll)
		if len(due) == free {
			w.dueAt = time.Time{}
		}
	}
	free := limit - len(w.flying) - len(chosen)
	if free > 0 && len(w.order) < free && w.look.due(w.d.now()) {
		if err := w.read(ctx, held); err != nil {
			return err
		}
	}
	for free > 0 && len(w.order) > 0 {
		key := w.order[0]
		w.order = w.order[1:]
		q := w.ready[key]
		if q == nil || w.flying[key] != nil || held[q.lease.shard] != q.lease {
			continue
		}
		chosen = append(chosen, &flight{row: q.rows[0], lease: q.lease})
		free--
	}
	if len(chosen) == 0 {
		return nil
	}
	*busy = true
	records, err := w.records(ctx, chosen)
	if err != nil {
		for _, f := range chosen { // back to the front
			if !f.held {
				w.order = append([]string{f.key}, w.order...)
			}
		}
		return err
	}
	for _, f := range chosen {
		w.send(s, f, records[f.id])
	}
	return nil
}

// records returns the events of attempts. If it must read any, it also reads those that come soon.
func (w *worker) records(ctx context.Context, chosen []*flight) (map[int64]*outbox.Record, error) {
	server := w.d.server.Load()
	if w.aheadOn != server {
		w.ahead, w.aheadOn = nil, server
	}
	if !slices.ContainsFunc(chosen, func(f *flight) bool { return w.ahead[f.id] == nil }) {
		return w.ahead, nil
	}
	wanted := slices.Clone(chosen)
	add := func(r row) {
		if len(wanted) < len(chosen)+maxAhead {
			wanted = append(wanted, &flight{row: r})
		}
	}
	for _, f := range chosen {
		if q := w.ready[f.key]; !f.held && q != nil && len(q.rows) > 1 {
			add(q.rows[1])
		}
	}
	for _, key := range w.order {
		if q := w.ready[key]; q != nil {
			add(q.rows[0])
		}
	}
	records, err := w.d.records(ctx, server, wanted)
	if err == nil {
		w.ahead = records
	}
	return records, err
}

// send begins one attempt.
func (w *worker) send(s outbox.Subscription, f *flight, r *outbox.Record) {
	f.lease.flying.Add(1)
	f.began = w.d.now()
	w.flying[f.key] = f
	if f.held {
		w.retrying++
	}
	if f.lease.leaving.Load() { // the tick may not have seen this attempt
		w.unsaved = append(w.unsaved, result{f, ErrNotOwned})
		poke(w.poked)
		return
	}
	if r == nil { // its target was removed
		w.unsaved = append(w.unsaved, result{f, &Dropped{errors.New("the event is gone")}})
		poke(w.poked)
		return
	}
	event := *r
	event.Replay = f.replay // the record may have been read for a delivery before
	f.stateMS, f.created = s.Since.UnixMilli(), r.CreatedMS
	attempt := Attempt{Number: f.attempts + 1, Now: time.UnixMilli(w.d.databaseNow()).UTC(), Owned: func() bool {
		f.asked.Store(true) // first: when the worker ends, attempts that have not asked are cut off
		return w.d.until.HoldsAt(w.d.now()) && !f.lease.lost.Load() && w.ended.Err() == nil
	}}
	go func() {
		w.results <- result{f, w.attempt(s, event, attempt, &f.asked)}
	}()
}

// attempt makes one attempt. asked says whether its sink has asked if the event may be sent.
func (w *worker) attempt(to outbox.Subscription, r outbox.Record, a Attempt, asked *atomic.Bool) (err error) {
	sink, timeout := w.d.sinks[to.Kind], time.Minute
	if p, ok := sink.(Patient); ok {
		timeout = p.AttemptTimeout()
	}
	ctx, cancel := context.WithTimeout(w.d.abandon, timeout)
	defer cancel()
	var cut atomic.Bool
	defer context.AfterFunc(w.ended, func() {
		if !asked.Load() {
			cut.Store(true)
			cancel()
		}
	})()
	ctx, span := w.d.tracer.Continue(ctx, r.TraceParent, "send "+to.Name)
	if span.Recorded() {
		describe(span, to, r, a)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the sink panicked: %v", p)
		}
		if cut.Load() && !final(err) {
			err = ErrNotOwned
		}
		failed(span, err)
		span.End()
	}()
	return sink.Deliver(ctx, to, r, a)
}

// final reports whether an error decides about the event or its target.
func final(err error) bool {
	return err == nil || is[*Refused](err) || is[*Gone](err) || is[*Dropped](err)
}

// is reports whether an error is, or wraps, one of a type.
func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// describe sets the attributes of a span, by the semantic conventions for messages.
func describe(span tracing.Span, to outbox.Subscription, r outbox.Record, a Attempt) {
	span.Set("messaging.system", to.Kind)
	span.Set("messaging.destination.name", to.Name)
	span.Set("messaging.operation.name", "send")
	span.Set("messaging.operation.type", "send")
	span.Set("messaging.message.id", r.EventID)
	span.Set("authctl.attempt", a.Number)
}

// failed says why an attempt failed, but never in the words of a receiver, which may hold an address.
func failed(span tracing.Span, err error) {
	switch {
	case err == nil:
	case is[*Dropped](err):
		span.Set("authctl.outcome", "dropped")
	case is[*Refused](err):
		span.Fail("refused for good")
	case is[*Gone](err):
		span.Fail("the target takes nothing any more")
	case errors.Is(err, ErrNotOwned):
		span.Fail("not sent: the lease had ended")
	default:
		span.Fail("not taken; it is tried again")
	}
}

// read fills the queues with ready events, and sets those of held keys aside.
func (w *worker) read(ctx context.Context, held map[int]*lease) error {
	rows, err := w.d.readyRows(ctx, w.d.server.Load(), w.subscription().ID, slices.Collect(maps.Keys(held)), w.depth)
	if err != nil {
		return err
	}
	w.look.done(w.d.now(), len(rows) > 0)
	perShard := map[int]int{}
	full := false
	aside := map[*lease][]int64{}
	ready, order := map[string]*queue{}, []string{}
	for _, r := range rows {
		if perShard[r.shard]++; perShard[r.shard] == w.depth {
			full = true
		}
		l := held[r.shard]
		f := w.flying[r.key]
		if r.held || f != nil && f.held {
			aside[l] = append(aside[l], r.id)
			continue
		}
		q := ready[r.key]
		if q == nil {
			q = &queue{lease: l}
			ready[r.key] = q
			if f == nil {
				order = append(order, r.key)
			}
		}
		q.rows = append(q.rows, r)
	}
	w.ready, w.order = ready, order
	if full && len(order) < maxOfTarget && w.depth < maxDepth { // much of it is of few keys, or under way
		w.depth *= 2
	} else {
		w.depth = minDepth
	}
	p, patient := w.d.sinks[w.subscription().Kind].(Patient)
	return whereOwned(ctx, w.d, w.subscription().ID, aside,
		func(ctx context.Context, tx database.Tx, target int, ids []int64) error {
			if err := markHeld(ctx, tx, target, ids); err != nil || !patient {
				return err
			}
			return w.d.unparkFor(ctx, tx, target, ids, p.Life())
		})
}

// lull spaces looks that find nothing. Every event of the log wakes all targets, and most want few of
// them: the first look comes at once, and those that follow at most every longestLull.
type lull struct {
	pause time.Duration
	next  time.Time
	put   bool // a look was put off
}

func (l *lull) due(now time.Time) bool {
	l.put = now.Before(l.next)
	return !l.put
}

func (l *lull) done(now time.Time, found bool) {
	l.pause = min(max(2*l.pause, shortestLull), longestLull)
	if found {
		l.pause = 0
	}
	l.next = now.Add(l.pause)
}

// left is how long a look that was put off waits, if one was.
func (l *lull) left(now time.Time) (time.Duration, bool) { return max(0, l.next.Sub(now)), l.put }

// due chooses held keys whose time has come.
func (w *worker) due(ctx context.Context, held map[int]*lease, most int) (out []*flight, err error) {
	id := w.subscription().ID
	list, err := w.d.dueKeys(ctx, w.d.server.Load(), id, slices.Collect(maps.Keys(held)), most+w.retrying)
	if err != nil {
		return nil, err
	}
	empty := map[*lease][]string{}
	for _, k := range list {
		switch {
		case w.flying[k.key] != nil:
		case k.id == 0:
			empty[held[k.shard]] = append(empty[held[k.shard]], k.key)
		case len(out) < most:
			f := &flight{row: row{id: k.id, segment: k.segment, replay: k.replay, shard: k.shard, key: k.key,
				held: true}, lease: held[k.shard]}
			if k.event == k.id {
				f.attempts, f.since = k.attempts, k.since
				if k.next > 0 {
					f.idle = max(0, w.d.databaseAt(w.began)-k.next)
				}
			}
			out = append(out, f)
		}
	}
	return out, whereOwned(ctx, w.d, id, empty, forgetKeys)
}

// save writes the results of attempts, in one transaction, and then decides what comes next.
func (w *worker) save() error {
	target := w.subscription()
	_, patient := w.d.sinks[target.Kind].(Patient)
	clock, at := w.d.clock.Load(), w.d.now()
	now := clock.on(at)
	w.tookMS = min(w.tookMS, clock.on(w.took))
	out := outcome{target: target.ID, now: now, patient: patient}
	takes := slices.ContainsFunc(w.unsaved, func(r result) bool { return r.err == nil })
	// While the target takes some events, the pauses of those that it does not take cost no statement.
	if takes && w.missed > 0 && at.Sub(cmp.Or(w.took, w.began)) >= outagePauses*w.d.cfg.Pause {
		w.recovery = &recovery{at, w.tookMS}
	}
	for _, r := range w.unsaved {
		gone, isGone := errors.AsType[*Gone](r.err)
		switch {
		case r.err == nil, is[*Dropped](r.err):
			out.done = append(out.done, r.flight)
		case errors.Is(r.err, ErrNotOwned), w.d.abandon.Err() != nil:
			// The result is not known. The event is tried again, here or elsewhere.
		case isGone:
			if out.gone == nil || r.stateMS > out.goneMS {
				out.gone, out.goneMS = gone.Err, r.stateMS
			}
		default:
			h := hold{flight: r.flight, err: r.err, refused: is[*Refused](r.err)}
			attempts := r.attempts
			if end := w.recovery; end != nil && r.began.Before(end.at) && r.since >= end.beforeMS {
				attempts = 0 // its pauses have grown with the outage, too
			}
			h.next = now + w.d.pause(attempts).Milliseconds()
			if later, ok := errors.AsType[*Later](r.err); ok && later.After > 0 {
				h.asked = now + min(later.After, longestAsk).Milliseconds()
				h.next = max(h.next, h.asked)
			}
			if q := w.ready[r.key]; q != nil {
				for _, waits := range q.rows {
					h.ids = append(h.ids, waits.id)
				}
			}
			if !slices.Contains(h.ids, r.id) {
				h.ids = append(h.ids, r.id)
			}
			out.holds = append(out.holds, h)
		}
	}
	ctx, cancel := context.WithTimeout(w.d.abandon, 10*time.Second)
	defer cancel()
	if err := w.d.record(ctx, w.d.server.Load(), &out); err != nil {
		return err
	}
	unsaved := w.unsaved
	w.unsaved = nil
	for _, r := range unsaved {
		w.landed(r.flight)
		w.next(r)
	}
	for _, h := range out.holds {
		delete(w.ready, h.key) // set aside, or no longer ours
	}
	if takes {
		w.took, w.tookMS = at, now
	}
	w.report(unsaved, out)
	return nil
}

// next puts the key of a finished attempt back into the order, if it has more ready events.
func (w *worker) next(r result) {
	if r.held {
		w.dueAt = time.Time{} // the key's next event is due
		return
	}
	q := w.ready[r.key]
	if q == nil {
		return
	}
	if r.err == nil || is[*Dropped](r.err) {
		q.rows = slices.DeleteFunc(q.rows, func(d row) bool { return d.id == r.id })
	}
	if len(q.rows) == 0 {
		delete(w.ready, r.key)
		return
	}
	w.order = append(w.order, r.key)
}

// report counts and logs what was saved.
func (w *worker) report(results []result, out outcome) {
	s := w.subscription()
	now := w.d.databaseNow()
	parked := map[*flight]bool{}
	for _, h := range out.holds {
		if h.park && h.saved {
			if w.parked.keys == 0 {
				w.parked.example = h
			}
			w.parked.keys++
			parked[h.flight] = true
		}
	}
	for _, r := range results {
		switch {
		case r.err == nil:
			w.missed = 0
			w.d.met.delivered.WithLabelValues(s.Name).Inc()
			if !r.replay {
				w.d.met.latency.WithLabelValues(s.Name).Observe(float64(max(0, now-r.created)) / 1000)
			}
		case is[*Dropped](r.err):
			w.d.met.dropped.WithLabelValues(s.Name).Inc()
		case errors.Is(r.err, ErrNotOwned), w.d.abandon.Err() != nil:
		default:
			kind := "retry"
			if is[*Refused](r.err) {
				kind = "refused"
			}
			w.d.met.failed.WithLabelValues(s.Name, kind).Inc()
			w.missed++
			if parked[r.flight] || is[*Gone](r.err) { // that its key is parked, or its target paused, is told below
				continue
			}
			w.untold++
			if w.d.now().Sub(w.toldAt) >= tellEvery {
				w.d.log.Warn("delivery_failed", zap.String("target", s.Name), zap.Int("attempts", r.attempts+1),
					zap.Int64("id", r.id), zap.Int("failed_lately", w.untold), zap.Error(r.err),
					zap.String("hint", "it is tried again, and the later events of its key wait"))
				w.toldAt, w.untold = w.d.now(), 0
			}
		}
	}
	w.tellParked(false)
	if out.paused {
		w.d.log.Error("target_gone", zap.String("target", s.Name), zap.Error(out.gone),
			zap.String("hint", "it says that it takes nothing any more and is paused; decide with: "+
				"authctl outbox target"))
		w.mu.Lock()
		w.target.State = "paused"
		w.mu.Unlock()
	}
}

// tellParked logs how many keys were parked since the last line: at once the first time, then once in
// tellEvery. The last line may come earlier.
func (w *worker) tellParked(last bool) {
	now := w.d.now()
	if w.parked.keys == 0 || !last && now.Sub(w.parked.toldAt) < tellEvery {
		return
	}
	h := w.parked.example
	w.d.log.Error("deliverer_keys_parked", zap.String("target", w.subscription().Name), zap.Int("keys", w.parked.keys),
		zap.String("key", h.key), zap.Int64("id", h.id), zap.Int("attempts", h.attempts+1), zap.Error(h.err),
		zap.String("hint", "the target did not take an event of each of these keys (one is shown), and their later "+
			"events wait; decide with: authctl outbox parked"))
	w.parked = parkings{toldAt: now}
}

// pause is how long to wait after a failed attempt: it doubles with each, and its second half is
// random, so that keys that failed together do not come back together.
func (d *Deliverer) pause(attempts int) time.Duration {
	full := min(d.cfg.Pause<<min(attempts, 20), lastPause)
	return full/2 + rand.N(full/2+1)
}
