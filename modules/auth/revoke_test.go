package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// withLostRecords runs the test with its own Redis, which lose empties.
func withLostRecords(t *testing.T, test func(t *testing.T, env *testEnv, lose func())) {
	t.Helper()
	for name, open := range map[string]func(testing.TB) *database.DB{"sqlite": dbtest.SQLite,
		"postgres": dbtest.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := cachetest.Open(t, cachetest.Start(t).URL())
			test(t, newEnv(t, testConfig(), open(t), client), func() { flush(t, client) })
		})
	}
}

func flush(t *testing.T, client *redis.Client) {
	t.Helper()
	testenv.Must(t, client.FlushAll(t.Context()).Err())
}

func TestEverybodyIsEverybodyWhateverTheStoreHasLost(t *testing.T) {
	t.Parallel()
	withLostRecords(t, func(t *testing.T, env *testEnv, lose func()) {
		name, lost := env.newUser(t)
		lose()
		known := env.signIn(t, name)
		_, other := env.newUser(t)
		idle, err := env.CreateUser(t.Context(), Credentials{"nobody-signed-in", goodPassword})
		testenv.Must(t, err)
		_, closed := env.newUser(t)
		closedID := env.caller(t, closed).User.ID
		testenv.Must(t, env.DisableUser(t.Context(), closedID))
		ids := []uuid.UUID{env.caller(t, known).User.ID, env.caller(t, other).User.ID, idle.ID}

		done, err := env.RevokeSessions(t.Context(), SessionFilter{Everybody: true})
		testenv.Must(t, err)
		if done.Accounts != 3 || done.Sessions != 0 {
			t.Errorf("ended %+v, want the sessions of 3 accounts", done)
		}
		for _, tokens := range []Tokens{lost, known, other} {
			env.over(t, tokens)
		}
		env.expectEvents(t, ids[0], "UserRegistered", "UserLoggedIn", "AllSessionsRevoked")
		env.expectEvents(t, ids[1], "UserRegistered", "AllSessionsRevoked")
		// the one of the disabling
		env.expectEvents(t, closedID, "UserRegistered", "UserDisabled", "AllSessionsRevoked")
		for _, id := range ids {
			// On a busy machine the store may not answer in time; the log says then that records are left.
			records, err := env.sessions.List(t.Context(), id)
			if err != nil || len(records) != 0 && !strings.Contains(env.log.String(), "session_records_left") {
				t.Errorf("%d records remain in the store: %v", len(records), err)
			}
		}
		env.live(t, env.signIn(t, name)) // it ends existing sessions and locks nobody out
	})
}

func TestARevocationOfEverybodyGoesOnWhereItWasBrokenOff(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		var all []Tokens
		for range revokeBatch/2 + 3 {
			_, tokens := env.newUser(t)
			all = append(all, tokens)
		}
		for i := range 2 * revokeBatch {
			if _, err := env.db.Write(t.Context(),
				`INSERT INTO users (id, username, username_canonical, password_hash, created_at, updated_at, password_changed_at)
				VALUES (?, ?, ?, '', ?, ?, ?)`, uuid.New(), uuid.NewString(), uuid.NewString(), time.Now(), time.Now(), time.Now()); err != nil {
				t.Fatalf("account %d: %v", i, err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var keys []string
		env.committed = func(of ...string) { keys = of; stop() }
		first, err := env.RevokeSessions(ctx, SessionFilter{Everybody: true})
		env.committed = func(...string) {}
		if !errors.Is(err, context.Canceled) || first.Accounts != revokeBatch {
			t.Fatalf("broken off after %+v: %v", first, err)
		}
		if len(keys) > 0 { // they are too many
			t.Errorf("relays are told of the keys %v alone", keys)
		}
		second, err := env.RevokeSessions(t.Context(),
			SessionFilter{Everybody: true, AfterAccount: first.LastAccount})
		testenv.Must(t, err)
		if n := first.Accounts + second.Accounts; n != len(all)+2*revokeBatch {
			t.Errorf("ended the sessions of %d accounts", n)
		}
		var twice int
		if err := env.db.QueryRowContext(t.Context(),
			"SELECT count(*) FROM users WHERE session_epoch <> 1").Scan(&twice); err != nil || twice != 0 {
			t.Errorf("%d accounts were not ended just once: %v", twice, err)
		}
		for _, tokens := range all {
			env.over(t, tokens)
		}
	})
}

func TestSessionsAreRevokedByWhereTheyWereUsed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		network := netip.MustParsePrefix("2001:db8:77::/48")
		if env.redis != nil { // a network that other tests use too
			network = netip.PrefixFrom(netip.AddrFrom16(uuid.New()), 128)
		}
		there := Device{UserAgent: "there", IP: network.Addr()}
		name, here := env.newUser(t)
		id := env.caller(t, here).User.ID
		for range revokeBatch/2 - 1 {
			if _, err := env.Login(t.Context(), Credentials{name, goodPassword}, there); err != nil {
				t.Fatal(err)
			}
		}
		other, stranger := env.newUser(t)
		var last Tokens
		for range revokeBatch/2 - 1 {
			var err error
			if last, err = env.Login(t.Context(), Credentials{other, goodPassword}, there); err != nil {
				t.Fatal(err)
			}
		}
		filter := SessionFilter{IP: network}
		if env.redis == nil {
			filter.Before = time.Now().Add(time.Hour)
		}
		done, err := env.RevokeSessions(t.Context(), filter)
		testenv.Must(t, err)
		if done.Accounts != 0 || done.Sessions != revokeBatch-2 {
			t.Errorf("ended %+v, want %d sessions", done, revokeBatch-2)
		}
		env.over(t, last)
		env.live(t, here)
		env.live(t, stranger)
		ended := 0
		for _, e := range env.events(t, id) {
			if e.Type == EventSessionRevoked {
				ended++
			}
		}
		if ended != revokeBatch/2-1 {
			t.Errorf("%d ends of sessions were announced", ended)
		}
		if done, err = env.RevokeSessions(t.Context(), filter); err != nil || done != (Revoked{}) {
			t.Errorf("once more: ended %+v: %v", done, err)
		}
		one, err := env.RevokeSessions(t.Context(), SessionFilter{UserID: uuid.NullUUID{UUID: id, Valid: true}})
		if err != nil || one.Accounts != 1 || one.Sessions != 0 {
			t.Errorf("all of a user: ended %+v: %v", one, err)
		}
		env.over(t, here)
	})
}

// A filter by use cannot find sessions whose records are lost. The command says so instead of
// passing over them. Sessions named by id end all the same.
func TestARevocationSaysWhenTheStoreHasLostWhatItMayMean(t *testing.T) {
	t.Parallel()
	withLostRecords(t, func(t *testing.T, env *testEnv, lose func()) {
		name, kept := env.newUser(t)
		here := SessionFilter{IP: netip.MustParsePrefix("192.0.2.7/32")}
		elsewhere := SessionFilter{IP: netip.MustParsePrefix("203.0.113.0/24")}
		env.Housekeep(t.Context())
		if done, err := env.RevokeSessions(t.Context(), elsewhere); err != nil || done.Sessions != 0 {
			t.Errorf("nothing was lost: %+v, %v", done, err)
		}
		user := env.caller(t, kept).User.ID
		named, lost := env.signIn(t, name), env.signIn(t, name)
		lose()
		between := time.Now().Truncate(time.Millisecond)
		known := env.signIn(t, name)

		for what, filter := range map[string]SessionFilter{"address": elsewhere, "time": {Before: between},
			"user and address": {UserID: uuid.NullUUID{UUID: user, Valid: true}, IP: elsewhere.IP},
			"id and address":   {ID: uuid.NullUUID{UUID: lost.SessionID, Valid: true}, IP: elsewhere.IP}} {
			done, err := env.RevokeSessions(t.Context(), filter)
			if e, ok := errors.AsType[*RecordsLostError](err); !ok || done.Sessions != 0 || e.Until.Before(time.Now()) {
				t.Errorf("chosen by %s: %+v, %v", what, done, err)
			}
		}
		for what, filter := range map[string]SessionFilter{"a time before any token": {Before: time.Now().Add(-6 * time.Hour)},
			"another user": {UserID: uuid.NullUUID{UUID: uuid.New(), Valid: true}, IP: elsewhere.IP}} {
			if done, err := env.RevokeSessions(t.Context(), filter); err != nil || done.Sessions != 0 {
				t.Errorf("chosen by %s: %+v, %v", what, done, err)
			}
		}
		done, err := env.RevokeSessions(t.Context(), here)
		e, ok := errors.AsType[*RecordsLostError](err)
		if !ok || done.Sessions != 1 {
			t.Fatalf("chosen by the address: %+v, %v", done, err)
		}
		env.over(t, known)
		if want := []uuid.UUID{kept.SessionID, named.SessionID, lost.SessionID}; !slices.Equal(e.IDs, want) ||
			!strings.HasSuffix(err.Error(), "by its id: "+strings.Trim(fmt.Sprint(want), "[]")) {
			t.Errorf("the lost sessions are %v, not %v: %v", e.IDs, want, err)
		}

		if done, err = env.RevokeSessions(t.Context(),
			SessionFilter{ID: uuid.NullUUID{UUID: named.SessionID, Valid: true}}); err != nil ||
			done.Sessions != 1 {
			t.Errorf("named: %+v, %v", done, err)
		}
		env.over(t, named)
		env.caller(t, lost)
		env.expectEvents(t, user, "UserRegistered", "UserLoggedIn", "UserLoggedIn", "UserLoggedIn", "SessionRevoked",
			"SessionRevoked")
		if done, err = env.RevokeSessions(t.Context(), SessionFilter{UserID: uuid.NullUUID{UUID: user, Valid: true}}); err != nil || done.Accounts != 1 {
			t.Errorf("all of the user: %+v, %v", done, err)
		}
		env.over(t, lost)
		env.over(t, kept)
		if done, err = env.RevokeSessions(t.Context(), elsewhere); err != nil || done.Sessions != 0 {
			t.Errorf("when the lost ones have ended: %+v, %v", done, err)
		}
	})
}

// After a Redis was emptied nobody wants to read, or end one by one, what was lost.
func TestManyLostSessionsAreNotNamed(t *testing.T) {
	t.Parallel()
	err := &RecordsLostError{IDs: make([]uuid.UUID, mostLostNamed+1)}
	if text := err.Error(); strings.Contains(text, uuid.Nil.String()) || !strings.Contains(text, "or of everybody") {
		t.Error(text)
	}
}

// A session whose record is lost still has access tokens. Its owner can end it from another
// session.
func TestASessionThatTheStoreHasLostCanBeEndedByItsOwner(t *testing.T) {
	t.Parallel()
	withLostRecords(t, func(t *testing.T, env *testEnv, lose func()) {
		name, lost := env.newUser(t)
		lose()
		here := env.caller(t, env.signIn(t, name))
		_, other := env.newUser(t)
		if err := env.EndSession(t.Context(), env.caller(t, other),
			lost.SessionID); !errors.Is(err, ErrSessionNotFound) {
			t.Errorf("by somebody else: %v", err)
		}
		env.caller(t, lost)
		if err := env.EndSession(t.Context(), here, lost.SessionID); err != nil {
			t.Error(err)
		}
		env.over(t, lost)
		if err := env.EndSession(t.Context(), here, lost.SessionID); !errors.Is(err, ErrSessionNotFound) {
			t.Errorf("once more: %v", err)
		}
		env.expectEvents(t, here.User.ID, "UserRegistered", "UserLoggedIn", "SessionRevoked")
	})
}

// An announced end is remembered until the tokens of every server have expired, not only those with
// the command's own settings.
func TestACommandAnnouncesEndsForTheLifetimeOfTheServers(t *testing.T) {
	t.Parallel()
	eachWith(t, func(cfg *Config) { cfg.Token.AccessTTL = 10 * time.Hour }, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		id := env.caller(t, tokens).User.ID
		env.cfg.Token.AccessTTL = time.Minute
		command := env.another(t)
		testenv.Must(t, command.revoke(t, SessionFilter{ID: uuid.NullUUID{UUID: tokens.SessionID, Valid: true}}))
		testenv.Must(t, command.revoke(t, SessionFilter{UserID: uuid.NullUUID{UUID: id, Valid: true}}))
		for _, e := range env.events(t, id)[1:] {
			until, err := time.Parse(time.RFC3339, fmt.Sprint(e.Data["expires_at"]))
			if err != nil || until.Before(tokens.AccessTokenExpiresAt) {
				t.Errorf(
					"%s may be forgotten at %v, %v, but the token lives until %v",
					e.Type,
					until,
					err,
					tokens.AccessTokenExpiresAt,
				)
			}
		}
	})
}

// The command's settings may give sessions a shorter life than the servers' do. The command finds
// what a server still accepts, and keeps its end as long as its record can exist.
func TestACommandWithAShorterSessionMaxAgeEndsWhatServersAccept(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		cfg := env.cfg
		cfg.SessionMaxAge = time.Nanosecond
		command := newEnv(t, cfg, env.db, env.redis)
		_, tokens := env.newUser(t)
		user := env.caller(t, tokens).User
		for name, ends := range map[string]struct {
			filter SessionFilter
			lost   bool // the store does not know the session
		}{
			"by address": {filter: SessionFilter{UserID: uuid.NullUUID{UUID: user.ID, Valid: true},
				IP: netip.MustParsePrefix("192.0.2.0/24")}},
			"by id":         {},
			"by id, unseen": {lost: true},
		} {
			next := env.signIn(t, user.Username)
			if name != "by address" {
				ends.filter.ID = uuid.NullUUID{UUID: next.SessionID, Valid: true}
			}
			if ends.lost {
				testenv.Must(t, env.sessions.Delete(t.Context(), user.ID, next.SessionID))
			}
			if err := command.revoke(t, ends.filter); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			env.over(t, next)
			var kept int
			testenv.Must(t, env.db.QueryRowContext(t.Context(),
				"SELECT count(*) FROM revoked_session WHERE sid = ? AND expires_at > ?",
				next.SessionID, time.Now().Add(env.cfg.SessionMaxAge)).Scan(&kept))
			if kept != 1 {
				t.Errorf("%s: its end is forgotten before its record expires", name)
			}
		}
	})
}

func TestTheLongestMaxAgeIsThatOfTheSetting(t *testing.T) {
	t.Parallel()
	field, _ := reflect.TypeFor[Config]().FieldByName("SessionMaxAge")
	if most, err := time.ParseDuration(field.Tag.Get("max")); err != nil || most != longestMaxAge {
		t.Errorf("the setting may be up to %v (%v), but ends are kept for %v", most, err, longestMaxAge)
	}
}

// An index that is built on the table of events keeps the end of sessions waiting, and their tokens are refreshed
// meanwhile. Who forgets an end at expires_at must not forget it before the last of these tokens has expired.
func TestAnEndIsRememberedForAsLongAsATokenOfBeforeItsCommitLives(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(ctx context.Context, env *testEnv, who Caller) error{
		"sign-out": func(ctx context.Context, env *testEnv, who Caller) error {
			return env.EndSession(ctx, who, who.SessionID)
		},
		"all sessions": func(ctx context.Context, env *testEnv, who Caller) error { return env.EndSessions(ctx, who, false) },
		"deletion":     func(ctx context.Context, env *testEnv, who Caller) error { return env.DeleteUser(ctx, who.User.ID) },
		"session revoke --id": func(ctx context.Context, env *testEnv, who Caller) error {
			_, err := env.RevokeSessions(ctx, SessionFilter{ID: uuid.NullUUID{UUID: who.SessionID, Valid: true}})
			return err
		},
		"session revoke --all": func(ctx context.Context, env *testEnv, _ Caller) error {
			_, err := env.RevokeSessions(ctx, SessionFilter{Everybody: true})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t, testConfig(), dbtest.Postgres(t), nil)
			var passed atomic.Int64
			env.Service.now = func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
			_, tokens := env.newUser(t)
			who := env.caller(t, tokens)
			index, built := dbtest.Begin(t, env.db)
			if _, err := index.ExecContext(t.Context(), "LOCK TABLE outbox_event IN SHARE MODE"); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- end(t.Context(), env, who) }()
			testenv.Eventually(t, "the end waits", func() bool {
				return env.number(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'outbox_event'::regclass
					AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
			})
			passed.Store(int64(10 * time.Minute))
			fresh, err := env.Refresh(t.Context(), tokens.RefreshToken, phone())
			testenv.Must(t, err)
			testenv.Must(t, errors.Join(built(true), <-ended))
			told := false
			for _, e := range env.events(t, who.User.ID) {
				text, has := e.Data["expires_at"].(string)
				if !has {
					continue
				}
				told = true
				until, err := time.Parse(time.RFC3339Nano, text)
				if err != nil || until.Before(fresh.AccessTokenExpiresAt) {
					t.Errorf("%s may be forgotten at %s, and a token lives until %s: %v", e.Type, text,
						fresh.AccessTokenExpiresAt, err)
				}
			}
			if !told {
				t.Error("no end is announced")
			}
		})
	}
}
