// Package outboxbench measures the outbox, and in the same run what the machine can do without it.
// Ratios carry over to other machines, absolute figures do not.
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
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// Options say what to measure with. The database must be migrated and empty, and nothing else may
// use it or the sink's target.
type Options struct {
	DB       *database.DB
	RelayDB  *database.DB // the same database through the relay's own pool, as authctl relay has it; nil: DB
	Sink     relay.Sink
	Config   relay.Config
	Events   int           // to drain; 0: 200,000
	Rate     int           // events a second while latency is measured; 0: 1,000
	Duration time.Duration // of each measurement of latency and of writers; 0: 10 s
	Writers  int           // concurrently; 0: 16
	Progress func(string)  // is told what is being measured; may be nil
}

// Report has the measured figures: rates a second, times in milliseconds, amounts in bytes.
type Report struct {
	Events        int
	DrainPerSec   float64 // of one relay, from a full outbox to an empty one
	BatchEvents   int     // in a batch of the drain, on average
	BarePerSec    float64 // batches of that size from memory through the same sink
	LatencyRate   float64 // events a second while latency was measured
	LatencyP50    float64 // commit → acknowledged
	LatencyP99    float64
	CommitP50     float64 // a transaction of one plain insert at that rate
	CommitP99     float64
	ProduceP50    float64 // one record through the same sink until it is acknowledged
	ProduceP99    float64
	StepsMoved    float64 // the longer p50 ÷ the shorter, of both, before and after
	WritersPlain  float64 // transactions of one plain insert of an event's size
	WritersOutbox float64 // the same insert and an event
	PlainMoved    float64 // the faster turn divided by the slower
	WALPerEvent   float64 // of adding; PostgreSQL only
	WALPerAck     float64 // of marking it published; PostgreSQL only
}

// Run measures. Its events stay in the database and the target.
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
		{"nothing yet: a broker that has just started is still compiling its code", b.warm},
		{"bare commits and bare sends, one by one", b.steps},
		{"latency", b.latency},
		{"bare commits and bare sends again", b.steps},
		{"draining", b.drain},
		{"the sink alone", b.bare},
	} {
		opt.Progress(step.what)
		if err := step.run(ctx); err != nil {
			return b.report, fmt.Errorf("measure %s: %w", step.what, err)
		}
	}
	return b.report, nil
}

// apart is the ratio of the larger of two figures to the smaller one; 0 if one is 0.
func apart(a, b float64) float64 { return max(ratio(a, b), ratio(b, a)) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

type bench struct {
	Options
	report         Report
	commits, sends []time.Duration // of all steps
	stepP50        float64         // of the first ones
}

// body has the size of a sign-in's.
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
	r, err := relay.New(cmp.Or(b.RelayDB, b.DB), watched{b.Sink, watch}, b.Config, relay.Options{Waker: waker})
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
	with := func(ctx context.Context, tx database.Tx, e outbox.Event) error {
		if err := insert(ctx, tx, e); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, e)
	}
	var plainWAL, withWAL float64
	var err error
	// Alternately, because the load of a shared machine changes from second to second.
	for turn := range 2 {
		tps, wal, e := b.write(ctx, b.Duration/4, insert)
		if turn == 1 {
			b.report.PlainMoved = apart(2*b.report.WritersPlain, tps)
		}
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

// insert is a transaction of one plain insert of an event's size.
func insert(ctx context.Context, tx database.Tx, e outbox.Event) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO outbox_bench (id, body) VALUES (?, ?)`, uuid.NewString(), string(e.Data))
	return err
}

func (b *bench) write(
	ctx context.Context, d time.Duration, body func(context.Context, database.Tx, outbox.Event) error,
) (tps, wal float64, err error) {
	before, err := b.wal(ctx)
	if err != nil {
		return 0, 0, err
	}
	var n atomic.Int64
	var group errgroup.Group
	start := time.Now()
	for range b.Writers {
		group.Go(func() error {
			for time.Since(start) < d && ctx.Err() == nil {
				e := event()
				err := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return body(ctx, tx, e) })
				if err != nil {
					return err
				}
				n.Add(1)
			}
			return nil
		})
	}
	err = group.Wait()
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

// empty relays all waiting events.
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
		if !retry.Sleep(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// warm writes and relays events at the steady rate. In the first seconds of its life a broker took three
// times as much of the processor for them.
func (b *bench) warm(ctx context.Context) error {
	f, err := b.flow(ctx)
	if err != nil {
		return err
	}
	_, err = f.measure(ctx, 2*b.Duration, b.Rate, b.Writers, event)
	return errors.Join(err, b.untilEmpty(ctx), f.stop())
}

// latency measures from a commit's return to the sink's acknowledgement, at a steady rate.
func (b *bench) latency(ctx context.Context) error {
	f, err := b.flow(ctx)
	if err != nil {
		return err
	}
	var took []time.Duration
	for _, d := range []time.Duration{time.Second, b.Duration} { // the first one fills caches
		begin := time.Now()
		if took, err = f.measure(ctx, d, b.Rate, b.Writers, event); err != nil {
			return errors.Join(err, f.stop())
		}
		b.report.LatencyRate = float64(len(took)) / time.Since(begin).Seconds()
	}
	if err := errors.Join(b.untilEmpty(ctx), f.stop()); err != nil {
		return err
	}
	if len(took) == 0 {
		return errors.New("nothing was written")
	}
	b.report.LatencyP50, b.report.LatencyP99 = percentiles(took)
	return nil
}

// paced calls do at a rate for a while, on several goroutines, or until a call fails.
func paced(ctx context.Context, d time.Duration, rate, workers int, do func() error) error {
	group, running := errgroup.WithContext(ctx)
	var next atomic.Int64
	begin := time.Now()
	for range workers {
		group.Go(func() error {
			for {
				due := time.Duration(next.Add(1)) * time.Second / time.Duration(rate)
				if due > d || !retry.Sleep(running, time.Until(begin.Add(due))) {
					return nil
				}
				if err := do(); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// steps measures what every event has to wait for: a commit, at the rate of the events, and a
// record that is sent alone.
func (b *bench) steps(ctx context.Context) error {
	var mu sync.Mutex
	var commits, sends []time.Duration
	d := b.Duration / 4
	err := paced(ctx, d, b.Rate, b.Writers, func() error {
		e := event()
		begin := time.Now()
		err := b.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return insert(ctx, tx, e) })
		took := time.Since(begin)
		mu.Lock()
		defer mu.Unlock()
		commits = append(commits, took)
		return err
	})
	if err != nil {
		return err
	}
	partitions, err := b.Sink.Partitions(ctx)
	if err != nil {
		return err
	}
	pause := time.Second / time.Duration(b.Rate)
	for begun := time.Now(); time.Since(begun) < d && ctx.Err() == nil; time.Sleep(pause) {
		for p, records := range ByPartition(1, partitions) {
			if len(records) == 0 {
				continue
			}
			begin := time.Now()
			batch := &relay.Batch{Partition: p, Records: records, Owned: func() bool { return true }}
			if err := b.Sink.Publish(ctx, batch); err != nil {
				return err
			}
			sends = append(sends, time.Since(begin))
		}
	}
	if len(commits) == 0 || len(sends) == 0 {
		return errors.New("nothing was written")
	}
	commit, _ := percentiles(commits)
	send, _ := percentiles(sends)
	b.report.StepsMoved = apart(cmp.Or(b.stepP50, commit+send), commit+send)
	b.stepP50 = commit + send
	b.commits, b.sends = append(b.commits, commits...), append(b.sends, sends...)
	b.report.CommitP50, b.report.CommitP99 = percentiles(b.commits)
	b.report.ProduceP50, b.report.ProduceP99 = percentiles(b.sends)
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
	if err := Add(ctx, b.DB, b.Events, min(b.Writers, 2*runtime.NumCPU())); err != nil {
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
			ID: int64(i), Seq: 1, EventID: uuid.NewString(), Type: e.Type, Key: e.Key, Subject: e.Subject,
			Source: e.Source, DataSchema: e.DataSchema, Time: e.Time.Format(time.RFC3339Nano), Data: e.Data,
		}})
	}
	return records
}

// bare publishes the same number of events from memory in batches of the same size: what the sink
// can do without the database.
func (b *bench) bare(ctx context.Context) error {
	partitions, err := b.Sink.Partitions(ctx)
	if err != nil {
		return err
	}
	byPartition := ByPartition(b.Events, partitions)
	var group errgroup.Group
	start := time.Now()
	for p, records := range byPartition {
		group.Go(func() error {
			for chunk := range slices.Chunk(records, b.report.BatchEvents) {
				batch := &relay.Batch{Partition: p, Records: chunk, Owned: func() bool { return true }}
				if err := b.Sink.Publish(ctx, batch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = group.Wait()
	b.report.BarePerSec = float64(b.Events) / time.Since(start).Seconds()
	return err
}
