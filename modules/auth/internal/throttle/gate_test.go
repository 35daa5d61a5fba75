package throttle

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAWaitingAttemptNoticesTheEndOfAnotherProcess(t *testing.T) {
	t.Parallel()
	w := onRedis(t)
	here, there := w.node(defaults(t)), w.node(defaults(t))
	here.gates.patience, here.gates.recheckEvery = time.Minute, time.Millisecond
	a := Attempt{Account: "alice", Address: address(1)}
	var inFlight []*Ticket
	for range 5 {
		ticket, err := there.Begin(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		inFlight = append(inFlight, ticket)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := here.Begin(context.Background(), a); err != nil {
			t.Errorf("refused though an attempt of another process ended: %v", err)
		}
	})
	there.Succeeded(t.Context(), inFlight[0], ownerOf("alice"))
	wg.Wait()
}

func TestThoseWhoWaitHearAtOnceThatADelayHasBegun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.node(defaults(t))
	l.gates.patience, l.gates.recheckEvery = time.Minute, time.Hour
	a := Attempt{Account: "alice", Address: address(1)}
	var inFlight []*Ticket
	for range 5 {
		ticket, err := l.Begin(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		inFlight = append(inFlight, ticket)
	}
	var waiters sync.WaitGroup
	for range 100 {
		waiters.Go(func() {
			if _, err := l.Begin(context.Background(), a); err == nil {
				t.Error("not refused after five failures")
			}
		})
	}
	for l.waiting() < 100 {
		time.Sleep(time.Millisecond) // until all of them wait
	}
	for _, ticket := range inFlight {
		l.Failed(t.Context(), ticket)
	}
	waiters.Wait()
	if n := len(l.gates.byID); n != 0 {
		t.Errorf("%d gates remain although nobody waits at them", n)
	}
}

func TestAnAttemptInAHurryWaitsForNoOther(t *testing.T) {
	t.Parallel()
	l := newWorld(t).node(defaults(t))
	l.gates.patience, l.gates.recheckEvery = time.Hour, time.Hour
	a := Attempt{Account: "alice", Address: address(1), Hurry: true}
	for range 5 {
		if _, err := l.Begin(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Begin(t.Context(), a); !errors.Is(err, ErrCrowded) {
		t.Errorf("%v, want ErrCrowded", err)
	}
}

// Above a limit they would take the turns of those who are not, for as long as somebody goes on.
func TestNobodyHurriesForASecondAfterOneInAHurryIsRefused(t *testing.T) {
	t.Parallel()
	w := onRedis(t)
	l := w.node(defaults(t))
	a := Attempt{Account: "alice", Address: address(1), Hurry: true}
	for range 5 {
		ticket, err := l.Begin(t.Context(), a)
		if err != nil || !l.MayHurry() {
			t.Fatalf("%v, and others may hurry: %v", err, l.MayHurry())
		}
		l.Failed(t.Context(), ticket)
	}
	if _, err := l.Begin(t.Context(), a); !errors.Is(err, ErrTooManyAttempts) || l.MayHurry() {
		t.Errorf("%v, and others may hurry: %v", err, l.MayHurry())
	}
	if w.clock.advance(time.Second); !l.MayHurry() {
		t.Error("nobody may hurry after a second")
	}
	if w.clock.advance(-time.Hour); !l.MayHurry() {
		t.Error("nobody may hurry until a clock that was set back has caught up")
	}
	if newWorld(t).node(defaults(t)).MayHurry() {
		t.Error("somebody may hurry where it saves nothing")
	}
}

func (l *Limiter) waiting() int {
	l.gates.mu.Lock()
	defer l.gates.mu.Unlock()
	return l.gates.waiting
}

func TestOnlySoManyWait(t *testing.T) {
	t.Parallel()
	var g gates
	at, entered := id{1}, []*gate{}
	for range maxWaiting {
		e, ok := g.enter(at)
		if !ok {
			t.Fatal("refused although fewer wait than allowed")
		}
		entered = append(entered, e)
	}
	if _, ok := g.enter(id{2}); ok {
		t.Fatal("more attempts wait than allowed")
	}
	g.leave(at, entered[0], false)
	if _, ok := g.enter(id{2}); !ok {
		t.Fatal("refused although one has left")
	}
}

// Each look is a call to Redis, so a crowd at one gate must not multiply the calls.
func TestACrowdLooksNoOftenerThanOneAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gates{patience: 3 * time.Second, recheckEvery: 500 * time.Millisecond}
		var looks atomic.Int64
		var waiters sync.WaitGroup
		for i := range 200 {
			waiters.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // they arrive one after the other
				g.wait(t.Context(), id{1}, func() bool { looks.Add(1); return true })
			})
		}
		waiters.Wait()
		// The last has waited until three seconds after the first 0.2 s.
		if n := looks.Load(); n < 5 || n > 7 {
			t.Errorf("200 attempts that waited for three seconds made %d calls; one alone makes 5 or 6", n)
		}
	})
}
