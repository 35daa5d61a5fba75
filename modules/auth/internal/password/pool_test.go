package password

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// clock is a time that only a test moves.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(0, c.Load()) }

// startPool starts a pool with one worker, which is busy until release is called.
func startPool(t *testing.T, cfg Config) (p *Pool, c *clock, release func()) {
	t.Helper()
	cfg.Workers = 1
	p, err := NewPool(cfg, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c = new(clock)
	p.mu.Lock()
	p.now = c.now
	p.mu.Unlock()
	held, let := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		hold := func() error { close(held); <-let; return nil }
		// On a busy machine an idle thread may not begin within the shortest waits under test.
		for errors.Is(p.do(context.Background(), signIn, nothing, hold), ErrOverloaded) {
		}
	})
	<-held
	release = sync.OnceFunc(func() { close(let); all.Wait() })
	t.Cleanup(func() { release(); p.Close() })
	return p, c, release
}

// queue waits until n jobs wait.
func queue(t *testing.T, p *Pool, n int) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); p.waiting() != n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, want %d", p.waiting(), n)
		}
		time.Sleep(time.Millisecond)
	}
}

// order enqueues four jobs, calls between, and returns the order in which the jobs ran.
func order(t *testing.T, between func(*clock)) []int {
	p, c, release := startPool(t, Config{QueueWait: time.Minute})
	var ran []int // by the only worker
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if err := p.do(t.Context(), signIn, nothing, func() error { ran = append(ran, i); return nil }); err != nil {
				t.Error(err)
			}
		})
		queue(t, p, i+1)
	}
	between(c)
	release()
	all.Wait()
	return ran
}

func TestTheOldestIsNext(t *testing.T) {
	t.Parallel()
	if got := order(t, func(c *clock) { c.Add(int64(29 * time.Second)) }); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("%v", got)
	}
}

func TestTheNewestIsNextWhenTheWaitIsTooLong(t *testing.T) {
	t.Parallel()
	// The first job was next already, so it is ready.
	if got := order(t, func(c *clock) { c.Add(int64(31 * time.Second)) }); !slices.Equal(got, []int{0, 3, 2, 1}) {
		t.Errorf("%v", got)
	}
}

func TestThePoolIsBehindWhileTheOldestSignInIsLate(t *testing.T) {
	t.Parallel()
	p, c, release := startPool(t, Config{QueueWait: time.Minute})
	var all sync.WaitGroup
	for i := range 2 { // the first is next already
		all.Go(func() {
			if err := p.do(t.Context(), signIn, nothing, func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
		queue(t, p, i+1)
	}
	c.Add(int64(30 * time.Second))
	if p.behind() {
		t.Error("behind after half of the longest wait")
	}
	if c.Add(1); !p.behind() {
		t.Error("not behind after more than half of the longest wait")
	}
	release()
	all.Wait()
	if p.behind() {
		t.Error("behind though nobody waits")
	}
}

func TestOneMoreThanTheQueueHoldsIsTurnedAwayUnhashed(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{Queue: 2, QueueWait: time.Minute})
	p.shortHold = time.Millisecond
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() { _ = p.do(t.Context(), signIn, nothing, func() error { return nil }) })
		queue(t, p, i+1)
	}
	var f *fault.Fault
	err := p.do(t.Context(), signIn, nothing, func() error { t.Error("it ran"); return nil })
	if !errors.Is(err, ErrOverloaded) || !errors.As(err, &f) || f.RetryAfter < time.Second ||
		f.RetryAfter > 31*time.Second {
		t.Errorf("%v", err)
	}
	release()
	all.Wait()
	if err := p.do(t.Context(), signIn, nothing, func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestWhoWaitsTooLongIsTurnedAwayUnhashed(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Millisecond})
	err := p.do(t.Context(), signIn, nothing, func() error { t.Error("it ran"); return nil })
	if !errors.Is(err, ErrOverloaded) {
		t.Errorf("%v", err)
	}
	if n := p.waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
	release()
}

func TestWhoLeavesIsForgotten(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := p.do(ctx, signIn, nothing,
			func() error { t.Error("it ran"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	queue(t, p, 1)
	cancel()
	all.Wait()
	queue(t, p, 0)
	release()
}

// Nothing is fetched for who will be turned away, and nothing late.
func TestAsManyAreMadeReadyAsThereAreWorkers(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{Queue: 3, QueueWait: time.Minute})
	ctx, leave := context.WithCancel(t.Context())
	var prepared atomic.Int32
	prepare := func() error { prepared.Add(1); return nil }
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			if err := p.do(ctx, signIn, prepare, func() error { return nil }); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
		queue(t, p, i+1)
	}
	if err := p.do(t.Context(), signIn, prepare, func() error { return nil }); !errors.Is(err, ErrOverloaded) {
		t.Errorf("%v", err)
	}
	p.mu.Lock()
	near := p.near
	p.mu.Unlock()
	for deadline := time.Now().Add(testenv.Patience); prepared.Load() < 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody was prepared")
		}
	}
	if n := prepared.Load(); near != 1 || n != 1 {
		t.Errorf("for one worker %d were called and %d prepared", near, n)
	}
	leave()
	all.Wait()
	release()
	if err := p.do(t.Context(), signIn, prepare, func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestWhatCannotBePreparedKeepsNobodysPlace(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Minute})
	run := func() error { t.Error("it ran"); return nil }
	away := errors.New("away")
	for range 3 {
		if err := p.do(t.Context(), signIn, func() error { return away }, run); !errors.Is(err, away) {
			t.Errorf("%v", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = p.do(t.Context(), signIn, func() error { panic("odd") }, run)
		}()
	}
	queue(t, p, 0)
	release()
	if err := p.do(t.Context(), signIn, nothing, func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCloseTurnsAwayWhatIsBeingPrepared(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Minute})
	var closing sync.WaitGroup
	err := p.do(t.Context(), signIn, func() error {
		closing.Go(p.Close)
		for { // until it has begun
			p.mu.Lock()
			closed := p.closed
			p.mu.Unlock()
			if closed {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
	}, func() error { t.Error("it ran"); return nil })
	if !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	release()
	closing.Wait()
}

func TestThoseRefusedTogetherAreToldDifferentTimes(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{})
	p.mu.Lock()
	p.smooth = 20 * time.Second
	p.queues[signIn].PushBack(&job{})
	told := make(map[time.Duration]bool)
	for range 100 {
		var f *fault.Fault
		if !errors.As(p.overloaded(), &f) {
			t.Fatal("no fault")
		}
		told[f.RetryAfter] = true
	}
	p.queues[signIn].Init()
	p.mu.Unlock()
	if len(told) < 3 {
		t.Errorf("%v", told)
	}
	release()
}

// Otherwise all of a flood would come back at the same moment.
func TestThoseWhoCameTogetherAreNotRefusedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, _, release := startPool(t, Config{Queue: 1000, QueueWait: 5 * time.Second})
		time.AfterFunc(6*time.Second, release) // a job that is not refused would wait for ever
		var mu sync.Mutex
		in := make(map[time.Duration]int) // by tenth of a second
		var all sync.WaitGroup
		start := time.Now()
		for range 1000 {
			all.Go(func() {
				err := p.do(t.Context(), signIn, nothing, nothing)
				after := time.Since(start)
				if !errors.Is(err, ErrOverloaded) || after < 4*time.Second || after > 5*time.Second {
					t.Errorf("%v after %v, want a refusal after 4 to 5 s", err, after)
				}
				mu.Lock()
				defer mu.Unlock()
				in[after.Truncate(100*time.Millisecond)]++
			})
		}
		all.Wait()
		for when, n := range in {
			if n > 200 {
				t.Errorf("%d of 1000 are refused within a tenth of a second after %v", n, when)
			}
		}
	})
}

func TestAPanicFailsOneHashOnly(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: testenv.Patience})
	release()
	if err := p.do(t.Context(), signIn, nothing, func() error {
		panic("odd")
	}); err == nil || !strings.Contains(err.Error(), "panic: odd") {
		t.Errorf("%v", err)
	}
	want := errors.New("its own")
	if err := p.do(t.Context(), signIn, nothing, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCloseTurnsAwayWhatWaitsAndFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Minute})
	var all sync.WaitGroup
	all.Go(func() {
		if err := p.do(t.Context(), signIn, nothing,
			func() error { t.Error("it ran"); return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
	})
	queue(t, p, 1)
	closed := make(chan struct{})
	all.Go(func() { p.Close(); close(closed) })
	queue(t, p, 0)
	select {
	case <-closed:
		t.Error("closed while a hash runs")
	default:
	}
	release()
	<-closed
	all.Wait()
	if err := p.do(t.Context(), signIn, nothing, func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestCloseDoesNotWaitForAHashThatTakesForEver(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{QueueWait: time.Minute}) // its workers are busy until released
	p.Close()
	release()
}

func TestMoreThanTheWorkersNeverRunAtOnce(t *testing.T) {
	t.Parallel()
	p, err := NewPool(Config{Workers: 3, QueueWait: testenv.Patience}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var running, most atomic.Int32
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if err := p.do(t.Context(), signIn, nothing, func() error {
				n := running.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				running.Add(-1)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most.Load() > 3 {
		t.Errorf("%d at once", most.Load())
	}
}

func TestTheMetricsOfThePool(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	p, err := NewPool(Config{Workers: 2, QueueWait: testenv.Patience}, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.do(t.Context(), signIn, nothing, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	want := []string{"authctl_password_hash_queue", "authctl_password_hash_rejected_total",
		"authctl_password_hash_seconds",
		"authctl_password_hash_wait_seconds", "authctl_password_hash_workers"}
	if !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
	if _, err := NewPool(Config{}, reg); err == nil {
		t.Error("registered twice")
	}
	if !strings.Contains(fmt.Sprint(families), "sample_count:1") {
		t.Error("nothing was observed")
	}
}

// Registrations have all places while nobody signs in, and a quarter in any case. They take none from sign-ins.
func TestRegistrationsHaveThePlacesThatSignInsLeave(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ signIns, places int }{{0, 40}, {20, 20}, {39, 10}} {
		p, _, release := startPool(t, Config{Queue: 40, QueueWait: time.Minute})
		p.shortHold = time.Millisecond
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		ask := func(why purpose) {
			waiting := p.waiting()
			all.Go(func() { _ = p.do(ctx, why, nothing, func() error { return nil }) })
			queue(t, p, waiting+1)
		}
		ask(registration) // is next, and waits in no queue
		for range c.signIns {
			ask(signIn)
		}
		for range c.places - 1 {
			ask(registration)
		}
		err := p.do(ctx, registration, nothing, func() error { t.Error("it ran"); return nil })
		if !errors.Is(err, ErrOverloaded) {
			t.Errorf("one registration more than %d, beside %d sign-ins: %v", c.places, c.signIns, err)
		}
		leave()
		all.Wait()
		release()
	}
}

// For whom there is no place is held before the refusal, until they leave or the pool is closed. Of those who come
// in any greater number the rest is refused at once.
func TestARefusalForWantOfAPlaceIsHeld(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{Queue: 2, QueueWait: testenv.Patience})
	p.shortHold = 10 * testenv.Patience
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() { _ = p.do(t.Context(), signIn, nothing, func() error { return nil }) })
		queue(t, p, i+1)
	}
	refused := make(chan error, 2)
	ask := func(ctx context.Context) {
		all.Go(func() { refused <- p.do(ctx, signIn, nothing, func() error { t.Error("it ran"); return nil }) })
	}
	heldAre := func(n int) {
		t.Helper()
		testenv.Eventually(t, "so many are held", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.held == n
		})
	}
	ctx, leave := context.WithCancel(t.Context())
	ask(ctx)
	ask(t.Context())
	heldAre(2)
	if err := p.do(t.Context(), signIn, nothing, func() error { t.Error("it ran"); return nil }); !errors.Is(err, ErrOverloaded) {
		t.Errorf("beside as many as are held: %v", err)
	}
	leave()
	heldAre(1)
	release()
	p.Close()
	all.Wait()
	for range 2 {
		if err := <-refused; !errors.Is(err, ErrOverloaded) {
			t.Errorf("after it was held: %v", err)
		}
	}
}

// A flood of registrations waits in its own queue and gets one turn in four.
func TestSignInsHaveThreeTurnsInFourBesideRegistrations(t *testing.T) {
	t.Parallel()
	p, _, release := startPool(t, Config{Queue: 40, QueueWait: time.Minute})
	var ran []purpose // by the only worker
	var all sync.WaitGroup
	ask := func(why purpose) {
		waiting := p.waiting()
		all.Go(func() {
			if err := p.do(t.Context(), why, nothing, func() error { ran = append(ran, why); return nil }); err != nil {
				t.Error(err)
			}
		})
		queue(t, p, waiting+1)
	}
	for range 10 {
		ask(registration)
	}
	for range 9 {
		ask(signIn)
	}
	release()
	all.Wait()
	// The first registration was ready before any sign-in came. After the last sign-in the
	// registrations get every turn.
	signIns := 0
	for i, why := range ran[1:13] {
		if why == signIn {
			signIns++
		}
		if i%4 == 3 && signIns != 3*(i+1)/4 {
			t.Fatalf("%d sign-ins in %d turns: %v", signIns, i+1, ran)
		}
	}
	if len(ran) != 19 {
		t.Errorf("%d ran, want 19", len(ran))
	}
}
