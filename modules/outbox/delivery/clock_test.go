package delivery_test

import (
	"context"
	"errors"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// moved moves the times of held keys, as if they had been written then.
func moved(t testing.TB, db *database.DB, by time.Duration) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), `UPDATE outbox_held_key SET since_ms = since_ms + ?, next_ms = next_ms + ?`,
		by.Milliseconds(), by.Milliseconds())
	if err != nil {
		t.Fatal(err)
	}
}

// clocked returns a PostgreSQL database whose clock can be set.
func clocked(t *testing.T) (db *database.DB, set func(time.Duration)) {
	t.Helper()
	address := dbtest.PostgresURL(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	admin := dbtest.Open(t, address)
	for _, q := range []string{
		"CREATE SCHEMA clock",
		"CREATE TABLE clock.ahead AS SELECT 0::bigint AS ms",
		`CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
			SELECT pg_catalog.clock_timestamp() + ms * interval '1 millisecond' FROM clock.ahead $$`,
		"ALTER DATABASE " + u.Path[1:] + " SET search_path = clock, pg_catalog, public",
	} {
		if _, err := admin.Write(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	return dbtest.Open(t, address), func(by time.Duration) {
		if _, err := admin.Write(t.Context(), "UPDATE clock.ahead SET ms = ?", by.Milliseconds()); err != nil {
			t.Error(err)
		}
	}
}

// The clock of PostgreSQL is set while a key is tried again, during an attempt. The key is neither parked because the
// clock is days ahead, nor does it wait because it was set back.
func TestAClockThatIsSetParksNothingAndDelaysNothing(t *testing.T) {
	t.Parallel()
	for name, jump := range map[string]time.Duration{"ahead": 80 * time.Hour, "back": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, set := clocked(t)
			subscribe(t, db, "hook")
			triedAcross(t, db, func(*atomic.Int64) { set(jump) }, jump)
		})
	}
}

// The clock of a machine is set that has SQLite. Its deliverer sees that of the database and its own jump, and so
// does one that was suspended.
func TestTheClockOfThisMachineIsSet(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, _ *receivers) {
		const back = 2 * time.Hour // the test moves what is stored, and the clock of the deliverer, ahead instead
		triedAcross(t, db, func(offset *atomic.Int64) {
			moved(t, db, back)
			offset.Store(int64(back))
		}, 0)
	})
}

// triedAcross sets a clock while an attempt of a key that waits is under way, and checks that the key is tried on.
func triedAcross(t *testing.T, db *database.DB, set func(offset *atomic.Int64), ahead time.Duration) {
	t.Helper()
	s := newReceivers()
	var offset atomic.Int64
	under, done := make(chan struct{}, 1), make(chan struct{})
	s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
		if r.Key == "later" {
			return &delivery.Later{After: time.Hour, Err: errors.New("in an hour")}
		}
		select {
		case <-done:
		default:
			if s.tried("hook", "a") > 1 && state(t, db, "hook").HeldKeys == 2 {
				under <- struct{}{}
				<-done
			}
		}
		return errors.New("away")
	}
	outboxtest.AddKeys(t, db, "a", "later")
	start(t, db, s, quick, func(o *delivery.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	})
	<-under
	set(&offset)
	close(done)
	tried := s.tried("hook", "a")
	testenv.Eventually(t, "it is tried again and again", func() bool {
		if st := state(t, db, "hook"); st.ParkedKeys != 0 {
			t.Fatalf("it is parked after %d attempts", s.tried("hook", "a"))
		}
		return s.tried("hook", "a") > tried+8
	})
	list, err := outbox.HeldKeys(t.Context(), db, state(t, db, "hook").Subscription, true)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	now := time.Now().Add(ahead)
	for _, k := range list {
		if k.FailedAt.Sub(now).Abs() > time.Hour/2 {
			t.Errorf("%s has failed since %s, and it is %s", k.Key, k.FailedAt, now)
		}
		if k.Key == "later" && k.NextAt.Sub(now.Add(time.Hour)).Abs() > time.Hour/2 {
			t.Errorf("the target asked for an hour, and the next attempt is at %s", k.NextAt)
		}
	}
}

// A server that was restored to an older state lacks the leases of a target that no deliverer had seen then. They are
// made again.
func TestLeasesAreMadeAgainOnAnotherServer(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, outboxtest.StartPostgres(t).URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	subscribe(t, db, "hook")
	s := newReceivers()
	start(t, db, s, quick)
	outboxtest.AddKeys(t, db, "a")
	empty(t, db, "hook")
	for _, q := range []string{`DELETE FROM outbox_delivery_lease`, `SELECT pg_stat_reset_shared('wal')`} { // see schema.ThisServer
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	outboxtest.AddKeys(t, db, "a")
	empty(t, db, "hook")
	s.expect(t, "hook", "a/1 a/2")
}

// Nobody tried a key while no deliverer ran, or while its target was paused. That time does not count: the
// key gets its attempts afterwards.
func TestTimeWithoutAttemptsParksNothing(t *testing.T) {
	t.Parallel()
	for name, during := range map[string]func(t *testing.T, db *database.DB){
		"no deliverer": func(t *testing.T, db *database.DB) { moved(t, db, -80*time.Hour) },
		"a pause": func(t *testing.T, db *database.DB) {
			if _, err := outbox.PauseTarget(t.Context(), db, "hook", "for days"); err != nil {
				t.Fatal(err)
			}
			moved(t, db, -80*time.Hour)
			if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
				s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error { return errors.New("away") }
				outboxtest.AddKeys(t, db, "a")
				stop, _ := start(t, db, s, quick)
				testenv.Eventually(t, "it is held", func() bool { return state(t, db, "hook").HeldKeys == 1 })
				stop()
				during(t, db)
				tried := s.tried("hook", "a")
				start(t, db, s, quick)
				testenv.Eventually(t, "it is tried several times", func() bool {
					if st := state(t, db, "hook"); st.ParkedKeys != 0 {
						t.Fatalf("it is parked after %d attempts", s.tried("hook", "a")-tried)
					}
					return s.tried("hook", "a") > tried+3
				})
			})
		})
	}
}

// An operator resumes a target while an attempt from before is under way, which then fails. The key begins with its
// first failure after that.
func TestAnAttemptFromBeforeAResumptionParksNothing(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		under, resumed := make(chan struct{}, 1), make(chan struct{})
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error {
			select {
			case <-resumed:
			default:
				if s.tried("hook", "a") > 1 {
					under <- struct{}{}
					<-resumed
				}
			}
			return errors.New("away")
		}
		outboxtest.AddKeys(t, db, "a")
		start(t, db, s, quick)
		<-under
		if _, err := outbox.PauseTarget(t.Context(), db, "hook", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
			t.Fatal(err)
		}
		close(resumed)
		tried := s.tried("hook", "a")
		testenv.Eventually(t, "it is tried again", func() bool { return s.tried("hook", "a") > tried })
		list, err := outbox.HeldKeys(t.Context(), db, state(t, db, "hook").Subscription, true)
		if err != nil || len(list) != 1 || list[0].Attempts >= s.tried("hook", "a") {
			t.Errorf("%d attempts count of %d, %+v, %v", list[0].Attempts, s.tried("hook", "a"), list, err)
		}
	})
}
