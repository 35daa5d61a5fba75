package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func addOne(t *testing.T, ctx context.Context, tx database.IDB, key string) {
	t.Helper()
	e := Event{Type: "test.Happened.v1", Key: key, Source: "/x", Data: json.RawMessage(`{}`)}
	if err := Add(ctx, tx, e); err != nil {
		t.Error(err)
	}
}

func addKeys(t *testing.T, db *database.DB, keys ...string) {
	t.Helper()
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		for _, k := range keys {
			addOne(t, ctx, tx, k)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The bound stays below the id of an open transaction, however many commit behind it, and
// passes it when that ends, either way.
func TestSettledBoundNeverPassesAnOpenTransaction(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "abort"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			s := settler{db: db}
			step := func() bool {
				t.Helper()
				done, err := s.step(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				return done
			}
			addKeys(t, db, "a", "b")
			if !step() || s.bound != 2 {
				t.Fatalf("bound %d, want 2", s.bound)
			}
			open, finish := dbtest.Begin(t, db)
			addOne(t, t.Context(), open, "slow") // 3
			addKeys(t, db, "c", "d")             // 4, 5
			for range 5 {
				if step() || s.bound != 2 {
					t.Fatalf("bound %d while 3 can still appear", s.bound)
				}
				addKeys(t, db, "e")
			}
			if err := finish(end == "commit"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				step()
			}
			if s.bound != 10 {
				t.Errorf("bound %d after the transaction ended, want 10", s.bound)
			}
		})
	}
}

// counting stands for the sinks, whose package imports this one.
type counting struct {
	partitions int
	seen       chan RelayRecord
}

func (c *counting) Name() string                             { return "test" }
func (c *counting) Identity(context.Context) (string, error) { return "", nil }
func (c *counting) Partitions(context.Context) (int, error)  { return c.partitions, nil }
func (c *counting) Close() error                             { return nil }
func (c *counting) Publish(_ context.Context, b *Batch) error {
	if !b.Owned() {
		return ErrNotOwned
	}
	for _, r := range b.Records {
		c.seen <- r
	}
	return nil
}

// A bound that is wrong, by whatever defect, makes events late and is counted; it loses none.
func TestSweepDeliversWhatAWrongBoundHides(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if !db.IsPostgres() {
			t.Skip("there is no bound on SQLite: ids appear in order")
		}
		if _, err := db.Write(t.Context(), `UPDATE outbox_shard SET low = 1000`); err != nil {
			t.Fatal(err)
		}
		addKeys(t, db, "a", "b", "c")
		reg := prometheus.NewRegistry()
		sink := &counting{partitions: 4, seen: make(chan RelayRecord, 10)}
		r, err := NewRelay(db, sink, Config{}, RelayOptions{Registry: reg})
		if err != nil {
			t.Fatal(err)
		}
		r.sweepEvery = 100 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		for range 3 {
			select {
			case <-sink.seen:
			case <-time.After(testenv.Patience):
				t.Fatal("an event below the bound was not delivered in a minute")
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := value(t, reg, "authctl_outbox_sweep_found_total"); n != 3 {
			t.Errorf("counted %v, want 3", n)
		}
		if n := value(t, reg, "authctl_outbox_published_total"); n != 3 {
			t.Errorf("published %v, want 3", n)
		}
	})
}

func value(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// With the bound raised, a look for new events does not walk over what was deleted; and the
// sweep, with everything in order, finds nothing.
func TestBoundFollowsWhatIsPublished(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	reg := prometheus.NewRegistry()
	sink := &counting{partitions: 4, seen: make(chan RelayRecord, 10_000)}
	r, err := NewRelay(db, sink, Config{}, RelayOptions{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	r.sweepEvery = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for i := range 100 {
		addKeys(t, db, fmt.Sprintf("k%d", i), fmt.Sprintf("l%d", i%7), "m")
	}
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(20 * time.Millisecond) {
		st, err := Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		low := int64(1 << 62)
		for _, s := range st.Shards {
			low = min(low, s.Low)
		}
		if st.Pending == 0 && low == 300 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pending %d, lowest bound %d; want 0 and 300", st.Pending, low)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := value(t, reg, "authctl_outbox_sweep_found_total"); n != 0 {
		t.Errorf("the sweep found %v", n)
	}
	if len(sink.seen) != 300 {
		t.Errorf("%d events published, want 300", len(sink.seen))
	}
}

// The number of partitions changes while a relay runs: it ends, and says why.
func TestRelayEndsWhenPartitionsChangeUnderWay(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	sink := &counting{partitions: 4, seen: make(chan RelayRecord, 10)}
	changing := &changing{counting: sink}
	changing.n.Store(4)
	r, err := NewRelay(db, changing, Config{}, RelayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.watchEvery = 20 * time.Millisecond
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	addKeys(t, db, "a")
	<-sink.seen
	changing.n.Store(8)
	if err := <-done; !errors.Is(err, ErrPartitionsChanged) {
		t.Errorf("got %v, want ErrPartitionsChanged", err)
	}
	var owned int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_shard WHERE owner IS NOT NULL`).Scan(&owned); err != nil || owned != 0 {
		t.Errorf("%d shards are still owned, %v", owned, err)
	}
}

type changing struct {
	*counting
	n atomic.Int64
}

func (c *changing) Partitions(context.Context) (int, error) { return int(c.n.Load()), nil }

// away is a target that has not been reached since the relay began.
type away struct{ *counting }

func (away) Partitions(context.Context) (int, error) {
	return 0, &Stalled{Kind: "topic", Err: errors.New("no such topic")}
}

func TestBacklogShowsWhileTheTargetIsAwayFromTheStart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		addKeys(t, db, "a", "b")
		reg := prometheus.NewRegistry()
		r, err := NewRelay(db, away{&counting{}}, Config{}, RelayOptions{Registry: reg})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		for deadline := time.Now().Add(testenv.Patience); value(t, reg, "authctl_outbox_pending") != 2; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the backlog did not show in a minute")
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
