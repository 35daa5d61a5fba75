package password

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/metric"
	"github.com/toppira/authctl/platform/tracing"
)

// ErrOverloaded says that no worker became free in time. It is decided before any hashing
// is spent on the request. The fault returned tells when to come back.
var ErrOverloaded = fault.New(fault.Unavailable, "overloaded", "Too many sign-ins at once")

// ErrClosed is returned for work handed to a closed pool.
var ErrClosed = errors.New("hashing pool is closed")

// Pool computes hashes without slowing anything else in the process.
//
// A password hash takes a core for a tenth of a second, which is a hundred times what any
// other request takes. Left to goroutines, sixty sign-ins at once starve everything else.
// So a fixed number of workers do all hashing, each on a thread of its own at the lowest
// priority the platform has: whatever else wants to run, runs first, and hashing takes what
// is left.
//
// Work waits in a queue that is bounded in length and in time. While the oldest has waited
// for less than half of the longest wait, the oldest is next, as anyone would expect. Beyond
// that the pool cannot keep up, many who wait will be turned away whatever the order, and
// the newest is next: someone is then served at once instead of everyone after the longest
// wait, and a person who arrives during a flood does not wait for all of it. Those who have waited
// too long are refused without any work done for them. Refusing them late is on purpose: a client
// that tries again at once would otherwise cost more than it saves. Those who came together are not
// refused together: see [Pool.patience]. For the same reason those for whom there is no place are
// held for a moment: see [Pool.hold].
//
// Registrations have a queue and a share of their own. While sign-ins wait too, they get one
// turn in four, and the places that those leave free, at least a quarter; alone they get everything.
//
// What a hash needs, such as the account to compare with, is fetched when its turn is near:
// as many jobs as there are workers are made ready ahead, so that no worker waits for it and
// nothing is fetched for those who will be turned away.
type Pool struct {
	maxQueue int
	maxWait  time.Duration
	workers  int
	now      func() time.Time

	mu     sync.Mutex
	wake   *sync.Cond
	queues [purposes]list.List // of *job, oldest first, whose turn is not near
	turn   int                 // of those that were given while both purposes waited
	near   int                 // jobs whose turn is near, ready or not; at most as many as workers
	ready  list.List           // of *job, those of them that a worker can begin
	busy   int
	held   int // those for whom there was no place; at most maxQueue
	closed bool
	smooth time.Duration // moving average of what a job takes
	done   sync.WaitGroup

	shortHold time.Duration // least time that one of them is held
	closing   chan struct{}

	waited   prometheus.Histogram
	took     prometheus.Histogram
	rejected *prometheus.CounterVec
}

// purpose is what work is for.
type purpose int

const (
	signIn purpose = iota
	registration
	purposes
)

// registrationShare is one in how many turns a registration gets while sign-ins wait, and which
// part of the queue it may always take.
const registrationShare = 4

type job struct {
	ctx  context.Context // of the request, for its trace alone
	run  func() error
	at   time.Time
	list *list.List    // where it waits, nil when it does not; guarded by Pool.mu
	elem *list.Element // its place there
	near chan struct{} // closed when its turn is near
	done chan struct{} // closed when it has run, or will not
	err  error
}

// NewPool starts the workers. Metrics are registered with reg when it is not nil. Close
// ends the workers.
func NewPool(cfg Config, reg prometheus.Registerer) (*Pool, error) {
	cfg = cfg.withDefaults()
	p := &Pool{
		maxQueue: cfg.Queue,
		maxWait:  cfg.QueueWait,
		workers:  cfg.workers(),
		now:      time.Now,

		shortHold: time.Second,
		closing:   make(chan struct{}),

		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authctl_password_hash_wait_seconds", Help: "How long work waited for a hashing worker.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authctl_password_hash_seconds", Help: "How long hashing took on the worker.",
			Buckets: []float64{.001, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authctl_password_hash_rejected_total", Help: "Work turned away before hashing, by reason.",
		}, []string{"reason"}),
	}
	p.wake = sync.NewCond(&p.mu)
	err := metric.Register(reg, "hashing metrics", p.waited, p.took, p.rejected,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_password_hash_queue", Help: "Work waiting for a hashing worker.",
		}, func() float64 { return float64(p.waiting()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_password_hash_workers", Help: "Hashing workers.",
		}, func() float64 { return float64(p.workers) }))
	if err != nil {
		return nil, err
	}
	for _, reason := range []string{"full", "wait", "left"} {
		p.rejected.WithLabelValues(reason)
	}
	for range p.workers {
		p.done.Go(p.work)
	}
	return p, nil
}

// waiting is how many jobs no worker has begun.
func (p *Pool) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queues[signIn].Len() + p.queues[registration].Len() + p.near
}

// do calls prepare, on the goroutine of the caller, when a worker is about to be free, then
// runs the function on a worker and returns its error. It returns [ErrOverloaded] when no
// worker became free in time, the error of prepare, and the error of ctx when that ended
// first; the function has then not been started, unless ctx ended while it ran: then it
// finishes unobserved.
func (p *Pool) do(ctx context.Context, why purpose, prepare, run func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{ctx: ctx, run: run, at: p.now(), near: make(chan struct{}), done: make(chan struct{})}
	if err := p.enqueue(j, why); err != nil {
		p.hold(ctx)
		return err
	}
	timer := time.NewTimer(p.patience())
	defer timer.Stop()
	if err := p.await(ctx, timer, j, j.near); err != nil {
		return err
	}
	if j.err != nil {
		return j.err
	}
	if err := p.makeReady(j, prepare); err != nil {
		return err
	}
	if err := p.await(ctx, timer, j, j.done); err != nil {
		return err
	}
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// patience is how long one job waits: between four fifths of the longest wait and all of it, by chance.
// Hundreds that came at once would otherwise be refused at once, and the same clients would be back at
// once. For tens of milliseconds every other request would wait behind their refusals and their new
// attempts, in this process and in Redis.
func (p *Pool) patience() time.Duration { return p.maxWait - rand.N(p.maxWait/5+1) }

// hold delays a refusal by one to two seconds. Clients that try again at once would otherwise take all of
// the processor, since whatever refuses them has a higher priority than hashing.
func (p *Pool) hold(ctx context.Context) {
	p.mu.Lock()
	full := p.held == p.maxQueue
	if !full {
		p.held++
	}
	p.mu.Unlock()
	if full {
		return
	}
	timer := time.NewTimer(p.shortHold + rand.N(p.shortHold))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-p.closing:
	}
	p.mu.Lock()
	p.held--
	p.mu.Unlock()
}

func (p *Pool) enqueue(j *job, why purpose) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	idle, places := p.workers-p.busy, p.maxQueue
	if why == registration {
		places = max(1, places/registrationShare, places-p.queues[signIn].Len())
	}
	if p.queues[why].Len()+p.near-idle >= places {
		p.rejected.WithLabelValues("full").Inc()
		return p.overloaded()
	}
	p.wait(j, &p.queues[why])
	p.callNear()
	return nil
}

// makeReady lets a worker have the job, whose turn is near, unless it cannot be prepared.
func (p *Pool) makeReady(j *job, prepare func() error) error {
	prepared := false
	defer func() { // a panic must not keep the place
		if !prepared {
			p.mu.Lock()
			p.near--
			p.callNear()
			p.mu.Unlock()
		}
	}()
	if err := prepare(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	prepared = true
	p.wait(j, &p.ready)
	p.wake.Signal()
	return nil
}

// await waits for the event. The error is why the job was withdrawn before; nil means that it
// no longer waits for anything else.
func (p *Pool) await(ctx context.Context, timer *time.Timer, j *job, event <-chan struct{}) error {
	select {
	case <-event:
	case <-timer.C:
		if err := p.withdraw(j); err != nil {
			p.rejected.WithLabelValues("wait").Inc()
			return err
		}
	case <-ctx.Done():
		if err := p.withdraw(j); err != nil {
			p.rejected.WithLabelValues("left").Inc()
			return ctx.Err()
		}
	}
	return nil
}

// wait puts the job at the end of a list. The caller holds the lock.
func (p *Pool) wait(j *job, at *list.List) { j.list, j.elem = at, at.PushBack(j) }

// take removes the job from where it waits. The caller holds the lock.
func (p *Pool) take(j *job) {
	if j.list == &p.ready {
		p.near--
	}
	j.list.Remove(j.elem)
	j.list, j.elem = nil, nil
}

// callNear lets those get ready whose turn is near. The caller holds the lock.
func (p *Pool) callNear() {
	for p.near < p.workers {
		queue := p.nextQueue()
		e := queue.Front()
		if e == nil {
			return
		}
		if p.late(e) {
			e = queue.Back()
		}
		j := e.Value.(*job)
		p.take(j)
		p.near++
		close(j.near)
	}
}

// late reports whether a job has waited for more than half of the longest wait.
func (p *Pool) late(e *list.Element) bool { return p.now().Sub(e.Value.(*job).at) > p.maxWait/2 }

// behind reports whether the oldest sign-in is late: the workers cannot keep up.
func (p *Pool) behind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := p.queues[signIn].Front()
	return oldest != nil && p.late(oldest)
}

// nextQueue is the queue whose turn it is, an empty one when nobody waits. The caller holds the lock.
func (p *Pool) nextQueue() *list.List {
	signIns, registrations := &p.queues[signIn], &p.queues[registration]
	if signIns.Len() == 0 {
		return registrations
	}
	if registrations.Len() > 0 {
		if p.turn = (p.turn + 1) % registrationShare; p.turn == 0 {
			return registrations
		}
	}
	return signIns
}

// withdraw takes the job out of where it waits and says so with an error; nil means that it
// was taken from there already.
func (p *Pool) withdraw(j *job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.list == nil {
		return nil
	}
	err := p.overloaded()
	p.take(j)
	p.callNear()
	return err
}

// overloaded is the refusal, with the time in which the queue can be worked off and up to
// half as much more, so that those refused together do not come back together.
func (p *Pool) overloaded() error {
	after := time.Duration(p.queues[signIn].Len()+p.queues[registration].Len()) * p.smooth / time.Duration(p.workers)
	after = min(max(after, time.Second), 20*time.Second)
	return ErrOverloaded.After((after + rand.N(after/2+time.Second)).Round(time.Second))
}

// Overloaded is [ErrOverloaded] with the time after which to try again.
func (p *Pool) Overloaded() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.overloaded()
}

// closeWait is how long Close waits for hashes that are being computed. At the highest cost one takes
// minutes, but its caller has been answered by then.
const closeWait = time.Second

// Close turns away what waits, waits a moment for what runs, and ends the workers.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		close(p.closing)
	}
	p.closed = true
	for k := range p.queues {
		for e := p.queues[k].Front(); e != nil; e = p.queues[k].Front() {
			j := e.Value.(*job)
			p.take(j)
			j.err = ErrClosed
			close(j.near)
		}
	}
	for e := p.ready.Front(); e != nil; e = p.ready.Front() {
		j := e.Value.(*job)
		p.take(j)
		j.err = ErrClosed
		close(j.done)
	}
	p.mu.Unlock()
	p.wake.Broadcast()
	ended := make(chan struct{})
	go func() { p.done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeWait):
	}
}

func (p *Pool) work() {
	// Never unlocked: the thread keeps its low priority for life and ends with the worker.
	runtime.LockOSThread()
	lowerPriority()
	for {
		j := p.next()
		if j == nil {
			return
		}
		start := p.now()
		tracing.Past(j.ctx, "password hash wait", j.at, start)
		tracing.Observe(j.ctx, p.waited, start.Sub(j.at).Seconds())
		j.err = runSafely(j.run)
		end := p.now()
		took := end.Sub(start)
		tracing.Past(j.ctx, "password hash", start, end)
		tracing.Observe(j.ctx, p.took, took.Seconds())
		p.mu.Lock()
		p.busy--
		p.smooth += (took - p.smooth) / 8
		p.mu.Unlock()
		close(j.done)
	}
}

func (p *Pool) next() *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ready.Len() == 0 {
		if p.closed {
			return nil
		}
		p.wake.Wait()
	}
	j := p.ready.Front().Value.(*job)
	p.take(j)
	p.busy++
	p.callNear()
	return j
}

// runSafely makes an error of a panic: on a worker it would otherwise end the process, far
// from the request's own recovery.
func runSafely(run func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("hash password: panic: %v", r)
		}
	}()
	return run()
}
