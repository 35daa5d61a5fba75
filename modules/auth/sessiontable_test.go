package auth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/testenv"
)

// expectAnnouncedEnds fails the test if the end of a session was announced whose beginning was not.
func (env *testEnv) expectAnnouncedEnds(t *testing.T, userID uuid.UUID) (ends int) {
	t.Helper()
	begun := make(map[any]bool)
	for i, e := range env.events(t, userID) {
		switch e.Type {
		case EventUserRegistered, EventUserLoggedIn:
			begun[e.Data["sid"]] = true
		case EventSessionRevoked, EventRefreshTokenReuseDetected:
			if ends++; !begun[e.Data["sid"]] {
				t.Errorf("event %d, %s, belongs to session %v, which has not begun", i, e.Type, e.Data["sid"])
			}
		}
	}
	return ends
}

// Parallel sign-ins evict each other's sessions before these have begun.
func TestNobodyIsToldOfTheEndOfASessionThatNeverBegan(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions = 2 }, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		user := env.caller(t, first).User.ID
		servers := []*testEnv{env, env.another(t)}
		const rounds, many = 4, 10
		for range rounds {
			var all sync.WaitGroup
			for i := range many {
				all.Go(func() {
					if _, err := servers[i%2].Login(t.Context(), Credentials{name, goodPassword}, phone()); err != nil {
						t.Errorf("a sign-in at the limit: %v", err)
					}
				})
			}
			all.Wait()
		}
		if ends := env.expectAnnouncedEnds(t, user); ends != 1+rounds*many-2 {
			t.Errorf("%d ends were announced; of %d sessions 2 are live", ends, 1+rounds*many)
		}
	})
}

// A server dies between a session's record and its transaction: nobody has a token of the session,
// nobody was told of it, and nobody sees it.
func TestASessionWhoseSignInDiedIsSeenByNobody(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions = 2 }, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		caller := env.caller(t, tokens)
		died := func() session.Session {
			sess, _, _, err := env.createRecord(t.Context(), account{User: User{ID: caller.User.ID}}, phone())
			testenv.Must(t, err)
			return sess
		}
		listed := func(want ...uuid.UUID) {
			t.Helper()
			list, err := env.Sessions(t.Context(), caller)
			testenv.Must(t, err)
			var got []uuid.UUID
			for _, one := range list {
				got = append(got, one.ID)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the list has %v, want %v", got, want)
			}
		}
		first := died()
		listed(tokens.SessionID)
		if err := env.EndSession(t.Context(), caller, first.ID); err != ErrSessionNotFound {
			t.Errorf("ending it: %v", err)
		}
		done, err := env.RevokeSessions(t.Context(), SessionFilter{ID: uuid.NullUUID{UUID: first.ID, Valid: true}})
		if err != nil || done.Sessions != 0 {
			t.Errorf("revoking it: %+v, %v", done, err)
		}

		// The live session was used later, so the other is evicted and can no longer begin.
		tokens = env.live(t, tokens)
		second := env.signIn(t, name)
		listed(second.SessionID, tokens.SessionID)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn")
		err = env.transact(t.Context(), func(ctx context.Context, tx database.Tx) error {
			return env.recordBegun(ctx, tx, begun{first.ID, caller.User.ID, 0, time.Now()})
		})
		if !errors.Is(err, errConcurrentChange) {
			t.Errorf("it began after its end: %v", err)
		}

		// Much later, it takes no place.
		third := died()
		env.Service.now = func() time.Time { return time.Now().Add(tentativeFor + time.Minute) }
		if _, err := env.removeEnded(t.Context(), caller.User.ID); err != nil {
			t.Fatal(err)
		}
		env.Service.now = time.Now
		records, err := env.sessions.List(t.Context(), caller.User.ID)
		testenv.Must(t, err)
		for _, r := range records {
			if r.ID == third.ID {
				t.Error("its record remains")
			}
		}
		env.live(t, tokens)
		env.live(t, second)
		env.expectAnnouncedEnds(t, caller.User.ID)
	})
}

// A session whose token was used has begun, even if the row that says so is missing.
func TestASessionOfTheReleaseBeforeHasBegun(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions = 2 }, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		caller := env.caller(t, tokens)
		tokens = env.live(t, tokens)
		if _, err := env.db.Write(t.Context(), "DELETE FROM begun_session"); err != nil {
			t.Fatal(err)
		}
		list, err := env.Sessions(t.Context(), caller)
		if err != nil || len(list) != 1 {
			t.Errorf("%d sessions are listed: %v", len(list), err)
		}
		second := env.signIn(t, name)
		if err := env.EndSession(t.Context(), env.caller(t, second), tokens.SessionID); err != nil {
			t.Error(err)
		}
		env.over(t, tokens)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn", "SessionRevoked")
	})
}
