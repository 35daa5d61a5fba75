package auth

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// The event belongs to the trace of the sign-in that failed, though it is written after the answer.
func TestALockOutKeepsTheTraceOfItsSignIn(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, testConfig(), db, nil)
		_, tokens := env.newUser(t)
		user := env.caller(t, tokens).User
		request, end := context.WithCancel(tracingtest.Within(t.Context(), parent))
		end() // it has been answered
		env.queueLockOut(request, lockOut{user: user.ID, until: time.Now().Add(time.Hour)})
		env.lockOuts.queued.Wait()
		var trace string
		if err := db.QueryRowContext(t.Context(), "SELECT traceparent FROM outbox_event WHERE type = ?",
			EventUserLockedOut).Scan(&trace); err != nil {
			t.Fatal(err)
		}
		if trace != parent {
			t.Errorf("the event has the traceparent %q", trace)
		}
	})
}

// When the database hangs, the end of a process waits for one announcement, not for all queued
// ones.
func TestClosingDoesNotWaitForEveryLockOut(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, testConfig(), db, nil)
		_, tokens := env.newUser(t)
		user := env.caller(t, tokens).User

		other, err := New(t.Context(), testConfig(), Deps{DB: db, Log: env.Service.log})
		testenv.Must(t, err)
		tx, release := dbtest.Begin(t, db)
		if _, err := lockAccount(t.Context(), tx, user.ID); err != nil {
			t.Fatal(err)
		}
		for range maxLockOuts {
			other.queueLockOut(t.Context(), lockOut{user: user.ID, until: time.Now().Add(time.Hour)})
		}
		closed := make(chan error, 1)
		go func() { closed <- other.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(testenv.Patience): // one after the other, they would take twenty minutes
			t.Error("it continues to announce")
		}
		if err := release(true); err != nil {
			t.Error(err)
		}
		if said := env.log.String(); !strings.Contains(said, "lock_outs_not_announced") {
			t.Errorf("the log does not say that some are missing: %s", said)
		}
	})
}
