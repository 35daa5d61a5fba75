package outboxbench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// A target of two partitions holds the backlog in one, which accepts nothing, while the other is
// served. Otherwise the backlog would be gone after a minute.
const (
	halves = 2
	away   = 0 // the partition that accepts nothing
)

// Backlog says what to fill an outbox with.
type Backlog struct {
	Events   int                // waiting events, for the log and for a paused webhook
	Keys     int                // keys with past events; with the events there may be more
	Have     int                // of them, the first ones, that are there
	Key      func(i int) string // the same one for the same number
	Progress func(what string, done, of int)
}

// Fill writes a backlog to the outbox of a PostgreSQL database by COPY. All its events belong to
// the partition that accepts nothing. No relay may run.
func Fill(ctx context.Context, db *database.DB, b Backlog) error {
	var shards, ring int
	var first, nowMS int64
	err := db.QueryRowContext(ctx, `SELECT shards, (extract(epoch FROM now()) * 1000)::bigint / segment_ms % 16,
		(extract(epoch FROM now()) * 1000)::bigint FROM outbox_setting`).Scan(&shards, &ring, &nowMS)
	if err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	if b.Events > 0 {
		err := db.QueryRowContext(ctx, `SELECT setval('outbox_event_id', nextval('outbox_event_id') + ?) - ?`,
			b.Events, b.Events).Scan(&first)
		if err != nil {
			return fmt.Errorf("fill the outbox: %w", err)
		}
	}
	const target = 2 // the first one after the one that the migration makes
	_, err = db.ExecContext(ctx, `INSERT INTO outbox_subscription (id, name, kind, state, types, url, created_ms, since_ms, reason)
		VALUES (?, 'growth', 'webhook', 'paused', '["*"]', 'https://hook.example.com/', ?, ?, 'as it was made') ON CONFLICT DO NOTHING`, target, nowMS, nowMS)
	for _, q := range []string{`UPDATE outbox_setting SET deliver = true`, `DELETE FROM outbox_target`} {
		if err == nil {
			_, err = db.ExecContext(ctx, q)
		}
	}
	if err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	// Keys are made from numbers; those of the partition are used, one per event.
	waiting := func() func() (n int, key string, more bool) {
		i, n := 0, 0
		return func() (int, string, bool) {
			for ; n < b.Events; i++ {
				if key := b.Key(i); outbox.Partition(key, halves) == away {
					i++
					n++
					return n - 1, key, true
				}
			}
			return i, "", false
		}
	}
	last := 0
	count := waiting()
	for more := true; more; {
		last, _, more = count()
	}
	table := func(name string, of int, columns []string, next func() []any) error {
		done := 0
		return db.CopyInto(ctx, name, columns, func() []any {
			row := next()
			if done++; done%10_000 == 0 || row == nil {
				b.Progress(name, min(done, of), of)
			}
			return row
		})
	}
	keys, k := max(b.Keys, last), b.Have
	err = table("outbox_key", keys, []string{"key", "seq"}, func() []any {
		if k >= keys {
			return nil
		}
		k++
		return []any{b.Key(k - 1), int64(1)}
	})
	if err != nil || b.Events == 0 {
		return err
	}
	next := waiting()
	err = table("outbox_event", b.Events, []string{
		"id", "segment", "created_ms", "key_seq", "event_id", "type", "key", "subject", "source", "dataschema", "time",
		"data",
	}, func() []any {
		n, key, more := next()
		if !more {
			return nil
		}
		e := eventOf(key)
		return []any{
			first + int64(n), int16(ring), nowMS, int64(1), [16]byte(uuid.Must(uuid.NewV7())), e.Type, e.Key, e.Subject,
			e.Source, e.DataSchema, e.Time.UTC().Format(time.RFC3339Nano), string(e.Data),
		}
	})
	if err != nil {
		return err
	}
	e := eventOf(b.Key(0))
	size := (&outbox.Record{
		Type: e.Type, Key: e.Key, Subject: e.Subject, Source: e.Source, DataSchema: e.DataSchema, Data: e.Data,
	}).Bytes() // keys are equally long
	next = waiting()
	err = table("outbox_pending", b.Events, []string{"shard", "segment", "bytes", "id"}, func() []any {
		n, key, more := next()
		if !more {
			return nil
		}
		return []any{int16(outbox.Partition(key, shards)), int16(ring), int32(size), first + int64(n)}
	})
	if err != nil {
		return err
	}
	next = waiting()
	return table("outbox_delivery", b.Events, []string{"id", "target", "shard", "segment", "key"}, func() []any {
		n, key, more := next()
		if !more {
			return nil
		}
		return []any{first + int64(n), int16(target), int16(outbox.Partition(key, 16)), int16(ring), key}
	})
}

// Add writes n events, some hundred per transaction.
func Add(ctx context.Context, db *database.DB, n, writers int) error {
	const portion = 200
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for done := 0; done < n; done += portion {
		group.Go(func() error {
			events := make([]outbox.Event, min(portion, n-done))
			for i := range events {
				events[i] = event()
			}
			return db.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, events...) })
		})
	}
	return group.Wait()
}

// Flow is a relay in this process with writers of events for it, whose latency it measures. Its
// target acknowledges at once, except in one of two partitions, which accepts nothing.
type Flow struct {
	db    *database.DB
	stop  func() error
	waker *relay.Waker

	mu    sync.Mutex
	acked map[string]time.Time // by event id, for those that are awaited
}

// StartFlow starts the relay.
func StartFlow(ctx context.Context, db *database.DB) (*Flow, error) {
	b := bench{Options: Options{DB: db, Sink: halfAway{}, Config: relay.Config{Drain: 100 * time.Millisecond}}}
	return b.flow(ctx)
}

func (b *bench) flow(ctx context.Context) (*Flow, error) {
	f := &Flow{db: b.DB, acked: map[string]time.Time{}}
	var err error
	f.stop, f.waker, err = b.relay(ctx, f.published)
	return f, err
}

// Stop ends the relay, and allows relays to another target to take the rest.
func (f *Flow) Stop() error {
	err := f.stop()
	_, forget := f.db.ExecContext(context.Background(), `DELETE FROM outbox_target`)
	return errors.Join(err, forget)
}

func (f *Flow) published(b *relay.Batch) {
	at := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range b.Records {
		if _, waited := f.acked[b.Records[i].EventID]; waited {
			f.acked[b.Records[i].EventID] = at
		}
	}
}

// Measure adds events at a rate for a while, and returns from the commit of each to its
// acknowledgement.
func (f *Flow) Measure(ctx context.Context, d time.Duration, rate int) ([]time.Duration, error) {
	return f.measure(ctx, d, rate, 4, func() outbox.Event { return eventOf(keyOf(1 - away)) })
}

func (f *Flow) measure(ctx context.Context, d time.Duration, rate, writers int,
	next func() outbox.Event) ([]time.Duration, error) {
	var mu sync.Mutex
	committed := map[string]time.Time{}
	err := paced(ctx, d, rate, writers, func() error {
		e := next()
		e.ID = uuid.Must(uuid.NewV7())
		f.mu.Lock()
		f.acked[e.ID.String()] = time.Time{}
		f.mu.Unlock()
		err := f.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
		if err != nil {
			return err
		}
		at := time.Now()
		f.waker.Wake(e.Key)
		mu.Lock()
		defer mu.Unlock()
		committed[e.ID.String()] = at
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.latencies(ctx, committed)
}

// latencies waits until everything is acknowledged.
func (f *Flow) latencies(ctx context.Context, committed map[string]time.Time) ([]time.Duration, error) {
	const patience = 30 * time.Second
	list := make([]time.Duration, 0, len(committed))
	for deadline := time.Now().Add(patience); len(committed) > 0; {
		f.mu.Lock()
		for id, at := range committed {
			if acked := f.acked[id]; !acked.IsZero() {
				list = append(list, max(0, acked.Sub(at)))
				delete(committed, id)
				delete(f.acked, id)
			}
		}
		f.mu.Unlock()
		if len(committed) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d of %d events are not published after %s", len(committed),
				len(committed)+len(list), patience)
		}
		if !retry.Sleep(ctx, 5*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
	slices.Sort(list)
	return list, nil
}

// keyOf makes a key of a partition.
func keyOf(partition int) string {
	for {
		if key := uuid.NewString(); outbox.Partition(key, halves) == partition {
			return key
		}
	}
}

// halfAway is a target with one partition that accepts nothing.
type halfAway struct{}

func (halfAway) Name() string                             { return "file:/half-away" }
func (halfAway) Identity(context.Context) (string, error) { return "", nil }
func (halfAway) Partitions(context.Context) (int, error)  { return halves, nil }
func (halfAway) Close() error                             { return nil }

func (halfAway) Publish(ctx context.Context, b *relay.Batch) error {
	if b.Partition != away {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

var _ relay.Sink = halfAway{}
