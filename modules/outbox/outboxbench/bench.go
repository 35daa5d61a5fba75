// Package outboxbench measures the outbox, and in the same run what the machine can do without it. A
// ratio says something about other machines, a single figure says little.
package outboxbench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
)

// Options say what to measure with. The database must be migrated and empty, and it and the sink's
// target must be used for nothing else.
type Options struct {
	DB       *database.DB
	Sink     relay.Sink
	Config   relay.Config
	Events   int           // to drain; 0: 200,000
	Rate     int           // events a second while latency is measured; 0: 1,000
	Duration time.Duration // of each measurement of latency and of writers; 0: 10 s
	Writers  int           // concurrently; 0: 16
	Progress func(string)  // is told what is being measured; may be nil
}

// Report is what was measured.
type Report struct {
	Events        int     `json:"events"`
	DrainPerSec   float64 `json:"drain_per_second"`    // by one relay, from a full outbox to an empty one
	BatchEvents   int     `json:"batch_events"`        // in a batch of the drain, on average
	BarePerSec    float64 `json:"bare_per_second"`     // batches of that size from memory through the same sink
	DrainRatio    float64 `json:"drain_ratio"`         // drain ÷ bare
	LatencyRate   float64 `json:"latency_rate"`        // events a second while latency was measured
	LatencyP50    float64 `json:"latency_p50_ms"`      // commit → acknowledged
	LatencyP99    float64 `json:"latency_p99_ms"`      //
	CommitP50     float64 `json:"commit_p50_ms"`       // a transaction of one plain insert at that rate
	CommitP99     float64 `json:"commit_p99_ms"`       //
	ProduceP50    float64 `json:"produce_p50_ms"`      // one record through the same sink until it is acknowledged
	ProduceP99    float64 `json:"produce_p99_ms"`      //
	WritersPlain  float64 `json:"writers_plain_tps"`   // transactions of one plain insert of an event's size
	WritersOutbox float64 `json:"writers_outbox_tps"`  // the same insert and an event
	WriterRatio   float64 `json:"writer_ratio"`        //
	WALPerEvent   float64 `json:"wal_bytes_per_event"` // of adding; PostgreSQL only
	WALPerAck     float64 `json:"wal_bytes_per_ack"`   // of marking it published; PostgreSQL only
}

// Run measures. It leaves its events in the database and the target.
func Run(ctx context.Context, opt Options) (Report, error) {
	opt.Events = cmp.Or(opt.Events, 200_000)
	opt.Rate = cmp.Or(opt.Rate, 1000)
	opt.Duration = cmp.Or(opt.Duration, 10*time.Second)
	opt.Writers = cmp.Or(opt.Writers, 16)
	if opt.Progress == nil {
		opt.Progress = func(string) {}
	}
	b := bench{Options: opt}
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"writers with and without an event", b.writers},
		{"latency", b.latency},
		{"bare commits and bare sends, one by one", b.steps},
		{"draining", b.drain},
		{"the sink alone", b.bare},
	} {
		opt.Progress(step.what)
		if err := step.run(ctx); err != nil {
			return b.report, fmt.Errorf("measure %s: %w", step.what, err)
		}
	}
	b.report.DrainRatio = ratio(b.report.DrainPerSec, b.report.BarePerSec)
	b.report.WriterRatio = ratio(b.report.WritersOutbox, b.report.WritersPlain)
	return b.report, nil
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

type bench struct {
	Options
	report Report
}

// body is as large as that of a sign-in.
func body(user string) json.RawMessage {
	return json.RawMessage(`{"user_id":"` + user + `","occurred_at":"2026-01-02T03:04:05.678901234Z",` +
		`"sid":"` + uuid.NewString() +
		`","device_name":"Firefox on Linux","ip":"192.0.2.1","user_agent":"Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"}`)
}

func event() outbox.Event { return eventOf(uuid.NewString()) }

func eventOf(user string) outbox.Event {
	return outbox.Event{
		Type: "auth.UserLoggedIn.v1", Key: user, Subject: user, Source: "https://auth.example.com",
		DataSchema: "https://auth.example.com/.well-known/schemas/auth.UserLoggedIn.v1.json", Time: time.Now(),
		Data: body(user),
	}
}

// relay runs a relay until the returned function is called, and calls watch for each batch.
func (b *bench) relay(
	ctx context.Context, watch func(*relay.Batch),
) (stop func() error, waker *relay.Waker, err error) {
	waker = relay.NewWaker(b.DB)
	r, err := relay.New(b.DB, watched{b.Sink, watch}, b.Config, relay.Options{Waker: waker})
	if err != nil {
		waker.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() error {
		cancel()
		waker.Close()
		return <-done
	}, waker, nil
}

type watched struct {
	relay.Sink
	published func(*relay.Batch)
}

func (w watched) Publish(ctx context.Context, b *relay.Batch) error {
	err := w.Sink.Publish(ctx, b)
	if err == nil {
		w.published(b)
	}
	return err
}

// writers compares transactions of one plain insert with transactions that also add an event.
func (b *bench) writers(ctx context.Context) error {
	const create = `CREATE TABLE outbox_bench (id varchar(36) PRIMARY KEY, body text NOT NULL)`
	if _, err := b.DB.Write(ctx, create); err != nil {
		return err
	}
	plain := func(ctx context.Context, tx database.Tx, e outbox.Event) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO outbox_bench (id, body) VALUES (?, ?)`, uuid.NewString(), string(e.Data))
		return err
	}
	with := func(ctx context.Context, tx database.Tx, e outbox.Event) error {
		if err := plain(ctx, tx, e); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, e)
	}
	var plainWAL, withWAL float64
	var err error
	// Alternately, because the load of a shared machine changes from second to second.
	for range 2 {
		tps, wal, e := b.write(ctx, b.Duration/4, plain)
		b.report.WritersPlain, plainWAL, err = b.report.WritersPlain+tps/2, plainWAL+wal/2, errors.Join(err, e)
		tps, wal, e = b.write(ctx, b.Duration/4, with)
		b.report.WritersOutbox, withWAL, err = b.report.WritersOutbox+tps/2, withWAL+wal/2, errors.Join(err, e)
	}
	b.report.WALPerEvent = max(0, withWAL-plainWAL)
	if err != nil {
		return err
	}
	return b.empty(ctx)
}

func (b *bench) write(
	ctx context.Context, d time.Duration, body func(context.Context, database.Tx, outbox.Event) error,
) (tps, wal float64, err error) {
	before, err := b.wal(ctx)
	if err != nil {
		return 0, 0, err
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for range b.Writers {
		wg.Go(func() {
			for time.Since(start) < d && ctx.Err() == nil {
				e := event()
				if e := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return body(ctx, tx, e) }); e != nil {
					mu.Lock()
					err = errors.Join(err, e)
					mu.Unlock()
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start).Seconds()
	after, e := b.wal(ctx)
	if err = errors.Join(err, e); err != nil || n.Load() == 0 {
		return 0, 0, err
	}
	return float64(n.Load()) / took, (after - before) / float64(n.Load()), nil
}

func (b *bench) wal(ctx context.Context) (at float64, err error) {
	if !b.DB.IsPostgres() {
		return 0, nil
	}
	err = b.DB.QueryRowContext(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`).Scan(&at)
	return at, err
}

// empty relays what is there.
func (b *bench) empty(ctx context.Context) error {
	stop, _, err := b.relay(ctx, func(*relay.Batch) {})
	if err != nil {
		return err
	}
	return errors.Join(b.untilEmpty(ctx), stop())
}

func (b *bench) untilEmpty(ctx context.Context) error {
	for {
		var some bool
		if err := b.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM outbox_pending)`).Scan(&some); err != nil || !some {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// latency measures from a commit's return to the sink's acknowledgement, at a steady rate.
func (b *bench) latency(ctx context.Context) error {
	var mu sync.Mutex
	committed, acked := map[string]time.Time{}, map[string]time.Time{}
	stop, waker, err := b.relay(ctx, func(batch *relay.Batch) {
		at := time.Now()
		mu.Lock()
		defer mu.Unlock()
		for i := range batch.Records {
			acked[batch.Records[i].EventID] = at
		}
	})
	if err != nil {
		return err
	}
	const warm = time.Second
	start := time.Now()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range b.Writers {
		wg.Go(func() {
			for ctx.Err() == nil {
				due := start.Add(time.Duration(next.Add(1)) * time.Second / time.Duration(b.Rate))
				if due.Sub(start) > b.Duration+warm {
					return
				}
				time.Sleep(time.Until(due))
				e := event()
				e.ID = uuid.Must(uuid.NewV7())
				err := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
				if err != nil {
					return
				}
				at := time.Now()
				waker.Wake()
				if due.Sub(start) > warm {
					mu.Lock()
					committed[e.ID.String()] = at
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	b.report.LatencyRate = float64(len(committed)) / (time.Since(start) - warm).Seconds()
	if err := errors.Join(b.untilEmpty(ctx), stop()); err != nil {
		return err
	}
	var all []time.Duration
	for id, at := range committed {
		all = append(all, max(0, acked[id].Sub(at)))
	}
	if len(all) == 0 {
		return errors.New("nothing was written")
	}
	b.report.LatencyP50, b.report.LatencyP99 = percentiles(all)
	return nil
}

// steps measures what every event has to wait for: a commit, at the rate of the events, and a record
// that is sent on its own.
func (b *bench) steps(ctx context.Context) error {
	var mu sync.Mutex
	var commits, sends []time.Duration
	var failed error
	var group sync.WaitGroup
	var next atomic.Int64
	d := b.Duration / 2
	start := time.Now()
	for range b.Writers {
		group.Go(func() {
			for ctx.Err() == nil {
				due := start.Add(time.Duration(next.Add(1)) * time.Second / time.Duration(b.Rate))
				if due.Sub(start) > d {
					return
				}
				time.Sleep(time.Until(due))
				e := event()
				begin := time.Now()
				err := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
					_, err := tx.ExecContext(ctx, `INSERT INTO outbox_bench (id, body) VALUES (?, ?)`, uuid.NewString(), string(e.Data))
					return err
				})
				took := time.Since(begin)
				mu.Lock()
				commits, failed = append(commits, took), errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
	if failed != nil {
		return failed
	}
	partitions, err := b.Sink.Partitions(ctx)
	if err != nil {
		return err
	}
	for begun := time.Now(); time.Since(begun) < d && ctx.Err() == nil; time.Sleep(time.Second / time.Duration(b.Rate)) {
		for p, records := range ByPartition(1, partitions) {
			if len(records) == 0 {
				continue
			}
			begin := time.Now()
			if err := b.Sink.Publish(ctx, &relay.Batch{Partition: p, Records: records, Owned: func() bool { return true }}); err != nil {
				return err
			}
			sends = append(sends, time.Since(begin))
		}
	}
	if len(commits) == 0 || len(sends) == 0 {
		return errors.New("nothing was written")
	}
	b.report.CommitP50, b.report.CommitP99 = percentiles(commits)
	b.report.ProduceP50, b.report.ProduceP99 = percentiles(sends)
	return ctx.Err()
}

// percentiles sorts the list, and returns milliseconds.
func percentiles(list []time.Duration) (p50, p99 float64) {
	slices.Sort(list)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return ms(list[len(list)/2]), ms(list[len(list)*99/100])
}

// drain fills the outbox and empties it with one relay.
func (b *bench) drain(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var left atomic.Int64
	left.Store(int64(b.Events))
	const chunk = 200
	var err error
	for range min(b.Writers, 2*runtime.NumCPU()) {
		wg.Go(func() {
			for left.Add(-chunk) > -chunk {
				events := make([]outbox.Event, chunk)
				for i := range events {
					events[i] = event()
				}
				e := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, events...) })
				if e != nil {
					mu.Lock()
					err = errors.Join(err, e)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	if err != nil {
		return err
	}
	if b.DB.IsPostgres() { // as autovacuum does in a database that has been running for a while
		if _, err := b.DB.ExecContext(ctx, `ANALYZE`); err != nil {
			return err
		}
	}
	before, err := b.wal(ctx)
	if err != nil {
		return err
	}
	var n, batches atomic.Int64
	start := time.Now()
	stop, _, err := b.relay(ctx, func(batch *relay.Batch) {
		n.Add(int64(len(batch.Records)))
		batches.Add(1)
	})
	if err != nil {
		return err
	}
	// Polling the table would slow down what is measured.
	for n.Load() < int64(b.Events) && ctx.Err() == nil {
		time.Sleep(2 * time.Millisecond)
	}
	err = b.untilEmpty(ctx)
	took := time.Since(start)
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	after, err := b.wal(ctx)
	b.report.Events, b.report.DrainPerSec = int(n.Load()), float64(n.Load())/took.Seconds()
	b.report.BatchEvents = int(n.Load() / max(1, batches.Load()))
	b.report.WALPerAck = (after - before) / float64(max(1, n.Load()))
	return err
}

// ByPartition returns n events like those of the measurements, by partition.
func ByPartition(n, partitions int) [][]relay.Record {
	records := make([][]relay.Record, partitions)
	for i := range n {
		e := event()
		p := outbox.Partition(e.Key, partitions)
		records[p] = append(records[p], relay.Record{Record: outbox.Record{
			ID: int64(i), Seq: 1, EventID: uuid.NewString(), Type: e.Type, Key: e.Key, Subject: e.Subject, Source: e.Source,
			DataSchema: e.DataSchema, Time: e.Time.Format(time.RFC3339Nano), Data: e.Data,
		}})
	}
	return records
}

// bare publishes the same number of events in batches of the same size from memory: what the sink
// can do without the database.
func (b *bench) bare(ctx context.Context) error {
	partitions, err := b.Sink.Partitions(ctx)
	if err != nil {
		return err
	}
	byPartition := ByPartition(b.Events, partitions)
	var wg sync.WaitGroup
	errs := make([]error, partitions)
	start := time.Now()
	for p, records := range byPartition {
		wg.Go(func() {
			for chunk := range slices.Chunk(records, b.report.BatchEvents) {
				batch := &relay.Batch{Partition: p, Records: chunk, Owned: func() bool { return true }}
				if errs[p] = b.Sink.Publish(ctx, batch); errs[p] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	b.report.BarePerSec = float64(b.Events) / time.Since(start).Seconds()
	return errors.Join(errs...)
}
