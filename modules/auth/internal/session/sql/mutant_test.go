package sql

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// Each mutant is a mistake that would be easy to make; the named check has to find it.
func TestTheSuiteFindsBrokenStatements(t *testing.T) {
	t.Parallel()
	for _, m := range []struct{ name, old, new, check string }{
		{"replay without a window", "(hash = $5 OR ", "(TRUE OR ",
			"the previous token after the window is reuse"},
		{"a sliding window", "THEN {now} + $7 ELSE replay_until_ms", "OR {previous} THEN {now} + $7 ELSE replay_until_ms",
			"the window does not slide"},
		{"the previous token refused", "WHEN {previous} THEN sealed END", "END",
			"parallel refreshes make one chain"},
		{"the absolute expiry ignored", "WHEN {now} + $8 < expires_ms THEN", "WHEN TRUE THEN",
			"absolute expiry never moves"},
		{"the idle expiry ignored", "(stopped_ms IS NOT NULL OR {now} < idle_expires_ms)", "TRUE",
			"an expired session is gone"},
		{"a token ahead refused", "($3 > generation OR ", "(FALSE OR ",
			"a token ahead of the record is current"},
		{"a fork accepted", "$3 = generation AND hash = $4", "$3 = generation",
			"two tokens of one generation are reuse"},
		{"reuse that stops nothing", "WHEN {reuse} THEN {now} ELSE stopped_ms", "WHEN FALSE THEN {now} ELSE stopped_ms",
			"an older token is reuse even in the window"},
		{"a stopped session that starts again", "(stopped_ms IS NULL AND ($3 > generation", "(($3 > generation",
			"a stopped session stays stopped until it is deleted"},
		{"a repeated call taken for reuse", "(hash = $5 OR ", "(FALSE OR ",
			"the same call sent again changes nothing"},
		{"another user's session", "AND user_id = $2", "AND CAST($2 AS text) IS NOT NULL",
			"a session belongs to its user"},
	} {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			old, changed := expand(m.old, nowSQLite), expand(m.new, nowSQLite)
			good := rotateQuery(nowSQLite)
			if !strings.Contains(good, old) {
				t.Fatalf("the statement does not have %q", old)
			}
			query := strings.ReplaceAll(strings.ReplaceAll(good, old, changed), "$", "?")
			open := func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
				return mutantEngine(t, skew, func(s *Store) session.Store {
					stmt, err := s.db.PrepareContext(t.Context(), query)
					if err != nil {
						t.Fatal(err)
					}
					_ = s.rotate.Close()
					s.rotate = stmt
					return s
				})
			}
			err := sessiontest.Named(m.check).Run(t, open)
			if err == nil {
				t.Errorf("%q does not find it", m.check)
			}
			t.Log(err)
		})
	}
}

// A transaction at READ COMMITTED that reads, decides and writes forks without a row lock.
// SQLite cannot be broken so: it has one writer.
func TestTheSuiteFindsARotationThatReadsAndThenWrites(t *testing.T) {
	t.Parallel()
	sessiontest.FindsReadThenWrite(t, func(t testing.TB, skew func() time.Duration) sessiontest.ReadThenWrite {
		db := dbtest.Postgres(t)
		return sessiontest.ReadThenWrite{
			Store: newTestStore(t, db, skew),
			Write: func(ctx context.Context, one session.Session, r session.Rotation) error {
				_, err := db.Write(ctx, "UPDATE session SET generation = ?, hash = ?, sealed = ?, user_agent = ?, ip = ?, last_used_ms = ?, idle_expires_ms = ? WHERE id = ?",
					one.Generation, one.Hash[:], r.SealedNext, one.UserAgent, one.IP, one.LastUsedAt.UnixMilli(), one.IdleExpiresAt.UnixMilli(), one.ID)
				return err
			},
			Sealed: func(ctx context.Context, one session.Session) (sealed []byte, err error) {
				err = db.QueryRowContext(ctx, "SELECT sealed FROM session WHERE id = ?", one.ID).Scan(&sealed)
				return sealed, err
			},
		}
	})
}

func TestPurgeDropsSealedSuccessorsAfterTheWindow(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var clock sessiontest.Clock
		store := newTestStore(t, db, clock.Skew)
		codec, err := session.NewCodec("the secret of the SQL tests, which is long")
		if err != nil {
			t.Fatal(err)
		}
		token := codec.Mint([16]byte{1}, [16]byte{2}, 1)
		if _, err := store.Create(t.Context(), session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(), MaxAge: time.Hour, IdleTTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
		_, r := codec.Next(token)
		r.Grace, r.IdleTTL = 10*time.Minute, time.Hour
		if _, err := store.Rotate(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		sealed := func() (n int) {
			if _, err := store.Purge(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM session WHERE sealed IS NOT NULL").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if sealed() != 1 {
			t.Error("dropped in the window")
		}
		clock.Advance(11 * time.Minute)
		if sealed() != 0 {
			t.Error("kept after the window")
		}
	})
}

func TestSessionsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	url := config.Secret("sqlite:" + filepath.Join(t.TempDir(), "test.db"))
	codec, err := session.NewCodec("the secret of the SQL tests, which is long")
	if err != nil {
		t.Fatal(err)
	}
	token := codec.Mint([16]byte{1}, [16]byte{2}, 1)
	_, r := codec.Next(token)
	r.Grace, r.IdleTTL = time.Hour, time.Hour
	for life, want := range []session.Outcome{session.Turned, session.Replayed, session.Replayed} {
		db, err := database.Open(t.Context(), database.Config{URL: url}, database.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db, nil); err != nil {
			t.Fatal(err)
		}
		store, err := New(t.Context(), db, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if life == 0 {
			if _, err := store.Create(t.Context(), session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(), MaxAge: time.Hour, IdleTTL: time.Hour}); err != nil {
				t.Fatal(err)
			}
		} else {
			_, r = codec.Next(token)
			r.Grace, r.IdleTTL = time.Hour, time.Hour
		}
		rotated, err := store.Rotate(t.Context(), r)
		if err != nil || rotated.Outcome != want {
			t.Errorf("life %d: %v, %v", life, rotated.Outcome, err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func mutantEngine(t testing.TB, skew func() time.Duration, change func(*Store) session.Store) sessiontest.Engine {
	db := dbtest.SQLite(t)
	return sessiontest.Engine{Store: change(newTestStore(t, db, skew)), Peer: change(newTestStore(t, db, skew))}
}

func newTestStore(t testing.TB, db *database.DB, skew func() time.Duration) *Store {
	t.Helper()
	store, err := New(t.Context(), db, Options{Skew: skew})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.rotate.Close() })
	return store
}
