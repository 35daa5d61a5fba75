// Package batch lets callers that ask at the same time share round trips to a server.
package batch

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrClosed is what [Batcher.Do] returns after [Batcher.Close].
var ErrClosed = errors.New("closed")

// Config says how a [Batcher] sends requests.
type Config struct {
	Linger      time.Duration // how long a request waits for the batch before it
	Concurrency int           // batches in flight at once, when they are slower than Linger
	MaxBatch    int           // requests in one batch
	Timeout     time.Duration // of one batch
}

// Batcher answers single requests by sending many at once. A request that arrives when nothing
// is in flight is sent at once, alone. Those that arrive meanwhile go together in the next
// batch. So no request waits for others, and batches grow with the load. A batch that is stuck
// delays others by Linger at most.
//
// A batch is sent after all of its requests were made, so its answers are as fresh as if each
// caller had asked alone.
type Batcher[Q, A any] struct {
	send func(ctx context.Context, requests []Q) ([]A, error)
	cfg  Config

	mu       sync.Mutex
	waiting  list.List // of *request[Q, A]; each has a caller who waits
	inFlight int       // batches
	closed   bool
	running  sync.WaitGroup
}

type request[Q, A any] struct {
	body   Q
	answer A
	err    error
	done   chan struct{} // closed when answer and err are set
}

// New returns a batcher that calls send. It returns one answer for each request, in their
// order, or one error for all of them. The caller closes the batcher.
func New[Q, A any](cfg Config, send func(ctx context.Context, requests []Q) ([]A, error)) *Batcher[Q, A] {
	return &Batcher[Q, A]{send: send, cfg: cfg}
}

// Do returns the answer to one request. When ctx ends first, a batch that carries other
// requests goes on for those.
func (b *Batcher[Q, A]) Do(ctx context.Context, body Q) (answer A, err error) {
	b.mu.Lock()
	switch {
	case b.closed:
		b.mu.Unlock()
		return answer, ErrClosed
	case b.inFlight == 0: // and so nobody waits
		b.inFlight++
		b.running.Add(1)
		b.mu.Unlock()
		return b.sendAlone(ctx, body)
	}
	r := &request[Q, A]{body: body, done: make(chan struct{})}
	place := b.waiting.PushBack(r)
	b.mu.Unlock()
	linger := time.NewTicker(b.cfg.Linger) // repeated: at first all batches may be in flight
	defer linger.Stop()
	for {
		select {
		case <-r.done:
			return r.answer, r.err
		case <-linger.C:
			b.mu.Lock()
			if b.inFlight < b.cfg.Concurrency && b.waiting.Len() > 0 {
				b.inFlight++
				b.running.Go(b.drain)
			}
			b.mu.Unlock()
		case <-ctx.Done():
			b.mu.Lock()
			b.waiting.Remove(place) // does nothing when a batch has taken it
			b.mu.Unlock()
			return answer, ctx.Err()
		}
	}
}

// sendAlone sends a batch of one on the caller's own goroutine: another goroutine would cost as
// much as the request does. It leaves what has arrived meanwhile to drain.
func (b *Batcher[Q, A]) sendAlone(ctx context.Context, body Q) (answer A, err error) {
	defer b.running.Done()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.inFlight == 1 && b.waiting.Len() > 0 {
			b.running.Go(b.drain)
		} else {
			b.inFlight--
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	answers, err := b.send(ctx, []Q{body})
	if err != nil {
		return answer, err
	}
	return answers[0], nil
}

// drain sends batches until nobody waits, or until another batch is in flight. It then leaves
// the rest to that one: otherwise a single slow batch would keep the following ones small.
func (b *Batcher[Q, A]) drain() {
	for first := true; ; first = false {
		requests := b.take(first)
		if requests == nil {
			return
		}
		b.sendBatch(requests)
	}
}

// take returns the requests of the next batch, or nil when there is none to send.
func (b *Batcher[Q, A]) take(first bool) []*request[Q, A] {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(b.waiting.Len(), b.cfg.MaxBatch)
	if n == 0 || !first && b.inFlight > 1 {
		b.inFlight--
		return nil
	}
	requests := make([]*request[Q, A], n)
	for i := range requests {
		requests[i] = b.waiting.Remove(b.waiting.Front()).(*request[Q, A])
	}
	return requests
}

func (b *Batcher[Q, A]) sendBatch(requests []*request[Q, A]) {
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.Timeout)
	defer cancel()
	bodies := make([]Q, len(requests))
	for i, r := range requests {
		bodies[i] = r.body
	}
	answers, err := b.send(ctx, bodies)
	for i, r := range requests {
		if err != nil {
			r.err = err
		} else {
			r.answer = answers[i]
		}
		close(r.done)
	}
}

// Close makes Do return [ErrClosed] from now on. It returns when all earlier requests are
// answered.
func (b *Batcher[Q, A]) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.running.Wait()
}
