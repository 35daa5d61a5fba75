package campaign

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// replacement changes one place of a file of the module. The old text must occur exactly once:
// after a change of the code the mutant fails, so that no scenario passes for the wrong reason.
type replacement struct{ file, old, new string }

// mutant is an easily made mistake, and the scenario that has to find it.
type mutant struct {
	name     string
	changes  []replacement
	scenario func(t *testing.T, binary string) error
}

const (
	authDir  = "modules/auth/"
	redisDir = authDir + "internal/session/redis/"
	sqlDir   = authDir + "internal/session/sql/"

	chainFile = authDir + "internal/session/chain.go"
)

// on runs a scenario on one kind of installation.
func on(store string, scenario func(w *installation) error, settings ...string) func(*testing.T, string) error {
	return func(t *testing.T, binary string) error {
		return scenario(newInstallation(t, binary, store, settings...))
	}
}

// atEveryStep runs an operation that breaks at each of its steps.
func atEveryStep(op, how string) func(*testing.T, string) error {
	return func(t *testing.T, binary string) error {
		for _, b := range breakages {
			if b.name == how {
				_, err := newWired(t, binary, "redis").everyStep(operationNamed(op), b)
				return err
			}
		}
		return nil
	}
}

var mutants = []mutant{
	{"a rotation that reads and then writes", []replacement{{redisDir + "redis.go",
		"	user, sid := s.user(r.UserID), r.SessionID.String()\n",
		`	user, sid := s.user(r.UserID), r.SessionID.String()
	if one, err := s.Get(ctx, r.UserID, r.SessionID); err == nil && one.Generation == r.Generation && one.Hash == r.PresentedHash {
		one.Generation, one.Hash = one.Generation+1, r.NextHash
		_, err := s.client.Pipelined(ctx, func(p goredis.Pipeliner) error {
			p.HSet(ctx, s.record(r.UserID, r.SessionID), "gen", one.Generation, "hash", one.Hash[:], "prev", r.PresentedHash[:],
				"replay", time.Now().Add(r.Grace).UnixMilli())
			p.Set(ctx, s.successor(r.UserID, r.SessionID), r.SealedNext, r.Grace)
			return nil
		})
		return session.RotateResult{Outcome: session.Rotated, Session: one}, err
	}
`}}, on("redis", oneChain)},
	{"a previous token that is refused", []replacement{{redisDir + "rotate.lua",
		"local newest = redis.call('GET', KEYS[3])", "local newest"}}, on("redis", oneChain)},
	{"a replay without a window, on Redis", []replacement{{redisDir + "rotate.lua",
		"or now >= l.ends then return nil end",
		"then return nil end"}}, on("redis", theWindowCloses, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"a replay without a window, in SQL", []replacement{{chainFile,
		"case links[0].Hash != r.PresentedHash || !open:",
		"case links[0].Hash != r.PresentedHash || !open && false:"}}, on("sqlite", theWindowCloses, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"a window that slides", []replacement{{redisDir + "rotate.lua",
		"local newest = redis.call('GET', KEYS[3])",
		"redis.call('HSET', KEYS[1], 'replay', now + grace) redis.call('PEXPIRE', KEYS[3], grace + 1000) local newest = redis.call('GET', KEYS[3])"}},
		on("redis", theWindowDoesNotSlide, "AUTH_REFRESH_GRACE=1500ms")},
	{"a window that slides with each rotation, on Redis", []replacement{{redisDir + "rotate.lua",
		"    l = getLink(base, g)",
		"    l = getLink(base, g) or {hash = presented} l.at, l.ends = tonumber(r[USED]), tonumber(r[REPLAY])"}},
		on("redis", oldTokensAreReuse, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"a window that slides with each rotation, in SQL", []replacement{{chainFile,
		"	open, void := links[0].Open(now)\n", "	open, void := c.Previous.Open(now)\n"}, {chainFile,
		"	for len(c.Links) > 0 && c.Links[0].Until <= now {\n", "	for len(c.Links) > MaxLinks {\n"}, {chainFile,
		"l.Sealed != nil && (!open || void)", "l.Sealed != nil && (!open || void) && false"}, {sqlDir + "sql.go",
		"CASE WHEN {now} < replay_until_ms AND sealed IS NOT NULL THEN {link} END", "{link}"}, {sqlDir + "sql.go",
		"links IS NULL OR {now} < replay_until_ms AND sealed IS NOT NULL AND", "links IS NULL OR"}, {sqlDir + "sql.go",
		"replay_until_ms <= \" + now + \" OR", "FALSE OR"}},
		on("sqlite", oldTokensAreReuse, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"only the previous token is answered, on Redis", []replacement{{redisDir + "rotate.lua",
		"    l = getLink(base, g)", "    l = nil"}}, on("redis", lateDuplicatesAreHarmless)},
	{"only the previous token is answered, in SQL", []replacement{{chainFile,
		"	links, known := c.from(g)\n",
		"	links, known := c.from(g)\n	known = known && g+1 == c.Generation\n"}}, on("postgres", duplicatesMakeOneChain)},
	{"a bound that ends sessions, on Redis", []replacement{{redisDir + "lib.lua",
		"        mark(first, last, ends)\n", ""}, {redisDir + "lib.lua",
		"    if first then mark(first, last, ends) end\n", ""}}, on("redis", rotationsWithoutEnd)},
	{"a bound that ends sessions, in SQL", []replacement{{chainFile,
		"			c.mark(g, g, c.Links[0].Until, now, window)\n",
		"			_ = g\n"}}, on("sqlite", rotationsWithoutEnd)},
	{"links that stay, on Redis", []replacement{{redisDir + "lib.lua",
		"presented .. sealed, 'PX', ttl)",
		"presented .. sealed, 'PX', ttl + 3600000)"}}, on("redis", waysAreForgotten, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"links that stay, in SQL", []replacement{{authDir + "housekeeping.go",
		"every(ctx, forgetEvery, s.forget)",
		"every(ctx, 240*forgetEvery, func(context.Context) {})"}, {authDir + "housekeeping.go",
		"	s.forget(ctx)\n", ""}}, on("sqlite", waysAreForgotten, "AUTH_REFRESH_GRACE="+shortWindow.String())},
	{"a chain that is not sealed", []replacement{{authDir + "internal/session/token.go",
		"return sealer(presented).Seal(nil, nil, next.raw[:], presented.raw[:])",
		"return append(make([]byte, SealedSize-tokenSize), next.raw[:]...)"}, {authDir + "internal/session/token.go",
		"raw, err := sealer(presented).Open(nil, nil, sealed, presented.raw[:])",
		"raw, err := sealed[SealedSize-tokenSize:], error(nil)"}},
		func(t *testing.T, binary string) error { return aDumpLetsNobodyIn(t, binary, "sqlite") }},
	{"a MAC that is not checked", []replacement{{authDir + "internal/session/token.go",
		"if k.id == t.raw[atKeyID] && hmac.Equal(k.mac(&t), t.raw[atMAC:]) {",
		"if k.id == t.raw[atKeyID] {"}}, on("sqlite", garbageChangesNothing)},
	{"a hash that is the secret", []replacement{{authDir + "internal/session/token.go",
		"return Hash(h.Sum(nil))", "return Hash(t.secret())"}},
		func(t *testing.T, binary string) error { return aDumpLetsNobodyIn(t, binary, "sqlite") }},
	{"a record that goes before the revocation commits", []replacement{{authDir + "session.go",
		"		if err := s.commitRevocation(",
		"		s.removeRecords(ctx, userID, sid)\n		if err := s.commitRevocation("}}, atEveryStep("logout", "killed")},
	{"a revocation that is not asked for", []replacement{
		{authDir + "sessionstate.go", "	return st.user.Status == StatusActive && !st.revoked &&\n",
			"	return st.user.Status == StatusActive &&\n"},
		{authDir + "sessionstate.go", "case st.user.Status != StatusActive || st.revoked:",
			"case st.user.Status != StatusActive:"},
	}, on("sqlite", endsHold)},
	{"an end without its event", []replacement{{authDir + "session.go",
		"return s.announceRevoked(ctx, tx, env, reason, news...)", "_ = news\n\treturn nil"}}, on("sqlite", endsHold)},
	{"an end of all sessions that only clears the store", []replacement{{authDir + "user.go",
		"	epoch := a.epoch + 1\n", "	epoch := a.epoch\n"}}, on("redis", endsHold)},
	{"an ended session that keeps itself", []replacement{{authDir + "sessions.go",
		"return s.stillLive(ctx, tx, now, caller)", "return nil"}},
		func(t *testing.T, binary string) error {
			return nobodyKeepsThemselves(newWired(t, binary, "redis"), operationNamed("end all but the current one"))
		}},
	{"a password change that signs in to whatever the account has become", []replacement{{authDir + "password.go",
		"	sess, refresh, err := s.signIn(ctx, changed, dev, false)\n",
		`	if now, err := accountByID(ctx, s.db, caller.User.ID); err == nil {
		changed = now
	}
	sess, refresh, err := s.signIn(ctx, changed, dev, false)
`}}, func(t *testing.T, binary string) error { return overtakenBeginsNothing(newWired(t, binary, "redis")) }},
	{"an end that takes new sessions with it", []replacement{{redisDir + "redis.go",
		"if one.Epoch < epoch && !(keep.Valid", "if !(keep.Valid"}},
		func(t *testing.T, binary string) error { return newSessionsStay(newWired(t, binary, "redis")) }},
	{"an access token that outlives its session", []replacement{{authDir + "token.go",
		"end.Before(expires) {", "false && end.Before(expires) {"}},
		on("sqlite", tokensEndWithTheSession, "AUTH_SESSION_MAX_AGE=4s", "AUTH_REFRESH_TOKEN_TTL=1h")},
	{"an Origin that is not checked", []replacement{{"platform/httpserver/browser.go",
		"		return b.listed || b.origins[0] != \"\" && slices.Contains(own, b.origins[0])\n",
		"		return b.listed || b.origins[0] != \"\" && len(own) > 0 && slices.Contains(b.origins, b.origins[0])\n"}},
		on("sqlite", foreignPagesGetNothing)},
	{"a cursor that takes open transactions for committed", []replacement{{authDir + "internal/feed/position.go",
		"		p.open = append(p.open, xid)\n", "		_ = xid\n"}}, on("postgres", feedMissesNothing)},
	{"a snapshot that forgets deleted accounts", []replacement{{authDir + "internal/feed/store.go",
		"FROM revocation WHERE id > ?1 AND expires_ms",
		"FROM revocation WHERE (type <> 'account' OR user_id IN (SELECT u.id FROM users u)) AND id > ?1 AND expires_ms"}},
		on("postgres", feedMissesNothing)},
	{"a fact that is written after the commit", []replacement{{authDir + "session.go",
		"		s.logEnd(ctx, userID, sid, reason)\n",
		`		s.logEnd(ctx, userID, sid, reason)
		if _, err := s.db.ExecContext(ctx, "UPDATE revoked_session SET reason = reason WHERE sid = ?", sid); err != nil {
			return err
		}
`}}, func(t *testing.T, binary string) error {
		w := newWired(t, binary, "redis")
		for _, statement := range []string{"DROP TRIGGER revocation_of_session ON revoked_session",
			"CREATE TRIGGER revocation_of_session AFTER UPDATE ON revoked_session FOR EACH ROW EXECUTE FUNCTION revocation_of_session()"} {
			if _, err := w.db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.everyStep(operationNamed("logout"), breakages[0])
		return err
	}},
	{"a session that ends without a fact", []replacement{{"migrations/sqlite/20261128000800_revocation.tx.up.sql",
		"AFTER INSERT ON revoked_session", "AFTER UPDATE ON revoked_session"}}, on("sqlite", feedMissesNothing)},
}

// overlay writes the changed files, and the list that makes go build use them.
func (m mutant) overlay(dir string) (string, error) {
	replace := map[string]string{}
	for i, c := range m.changes {
		path, err := filepath.Abs(filepath.Join(module, c.file))
		if err != nil {
			return "", err
		}
		source, err := os.ReadFile(cmp.Or(replace[path], path)) // as earlier replacements have left it
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(source), c.old); n != 1 {
			return "", fmt.Errorf("%s has this %d times, want once: %s", c.file, n, c.old)
		}
		changed := filepath.Join(dir, fmt.Sprintf("%d-%s", i, filepath.Base(c.file)))
		if err := os.WriteFile(changed, []byte(strings.Replace(string(source), c.old, c.new, 1)), 0o600); err != nil {
			return "", err
		}
		replace[path] = changed
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// The builds take long, so only the long form makes them. The short form checks that every mistake
// can still be made.
func TestTheCampaignFindsMistakes(t *testing.T) {
	t.Parallel()
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			overlay, err := m.overlay(dir)
			testenv.Must(t, err)
			if !long() {
				return
			}
			binary := filepath.Join(dir, "authctl")
			testenv.Must(t, build(binary, "-overlay", overlay))
			found := m.scenario(t, binary)
			if found == nil {
				t.Error("no scenario found the mistake")
			}
			t.Logf("found: %v", found)
		})
	}
}
