package delivery_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// stopping waits until a deliverer has begun to stop.
func stopping(t *testing.T, db *database.DB) {
	t.Helper()
	testenv.Eventually(t, "the stop has begun", func() bool {
		n, err := database.Value[int](db.QueryRowContext(t.Context(),
			"SELECT count(*) FROM outbox_deliverer WHERE kinds = '[]'"))
		return err == nil && n == 1
	})
}

// A healthy but slow receiver answers after the deliverer was told to stop. The answer is recorded,
// so the next deliverer does not send the event again. No other event is begun.
func TestAnAnswerThatComesAfterTheStopIsRecorded(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		first := newReceivers()
		asked, answer := make(chan struct{}, 10), make(chan struct{})
		first.answer = func(ctx context.Context, _ string, _ outbox.Record, _ delivery.Attempt) error {
			asked <- struct{}{}
			select {
			case <-answer:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		outboxtest.AddKeys(t, db, "a", "a", "b")
		stop, _ := start(t, db, first, quick)
		<-asked
		<-asked
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		stopping(t, db)
		outboxtest.AddKeys(t, db, "c")
		close(answer)
		<-stopped
		if got := first.sorted("hook"); got != "a/1 b/1" {
			t.Errorf("the one that stops delivered %s", got)
		}
		second := newReceivers()
		start(t, db, second, quick)
		empty(t, db, "hook")
		if got := second.sorted("hook"); got != "a/2 c/1" {
			t.Errorf("the next one delivered %s", got)
		}
	})
}

// While a stopping deliverer waits for an answer, others already have all its other places.
func TestADelivererThatWaitsForAnAnswerHandsOverTheRest(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	subscribe(t, db, "hook")
	first, second := newReceivers(), newReceivers()
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	first.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
		if r.Key == "slow" {
			asked <- struct{}{}
			<-answer
		}
		return nil
	}
	outboxtest.AddKeys(t, db, "slow", "slow")
	stop, _ := start(t, db, first, quick)
	<-asked
	start(t, db, second, quick)
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	leases := func(what string, want int) {
		t.Helper()
		testenv.Eventually(t, what, func() bool {
			n, err := database.Value[int](db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_delivery_lease
				WHERE target = 2 AND owner IS NOT NULL AND owner IN (SELECT id FROM outbox_deliverer WHERE kinds = '[]')`))
			return err == nil && n == want
		})
	}
	stopping(t, db)
	leases("one place is left", 1)
	outboxtest.AddKeys(t, db, manyKeys(50)...)
	waiting := func(most int64) {
		t.Helper()
		testenv.Eventually(t, "the others are delivered", func() bool { return state(t, db, "hook").Waiting <= most })
	}
	waiting(20) // 2 of the slow key, and the events of the same place
	close(answer)
	<-stopped
	empty(t, db, "hook")
	first.expect(t, "hook", "slow/1")
	if got := second.of("hook"); !strings.Contains(got, "slow/2") || strings.Contains(got, "slow/1") ||
		len(strings.Fields(got)) != 51 {
		t.Errorf("the other one delivered %s", got)
	}
}

// A stop does not wait for an attempt that has not sent anything yet, because its receiver may be
// unreachable. The attempt does not count as failed.
func TestAnAttemptThatHasNotSentYetEndsWithTheStop(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		s := unreachable{asked: make(chan struct{}, 1)}
		outboxtest.AddKeys(t, db, "a")
		stop, _ := start(t, db, &s, quick)
		<-s.asked
		stop()
		if st := state(t, db, "hook"); st.Waiting != 1 || st.HeldKeys != 0 || s.sent.Load() {
			t.Errorf("%d wait and %d keys are held, want 1 and none; sent: %v", st.Waiting, st.HeldKeys, s.sent.Load())
		}
	})
}

// unreachable is a sink that connects until its context ends.
type unreachable struct {
	asked chan struct{}
	sent  atomic.Bool
}

func (u *unreachable) AnswerTimeout() time.Duration { return time.Hour }

func (u *unreachable) Deliver(ctx context.Context, _ outbox.Subscription, _ outbox.Record, a delivery.Attempt) error {
	u.asked <- struct{}{}
	<-ctx.Done()
	u.sent.Store(a.Owned())
	return fmt.Errorf("connect: %w", ctx.Err())
}
