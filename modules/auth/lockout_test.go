package auth

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// When the database hangs, the end of a process waits for one announcement, not for all queued
// ones.
func TestClosingDoesNotWaitForEveryLockOut(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, testConfig(), db, nil)
		_, tokens := env.newUser(t)
		user := env.caller(t, tokens).User

		other, err := New(t.Context(), testConfig(), Deps{DB: db, Log: env.Service.log})
		if err != nil {
			t.Fatal(err)
		}
		locked, release := make(chan error, 1), make(chan struct{})
		held := make(chan error, 1)
		go func() {
			held <- db.Tx(context.Background(), func(ctx context.Context, tx database.Tx) error {
				_, err := lockAccount(ctx, tx, user.ID)
				if err == nil {
					_, err = tx.ExecContext(ctx, "UPDATE users SET updated_at = updated_at WHERE id = ?", user.ID)
				}
				locked <- err
				<-release
				return nil
			})
		}()
		if err := <-locked; err != nil {
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
		close(release)
		if err := <-held; err != nil {
			t.Error(err)
		}
		if said := env.log.String(); !strings.Contains(said, "lock_outs_not_announced") {
			t.Errorf("the log does not say that some are missing: %s", said)
		}
	})
}
