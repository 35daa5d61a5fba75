package auth

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/testenv"
)

// However a session was ended, the inspection says of both its tokens that the session was revoked.
func TestInspectionSaysWhyATokenOfAnEndedSessionIsRefused(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, env *testEnv, name string, tokens Tokens) error{
		"logout": func(t *testing.T, env *testEnv, _ string, tokens Tokens) error {
			return env.LogoutRefresh(t.Context(), tokens.RefreshToken)
		},
		"end all": func(t *testing.T, env *testEnv, _ string, tokens Tokens) error {
			return env.EndSessions(t.Context(), env.caller(t, tokens), false)
		},
		"password change": func(t *testing.T, env *testEnv, name string, _ Tokens) error {
			_, err := env.ChangePassword(t.Context(), env.caller(t, env.signIn(t, name)), goodPassword,
				"another good password", phone())
			return err
		},
		"disable": func(t *testing.T, env *testEnv, _ string, tokens Tokens) error {
			return env.DisableUser(t.Context(), env.caller(t, tokens).User.ID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, env *testEnv) {
				username, tokens := env.newUser(t)
				for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
					if r, err := env.InspectToken(t.Context(), text); err != nil || !r.Valid {
						t.Fatalf("of a live session: %+v, %v", r, err)
					}
				}
				testenv.Must(t, end(t, env, username, tokens))
				for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
					if r, err := env.InspectToken(t.Context(), text); err != nil || r.Valid ||
						r.Verdict != "session revoked" {
						t.Errorf("of an ended session: %+v, %v", r, err)
					}
				}
			})
		})
	}
}

// A session that is older than a lowered auth.session_max_age cannot be refreshed, and everything says so.
func TestASessionThatIsTooOldIsExpiredEverywhere(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		who := env.caller(t, tokens)
		other := env.caller(t, env.signIn(t, name))
		env.cfg.SessionMaxAge = time.Nanosecond
		lowered := env.another(t)
		if _, err := lowered.Refresh(t.Context(), tokens.RefreshToken, phone()); !errors.Is(err, ErrSessionExpired) {
			t.Errorf("the refresh: %v", err)
		}
		if r, err := lowered.InspectToken(t.Context(), tokens.RefreshToken); err != nil || r.Valid ||
			r.Verdict != "session expired" {
			t.Errorf("the inspection: %+v, %v", r, err)
		}
		if _, active, err := lowered.Introspect(t.Context(), tokens.RefreshToken); err != nil || active {
			t.Errorf("the introspection: active %v, %v", active, err)
		}
		if list, err := lowered.Sessions(t.Context(), who); err != nil || len(list) > 0 {
			t.Errorf("the list: %v, %v", list, err)
		}
		if err := lowered.EndSession(t.Context(), other, who.SessionID); !errors.Is(err, ErrSessionNotFound) {
			t.Errorf("ending it: %v", err)
		}
		listed := 0
		count := func(list []Session) error { listed += len(list); return nil }
		one := SessionFilter{ID: uuid.NullUUID{UUID: who.SessionID, Valid: true}}
		for _, f := range []SessionFilter{{UserID: uuid.NullUUID{UUID: who.User.ID, Valid: true}}, one} {
			if err := lowered.FindSessions(t.Context(), f, count); err != nil || listed > 0 {
				t.Errorf("operators see %d sessions, %v", listed, err)
			}
		}
		// Its access token is live.
		ended, err := lowered.RevokeSessions(t.Context(), one)
		if err != nil || ended.Sessions != 1 {
			t.Errorf("an operator ends %d sessions, %v", ended.Sessions, err)
		}
	})
}
