package auth

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/authbench"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// The cost of a request must not depend on the number of accounts and sessions: no statement of a
// request, of background work or of a follower reads a whole table. PostgreSQL counts such reads.
func TestNoRequestReadsAWholeTable(t *testing.T) {
	t.Parallel()
	const crowd, probes = 20_000, 20
	dsn := dbtest.PostgresURL(t)
	l, err := authbench.New(testSecret, 4, crowd, probes)
	testenv.Must(t, err)
	fillWithACrowd(t, dsn, l, crowd)
	counter := dbtest.OpenLimited(t, dsn, 1)
	before := wholeReads(t, counter)

	db := dbtest.Open(t, dsn)
	t.Run("requests", func(t *testing.T) { useEverything(t, newEnv(t, testConfig(), db, nil), l) })
	testenv.Must(t, db.Close())
	for table, n := range wholeReads(t, counter) {
		if n > before[table] {
			t.Errorf("%s was read completely, %d times", table, n-before[table])
		}
	}
	for _, expired := range []string{
		"begun_session WHERE expires_at < now()", "revocation WHERE expires_ms = 1",
		"session WHERE idle_expires_ms = 1",
	} {
		var left bool
		err := counter.QueryRowContext(t.Context(), "SELECT EXISTS (SELECT 1 FROM "+expired+")").Scan(&left)
		if err != nil || left {
			t.Errorf("%s: some remain: %v", expired, err)
		}
	}
}

// fillWithACrowd also lets rows expire, more than housekeeping deletes at once, but none of the
// probes.
func fillWithACrowd(t *testing.T, dsn string, l *authbench.Loader, crowd int) {
	t.Helper()
	db := dbtest.Open(t, dsn)
	l = l.On(db, func(string, int, int) {})
	fills := []func() error{
		func() error { return l.Accounts(t.Context()) },
		func() error { return l.BegunSessions(t.Context(), crowd) },
		func() error { return l.SessionsInDatabase(t.Context(), crowd) },
		func() error { return l.Revocations(t.Context(), crowd) },
	}
	for _, q := range []string{
		`UPDATE begun_session SET expires_at = now() - interval '1 day' WHERE sid IN (SELECT sid FROM begun_session ORDER BY sid LIMIT 700 OFFSET 600)`,
		`UPDATE revocation SET expires_ms = 1 WHERE id IN (SELECT id FROM revocation ORDER BY id LIMIT 700 OFFSET 600)`,
		`UPDATE session SET idle_expires_ms = 1 WHERE id IN (SELECT id FROM session ORDER BY id LIMIT 700 OFFSET 600)`,
		`ANALYZE`,
	} {
		fills = append(fills, func() error { _, err := db.Write(t.Context(), q); return err })
	}
	for _, fill := range fills {
		testenv.Must(t, fill())
	}
	testenv.Must(t, db.Close())
}

// wholeReads counts the full scans of each growing table. A connection reports its numbers when it
// ends, so the function waits until the others have ended.
func wholeReads(t *testing.T, db *database.DB) map[string]int {
	t.Helper()
	testenv.Eventually(t, "no other connection to the database is left", func() bool {
		var others int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&others)
		return err == nil && others == 0
	})
	counts := map[string]int{}
	count := func(row database.Row) (n int, err error) {
		var table string
		err = row.Scan(&table, &n)
		counts[table] = n
		return n, err
	}
	_, err := database.Collect(t.Context(), db, "read statistics", count,
		`SELECT relname, seq_scan FROM pg_stat_user_tables
		WHERE relname IN ('users', 'session', 'begun_session', 'revoked_session', 'revocation')`)
	if err != nil || len(counts) != 5 {
		t.Fatalf("%v, %v", counts, err)
	}
	return counts
}

func useEverything(t *testing.T, env *testEnv, l *authbench.Loader) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	follow := env.denylist(t)
	follow.catchUp()
	for i, p := range l.Probes() {
		tokens, err := env.Login(ctx, Credentials{p.Username, authbench.Password}, phone())
		testenv.Must(t, err)
		refreshed, err := env.Refresh(ctx, p.Refresh, phone())
		if err != nil {
			t.Fatalf("a loaded session is not refreshed: %v", err)
		}
		caller := env.caller(t, refreshed)
		list, err := env.Sessions(ctx, caller)
		if err != nil || len(list) != 2 {
			t.Fatalf("the account has %d sessions, want 2: %v", len(list), err)
		}
		switch i % 5 {
		case 0:
			err = env.LogoutRefresh(ctx, tokens.RefreshToken)
		case 1:
			err = env.EndSession(ctx, caller, env.caller(t, tokens).SessionID)
		case 2:
			err = env.EndSessions(ctx, caller, true)
		case 3:
			err = env.revoke(t, SessionFilter{UserID: uuid.NullUUID{UUID: p.ID, Valid: true}})
		case 4:
			_, err = env.FindUser(ctx, p.Username)
		}
		if err != nil {
			t.Fatal(i%5, err)
		}
	}
	if _, err := env.Login(ctx, Credentials{"nobody@example.com", "wrong"}, phone()); err == nil {
		t.Error("nobody signs in")
	}
	name, _ := env.newUser(t)
	env.signIn(t, name)
	follow.catchUp()
	env.Housekeep(ctx)
	env.learnPopulation(ctx)
	if text := env.log.String(); strings.Contains(text, "housekeeping_failed") {
		t.Error(text)
	}
}
