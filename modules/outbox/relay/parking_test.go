package relay

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// The answer to a renewal is older than the parking of a key, but is applied after it. The relay
// still knows that the key is parked.
func TestARenewalDoesNotForgetAKeyThatWasJustParked(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	r, err := New(db, &counting{partitions: 4}, Config{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	sh := &shard{id: 5, epoch: 1, parked: map[string]int64{"gone": 3, "earlier": 20}}
	r.partitions, r.workers, r.held = 4, make([]partitionWorker, 4), map[int]*shard{5: sh}
	held := []claim{{shard: 5, epoch: 1, parkings: sh.parkings}}
	sh.park("bad", 7)
	sh.park("earlier", 10)
	answer := tickResult{claims: []claim{{shard: 5, epoch: 1}},
		parked: map[int]map[string]int64{5: {"other": 9, "earlier": 20}}}
	r.applyTick(time.Now(), held, answer)
	for key, from := range map[string]int64{"bad": 7, "other": 9, "earlier": 10} {
		if !sh.parks(&Record{Record: outbox.Record{Key: key, ID: from}}) ||
			sh.parks(&Record{Record: outbox.Record{Key: key, ID: from - 1}}) {
			t.Errorf("%s does not wait from %d on: %v", key, from, sh.parked)
		}
	}
	// The next answer is newer, and therefore complete.
	held[0].parkings = sh.parkings
	r.applyTick(time.Now(), held, answer)
	if fmt.Sprint(sh.parked) != "map[earlier:20 other:9]" {
		t.Errorf("parked %v", sh.parked)
	}
}

// parkInTwoSteps locks the shard, as parking does first, and returns a function that does the rest.
func parkInTwoSteps(t *testing.T, db *database.DB, shard int) (park func(key string, id int64)) {
	t.Helper()
	tx, end := dbtest.Begin(t, db)
	if _, err := tx.ExecContext(t.Context(), `SELECT 1 FROM outbox_shard WHERE shard = ? FOR UPDATE`,
		shard); err != nil {
		t.Fatal(err)
	}
	return func(key string, id int64) {
		t.Helper()
		if _, err := tx.ExecContext(t.Context(), fmt.Sprintf(parkKey, schema.Now(tx)), key, shard, id,
			"no"); err != nil {
			t.Fatal(err)
		}
		if _, err := moveToDead(t.Context(), tx, shard, []int64{id}); err != nil {
			t.Fatal(err)
		}
		if err := end(true); err != nil {
			t.Fatal(err)
		}
	}
}

// An event is parked while a replay that has read it waits for the lock on the shard.
func TestAReplayDoesNotEnqueueWhatIsParkedMeanwhile(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	outboxtest.AddKeys(t, db, "bad", "bad")
	shard := outbox.Partition("bad", 96)
	park := parkInTwoSteps(t, db, shard)
	type outcome struct {
		outbox.ReplayResult
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		res, err := outbox.Replay(t.Context(), db, outbox.Selection{}, false, nil)
		done <- outcome{res, err}
	}()
	waiting(t, db, "transactionid", 1)
	park("bad", 1)
	if got := <-done; got.err != nil || got.Enqueued != 0 {
		t.Fatalf("%+v", got)
	}
	var both int
	if err := db.QueryRowContext(t.Context(),
		`SELECT count(*) FROM outbox_pending p JOIN outbox_dead d ON d.id = p.id`).Scan(&both); err != nil ||
		both != 0 {
		t.Errorf("%d events are pending and parked, %v", both, err)
	}
}

// A retry and the parking of an earlier event of the key run at once. Each waits for the other to
// end, and they do not deadlock.
func TestRetryAndParkingDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	outboxtest.AddKeys(t, db, "bad", "bad")
	shard := outbox.Partition("bad", 96)
	parkInTwoSteps(t, db, shard)("bad", 2)
	park := parkInTwoSteps(t, db, shard)
	done := make(chan error, 1)
	go func() {
		n, err := outbox.RetryParked(context.Background(), db, "bad")
		if err == nil && n != 2 {
			err = fmt.Errorf("retried %d events, want 2", n)
		}
		done <- err
	}()
	waiting(t, db, "transactionid", 1)
	park("bad", 1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := len(read(t, opened(t, db), 10, 1<<20)); n != 2 {
		t.Errorf("%d events are pending, want 2", n)
	}
}
