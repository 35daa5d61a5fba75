package feed

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// beginning returns a feed, and the cursor of a new follower.
func beginning(t *testing.T, db *database.DB, now func() time.Time) (*Feed, cursor) {
	t.Helper()
	f, err := New(db, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	leave, err := f.Enter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leave)
	page, err := f.Next(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeCursor(page.Cursor)
	if err != nil {
		t.Fatal(err)
	}
	return f, c
}

// A cursor from the future is invalid. It appears when the database's clock was set back, and facts
// that its owner has forgotten as expired count again. A clock may tick unevenly.
func TestACursorOfTheFutureIsGone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f, c := beginning(t, db, nil)
		uneven, ahead := c, c
		uneven.asOf += 200 * time.Millisecond.Microseconds()
		if _, err := f.Next(t.Context(), uneven.encode(), 0); err != nil {
			t.Errorf("of a clock that ticks unevenly: %v", err)
		}
		ahead.asOf += time.Hour.Microseconds()
		for _, wait := range []time.Duration{0, time.Second} {
			if _, err := f.Next(t.Context(), ahead.encode(), wait); !errors.Is(err, ErrGone) {
				t.Errorf("of a clock that was set back: %v", err)
			}
		}
	})
}

// The clock is set back while a follower waits.
func TestWhoWaitsIsToldThatTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	var back atomic.Int64
	f, c := beginning(t, db, func() time.Time { return time.Now().Add(-time.Duration(back.Load())) })
	waits := make(chan error, 1)
	go func() {
		_, err := f.Next(t.Context(), c.encode(), 10*time.Second)
		waits <- err
	}()
	testenv.Eventually(t, "the reader reads again", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.last.asOf.UnixMicro() > c.asOf
	})
	back.Store(int64(time.Hour)) // far more than the wait, at the end of which it is noticed at the latest
	if err := <-waits; !errors.Is(err, ErrGone) {
		t.Errorf("the follower gets %v", err)
	}
}

// A made-up cursor is refused for good. If the answer said that the database was down, the follower
// would ask endlessly.
func TestAForgedCursorIsNoOutage(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f, c := beginning(t, db, nil)
		var forged []cursor
		for _, next := range []uint64{0, 1, 2, c.seen.next - 1, c.seen.next, c.seen.next + 1, 1 << 32, math.MaxInt64,
			1 << 63, math.MaxUint64} {
			for _, open := range [][]uint64{nil, {0}, {1}, {next - 1}, {next}, {1, 2}, {0, next - 1}} {
				for _, since := range []position{{}, {next: next, open: open}, {next: 1}} {
					one := cursor{incarnation: c.incarnation, asOf: c.asOf, seen: position{next: next, open: open}}
					paging := one
					paging.paging, paging.since = true, since
					first := paging
					first.asOf = 0
					far := paging
					far.after = math.MaxInt64
					forged = append(forged, one, paging, first, far)
					paging.seen = c.seen
					forged = append(forged, paging)
				}
			}
		}
		for _, one := range forged {
			_, err := f.Next(t.Context(), one.encode(), 0)
			if err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, ErrCursor) {
				t.Fatalf("%+v: %v", one, err)
			}
		}
	})
}
