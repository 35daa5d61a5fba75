package authbench

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	redisstore "github.com/toppira/authctl/modules/auth/internal/session/redis"
	sqlstore "github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database/dbtest"
)

const secret = "a secret of the tests that is long enough for everything"

func loader(t *testing.T, crowd, probes int) *Loader {
	t.Helper()
	l, err := New(secret, 4, crowd, probes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Ids must be distinct, sort in the order of their rows, and have the form that the service makes.
func TestIdsAreDistinctAndInOrder(t *testing.T) {
	t.Parallel()
	l := loader(t, 500, 20)
	seen := map[uuid.UUID]bool{}
	var before uuid.UUID
	next := l.order(500)
	n, probes := 0, 0
	for {
		i, probe, more := next()
		if !more {
			break
		}
		id := l.AccountID(i)
		if probe {
			id = l.probes[i].ID
			probes++
		}
		if n++; seen[id] {
			t.Fatalf("%s comes twice", id)
		}
		seen[id] = true
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			t.Fatalf("%s is no UUIDv7", id)
		}
		if before.Time() > id.Time() {
			t.Errorf("%s comes after %s", id, before)
		}
		before = id
	}
	if n != 520 || probes != 20 {
		t.Errorf("%d rows and %d probes, want 520 and 20", n, probes)
	}
	if l.AccountID(7) != loaderAgain(t, l).AccountID(7) {
		t.Error("an id changes")
	}
}

func loaderAgain(t *testing.T, l *Loader) *Loader {
	t.Helper()
	again := loader(t, l.crowd, len(l.probes))
	again.now = l.now
	return again
}

// The store itself could have written a loaded session: its token refreshes it.
func TestALoadedSessionRefreshes(t *testing.T) {
	t.Parallel()
	refresh := func(t *testing.T, store session.Store, l *Loader) {
		t.Helper()
		for _, p := range l.Probes() {
			token, err := l.codec.Parse(p.Refresh)
			if err != nil {
				t.Fatal(err)
			}
			_, r := l.codec.Next(token)
			r.Grace, r.IdleTTL = idleTTL, idleTTL
			got, err := store.Rotate(t.Context(), r)
			if err != nil || got.Outcome != session.Rotated || !got.Session.Recorded {
				t.Fatalf("%v %v %+v", err, got.Outcome, got.Session)
			}
			list, err := store.List(t.Context(), p.ID)
			if err != nil || len(list) != 1 {
				t.Fatalf("the account has %d sessions, want 1: %v", len(list), err)
			}
		}
		crowd, err := store.List(t.Context(), l.AccountID(3))
		if err != nil || len(crowd) != 1 {
			t.Fatalf("an account of the crowd has %d sessions, want 1: %v", len(crowd), err)
		}
	}
	t.Run("in the database", func(t *testing.T) {
		t.Parallel()
		db := dbtest.Postgres(t)
		l := loader(t, 100, 5).On(db, func(string, int, int) {})
		if err := l.SessionsInDatabase(t.Context(), 50); err != nil {
			t.Fatal(err)
		}
		store, err := sqlstore.New(t.Context(), db, sqlstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		refresh(t, store, l)
	})
	t.Run("in Redis", func(t *testing.T) {
		t.Parallel()
		url := cachetest.Start(t).URL()
		l := loader(t, 2000, 5).On(nil, func(string, int, int) {})
		if err := l.SessionsInRedis(t.Context(), url, 1200); err != nil {
			t.Fatal(err)
		}
		client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(url)}, cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		refresh(t, redisstore.New(client, redisstore.Options{}), l)
	})
}

// The filled tables hold the stated numbers, with the facts about ended sessions.
func TestTheCrowdIsThere(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	var told []string
	l := loader(t, 300, 10).On(db, func(what string, done, of int) {
		if done == of {
			told = append(told, what)
		}
	})
	for _, fill := range []func() error{
		func() error { return l.Accounts(t.Context()) },
		func() error { return l.BegunSessions(t.Context(), 200) },
		func() error { return l.Revocations(t.Context(), 30) },
	} {
		if err := fill(); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string]int{
		"SELECT count(*) FROM users":                                                                    310,
		"SELECT count(*) FROM begun_session":                                                            210,
		"SELECT count(*) FROM revoked_session":                                                          30,
		"SELECT count(*) FROM revocation WHERE type = 'session'":                                        30,
		"SELECT count(*) FROM begun_session s JOIN users u ON u.id = s.user_id":                         210,
		"SELECT count(*) FROM users WHERE username = username_canonical AND username = lower(username)": 310,
	} {
		var got int
		if err := db.QueryRowContext(t.Context(), query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %d, want %d: %v", query, got, want, err)
		}
	}
	if want := []string{"users", "begun_session", "revoked_session"}; !slices.Equal(told, want) {
		t.Errorf("the feed has %v, want %v", told, want)
	}
}
