package auth

import (
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/database/dbtest"
)

// PgBouncer in transaction mode gives each statement another connection, without any prepared
// statements.
func TestSignInsAndSessionsThroughAPooler(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.Open(t, dbtest.PgBouncer(t, dbtest.PostgresURL(t))), nil)
	var all sync.WaitGroup
	for range 6 {
		name, first := env.newUser(t)
		all.Go(func() {
			tokens := env.live(t, first)
			for range 5 {
				tokens = env.live(t, tokens)
			}
			other := env.signIn(t, name)
			if err := env.EndSessions(t.Context(), env.caller(t, tokens), true); err != nil {
				t.Error(err)
			}
			env.over(t, other)
			env.live(t, tokens)
		})
	}
	all.Wait()
}
