package feed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/auth/internal/feed"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func open(t testing.TB, db *database.DB) *feed.Feed {
	t.Helper()
	f, err := feed.New(db, feed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// end ends a session as all code does.
func end(t testing.TB, tx database.IDB, sid uuid.UUID) {
	t.Helper()
	now := time.Now().UTC()
	if _, err := tx.ExecContext(context.Background(),
		"INSERT INTO revoked_session (sid, user_id, reason, revoked_at, expires_at) VALUES (?, ?, 'logout', ?, ?)",
		sid, uuid.New(), now, now.Add(time.Hour)); err != nil {
		t.Error(err)
	}
}

// follower applies the answers as a verifier does.
type follower struct {
	t      testing.TB
	feed   *feed.Feed
	leave  func()
	cursor string
	ended  map[string]int // by sid, sub or kid: how often it was told
	asOf   time.Time
}

func follow(t testing.TB, f *feed.Feed) *follower {
	t.Helper()
	leave, err := f.Enter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leave)
	return &follower{t: t, feed: f, leave: leave, ended: make(map[string]int)}
}

type told struct {
	Cursor      string
	AsOf        time.Time `json:"as_of"`
	More        bool
	Revocations []struct {
		Type, Sid, Sub, Kid string
		SessionEpoch        int64     `json:"session_epoch"`
		ExpiresAt           time.Time `json:"expires_at"`
	}
}

// take applies one answer.
func (f *follower) take(page feed.Page) told {
	var answer told
	if err := json.Unmarshal(page.JSON, &answer); err != nil {
		f.t.Error(err)
	}
	for _, one := range answer.Revocations {
		if time.Until(one.ExpiresAt) < time.Minute {
			f.t.Errorf("%+v expires too early", one)
		}
		f.ended[map[string]string{"session": one.Sid, "account": one.Sub, "key": one.Kid}[one.Type]]++
	}
	if answer.Cursor != page.Cursor || answer.More != page.More || len(answer.Revocations) != page.Facts {
		f.t.Errorf("the page %+v says %+v", page, answer)
	}
	f.cursor, f.asOf = page.Cursor, answer.AsOf
	return answer
}

// ask asks until there are no more pages. A database that answers late on a busy machine is asked again, as
// followers do.
func (f *follower) ask(wait time.Duration) {
	f.t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for more := true; more; {
		page, err := f.feed.Next(f.t.Context(), f.cursor, wait)
		if errors.Is(err, feed.ErrBehind) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		more = f.take(page).More
	}
}

// knows waits until the follower has been told.
func (f *follower) knows(what uuid.UUID) {
	f.t.Helper()
	testenv.Eventually(f.t, "the follower knows that "+what.String()+" has ended", func() bool {
		f.ask(100 * time.Millisecond)
		return f.ended[what.String()] > 0
	})
}

func TestAFollowerIsToldWhatHasEndedAndWhatEnds(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		before, after := uuid.New(), uuid.New()
		end(t, db, before)
		f := follow(t, open(t, db))
		f.ask(0)
		if f.ended[before.String()] != 1 || len(f.ended) != 1 {
			t.Fatalf("the snapshot: %v", f.ended)
		}
		snapshot := f.asOf
		f.ask(0)
		if len(f.ended) != 1 || f.ended[before.String()] != 1 || f.asOf.Before(snapshot) {
			t.Errorf("with nothing new: %v as of %v, before %v", f.ended, f.asOf, snapshot)
		}
		end(t, db, after)
		f.knows(after)
		if f.ended[before.String()] != 1 || f.ended[after.String()] != 1 {
			t.Errorf("told more than once: %v", f.ended)
		}
		// Another process continues from there; SQLite has only one process.
		elsewhere := follow(t, open(t, db))
		elsewhere.cursor = f.cursor
		if !db.IsPostgres() {
			if _, err := elsewhere.feed.Next(t.Context(), f.cursor, 0); !errors.Is(err, feed.ErrGone) {
				t.Errorf("a cursor of another process: %v", err)
			}
			return
		}
		third := uuid.New()
		end(t, db, third)
		elsewhere.knows(third)
		if len(elsewhere.ended) != 1 {
			t.Errorf("the other process sent %v", elsewhere.ended)
		}
	})
}

// A late commit has a lower id than facts that were told before it. A cursor by id would miss it.
func TestNothingThatCommitsLateIsMissed(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	shared := open(t, db)
	f := follow(t, shared)
	f.ask(0)
	// A transaction that has nothing to do with us stays open.
	foreign, over := dbtest.Begin(t, db)
	if _, err := foreign.ExecContext(t.Context(), "CREATE TABLE foreign_work (id integer)"); err != nil {
		t.Fatal(err)
	}
	late, early := uuid.New(), uuid.New()
	tx, commit := dbtest.Begin(t, db)
	end(t, tx, late)
	end(t, db, early)
	f.knows(early)
	f.ask(0)
	if f.ended[late.String()] != 0 {
		t.Fatal("the follower knows of an uncommitted end")
	}
	abroad := follow(t, open(t, db)) // by another process, from the same cursor
	abroad.cursor = f.cursor
	if err := commit(true); err != nil {
		t.Fatal(err)
	}
	f.knows(late)
	abroad.knows(late)
	for range 3 { // however long the foreign transaction stays open
		one := uuid.New()
		end(t, db, one)
		f.knows(one)
	}
	for what, times := range f.ended {
		if times != 1 {
			t.Errorf("%s came %d times", what, times)
		}
	}
	if err := over(true); err != nil {
		t.Fatal(err)
	}
	undone := uuid.New()
	tx, commit = dbtest.Begin(t, db)
	end(t, tx, undone)
	if err := commit(false); err != nil {
		t.Fatal(err)
	}
	last := uuid.New()
	end(t, db, last)
	f.knows(last)
	if f.ended[undone.String()] != 0 {
		t.Error("the follower knows of an end that was rolled back")
	}
}

func TestASnapshotIsToldInPages(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const many = 2500
		var all []uuid.UUID
		if err := db.Tx(t.Context(), func(_ context.Context, tx database.Tx) error {
			all = nil
			for range many {
				all = append(all, uuid.New())
				end(t, tx, all[len(all)-1])
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		shared := open(t, db)
		f := follow(t, shared)
		page, err := shared.Next(t.Context(), "", 0)
		if err != nil || !page.More || page.Facts != 1000 {
			t.Fatalf("the first page: %d, %v, %v", page.Facts, page.More, err)
		}
		f.take(page)
		between := uuid.New()
		end(t, db, between)
		f.ask(0)
		f.knows(between)
		for _, sid := range all {
			if f.ended[sid.String()] != 1 {
				t.Fatalf("%s came %d times", sid, f.ended[sid.String()])
			}
		}
		if len(f.ended) != many+1 {
			t.Errorf("told %d", len(f.ended))
		}
		// A follower that was away for long gets what it missed in pages, and nothing else.
		if !db.IsPostgres() {
			return
		}
		if _, err := db.ExecContext(t.Context(),
			`INSERT INTO revoked_session (sid, user_id, reason, revoked_at, expires_at)
			SELECT gen_random_uuid(), gen_random_uuid(), 'logout', now(), now() FROM generate_series(1, 9000)`); err != nil {
			t.Fatal(err)
		}
		back := follow(t, open(t, db))
		back.cursor = f.cursor
		back.ask(0)
		if n := len(back.ended); n != 9000 && n != 9001 { // the fact between two pages may come again
			t.Errorf("the returning follower got %d", len(back.ended))
		}
	})
}

// A mass revocation has many facts, and followers many cursors: each would have an answer of its own with all of them.
func TestWhatHasJustEndedIsToldInPages(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const looks, each, page = 5, 700, 1000
		shared := open(t, db)
		late, current := follow(t, shared), follow(t, shared)
		late.ask(0)
		current.ask(0)
		begin := late.cursor
		for range looks { // each finds what ended since the one before
			last := uuid.New()
			err := db.Tx(t.Context(), func(_ context.Context, tx database.Tx) error {
				for range each - 1 {
					end(t, tx, uuid.New())
				}
				end(t, tx, last)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			current.knows(last)
		}
		pages := 0
		for more := true; more; pages++ {
			before := late.asOf
			got, err := shared.Next(t.Context(), late.cursor, 0)
			if err != nil {
				t.Fatal(err)
			}
			if more = late.take(got).More; got.Facts >= page+each || more && got.Facts < page || late.asOf.Before(before) {
				t.Errorf("page %d has %d facts, more: %v, as of %v after %v", pages, got.Facts, more, late.asOf, before)
			}
		}
		if pages != 3 || len(late.ended) != looks*each {
			t.Errorf("%d pages have told of %d ends", pages, len(late.ended))
		}
		for what, times := range late.ended {
			if times != 1 {
				t.Fatalf("%s came %d times", what, times)
			}
		}
		// Who comes from elsewhere gets the same.
		other := follow(t, shared)
		other.cursor = begin
		if other.ask(0); len(other.ended) != looks*each {
			t.Errorf("from the beginning: %d ends", len(other.ended))
		}
	})
}

func TestADatabaseThatIsAnotherOneSaysSo(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	end(t, db, uuid.New())
	f := follow(t, open(t, db))
	f.ask(0)
	// As after a restore: the same rows in another file.
	if _, err := db.ExecContext(t.Context(), "VACUUM FULL revocation"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the cursor is gone", func() bool {
		_, err := f.feed.Next(t.Context(), f.cursor, 0)
		return errors.Is(err, feed.ErrGone)
	})
	f.cursor = ""
	f.ask(0)
	// As after a restore of the rows alone, into the same server and the same files.
	const fence = "INSERT INTO restore_fence (generation, epoch, began_ms) VALUES (1, 1, 1)"
	for _, statement := range []string{"DELETE FROM revocation", fence, "UPDATE restore_fence SET done_ms = 2"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "the cursor is gone after a fence", func() bool {
		_, err := f.feed.Next(t.Context(), f.cursor, 0)
		return errors.Is(err, feed.ErrGone)
	})
	f.cursor = ""
	f.ask(0)
	other := follow(t, open(t, dbtest.Postgres(t)))
	if _, err := other.feed.Next(t.Context(), f.cursor, 0); !errors.Is(err, feed.ErrGone) {
		t.Errorf("a cursor of another database: %v", err)
	}
	if _, err := other.feed.Next(t.Context(), "no cursor", 0); !errors.Is(err, feed.ErrCursor) {
		t.Errorf("a text that is no cursor: %v", err)
	}
}

// Writers commit in any order, and a follower moves from one process to another between them.
func TestOfManyEndsAtOnceNoneIsMissed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		feeds := []*feed.Feed{open(t, db), open(t, db)}
		if !db.IsPostgres() {
			feeds[1] = feeds[0]
		}
		var ended sync.Map
		var writers sync.WaitGroup
		var count atomic.Int64
		for range 6 {
			writers.Go(func() {
				for range 40 {
					if err := db.Tx(context.WithoutCancel(t.Context()), func(_ context.Context, tx database.Tx) error {
						sid := uuid.New()
						end(t, tx, sid)
						if count.Add(1)%7 == 0 {
							return errRollback
						}
						ended.Store(sid.String(), true)
						return nil
					}); err != nil && !errors.Is(err, errRollback) {
						t.Error(err)
					}
				}
			})
		}
		finished := make(chan struct{})
		go func() { writers.Wait(); close(finished) }()
		f := follow(t, feeds[0])
		other := follow(t, feeds[1])
		for n, done := 0, false; !done; n++ {
			select {
			case <-finished:
				done = true
			default:
			}
			f.feed = feeds[n%2]
			f.ask(20 * time.Millisecond)
			other.ask(0)
		}
		last := uuid.New()
		end(t, db, last)
		f.knows(last)
		other.knows(last)
		ended.Range(func(sid, _ any) bool {
			if f.ended[sid.(string)] == 0 || other.ended[sid.(string)] == 0 {
				t.Errorf("%s was missed (%d, %d)", sid, f.ended[sid.(string)], other.ended[sid.(string)])
			}
			return true
		})
	})
}

var errRollback = errors.New("rollback")

// A thousand followers cost the database what one costs: a look from time to time, however long it takes them.
func TestAThousandFollowersCostOneLook(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	shared := open(t, db)
	first := follow(t, shared)
	first.ask(0)
	const many = 1000
	begun, got := time.Now(), make(chan error, many)
	for range many {
		leave, err := shared.Enter()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer leave()
			page, err := shared.Next(context.WithoutCancel(t.Context()), first.cursor, testenv.Patience)
			for errors.Is(err, feed.ErrBehind) && time.Since(begun) < testenv.Patience { // a busy machine
				page, err = shared.Next(context.WithoutCancel(t.Context()), first.cursor, testenv.Patience)
			}
			if err == nil && page.Facts != 1 {
				err = fmt.Errorf("got %d facts", page.Facts)
			}
			got <- err
		}()
	}
	before := statements(t, db)
	end(t, db, uuid.New())
	for range many {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	looks := time.Since(begun).Milliseconds() / 100
	if cost := statements(t, db) - before; cost > many/2+looks {
		t.Errorf("the database committed %d transactions for %d followers, and has time for %d looks", cost, many, looks)
	}
}

// statements counts the transactions of the database. Each is one statement here.
func statements(t *testing.T, db *database.DB) (n int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(),
		"SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWhatHasExpiredIsForgotten(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		old, live := uuid.New(), uuid.New()
		end(t, db, old)
		if _, err := db.Write(t.Context(), "UPDATE revocation SET expires_ms = 1000"); err != nil {
			t.Fatal(err)
		}
		end(t, db, live)
		f := follow(t, open(t, db))
		f.ask(0)
		if len(f.ended) != 1 || f.ended[live.String()] != 1 {
			t.Errorf("the snapshot: %v", f.ended)
		}
		if n, err := f.feed.Purge(t.Context(), 100); err != nil || n != 1 {
			t.Errorf("purged %d, %v", n, err)
		}
		if n, err := f.feed.Purge(t.Context(), 100); err != nil || n != 0 {
			t.Errorf("purged %d more, %v", n, err)
		}
		next := uuid.New()
		end(t, db, next)
		f.knows(next)
	})
}

// A follower that begins when the clocks are right again must learn of all whose tokens live.
func TestAClockThatWasAheadForgetsNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		sid := uuid.New()
		end(t, db, sid)
		behind := time.Now().Add(-100 * time.Hour) // as if the database's clock were ahead
		if _, err := db.Write(t.Context(), "UPDATE revocation SET expires_ms = ?",
			behind.Add(time.Hour).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			now  time.Time
			gone int64
		}{{behind, 0}, {time.Now(), 1}} {
			one, err := feed.New(db, feed.Options{Now: func() time.Time { return c.now }})
			if err != nil {
				t.Fatal(err)
			}
			// Nor is it kept from those who begin meanwhile.
			page, err := one.Next(t.Context(), "", 0)
			if err != nil || page.Facts != 1-int(c.gone) {
				t.Errorf("at %v a follower is told of %d facts: %v", c.now, page.Facts, err)
			}
			if n, err := one.Purge(t.Context(), 100); err != nil || n != c.gone {
				t.Errorf("at %v %d facts are gone, want %d: %v", c.now, n, c.gone, err)
			}
			var answer struct {
				AsOf time.Time `json:"as_of"`
				At   time.Time `json:"server_time"`
			}
			if err := json.Unmarshal(page.JSON, &answer); err != nil || answer.At.Sub(c.now).Abs() > time.Microsecond ||
				db.IsPostgres() && time.Since(answer.AsOf).Abs() > time.Hour {
				t.Errorf("the times in %.200s: %v", page.JSON, err)
			}
			_ = one.Close()
		}
	})
}

// Tokens are issued until the end of a session commits, however long its transaction takes.
func TestAFactOutlivesTheTokensThatWereIssuedBeforeItsCommit(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	early, late := time.Now(), time.Hour.Milliseconds()
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		// What triggers wrote an hour ago.
		_, err := tx.ExecContext(ctx, `INSERT INTO revocation (type, user_id, sid, session_epoch, expires_ms) VALUES
			('session', ?1, ?2, NULL, revocation_until_ms() - ?3), ('account', ?1, NULL, 1, revocation_until_ms() - ?3)`,
			uuid.New(), uuid.New(), late)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var least int64
	if err := db.QueryRowContext(t.Context(),
		"SELECT count(*), min(expires_ms) FROM revocation").Scan(&n, &least); err != nil {
		t.Fatal(err)
	}
	// no key signs: the longest life there is
	if want := early.Add(24 * time.Hour).UnixMilli(); n != 2 || least < want {
		t.Errorf("%d facts expire from %v on, want 2 from %v on", n, time.UnixMilli(least), time.UnixMilli(want))
	}
}

// Servers issue tokens by their clocks, and the database's may be behind: here by a day.
func TestAFactExpiresByTheClockThatIsAhead(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	now, user := time.Now().UTC().Add(24*time.Hour), uuid.New()
	for _, statement := range []string{
		`INSERT INTO users (id, username, username_canonical, password_hash, created_at, updated_at, password_changed_at)
			VALUES (?1, 'alice', 'alice', '', ?2, ?2, ?2)`,
		"UPDATE users SET session_epoch = 1, sessions_ended_at = ?2 WHERE id = ?1",
		"INSERT INTO revoked_session (sid, user_id, reason, revoked_at, expires_at) VALUES (?1, ?1, 'logout', ?2, ?2)",
		// by hand
		"UPDATE users SET session_epoch = 2, sessions_ended_at = NULL WHERE id = ?1 AND CAST(?2 AS timestamptz) IS NOT NULL",
	} {
		if _, err := db.ExecContext(t.Context(), statement, user, now); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	const longest = 24 * time.Hour // while no key signs
	times, err := database.Collect(t.Context(), db, "read the facts", database.Value[int64],
		"SELECT expires_ms FROM revocation ORDER BY id")
	if err != nil || len(times) != 3 {
		t.Fatalf("%d facts, %v", len(times), err)
	}
	for i, want := range []time.Time{now.Add(longest), now.Add(longest), now} {
		if got := time.UnixMilli(times[i]); got.Before(want.Truncate(time.Millisecond)) ||
			got.After(want.Add(time.Hour)) {
			t.Errorf("the fact %d expires at %v, want about %v", i+1, got, want)
		}
	}
}

func TestAVerifierThatWasSeenInTheFutureHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		for name, ahead := range map[string]time.Duration{"now": 0, "behind": 2 * time.Second,
			"void": 100 * time.Hour} {
			if _, err := db.Write(t.Context(),
				`INSERT INTO verifier (client, name, instance, version, keys, seen_ms, lag_ms)
				VALUES ('a', ?, '', '', '', ?, 0)`, name, time.Now().Add(ahead).UnixMilli()); err != nil {
				t.Fatal(err)
			}
		}
		list, err := feed.Verifiers(t.Context(), db, time.Minute)
		if err != nil || len(list) != 2 || list[0].Name != "behind" || list[1].Name != "now" {
			t.Errorf("listed %+v, %v", list, err)
		}
		if n, err := open(t, db).PurgeVerifiers(t.Context(), 10); err != nil || n != 1 {
			t.Errorf("purged %d, %v", n, err)
		}
	})
}

func TestVerifiersAreWrittenDown(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f := follow(t, open(t, db))
		f.ask(0)
		f.feed.Note(feed.Verifier{Client: "b", Name: "plain"}, f.asOf)
		f.feed.Note(feed.Verifier{Client: "a", Name: "orders-3", Version: "1.4", Keys: []string{"k2", "k1"}},
			f.asOf)
		var list []feed.Seen
		testenv.Eventually(t, "they are in the database", func() bool {
			var err error
			if list, err = feed.Verifiers(t.Context(), db, time.Minute); err != nil {
				t.Fatal(err)
			}
			return len(list) == 2
		})
		a, b := list[0], list[1]
		if a.Name != "orders-3" || a.Version != "1.4" || len(a.Keys) != 2 || a.Keys[0] != "k1" ||
			a.Ago > time.Minute || a.Lag < 0 {
			t.Errorf("listed as %+v", a)
		}
		if b.Client != "b" || b.Keys != nil {
			t.Errorf("listed as %+v", b)
		}
		f.feed.Note(feed.Verifier{Client: "a", Name: "orders-3", Version: "1.4", Keys: []string{"k3"}},
			f.asOf)
		testenv.Eventually(t, "the current keys", func() bool {
			list, err := feed.Verifiers(t.Context(), db, time.Minute)
			return err == nil && len(list[0].Keys) == 1
		})
		if _, err := db.Write(t.Context(), "UPDATE verifier SET seen_ms = seen_ms - 90000000"); err != nil {
			t.Fatal(err)
		}
		if n, err := f.feed.PurgeVerifiers(t.Context(), 10); err != nil || n != 2 {
			t.Errorf("purged %d, %v", n, err)
		}
	})
}

func TestProcessesOfOneNameAreToldApart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		// They follow two servers, as behind a load balancer.
		one, other := follow(t, open(t, db)), follow(t, open(t, db))
		one.ask(0)
		other.ask(0)
		note := func(f *follower, instance string, keys ...string) {
			f.feed.Note(feed.Verifier{Client: "a", Name: "orders", Instance: instance, Keys: keys}, f.asOf)
		}
		known := func(want string) {
			t.Helper()
			testenv.Eventually(t, want, func() bool {
				list, err := feed.Verifiers(t.Context(), db, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				var said []string
				for _, v := range list {
					said = append(said, v.Instance+"="+strings.Join(v.Keys, ","))
				}
				return strings.Join(said, " ") == want
			})
		}
		note(one, "A", "old")
		note(one, "B", "new", "old")
		known("A=old B=new,old")
		note(other, "A", "old", "new")
		note(other, "C", "old")
		known("A=new,old B=new,old C=old")
	})
}

// Somebody has locked the table of the verifiers, for instance in a transaction that was left open. What ends
// is told while the write to it still waits. When that is given up, the log says so: until they are written, the
// followers seem to be gone, and authctl key promote waits for none of them.
func TestALockOnTheVerifiersHoldsUpNoFollower(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	core, logs := observer.New(zap.WarnLevel)
	watched, err := feed.New(db, feed.Options{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watched.Close() })
	f := follow(t, watched)
	f.ask(0)
	left, over := dbtest.Begin(t, db)
	if _, err := left.ExecContext(t.Context(), "LOCK TABLE verifier IN EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	waits := func() bool {
		t.Helper()
		n, err := database.Value[int](db.QueryRowContext(t.Context(),
			"SELECT count(*) FROM pg_locks WHERE relation = 'verifier'::regclass AND NOT granted"))
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	f.feed.Note(feed.Verifier{Client: "a", Name: "orders"}, f.asOf)
	testenv.Eventually(t, "the write waits", waits)
	sid := uuid.New()
	time.AfterFunc(500*time.Millisecond, func() { end(t, db, sid) }) // when the follower waits
	f.ask(30 * time.Second)
	if f.ended[sid.String()] != 1 || !waits() {
		t.Errorf("the follower was told %v, or only after the write", f.ended)
	}
	testenv.Eventually(t, "the log says that it was given up", func() bool {
		return logs.FilterMessage("verifiers_not_written").Len() > 0
	})
	if err := over(false); err != nil {
		t.Fatal(err)
	}
}

// A client with a new instance each time does not fill the table, and takes no place from other
// clients.
func TestOfEachClientTheVerifiersSeenLastAreRemembered(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f := follow(t, open(t, db))
		f.ask(0)
		count := func(where string) (n int) {
			t.Helper()
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM verifier WHERE "+
				where).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		// A verifier says it with each question: a write that a busy database does not take in time is lost.
		testenv.Eventually(t, "they are in the database", func() bool {
			f.feed.Note(feed.Verifier{Client: "good", Name: "orders", Instance: "0"}, f.asOf)
			f.feed.Note(feed.Verifier{Client: "bad", Name: "orders", Instance: "first"}, f.asOf)
			return count("true") == 2
		})
		if _, err := db.Write(t.Context(), "UPDATE verifier SET seen_ms = seen_ms - 30000"); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the first instance was forgotten", func() bool {
			for n := range feed.MostOfClient {
				f.feed.Note(feed.Verifier{Client: "bad", Name: "orders", Instance: fmt.Sprint(n)}, f.asOf)
			}
			return count("instance = 'first'") == 0
		})
		if bad, good := count("client = 'bad'"), count("client = 'good'"); bad != feed.MostOfClient || good != 1 {
			t.Errorf("%d and %d are remembered", bad, good)
		}
	})
}

// The metric for the alert rises from the first follower on while the database does not answer, and
// falls when it answers again.
func TestTheLagIsMeasuredFromTheFirstFollowerOn(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		metrics := prometheus.NewRegistry()
		shared, err := feed.New(db, feed.Options{Registry: metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = shared.Close() })
		lag := func() float64 {
			families, err := metrics.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, one := range families {
				if one.GetName() == "authctl_revocation_lag_seconds" {
					return one.GetMetric()[0].GetGauge().GetValue()
				}
			}
			t.Fatal("there is no such metric")
			return 0
		}
		if now := lag(); now != 0 {
			t.Errorf("without followers the lag is %v", now)
		}
		if _, err := db.ExecContext(t.Context(), "ALTER TABLE revocation RENAME TO away"); err != nil {
			t.Fatal(err)
		}
		f := follow(t, shared)
		f.leave() // a refused follower comes and goes
		testenv.Eventually(t, "the lag grows", func() bool { return lag() > 1 })
		if _, err := db.ExecContext(t.Context(), "ALTER TABLE away RENAME TO revocation"); err != nil {
			t.Fatal(err)
		}
		f = follow(t, shared)
		f.ask(0)
		if before := lag(); before > 1 {
			testenv.Eventually(t, "the lag falls", func() bool { return lag() < before })
		}
	})
}

// A follower that leaves ends neither the shared read nor counts as an outage.
func TestAFollowerThatHangsUpEndsOnlyItsWait(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f := follow(t, open(t, db))
		over, hangUp := context.WithCancel(t.Context())
		hangUp()
		page, err := f.feed.Next(over, "", 0)
		if err != nil {
			t.Fatalf("the snapshot: %v", err)
		}
		end(t, db, uuid.New())
		if page, err = f.feed.Next(over, page.Cursor, time.Hour); err != nil || page.JSON == nil {
			t.Errorf("after it: %+v, %v", page, err)
		}
	})
}
