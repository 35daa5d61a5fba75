package auth

import (
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/database/dbtest"
)

// PgBouncer in transaction mode gives each statement another connection, on which nobody has
// prepared anything.
func TestSignInsAndSessionsThroughAPooler(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testConfig(), dbtest.Open(t, dbtest.PgBouncer(t, dbtest.PostgresURL(t))), nil)
	var all sync.WaitGroup
	for range 6 {
		name, first := w.newcomer(t)
		all.Go(func() {
			tokens := w.live(t, first)
			for range 5 {
				tokens = w.live(t, tokens)
			}
			other := w.signIn(t, name)
			if err := w.EndSessions(t.Context(), w.caller(t, tokens), true); err != nil {
				t.Error(err)
			}
			w.over(t, other)
			w.live(t, tokens)
		})
	}
	all.Wait()
}
