package throttle

import (
	"context"
	"sync"
	"time"
)

const (
	// patience is how long an attempt waits for those in flight before it is refused.
	patience = 3 * time.Second
	// recheckEvery is how often it tries unasked: other processes do not say when one has ended.
	recheckEvery = time.Second
	// maxWaiting bounds how many wait in one process; more are refused at once.
	maxWaiting = 1024
)

// gates let attempts wait until others of the same account or address have ended.
type gates struct {
	patience, recheckEvery time.Duration

	mu      sync.Mutex
	waiting int
	byID    map[id]*gate
}

type gate struct {
	waiting int
	looked  time.Time     // when somebody last did
	wake    chan struct{} // holds one: the goroutine that takes it looks again
}

// wait calls again, each time an attempt has ended at the id or recheckEvery has passed, until it
// returns false. It gives up when patience or ctx ends, or at once when too many wait.
func (g *gates) wait(ctx context.Context, at id, again func() bool) {
	gate, ok := g.enter(at)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, g.patience)
	defer cancel()
	look := time.NewTicker(g.recheckEvery)
	defer look.Stop()
	news := false
	defer func() { g.leave(at, gate, news) }()
	for !news {
		select {
		case <-gate.wake:
			g.due(gate)
		case <-look.C:
			if !g.due(gate) {
				continue
			}
		case <-ctx.Done():
			return
		}
		// A look that was cut short says nothing, and somebody else has to look.
		news = !again() || ctx.Err() != nil
	}
}

// due reports whether nobody at the gate has looked for recheckEvery, and that somebody does now.
// One look is enough for all: who finds room wakes the next.
func (g *gates) due(gate *gate) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if now.Sub(gate.looked) < g.recheckEvery {
		return false
	}
	gate.looked = now
	return true
}

func (g *gates) finished(at id) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gate := g.byID[at]; gate != nil {
		gate.call()
	}
}

func (g *gates) enter(at id) (*gate, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting >= maxWaiting {
		return nil, false
	}
	entered := g.byID[at]
	if entered == nil {
		if g.byID == nil {
			g.byID = make(map[id]*gate)
		}
		entered = &gate{wake: make(chan struct{}, 1)}
		g.byID[at] = entered
	}
	g.waiting++
	entered.waiting++
	return entered, true
}

// leave wakes the next when there is news: if there was room for one there may be room for
// another, and if a delay has begun the others need not wait to hear of it.
func (g *gates) leave(at id, left *gate, news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting--
	left.waiting--
	if left.waiting == 0 {
		delete(g.byID, at)
		return
	}
	if news {
		left.call()
	}
}

func (g *gate) call() {
	select {
	case g.wake <- struct{}{}:
	default: // somebody is being woken already
	}
}
