package outbox_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// A tail of everything does not keep everything in memory, whether it follows new events or not,
// and although a transaction has been open since the middle.
func TestTailRemembersLittle(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const n = 2000
		write := func(prefix string) {
			t.Helper()
			var keys []string
			for i := range n {
				keys = append(keys, fmt.Sprint(prefix, i))
			}
			outboxtest.AddKeys(t, db, keys...)
		}
		// all tails until it has seen n events, and returns how many ids it remembered at most.
		all := func(want int, follow bool) (most int) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			shown, seen := &outbox.Shown{}, 0
			err := outbox.TailInto(ctx, db, outbox.TailOptions{From: 1, Follow: follow}, shown,
				func(outbox.Entry) error {
					most = max(most, shown.Remembered())
					if seen++; seen == want && follow {
						cancel()
					}
					return nil
				})
			if err != nil || seen != want {
				t.Fatalf("seen %d of %d, %v", seen, want, err)
			}
			return most
		}
		write("a")
		for _, follow := range []bool{false, true} {
			if most := all(n, follow); most != 0 {
				t.Errorf("follow=%v: it remembers %d ids, although all are stable", follow, most)
			}
		}
		if !db.IsPostgres() {
			return
		}
		// A relay has come this far, and then a transaction begins and stays open.
		if _, err := db.ExecContext(t.Context(), `UPDATE outbox_shard SET low = ?`, n); err != nil {
			t.Fatal(err)
		}
		open, _ := dbtest.Begin(t, db)
		if err := outbox.Add(t.Context(), open, outboxtest.Event("slow")); err != nil {
			t.Fatal(err)
		}
		write("b")
		if most := all(2*n, false); most != 0 {
			t.Errorf("without following it remembers %d ids", most)
		}
		if most := all(2*n, true); most < n || most > n+200 {
			t.Errorf("it remembers %d ids, of which %d are not stable", most, n)
		}
	})
}
