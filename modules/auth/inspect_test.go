package auth

import "testing"

// However a session was ended, both of its tokens are said to be of a revoked one.
func TestInspectionSaysWhyATokenOfAnEndedSessionIsRefused(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, w *world, name string, tokens Tokens) error{
		"logout": func(t *testing.T, w *world, _ string, tokens Tokens) error {
			return w.LogoutRefresh(t.Context(), tokens.RefreshToken)
		},
		"end all": func(t *testing.T, w *world, _ string, tokens Tokens) error {
			return w.EndSessions(t.Context(), w.caller(t, tokens), false)
		},
		"password change": func(t *testing.T, w *world, name string, _ Tokens) error {
			_, err := w.ChangePassword(t.Context(), w.caller(t, w.signIn(t, name)), goodPassword, "another good password", phone())
			return err
		},
		"disable": func(t *testing.T, w *world, _ string, tokens Tokens) error {
			return w.DisableUser(t.Context(), w.caller(t, tokens).User.ID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, w *world) {
				username, tokens := w.newcomer(t)
				for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
					if r, err := w.InspectToken(t.Context(), text); err != nil || !r.Valid {
						t.Fatalf("of a live session: %+v, %v", r, err)
					}
				}
				if err := end(t, w, username, tokens); err != nil {
					t.Fatal(err)
				}
				for _, text := range []string{tokens.AccessToken, tokens.RefreshToken} {
					if r, err := w.InspectToken(t.Context(), text); err != nil || r.Valid || r.Verdict != "session revoked" {
						t.Errorf("of an ended session: %+v, %v", r, err)
					}
				}
			})
		})
	}
}
