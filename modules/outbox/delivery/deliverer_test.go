package delivery_test

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
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// receivers is a sink whose targets answer as the test says.
type receivers struct {
	answer func(ctx context.Context, target string, r outbox.Record, a delivery.Attempt) error // nil accepts everything

	mu       sync.Mutex
	taken    map[string][]outbox.Record // by target, in order
	attempts map[string]int             // by target and key
	now      map[string]int             // in flight, by target and key
	most     map[string]int             // in flight at once, by target
	twice    []string                   // two of one key were in flight at once
}

func newReceivers() *receivers {
	return &receivers{taken: map[string][]outbox.Record{}, attempts: map[string]int{}, now: map[string]int{},
		most: map[string]int{}}
}

func (s *receivers) Deliver(ctx context.Context, t outbox.Subscription, r outbox.Record, a delivery.Attempt) error {
	if !a.Owned() {
		return delivery.ErrNotOwned
	}
	key := t.Name + " " + r.Key
	s.mu.Lock()
	s.attempts[key]++
	if s.now[key]++; s.now[key] > 1 {
		s.twice = append(s.twice, key)
	}
	s.now[t.Name]++
	s.most[t.Name] = max(s.most[t.Name], s.now[t.Name])
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now[key]--
		s.now[t.Name]--
		s.mu.Unlock()
	}()
	if s.answer != nil {
		if err := s.answer(ctx, t.Name, r, a); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[t.Name] = append(s.taken[t.Name], r)
	return nil
}

func (s *receivers) AnswerTimeout() time.Duration { return testenv.Patience }

// of lists what a target has received, as key/sequence, with * for a replay.
func (s *receivers) of(target string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.taken[target] {
		text := fmt.Sprintf("%s/%d", r.Key, r.Seq)
		if r.Replay {
			text += "*"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// expect checks what a target has received, in the form of [receivers.of].
func (s *receivers) expect(t testing.TB, target, want string) {
	t.Helper()
	if got := s.of(target); got != want {
		t.Errorf("%s gets %s, want %s", target, got, want)
	}
}

func (s *receivers) tried(target, key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts[target+" "+key]
}

func (s *receivers) sorted(target string) string {
	parts := strings.Fields(s.of(target))
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// quick repeats failed attempts soon. Its lease is long enough for a busy machine to renew it.
var quick = delivery.Config{Lease: 10 * time.Second, Pause: 20 * time.Millisecond}

// start runs a deliverer to webhooks and mail until the returned function is called or the test
// ends.
func start(
	t testing.TB, db *database.DB, s delivery.Sink, cfg delivery.Config, options ...func(*delivery.Options),
) (stop func(), reg *prometheus.Registry) {
	t.Helper()
	reg = prometheus.NewRegistry()
	opt := delivery.Options{Log: zaptest.NewLogger(t), Registry: reg}
	for _, change := range options {
		change(&opt)
	}
	d, err := delivery.New(db, map[string]delivery.Sink{"webhook": s, "mail": s}, cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the deliverer ended with: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop, reg
}

func subscribe(t testing.TB, db *database.DB, name string, types ...string) outbox.Subscription {
	t.Helper()
	if len(types) == 0 {
		types = []string{"*"}
	}
	s, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{
		Name: name, Kind: outbox.KindWebhook, Types: types, URL: "https://receiver.example/" + name,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// onHook runs a test on each database, with a webhook that is called hook and receivers to deliver to.
func onHook(t *testing.T, test func(*testing.T, *database.DB, outbox.Subscription, *receivers)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		test(t, db, subscribe(t, db, "hook"), newReceivers())
	})
}

// manyKeys returns k0, k1 and so on.
func manyKeys(n int) (keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprint("k", i))
	}
	return keys
}

func state(t testing.TB, db *database.DB, name string) outbox.DeliveryState {
	t.Helper()
	list, err := outbox.Deliveries(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no target %s", name)
	return outbox.DeliveryState{}
}

// empty waits until nothing is waiting for the targets.
func empty(t testing.TB, db *database.DB, names ...string) {
	t.Helper()
	for _, name := range names {
		testenv.Eventually(t, "nothing waits for "+name, func() bool { return state(t, db, name).Waiting == 0 })
	}
}

func TestEachTargetGetsItsEventsInOrder(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "one")
		subscribe(t, db, "two", "test.*")
		subscribe(t, db, "none", "other.*")
		s := newReceivers()
		stop, _ := start(t, db, s, quick)
		for range 3 {
			outboxtest.AddKeys(t, db, "a", "b", "b")
			e := outboxtest.Event("mail:a")
			e.Target = "mail"
			outboxtest.Add(t, db, e)
		}
		empty(t, db, "one", "two", "mail")
		stop()
		for _, target := range []string{"one", "two"} {
			for _, key := range []string{"a", "b"} {
				var got []string
				for _, part := range strings.Fields(s.of(target)) {
					if strings.HasPrefix(part, key+"/") {
						got = append(got, part)
					}
				}
				want := "a/1 a/2 a/3"
				if key == "b" {
					want = "b/1 b/2 b/3 b/4 b/5 b/6"
				}
				if strings.Join(got, " ") != want {
					t.Errorf("%s gets %v, want %s", target, got, want)
				}
			}
		}
		s.expect(t, "mail", "mail:a/0 mail:a/0 mail:a/0")
		s.expect(t, "none", "")
		if len(s.twice) > 0 {
			t.Errorf("two events of a key were in flight at once: %v", s.twice)
		}
		var left int
		err := db.QueryRowContext(t.Context(),
			`SELECT (SELECT count(*) FROM outbox_message) + (SELECT count(*) FROM outbox_deliverer)
			+ (SELECT count(*) FROM outbox_delivery_lease WHERE owner IS NOT NULL)`).Scan(&left)
		if err != nil || left != 0 {
			t.Errorf("%d messages, deliverers and leases remain, %v", left, err)
		}
	})
}

// Targets besides the log get each event with its original trace and generation, also when it is
// sent again.
func TestATargetGetsTheTraceAndTheGenerationOfAnEvent(t *testing.T) {
	t.Parallel()
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		one := subscribe(t, db, "one")
		toMail := outboxtest.Event("mail:a")
		toMail.Target = "mail"
		raise := func(to int) {
			t.Helper()
			if _, err := db.Write(t.Context(), `UPDATE outbox_setting SET generation = ?`, to); err != nil {
				t.Fatal(err)
			}
		}
		raise(7)
		err := db.Tx(tracingtest.Within(t.Context(), traceparent), func(ctx context.Context, tx database.Tx) error {
			return outbox.Add(ctx, tx, outboxtest.Event("a"), toMail)
		})
		if err != nil {
			t.Fatal(err)
		}
		raise(8)
		outboxtest.AddKeys(t, db, "a")
		s := newReceivers()
		start(t, db, s, quick)
		empty(t, db, "one", "mail")
		if _, err := outbox.ReplayTo(t.Context(), db, one, outbox.Selection{}, false, nil); err != nil {
			t.Fatal(err)
		}
		empty(t, db, "one")
		got := func(target string) (list []string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, r := range s.taken[target] {
				list = append(list, fmt.Sprint(r.Seq, " ", r.Generation, " ", r.TraceParent))
			}
			return list
		}
		once := []string{"1 7 " + traceparent, "2 8 "}
		if list := got("one"); !slices.Equal(list, slices.Concat(once, once)) {
			t.Errorf("one gets %q, want %q twice", list, once)
		}
		if list := got("mail"); !slices.Equal(list, []string{"0 0 " + traceparent}) {
			t.Errorf("mail gets %q", list)
		}
	})
}

func TestAKeyThatFailsHoldsUpItselfAlone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		var mu sync.Mutex
		broken := true
		s := newReceivers()
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			mu.Lock()
			defer mu.Unlock()
			if r.Key == "bad" && broken {
				return errors.New("not now")
			}
			return nil
		}
		outboxtest.AddKeys(t, db, "bad", "bad", "good", "good")
		_, reg := start(t, db, s, quick)
		testenv.Eventually(t, "the bad key is tried again", func() bool { return s.tried("hook", "bad") >= 4 })
		outboxtest.AddKeys(t, db, "bad", "good") // arrives while its key waits
		testenv.Eventually(t, "the good key goes on", func() bool { return s.of("hook") == "good/1 good/2 good/3" })
		testenv.Eventually(t, "what was taken is deleted", func() bool { return state(t, db, "hook").Waiting == 3 })
		st := state(t, db, "hook")
		if st.HeldKeys != 1 || st.ParkedKeys != 0 || !strings.Contains(st.LastError, "not now") {
			t.Errorf("state: %+v", st)
		}
		mu.Lock()
		broken = false
		mu.Unlock()
		empty(t, db, "hook")
		s.expect(t, "hook", "good/1 good/2 good/3 bad/1 bad/2 bad/3")
		testenv.Eventually(t, "the key is held no longer", func() bool { return state(t, db, "hook").HeldKeys == 0 })
		outboxtest.AddKeys(t, db, "bad")
		testenv.Eventually(t, "the next event", func() bool { return strings.HasSuffix(s.of("hook"), "bad/4") })
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, f := range families {
			seen[f.GetName()] = true
		}
		for _, name := range []string{"delivered_total", "failed_total", "latency_seconds", "waiting"} {
			if !seen["authctl_outbox_target_"+name] {
				t.Errorf("no metric %s", name)
			}
		}
	})
}

// A target hangs, with all its attempts in flight. No other target waits for any of them.
func TestATargetThatHangsDelaysNoOther(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const hanging = 5
		for i := range hanging {
			subscribe(t, db, fmt.Sprint("dead-", i))
		}
		subscribe(t, db, "living")
		s := newReceivers()
		s.answer = func(ctx context.Context, target string, _ outbox.Record, _ delivery.Attempt) error {
			if target != "living" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		cfg := quick
		cfg.Drain = time.Millisecond
		stop, _ := start(t, db, s, cfg)
		var keys []string
		for i := range 300 {
			keys = append(keys, fmt.Sprint("k", i))
		}
		outboxtest.AddKeys(t, db, keys...)
		empty(t, db, "living")
		outboxtest.AddKeys(t, db, keys...)
		empty(t, db, "living")
		stop()
		if st := state(t, db, "dead-0"); st.Waiting != 600 || st.HeldKeys > 0 {
			t.Errorf("of the hanging target %d events wait and %d keys are held; want 600 and none, since nothing has failed",
				st.Waiting, st.HeldKeys)
		}
	})
}

func TestManyKeysAreUnderWayAtOnceAndOneEventOfEach(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "slow")
		const want = 50
		s := newReceivers()
		all := make(chan struct{})
		together := sync.OnceFunc(func() { close(all) }) // several may see that all are there
		s.answer = func(ctx context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			s.mu.Lock()
			if s.now["slow"] == want && r.Seq == 1 {
				together()
			}
			s.mu.Unlock()
			select {
			case <-all:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
		for i := range want {
			k := fmt.Sprint("k", i)
			outboxtest.AddKeys(t, db, k, k)
		}
		start(t, db, s, quick)
		empty(t, db, "slow")
		if len(s.twice) > 0 || s.most["slow"] != want {
			t.Errorf("%d in flight at once, two of one key: %v", s.most["slow"], s.twice)
		}
	})
}

// Why an older key is parked says nothing about those that are tried again.
func TestTheErrorOfATargetIsOfAKeyThatIsTriedAgain(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		s := newReceivers()
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			if r.Key == "bad" {
				return &delivery.Refused{Err: errors.New("too large")}
			}
			return errors.New("not now")
		}
		outboxtest.AddKeys(t, db, "bad")
		start(t, db, s, quick)
		testenv.Eventually(t, "the bad key is parked", func() bool { return state(t, db, "hook").ParkedKeys == 1 })
		if st := state(t, db, "hook"); !strings.Contains(st.LastError, "too large") {
			t.Errorf("with a parked key: %+v", st)
		}
		outboxtest.AddKeys(t, db, "late")
		testenv.Eventually(t, "the late key is tried again", func() bool { return state(t, db, "hook").HeldKeys == 1 })
		if st := state(t, db, "hook"); st.LastError != "not now" {
			t.Errorf("with a key that is tried again: %+v", st)
		}
	})
}

func TestARefusedEventParksItsKey(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		hook := subscribe(t, db, "hook")
		var mu sync.Mutex
		refuses := true
		s := newReceivers()
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			mu.Lock()
			defer mu.Unlock()
			if refuses && r.Key == "bad" && r.Seq == 1 {
				return &delivery.Refused{Err: errors.New("too large")}
			}
			return nil
		}
		outboxtest.AddKeys(t, db, "bad", "bad", "bad", "good")
		start(t, db, s, quick)
		parked := func() { // because the key is parked
			t.Helper()
			testenv.Eventually(t, "the key is parked", func() bool { return state(t, db, "hook").ParkedKeys == 1 })
		}
		parked()
		list, err := outbox.HeldKeys(t.Context(), db, hook, false)
		if err != nil || len(list) != 1 || list[0].Key != "bad" || list[0].Events != 3 || list[0].EventID == "" ||
			!strings.Contains(list[0].Error, "too large") || list[0].Target != "hook" {
			t.Errorf("parked: %+v, %v", list, err)
		}
		if events, err := outbox.HeldEvents(t.Context(), db, hook, "bad"); err != nil || len(events) != 3 ||
			events[0].Seq != 1 {
			t.Errorf("its events: %v, %v", events, err)
		}
		if n, err := outbox.RetryHeld(t.Context(), db, hook, "bad"); err != nil || n != 3 {
			t.Errorf("retried %d, %v", n, err)
		}
		testenv.Eventually(t, "it is tried again", func() bool { return s.tried("hook", "bad") == 2 })
		parked()
		refused, err := outbox.HeldEvents(t.Context(), db, hook, "bad")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := outbox.DiscardHeld(t.Context(), db, hook, "bad", refused[1].ID); !errors.Is(err,
			outbox.ErrOtherRefused) || n != 0 {
			t.Errorf("%d go on without an event that is not the refused one: %v", n, err)
		}
		if n, err := outbox.DiscardHeld(t.Context(), db, hook, "bad", refused[0].ID); err != nil || n != 2 {
			t.Errorf("discarded, and %d follow, %v", n, err)
		}
		empty(t, db, "hook")
		if got := s.sorted("hook"); got != "bad/2 bad/3 good/1" {
			t.Errorf("it gets %s", got)
		}
		if _, err := outbox.RetryHeld(t.Context(), db, hook, "good"); !errors.Is(err, outbox.ErrNotParked) {
			t.Errorf("a retry of a key that is not parked: %v", err)
		}
		if _, err := outbox.DiscardHeld(t.Context(), db, hook, "good", 0); !errors.Is(err, outbox.ErrNotParked) {
			t.Errorf("nothing to discard of a key that is not parked: %v", err)
		}
		mu.Lock()
		refuses = false
		mu.Unlock()
		res, err := outbox.ReplayTo(t.Context(), db, hook, outbox.Selection{Key: "bad", ToID: 1}, false, nil)
		if err != nil || res.Matched != 1 || res.Enqueued != 1 {
			t.Errorf("replay: %+v, %v", res, err)
		}
		empty(t, db, "hook")
		if got := s.of("hook"); !strings.HasSuffix(got, " bad/1*") {
			t.Errorf("after the replay it has %s", got)
		}
	})
}

// The key is parked after retry_for, which begins with the first failure and continues over a
// restart.
func TestAnEventThatIsNeverTakenParksItsKeyInTheEnd(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error { return errors.New("never") }
		outboxtest.AddKeys(t, db, "a")
		stop, _ := start(t, db, s, quick)
		testenv.Eventually(t, "it is tried", func() bool { return state(t, db, "hook").HeldKeys == 1 })
		stop()
		if _, err := db.ExecContext(t.Context(),
			`UPDATE outbox_held_key SET since_ms = since_ms - 73 * 3600000, next_ms = 0`); err != nil {
			t.Fatal(err)
		}
		start(t, db, s, quick)
		testenv.Eventually(t, "the key is parked", func() bool { return state(t, db, "hook").ParkedKeys == 1 })
	})
}

// A receiver that takes every second event does not fill the log.
func TestFailuresAreLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	subscribe(t, db, "hook")
	s := newReceivers()
	s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
		if a.Number == 1 && r.Seq%2 == 0 {
			return errors.New("try again")
		}
		return nil
	}
	logged, logs := observer.New(zap.WarnLevel)
	d, err := delivery.New(db, map[string]delivery.Sink{"webhook": s}, quick, delivery.Options{Log: zap.New(logged)})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	outboxtest.AddKeys(t, db, "a", "a", "b", "b", "c", "c", "a", "a")
	empty(t, db, "hook")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	n := logs.FilterMessage("delivery_failed").Len()
	if most := 1 + int(time.Since(begun)/time.Minute); n < 1 || n > most {
		t.Errorf("%d lines, want at most %d", n, most)
	}
}

// A target that was down until all its keys were parked does not fill the log: a few lines count
// all of them.
func TestParkedKeysAreLoggedTogether(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	subscribe(t, db, "hook")
	s := newReceivers()
	s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error {
		return &delivery.Refused{Err: errors.New("never")}
	}
	const keys = 300
	var names []string
	for i := range keys {
		names = append(names, fmt.Sprint("k", i))
	}
	outboxtest.AddKeys(t, db, names...)
	logged, logs := observer.New(zap.WarnLevel)
	begun := time.Now()
	stop, reg := start(t, db, s, quick, func(o *delivery.Options) { o.Log = zap.New(logged) })
	testenv.Eventually(t, "all keys are parked", func() bool { return state(t, db, "hook").ParkedKeys == keys })
	stop()
	if n := logs.FilterMessage("delivery_failed").Len(); n > 0 {
		t.Errorf("%d lines say that a refused event is tried again", n)
	}
	lines := logs.FilterMessage("deliverer_keys_parked").All()
	if most := 2 + int(time.Since(begun)/time.Minute); len(lines) == 0 || len(lines) > most {
		t.Errorf("%d lines, want at most %d", len(lines), most)
	}
	counted := int64(0)
	for _, line := range lines {
		fields := line.ContextMap()
		n, _ := fields["keys"].(int64)
		counted += n
		if fields["target"] != "hook" || !strings.HasPrefix(fmt.Sprint(fields["key"]), "k") {
			t.Errorf("a line says %v", fields)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	refused := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "authctl_outbox_target_failed_total" && m.GetLabel()[0].GetValue() == "refused" {
				refused += m.GetCounter().GetValue()
			}
		}
	}
	if counted != keys || refused != keys {
		t.Errorf("the lines count %d keys and the metric %g, want %d", counted, refused, keys)
	}
}

// A receiver was down until every key was parked.
func TestAllParkedKeysAreRetriedAtOnce(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		var back atomic.Bool
		s.answer = func(context.Context, string, outbox.Record, delivery.Attempt) error {
			if back.Load() {
				return nil
			}
			return &delivery.Refused{Err: errors.New("away for long")}
		}
		outboxtest.AddKeys(t, db, "a", "b", "c", "a")
		start(t, db, s, quick)
		testenv.Eventually(t, "all are parked", func() bool { return state(t, db, "hook").ParkedKeys == 3 })
		back.Store(true)
		if n, err := outbox.RetryAllHeld(t.Context(), db, hook); err != nil || n != 3 {
			t.Fatalf("retried %d keys, %v", n, err)
		}
		empty(t, db, "hook")
		if got := s.sorted("hook"); got != "a/1 a/2 b/1 c/1" {
			t.Errorf("it gets %s", got)
		}
		if n, err := outbox.RetryAllHeld(t.Context(), db, hook); err != nil || n != 0 {
			t.Errorf("then %d keys, %v", n, err)
		}
	})
}

func TestAFailedAttemptIsRepeatedWhenItsTimeHasCome(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, hook outbox.Subscription, s *receivers) {
		var firsts []delivery.Attempt
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			s.mu.Lock()
			firsts = append(firsts, a)
			s.mu.Unlock()
			return &delivery.Later{After: time.Hour, Err: errors.New("in an hour")}
		}
		outboxtest.AddKeys(t, db, "a")
		before := time.Now()
		stop, _ := start(t, db, s, quick)
		testenv.Eventually(t, "it is tried", func() bool { return state(t, db, "hook").HeldKeys == 1 })
		list, err := outbox.HeldKeys(t.Context(), db, hook, true)
		if err != nil || len(list) != 1 || list[0].NextAt.Before(before.Add(time.Hour-time.Second)) ||
			!list[0].ParkedAt.IsZero() {
			t.Errorf("the next attempt is at %+v, %v", list, err)
		}
		stop()
		if n, err := outbox.RetryHeld(t.Context(), db, hook, "a"); err != nil || n != 1 {
			t.Fatalf("retried %d, %v", n, err)
		}
		start(t, db, s, quick)
		testenv.Eventually(t, "it is tried at once", func() bool { return s.tried("hook", "a") == 2 })
		s.mu.Lock()
		defer s.mu.Unlock()
		if firsts[0].Number != 1 || firsts[1].Number != 1 {
			t.Errorf("attempts: %+v", firsts)
		}
	})
}

func TestATargetThatIsGoneIsPausedUntilSomebodyResumesIt(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook")
		subscribe(t, db, "other")
		s := newReceivers()
		var mu sync.Mutex
		gone := true
		s.answer = func(_ context.Context, target string, r outbox.Record, _ delivery.Attempt) error {
			mu.Lock()
			defer mu.Unlock()
			if gone && target == "hook" {
				return &delivery.Gone{Err: errors.New("it answered 410")}
			}
			return nil
		}
		outboxtest.AddKeys(t, db, "a", "a")
		start(t, db, s, quick)
		testenv.Eventually(t, "the target is paused", func() bool {
			st := state(t, db, "hook")
			return !st.Active() && strings.Contains(st.Reason, "410")
		})
		outboxtest.AddKeys(t, db, "a")
		empty(t, db, "other")
		if st := state(t, db, "hook"); st.Waiting != 3 {
			t.Errorf("%d wait for it", st.Waiting)
		}
		mu.Lock()
		gone = false
		mu.Unlock()
		if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
			t.Fatal(err)
		}
		empty(t, db, "hook")
		s.expect(t, "hook", "a/1 a/2 a/3")
		if _, err := outbox.PauseTarget(t.Context(), db, "nobody", ""); !errors.Is(err, outbox.ErrNoTarget) {
			t.Errorf("a target that does not exist: %v", err)
		}
	})
}

// A late answer belongs to the target as it was before.
func TestAnAttemptFromBeforeAResumptionPausesNothing(t *testing.T) {
	t.Parallel()
	onHook(t, func(t *testing.T, db *database.DB, _ outbox.Subscription, s *receivers) {
		under, late := make(chan struct{}, 1), make(chan struct{})
		s.answer = func(_ context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
			select {
			case <-late:
				return nil
			default:
			}
			if r.Key == "late" {
				under <- struct{}{}
				<-late
			} else {
				<-under // both are in flight
			}
			return &delivery.Gone{Err: errors.New("it answered 410")}
		}
		outboxtest.AddKeys(t, db, "late", "first")
		start(t, db, s, quick)
		testenv.Eventually(t, "the target is paused", func() bool { return !state(t, db, "hook").Active() })
		if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
			t.Fatal(err)
		}
		close(late)
		empty(t, db, "hook")
		if st := state(t, db, "hook"); !st.Active() {
			t.Errorf("the target is paused again: %s", st.Reason)
		}
	})
}

func TestAnEventThatIsDroppedCountsAsDone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newReceivers()
		s.answer = func(_ context.Context, _ string, r outbox.Record, _ delivery.Attempt) error {
			if r.Subject == "late" {
				return &delivery.Dropped{Err: errors.New("expired")}
			}
			return nil
		}
		late, good := outboxtest.Event("mail:a"), outboxtest.Event("mail:a")
		late.Subject, late.Target, good.Target = "late", "mail", "mail"
		outboxtest.Add(t, db, late, good)
		start(t, db, s, quick)
		empty(t, db, "mail")
		s.expect(t, "mail", "mail:a/0")
	})
}

// Deliverers share the work, and one that stops releases its share at once.
func TestDeliverersShareTheWork(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	subscribe(t, db, "hook")
	first, second := newReceivers(), newReceivers()
	stop, _ := start(t, db, first, quick)
	start(t, db, second, quick)
	owners := func(want int) {
		t.Helper()
		testenv.Eventually(t, fmt.Sprint("leases are shared by ", want), func() bool {
			var n, unowned int
			err := db.QueryRowContext(t.Context(),
				`SELECT count(DISTINCT owner), count(*) FILTER (WHERE owner IS NULL) FROM outbox_delivery_lease`).Scan(&n, &unowned)
			return err == nil && n == want && unowned == 0
		})
	}
	owners(2)
	outboxtest.AddKeys(t, db, manyKeys(100)...)
	empty(t, db, "hook")
	a, b := len(strings.Fields(first.of("hook"))), len(strings.Fields(second.of("hook")))
	if a+b != 100 || a == 0 || b == 0 {
		t.Errorf("they delivered %d and %d, want 100 in all", a, b)
	}
	stop()
	owners(1)
	outboxtest.AddKeys(t, db, manyKeys(100)...)
	empty(t, db, "hook")
	if n := len(strings.Fields(second.of("hook"))); n != b+100 {
		t.Errorf("the remaining one delivered %d, want %d", n, b+100)
	}
}

// A role may lack a right for one thing alone, as after a migration. That leases are renewed does not end the outage.
func TestAnOutageOfOneStatementLasts(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	core, logs := observer.New(zap.InfoLevel)
	start(t, db, newReceivers(), delivery.Config{Lease: time.Second},
		func(o *delivery.Options) { o.Log = zap.New(core) })
	logged := func(change, want string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, want, func() bool {
			return want == fmt.Sprint(logs.FilterMessage("deliverer_database_away").Len(),
				logs.FilterMessage("deliverer_outage_ended").Len())
		})
	}
	logged(`ALTER TABLE outbox_held_key RENAME TO away`, "1 0")
	logged(`ALTER TABLE away RENAME TO outbox_held_key`, "1 1")
}
