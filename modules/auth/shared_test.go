package auth

import (
	"errors"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// Answers to several windows of a browser may arrive in any order, and the last one stays in the
// cookie. So all answers within a grace window must have the same token.
func TestASharedTokenIsReplacedOnceInAWindow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		refresh := func(text string) Tokens {
			t.Helper()
			got, err := env.RefreshShared(t.Context(), text, phone())
			testenv.Must(t, err)
			if _, err := env.Authenticate(t.Context(), got.AccessToken); err != nil {
				t.Error(err)
			}
			return got
		}
		_, first := env.newUser(t)
		second := refresh(first.RefreshToken)
		if second.RefreshToken == first.RefreshToken || second.Replayed {
			t.Error("the first token of a session was not replaced")
		}
		for range 3 {
			same, late := refresh(second.RefreshToken), refresh(first.RefreshToken)
			if same.RefreshToken != second.RefreshToken || same.Replayed || same.SessionID != first.SessionID {
				t.Errorf("a fresh token was replaced: %+v", same)
			}
			if late.RefreshToken != second.RefreshToken || !late.Replayed {
				t.Errorf("the replaced token does not lead to the fresh one: %+v", late)
			}
			if left := time.Until(same.RefreshTokenExpiresAt) - same.RefreshExpiresIn; left.Abs() > time.Minute {
				t.Errorf("its expiry is off by %v", left)
			}
		}
		if third := env.live(t, second); third.RefreshToken == second.RefreshToken {
			t.Error("a client that does not share its token gets no new one")
		}

		_, first = env.newUser(t)
		second = refresh(first.RefreshToken)
		now := env.now
		env.now = func() time.Time { return now().Add(env.cfg.RefreshGrace + time.Second) }
		third := refresh(second.RefreshToken)
		if third.RefreshToken == second.RefreshToken || third.Replayed {
			t.Error("after the window the token was not replaced")
		}
		env.now = now

		user := env.caller(t, third)
		testenv.Must(t, env.EndSessions(t.Context(), user, false))
		if _, err := env.RefreshShared(t.Context(), third.RefreshToken,
			phone()); !errors.Is(err, ErrSessionRevoked) || !IsWorthless(err) {
			t.Errorf("a fresh token of an ended session: %v", err)
		}
	})
}

func TestWithoutAWindowASharedTokenIsReplacedEachTime(t *testing.T) {
	t.Parallel()
	eachWith(t, func(cfg *Config) { cfg.RefreshGrace = 0 }, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		for range 3 {
			next, err := env.RefreshShared(t.Context(), tokens.RefreshToken, phone())
			if err != nil || next.RefreshToken == tokens.RefreshToken {
				t.Fatalf("%v", err)
			}
			tokens = next
		}
	})
}
