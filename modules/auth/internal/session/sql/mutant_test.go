package sql

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// Each mutant is an easily made mistake, and the named check has to find it.
func TestTheSuiteFindsBrokenStatements(t *testing.T) {
	t.Parallel()
	for _, m := range []struct{ name, old, new, check string }{
		{"only the previous token", "THEN {link} END", "THEN links END",
			"every replaced token yields the newest in its window"},
		{"a link that lives with the next one", "replay_until_ms || previous", "{now} + $7 || previous",
			"each window ends by its own rotation"},
		{"no successor", "sealed          = $6", "sealed          = NULL",
			"parallel refreshes make one chain"},
		{"the absolute expiry ignored", "CASE WHEN {now} + $8 < expires_ms THEN {now} + $8 ELSE expires_ms END",
			"{now} + $8",
			"absolute expiry never moves"},
		{"the idle expiry ignored", "AND {now} < idle_expires_ms", "",
			"an expired session is gone"},
		{"a fork accepted", "AND generation = $3 AND hash = $4", "AND generation = $3",
			"two tokens of one generation are reuse"},
		{"a replaced token that turns", "AND generation = $3 AND hash = $4",
			"AND generation >= $3 AND (hash = $4 OR previous = $4)",
			"parallel refreshes make one chain"},
		{"a stopped session that starts again", "AND stopped_ms IS NULL", "",
			"a stopped session stays stopped until it is deleted"},
	} {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			old, changed := expand(m.old, false), expand(m.new, false)
			good := rotateQuery(false)
			if strings.Count(good, old) != 1 {
				t.Fatalf("the statement does not contain %q exactly once", old)
			}
			query := strings.ReplaceAll(good, old, changed)
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

// At READ COMMITTED, a transaction that reads, decides and then writes forks the chain unless it
// locks the row. SQLite has only one writer, so this cannot break it.
func TestTheSuiteFindsARotationThatReadsAndThenWrites(t *testing.T) {
	t.Parallel()
	sessiontest.FindsReadThenWrite(t, func(t testing.TB, skew func() time.Duration) sessiontest.ReadThenWrite {
		db := dbtest.Postgres(t)
		return sessiontest.ReadThenWrite{
			Store: newTestStore(t, db, skew),
			Write: func(ctx context.Context, one session.Session, r session.Rotation) error {
				_, err := db.Write(ctx,
					"UPDATE session SET generation = ?, hash = ?, sealed = ?, user_agent = ?, ip = ?, last_used_ms = ?, idle_expires_ms = ? WHERE id = ?",
					one.Generation, one.Hash[:], r.SealedNext, one.UserAgent, one.IP, one.LastUsedAt.UnixMilli(),
					one.IdleExpiresAt.UnixMilli(), one.ID)
				return err
			},
			Sealed: func(ctx context.Context, one session.Session) (sealed []byte, err error) {
				err = db.QueryRowContext(ctx, "SELECT sealed FROM session WHERE id = ?", one.ID).Scan(&sealed)
				return sealed, err
			},
		}
	})
}

// One pass drops all of them, however many there are.
func TestForgettingDropsEverySealedSuccessorAfterItsWindow(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var clock sessiontest.Clock
		store := newTestStore(t, db, clock.Skew)
		codec, err := session.NewCodec("the secret of the SQL tests, which is long")
		if err != nil {
			t.Fatal(err)
		}
		const sessions, rotations = 23, 3
		rotate := func(token session.Token, grace time.Duration) session.Token {
			next, r := codec.Next(token)
			r.Grace, r.IdleTTL = grace, time.Hour
			if rotated, err := store.Rotate(t.Context(), r); err != nil || rotated.Outcome != session.Rotated {
				t.Fatalf("%v, %v", rotated.Outcome, err)
			}
			return next
		}
		for range sessions {
			token := codec.Mint([16]byte{1}, uuid.New(), 1)
			if _, err := store.Create(t.Context(),
				session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(), MaxAge: time.Hour,
					IdleTTL: time.Hour}); err != nil {
				t.Fatal(err)
			}
			for range rotations {
				token = rotate(token, 10*time.Minute)
			}
		}
		const portion = 10
		forget := func() (sum int64) {
			for {
				n, err := store.Forget(t.Context(), portion)
				if err != nil {
					t.Fatal(err)
				}
				if sum += n; n < portion {
					return sum
				}
			}
		}
		kept := func() (newest, older int) {
			if err := db.QueryRowContext(t.Context(),
				"SELECT count(sealed), coalesce(sum(length(links)), 0) FROM session").Scan(&newest, &older); err != nil {
				t.Fatal(err)
			}
			return newest, older / linkSize
		}
		if forget() != 0 {
			t.Error("something was dropped in the window")
		}
		if newest, older := kept(); newest != sessions || older != sessions*(rotations-1) {
			t.Errorf("%d and %d are kept in the window", newest, older)
		}
		clock.Advance(11 * time.Minute)
		forget()
		if newest, older := kept(); newest != 0 || older != 0 {
			t.Errorf("%d and %d are kept after the window", newest, older)
		}
		if n := forget(); n != 0 {
			t.Errorf("%d were dropped once more", n)
		}
	})
}

func TestAChainHasABound(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var clock sessiontest.Clock
		store := newTestStore(t, db, clock.Skew)
		codec, err := session.NewCodec("the secret of the SQL tests, which is long")
		if err != nil {
			t.Fatal(err)
		}
		token := codec.Mint([16]byte{1}, [16]byte{2}, 1)
		if _, err := store.Create(t.Context(),
			session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(), MaxAge: time.Hour,
				IdleTTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
		most := 0
		for range 3 * (session.MaxLinks + session.MoreLinks) {
			next, r := codec.Next(token)
			r.Grace, r.IdleTTL = time.Minute, time.Hour
			if rotated, err := store.Rotate(t.Context(), r); err != nil || rotated.Outcome != session.Rotated {
				t.Fatalf("%v, %v", rotated.Outcome, err)
			}
			token = next
			var size int
			if err := db.QueryRowContext(t.Context(),
				"SELECT coalesce(length(links), 0) FROM session").Scan(&size); err != nil {
				t.Fatal(err)
			}
			most = max(most, size/linkSize)
			clock.Advance(50 * time.Millisecond)
		}
		if most < session.MaxLinks-1 || most >= session.MaxLinks+session.MoreLinks {
			t.Errorf("a chain had up to %d links", most)
		}
		var marks string
		if err := db.QueryRowContext(t.Context(), "SELECT marks FROM session").Scan(&marks); err != nil ||
			len(marks) > 10_000 {
			t.Errorf("the marks take %d bytes: %v", len(marks), err)
		}
	})
}

// Each successor is dropped at the end of its own window, not at the end of the session's last one.
func TestForgettingDropsALinkWhileALaterOneIsOpen(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var clock sessiontest.Clock
		store := newTestStore(t, db, clock.Skew)
		codec, err := session.NewCodec("the secret of the SQL tests, which is long")
		if err != nil {
			t.Fatal(err)
		}
		tokens := []session.Token{codec.Mint([16]byte{1}, [16]byte{2}, 1)}
		if _, err := store.Create(t.Context(),
			session.Start{ID: tokens[0].SessionID(), UserID: tokens[0].UserID(), Hash: tokens[0].Hash(),
				MaxAge: time.Hour, IdleTTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
		var sealed [][]byte
		for i := range 3 {
			next, r := codec.Next(tokens[i])
			r.Grace, r.IdleTTL = 10*time.Minute, time.Hour
			if rotated, err := store.Rotate(t.Context(), r); err != nil || rotated.Outcome != session.Rotated {
				t.Fatalf("%v, %v", rotated.Outcome, err)
			}
			tokens, sealed = append(tokens, next), append(sealed, r.SealedNext)
			clock.Advance(4 * time.Minute)
		}
		if n, err := store.Forget(t.Context(), 10); err != nil || n != 1 {
			t.Errorf("dropped of %d sessions: %v", n, err)
		}
		var links, newest []byte
		if err := db.QueryRowContext(t.Context(),
			"SELECT links, sealed FROM session").Scan(&links, &newest); err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{false, true, true} {
			if got := bytes.Contains(append(links, newest...), sealed[i]); got != want {
				t.Errorf("successor %d is kept: %v", i, got)
			}
		}
		_, r := codec.Next(tokens[1])
		r.Grace, r.IdleTTL = 10*time.Minute, time.Hour
		rotated, err := store.Rotate(t.Context(), r)
		if err != nil || rotated.Outcome != session.Replayed {
			t.Fatalf("%v, %v", rotated.Outcome, err)
		}
		if got, err := codec.OpenChain(tokens[1], rotated.Links); err != nil || got != tokens[3] {
			t.Errorf("another token: %v", err)
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
	for life, want := range []session.Outcome{session.Rotated, session.Replayed, session.Replayed} {
		db, err := database.Open(t.Context(), database.Config{URL: url}, database.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		store, err := New(t.Context(), db, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if life == 0 {
			if _, err := store.Create(t.Context(),
				session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(), MaxAge: time.Hour,
					IdleTTL: time.Hour}); err != nil {
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
