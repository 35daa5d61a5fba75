package auth

import (
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// Who finds something in the security log can go on to its trace.
func TestSecurityRecordsHaveTheTraceOfTheirRequest(t *testing.T) {
	t.Parallel()
	const trace = "0af7651916cd43dd8448eb211c80319c"
	ctx := tracingtest.Within(t.Context(), "00-"+trace+"-b7ad6b7169203331-01")
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	alice := Credentials{"alice", goodPassword}
	tokens, err := env.Register(ctx, alice, phone())
	testenv.Must(t, err)
	_, _ = env.Login(ctx, Credentials{"alice", "a wrong password"}, phone())
	if _, err := env.Login(ctx, alice, phone()); err != nil {
		t.Fatal(err)
	}
	testenv.Must(t, env.LogoutRefresh(ctx, tokens.RefreshToken))
	if _, known := env.AuthenticateClient(ctx, []ClientCredentials{{"nobody", "x"}}, phone()); known {
		t.Error("a client that is not there is known")
	}
	found := map[string]bool{}
	for line := range strings.Lines(env.log.String()) {
		if !strings.Contains(line, `"log":"security"`) {
			continue
		}
		_, name, _ := strings.Cut(line, `"msg":"`)
		name, _, _ = strings.Cut(name, `"`)
		if found[name] = true; !strings.Contains(line, `"trace_id":"`+trace+`"`) {
			t.Errorf("without its trace: %s", line)
		}
	}
	for _, name := range []string{"user_registered", "sign_in_failed", "signed_in", "session_ended", "client_refused"} {
		if !found[name] {
			t.Errorf("there is no %s", name)
		}
	}
}
