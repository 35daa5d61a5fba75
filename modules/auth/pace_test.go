package auth

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// An import leaves time for others: between two batches it pauses for longer than it worked, and a
// batch is bounded by time, not by a number of records.
func TestAnImportRestsForLongerThanItWorksWhileOthersWrite(t *testing.T) {
	t.Parallel()
	clock := time.Unix(1_700_000_000, 0)
	var rested time.Duration
	others := true
	p := &pace{
		now: func() time.Time {
			return clock
		}, size: firstBatch, begun: clock, batchTime: 20 * time.Millisecond, rests: 2,
		sleep: func(_ context.Context, d time.Duration) { rested += d; clock = clock.Add(d) },
	}
	p.watch = func(_ context.Context, rest func()) bool { rest(); return others }
	// write takes a millisecond per record, or a fixed time.
	write := func(each time.Duration) (work time.Duration) {
		work = time.Duration(p.size) * each
		const waited = time.Second // waiting for its turn is no work
		clock = clock.Add(waited + work)
		rested = 0
		p.wrote(t.Context(), p.size, waited, work)
		if rested > 2*work {
			t.Errorf("it worked for %s and paused for %s", work, rested)
		}
		return work
	}
	for range 10 {
		if work := write(time.Millisecond); rested < 2*work {
			t.Errorf("it worked for %s and paused for %s", work, rested)
		}
	}
	if p.size != leastBatch {
		t.Errorf("batches of %d records of a millisecond each", p.size)
	}
	for range 10 {
		write(100 * time.Microsecond)
	}
	if p.size != 200 {
		t.Errorf("batches of %d records of 0.1 ms each, want those of 20 ms", p.size)
	}
	for range 10 {
		write(0)
	}
	if p.size != mostBatch {
		t.Errorf("batches of %d records that take no time", p.size)
	}
	others = false
	for range aloneAfter {
		if work := write(100 * time.Microsecond); rested < 2*work {
			t.Errorf("it paused for %s although others wrote a moment ago", rested)
		}
	}
	if work := write(100 * time.Microsecond); rested > work/4 {
		t.Errorf("alone, it worked for %s and paused for %s", work, rested)
	}
	others = true
	write(100 * time.Microsecond)
	if work := write(100 * time.Microsecond); rested < 2*work {
		t.Errorf("with others again, it worked for %s and paused for %s", work, rested)
	}
}

// The database itself shows whether others write.
func TestAnImportSeesWhetherOthersWrite(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		p := newPace(env.db, time.Now)
		write := func(db *database.DB, i int) {
			t.Helper()
			if _, err := db.Write(t.Context(),
				"INSERT INTO users (id, username, username_canonical, password_hash, created_at, updated_at, password_changed_at) VALUES (?, ?, ?, 'x', ?, ?, ?)",
				fmt.Sprintf("00000000-0000-4000-8000-%012d", i), fmt.Sprint("u", i), fmt.Sprint("u",
					i), time.Now(), time.Now(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			write(env.db, 2*i) // the import's own batch
			if !p.watch(t.Context(), func() { write(env.db, 2*i+1) }) {
				t.Error("the write of another connection is not noticed")
			}
		}
		// PostgreSQL counts for all of its databases, and other tests write too. SQLite's file
		// belongs to this test alone.
		write(env.db, 100)
		if others := p.watch(t.Context(), func() {}); others && !env.db.IsPostgres() {
			t.Error("its own batch counts as a write of others")
		}
	})
}
