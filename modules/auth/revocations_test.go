package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// denylist is what a verifier elsewhere makes of the revocations.
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
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return &denylist{
		t: t, follow: f,
		sessions: map[uuid.UUID]time.Time{}, accounts: map[uuid.UUID]accountEnd{}, keys: map[string]time.Time{},
	}
}

// catchUp applies what there is.
func (d *denylist) catchUp() {
	d.t.Helper()
	for more := true; more; {
		page, err := d.follow.Next(context.WithoutCancel(d.t.Context()), d.cursor, 50*time.Millisecond)
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

// refuses reports whether a token is over, and until when that is remembered.
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
	if exp, ok := report.Time("exp"); !ok || until.Before(exp.Add(token.DefaultLeeway)) {
		d.t.Errorf("forgotten at %v, and the token lives until %v", until, exp)
	}
}

// wayToEnd ends the victim, and the other session of the account too where all says so.
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
		_, err := env.RevokeSessions(context.Background(), SessionFilter{ID: uuid.NullUUID{UUID: victim.SessionID, Valid: true}}, nil)
		return err
	}},
	{"all revoked by an operator", true, func(env *testEnv, _, other Tokens, _ string) error {
		return env.asCaller(other, func(ctx context.Context, caller Caller) error {
			_, err := env.RevokeSessions(ctx, SessionFilter{UserID: uuid.NullUUID{UUID: caller.User.ID, Valid: true}}, nil)
			return err
		})
	}},
	{"everybody's revoked by an operator", true, func(env *testEnv, _, _ Tokens, _ string) error {
		_, err := env.RevokeSessions(context.Background(), SessionFilter{Everybody: true}, nil)
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
	{"pushed out by newer ones", false, func(env *testEnv, _, other Tokens, name string) error {
		// The victim is the least recently used one of two.
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

// Whatever ends a session, those who follow learn of it, and of nothing else; and so do those
// who begin to follow afterwards.
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
				t.Errorf("%s: the account's other session is over: %v", way.name, over)
			}
			if way.name != "everybody's revoked by an operator" {
				if _, over := d.refuses(bystander.AccessToken); over {
					t.Errorf("%s: somebody else's session is over", way.name)
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
				t.Error("a live session is over for who begins to follow")
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
		keys := env.keys // which this server signs with
		list, err := keys.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := keys.Revoke(t.Context(), list[0].KID, true); err != nil {
			t.Fatal(err)
		}
		d.learns(tokens.AccessToken)
		if until, _ := d.refuses(tokens.AccessToken); time.Until(until) < 20*24*time.Hour {
			t.Errorf("a stolen key is forgotten at %v", until)
		}
		// Taken away by force, its tokens are refused here, and so they are elsewhere.
		staged, err := keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, next := env.newUser(t)
		d.catchUp()
		if _, over := d.refuses(next.AccessToken); over {
			t.Error("a token of the key that follows is refused")
		}
		list, err = keys.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
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

// A fact is kept for as long as any server's tokens live, whatever the settings of the one that
// ends, and where the shared secret signs for as long as they can.
func TestAFactOutlivesTheTokensOfEveryServer(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{token.ES256, token.HS256} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			long := testConfig()
			long.Token.AccessTTL, long.Token.Algorithm = 20*time.Hour, algorithm
			db := dbtest.SQLite(t)
			former := newEnv(t, testConfig(), db, nil) // which has signed with a key
			former.newUser(t)
			generous := newEnv(t, long, db, nil)
			_, tokens := generous.newUser(t)
			d := former.denylist(t)
			if err := former.LogoutRefresh(t.Context(), tokens.RefreshToken); err != nil {
				t.Fatal(err)
			}
			d.learns(tokens.AccessToken)
		})
	}
}
