package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// Many keys wait, and get more events. Other keys are delivered, and none of the waiting ones is
// tried early: each row is set aside once.
func TestKeysThatWaitCostTheOthersNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		hook := subscribe(t, db, "hook")
		const keys = 1500
		events := make([]outbox.Event, keys)
		for i := range events {
			events[i] = outboxtest.Event(fmt.Sprint("held-", i))
		}
		outboxtest.Add(t, db, events...)
		for _, q := range []string{
			`INSERT INTO outbox_held_key (target, key, shard, event, attempts, since_ms, next_ms, error)
				SELECT target, key, shard, id, 3, 0, ` + inHours(12) + `, 'away' FROM outbox_delivery`,
			`UPDATE outbox_delivery SET held = true`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		outboxtest.Add(t, db, events...)
		outboxtest.AddKeys(t, db, "living", "living")
		s := newReceivers()
		start(t, db, s, quick)
		testenv.Eventually(t, "the living key goes on", func() bool { return s.of("hook") == "living/1 living/2" })
		testenv.Eventually(t, "the others are set aside", func() bool {
			var ready int
			err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_delivery WHERE NOT held`).Scan(&ready)
			return err == nil && ready == 0
		})
		if st := state(t, db, "hook"); st.Waiting != 2*keys || st.HeldKeys != keys {
			t.Errorf("%d events of %d keys wait", st.Waiting, st.HeldKeys)
		}
		if n, err := outbox.RetryHeld(t.Context(), db, hook, "held-7"); err != nil || n != 2 {
			t.Errorf("retried %d, %v", n, err)
		}
		testenv.Eventually(t, "one of them is delivered in order", func() bool {
			return strings.HasSuffix(s.of("hook"), "held-7/1 held-7/2")
		})
	})
}

// After an outage keys do not wait out the long delays that it caused. Keys that failed alone, and
// keys that the target asked to delay, wait as before.
func TestKeysComeSoonAfterAnOutage(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		var mu sync.Mutex
		fails := map[string]error{}
		set := func(err error, keys ...string) {
			mu.Lock()
			defer mu.Unlock()
			for _, key := range keys {
				fails[key] = err
			}
		}
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			mu.Lock()
			defer mu.Unlock()
			return fails[r.Key]
		}
		takes := func(key string) {
			t.Helper()
			outboxtest.AddKeys(t, db, key)
			testenv.Eventually(t, key+" is taken, and that is recorded", func() bool {
				left, err := database.Value[int](db.QueryRowContext(t.Context(),
					`SELECT count(*) FROM outbox_delivery WHERE key = ?`, key))
				return err == nil && left == 0
			})
		}
		away := errors.New("away")
		set(away, "bad", "a", "b")
		set(&delivery.Later{After: time.Hour, Err: away}, "asks")
		start(t, db, s, quick)
		takes("first")
		outboxtest.AddKeys(t, db, "bad")
		testenv.Eventually(t, "it fails", func() bool {
			return s.tried("hook", "bad") > 0 && state(t, db, "hook").HeldKeys == 1
		})
		takes("others")
		// From now on everything is refused for a while, which makes the delays long.
		outboxtest.AddKeys(t, db, "a", "b", "asks")
		testenv.Eventually(t, "they fail for a while", func() bool {
			return s.tried("hook", "a") > 6 && s.tried("hook", "b") > 6 && state(t, db, "hook").HeldKeys == 4
		})
		for _, key := range []string{"a", "b", "bad"} {
			waitsForLong(t, db, hook, key)
		}
		bad := s.tried("hook", "bad")
		set(nil, "a", "b", "asks")
		takes("healed")
		for _, key := range []string{"a", "b"} {
			testenv.Eventually(t, key+" comes soon", func() bool { return strings.Contains(s.of("hook"), key+"/") })
		}
		if got := s.tried("hook", "bad"); got != bad || !pausesForLong(t, db, hook, "bad") {
			t.Errorf("the key that failed alone is tried %d more times", got-bad)
		}
		if got := s.tried("hook", "asks"); got != 1 || !pausesForLong(t, db, hook, "asks") {
			t.Errorf("the target asked for a pause, but gets %d attempts", got)
		}
	})
}

// The lease of a key that waits is lost in the moment in which its target recovers.
func TestKeysComeSoonAfterAnOutageWithALostLease(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		var away atomic.Bool
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			if r.Key == "healed" {
				write(t, db, `UPDATE outbox_delivery_lease SET owner = '00000000-0000-0000-0000-000000000001',
					epoch = epoch + 1, until_ms = `+inHours(1))
				testenv.Eventually(t, "the loss is noticed", func() bool { return !a.Owned() })
			} else if away.Load() {
				return errors.New("away")
			}
			return nil
		}
		start(t, db, s, quick)
		outboxtest.AddKeys(t, db, "first")
		empty(t, db, "hook")
		away.Store(true)
		outboxtest.AddKeys(t, db, "a")
		testenv.Eventually(t, "it fails for a while", func() bool { return s.tried("hook", "a") > 6 })
		waitsForLong(t, db, hook, "a")
		away.Store(false)
		outboxtest.AddKeys(t, db, "healed")
		testenv.Eventually(t, "the target recovers", func() bool { return state(t, db, "hook").Waiting == 1 })
		write(t, db, `UPDATE outbox_delivery_lease SET owner = NULL, until_ms = 0`)
		testenv.Eventually(t, "it comes soon", func() bool { return strings.Contains(s.of("hook"), "a/") })
	})
}

// A target recovers while an attempt is under way that it never answers.
func TestAnAttemptWithinAnOutageIsRepeatedSoon(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		var away atomic.Bool
		under, over := make(chan struct{}), make(chan struct{})
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			if r.Key == "healed" || !away.Load() {
				return nil
			}
			if a.Number > 20 {
				under <- struct{}{}
				<-over
			}
			return errors.New("away")
		}
		start(t, db, s, quick)
		outboxtest.AddKeys(t, db, "first")
		empty(t, db, "hook")
		away.Store(true)
		outboxtest.AddKeys(t, db, "a")
		testenv.Eventually(t, "it fails for a while", func() bool { return s.tried("hook", "a") > 6 })
		testenv.Eventually(t, "a late attempt is under way", func() bool {
			write(t, db, `UPDATE outbox_held_key SET attempts = 20, next_ms = 0`)
			select {
			case <-under:
				return true
			default:
				return false
			}
		})
		outboxtest.AddKeys(t, db, "healed")
		testenv.Eventually(t, "the target takes an event", func() bool { return strings.Contains(s.of("hook"), "healed/") })
		testenv.Eventually(t, "that is recorded", func() bool { return state(t, db, "hook").Waiting == 1 })
		away.Store(false)
		close(over)
		testenv.Eventually(t, "it comes soon", func() bool { return strings.Contains(s.of("hook"), "a/") })
	})
}

// waitsForLong gives a key that fails a pause of hours. No attempt is under way then.
func waitsForLong(t testing.TB, db *database.DB, hook outbox.Subscription, key string) {
	t.Helper()
	write(t, db, `UPDATE outbox_held_key SET attempts = 20 WHERE key = '`+key+`'`) // the next one brings minutes
	testenv.Eventually(t, key+" waits for long", func() bool { return pausesForLong(t, db, hook, key) })
	write(t, db, `UPDATE outbox_held_key SET next_ms = `+inHours(12)+` WHERE key = '`+key+`'`)
}

func pausesForLong(t testing.TB, db *database.DB, hook outbox.Subscription, key string) bool {
	t.Helper()
	list, err := outbox.HeldKeys(t.Context(), db, hook, true)
	return err == nil && slices.ContainsFunc(list, func(k outbox.ParkedKey) bool {
		return k.Key == key && k.NextAt.After(time.Now().Add(time.Minute))
	})
}

func write(t testing.TB, db *database.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Error(err)
	}
}

// A target may ask for a pause longer than the time for attempts.
func TestAPauseThatATargetAsksForParksNothing(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error {
			return &delivery.Later{After: time.Hour, Err: errors.New("in an hour")}
		}
		outboxtest.AddKeys(t, db, "a")
		cfg := quick
		cfg.RetryFor = time.Minute
		start(t, db, s, cfg)
		testenv.Eventually(t, "it waits",
			func() bool { st := state(t, db, "hook"); return st.HeldKeys+st.ParkedKeys == 1 })
		if st := state(t, db, "hook"); st.ParkedKeys != 0 {
			t.Errorf("it is parked after one attempt: %s", st.LastError)
		}
	})
}

// The attempt after which a key is parked is not said to be made again.
func TestTheLastAttemptIsNotSaidToBeMadeAgain(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error { return errors.New("away") }
		outboxtest.AddKeys(t, db, "a")
		write(t, db, `INSERT INTO outbox_held_key (target, key, shard, event, attempts, since_ms, next_ms, error)
			SELECT target, key, shard, id, 1, `+inHours(-1)+`, 0, 'away' FROM outbox_delivery`)
		write(t, db, `UPDATE outbox_delivery SET held = true`)
		cfg := quick
		cfg.RetryFor = time.Minute
		logged, logs := observer.New(zap.WarnLevel)
		start(t, db, s, cfg, func(o *delivery.Options) { o.Log = zap.New(logged) })
		testenv.Eventually(t, "it is parked", func() bool { return logs.FilterMessage("deliverer_keys_parked").Len() > 0 })
		if lines := logs.FilterMessage("delivery_failed").All(); len(lines) > 0 {
			t.Errorf("it is said to be tried again: %v", lines)
		}
	})
}

// A target was removed and added again with the same name. It gets the events from then on, and
// none that waited for the former target.
func TestATargetOfTheSameNameIsAnother(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		first := subscribe(t, db, "hook")
		s := newReceivers()
		// An attempt under way when the first target is removed may end later, with the same name.
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			if r.Seq > 1 {
				return nil
			}
			return &delivery.Gone{Err: errors.New("it answered 410")}
		}
		outboxtest.AddKeys(t, db, "a", "b")
		start(t, db, s, quick)
		testenv.Eventually(t, "it is paused", func() bool { return !state(t, db, "hook").Active() })
		if _, err := outbox.RemoveTarget(t.Context(), db, "hook", testenv.Patience); err != nil {
			t.Fatal(err)
		}
		second := subscribe(t, db, "hook")
		outboxtest.AddKeys(t, db, "a")
		testenv.Eventually(t, "it gets the next event", func() bool { return s.of("hook") != "" })
		empty(t, db, "hook")
		if got := s.of("hook"); got != "a/2" || second.ID == first.ID || !state(t, db, "hook").Active() {
			t.Errorf("the target %d gets %s after the target %d", second.ID, got, first.ID)
		}
	})
}

// inHours is a time in the format of the tables.
func inHours(n time.Duration) string {
	return strconv.FormatInt(time.Now().Add(n*time.Hour).UnixMilli(), 10)
}

// The database's clock was ahead when a key was held, or was set back later.
func TestAPauseThatCannotBeRightIsVoid(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		outboxtest.AddKeys(t, db, "void", "long")
		for key, next := range map[string]string{"void": inHours(100), "long": inHours(20)} {
			_, err := db.ExecContext(t.Context(),
				`INSERT INTO outbox_held_key (target, key, shard, event, attempts, since_ms, next_ms, error)
				SELECT target, key, shard, id, 1, 0, `+next+`, 'away' FROM outbox_delivery WHERE key = ?`, key)
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.ExecContext(t.Context(), `UPDATE outbox_delivery SET held = true`); err != nil {
			t.Fatal(err)
		}
		s := newReceivers()
		start(t, db, s, quick)
		testenv.Eventually(t, "it is taken", func() bool { return s.of("hook") == "void/1" })
		if n := s.tried("hook", "long"); n != 0 {
			t.Errorf("a plausible pause was cut short: %d attempts", n)
		}
	})
}

// An event that was just delivered is replayed from memory, and is marked as a replay.
func TestAReplayAtOnceIsAReplay(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		start(t, db, s, quick)
		outboxtest.AddKeys(t, db, "a")
		empty(t, db, "hook")
		if _, err := outbox.ReplayTo(t.Context(), db, hook, outbox.Selection{Key: "a"}, false, nil); err != nil {
			t.Fatal(err)
		}
		empty(t, db, "hook")
		s.expect(t, "hook", "a/1 a/1*")
	})
}

// A deliverer whose role lacks rights reports that where operators look, and what helps: a serve that is to deliver
// needs the role of relays, and that one what grants.sql gives it.
func TestMissingRightsAreReported(t *testing.T) {
	t.Parallel()
	address := dbtest.PostgresURL(t)
	owner := dbtest.Open(t, address)
	role, secret := "delivery_"+strings.ReplaceAll(uuid.NewString(), "-", ""), uuid.NewString()
	grant := func(statements ...string) {
		t.Helper()
		for _, s := range statements {
			if _, err := owner.Write(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	grant(`DO $$ BEGIN CREATE ROLE authctl_relay; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`,
		"CREATE ROLE "+role+" LOGIN PASSWORD '"+secret+"'",
		"GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_trouble TO "+role)
	t.Cleanup(func() {
		if _, err := owner.Write(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, secret)
	start(t, dbtest.Open(t, u.String()), newReceivers(), quick)
	outages := func() []outbox.Outage {
		st, err := outbox.Status(t.Context(), owner)
		if err != nil {
			t.Fatal(err)
		}
		return st.Outages
	}
	reported := func(remedy string) {
		t.Helper()
		testenv.Eventually(t, "the outage is reported, with: "+remedy, func() bool {
			list := outages()
			return len(list) == 1 && list[0].Kind == "rights" && list[0].Lasts &&
				list[0].Target == outbox.DeliveryTargets && strings.Contains(list[0].Error, remedy)
		})
	}
	reported("GRANT authctl_relay")
	grant("GRANT authctl_relay TO " + role)
	reported("migrate grants")
	grant("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO " + role)
	testenv.Eventually(t, "it ends", func() bool { return len(outages()) == 0 })
}

// The outcome of an attempt under a lost lease is void: another deliverer decides.
func TestAnAttemptUnderALostLeaseDecidesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		outboxtest.AddKeys(t, db, "a", "a")
		s := newReceivers()
		lost := make(chan struct{})
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			if a.Number == 1 && s.tried("hook", "a") == 1 {
				// What another deliverer does once the lease has expired.
				_, err := db.ExecContext(t.Context(),
					`UPDATE outbox_delivery_lease SET owner = NULL, epoch = epoch + 1`)
				if err != nil {
					t.Error(err)
				}
				testenv.Eventually(t, "the loss is noticed", func() bool { return !a.Owned() })
				close(lost)
				return &delivery.Refused{Err: errors.New("refused under a lost lease")}
			}
			return nil
		}
		start(t, db, s, quick)
		<-lost
		empty(t, db, "hook")
		s.expect(t, "hook", "a/1 a/2")
		if st := state(t, db, "hook"); st.ParkedKeys != 0 {
			t.Errorf("%d keys are parked", st.ParkedKeys)
		}
	})
}

// A deliverer took its leases while the database's clock was ahead, and then died.
func TestLeasesThatEndTooLateAreTakenOver(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		const dead = "00000000-0000-0000-0000-000000000001"
		for _, q := range []string{
			`INSERT INTO outbox_deliverer (id, name, kinds, started_ms, until_ms, lease_ms)
				VALUES ('` + dead + `', 'dead', '["webhook"]', 0, 9000000000000, 1000)`,
			`INSERT INTO outbox_delivery_lease (target, shard, owner, epoch, until_ms)
				SELECT id, 0, '` + dead + `', 1, 9000000000000 FROM outbox_subscription WHERE name = 'hook'`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		var keys []string
		for i := range 40 { // some of them in the shard of the dead deliverer
			keys = append(keys, fmt.Sprint("k", i))
		}
		outboxtest.AddKeys(t, db, keys...)
		s := newReceivers()
		start(t, db, s, quick)
		empty(t, db, "hook")
	})
}

// A removed target is forgotten while events to it are in flight.
func TestATargetCanBeRemovedWhileEventsAreUnderWay(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		gone := subscribe(t, db, "gone")
		subscribe(t, db, "stays")
		s := newReceivers()
		begun, removed := make(chan struct{}, 100), make(chan struct{})
		s.answer = func(ctx context.Context, target string, r outbox.Record, _ delivery.Attempt) error {
			if target == "gone" {
				begun <- struct{}{}
				select {
				case <-removed:
				case <-ctx.Done():
				}
				return errors.New("too late")
			}
			return nil
		}
		outboxtest.AddKeys(t, db, "a", "b")
		stop, _ := start(t, db, s, quick)
		<-begun
		if _, err := outbox.RemoveTarget(t.Context(), db, "gone", testenv.Patience); err != nil {
			t.Fatal(err)
		}
		close(removed)
		outboxtest.AddKeys(t, db, "a", "b")
		empty(t, db, "stays")
		stop()
		if err := outbox.SweepRemoved(t.Context(), db); err != nil { // a tick may have created leases again
			t.Fatal(err)
		}
		var left int
		err := db.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM outbox_delivery WHERE target = ?1)
			+ (SELECT count(*) FROM outbox_held_key WHERE target = ?1) + (SELECT count(*) FROM outbox_delivery_lease WHERE target = ?1)`,
			gone.ID).Scan(&left)
		if err != nil || left != 0 {
			t.Errorf("%d of its rows remain, %v", left, err)
		}
	})
}

// patient are receivers of a kind whose parked keys come again after an hour.
type patient struct{ *receivers }

func (patient) AttemptTimeout() time.Duration { return testenv.Patience }
func (patient) Life() time.Duration           { return time.Hour }

// Whoever does something new does not wait for all the keys that were parked before.
func TestANewEventWaitsForNoOtherParkedKey(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error {
			return &delivery.Refused{Err: errors.New("refused")}
		}
		outboxtest.AddKeys(t, db, "a")
		stop, _ := start(t, db, patient{s}, quick)
		testenv.Eventually(t, "it is parked", func() bool { return state(t, db, "hook").ParkedKeys == 1 })
		stop()
		for _, q := range []string{
			`UPDATE outbox_held_key SET parked_ms = parked_ms - 7200000`,
			`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, parked_ms, error)
				WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 40000)
				SELECT k.target, 'old ' || n.n, k.shard, n.n, 1, 0, n.n, '' FROM n, outbox_held_key k`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		s.answer = nil
		start(t, db, patient{s}, quick)
		outboxtest.AddKeys(t, db, "a")
		empty(t, db, "hook")
		s.expect(t, "hook", "a/1 a/2")
		if n := state(t, db, "hook").ParkedKeys; n < 10000 {
			t.Errorf("only %d keys are parked still", n)
		}
	})
}
