package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// picky refuses some records as a broker would, and passes the others to the real sink.
type picky struct {
	relay.Sink
	refuses func(relay.Record) bool
	vague   bool // does not say which
	mu      sync.Mutex
}

func (p *picky) set(refuses func(relay.Record) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = refuses
}

func (p *picky) Publish(ctx context.Context, b *relay.Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused := &relay.Refused{Err: errors.New("not to my taste")}
	for i, r := range b.Records {
		if p.refuses(r) {
			refused.Records = append(refused.Records, i)
		}
	}
	if len(refused.Records) == 0 {
		return p.Sink.Publish(ctx, b)
	}
	if p.vague {
		refused.Records = nil
	}
	return refused
}

// lines lists key/sequence of the events in the file, with * for replays.
func lines(t testing.TB, path string) []string {
	t.Helper()
	seen, err := outboxtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range seen {
		mark := ""
		if s.Replay {
			mark = "*"
		}
		out = append(out, fmt.Sprintf("%s/%d%s", s.Key, s.Seq, mark))
	}
	return out
}

func TestParkedKeyWaitsAloneUntilSomeoneDecides(t *testing.T) {
	t.Parallel()
	for _, vague := range []bool{false, true} {
		t.Run(fmt.Sprintf("vague=%v", vague), func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				real, path := file(t)
				s := &picky{Sink: real, vague: vague,
					refuses: func(r relay.Record) bool { return (r.Key == "bad" || r.Key == "worse") && r.Seq == 2 }}
				for range 3 {
					outboxtest.AddKeys(t, db, "good", "bad", "worse", "fine")
				}
				startRelay(t, db, s, relay.Config{}, relay.Options{})
				drained(t, db)
				outboxtest.AddKeys(t, db, "bad", "worse", "good")
				drained(t, db)
				got := lines(t, path)
				slices.Sort(got)
				if want := "bad/1 fine/1 fine/2 fine/3 good/1 good/2 good/3 good/4 worse/1"; strings.Join(got,
					" ") != want {
					t.Fatalf("published %v, want %s", got, want)
				}

				keys, err := outbox.Parked(t.Context(), db)
				if err != nil || len(keys) != 2 {
					t.Fatalf("parked %+v, %v", keys, err)
				}
				for _, k := range keys {
					if k.Events != 3 || k.Type != "test.Happened.v1" || !strings.Contains(k.Error, "taste") ||
						time.Since(k.ParkedAt).Abs() > time.Hour {
						t.Errorf("parked %+v", k)
					}
				}
				waiting, err := outbox.ParkedEvents(t.Context(), db, "bad")
				if err != nil || len(waiting) != 3 || waiting[0].Seq != 2 || waiting[2].Seq != 4 {
					t.Errorf("waiting events %+v, %v", waiting, err)
				}

				// A retried event is refused again: its key is parked again, and none of its events
				// was published.
				if n, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil || n != 3 {
					t.Errorf("retry: %d, %v", n, err)
				}
				testenv.Eventually(t, "the key to be parked again", func() bool {
					waiting, err := outbox.ParkedEvents(t.Context(), db, "bad")
					return err == nil && len(waiting) == 3
				})
				s.set(func(relay.Record) bool { return false })
				if _, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil {
					t.Error(err)
				}
				if n, err := outbox.DiscardParked(t.Context(), db, "worse", 0); err != nil || n != 2 {
					t.Errorf("discard: %d, %v", n, err)
				}
				drained(t, db)
				outboxtest.AddKeys(t, db, "bad", "worse")
				drained(t, db)
				got = slices.DeleteFunc(lines(t, path), func(s string) bool { return !strings.HasPrefix(s, "bad") })
				if want := "bad/1 bad/2 bad/3 bad/4 bad/5"; strings.Join(got, " ") != want {
					t.Errorf("published %v, want %s", got, want)
				}
				got = slices.DeleteFunc(lines(t, path), func(s string) bool { return !strings.HasPrefix(s, "worse") })
				if want := "worse/1 worse/3 worse/4 worse/5"; strings.Join(got, " ") != want {
					t.Errorf("published %v, want %s", got, want)
				}
				if _, err := outbox.RetryParked(t.Context(), db, "bad"); !errors.Is(err, outbox.ErrNotParked) {
					t.Errorf("retry of a key that is not parked: %v", err)
				}
				if _, err := outbox.ParkedEvents(t.Context(), db, "bad"); !errors.Is(err, outbox.ErrNotParked) {
					t.Errorf("events of a key that is not parked: %v", err)
				}
			})
		})
	}
}

func TestReplaySendsTheSameEventsAgain(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s, path := file(t)
		other := outboxtest.Event("b")
		other.Type = "test.Other.v1"
		outboxtest.AddKeys(t, db, "a")
		outboxtest.AddKeys(t, db, "b")
		outboxtest.AddKeys(t, db, "a")
		outboxtest.Add(t, db, other)
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		testenv.Eventually(t, "owners to look only above what is published", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil && (!db.IsPostgres() || !slices.ContainsFunc(st.Shards,
				func(s outbox.ShardState) bool { return s.Watermark < 4 }))
		})
		before := len(lines(t, path))
		count := func(what string, sel outbox.Selection, want string) {
			t.Helper()
			dry, err := outbox.Replay(t.Context(), db, sel, true, nil)
			if err != nil || dry.Enqueued != 0 || int(dry.Matched) != len(strings.Fields(want)) {
				t.Errorf("%s, dry run: %+v, %v", what, dry, err)
			}
			heard := outbox.ReplayResult{}
			wet, err := outbox.Replay(t.Context(), db, sel, false, func(r outbox.ReplayResult) { heard = r })
			if err != nil || wet.Enqueued != dry.Matched || heard != wet {
				t.Errorf("%s: %+v, heard %+v, %v", what, wet, heard, err)
			}
			drained(t, db)
			all := lines(t, path)
			got := all[before:]
			before = len(all)
			slices.Sort(got)
			if strings.Join(got, " ") != want {
				t.Errorf("%s: sent %v, want %s", what, got, want)
			}
		}
		count("by key", outbox.Selection{Key: "a"}, "a/1* a/2*")
		count("by type", outbox.Selection{Type: "test.Other.v1"}, "b/2*")
		count("by ids", outbox.Selection{FromID: 2, ToID: 3}, "a/2* b/1*")
		count("by time", outbox.Selection{From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour)},
			"a/1* a/2* b/1* b/2*")
		count("of nothing", outbox.Selection{To: time.Now().Add(-time.Hour)}, "")

		seen, err := outboxtest.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bodies := map[string]string{}
		for _, s := range seen {
			if first, ok := bodies[s.ID]; ok && first != s.Body {
				t.Errorf("%s/%d was sent again as %q, first as %q", s.Key, s.Seq, s.Body, first)
			}
			bodies[s.ID] = s.Body
		}
		if len(bodies) != 4 {
			t.Errorf("there are %d event ids, want 4", len(bodies))
		}
	})
}

// An event keeps its original trace and generation, also when it was parked before, and when it is
// sent again.
func TestAnEventIsSentWithItsTraceAndItsGeneration(t *testing.T) {
	t.Parallel()
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		raise := func(to int) {
			t.Helper()
			if _, err := db.Write(t.Context(), `UPDATE outbox_setting SET generation = ?`, to); err != nil {
				t.Fatal(err)
			}
		}
		within := tracingtest.Within(t.Context(), traceparent)
		err := db.Tx(within, func(ctx context.Context, tx database.Tx) error {
			return outbox.Add(ctx, tx, outboxtest.Event("good"), outboxtest.Event("bad"))
		})
		if err != nil {
			t.Fatal(err)
		}
		raise(7)
		outboxtest.AddKeys(t, db, "good")
		raise(8)
		real, path := file(t)
		s := &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Key == "bad" }}
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		testenv.Eventually(t, "a parked key", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil && st.Pending == 0 && st.ParkedEvents == 1
		})
		s.set(func(relay.Record) bool { return false })
		if _, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil {
			t.Fatal(err)
		}
		drained(t, db)
		if _, err := outbox.Replay(t.Context(), db, outbox.Selection{}, false, nil); err != nil {
			t.Fatal(err)
		}
		drained(t, db)
		seen, err := outboxtest.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"good/1": traceparent, "bad/1": traceparent, "good/2": " of 7"}
		times := map[string]int{}
		for _, s := range seen {
			name, of := fmt.Sprintf("%s/%d", s.Key, s.Seq), s.Trace
			if s.Generation != "" {
				of += " of " + s.Generation
			}
			if times[name]++; of != want[name] {
				t.Errorf("%s, replay %v: %q, want %q", name, s.Replay, of, want[name])
			}
		}
		if fmt.Sprint(times) != "map[bad/1:2 good/1:2 good/2:2]" {
			t.Errorf("sent %v", times)
		}
	})
}

// A replay of events that are still waiting changes nothing.
func TestReplayLeavesWaitingEventsAlone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "a", "b")
		res, err := outbox.Replay(t.Context(), db, outbox.Selection{}, false, nil)
		if err != nil || res.Matched != 2 || res.Enqueued != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		s, path := file(t)
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		if got := lines(t, path); len(got) != 2 || strings.Contains(strings.Join(got, ""), "*") {
			t.Errorf("published %v", got)
		}
	})
}

func TestStatusTellsBacklogAndOwners(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "a", "a", "b")
		st, err := outbox.Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if st.Pending != 3 || st.LastID != 3 || len(st.Shards) != 96 || len(st.Relays) != 0 ||
			st.OldestAge > time.Hour {
			t.Errorf("without a relay: %+v", st)
		}
		if n := st.Shards[outbox.Partition("a", 96)].Pending; n != 2 {
			t.Errorf("the shard of a has %d pending, want 2", n)
		}
		s, _ := file(t)
		stop := startRelay(t, db, s, relay.Config{}, relay.Options{Name: "me"})
		drained(t, db)
		testenv.Eventually(t, "a relay with all shards", func() bool { // a busy machine may renew leases late
			st, err = outbox.Status(t.Context(), db)
			return err == nil && len(st.Relays) == 1 && st.Relays[0].Shards == 96
		})
		if st.Relays[0].Name != "me" || len(st.Targets) != 1 || st.Targets[0].Partitions != 1 {
			t.Errorf("with a relay: %+v", st)
		}
		stop()
		if st, err = outbox.Status(t.Context(), db); err != nil || len(st.Relays) != 0 || st.Shards[0].Owner != "" {
			t.Errorf("after the relay: %+v, %v", st, err)
		}
	})
}

func TestRelaysShareFairlyAndHandOver(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		shares := func() (out []int) {
			st, err := outbox.Status(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range st.Relays {
				out = append(out, r.Shards)
			}
			slices.Sort(out)
			return out
		}
		_, path := file(t)
		startRelay(t, db, fileAt(t, path), relay.Config{}, relay.Options{})
		second := startRelay(t, db, fileAt(t, path), relay.Config{}, relay.Options{})
		startRelay(t, db, fileAt(t, path), relay.Config{}, relay.Options{})
		testenv.Eventually(t, "three fair shares", func() bool { return slices.Equal(shares(), []int{32, 32, 32}) })
		second()
		testenv.Eventually(t, "two fair shares", func() bool { return slices.Equal(shares(), []int{48, 48}) })
	})
}

func TestTailFollowsInOrder(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		for range 3 {
			outboxtest.AddKeys(t, db, "a", "b")
		}
		collect := func(opt outbox.TailOptions) (out []string) {
			t.Helper()
			err := outbox.Tail(t.Context(), db, opt, func(e outbox.Entry) error {
				out = append(out, fmt.Sprintf("%s/%d", e.Key, e.Seq))
				if e.Where != "pending" {
					t.Errorf("%s/%d is %s", e.Key, e.Seq, e.Where)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			return out
		}
		for want, opt := range map[string]outbox.TailOptions{
			"b/2 a/3 b/3": {Last: 3}, "a/2 b/2 a/3 b/3": {From: 3}, "a/2 a/3": {Last: 2, Key: "a"}, "": {},
		} {
			if got := strings.Join(collect(opt), " "); got != want {
				t.Errorf("%+v: got %q, want %q", opt, got, want)
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var heard atomic.Int64
		done := make(chan error, 1)
		go func() {
			last := map[string]int64{"a": 1, "b": 2}
			done <- outbox.Tail(ctx, db, outbox.TailOptions{Follow: true, From: 3}, func(e outbox.Entry) error {
				if heard.Add(1); e.Seq != last[e.Key]+1 && heard.Load() > 2 {
					t.Errorf("%s/%d after %d", e.Key, e.Seq, last[e.Key])
				}
				last[e.Key] = e.Seq
				return nil
			})
		}()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 25 {
					outboxtest.AddKeys(t, db, "a", "b")
				}
			})
		}
		wg.Wait()
		testenv.Eventually(t, "all events to be shown", func() bool { return heard.Load() == 204 })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRetentionKeepsWhatWaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		events := func() (n int) {
			t.Helper()
			if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_event`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		retain := func() {
			t.Helper()
			if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		age := func() {
			t.Helper()
			if _, err := db.Write(t.Context(),
				`UPDATE outbox_event SET created_ms = created_ms - 7200000`); err != nil {
				t.Fatal(err)
			}
		}
		outboxtest.AddKeys(t, db, "a", "b")
		retain()
		if n := events(); n != 2 {
			t.Fatalf("%d events after a retention run with young ones, want 2", n)
		}
		age()
		retain()
		if n := events(); n != 2 {
			t.Fatalf("%d events after a retention run with pending ones, want 2", n)
		}
		s, _ := file(t)
		p := &picky{Sink: s, refuses: func(r relay.Record) bool { return r.Key == "b" }}
		stop := startRelay(t, db, p, relay.Config{}, relay.Options{})
		drained(t, db)
		stop()
		retain()
		if _, err := outbox.ParkedEvents(t.Context(), db, "b"); err != nil {
			t.Fatalf("a parked event is gone: %v", err)
		}
		if _, err := outbox.DiscardParked(t.Context(), db, "b", 0); err != nil {
			t.Fatal(err)
		}
		retain()
		if n := events(); n != 0 {
			t.Fatalf("%d events after a retention run with old, published ones, want 0", n)
		}
		outboxtest.AddKeys(t, db, "a") // the segment is ready for the next event
		if n := events(); n != 1 {
			t.Errorf("%d events, want 1", n)
		}
	})
}

func TestShardsChangeOnlyWhileNothingWaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "a")
		s, path := file(t)
		r, err := relay.New(db, s, relay.Config{Shards: 12}, relay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context()); !errors.Is(err, outbox.ErrShards) {
			t.Fatalf("with an event waiting: %v, want ErrShards", err)
		}
		stop := startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		stop()
		startRelay(t, db, s, relay.Config{Shards: 12}, relay.Options{})
		testenv.Eventually(t, "twelve shards", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil && len(st.Shards) == 12 && len(st.Relays) == 1 && st.Relays[0].Shards == 12
		})
		for range 5 {
			outboxtest.AddKeys(t, db, "a", "b", "c")
		}
		drained(t, db)
		if n := len(lines(t, path)); n != 16 {
			t.Errorf("%d events published, want 16", n)
		}
	})
}

// resized claims another number of partitions than the real sink has.
type resized struct {
	relay.Sink
	n atomic.Int64
}

func (r *resized) Partitions(context.Context) (int, error) { return int(r.n.Load()), nil }

func TestRelayRefusesAnotherNumberOfPartitions(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	real, path := file(t)
	s := &resized{Sink: real}
	s.n.Store(4)
	stop := startRelay(t, db, s, relay.Config{}, relay.Options{})
	outboxtest.AddKeys(t, db, "a")
	drained(t, db)
	stop()
	outboxtest.AddKeys(t, db, "a")
	s.n.Store(8)
	run := func() error {
		r, err := relay.New(db, s, relay.Config{}, relay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Run(t.Context())
	}
	if err := run(); !errors.Is(err, outbox.ErrPartitionsChanged) {
		t.Fatalf("got %v, want ErrPartitionsChanged", err)
	}
	if n := len(lines(t, path)); n != 1 {
		t.Errorf("%d events published, want 1", n)
	}
	s.n.Store(7)
	if err := run(); !errors.Is(err, outbox.ErrShards) {
		t.Errorf("seven partitions for 96 shards: %v, want ErrShards", err)
	}
	s.n.Store(8)
	for _, reports := range []int{1, 0} {
		if reports == 0 {
			if err := outbox.AcceptPartitions(t.Context(), db, s.Name(), new(""), 8); err != nil {
				t.Fatal(err)
			}
		}
		st, err := outbox.Status(t.Context(), db)
		if err != nil || min(len(st.Outages), 1) != reports {
			t.Errorf("%v, %+v: before it is accepted the last relays say why they ended, and afterwards nobody does",
				err, st.Outages)
		}
	}
	startRelay(t, db, s, relay.Config{}, relay.Options{})
	drained(t, db)
	if err := outbox.AcceptPartitions(t.Context(), db, s.Name(), new(""), 16); !errors.Is(err, outbox.ErrRelaysAlive) {
		t.Errorf("while a relay runs: %v, want ErrRelaysAlive", err)
	}
	err := outbox.AcceptPartitions(t.Context(), db, "file:/elsewhere", new(""), 8)
	if !errors.Is(err, outbox.ErrOtherTarget) {
		t.Errorf("of another target: %v, want ErrOtherTarget", err)
	}
}

// Transactions that stay open, lock other tables or only read do not delay other events.
func TestForeignTransactionsDelayNothing(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	s, path := file(t)
	startRelay(t, db, s, relay.Config{}, relay.Options{})
	reader, endReader := dbtest.Begin(t, db)
	var n int
	if err := reader.QueryRowContext(t.Context(),
		`SELECT count(*) FROM outbox_event, outbox_pending`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	writer, endWriter := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), writer, outboxtest.Event("slow")); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		outboxtest.AddKeys(t, db, "a", "b")
	}
	testenv.Eventually(t, "the others' events", func() bool { return len(lines(t, path)) == 100 })
	if err := errors.Join(endWriter(true), endReader(true)); err != nil {
		t.Fatal(err)
	}
	drained(t, db)
	if got := lines(t, path); got[len(got)-1] != "slow/1" {
		t.Errorf("the last is %s", got[len(got)-1])
	}
}

// A relay whose leases run out, since it cannot use the database, does not go on saying that it is alive and that
// nothing waits. What it gives up when it stops is not lost.
func TestARelayThatCannotRenewCountsNobody(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	s, _ := file(t)
	reg := prometheus.NewRegistry()
	r, err := relay.New(db, s, relay.Config{Lease: time.Second}, relay.Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	shows := func(relays, shards float64) {
		t.Helper()
		testenv.Eventually(t, fmt.Sprintf("%v relays, %v shards", relays, shards), func() bool {
			return outboxtest.Metric(t, reg, "authctl_outbox_relays") == relays &&
				outboxtest.Metric(t, reg, "authctl_outbox_shards_owned") == shards
		})
	}
	change := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	shows(1, 96)
	change(`ALTER TABLE outbox_relay RENAME TO away`)
	shows(0, 0)
	change(`ALTER TABLE away RENAME TO outbox_relay`)
	shows(1, 96)
	lost := outboxtest.Metric(t, reg, "authctl_outbox_leases_lost_total")
	if lost < 96 {
		t.Errorf("%v leases lost", lost)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	shows(0, 0)
	if got := outboxtest.Metric(t, reg, "authctl_outbox_leases_lost_total"); got != lost {
		t.Errorf("%v leases count as lost because the relay stopped", got-lost)
	}
}

// An event that is sent again was written long before: it has not waited that long.
func TestAReplayIsNoBacklog(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		oldest := func(waiting int64) time.Duration {
			t.Helper()
			st, err := outbox.Status(t.Context(), db)
			if err != nil || st.Pending != waiting {
				t.Fatalf("%d pending, want %d: %v", st.Pending, waiting, err)
			}
			return st.OldestAge
		}
		s, _ := file(t)
		stop := startRelay(t, db, s, relay.Config{}, relay.Options{})
		outboxtest.AddKeys(t, db, "a", "a", "b")
		drained(t, db)
		stop()
		if _, err := db.ExecContext(t.Context(), `UPDATE outbox_event SET created_ms = created_ms - 86400000`); err != nil {
			t.Fatal(err)
		}
		if _, err := outbox.Replay(t.Context(), db, outbox.Selection{}, false, nil); err != nil {
			t.Fatal(err)
		}
		if age := oldest(3); age >= time.Hour {
			t.Errorf("events that are sent again make a backlog of %s", age)
		}
		outboxtest.AddKeys(t, db, "a")
		if _, err := db.ExecContext(t.Context(),
			`UPDATE outbox_event SET created_ms = created_ms - 7200000 WHERE id = 4`); err != nil {
			t.Fatal(err)
		}
		if age := oldest(4); age < 2*time.Hour || age >= 24*time.Hour {
			t.Errorf("an event that waits for two hours makes a backlog of %s", age)
		}
	})
}
