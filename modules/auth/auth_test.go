package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

func TestRegisterMakesAnAccountAndASession(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		var told []string
		env.committed = func(keys ...string) { told = append(told, keys...) }
		name, tokens := env.newUser(t)
		caller := env.caller(t, tokens)
		if !slices.Equal(told, []string{caller.User.ID.String()}) {
			t.Errorf("relays are told of the keys %q", told)
		}
		if caller.User.Username != name || caller.SessionID != tokens.SessionID {
			t.Errorf("the access token speaks for %s, session %s", caller.User.Username, caller.SessionID)
		}
		list := env.expectEvents(t, caller.User.ID, "UserRegistered")
		if list[0].Data["sid"] != tokens.SessionID.String() || list[0].Data["username"] != name {
			t.Errorf("the event says %v", list[0].Data)
		}
		env.live(t, tokens)
	})
}

func TestRegisterRefusesANameThatIsTakenInAnyCase(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, _ := env.newUser(t)
		_, err := env.Register(t.Context(), Credentials{strings.ToUpper(name), goodPassword}, phone())
		if !errors.Is(err, ErrUsernameTaken) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOfParallelRegistrationsOfOneNameOneSucceeds(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name := "racer-" + uuid.NewString()
		var mu sync.Mutex
		won, lost := 0, 0
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone())
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case errors.Is(err, ErrUsernameTaken):
					lost++
				default:
					t.Errorf("unexpected: %v", err)
				}
			})
		}
		all.Wait()
		if won != 1 || lost != 7 {
			t.Errorf("%d won, %d lost", won, lost)
		}
	})
}

func TestRegisterNamesEveryFaultyField(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		dev := phone()
		dev.Name = strings.Repeat("x", 101)
		_, err := env.Register(t.Context(), Credentials{"a", "short"}, dev)
		f, ok := errors.AsType[*fault.Fault](err)
		if !ok || !errors.Is(err, ErrValidation) {
			t.Fatalf("got %v", err)
		}
		var fields []string
		for _, field := range f.Fields {
			fields = append(fields, field.Field+" "+field.Code)
		}
		if want := []string{"username too_short", "password too_short",
			"device_name too_long"}; !slices.Equal(fields, want) {
			t.Errorf("got %v, want %v", fields, want)
		}
	})
}

func TestLoginAnswersTheSameForAMissingNameAndAWrongPassword(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, _ := env.newUser(t)
		for _, cred := range []Credentials{{name, "not the password"}, {"nobody-" + uuid.NewString(), goodPassword},
			{"", ""}, {"no such form of name!", "x"}} {
			if _, err := env.Login(t.Context(), cred, phone()); err != error(ErrInvalidCredentials) {
				t.Errorf("%q: got %v", cred.Username, err)
			}
		}
	})
}

func TestLoginBeginsASessionOfItsOwn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, strings.ToUpper(name))
		if second.SessionID == first.SessionID {
			t.Error("two sign-ins share a session")
		}
		caller := env.caller(t, second)
		list := env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn")
		if got := list[1].Data; got["sid"] != second.SessionID.String() || got["ip"] != "192.0.2.7" ||
			got["device_name"] != "Firefox on Linux" {
			t.Errorf("the event says %v", got)
		}
		env.live(t, first)
		env.live(t, second)
	})
}

func TestADisabledAccountIsToldOnlyToWhoKnowsThePassword(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		user := env.caller(t, tokens).User
		testenv.Must(t, env.DisableUser(t.Context(), user.ID))
		if _, err := env.Login(t.Context(), Credentials{name, "wrong password"},
			phone()); err != error(ErrInvalidCredentials) {
			t.Errorf("wrong password: %v", err)
		}
		if _, err := env.Login(t.Context(), Credentials{name, goodPassword},
			phone()); !errors.Is(err, ErrAccountDisabled) {
			t.Errorf("right password: %v", err)
		}
		env.over(t, tokens)
		testenv.Must(t, env.EnableUser(t.Context(), user.ID))
		env.over(t, tokens) // ended sessions stay ended
		env.live(t, env.signIn(t, name))
		testenv.Must(t, env.EnableUser(t.Context(), user.ID))
		env.expectEvents(t, user.ID, "UserRegistered", "UserDisabled", "AllSessionsRevoked", "UserEnabled",
			"UserLoggedIn")
	})
}

func TestRefreshReplacesTheTokenAndReplaysItsSuccessor(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		_, first := env.newUser(t)
		second, err := env.Refresh(t.Context(), first.RefreshToken, phone())
		testenv.Must(t, err)
		if second.RefreshToken == first.RefreshToken || second.SessionID != first.SessionID || second.Replayed {
			t.Errorf("not a successor: %v", second)
		}
		again, err := env.another(t).Refresh(t.Context(), first.RefreshToken, phone())
		testenv.Must(t, err)
		if again.RefreshToken != second.RefreshToken || !again.Replayed {
			t.Error("the replaced token did not get the same successor again")
		}
		env.live(t, again)
	})
}

// A client sends a request twice, or an older request arrives after the client has moved on.
func TestALateDuplicateGetsTheNewestToken(t *testing.T) {
	t.Parallel()
	for _, grace := range []time.Duration{30 * time.Second, time.Minute} {
		t.Run(grace.String(), func(t *testing.T) {
			t.Parallel()
			eachWith(t, func(c *Config) { c.RefreshGrace = grace }, func(t *testing.T, env *testEnv) {
				_, first := env.newUser(t)
				user := env.caller(t, first).User.ID
				replaced, newest := []Tokens{first}, env.live(t, first)
				for range 5 {
					replaced, newest = append(replaced, newest), env.live(t, newest)
				}
				another := env.another(t)
				for i, old := range replaced {
					again, err := another.Refresh(t.Context(), old.RefreshToken, phone())
					if err != nil {
						t.Fatalf("token %d: %v", i, err)
					}
					if again.RefreshToken != newest.RefreshToken || !again.Replayed ||
						again.SessionID != first.SessionID {
						t.Errorf("token %d does not get the newest", i)
					}
					env.caller(t, again)
				}
				env.live(t, newest)
				env.expectEvents(t, user, "UserRegistered")
			})
		})
	}
}

// More rotations happened in the grace window than the record has links for: the oldest token is
// refused, and ends nothing.
func TestATokenThatIsTooOldForTheChainEndsNothing(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = time.Minute }, func(t *testing.T, env *testEnv) {
		_, first := env.newUser(t)
		user := env.caller(t, first).User.ID
		newest := first
		for range session.MaxLinks + 5 {
			var err error
			if newest, err = env.Refresh(t.Context(), newest.RefreshToken, phone()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := env.Refresh(t.Context(), first.RefreshToken, phone())
		if refused, ok := errors.AsType[*fault.Fault](err); !ok || refused.Code != "invalid_refresh_token" ||
			refused.Message == "" {
			t.Errorf("the first token: %v", err)
		}
		if IsWorthless(err) { // or a browser would drop the newest token, which another tab may have put in its place
			t.Error("a refusal that ends nothing tells the client to forget the token")
		}
		if _, live, err := env.Introspect(t.Context(), first.RefreshToken); err != nil || live {
			t.Errorf("introspection of the first token: %v, %v", live, err)
		}
		newest = env.live(t, newest)
		env.expectEvents(t, user, "UserRegistered")
		if err := env.LogoutRefresh(t.Context(), first.RefreshToken); err != nil { // this works with old tokens too
			t.Error(err)
		}
		env.over(t, newest)
		if _, err := env.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrSessionRevoked) {
			t.Errorf("the first token after the end: %v", err)
		}
	})
}

func TestAReplacedTokenEndsTheSessionAndIsAnnounced(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		other := env.signIn(t, name)
		second := env.live(t, first)
		third := env.live(t, second)
		if _, err := env.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Fatalf("an older token: %v", err)
		}
		env.over(t, third)
		env.live(t, other)
		user := env.caller(t, other).User.ID
		list := env.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "RefreshTokenReuseDetected",
			"SessionRevoked")
		if got := list[2].Data; got["sid"] != first.SessionID.String() || got["generation"] != 1.0 {
			t.Errorf("the event says %v", got)
		}
		if got := list[3].Data; got["reason"] != "refresh_token_reuse" {
			t.Errorf("the event says %v", got)
		}
	})
}

func TestWithoutAWindowTheReplacedTokenIsReuse(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, env *testEnv) {
		_, first := env.newUser(t)
		second := env.live(t, first)
		if _, err := env.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Fatalf("got %v", err)
		}
		env.over(t, second)
	})
}

// The servers of other tests must not find the session first: they do not know its user, and remove the record.
func TestReuseThatCouldNotBeAnnouncedIsAnnouncedByHousekeeping(t *testing.T) {
	t.Parallel()
	eachAloneWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, env *testEnv) {
		_, first := env.newUser(t)
		user := env.caller(t, first).User.ID
		second := env.live(t, first)
		// The server dies after it has stopped the session in the store and before the transaction.
		// The test stops the session as a refresh would, and does nothing more.
		presented, err := env.codec.Parse(first.RefreshToken)
		testenv.Must(t, err)
		_, rotation := env.codec.Next(presented)
		rotation.IdleTTL = time.Hour
		if _, err := env.sessions.Rotate(t.Context(), rotation); err != nil {
			t.Fatal(err)
		}
		env.expectEvents(t, user, "UserRegistered")
		if _, err := env.Refresh(t.Context(), second.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Errorf("the stopped session still works: %v", err)
		}
		env.expectEvents(t, user, "UserRegistered", "RefreshTokenReuseDetected", "SessionRevoked")

		_, other := env.newUser(t)
		otherUser := env.caller(t, other).User.ID
		env.live(t, other)
		if presented, err = env.codec.Parse(other.RefreshToken); err != nil {
			t.Fatal(err)
		}
		_, rotation = env.codec.Next(presented)
		rotation.IdleTTL = time.Hour
		if _, err := env.sessions.Rotate(t.Context(), rotation); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(testenv.Patience)
		for len(env.events(t, otherUser)) < 3 && time.Now().Before(deadline) {
			env.another(t).Housekeep(t.Context()) // on Redis a round covers only part of the keys
		}
		env.expectEvents(t, otherUser, "UserRegistered", "RefreshTokenReuseDetected", "SessionRevoked")
	})
}

// Each announcement goes on when its caller leaves. With many of them, and a database that hangs, a stop would take long.
func TestAStopDoesNotWaitForEveryReuse(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.RefreshGrace = 0
	env := newEnv(t, cfg, dbtest.SQLite(t), nil)
	for range 3 {
		_, tokens := env.newUser(t)
		env.live(t, tokens)
		presented, err := env.codec.Parse(tokens.RefreshToken)
		testenv.Must(t, err)
		_, rotation := env.codec.Next(presented)
		rotation.IdleTTL = time.Hour
		if _, err := env.sessions.Rotate(t.Context(), rotation); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	announced := 0
	env.committed = func(...string) {
		announced++
		stop()
	}
	env.retryReuse(ctx)
	if announced != 1 {
		t.Errorf("%d are announced after the stop", announced-1)
	}
	if env.retryReuse(t.Context()); announced != 3 {
		t.Errorf("%d are announced later", announced-1)
	}
}

func TestGarbageEndsNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		text := []byte(tokens.RefreshToken)
		for _, at := range []int{4, 10, 30, 60, 90, len(text) - 1} {
			broken := slices.Clone(text)
			broken[at] = 'A' + (broken[at]+1)%26
			if string(broken) == tokens.RefreshToken {
				continue
			}
			if _, err := env.Refresh(t.Context(), string(broken), phone()); !errors.Is(err, ErrInvalidRefreshToken) {
				t.Errorf("with byte %d changed: %v", at, err)
			}
			if err := env.LogoutRefresh(t.Context(), string(broken)); !errors.Is(err, ErrInvalidRefreshToken) {
				t.Errorf("sign out with byte %d changed: %v", at, err)
			}
		}
		env.live(t, tokens)
	})
}

func TestLogoutEndsTheSessionAndIsIdempotent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		user := env.caller(t, first).User.ID
		for range 2 {
			testenv.Must(t, env.LogoutRefresh(t.Context(), first.RefreshToken))
			if _, err := env.LogoutAccess(t.Context(), first.AccessToken); err != nil {
				t.Fatal(err)
			}
		}
		env.over(t, first)
		for range 2 {
			if sid, err := env.LogoutAccess(t.Context(), second.AccessToken); err != nil || sid != second.SessionID {
				t.Fatal(sid, err)
			}
		}
		env.over(t, second)
		list := env.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "SessionRevoked", "SessionRevoked")
		if got := list[2].Data; got["reason"] != "logout" || got["expires_at"] == nil {
			t.Errorf("the event says %v", got)
		}
		if _, err := env.LogoutAccess(t.Context(), "not a token"); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("garbage: %v", err)
		}
	})
}

func TestSessionsAreListedAndEndedByTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		_, stranger := env.newUser(t)
		caller := env.caller(t, first)
		list, err := env.Sessions(t.Context(), caller)
		testenv.Must(t, err)
		if len(list) != 2 {
			t.Fatalf("%d sessions", len(list))
		}
		for _, one := range list {
			if one.Current != (one.ID == first.SessionID) || one.DeviceName != "Firefox on Linux" ||
				one.IP != "192.0.2.7" {
				t.Errorf("listed as %+v", one)
			}
		}
		for _, sid := range []uuid.UUID{stranger.SessionID, uuid.New()} {
			if err := env.EndSession(t.Context(), caller, sid); !errors.Is(err, ErrSessionNotFound) {
				t.Errorf("a session that is not ours: %v", err)
			}
		}
		env.live(t, stranger)
		testenv.Must(t, env.EndSession(t.Context(), caller, second.SessionID))
		env.over(t, second)
		first = env.live(t, first)
		if err := env.EndSession(t.Context(), caller, second.SessionID); !errors.Is(err, ErrSessionNotFound) {
			t.Errorf("a session that has ended: %v", err)
		}
		testenv.Must(t, env.EndSession(t.Context(), caller, first.SessionID))
		env.over(t, first)
	})
}

func TestEndingAllSessionsMayKeepTheCallingOne(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second, third := env.signIn(t, name), env.signIn(t, name)
		testenv.Must(t, env.EndSessions(t.Context(), env.caller(t, second), true))
		env.over(t, first)
		env.over(t, third)
		second = env.live(t, second)
		fourth := env.signIn(t, name)
		testenv.Must(t, env.EndSessions(t.Context(), env.caller(t, fourth), true))
		env.over(t, second) // keeping it once does not keep it always
		fourth = env.live(t, fourth)
		user := env.caller(t, fourth).User.ID
		testenv.Must(t, env.EndSessions(t.Context(), env.caller(t, fourth), false))
		env.over(t, fourth)
		list := env.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "UserLoggedIn", "AllSessionsRevoked",
			"UserLoggedIn", "AllSessionsRevoked", "AllSessionsRevoked")
		if got := list[3].Data; got["kept_sid"] != second.SessionID.String() || got["session_epoch"] != 1.0 {
			t.Errorf("the event says %v", got)
		}
		if got, there := list[6].Data["kept_sid"]; there {
			t.Errorf("no session was kept, but the event says %v", got)
		}
	})
}

func TestChangingThePasswordKeepsTheCallingSessionAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		caller := env.caller(t, first)
		const replacement = "an even better password"
		if _, err := env.ChangePassword(t.Context(), caller, "wrong password", replacement,
			phone()); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("wrong password: %v", err)
		}
		if _, err := env.ChangePassword(t.Context(), caller, goodPassword, "short",
			phone()); !errors.Is(err, ErrValidation) {
			t.Errorf("bad password: %v", err)
		}
		env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn")
		after, err := env.ChangePassword(t.Context(), caller, goodPassword, replacement, phone())
		testenv.Must(t, err)
		if after.SessionID != first.SessionID || after.RefreshToken == first.RefreshToken {
			t.Error("the calling session got no new tokens")
		}
		env.over(t, second)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn", "PasswordChanged", "AllSessionsRevoked")
		// The answer was lost, so the client still has the old refresh token.
		lost, err := env.Refresh(t.Context(), first.RefreshToken, phone())
		if err != nil {
			t.Fatalf("the former refresh token within the window: %v", err)
		}
		if lost.RefreshToken != after.RefreshToken || !lost.Replayed {
			t.Error("the former refresh token did not get the new one")
		}
		env.live(t, after)
		if _, err := env.Login(t.Context(), Credentials{name, goodPassword},
			phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("the old password: %v", err)
		}
		if _, err := env.Login(t.Context(), Credentials{name, replacement}, phone()); err != nil {
			t.Errorf("the new password: %v", err)
		}
	})
}

func TestDeletingAnAccountEndsEverythingAndFreesTheName(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		caller := env.caller(t, tokens)
		if err := env.DeleteOwn(t.Context(), caller, "wrong password", phone()); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("wrong password: %v", err)
		}
		testenv.Must(t, env.DeleteOwn(t.Context(), caller, goodPassword, phone()))
		env.over(t, tokens)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "AllSessionsRevoked", "UserDeleted")
		if err := env.LogoutRefresh(t.Context(), tokens.RefreshToken); err != nil {
			t.Errorf("sign out of a deleted account: %v", err)
		}
		if _, err := env.Login(t.Context(), Credentials{name, goodPassword},
			phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("sign in: %v", err)
		}
		again, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone())
		testenv.Must(t, err)
		if env.caller(t, again).User.ID == caller.User.ID {
			t.Error("the id was reused")
		}
	})
}

// The counter of a deleted account's events is deleted after the retention.
func TestADeletedAccountIsCountedNoMore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		env.newUser(t)
		counters := func() (n int) {
			t.Helper()
			testenv.Must(t, outbox.Retain(t.Context(), env.db, -time.Minute))
			testenv.Must(t, env.db.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox_key").Scan(&n))
			return n
		}
		if n := counters(); n != 2 {
			t.Fatalf("%d counters for two accounts", n)
		}
		testenv.Must(t, env.DeleteUser(t.Context(), env.caller(t, tokens).User.ID))
		if n := counters(); n != 1 {
			t.Errorf("%d counters for one account", n)
		}
	})
}

func TestTheOldestSessionGivesWay(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions = 2 }, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		first = env.live(t, first) // used last
		third := env.signIn(t, name)
		env.over(t, second)
		env.live(t, first)
		env.live(t, third)
		list := env.expectEvents(t, env.caller(t, third).User.ID, "UserRegistered", "UserLoggedIn", "SessionRevoked",
			"UserLoggedIn")
		if got := list[2].Data; got["reason"] != "evicted" || got["sid"] != second.SessionID.String() {
			t.Errorf("the event says %v", got)
		}
	})
}

// An operator has lowered the limit: the next sign-in ends all sessions above it, each with its event.
func TestALoweredLimitEndsEverySessionAboveIt(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		above := []Tokens{first}
		for range 5 {
			above = append(above, env.signIn(t, name))
		}
		env.cfg.MaxSessions = 1
		last := env.another(t).signIn(t, name)
		env.live(t, last)
		for _, one := range above {
			env.over(t, one)
		}
		events := env.events(t, env.caller(t, last).User.ID)
		ended := map[any]bool{}
		for _, e := range events {
			if e.Type == EventSessionRevoked && e.Data["reason"] == string(ReasonEvicted) {
				ended[e.Data["sid"]] = true
			}
		}
		if len(events) != 2*len(above)+1 || len(ended) != len(above) {
			t.Errorf("%d events, of which %d say the end of another session; %d ended", len(events), len(ended), len(above))
		}
	})
}

// However many sessions a sign-in ends, it asks the database as often.
func TestManySessionsEndInFewRoundTrips(t *testing.T) { // not parallel: it sets the environment
	db := dbtest.Postgres(t)
	collector := tracingtest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tracer, err := tracing.Open(t.Context(), "test", zap.NewNop())
	testenv.Must(t, err)
	env := newEnv(t, testConfig(), db, nil)
	asked := map[string]int{}
	for _, many := range []int{1, 20} {
		name, _ := env.newUser(t)
		for range many - 1 {
			env.signIn(t, name)
		}
		one := env.cfg
		one.MaxSessions = 1
		server := newEnv(t, one, db, nil)
		ctx, span := tracer.Server(t.Context(), func(string) string { return "" }, fmt.Sprint(many), time.Now())
		if _, err := server.Login(ctx, Credentials{name, goodPassword}, phone()); err != nil {
			t.Fatal(err)
		}
		span.End()
	}
	testenv.Must(t, tracer.Close())
	names := map[string]string{}
	for _, span := range collector.Spans() {
		if span.Parent == "" {
			names[span.Trace] = span.Name
		}
	}
	for _, span := range collector.Spans() {
		if span.Attributes["db.system.name"] != "" {
			asked[names[span.Trace]]++
		}
	}
	if asked["1"] == 0 || asked["20"] != asked["1"] {
		t.Errorf("to end 1 and 20 sessions the database was asked %v times", asked)
	}
}

func TestAtTheLimitASignInMayBeRefused(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions, c.SessionLimit = 1, "reject-new" }, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		if _, err := env.Login(t.Context(), Credentials{name, goodPassword},
			phone()); !errors.Is(err, ErrTooManySessions) {
			t.Errorf("got %v", err)
		}
		env.live(t, tokens)
	})
}

func TestASessionRecordLeftInTheStoreIsRefusedAfterItsEnd(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		user := env.caller(t, first).User.ID
		// The store was down when the sessions ended, so only the database knows.
		testenv.Must(t, env.commitRevocation(t.Context(), user, first.SessionID, ReasonLogout))
		env.over(t, first)
		a, err := accountByID(t.Context(), env.db, user)
		testenv.Must(t, err)
		if _, err := raiseEpoch(t.Context(), env.db, a, uuid.NullUUID{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if list, err := env.SessionsOf(t.Context(), user); err != nil || len(list) != 0 {
			t.Errorf("listed %v, %v", list, err)
		}
		env.over(t, second)
	})
}

func TestTheLongestDeviceNameIsKeptWhole(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		longest := strings.Repeat("\U0001F4F1", 100) // of four bytes each
		dev := phone()
		dev.Name = longest
		if _, err := env.Login(t.Context(), Credentials{Username: name, Password: goodPassword}, dev); err != nil {
			t.Fatal(err)
		}
		list, err := env.Sessions(t.Context(), env.caller(t, first))
		if err != nil || !slices.ContainsFunc(list, func(one Session) bool { return one.DeviceName == longest }) {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func TestASessionThatEndedWithAllOthersDoesNotEndAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		caller := env.caller(t, first)
		testenv.Must(t, env.EndSessions(t.Context(), caller, false))
		if err := env.LogoutRefresh(t.Context(), first.RefreshToken); err != nil { // as apps do that are refused
			t.Fatal(err)
		}
		testenv.Must(t, env.Revoke(t.Context(), first.RefreshToken))
		// Redis was away when it ended, and a token of its record is used again.
		testenv.Must(t, env.announceReuse(t.Context(), caller.User.ID, first.SessionID, 1, "", ""))
		second := env.signIn(t, name)
		testenv.Must(t, env.LogoutRefresh(t.Context(), second.RefreshToken))
		env.over(t, second)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "AllSessionsRevoked", "UserLoggedIn", "SessionRevoked")
	})
}

// Another sign-in may have found the session as one above the limit, just before all of the account ended.
func TestASessionThatEndedWithAllOthersIsNotEvicted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, first := env.newUser(t)
		second := env.signIn(t, name)
		caller := env.caller(t, second)
		if err := env.EndSessions(t.Context(), caller, true); err != nil { // all but the second
			t.Fatal(err)
		}
		err := env.transact(t.Context(), func(ctx context.Context, tx database.Tx) error {
			a, err := lockAccount(ctx, tx, caller.User.ID)
			if err != nil {
				return err
			}
			evicted, err := env.evict(ctx, tx, a,
				[]session.Excess{{ID: first.SessionID, Tentative: true}, {ID: second.SessionID}})
			if len(evicted) != 1 || evicted[0] != second.SessionID {
				t.Errorf("announced %v", evicted)
			}
			return err
		})
		testenv.Must(t, err)
		env.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn", "AllSessionsRevoked", "SessionRevoked")
	})
}

// The owner takes the account back from a thief, whatever else the workers have to hash.
func TestAPasswordIsClosedWithoutHashing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		user, free := env.caller(t, tokens).User, env.another(t)
		_ = env.passwords.Close()
		testenv.Must(t, env.ClosePassword(t.Context(), user.ID, phone(), nil))
		env.over(t, tokens)
		_, err := free.Login(t.Context(), Credentials{name, goodPassword}, phone())
		if !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("a sign-in with the former password: %v", err)
		}
		testenv.Must(t, free.ResetPassword(t.Context(), user.ID, goodPassword, phone(), nil))
		free.signIn(t, name)
	})
}

func TestLongPasswordsCountInFull(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name := "long-" + uuid.NewString()
		long := strings.Repeat("😀é日", 85) // 255 code points, far beyond bcrypt's 72 bytes
		if _, err := env.Register(t.Context(), Credentials{name, long + "x"}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.Login(t.Context(), Credentials{name, long + "y"},
			phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("another last character: %v", err)
		}
		if _, err := env.Login(t.Context(), Credentials{name, long + "x"}, phone()); err != nil {
			t.Errorf("the password: %v", err)
		}
	})
}

func TestAWeakerHashIsRenewedBySigningIn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		user := env.caller(t, tokens).User.ID
		stronger := env.cfg
		stronger.Password.BcryptCost = 5
		newEnv(t, stronger, env.db, env.redis).signIn(t, name)
		a, err := accountByID(t.Context(), env.db, user)
		testenv.Must(t, err)
		if !strings.HasPrefix(a.passwordHash, "$2b$05$") {
			t.Errorf("still %.7s", a.passwordHash)
		}
		env.signIn(t, name)
	})
}

func TestIntrospectionTellsOnlyOfLiveTokens(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
			in, active, err := env.Introspect(t.Context(), text)
			if err != nil || !active || in.SessionID != tokens.SessionID {
				t.Errorf("live: %v %v %v", in, active, err)
			}
		}
		next := env.live(t, tokens)
		if _, active, err := env.Introspect(t.Context(), tokens.RefreshToken); err != nil || active {
			t.Errorf("a replaced refresh token: %v %v", active, err)
		}
		testenv.Must(t, env.Revoke(t.Context(), next.RefreshToken))
		for _, text := range []string{next.AccessToken, next.RefreshToken, "", "x.y.z", "art_"} {
			if _, active, err := env.Introspect(t.Context(), text); err != nil || active {
				t.Errorf("%.10s: %v %v", text, active, err)
			}
			if err := env.Revoke(t.Context(), text); err != nil {
				t.Errorf("revoke %.10s: %v", text, err)
			}
		}
	})
}

// For a name without an account, PostgreSQL reads some other row, to take the same time.
func TestANameThatIsNobodysIsNobody(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		names := []string{}
		for range 3 { // the query reads the oldest account
			name, _ := env.newUser(t)
			names = append(names, name)
		}
		if _, err := env.Login(t.Context(), Credentials{"nobody-at-all", goodPassword},
			phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("with the password of the others: %v", err)
		}
		for _, name := range names {
			if a, err := accountByName(t.Context(), env.db, name); err != nil || a.Username != name {
				t.Errorf("%s is %q, %v", name, a.Username, err)
			}
		}
	})
}
