package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// denylist is what a verifier keeps of the revocations.
type denylist struct {
	t      testing.TB
	follow *Following
	cursor string

	sessions map[uuid.UUID]time.Time // when the entry may be forgotten
	accounts map[uuid.UUID]accountEnd
	keys     map[string]time.Time
}

type accountEnd struct {
	epoch   int64
	kept    uuid.UUID
	expires time.Time
}

func (env *testEnv) denylist(t testing.TB) *denylist {
	t.Helper()
	f, err := env.FollowRevocations(Follower{Client: "test", Name: t.Name()})
	testenv.Must(t, err)
	t.Cleanup(f.Close)
	return &denylist{
		t: t, follow: f,
		sessions: map[uuid.UUID]time.Time{}, accounts: map[uuid.UUID]accountEnd{}, keys: map[string]time.Time{},
	}
}

// catchUp applies all new facts. A database that answers late on a busy machine is asked again.
func (d *denylist) catchUp() {
	d.t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for more := true; more; {
		page, err := d.follow.Next(context.WithoutCancel(d.t.Context()), d.cursor, 50*time.Millisecond)
		if errors.Is(err, ErrRevocationsUnknown) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			d.t.Fatal(err)
		}
		var answer struct {
			Revocations []struct {
				Type      string
				Sid, Sub  uuid.UUID
				Epoch     int64     `json:"session_epoch"`
				Kept      uuid.UUID `json:"kept_sid"`
				Kid       string
				ExpiresAt time.Time `json:"expires_at"`
			}
		}
		if err := json.Unmarshal(page.JSON, &answer); err != nil {
			d.t.Fatal(err)
		}
		for _, one := range answer.Revocations {
			switch one.Type {
			case "session":
				d.sessions[one.Sid] = one.ExpiresAt
			case "account":
				if one.Epoch > d.accounts[one.Sub].epoch {
					d.accounts[one.Sub] = accountEnd{one.Epoch, one.Kept, one.ExpiresAt}
				}
			case "key":
				d.keys[one.Kid] = one.ExpiresAt
			}
		}
		d.cursor, more = page.Cursor, page.More
	}
}

// refuses reports whether the denylist refuses a token, and until when it is remembered.
func (d *denylist) refuses(access string) (until time.Time, over bool) {
	d.t.Helper()
	decoded, err := token.Inspect(access)
	if err != nil {
		d.t.Fatal(err)
	}
	kid, _ := decoded.Header["kid"].(string)
	claim := func(name string) uuid.UUID { return uuid.MustParse(fmt.Sprint(decoded.Claims[name])) }
	epoch := int64(0)
	_, _ = fmt.Sscan(fmt.Sprint(decoded.Claims["session_epoch"]), &epoch)
	if until, over = d.sessions[claim("sid")]; over {
		return until, true
	}
	if until, over = d.keys[kid]; over {
		return until, true
	}
	a, found := d.accounts[claim("sub")]
	return a.expires, found && epoch < a.epoch && claim("sid") != a.kept
}

// learns waits until a token is refused.
func (d *denylist) learns(access string) {
	d.t.Helper()
	var until time.Time
	testenv.Eventually(d.t, "the verifier refuses the token", func() (over bool) {
		d.catchUp()
		until, over = d.refuses(access)
		return over
	})
	decoded, err := token.Inspect(access)
	if err != nil {
		d.t.Fatal(err)
	}
	report := TokenReport{Claims: decoded.Claims}
	if exp, ok := report.Time("exp"); !ok || until.Before(exp.Add(token.Leeway)) {
		d.t.Errorf("forgotten at %v, but the token lives until %v", until, exp)
	}
}

// wayToEnd ends the victim, and if all is set the account's other session too.
type wayToEnd struct {
	name string
	all  bool
	do   func(env *testEnv, victim, other Tokens, name string) error
}

var waysToEnd = []wayToEnd{
	{"logout by refresh token", false, func(env *testEnv, victim, _ Tokens, _ string) error {
		return env.LogoutRefresh(context.Background(), victim.RefreshToken)
	}},
	{"logout by access token", false, func(env *testEnv, victim, _ Tokens, _ string) error {
		_, err := env.LogoutAccess(context.Background(), victim.AccessToken)
		return err
	}},
	{"revoked by a client", false, func(env *testEnv, victim, _ Tokens, _ string) error {
		return env.Revoke(context.Background(), victim.RefreshToken)
	}},
	{"ended from another session", false, func(env *testEnv, victim, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.EndSession(ctx, caller, victim.SessionID)
		})
	}},
	{"all but the current one", false, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.EndSessions(ctx, caller, true)
		})
	}},
	{"all", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.EndSessions(ctx, caller, false)
		})
	}},
	{"password changed", false, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			_, err := env.ChangePassword(ctx, caller, goodPassword, "another good password", phone())
			return err
		})
	}},
	{"password set by an operator", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.SetPassword(ctx, caller.User.ID, "another good password")
		})
	}},
	{"disabled", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.DisableUser(ctx, caller.User.ID)
		})
	}},
	{"deleted by its owner", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.DeleteOwn(ctx, caller, goodPassword, phone())
		})
	}},
	{"deleted by an operator", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			return env.DeleteUser(ctx, caller.User.ID)
		})
	}},
	{"revoked by an operator", false, func(env *testEnv, victim, _ Tokens, _ string) error {
		_, err := env.RevokeSessions(context.Background(),
			SessionFilter{ID: uuid.NullUUID{UUID: victim.SessionID, Valid: true}})
		return err
	}},
	{"all revoked by an operator", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			_, err := env.RevokeSessions(ctx, SessionFilter{UserID: uuid.NullUUID{UUID: caller.User.ID, Valid: true}})
			return err
		})
	}},
	{"everybody's revoked by an operator", true, func(env *testEnv, _, _ Tokens, _ string) error {
		_, err := env.RevokeSessions(context.Background(), SessionFilter{Everybody: true})
		return err
	}},
	{"a refresh token used again", false, func(env *testEnv, victim, _ Tokens, _ string) error {
		for range 2 {
			next, err := env.Refresh(context.Background(), victim.RefreshToken, phone())
			if err != nil {
				return err
			}
			defer func(old string) { _, _ = env.Refresh(context.Background(), old, phone()) }(victim.RefreshToken)
			victim = next
		}
		return nil
	}},
	{"evicted by newer sessions", false, func(env *testEnv, _, other Tokens, name string) error {
		// The victim is the least recently used of two sessions.
		other, err := env.Refresh(context.Background(), other.RefreshToken, phone())
		if err != nil {
			return err
		}
		_, err = env.Login(context.Background(), Credentials{name, goodPassword}, phone())
		return err
	}},
	{"deleted by a statement", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			_, err := env.db.Write(ctx, "DELETE FROM users WHERE id = ?", caller.User.ID)
			return err
		})
	}},
}

func (env *testEnv) asCaller(tokens Tokens, do func(context.Context, Caller) error) error {
	caller, err := env.Authenticate(context.Background(), tokens.AccessToken)
	if err != nil {
		return err
	}
	return do(context.Background(), caller)
}

// However a session ends, followers learn of it and of nothing else, and so do those that begin to
// follow afterwards.
func TestEveryEndIsTold(t *testing.T) {
	t.Parallel()
	set := func(cfg *Config) { cfg.MaxSessions, cfg.RefreshGrace = 2, 0 }
	eachWith(t, set, func(t *testing.T, env *testEnv) {
		d := env.denylist(t)
		d.catchUp()
		ended := map[string]string{}
		var living []string
		for _, way := range waysToEnd {
			name, victim := env.newUser(t)
			other := env.signIn(t, name)
			_, bystander := env.newUser(t)
			if err := way.do(env, victim, other, name); err != nil {
				t.Fatalf("%s: %v", way.name, err)
			}
			d.learns(victim.AccessToken)
			ended[way.name] = victim.AccessToken
			if _, over := d.refuses(other.AccessToken); over != way.all {
				t.Errorf("%s: the account's other session has ended: %v", way.name, over)
			}
			if way.name != "everybody's revoked by an operator" {
				if _, over := d.refuses(bystander.AccessToken); over {
					t.Errorf("%s: another account's session has ended", way.name)
				}
			} else {
				living = nil
			}
			if !way.all {
				living = append(living, other.AccessToken)
			}
		}
		late := env.denylist(t)
		for name, access := range ended {
			t.Log(name)
			late.learns(access)
		}
		for _, access := range living {
			if _, over := late.refuses(access); over {
				t.Error("a new follower takes a live session for ended")
			}
		}
	})
}

func TestTheEndOfAKeyIsTold(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		d := env.denylist(t)
		d.catchUp()
		_, tokens := env.newUser(t)
		keys := env.keys // this server signs with it
		list, err := keys.List(t.Context())
		testenv.Must(t, err)
		if _, _, err := keys.Revoke(t.Context(), list[0].KID, true); err != nil {
			t.Fatal(err)
		}
		d.learns(tokens.AccessToken)
		if until, _ := d.refuses(tokens.AccessToken); time.Until(until) < 20*24*time.Hour {
			t.Errorf("a stolen key is forgotten at %v", until)
		}
		// After a revocation by force, its tokens are refused here, so they are refused elsewhere
		// too.
		staged, err := keys.Stage(t.Context())
		testenv.Must(t, err)
		_, next := env.newUser(t)
		d.catchUp()
		if _, over := d.refuses(next.AccessToken); over {
			t.Error("a token of the next key is refused")
		}
		list, err = keys.List(t.Context())
		testenv.Must(t, err)
		if _, err := keys.Promote(t.Context(), staged.KID, true); err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			if k.Status == KeyActive {
				if _, err := keys.Retire(t.Context(), k.KID, true); err != nil {
					t.Fatal(err)
				}
			}
		}
		d.learns(next.AccessToken)
	})
}

// A fact is kept as long as the tokens of any server live, whatever the settings of the server that
// ends the session. With a shared secret, that is the longest possible lifetime.
func TestAFactOutlivesTheTokensOfEveryServer(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{token.ES256, token.HS256} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			long := testConfig()
			long.Token.AccessTTL, long.Token.Algorithm = 20*time.Hour, algorithm
			db := dbtest.SQLite(t)
			former := newEnv(t, testConfig(), db, nil) // a server that has signed with a key
			former.newUser(t)
			generous := newEnv(t, long, db, nil)
			_, tokens := generous.newUser(t)
			d := former.denylist(t)
			testenv.Must(t, former.LogoutRefresh(t.Context(), tokens.RefreshToken))
			d.learns(tokens.AccessToken)
		})
	}
}

// heldStore holds the answer of a rotation until it is told to go on.
type heldStore struct {
	session.Store
	reached, release chan struct{}
}

func (h heldStore) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	got, err := h.Store.Rotate(ctx, r)
	close(h.reached)
	<-h.release
	return got, err
}

// beforeRotation does something between the check of a session and the rotation of its token.
type beforeRotation struct {
	session.Store
	do func()
}

func (b beforeRotation) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	b.do()
	return b.Store.Rotate(ctx, r)
}

// Who signs out during a refresh has ended the session. It has not expired.
func TestASessionThatEndsDuringARefreshIsRevoked(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		for name, end := range map[string]func(Caller) error{
			"signed out":      func(who Caller) error { return env.EndSession(t.Context(), who, who.SessionID) },
			"ended with all":  func(who Caller) error { return env.EndSessions(t.Context(), who, false) },
			"account deleted": func(who Caller) error { return env.DeleteUser(t.Context(), who.User.ID) },
		} {
			_, tokens := env.newUser(t)
			who, racing := env.caller(t, tokens), env.another(t)
			racing.sessions = beforeRotation{racing.sessions, func() {
				if err := end(who); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}}
			if _, err := racing.Refresh(t.Context(), tokens.RefreshToken, phone()); !errors.Is(err, ErrSessionRevoked) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// The session ends while a refresh of it is between the check of the session and its access token. Whatever
// becomes of the signing keys meanwhile, and however long it takes, the fact outlives the token.
func TestAFactOutlivesATokenThatIsBeingIssued(t *testing.T) {
	t.Parallel()
	meanwhile := map[string]func(t *testing.T, env *testEnv){
		"nothing": func(*testing.T, *testEnv) {},
		"another key signs": func(t *testing.T, env *testEnv) {
			list, err := env.keys.List(t.Context())
			testenv.Must(t, err)
			if _, _, err := env.keys.Revoke(t.Context(), list[0].KID, true); err != nil {
				t.Fatal(err)
			}
			// Followers know that the former key is revoked. What the new one signs counts.
			if _, err := env.db.ExecContext(t.Context(), "DELETE FROM revocation"); err != nil {
				t.Fatal(err)
			}
		},
		"hours pass": func(_ *testing.T, env *testEnv) { // the process was stopped, or its machine slept
			env.now = func() time.Time { return time.Now().Add(3 * time.Hour) }
		},
	}
	for name, change := range meanwhile {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, env *testEnv) {
				_, tokens := env.newUser(t)
				// A server whose tokens live longer than those of others, and which has signed none yet.
				env.cfg.Token.AccessTTL = 20 * time.Hour
				generous := env.another(t)
				held := heldStore{generous.sessions, make(chan struct{}), make(chan struct{})}
				generous.sessions = held
				var got Tokens
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					got, err = generous.Refresh(t.Context(), tokens.RefreshToken, phone())
				}()
				<-held.reached
				change(t, generous)
				testenv.Must(t, env.LogoutRefresh(t.Context(), tokens.RefreshToken))
				close(held.release)
				<-done
				testenv.Must(t, err)
				env.denylist(t).learns(got.AccessToken)
			})
		})
	}
}

func TestNoTokenIsIssuedBeforeItsOwnerSignedIn(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct{ signedIn, now, want time.Duration }{
		"the same second":             {900 * time.Millisecond, 950 * time.Millisecond, 0},
		"the next second":             {1100 * time.Millisecond, 1200 * time.Millisecond, time.Second},
		"an earlier sign-in":          {-time.Hour, 2 * time.Second, 0},
		"another clock is ahead":      {time.Hour, 1200 * time.Millisecond, time.Second},
		"the process was stopped":     {time.Hour, time.Hour, 0},
		"the second turns meanwhile":  {-time.Minute, 1200 * time.Millisecond, 0},
		"the own clock was set back":  {2 * time.Second, -time.Hour, 0},
		"a busy machine took seconds": {4 * time.Second, 5 * time.Second, 4 * time.Second},
	} {
		i := issuer{at: at, s: &Service{now: func() time.Time { return at.Add(c.now) }}}
		if got := i.issuedAt(session.Session{AuthTime: at.Add(c.signedIn)}).Sub(at); got != c.want {
			t.Errorf("%s: issued %v after the issuer was made, want %v", name, got, c.want)
		}
	}
}
