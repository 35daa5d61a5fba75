package auth

import (
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// hostile is text that some server, in some configuration, reads as more than a value.
var hostile = []string{
	`\'; DROP TABLE session; DROP TABLE users; --`, `'; DELETE FROM users; --`, `\' OR 1=1 --`, `a\`, `a\\'`,
	`x","user_id":"00000000-0000-4000-8000-000000000000`, `x\","user_id":\"V`, `$1 ?1 ?0 ? :x @x`,
	`$$; DELETE FROM users; $$`,
	`U&'\0027'; DELETE FROM users`, "\uff07; DELETE FROM users; --", "\u02bc; DELETE FROM users",
}

// Text from a stranger stays a value, whatever the database's settings.
func TestNothingThatAStrangerChoosesBecomesPartOfAStatement(t *testing.T) {
	t.Parallel()
	for _, profile := range []string{"ascii", "unicode"} {
		cfg := testConfig()
		cfg.UsernameProfile = username.Profile(profile)
		for name, open := range map[string]func(t *testing.T) *testEnv{
			"sqlite":         func(t *testing.T) *testEnv { return newEnv(t, cfg, dbtest.SQLite(t), nil) },
			"postgres":       func(t *testing.T) *testEnv { return newEnv(t, cfg, dbtest.Contrary(t), nil) },
			"postgres_redis": func(t *testing.T) *testEnv { return newEnv(t, cfg, dbtest.Contrary(t), redisClient(t)) },
		} {
			t.Run(profile+"/"+name, func(t *testing.T) {
				t.Parallel()
				env := open(t)
				for _, text := range hostile {
					strange(t, env, text)
				}
			})
		}
	}
}

// strange puts a text wherever a client or a foreign file may put one, and checks the result.
func strange(t *testing.T, env *testEnv, text string) {
	t.Helper()
	expected := func(what string, err error) {
		t.Helper()
		var refused *fault.Fault
		if err != nil &&
			(!errors.As(err, &refused) || refused.Kind == fault.Internal || refused.Kind == fault.Unavailable) {
			t.Errorf("%s with %q: %v", what, text, err)
		}
	}
	ctx := t.Context()
	name, tokens := env.newUser(t)
	caller := env.caller(t, tokens)
	dev := phone()
	dev.UserAgent, dev.Token = text, text

	_, err := env.Register(ctx, Credentials{text, goodPassword}, dev)
	expected("register", err)
	_, err = env.Login(ctx, Credentials{text, text}, dev)
	expected("login", err)
	dev.Name = text
	signedIn, err := env.Login(ctx, Credentials{name, goodPassword}, dev)
	if err != nil {
		t.Fatalf("login with a device called %q: %v", text, err)
	}
	turned, err := env.Refresh(ctx, signedIn.RefreshToken, dev)
	if err != nil {
		t.Fatalf("refresh by %q: %v", text, err)
	}
	sessions, err := env.Sessions(ctx, caller)
	if err != nil || len(sessions) != 2 {
		t.Fatalf("after %q there are %d sessions, %v", text, len(sessions), err)
	}
	seen := 0
	for _, s := range sessions {
		if s.DeviceName == text && s.UserAgent == text {
			seen++
		}
	}
	if seen != 1 {
		t.Errorf("%q is the name of %d devices", text, seen)
	}
	changed := goodPassword + text
	if _, err := env.ChangePassword(ctx, env.caller(t, turned), goodPassword, changed, dev); err != nil {
		t.Fatalf("change the password to one with %q: %v", text, err)
	}
	if _, err := env.Login(ctx, Credentials{name, changed}, dev); err != nil {
		t.Fatalf("sign in with a password with %q: %v", text, err)
	}
	_, err = env.Refresh(ctx, text, dev)
	expected("refresh", err)
	expected("logout", env.LogoutRefresh(ctx, text))
	expected("revoke", env.Revoke(ctx, text))
	_, _, err = env.Introspect(ctx, text)
	expected("introspect", err)
	_, err = env.Authenticate(ctx, text)
	expected("authenticate", err)
	if _, err := env.FindUser(ctx, text); err != nil && !errors.Is(err, ErrUserNotFound) {
		expected("find", err)
	}
	row, err := json.Marshal(map[string]string{"username": text, "password_hash": text, "id": text})
	testenv.Must(t, err)
	again, err := json.Marshal(map[string]string{"username": text,
		"password_hash": "$2a$04$Sl/ptLIEoS6FRRYGpQPnPu1wq7v5VHy5sJEd2WNaPVhLYYXDkGpmS"})
	testenv.Must(t, err)
	env.importText(t, string(row)+"\n"+string(again)+"\n", "native")

	// All tables and their rows still exist.
	user, err := env.FindUser(ctx, name)
	if err != nil || user.ID != caller.User.ID {
		t.Fatalf("after %q the account is %v, %v", text, user.ID, err)
	}
	for _, e := range env.events(t, user.ID) {
		if e.Data["user_id"] != user.ID.String() {
			t.Errorf("after %q an event of %s is about %v", text, user.ID, e.Data["user_id"])
		}
		if agent, ok := e.Data["user_agent"]; e.Type == "auth.UserLoggedIn.v1" &&
			(!ok || agent != text && agent != phone().UserAgent) {
			t.Errorf("%q is in the event as %v", text, agent)
		}
	}
}

// A role or a database may make every transaction serializable by default. Our transactions set
// their own level, so no request fails because of that.
func TestIsolationIsNotTheDatabasesToChoose(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.Contrary(t), nil)
	const people, sessions = 4, 6
	var all sync.WaitGroup
	for range people {
		name, _ := env.newUser(t)
		for range sessions {
			all.Go(func() {
				tokens, err := env.Login(t.Context(), Credentials{name, goodPassword}, phone())
				if err != nil {
					t.Errorf("login: %v", err)
					return
				}
				if _, err := env.Refresh(t.Context(), tokens.RefreshToken, phone()); err != nil {
					t.Errorf("refresh: %v", err)
				}
			})
		}
	}
	all.Wait()
}
