package sql_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestSQLiteKeepsTheRules(t *testing.T) {
	t.Parallel()
	sessiontest.Run(t, openSQLite)
}

func TestPostgresKeepsTheRules(t *testing.T) {
	t.Parallel()
	sessiontest.Run(t, openPostgres)
}

func openSQLite(t testing.TB, skew func() time.Duration) sessiontest.Engine {
	url := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	db := dbtest.Open(t, url)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return engine(t, db, dbtest.Open(t, url), skew)
}

func openPostgres(t testing.TB, skew func() time.Duration) sessiontest.Engine {
	url := dbtest.PostgresURL(t)
	return engine(t, dbtest.Open(t, url), dbtest.Open(t, url), skew)
}

func engine(t testing.TB, db, peer *database.DB, skew func() time.Duration) sessiontest.Engine {
	return sessiontest.Engine{
		Store:  newStore(t, db, skew),
		Peer:   newStore(t, peer, skew),
		Dump:   func(ctx context.Context) ([][]byte, error) { return dump(ctx, db) },
		Purges: true,
	}
}

// The only synchronous standby of PostgreSQL is gone.
func TestRotationsWaitForNoStandby(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var clock sessiontest.Clock
	store := newStore(t, db, clock.Skew)
	codec, err := session.NewCodec("the secret of the SQL tests, which is long")
	if err != nil {
		t.Fatal(err)
	}
	first := codec.Mint([16]byte{1}, [16]byte{2}, 1)
	if _, err := store.Create(t.Context(), session.Start{ID: first.SessionID(), UserID: first.UserID(),
		Hash: first.Hash(), MaxAge: time.Hour, IdleTTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'gone'", "SELECT pg_reload_conf()"} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "commits wait", func() bool { return db.TryWrite(t.Context()) != nil })

	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	rotate := func(ctx context.Context, token session.Token, want session.Outcome) session.Token {
		t.Helper()
		next, r := codec.Next(token)
		r.Grace, r.IdleTTL = 10*time.Minute, time.Hour
		if got, err := store.Rotate(ctx, r); err != nil || got.Outcome != want {
			t.Errorf("generation %d is %v, want %v: %v", token.Generation(), got.Outcome, want, err)
		}
		return next
	}
	newest := rotate(ctx, first, session.Rotated)
	rotate(ctx, first, session.Replayed)
	clock.Advance(4 * time.Minute)
	rotate(ctx, newest, session.Rotated)
	clock.Advance(7 * time.Minute)
	if n, err := store.Forget(ctx, 10); err != nil || n != 1 { // of a link
		t.Errorf("the successor of %d sessions is forgotten: %v", n, err)
	}
	rotate(ctx, codec.Mint(first.UserID(), first.SessionID(), 9), session.Rotated) // ahead of the record
	clock.Advance(11 * time.Minute)
	if n, err := store.Forget(ctx, 10); err != nil || n != 1 {
		t.Errorf("the successor of %d sessions is forgotten: %v", n, err)
	}
	// What ends a session waits.
	short, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	_, r := codec.Next(first)
	if got, err := store.Rotate(short, r); err == nil {
		t.Errorf("reuse is confirmed: %v", got.Outcome)
	}
}

// Rotations wait for less than other changes, never for more.
func TestRotationsDoNotWaitForTheDiskWhereNothingDoes(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{"on": "local", "off": "off"} {
		url := dbtest.PostgresURL(t)
		do := func(statements ...string) {
			t.Helper()
			for _, q := range statements {
				_, err := dbtest.Open(t, url).ExecContext(t.Context(), q)
				testenv.Must(t, err)
			}
		}
		do(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = `+setting+`', current_database()); END $$`,
			"CREATE TABLE seen (setting text)",
			`CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$`,
			"CREATE TRIGGER look AFTER UPDATE ON session FOR EACH ROW EXECUTE FUNCTION look()")
		db := dbtest.Open(t, url)
		var clock sessiontest.Clock
		store := newStore(t, db, clock.Skew)
		codec, err := session.NewCodec("the secret of the SQL tests, which is long")
		testenv.Must(t, err)
		first := codec.Mint([16]byte{1}, [16]byte{2}, 1)
		_, err = store.Create(t.Context(), session.Start{ID: first.SessionID(), UserID: first.UserID(),
			Hash: first.Hash(), MaxAge: time.Hour, IdleTTL: time.Hour})
		testenv.Must(t, err)
		_, quick := codec.Next(first)
		_, slow := codec.Next(codec.Mint(first.UserID(), first.SessionID(), 9)) // ahead of the record
		for _, r := range []session.Rotation{quick, slow} {
			r.Grace, r.IdleTTL = time.Minute, time.Hour
			_, err = store.Rotate(t.Context(), r)
			testenv.Must(t, err)
		}
		seen, err := database.Value[string](db.QueryRowContext(t.Context(), "SELECT string_agg(setting, ' ') FROM seen"))
		if want := want + " " + want; err != nil || seen != want {
			t.Errorf("where it is %s: %s, %v, want %s", setting, seen, err, want)
		}
	}
}

func newStore(t testing.TB, db *database.DB, skew func() time.Duration) *sql.Store {
	store, err := sql.New(t.Context(), db, sql.Options{Skew: skew})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// dump reads every column of every row.
func dump(ctx context.Context, db *database.DB) (kept [][]byte, err error) {
	rows, err := db.QueryContext(ctx, "SELECT * FROM session")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		values, into := make([][]byte, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		kept = append(kept, values...)
	}
	return kept, rows.Err()
}
