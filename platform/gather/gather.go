// Package gather lets callers that ask at the same time share round trips to a server.
package gather

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrClosed is what is answered after [Group.Close].
var ErrClosed = errors.New("closed")

// Config says how a [Group] asks.
type Config struct {
	Patience time.Duration // longest that a question waits for the round before it
	Rounds   int           // most under way at once, when they are slower than that
	Most     int           // most questions in one round
	Timeout  time.Duration // of one round
}

// Group answers single questions by asking many at once. A question that comes when none is
// under way is asked at once, alone; what comes meanwhile goes together in the next round. So
// nothing waits for company, and the busier the callers are, the larger are the rounds. One
// that is stuck holds up nobody else for longer than Patience.
//
// A round begins after all of its questions were put, so that its answers are as fresh as if
// each caller had asked for itself.
type Group[Q, A any] struct {
	ask func(ctx context.Context, questions []Q) ([]A, error)
	cfg Config

	mu      sync.Mutex
	waiting list.List // of *question[Q, A]; each has a caller who waits
	rounds  int       // under way
	closed  bool
	running sync.WaitGroup
}

type question[Q, A any] struct {
	asked  Q
	answer A
	err    error
	done   chan struct{} // closed when answer and err are there
}

// New returns a group that asks by calling ask, which returns an answer for each question, in
// their order, or one error for them all. The caller closes the group.
func New[Q, A any](cfg Config, ask func(ctx context.Context, questions []Q) ([]A, error)) *Group[Q, A] {
	return &Group[Q, A]{ask: ask, cfg: cfg}
}

// Ask returns the answer to one question. When ctx ends first, a round with other questions
// goes on, for those.
func (g *Group[Q, A]) Ask(ctx context.Context, asked Q) (answer A, err error) {
	g.mu.Lock()
	switch {
	case g.closed:
		g.mu.Unlock()
		return answer, ErrClosed
	case g.rounds == 0: // nor does anyone wait
		g.rounds++
		g.running.Add(1)
		g.mu.Unlock()
		return g.askAlone(ctx, asked)
	}
	q := &question[Q, A]{asked: asked, done: make(chan struct{})}
	place := g.waiting.PushBack(q)
	g.mu.Unlock()
	late := time.NewTicker(g.cfg.Patience) // again and again: all rounds may be under way at first
	defer late.Stop()
	for {
		select {
		case <-q.done:
			return q.answer, q.err
		case <-late.C:
			g.mu.Lock()
			if g.rounds < g.cfg.Rounds && g.waiting.Len() > 0 {
				g.rounds++
				g.running.Go(g.work)
			}
			g.mu.Unlock()
		case <-ctx.Done():
			g.mu.Lock()
			g.waiting.Remove(place) // nothing, when a round has it
			g.mu.Unlock()
			return answer, ctx.Err()
		}
	}
}

// askAlone is a round of one question, asked by the caller himself: a goroutine for it would
// cost as much as the question. What has come meanwhile is not his to ask.
func (g *Group[Q, A]) askAlone(ctx context.Context, asked Q) (answer A, err error) {
	defer g.running.Done()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.rounds == 1 && g.waiting.Len() > 0 {
			g.running.Go(g.work)
		} else {
			g.rounds--
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
	defer cancel()
	answers, err := g.ask(ctx, []Q{asked})
	if err != nil {
		return answer, err
	}
	return answers[0], nil
}

// work asks until nobody waits, or another round is under way: what waits is left to that
// one, or a single slow round would keep the following ones small for ever.
func (g *Group[Q, A]) work() {
	for first := true; ; first = false {
		round := g.take(first)
		if round == nil {
			return
		}
		g.answer(round)
	}
}

// take returns the questions of the next round, nil when there is to be none.
func (g *Group[Q, A]) take(first bool) []*question[Q, A] {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(g.waiting.Len(), g.cfg.Most)
	if n == 0 || !first && g.rounds > 1 {
		g.rounds--
		return nil
	}
	round := make([]*question[Q, A], n)
	for i := range round {
		round[i] = g.waiting.Remove(g.waiting.Front()).(*question[Q, A])
	}
	return round
}

func (g *Group[Q, A]) answer(round []*question[Q, A]) {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Timeout)
	defer cancel()
	asked := make([]Q, len(round))
	for i, q := range round {
		asked[i] = q.asked
	}
	answers, err := g.ask(ctx, asked)
	for i, q := range round {
		if err != nil {
			q.err = err
		} else {
			q.answer = answers[i]
		}
		close(q.done)
	}
}

// Close answers [ErrClosed] to whoever asks from now on, and returns when what was asked
// before is answered.
func (g *Group[Q, A]) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}
