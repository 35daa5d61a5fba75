package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// Many keys wait, and get more events. Others are delivered, and none of those that wait is tried before
// its time: each row is set aside once.
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
				SELECT target, key, shard, id, 3, 0, 9000000000000, 'away' FROM outbox_delivery`,
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
		testenv.Eventually(t, "one of them in order", func() bool { return strings.HasSuffix(s.of("hook"), "held-7/1 held-7/2") })
	})
}

// What an attempt shows under a lease that was lost says nothing: another deliverer decides.
func TestAnAttemptUnderALostLeaseDecidesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		outboxtest.AddKeys(t, db, "a", "a")
		s := newReceivers()
		lost := make(chan struct{})
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			if a.Number == 1 && s.tried("hook", "a") == 1 {
				// As another deliverer does once the lease has expired.
				_, err := db.ExecContext(t.Context(), `UPDATE outbox_delivery_lease SET owner = NULL, epoch = epoch + 1`)
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
		if got := s.of("hook"); got != "a/1 a/2" || state(t, db, "hook").ParkedKeys != 0 {
			t.Errorf("it gets %s", got)
		}
	})
}

// The database's clock was ahead when a deliverer took its leases, and it died.
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
		for i := range 40 { // some of them in the shard of the dead one
			keys = append(keys, fmt.Sprint("k", i))
		}
		outboxtest.AddKeys(t, db, keys...)
		s := newReceivers()
		start(t, db, s, quick)
		empty(t, db, "hook")
	})
}

// A removed target is forgotten while events are under way to it.
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
		if err := outbox.SweepRemoved(t.Context(), db); err != nil { // a tick may have made leases again
			t.Fatal(err)
		}
		var left int
		err := db.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM outbox_delivery WHERE target = ?1)
			+ (SELECT count(*) FROM outbox_held_key WHERE target = ?1) + (SELECT count(*) FROM outbox_delivery_lease WHERE target = ?1)`,
			gone.ID).Scan(&left)
		if err != nil || left != 0 {
			t.Errorf("%d rows of it are left, %v", left, err)
		}
	})
}
