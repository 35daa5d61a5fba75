package batch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	linger  = 5 * time.Millisecond
	timeout = time.Second
)

// backend doubles numbers. It waits for a turn if the test wants turns.
type backend struct {
	turn chan error // nil answers at once; otherwise each round waits for what it has to return

	mu     sync.Mutex
	rounds [][]int
}

func (b *backend) ask(ctx context.Context, questions []int) ([]int, error) {
	b.mu.Lock()
	b.rounds = append(b.rounds, slices.Sorted(slices.Values(questions)))
	b.mu.Unlock()
	if b.turn != nil {
		select {
		case err := <-b.turn:
			if err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	answers := make([]int, len(questions))
	for i, q := range questions {
		answers[i] = 2 * q
	}
	return answers, nil
}

func (b *backend) asked() [][]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.rounds)
}

func (b *backend) expect(t *testing.T, want ...[]int) {
	t.Helper()
	if got := b.asked(); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("the rounds were %v, want %v", got, want)
	}
}

func (b *backend) group(most int) *Batcher[int, int] {
	return New(Config{Linger: linger, Concurrency: 3, MaxBatch: most, Timeout: timeout}, b.ask)
}

// inTurns runs a test in a bubble, with a group whose rounds each wait for their turn.
func inTurns(t *testing.T, test func(t *testing.T, b *backend, g *Batcher[int, int])) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{turn: make(chan error)}
		g := b.group(10)
		defer g.Close()
		test(t, b, g)
	})
}

// one is a question asked in the background.
type one struct {
	answer int
	err    error
	took   time.Duration
	done   chan struct{}
}

func put(ctx context.Context, g *Batcher[int, int], q int) *one {
	o := &one{done: make(chan struct{})}
	go func() { // the reader of the answer waits for it
		begin := time.Now()
		o.answer, o.err = g.Do(ctx, q)
		o.took = time.Since(begin)
		close(o.done)
	}()
	synctest.Wait()
	return o
}

func (o *one) expect(t *testing.T, answer int, err error) {
	t.Helper()
	<-o.done
	if o.answer != answer || !errors.Is(o.err, err) {
		t.Errorf("the answer was %d, %v; want %d, %v", o.answer, o.err, answer, err)
	}
}

func TestALoneQuestionDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		g := b.group(10)
		defer g.Close()
		for q := range 3 {
			o := put(t.Context(), g, q)
			o.expect(t, 2*q, nil)
			if o.took != 0 {
				t.Errorf("it took %s", o.took)
			}
		}
		b.expect(t, []int{0}, []int{1}, []int{2})
	})
}

func TestWhatComesDuringARoundGoesTogetherInTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &backend{turn: make(chan error)}
		g := b.group(3)
		defer g.Close()
		var all []*one
		for q := range 6 {
			all = append(all, put(t.Context(), g, q))
		}
		b.expect(t, []int{0}) // a question must not join a round that may have read already
		b.turn <- nil
		synctest.Wait()
		b.expect(t, []int{0}, []int{1, 2, 3}) // and no more than Most
		b.turn <- nil
		b.turn <- nil
		for q, o := range all {
			o.expect(t, 2*q, nil)
		}
		b.expect(t, []int{0}, []int{1, 2, 3}, []int{4, 5})
	})
}

func TestAStuckRoundHoldsNobodyUpForLong(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		stuck := put(t.Context(), g, 1)
		other := put(t.Context(), g, 2)
		time.Sleep(linger)
		synctest.Wait()
		b.expect(t, []int{1}, []int{2})
		third := put(t.Context(), g, 3)
		time.Sleep(linger)
		synctest.Wait()
		fourth := put(t.Context(), g, 4)
		time.Sleep(linger)
		synctest.Wait()
		b.expect(t, []int{1}, []int{2}, []int{3}) // there are at most three rounds
		b.turn <- nil
		time.Sleep(linger)
		synctest.Wait()
		b.expect(t, []int{1}, []int{2}, []int{3}, []int{4}) // as soon as one of them ends
		for range 3 {
			b.turn <- nil
		}
		for q, o := range []*one{stuck, other, third, fourth} {
			o.expect(t, 2*(q+1), nil)
		}
	})
}

// After a slow round there is only one round again, with all questions. Otherwise rounds would stay
// small.
func TestRoundsGrowAgainAfterASlowOne(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		put(t.Context(), g, 1)
		put(t.Context(), g, 2)
		time.Sleep(linger)
		synctest.Wait()
		put(t.Context(), g, 3)
		put(t.Context(), g, 4)
		b.turn <- nil // whichever of the two ends, the other is still running
		synctest.Wait()
		b.expect(t, []int{1}, []int{2})
		b.turn <- nil
		synctest.Wait()
		b.expect(t, []int{1}, []int{2}, []int{3, 4})
		b.turn <- nil
	})
}

func TestARoundThatFailsFailsForItsOwnOnly(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		away := errors.New("away")
		first, second, third := put(t.Context(), g, 1), put(t.Context(), g, 2), put(t.Context(), g, 3)
		b.turn <- nil
		b.turn <- away
		first.expect(t, 2, nil)
		second.expect(t, 0, away)
		third.expect(t, 0, away)
		fourth := put(t.Context(), g, 4)
		b.turn <- nil
		fourth.expect(t, 8, nil)
	})
}

func TestARoundHasATimeout(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		put(t.Context(), g, 1).expect(t, 0, context.DeadlineExceeded)
	})
}

func TestACallerWhoGivesUpIsNotAskedFor(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		ctx, cancel := context.WithCancel(t.Context())
		put(t.Context(), g, 1)
		asked, with := put(ctx, g, 2), put(t.Context(), g, 3)
		b.turn <- nil
		synctest.Wait()
		waiting, behind := put(ctx, g, 4), put(t.Context(), g, 5)
		cancel()
		asked.expect(t, 0, context.Canceled)
		waiting.expect(t, 0, context.Canceled)
		b.turn <- nil
		b.turn <- nil
		with.expect(t, 6, nil)
		behind.expect(t, 10, nil)
		b.expect(t, []int{1}, []int{2, 3}, []int{5})
	})
}

// A question that is asked alone belongs to its caller: however it ends, the others go on.
func TestAQuestionAskedAloneEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	inTurns(t, func(t *testing.T, b *backend, g *Batcher[int, int]) {
		ctx, cancel := context.WithCancel(t.Context())
		alone := put(ctx, g, 1)
		cancel()
		alone.expect(t, 0, context.Canceled)
		next := put(t.Context(), g, 2)
		b.expect(t, []int{1}, []int{2})
		b.turn <- nil
		next.expect(t, 4, nil)
	})
}

func TestAPanicOfALoneQuestionLeavesTheGroupUsable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &backend{turn: make(chan error)}
		first := true
		g := New(Config{Linger: linger, Concurrency: 1, MaxBatch: 10, Timeout: timeout},
			func(ctx context.Context, questions []int) ([]int, error) {
				if first {
					first = false
					panic("as a test")
				}
				return b.ask(ctx, questions)
			})
		defer g.Close()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = g.Do(t.Context(), 1)
		}()
		next := put(t.Context(), g, 2)
		b.turn <- nil
		next.expect(t, 4, nil)
	})
}

func TestCloseWaitsForWhatWasAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &backend{turn: make(chan error)}
		g := b.group(10)
		first, second := put(t.Context(), g, 1), put(t.Context(), g, 2)
		closed := make(chan struct{})
		go func() { g.Close(); close(closed) }()
		synctest.Wait()
		put(t.Context(), g, 3).expect(t, 0, ErrClosed)
		select {
		case <-closed:
			t.Error("closed with a round under way")
		default:
		}
		b.turn <- nil
		b.turn <- nil
		first.expect(t, 2, nil)
		second.expect(t, 4, nil)
		<-closed
	})
}

func TestEveryCallerGetsItsOwnAnswer(t *testing.T) {
	t.Parallel()
	b := &backend{}
	g := b.group(7)
	var group sync.WaitGroup
	for caller := range 50 {
		group.Go(func() {
			for i := range 200 {
				q := 1000*caller + i
				if answer, err := g.Do(t.Context(), q); answer != 2*q || err != nil {
					t.Errorf("%d: %d, %v", q, answer, err)
				}
			}
		})
	}
	group.Wait()
	g.Close()
	asked := 0
	for _, round := range b.asked() {
		asked += len(round)
	}
	if asked != 50*200 {
		t.Errorf("%d questions were asked, want each once", asked)
	}
}
