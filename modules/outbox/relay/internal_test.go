package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func addOne(t *testing.T, ctx context.Context, tx database.IDB, key string) {
	t.Helper()
	if err := outbox.Add(ctx, tx, outboxtest.Event(key)); err != nil {
		t.Error(err)
	}
}

// The stable watermark stays below the id of an open transaction, however many transactions commit
// after it, and passes it once the transaction has ended, either way.
func TestTheStableWatermarkNeverPassesAnOpenTransaction(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "abort"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			s := schema.StableWatermark{DB: db}
			step := func() bool {
				t.Helper()
				done, err := s.Advance(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				return done
			}
			outboxtest.AddKeys(t, db, "a", "b")
			if !step() || s.ID != 2 {
				t.Fatalf("the watermark is %d, want 2", s.ID)
			}
			open, finish := dbtest.Begin(t, db)
			addOne(t, t.Context(), open, "slow") // 3
			outboxtest.AddKeys(t, db, "c", "d")  // 4, 5
			for range 5 {
				if step() || s.ID != 2 {
					t.Fatalf("the watermark is %d while 3 can still appear", s.ID)
				}
				outboxtest.AddKeys(t, db, "e")
			}
			if err := finish(end == "commit"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				step()
			}
			if s.ID != 10 {
				t.Errorf("the watermark is %d after the transaction ended, want 10", s.ID)
			}
		})
	}
}

// counting is a sink for the tests of this package, which the real sinks' package imports.
type counting struct {
	partitions int
	seen       chan Record
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

// wait returns once n more events were published.
func (c *counting) wait(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-c.seen:
		case <-time.After(testenv.Patience):
			t.Fatal("an event was not published")
		}
	}
}

// start runs a relay until the returned function is called.
func start(t *testing.T, r *Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A wrong watermark, whatever its cause, makes events late and is counted. It loses none.
func TestTheSweepDeliversWhatAWrongWatermarkHides(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if !db.IsPostgres() {
			t.Skip("SQLite uses no watermarks: ids appear in order")
		}
		if _, err := db.Write(t.Context(), `UPDATE outbox_shard SET low = 1000`); err != nil {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "a", "b", "c")
		reg := prometheus.NewRegistry()
		sink := &counting{partitions: 4, seen: make(chan Record, 10)}
		r, err := New(db, sink, Config{}, Options{Registry: reg})
		if err != nil {
			t.Fatal(err)
		}
		r.sweepEvery = 100 * time.Millisecond
		stop := start(t, r)
		sink.wait(t, 3)
		stop()
		// On a busy machine the next sweep may find an event again before it is published.
		if n := outboxtest.Metric(t, reg, "authctl_outbox_sweep_found_total"); n < 3 {
			t.Errorf("counted %v, want 3 or more", n)
		}
		if n := outboxtest.Metric(t, reg, "authctl_outbox_published_total"); n != 3 {
			t.Errorf("published %v, want 3", n)
		}
	})
}

// Watermarks rise with the published events, so that a fetch does not read deleted rows. The sweep
// finds nothing in normal operation.
func TestWatermarksFollowWhatIsPublished(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	reg := prometheus.NewRegistry()
	sink := &counting{partitions: 4, seen: make(chan Record, 10_000)}
	r, err := New(db, sink, Config{}, Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	r.sweepEvery = 20 * time.Millisecond
	stop := start(t, r)
	for i := range 100 {
		outboxtest.AddKeys(t, db, fmt.Sprintf("k%d", i), fmt.Sprintf("l%d", i%7), "m")
	}
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(20 * time.Millisecond) {
		st, err := outbox.Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		low := int64(1 << 62)
		for _, s := range st.Shards {
			low = min(low, s.Watermark)
		}
		if st.Pending == 0 && low == 300 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pending %d, lowest watermark %d; want 0 and 300", st.Pending, low)
		}
	}
	stop()
	if n := outboxtest.Metric(t, reg, "authctl_outbox_sweep_found_total"); n != 0 {
		t.Errorf("the sweep found %v", n)
	}
	if len(sink.seen) != 300 {
		t.Errorf("%d events published, want 300", len(sink.seen))
	}
}

// The number of partitions changes while a relay runs. The relay ends and says why.
func TestRelayEndsWhenPartitionsChangeUnderWay(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	sink := &counting{partitions: 4, seen: make(chan Record, 10)}
	changing := &changing{counting: sink}
	changing.n.Store(4)
	r, err := New(db, changing, Config{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.watchEvery = 20 * time.Millisecond
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	outboxtest.AddKeys(t, db, "a")
	<-sink.seen
	changing.n.Store(8)
	if err := <-done; !errors.Is(err, outbox.ErrPartitionsChanged) {
		t.Errorf("got %v, want ErrPartitionsChanged", err)
	}
	var owned int
	if err := db.QueryRowContext(t.Context(),
		`SELECT count(*) FROM outbox_shard WHERE owner IS NOT NULL`).Scan(&owned); err != nil || owned != 0 {
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
		outboxtest.AddKeys(t, db, "a", "b")
		reg := prometheus.NewRegistry()
		r, err := New(db, away{&counting{}}, Config{}, Options{Registry: reg})
		if err != nil {
			t.Fatal(err)
		}
		stop := start(t, r)
		deadline := time.Now().Add(testenv.Patience)
		for ; outboxtest.Metric(t, reg, "authctl_outbox_pending") != 2; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the backlog did not show in a minute")
			}
		}
		stop()
	})
}

// A relay that does not reach the database shows no old values: max() of all relays would go on with them.
func TestWhatCannotBeCountedIsNotShown(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	reg := prometheus.NewRegistry()
	r, err := New(db, &counting{partitions: 1}, Config{}, Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	outboxtest.AddKeys(t, db, "a")
	count := func() (pending, oldestAge, parked float64) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		r.gauge(ctx, func(outbox.State) { stop() })
		return outboxtest.Metric(t, reg, "authctl_outbox_pending"),
			outboxtest.Metric(t, reg, "authctl_outbox_oldest_age_seconds"),
			outboxtest.Metric(t, reg, "authctl_outbox_parked")
	}
	if pending, _, parked := count(); pending != 1 || parked != 0 {
		t.Errorf("%v pending, %v parked", pending, parked)
	}
	if _, err := db.ExecContext(t.Context(), `ALTER TABLE outbox_pending RENAME TO away`); err != nil {
		t.Fatal(err)
	}
	if pending, oldestAge, parked := count(); !math.IsNaN(pending) || !math.IsNaN(oldestAge) || !math.IsNaN(parked) {
		t.Errorf("%v pending, the oldest for %v, %v parked", pending, oldestAge, parked)
	}
}

// A relay that is woken for a key asks the shard of that key alone. If the shard's partition is busy it asks
// when it no longer is, and a partition with a backlog is left to the fetches that ask all shards.
func TestWokenForAKeyItAsksOneShard(t *testing.T) {
	t.Parallel()
	r := &Relay{cfg: Config{}.withDefaults(), partitions: 4, workers: make([]partitionWorker, 4), woken: map[int]bool{},
		held: map[int]*shard{}, poked: make(chan struct{}, 1)}
	for id := range 90 { // the others are another relay's
		r.held[id] = &shard{id: id}
	}
	now := time.Now()
	asked := func(all bool) []int {
		t.Helper()
		idle, requests, _ := r.choose(all, now)
		r.doneReading(idle)
		return slices.Sorted(maps.Keys(requests))
	}
	check := func(what string, got []int, want ...int) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: asked %v, want %v", what, got, want)
		}
	}
	if got := asked(true); len(got) != 90 {
		t.Errorf("at the start: asked %d shards, want all 90", len(got))
	}
	r.wake([]int32{96 + 5, 7, 95})
	check("woken for three", asked(false), 5, 7)
	check("once more", asked(false))

	r.shards = 8 // another relay has changed it
	r.wake([]int32{8 + 5})
	check("woken for one of eight", asked(false), 5)
	r.shards = 0

	r.workers[1].busy = true
	r.wake([]int32{5, 7})
	check("one partition is busy", asked(false), 7)
	r.workers[1].busy = false
	check("it is idle", asked(false), 5)

	r.workers[3].full = true
	r.wake([]int32{7})
	check("a backlog", asked(false))
	if got := asked(true); len(got) != 90 {
		t.Errorf("asked %d shards, want all 90", len(got))
	}
	check("after all were asked", asked(false))

	if r.due(false) {
		t.Error("nothing says that all shards are to be asked")
	}
	if r.wake(nil); !r.due(false) || r.due(false) {
		t.Error("woken without a key, all shards are to be asked once")
	}
}

// Another relay may change the number of shards while no event waits.
func TestHintsFollowTheNumberOfShards(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		r, err := New(db, &counting{partitions: 4, seen: make(chan Record, 1)}, Config{Lease: time.Second}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer start(t, r)()
		has := func(shards int) {
			t.Helper()
			testenv.Eventually(t, "the relay knows the number of shards", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.shards == shards && len(r.held) == shards
			})
		}
		has(96)
		if err := (&Relay{db: db, cfg: Config{Shards: 12}.withDefaults()}).adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		has(12)
	})
}

// Nobody can add an event while the number of shards changes: a process that is suspended then must not stop everybody.
func TestAChangeOfTheShardsThatStopsIsEnded(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for _, statement := range []string{
		`CREATE TABLE seen (bound text)`,
		`CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO seen VALUES (current_setting('idle_in_transaction_session_timeout')); RETURN NULL; END $$`,
		`CREATE TRIGGER look AFTER INSERT ON outbox_shard FOR EACH STATEMENT EXECUTE FUNCTION look()`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := PrepareFirst(t.Context(), db, Config{Shards: 48}.withDefaults()); err != nil {
		t.Fatal(err)
	}
	var bound string
	if err := db.QueryRowContext(t.Context(), `SELECT bound FROM seen`).Scan(&bound); err != nil || bound != "5s" {
		t.Errorf("it would be ended after %q, %v", bound, err)
	}
}

// A partition may be busy whenever all shards are asked, with batches of those that the relay is woken for. Its other
// shards are asked between two of them.
func TestABusyPartitionIsNotPassedOver(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]time.Duration{"woken without a key": 0, "polling": idlePoll} {
		r := &Relay{cfg: Config{}.withDefaults(), partitions: 4, workers: make([]partitionWorker, 4),
			woken: map[int]bool{}, held: map[int]*shard{}, poked: make(chan struct{}, 1)}
		for id := range 16 {
			r.held[id] = &shard{id: id}
		}
		now := time.Now()
		ask := func(all bool) []int {
			idle, requests, _ := r.choose(all, now)
			r.doneReading(idle)
			return slices.Sorted(maps.Keys(requests))
		}
		ask(true)
		r.newBatch(1, []Record{{shard: 5}}, 1, map[int]*fetchRequest{5: {shard: r.held[5]}}, 0)
		if now = now.Add(later); later == 0 {
			r.wake(nil)
		}
		if got := ask(r.due(later > 0)); len(got) != 12 {
			t.Errorf("%s, with a batch in flight: asked %v", name, got)
		}
		r.wake([]int32{5})
		r.workers[1].busy, r.held[5].busy = false, false
		if got := ask(r.due(false)); !slices.Equal(got, []int{1, 5, 9, 13}) {
			t.Errorf("%s, after the batch: asked %v, want all of the partition", name, got)
		}
		r.wake([]int32{5})
		if got := ask(r.due(false)); !slices.Equal(got, []int{5}) {
			t.Errorf("%s, then: asked %v", name, got)
		}
	}
}

func TestANotificationNamesKeys(t *testing.T) {
	t.Parallel()
	w := &Waker{mark: -1, dirty: make(chan struct{}, 1)}
	w.Wake("a", "b")
	w.Wake("c")
	want := []int32{schema.Hash("a"), schema.Hash("b"), schema.Hash("c")}
	if got := hashesIn(w.payload()); !slices.Equal(got, want) {
		t.Errorf("hashes %v, want %v", got, want)
	}
	if len(w.dirty) > 0 {
		t.Error("another notification would follow, with nothing to name")
	}
	w.Wake("a")
	w.Wake()
	w.Wake("b")
	if got := w.payload(); got != "" {
		t.Errorf("notified of %q, though not all keys are known", got)
	}
	for range mostHashes {
		w.Wake("a")
	}
	if got := hashesIn(w.payload()); len(got) != mostHashes {
		t.Errorf("%d hashes, want %d", len(got), mostHashes)
	}
	for range mostHashes + 1 {
		w.Wake("a")
	}
	if got := w.payload(); got != "" {
		t.Errorf("notified of %q, want of nothing in particular", got)
	}
	for _, payload := range []string{"", "lease", "[1, -1.5]", `["1"]`, "[99999999999]", "{}", "null", "[]"} {
		if got := hashesIn(payload); len(got) > 0 {
			t.Errorf("%q names %v", payload, got)
		}
	}
	if got := hashesIn("[-3,4]"); !slices.Equal(got, []int32{4}) {
		t.Errorf("a negative hash: %v", got)
	}
}

// All of a process are woken when it commits. Its notification, which comes back to it, would have each event looked for
// twice.
func TestAProcessIgnoresItsOwnNotifications(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	w, other := NewWaker(db), NewWaker(db)
	t.Cleanup(w.Close)
	t.Cleanup(other.Close)
	var woken [][]int32
	t.Cleanup(w.Subscribe(func(hashes []int32) { woken = append(woken, hashes) }))
	w.Wake("a")
	w.hear(w.payload())
	if want := [][]int32{{schema.Hash("a")}}; !reflect.DeepEqual(woken, want) {
		t.Errorf("woken for %v, want %v", woken, want)
	}
	woken = nil
	other.Wake("b")
	w.hear(other.payload())
	w.hear("lease")
	w.hear("")
	if want := [][]int32{{schema.Hash("b")}, nil, nil}; !reflect.DeepEqual(woken, want) {
		t.Errorf("woken by others for %v, want %v", woken, want)
	}
}

func TestPollsThatFindNothingBecomeRare(t *testing.T) {
	t.Parallel()
	wait := nextPoll(idlePoll, true, true)
	if wait != busyPoll {
		t.Errorf("%v after events were found, want %v", wait, busyPoll)
	}
	for range 10 {
		last := wait
		if wait = nextPoll(wait, true, false); wait != min(2*last, idlePoll) {
			t.Errorf("%v after %v, with nothing found", wait, last)
		}
		if got := nextPoll(wait, false, true); got != wait {
			t.Errorf("%v after %v, with what the relay was woken for", got, wait)
		}
	}
	if wait != idlePoll {
		t.Errorf("at last %v, want %v", wait, idlePoll)
	}
}
