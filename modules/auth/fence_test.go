package auth

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// eachAlone is [each] with a Redis of the test's own, because a fence empties it.
func eachAlone(t *testing.T, test func(t *testing.T, env *testEnv)) {
	t.Helper()
	t.Parallel()
	eachAloneWith(t, func(*Config) {}, test)
}

func eachAloneWith(t *testing.T, set func(*Config), test func(t *testing.T, env *testEnv)) {
	t.Helper()
	cfg := testConfig()
	set(&cfg)
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, cfg, dbtest.SQLite(t), nil)) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, cfg, dbtest.Postgres(t), nil)) })
	t.Run("postgres_redis", func(t *testing.T) {
		t.Parallel()
		test(t, newEnv(t, cfg, dbtest.Postgres(t), cachetest.Open(t, cachetest.Start(t).URL())))
	})
}

// alone says that nobody else uses the database.
func alone(context.Context) error { return nil }

// openFence opens a fence on the test's backends, with another Redis than the servers', or with
// none.
func (env *testEnv) openFence(t testing.TB, rc cache.Client) *Fence {
	t.Helper()
	f, err := OpenFence(t.Context(), env.cfg, Deps{DB: env.db, Redis: rc})
	testenv.Must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (env *testEnv) fence(t testing.TB) Fenced {
	t.Helper()
	done, err := env.openFence(t, env.redis).Run(t.Context(), alone, func(FenceStep, int) {})
	testenv.Must(t, err)
	return done
}

// refused fails the test unless a newly started server refuses both tokens.
func (env *testEnv) refused(t testing.TB, what string, tokens Tokens) {
	t.Helper()
	server := env.another(t)
	if _, err := server.Authenticate(t.Context(), tokens.AccessToken); !errors.Is(err, ErrInvalidToken) &&
		!errors.Is(err, ErrSessionRevoked) {
		t.Errorf("the access token %s: %v", what, err)
	}
	if _, err := server.Refresh(t.Context(), tokens.RefreshToken, phone()); err == nil || IsUnavailable(err) {
		t.Errorf("the refresh token %s: %v", what, err)
	}
}

func (env *testEnv) number(t testing.TB, query string, args ...any) (n int64) {
	t.Helper()
	if err := env.db.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (env *testEnv) change(t testing.TB, statement string, args ...any) {
	t.Helper()
	if _, err := env.db.Write(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestAFenceEndsWhatWasIssued(t *testing.T) {
	eachAlone(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		id := env.caller(t, second).User.ID
		if err := env.EndSessions(t.Context(), env.caller(t, second), true); err != nil { // keeps one session
			t.Fatal(err)
		}
		_, disabled := env.newUser(t)
		lockedOut := env.caller(t, disabled).User.ID
		testenv.Must(t, env.DisableUser(t.Context(), lockedOut))
		key := env.keys.Active().KID()
		staged, err := OpenKeys(env.db, env.cfg, nil).Stage(t.Context())
		testenv.Must(t, err)
		facts := env.number(t, "SELECT count(*) FROM revocation WHERE type = 'account'")

		plan, err := env.openFence(t, env.redis).Plan(t.Context())
		testenv.Must(t, err)
		if plan.Accounts != 2 || plan.Rows+plan.Records < 1 || len(plan.Keys) != 2 ||
			plan.FromGeneration >= plan.ToGeneration ||
			!plan.Interrupted.IsZero() || !plan.LastDone.IsZero() {
			t.Errorf("the plan: %+v", plan)
		}
		if _, err := env.Authenticate(t.Context(), second.AccessToken); err != nil {
			t.Errorf("planning has ended a session: %v", err)
		}

		done := env.fence(t)
		env.refused(t, "of a session", second)
		env.refused(t, "of a session that had ended", first)
		env.refused(t, "of a disabled account", disabled)
		revoked := []string{done.Revoked[0].KID, done.Revoked[1].KID}
		if len(done.Revoked) != 2 || !slices.Contains(revoked, key) || !slices.Contains(revoked, staged.KID) {
			t.Errorf("revoked %v, want %s and %s", revoked, key, staged.KID)
		}
		server := env.another(t)
		if active := server.keys.Active().KID(); active != done.Key.KID || active == key {
			t.Errorf("%s signs after %s, but the fence says %s", active, key, done.Key.KID)
		}
		for what, query := range map[string]string{
			"sessions":                     "SELECT count(*) FROM session",
			"accounts with a kept one":     "SELECT count(*) FROM users WHERE kept_sid IS NOT NULL",
			"keys that are published":      "SELECT count(*) - 1 FROM signing_key WHERE status IN ('staged', 'active', 'retiring')",
			"more facts about accounts":    "SELECT count(*) - ? FROM revocation WHERE type = 'account'",
			"facts about keys less two":    "SELECT count(*) - 2 FROM revocation WHERE type = 'key'",
			"fences that did not finish":   "SELECT count(*) FROM restore_fence WHERE done_ms IS NULL",
			"generations less the fence's": "SELECT generation - ? FROM outbox_setting",
		} {
			var args []any
			switch what {
			case "more facts about accounts":
				args = []any{facts}
			case "generations less the fence's":
				args = []any{done.Generation}
			}
			if n := env.number(t, query, args...); n != 0 {
				t.Errorf("%s: %d", what, n)
			}
		}
		if env.redis != nil {
			if left, _ := env.redis.Do(t.Context(), "keys", "authctl:session:*").Slice(); len(left) > 0 {
				t.Errorf("left in Redis: %q", left)
			}
		}

		// Afterwards everything works with the old password, and new events have the new
		// generation.
		again := server.signIn(t, name)
		server.live(t, again)
		n := env.number(t, "SELECT generation FROM outbox_event WHERE key = ? ORDER BY id DESC LIMIT 1", id.String())
		if n != done.Generation {
			t.Errorf("an event has generation %d, after a fence for %d", n, done.Generation)
		}

		// A second fence ends what was issued since the first, and has a higher generation and
		// another key.
		next := env.fence(t)
		env.refused(t, "from between two fences", again)
		if next.Generation <= done.Generation || next.Key.KID == done.Key.KID {
			t.Errorf("%+v after %+v", next, done)
		}
	})
}

// What the database has forgotten comes back with higher numbers than it knows: sessions in Redis,
// and the epochs and generations of fences that a later restore has undone.
func TestAFenceIsAboveWhatTheDatabaseHasForgotten(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.Postgres(t), cachetest.Open(t, cachetest.Start(t).URL()))
	name, tokens := env.newUser(t)
	id := env.caller(t, tokens).User.ID
	for range 5 {
		testenv.Must(t, env.EndSessions(t.Context(), env.caller(t, tokens), false))
		tokens = env.signIn(t, name)
	}
	env.change(t, "UPDATE users SET session_epoch = 0, kept_sid = NULL WHERE id = ?", id) // the backup
	env.live(t, tokens)

	// The operator says that Redis is lost, but it is not.
	first, err := env.openFence(t, nil).Run(t.Context(), alone, func(FenceStep, int) {})
	testenv.Must(t, err)
	if size, _ := env.redis.Do(t.Context(), "dbsize").Int(); size == 0 {
		t.Fatal("Redis was emptied")
	}
	env.refused(t, "that Redis has kept", tokens)

	// The same backup once more.
	kept := env.another(t).signIn(t, name)
	env.change(t, "UPDATE users SET session_epoch = 0 WHERE id = ?", id)
	env.change(t, "DELETE FROM restore_fence")
	env.change(t, "UPDATE outbox_setting SET generation = 0")
	testClockMovesOn(t, env, first.Generation)
	second, err := env.openFence(t, nil).Run(t.Context(), alone, func(FenceStep, int) {})
	testenv.Must(t, err)
	if second.Generation <= first.Generation {
		t.Errorf("the generation %d after %d", second.Generation, first.Generation)
	}
	env.refused(t, "from after the first fence", kept)
}

// testClockMovesOn waits until the database's clock has left the second in which a generation was
// chosen.
func testClockMovesOn(t *testing.T, env *testEnv, second int64) {
	t.Helper()
	testenv.Eventually(t, "another second", func() bool {
		return env.number(t, "SELECT (extract(epoch FROM clock_timestamp()))::bigint") > second+1
	})
}

// errStopped stands in for kill -9: the fence does nothing after it.
var errStopped = errors.New("stopped")

// Wherever a fence is killed, the database knows, and running it again finishes it.
func TestAnInterruptedFenceIsFinished(t *testing.T) {
	eachAlone(t, func(t *testing.T, env *testEnv) {
		for stop := 1; ; stop++ {
			server := env.another(t)
			name, first := server.newUser(t)
			second := server.signIn(t, name)
			ctx, kill := context.WithCancel(t.Context())
			calls, checks := 0, 0
			at := func() bool {
				calls++
				if calls == stop {
					kill()
				}
				return calls >= stop
			}
			_, err := env.openFence(t, env.redis).Run(ctx, func(context.Context) error {
				if checks++; checks > 1 && at() { // the first step is before it begins
					return errStopped
				}
				return nil
			}, func(FenceStep, int) { at() })
			kill()
			if err == nil {
				if stop < 6 {
					t.Errorf("it has only %d steps", stop-1)
				}
				env.refused(t, "of a fence that nobody stopped", second)
				return
			}
			began, err := FenceInterrupted(t.Context(), env.db)
			if err != nil || began.IsZero() {
				t.Fatalf("stopped at step %d, but the database does not know: %v, %v", stop, began, err)
			}
			f := env.openFence(t, env.redis)
			plan, err := f.Plan(t.Context())
			if err != nil || !plan.Interrupted.Equal(began) {
				t.Errorf("the plan to finish: %+v, %v; want %v", plan, err, began)
			}
			done, err := f.Run(t.Context(), alone, func(FenceStep, int) {})
			if err != nil || done.Generation != plan.ToGeneration {
				t.Fatalf("stopped at step %d, then: %+v, %v; planned %d", stop, done, err, plan.ToGeneration)
			}
			if began, err := FenceInterrupted(t.Context(), env.db); err != nil || !began.IsZero() {
				t.Errorf("still interrupted: %v, %v", began, err)
			}
			env.refused(t, "of a stopped fence", first)
			env.refused(t, "of a stopped fence", second)
			if n := env.number(t,
				"SELECT count(*) FROM users WHERE session_epoch < (SELECT max(epoch) FROM restore_fence)"); n > 0 {
				t.Errorf("%d accounts have an older epoch", n)
			}
		}
	})
}

// The last step happens as a whole: there is no new key without a new generation.
func TestAFenceThatIsNotAloneDoesNotCount(t *testing.T) {
	eachAlone(t, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		inUse := errors.New("in use")
		f := env.openFence(t, env.redis)
		_, err := f.Run(t.Context(), func(context.Context) error { return inUse }, func(FenceStep, int) {
			t.Error("it has begun")
		})
		if !errors.Is(err, inUse) {
			t.Fatalf("with others: %v", err)
		}
		if n := env.number(t, "SELECT count(*) FROM restore_fence"); n != 0 {
			t.Error("a refused fence is recorded as begun")
		}
		env.live(t, tokens)

		key, looked := env.keys.Active().KID(), 0
		_, err = f.Run(t.Context(), func(context.Context) error {
			if looked++; looked == 2 { // somebody has connected meanwhile
				return inUse
			}
			return nil
		}, func(FenceStep, int) {})
		if !errors.Is(err, inUse) || env.another(t).keys.Active().KID() != key {
			t.Errorf("with others at the end: %v", err)
		}
		if n := env.number(t, "SELECT generation FROM outbox_setting"); n != 0 {
			t.Errorf("the generation is %d", n)
		}
		env.fence(t)
		env.refused(t, "of before", tokens)
	})
}

// With HS256 the secret signs, and only the operator can replace it. The service itself refuses old
// tokens by the epochs of their accounts.
func TestAFenceWithTheSharedSecret(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.Token.Algorithm = token.HS256
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, cfg, db, nil)
		name, tokens := env.newUser(t)
		done := env.fence(t)
		if done.Key.KID != "" || len(done.Revoked) != 0 {
			t.Errorf("%+v", done)
		}
		env.refused(t, "of before", tokens)
		server := env.another(t)
		server.live(t, server.signIn(t, name))
	})
}

// More accounts than one step changes.
func TestAFenceOfManyAccounts(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, testConfig(), db, nil)
		_, tokens := env.newUser(t)
		like := env.caller(t, tokens).User.ID
		const many = 2*fenceBatch + 3
		id := "gen_random_uuid()"
		if !db.IsPostgres() {
			id = "lower(hex(randomblob(4)) || '-0000-4000-8000-' || hex(randomblob(6)))"
		}
		env.change(t, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
			INSERT INTO users (id, username, username_canonical, password_hash, status, session_epoch, created_at, updated_at,
				password_changed_at)
			SELECT `+id+`, 'user ' || i, 'user ' || i, '', 'active', i % 3, created_at, updated_at, password_changed_at
			FROM n CROSS JOIN users WHERE users.id = ?2`, many, like)
		var seen []int
		_, err := env.openFence(t, nil).Run(t.Context(), alone, func(step FenceStep, n int) {
			if step == FenceAccounts {
				seen = append(seen, n)
			}
		})
		if err != nil || !slices.Equal(seen, []int{0, fenceBatch, 2 * fenceBatch, many + 1}) {
			t.Errorf("progress %v, %v", seen, err)
		}
		if n := env.number(t, "SELECT count(DISTINCT session_epoch) FROM users"); n != 1 {
			t.Errorf("%d different epochs", n)
		}
		if n := env.number(t, "SELECT count(*) FROM revocation WHERE type = 'account'"); n != 0 {
			t.Errorf("the feed has %d accounts", n)
		}
		if n, err := outbox.Generation(t.Context(), db); err != nil || n == 0 {
			t.Errorf("the generation: %d, %v", n, err)
		}
	})
}
