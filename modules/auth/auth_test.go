package auth

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

func TestRegisterMakesAnAccountAndASession(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, tokens := w.newcomer(t)
		caller := w.caller(t, tokens)
		if caller.User.Username != name || caller.SessionID != tokens.SessionID {
			t.Errorf("the access token speaks for %s, session %s", caller.User.Username, caller.SessionID)
		}
		list := w.expectEvents(t, caller.User.ID, "UserRegistered")
		if list[0].Data["sid"] != tokens.SessionID.String() || list[0].Data["username"] != name {
			t.Errorf("the event says %v", list[0].Data)
		}
		w.live(t, tokens)
	})
}

func TestRegisterRefusesANameThatIsTakenInAnyCase(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, _ := w.newcomer(t)
		_, err := w.Register(t.Context(), Credentials{strings.ToUpper(name), goodPassword}, phone())
		if !errors.Is(err, ErrUsernameTaken) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOfParallelRegistrationsOfOneNameOneSucceeds(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name := "racer-" + uuid.NewString()
		var mu sync.Mutex
		won, lost := 0, 0
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, err := w.Register(t.Context(), Credentials{name, goodPassword}, phone())
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
	each(t, func(t *testing.T, w *world) {
		dev := phone()
		dev.Name = strings.Repeat("x", 101)
		_, err := w.Register(t.Context(), Credentials{"a", "short"}, dev)
		f, ok := errors.AsType[*fault.Fault](err)
		if !ok || !errors.Is(err, ErrValidation) {
			t.Fatalf("got %v", err)
		}
		var fields []string
		for _, field := range f.Fields {
			fields = append(fields, field.Field+" "+field.Code)
		}
		if want := []string{"username too_short", "password too_short", "device_name too_long"}; !slices.Equal(fields, want) {
			t.Errorf("got %v, want %v", fields, want)
		}
	})
}

func TestLoginAnswersTheSameForAMissingNameAndAWrongPassword(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, _ := w.newcomer(t)
		for _, cred := range []Credentials{{name, "not the password"}, {"nobody-" + uuid.NewString(), goodPassword}, {"", ""}, {"no such form of name!", "x"}} {
			if _, err := w.Login(t.Context(), cred, phone()); err != error(ErrInvalidCredentials) {
				t.Errorf("%q: got %v", cred.Username, err)
			}
		}
	})
}

func TestLoginBeginsASessionOfItsOwn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, strings.ToUpper(name))
		if second.SessionID == first.SessionID {
			t.Error("two sign-ins share a session")
		}
		caller := w.caller(t, second)
		list := w.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn")
		if got := list[1].Data; got["sid"] != second.SessionID.String() || got["ip"] != "192.0.2.7" || got["device_name"] != "Firefox on Linux" {
			t.Errorf("the event says %v", got)
		}
		w.live(t, first)
		w.live(t, second)
	})
}

func TestADisabledAccountIsToldOnlyToWhoKnowsThePassword(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, tokens := w.newcomer(t)
		user := w.caller(t, tokens).User
		if err := w.DisableUser(t.Context(), user.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, "wrong password"}, phone()); err != error(ErrInvalidCredentials) {
			t.Errorf("wrong password: %v", err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, goodPassword}, phone()); !errors.Is(err, ErrAccountDisabled) {
			t.Errorf("right password: %v", err)
		}
		w.over(t, tokens)
		if err := w.EnableUser(t.Context(), user.ID); err != nil {
			t.Fatal(err)
		}
		w.over(t, tokens) // what ended stays ended
		w.live(t, w.signIn(t, name))
		if err := w.EnableUser(t.Context(), user.ID); err != nil {
			t.Fatal(err)
		}
		w.expectEvents(t, user.ID, "UserRegistered", "UserDisabled", "AllSessionsRevoked", "UserEnabled", "UserLoggedIn")
	})
}

func TestRefreshReplacesTheTokenAndReplaysItsSuccessor(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		_, first := w.newcomer(t)
		second, err := w.Refresh(t.Context(), first.RefreshToken, phone())
		if err != nil {
			t.Fatal(err)
		}
		if second.RefreshToken == first.RefreshToken || second.SessionID != first.SessionID || second.Replayed {
			t.Errorf("not a successor: %v", second)
		}
		again, err := w.another(t).Refresh(t.Context(), first.RefreshToken, phone())
		if err != nil {
			t.Fatal(err)
		}
		if again.RefreshToken != second.RefreshToken || !again.Replayed {
			t.Error("the replaced token did not get the same successor again")
		}
		w.live(t, again)
	})
}

// A request is sent again, or overtaken, while its client has long gone on.
func TestALateDuplicateGetsTheNewestToken(t *testing.T) {
	t.Parallel()
	for _, grace := range []time.Duration{30 * time.Second, time.Minute} {
		t.Run(grace.String(), func(t *testing.T) {
			t.Parallel()
			eachWith(t, func(c *Config) { c.RefreshGrace = grace }, func(t *testing.T, w *world) {
				_, first := w.newcomer(t)
				user := w.caller(t, first).User.ID
				replaced, newest := []Tokens{first}, w.live(t, first)
				for range 5 {
					replaced, newest = append(replaced, newest), w.live(t, newest)
				}
				another := w.another(t)
				for i, old := range replaced {
					again, err := another.Refresh(t.Context(), old.RefreshToken, phone())
					if err != nil {
						t.Fatalf("token %d: %v", i, err)
					}
					if again.RefreshToken != newest.RefreshToken || !again.Replayed || again.SessionID != first.SessionID {
						t.Errorf("token %d does not get the newest", i)
					}
					w.caller(t, again)
				}
				w.live(t, newest)
				w.expectEvents(t, user, "UserRegistered")
			})
		})
	}
}

// More are turned in the window than lead to the newest: the oldest is refused, and ends nothing.
func TestATokenThatIsTooOldForTheChainEndsNothing(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = time.Minute }, func(t *testing.T, w *world) {
		_, first := w.newcomer(t)
		user := w.caller(t, first).User.ID
		newest := first
		for range session.MaxLinks + 5 {
			var err error
			if newest, err = w.Refresh(t.Context(), newest.RefreshToken, phone()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.Refresh(t.Context(), first.RefreshToken, phone())
		if refused, ok := errors.AsType[*fault.Fault](err); !ok || refused.Code != "invalid_refresh_token" || refused.Message == "" {
			t.Errorf("the first token: %v", err)
		}
		if _, live, err := w.Introspect(t.Context(), first.RefreshToken); err != nil || live {
			t.Errorf("introspection of the first token: %v, %v", live, err)
		}
		newest = w.live(t, newest)
		w.expectEvents(t, user, "UserRegistered")
		if err := w.LogoutRefresh(t.Context(), first.RefreshToken); err != nil { // who signs out wants to be signed out
			t.Error(err)
		}
		w.over(t, newest)
		if _, err := w.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrSessionRevoked) {
			t.Errorf("the first token after the end: %v", err)
		}
	})
}

func TestAReplacedTokenEndsTheSessionAndIsAnnounced(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		other := w.signIn(t, name)
		second := w.live(t, first)
		third := w.live(t, second)
		if _, err := w.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Fatalf("an older token: %v", err)
		}
		w.over(t, third)
		w.live(t, other)
		user := w.caller(t, other).User.ID
		list := w.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "RefreshTokenReuseDetected", "SessionRevoked")
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
	eachWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, w *world) {
		_, first := w.newcomer(t)
		second := w.live(t, first)
		if _, err := w.Refresh(t.Context(), first.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Fatalf("got %v", err)
		}
		w.over(t, second)
	})
}

func TestReuseThatCouldNotBeAnnouncedIsAnnouncedByHousekeeping(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.RefreshGrace = 0 }, func(t *testing.T, w *world) {
		_, first := w.newcomer(t)
		user := w.caller(t, first).User.ID
		second := w.live(t, first)
		// The server dies between stopping the session in the store and the transaction: the
		// store is told what a refresh would tell it, and nothing follows.
		presented, err := w.codec.Parse(first.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		_, rotation := w.codec.Next(presented)
		rotation.IdleTTL = time.Hour
		if _, err := w.sessions.Rotate(t.Context(), rotation); err != nil {
			t.Fatal(err)
		}
		w.expectEvents(t, user, "UserRegistered")
		if _, err := w.Refresh(t.Context(), second.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
			t.Errorf("the stopped session goes on: %v", err)
		}
		w.expectEvents(t, user, "UserRegistered", "RefreshTokenReuseDetected", "SessionRevoked")

		_, other := w.newcomer(t)
		otherUser := w.caller(t, other).User.ID
		w.live(t, other)
		if presented, err = w.codec.Parse(other.RefreshToken); err != nil {
			t.Fatal(err)
		}
		_, rotation = w.codec.Next(presented)
		rotation.IdleTTL = time.Hour
		if _, err := w.sessions.Rotate(t.Context(), rotation); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(testenv.Patience)
		for len(w.events(t, otherUser)) < 3 && time.Now().Before(deadline) {
			w.another(t).Housekeep(t.Context()) // on Redis a round looks at a part of the keys
		}
		w.expectEvents(t, otherUser, "UserRegistered", "RefreshTokenReuseDetected", "SessionRevoked")
	})
}

func TestGarbageEndsNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		_, tokens := w.newcomer(t)
		text := []byte(tokens.RefreshToken)
		for _, at := range []int{4, 10, 30, 60, 90, len(text) - 1} {
			broken := slices.Clone(text)
			broken[at] = 'A' + (broken[at]+1)%26
			if string(broken) == tokens.RefreshToken {
				continue
			}
			if _, err := w.Refresh(t.Context(), string(broken), phone()); !errors.Is(err, ErrInvalidRefreshToken) {
				t.Errorf("with byte %d changed: %v", at, err)
			}
			if err := w.LogoutRefresh(t.Context(), string(broken)); !errors.Is(err, ErrInvalidRefreshToken) {
				t.Errorf("sign out with byte %d changed: %v", at, err)
			}
		}
		w.live(t, tokens)
	})
}

func TestLogoutEndsTheSessionAndIsIdempotent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, name)
		user := w.caller(t, first).User.ID
		for range 2 {
			if err := w.LogoutRefresh(t.Context(), first.RefreshToken); err != nil {
				t.Fatal(err)
			}
			if err := w.LogoutAccess(t.Context(), first.AccessToken); err != nil {
				t.Fatal(err)
			}
		}
		w.over(t, first)
		for range 2 {
			if err := w.LogoutAccess(t.Context(), second.AccessToken); err != nil {
				t.Fatal(err)
			}
		}
		w.over(t, second)
		list := w.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "SessionRevoked", "SessionRevoked")
		if got := list[2].Data; got["reason"] != "logout" || got["expires_at"] == nil {
			t.Errorf("the event says %v", got)
		}
		if err := w.LogoutAccess(t.Context(), "not a token"); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("garbage: %v", err)
		}
	})
}

func TestSessionsAreListedAndEndedByTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, name)
		_, stranger := w.newcomer(t)
		caller := w.caller(t, first)
		list, err := w.Sessions(t.Context(), caller)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 2 {
			t.Fatalf("%d sessions", len(list))
		}
		for _, one := range list {
			if one.Current != (one.ID == first.SessionID) || one.DeviceName != "Firefox on Linux" || one.IP != "192.0.2.7" {
				t.Errorf("listed as %+v", one)
			}
		}
		for _, sid := range []uuid.UUID{stranger.SessionID, uuid.New()} {
			if err := w.EndSession(t.Context(), caller, sid); !errors.Is(err, ErrSessionNotFound) {
				t.Errorf("a session that is not ours: %v", err)
			}
		}
		w.live(t, stranger)
		if err := w.EndSession(t.Context(), caller, second.SessionID); err != nil {
			t.Fatal(err)
		}
		w.over(t, second)
		first = w.live(t, first)
		if err := w.EndSession(t.Context(), caller, second.SessionID); !errors.Is(err, ErrSessionNotFound) {
			t.Errorf("a session that has ended: %v", err)
		}
		if err := w.EndSession(t.Context(), caller, first.SessionID); err != nil {
			t.Fatal(err)
		}
		w.over(t, first)
	})
}

func TestEndingAllSessionsMayKeepTheCallingOne(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second, third := w.signIn(t, name), w.signIn(t, name)
		if err := w.EndSessions(t.Context(), w.caller(t, second), true); err != nil {
			t.Fatal(err)
		}
		w.over(t, first)
		w.over(t, third)
		second = w.live(t, second)
		fourth := w.signIn(t, name)
		if err := w.EndSessions(t.Context(), w.caller(t, fourth), true); err != nil {
			t.Fatal(err)
		}
		w.over(t, second) // kept once is not kept for ever
		fourth = w.live(t, fourth)
		user := w.caller(t, fourth).User.ID
		if err := w.EndSessions(t.Context(), w.caller(t, fourth), false); err != nil {
			t.Fatal(err)
		}
		w.over(t, fourth)
		list := w.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "UserLoggedIn", "AllSessionsRevoked", "UserLoggedIn", "AllSessionsRevoked", "AllSessionsRevoked")
		if got := list[3].Data; got["kept_sid"] != second.SessionID.String() || got["session_epoch"] != 1.0 {
			t.Errorf("the event says %v", got)
		}
		if got, there := list[6].Data["kept_sid"]; there {
			t.Errorf("nothing was kept, the event says %v", got)
		}
	})
}

func TestChangingThePasswordKeepsTheCallingSessionAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, name)
		caller := w.caller(t, first)
		const replacement = "an even better password"
		if _, err := w.ChangePassword(t.Context(), caller, "wrong password", replacement, phone()); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("wrong password: %v", err)
		}
		if _, err := w.ChangePassword(t.Context(), caller, goodPassword, "short", phone()); !errors.Is(err, ErrValidation) {
			t.Errorf("bad password: %v", err)
		}
		w.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn")
		after, err := w.ChangePassword(t.Context(), caller, goodPassword, replacement, phone())
		if err != nil {
			t.Fatal(err)
		}
		if after.SessionID != first.SessionID || after.RefreshToken == first.RefreshToken {
			t.Error("the calling session did not go on with new tokens")
		}
		w.over(t, second)
		w.expectEvents(t, caller.User.ID, "UserRegistered", "UserLoggedIn", "PasswordChanged", "AllSessionsRevoked")
		// The answer was lost: the client still has the old refresh token.
		lost, err := w.Refresh(t.Context(), first.RefreshToken, phone())
		if err != nil {
			t.Fatalf("the former refresh token within the window: %v", err)
		}
		if lost.RefreshToken != after.RefreshToken || !lost.Replayed {
			t.Error("the former refresh token did not get the new one")
		}
		w.live(t, after)
		if _, err := w.Login(t.Context(), Credentials{name, goodPassword}, phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("the old password: %v", err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, replacement}, phone()); err != nil {
			t.Errorf("the new password: %v", err)
		}
	})
}

func TestDeletingAnAccountEndsEverythingAndFreesTheName(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, tokens := w.newcomer(t)
		caller := w.caller(t, tokens)
		if err := w.DeleteOwn(t.Context(), caller, "wrong password", phone()); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("wrong password: %v", err)
		}
		if err := w.DeleteOwn(t.Context(), caller, goodPassword, phone()); err != nil {
			t.Fatal(err)
		}
		w.over(t, tokens)
		w.expectEvents(t, caller.User.ID, "UserRegistered", "AllSessionsRevoked", "UserDeleted")
		if err := w.LogoutRefresh(t.Context(), tokens.RefreshToken); err != nil {
			t.Errorf("sign out of an account that is gone: %v", err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, goodPassword}, phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("sign in: %v", err)
		}
		again, err := w.Register(t.Context(), Credentials{name, goodPassword}, phone())
		if err != nil {
			t.Fatal(err)
		}
		if w.caller(t, again).User.ID == caller.User.ID {
			t.Error("the id was used again")
		}
	})
}

// What is kept to count an account's events goes with the account, a retention later.
func TestADeletedAccountIsCountedNoMore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		_, tokens := w.newcomer(t)
		w.newcomer(t)
		counters := func() (n int) {
			t.Helper()
			if err := outbox.Retain(t.Context(), w.db, -time.Minute); err != nil {
				t.Fatal(err)
			}
			if err := w.db.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox_key").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := counters(); n != 2 {
			t.Fatalf("%d counters for two accounts", n)
		}
		if err := w.DeleteUser(t.Context(), w.caller(t, tokens).User.ID); err != nil {
			t.Fatal(err)
		}
		if n := counters(); n != 1 {
			t.Errorf("%d counters for one account", n)
		}
	})
}

func TestTheOldestSessionGivesWay(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions = 2 }, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, name)
		first = w.live(t, first) // used last
		third := w.signIn(t, name)
		w.over(t, second)
		w.live(t, first)
		w.live(t, third)
		list := w.expectEvents(t, w.caller(t, third).User.ID, "UserRegistered", "UserLoggedIn", "SessionRevoked", "UserLoggedIn")
		if got := list[2].Data; got["reason"] != "evicted" || got["sid"] != second.SessionID.String() {
			t.Errorf("the event says %v", got)
		}
	})
}

func TestAtTheLimitASignInMayBeRefused(t *testing.T) {
	t.Parallel()
	eachWith(t, func(c *Config) { c.MaxSessions, c.SessionLimit = 1, "reject-new" }, func(t *testing.T, w *world) {
		name, tokens := w.newcomer(t)
		if _, err := w.Login(t.Context(), Credentials{name, goodPassword}, phone()); !errors.Is(err, ErrTooManySessions) {
			t.Errorf("got %v", err)
		}
		w.live(t, tokens)
	})
}

func TestASessionRecordLeftInTheStoreIsRefusedAfterItsEnd(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, first := w.newcomer(t)
		second := w.signIn(t, name)
		user := w.caller(t, first).User.ID
		// The store was away when the sessions ended: only the database knows.
		if err := w.commitRevocation(t.Context(), user, first.SessionID, ReasonLogout); err != nil {
			t.Fatal(err)
		}
		w.over(t, first)
		a, err := accountByID(t.Context(), w.db, user)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raiseEpoch(t.Context(), w.db, a, uuid.NullUUID{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if list, err := w.SessionsOf(t.Context(), user); err != nil || len(list) != 0 {
			t.Errorf("listed %v, %v", list, err)
		}
		w.over(t, second)
	})
}

func TestLongPasswordsCountInFull(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name := "long-" + uuid.NewString()
		long := strings.Repeat("😀é日", 85) // 255 code points, far beyond bcrypt's 72 bytes
		if _, err := w.Register(t.Context(), Credentials{name, long + "x"}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, long + "y"}, phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("another last character: %v", err)
		}
		if _, err := w.Login(t.Context(), Credentials{name, long + "x"}, phone()); err != nil {
			t.Errorf("the password: %v", err)
		}
	})
}

func TestAWeakerHashIsRenewedBySigningIn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		name, tokens := w.newcomer(t)
		user := w.caller(t, tokens).User.ID
		stronger := w.cfg
		stronger.Password.BcryptCost = 5
		newWorld(t, stronger, w.db, w.redis).signIn(t, name)
		a, err := accountByID(t.Context(), w.db, user)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(a.passwordHash, "$2b$05$") {
			t.Errorf("still %.7s", a.passwordHash)
		}
		w.signIn(t, name)
	})
}

func TestIntrospectionTellsOnlyOfLiveTokens(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		_, tokens := w.newcomer(t)
		for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
			in, active, err := w.Introspect(t.Context(), text)
			if err != nil || !active || in.SessionID != tokens.SessionID {
				t.Errorf("live: %v %v %v", in, active, err)
			}
		}
		next := w.live(t, tokens)
		if _, active, err := w.Introspect(t.Context(), tokens.RefreshToken); err != nil || active {
			t.Errorf("a replaced refresh token: %v %v", active, err)
		}
		if err := w.Revoke(t.Context(), next.RefreshToken); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{next.AccessToken, next.RefreshToken, "", "x.y.z", "art_"} {
			if _, active, err := w.Introspect(t.Context(), text); err != nil || active {
				t.Errorf("%.10s: %v %v", text, active, err)
			}
			if err := w.Revoke(t.Context(), text); err != nil {
				t.Errorf("revoke %.10s: %v", text, err)
			}
		}
	})
}

// PostgreSQL reads somebody's row for a name that is nobody's, to take as long.
func TestANameThatIsNobodysIsNobody(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		names := []string{}
		for range 3 { // the oldest is the one that is read
			name, _ := w.newcomer(t)
			names = append(names, name)
		}
		if _, err := w.Login(t.Context(), Credentials{"nobody-at-all", goodPassword}, phone()); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("with the password of the others: %v", err)
		}
		for _, name := range names {
			if a, err := accountByName(t.Context(), w.db, name); err != nil || a.Username != name {
				t.Errorf("%s is %q, %v", name, a.Username, err)
			}
		}
	})
}
