package relay_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// A check that cannot fail shows nothing. These are common but wrong ways to build an outbox, and
// the checks must find each of them.

// cursorRelay is a relay that remembers its position in the order of its query: a scan of the
// events above a cursor, which most outboxes use.
func cursorRelay(ctx context.Context, t *testing.T, db *database.DB, s relay.Sink, query string) {
	var cursor [2]int64
	for ctx.Err() == nil {
		rows, err := db.QueryContext(ctx, query, cursor[0], cursor[1])
		if err != nil {
			return
		}
		var batch relay.Batch
		batch.Owned = func() bool { return true }
		for rows.Next() {
			var r relay.Record
			if err := rows.Scan(&cursor[0], &r.ID, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source,
				&r.DataSchema,
				&r.Time, &r.Data); err != nil {
				t.Error(err)
				return
			}
			cursor[1] = r.ID
			batch.Records = append(batch.Records, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return
		}
		if len(batch.Records) == 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := s.Publish(ctx, &batch); err != nil {
			t.Error(err)
			return
		}
	}
}

const eventColumns = `id, key_seq, event_id::text, type, key, subject, source, dataschema, time, data`

// runCursor runs writers and such a relay until the checker finds a defect, or gives up.
func runCursor(t *testing.T, query string, found func(outboxtest.Report) bool) (report outboxtest.Report) {
	t.Helper()
	db := dbtest.Postgres(t)
	s, path := file(t)
	log := &outboxtest.Log{}
	var wg sync.WaitGroup
	defer wg.Wait()
	relaying, stop := context.WithCancel(t.Context())
	defer stop()
	wg.Go(func() { cursorRelay(relaying, t, db, s, query) })
	for range 20 {
		w := outboxtest.Workload{DB: db, Log: log, Writers: 12, Keys: 5, Limit: 500}
		w.Run(t.Context())
		// Until it has read everything that it will ever read.
		for before := -1; len(lines(t, path)) != before; time.Sleep(300 * time.Millisecond) {
			before = len(lines(t, path))
		}
		seen, err := outboxtest.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if report = outboxtest.Check(log.All(), seen); found(report) {
			break
		}
	}
	t.Log(report)
	return report
}

func TestCheckerFindsACursorByID(t *testing.T) {
	t.Parallel()
	const query = `SELECT 0, ` + eventColumns + ` FROM outbox_event WHERE ? = 0 AND id > ? ORDER BY id LIMIT 1000`
	lost := func(r outboxtest.Report) bool { return r.Lost > 0 }
	if !lost(runCursor(t, query, lost)) {
		t.Error("a relay that scans by id was not found to lose events")
	}
}

func TestCheckerFindsOrderByTransaction(t *testing.T) {
	t.Parallel()
	const query = `SELECT xmin::text::bigint, ` + eventColumns + ` FROM outbox_event
		WHERE (xmin::text::bigint, id) > (?, ?) AND xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
		ORDER BY xmin::text::bigint, id LIMIT 1000`
	inverted := func(r outboxtest.Report) bool { return r.Inverted > 0 }
	if !inverted(runCursor(t, query, inverted)) {
		t.Error("a relay that goes by transaction was not found to change the order")
	}
}

// drawnFirst is the function that draws the id before its transaction holds the lock by which a
// relay sees the transaction. Everything else is correct.
const drawnFirst = `CREATE OR REPLACE FUNCTION outbox_add_traced(p_hash integer, p_bytes integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text, p_traceparent text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
    i bigint;
BEGIN
    INSERT INTO outbox_key AS k (key, seq) VALUES (p_key, 1)
        ON CONFLICT (key) DO UPDATE SET seq = k.seq + 1 RETURNING seq INTO n;
    i := nextval('outbox_event_id');
    INSERT INTO outbox_event (id, segment, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data)
        VALUES (i, 0, 1, n, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data);
    INSERT INTO outbox_pending (shard, segment, bytes, id) VALUES (p_hash % 96, 0, p_bytes, i);
END $$`

func TestCheckerFindsAnIDDrawnBeforeTheLock(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgresURL(t)
	db := dbtest.Open(t, url)
	if _, err := db.ExecContext(t.Context(), drawnFirst); err != nil {
		t.Fatal(err)
	}
	s, path := file(t)
	r, err := relay.New(db, s, relay.Config{Retention: 87600 * time.Hour}, relay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	relay.SweepEvery(r, 2*time.Second) // events that the watermark hides are late, not lost
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var written []outboxtest.Written
	var report outboxtest.Report
	for range 20 { // a busy machine locks the table only once in a round
		written = append(written, lockingTable(t, url, campaign()).All()...)
		drained(t, db)
		seen, err := outboxtest.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if report = outboxtest.Check(written, seen); report.Inverted > 0 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Log(report)
	if report.Inverted == 0 {
		t.Error("an id that is drawn before the lock was not found to change the order")
	}
}

// pipelined has five parts of each batch in flight at once, on a network that drops some.
type pipelined struct{ relay.Sink }

func (p pipelined) Publish(ctx context.Context, b *relay.Batch) error {
	var wg sync.WaitGroup
	size := (len(b.Records) + 4) / 5
	for from := 0; from < len(b.Records); from += size {
		part := &relay.Batch{Partition: b.Partition, Records: b.Records[from:min(from+size, len(b.Records))],
			Owned: b.Owned}
		wg.Go(func() {
			for rand.IntN(4) == 0 { // lost on the way, and sent again
				time.Sleep(time.Millisecond)
			}
			for p.Sink.Publish(ctx, part) != nil && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	return nil
}

func TestCheckerFindsFiveRequestsInFlight(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	real, path := file(t)
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 2, Keys: 5, Limit: 500}
	w.Run(t.Context())
	startRelay(t, db, pipelined{real}, relay.Config{}, relay.Options{})
	drained(t, db)
	seen, err := outboxtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	report := outboxtest.Check(log.All(), seen)
	t.Log(report)
	if report.Inverted == 0 {
		t.Error("five requests in flight were not found to change the order")
	}
}

func TestCheckerFindsALeaseWithoutADeadline(t *testing.T) {
	t.Parallel()
	if report := stopPastLease(t, true); report.Duplicate == 0 {
		t.Error("a relay that sends after its lease was not found to repeat events")
	}
}

// forgetful sometimes acknowledges events that it does not have: fire and forget.
type forgetful struct {
	relay.Sink
	n atomic.Int64
}

func (f *forgetful) Publish(ctx context.Context, b *relay.Batch) error {
	if f.n.Add(1)%5 == 0 {
		return nil
	}
	return f.Sink.Publish(ctx, b)
}

func TestCheckerFindsFireAndForget(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	real, path := file(t)
	startRelay(t, db, &forgetful{Sink: real}, relay.Config{BatchEvents: 20}, relay.Options{})
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 2, Keys: 5, Limit: 500}
	w.Run(t.Context())
	drained(t, db)
	seen, err := outboxtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if report := outboxtest.Check(log.All(), seen); report.Lost == 0 {
		t.Errorf("fire and forget was not found to lose events: %v", report)
	}
}
