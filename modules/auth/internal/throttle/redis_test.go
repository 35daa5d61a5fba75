package throttle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// The rules exist in Go and in Lua, and both must always give the same answers. All durations here
// are multiples of ten seconds, so that nothing expires in Redis, by real time, just before it
// would by the test's time.
func TestBothLanguagesGiveTheSameAnswers(t *testing.T) {
	t.Parallel()
	cfg, answers := tight(t), map[string]int{}
	for seed := range uint64(6) {
		w := onRedis(t)
		sharedAsLocal(t, w, w.node(cfg), rand.New(rand.NewPCG(seed, 1)), 4000, answers)
	}
	everyAnswer(t, answers, 5)
}

// tight are limits that everything reaches soon.
func tight(t *testing.T) Config {
	t.Helper()
	cfg := defaults(t)
	cfg.AccountFree, cfg.PairFree, cfg.DeviceFree, cfg.MaxFailures = 4, 3, 2, 9
	cfg.BaseDelay, cfg.MaxDelay, cfg.Lock = 10*time.Second, 80*time.Second, 600*time.Second
	cfg.AddressBurst, cfg.AddressPerMinute, cfg.PrefixBurst, cfg.PrefixPerMinute = 4, 1, 6, 2
	cfg.GlobalBurst, cfg.GlobalPerMinute, cfg.RegisterPerMinute = 9, 3, 6
	cfg.Forget, cfg.Remember, cfg.DeviceTTL = 10*time.Minute, time.Hour, 2*time.Hour
	return cfg
}

// everyAnswer checks that each kind of answer occurred often enough.
func everyAnswer(t *testing.T, answers map[string]int, least int) {
	t.Helper()
	want := []string{"finish", "crossed", "take", "state", "let through: device", "let through: pair",
		"let through: common", "global"}
	for _, limit := range []string{"pair", "account", "address", "prefix"} {
		want = append(want, limit, limit+" in flight")
	}
	for _, answer := range want {
		if answers[answer] < least {
			t.Errorf("seen only %d times: %s", answers[answer], answer)
		}
	}
}

// sharedAsLocal applies the same steps to the shared counters and to those in memory.
func sharedAsLocal(t *testing.T, w *world, l *Limiter, r *rand.Rand, steps int, answers map[string]int) {
	t.Helper()
	type open struct {
		k     keys
		in    tier
		known id
	}
	var (
		ctx       = t.Context()
		accounts  = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"}
		passwords = []string{"first", "second"}
		inFlight  []open
		devices   [8][]string
	)
	for step := range steps {
		who := r.IntN(len(accounts))
		a := Attempt{Account: accounts[who], Address: v6(r.IntN(3), r.IntN(2))}
		if r.IntN(3) == 0 {
			a.Address = address(r.IntN(3))
		}
		if n := len(devices[who]); n > 0 && r.IntN(3) == 0 {
			a.DeviceToken = devices[who][r.IntN(n)]
		}
		a.Stranger = r.IntN(12) == 0
		k := l.keysOf(a)
		check := func(what string, shared, local any, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("step %d: %s: %v", step, what, err)
			}
			if shared != local {
				t.Fatalf("step %d: %s: %+v shared, %+v in memory", step, what, shared, local)
			}
			answers[what]++
		}
		switch n := r.IntN(20); {
		case n < 9:
			v, err := l.shared.begin(ctx, k)
			l.local.decide(func(d decision) { check("begin", v, d.begin(k), err) })
			switch {
			case v.limit == limitNone:
				answers["let through: "+tierNames[v.tier]]++
				inFlight = append(inFlight, open{k, v.tier, v.known})
			case v.wait == 0:
				answers[limitNames[v.limit]+" in flight"]++
			default:
				answers[limitNames[v.limit]]++
			}
		case n < 17 && len(inFlight) > 0:
			i := r.IntN(len(inFlight))
			o := inFlight[i]
			inFlight[i] = inFlight[len(inFlight)-1]
			inFlight = inFlight[:len(inFlight)-1]
			how := []outcome{failed, failed, failed, failed, failed, failed, cancelled, succeeded}[r.IntN(8)]
			password := passwords[r.IntN(2)] // what accounts have; it changes
			owner := l.known(fingerprint(password))
			s, err := l.shared.finish(ctx, o.k, o.in, how, o.known, owner)
			l.local.decide(func(d decision) { check("finish", s, d.finish(o.k, o.in, how, o.known, owner), err) })
			if s.crossed {
				answers["crossed"]++
			}
			if how == succeeded {
				devices[who] = append(devices[who], mintDevice(l.deviceKeys[0], accounts[who], password, w.clock.now()))
			}
		case n == 17:
			i := l.id(classRegister, mustNetwork(a), "")
			wait, err := l.shared.take(ctx, i)
			l.local.decide(func(d decision) { check("take", wait, d.take(i), err) })
		case n == 18:
			failures, wait, err := l.shared.state(ctx, k)
			l.local.decide(func(d decision) { check("state", fmt.Sprint(failures, wait), fmt.Sprint(d.state(k)), err) })
		case r.IntN(10) == 0:
			if err := l.shared.clear(ctx, k); err != nil {
				t.Fatal(err)
			}
			l.local.decide(func(d decision) { d.clear(k) })
		case r.IntN(12) == 0:
			inFlight = nil // a process has died
			w.clock.advance(130 * time.Second)
		case r.IntN(20) == 0:
			w.clock.advance(time.Hour)
		default:
			w.clock.advance(time.Duration(1+r.IntN(3)) * 10 * time.Second)
		}
	}
}

func TestNoNameOrAddressIsInRedisAndEveryKeyExpires(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	client := cachetest.Open(t, server.URL())
	cfg := defaults(t)
	cfg.GlobalPerMinute = 1 // so that the counter of everybody is still there at the end
	l := onRedisAt(t, client).node(cfg)
	phone := remember(t, l, "planted-name", address(1))
	for n := range 200 {
		guess(t, l, Attempt{Account: "planted-name", Address: address(n / 7), DeviceToken: phone})
		guess(t, l, Attempt{Account: "planted-name", Address: v6(n, n)})
	}
	if err := l.Unlock(t.Context(), "planted-name"); err != nil {
		t.Fatal(err)
	}
	found, err := client.Keys(t.Context(), "*").Result()
	if err != nil || len(found) < 30 {
		t.Fatalf("%d keys, %v", len(found), err)
	}
	kinds := map[string]bool{}
	for _, key := range found {
		if !strings.HasPrefix(key, "authctl:{throttle}:") || strings.HasSuffix(key, "none") {
			t.Errorf("key %s", key)
			continue
		}
		kinds[strings.Split(key, ":")[2]] = true
		ttl, err := client.PTTL(t.Context(), key).Result()
		if err != nil || ttl <= 0 || ttl > 4320*time.Hour {
			t.Errorf("key %s expires in %v (%v)", key, ttl, err)
		}
		fields, err := client.HGetAll(t.Context(), key).Result()
		if text := fmt.Sprint(key, fields); err != nil || strings.Contains(text, "planted") ||
			strings.Contains(text, "10.0.") {
			t.Errorf("%s shows a name or an address (%v)", text, err)
		}
	}
	if len(kinds) != 7 {
		t.Errorf("kinds of keys %v, want all seven", kinds)
	}
}

func TestRedisClockIsTheClock(t *testing.T) {
	t.Parallel()
	w := onRedis(t)
	// Three nodes whose clocks differ by hours, and Redis's own clock.
	for hours := range 3 {
		w.clock.advance(time.Duration(hours) * time.Hour)
		l, frozen := w.node(defaults(t)), w.clock.now()
		l.now = func() time.Time { return frozen }
		inRedis(l).clock = nil
		for n := range 4 {
			if passed, want := guess(t, l,
				Attempt{Account: "alice", Address: address(1)}), 4*hours+n < 5; passed != want {
				t.Fatalf("node %d, guess %d: compared %t, want %t", hours, n+1, passed, want)
			}
		}
		written, err := w.redis.Do(t.Context(), "hget",
			redisKey(classAccount, l.keysOf(Attempt{Account: "alice"}).account),
			"t").Int64()
		if err != nil {
			t.Fatal(err)
		}
		clock, err := w.redis.(*redis.Client).Time(t.Context()).Result()
		if off := clock.Sub(time.UnixMilli(written)); err != nil || off < 0 || off > time.Hour {
			t.Fatalf("written %v before now by Redis's clock (%v)", off, err)
		}
	}
}

// redisWorld is a limiter on its own Redis, with its log and metrics.
func redisWorld(t *testing.T) (*world, *Limiter, *cachetest.Server, *observer.ObservedLogs, *prometheus.Registry) {
	t.Helper()
	server := cachetest.Start(t)
	w := onRedisAt(t, cachetest.Open(t, server.URL()))
	core, logs := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	l, err := New(defaults(t),
		Options{Redis: w.redis, Secret: w.secret, Now: w.clock.now, Log: zap.New(core), Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	inRedis(l).clock, inRedis(l).timeout, l.gates.patience = w.clock.now, time.Minute, 50*time.Millisecond
	return w, l, server, logs, registry
}

func TestWithRedisAwayEachProcessGoesOnWithWhatItSaw(t *testing.T) {
	t.Parallel()
	w, l, server, logs, registry := redisWorld(t)
	phone := remember(t, l, "alice", address(1))
	for n := range 15 {
		guess(t, l, Attempt{Account: "alice", Address: address(100 + n)})
	}
	begun, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(200)})
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	l.Failed(t.Context(), begun) // it counts on any server
	guesses := 0
	for n := range 100 {
		if guess(t, l, Attempt{Account: "alice", Address: address(300 + n)}) {
			guesses++
		}
	}
	if guesses != 4 {
		t.Errorf("%d guesses without Redis, want the remaining 4", guesses)
	}
	phone = signIn(t, l, Attempt{Account: "alice", Address: address(400), DeviceToken: phone})
	signIn(t, l, Attempt{Account: "alice", Address: address(1)})
	if got := measured(t, registry, "authctl_throttle_redis_up", ""); got != 0 {
		t.Errorf("redis_up is %v while it is away", got)
	}
	if err := l.Unlock(t.Context(), "alice"); err == nil {
		t.Error("Unlock succeeds without the counters")
	}
	if _, err := l.State(t.Context(), "alice"); err == nil {
		t.Error("State answers without the counters")
	}

	server.Restart()
	w.clock.advance(retryAway)
	if got := measured(t, registry, "authctl_throttle_redis_up", ""); got != 1 {
		t.Errorf("redis_up is %v after it came back, while nobody signs in", got)
	}
	signIn(t, l, Attempt{Account: "alice", Address: address(400), DeviceToken: phone})
	if got := measured(t, registry, "authctl_throttle_redis_up", ""); got != 1 {
		t.Errorf("redis_up is %v after it came back", got)
	}
	if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 15 {
		t.Errorf("state %+v, %v, want what Redis kept", s, err)
	}
	var messages []string
	for _, entry := range logs.All() {
		messages = append(messages, entry.Message)
	}
	if got := strings.Join(messages, " "); got != "throttle_redis_away throttle_redis_back" {
		t.Errorf("logged %q, want one line for each change", got)
	}
}

func TestASilentRedisHoldsUpOneSignInASecond(t *testing.T) {
	t.Parallel()
	w, l, server, _, _ := redisWorld(t)
	signIn(t, l, Attempt{Account: "alice", Address: address(1)})
	inRedis(l).timeout = redisTimeout
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience) // far longer than the bound, but finite
	defer cancel()
	for n := range 1000 {
		ticket, err := l.Begin(ctx, Attempt{Account: name(n), Address: address(n)})
		if err != nil {
			t.Fatal(err)
		}
		l.Succeeded(ctx, ticket, ownerOf(name(n)))
	}
	if ctx.Err() != nil {
		t.Fatal("a silent Redis holds up sign-ins")
	}
	server.Resume()
	inRedis(l).timeout = time.Minute
	w.clock.advance(retryAway)
	signIn(t, l, Attempt{Account: "alice", Address: address(1)})
	if !l.shared.up() {
		t.Fatal("the counters are not shared although Redis answers")
	}
}

func TestARedisThatRefusesWritesIsAway(t *testing.T) {
	t.Parallel()
	for what, words := range map[string][]any{
		"read-only replica": {"replicaof", "127.0.0.1", "1"},
		"out of memory":     {"config", "set", "maxmemory", "1"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, l, _, _, registry := redisWorld(t)
			signIn(t, l, Attempt{Account: "alice", Address: address(1)})
			if err := w.redis.Do(t.Context(), words...).Err(); err != nil {
				t.Fatal(err)
			}
			guesses := 0
			for range 100 {
				if guess(t, l, Attempt{Account: "bob", Address: address(1)}) {
					guesses++
				}
			}
			if guesses != 5 || l.shared.up() {
				t.Fatalf("%d guesses, want 5; up: %t", guesses, l.shared.up())
			}
			w.clock.advance(retryAway)
			if got := measured(t, registry, "authctl_throttle_redis_up", ""); got != 0 {
				t.Errorf("redis_up is %v while nothing can be written", got)
			}
		})
	}
}

func TestACallerWhoLeftSaysNothingAboutRedis(t *testing.T) {
	t.Parallel()
	_, l, _, logs, _ := redisWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	ticket, err := l.Begin(ctx, Attempt{Account: "alice", Address: address(1)})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := l.Begin(ctx, Attempt{Account: "bob", Address: address(1)}); err != nil {
		t.Fatal(err)
	}
	l.Failed(ctx, ticket)
	if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 1 {
		t.Fatalf("state %+v, %v: the failure of a caller who left is not counted", s, err)
	}
	if logs.Len() != 0 {
		t.Fatalf("logged %v", logs.All())
	}
}

func TestACommandIsNotSentTwice(t *testing.T) {
	t.Parallel()
	w, l, server, _, _ := redisWorld(t)
	signIn(t, l, Attempt{Account: "alice", Address: address(1)}) // so that the script is known
	// A proxy that passes each command on and drops the connection instead of the answer.
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	t.Cleanup(func() { _ = proxy.Close(); handlers.Wait() })
	handlers.Go(func() {
		for {
			client, err := proxy.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() { swallowScripts(client, "127.0.0.1:"+server.Port()) })
		}
	})
	opt := *w.redis.(*redis.Client).Options()
	opt.Addr = proxy.Addr().String()
	opt.Dialer = nil
	through := redisClient(t, &opt)
	inRedis(l).client = through
	if _, err := l.Begin(t.Context(), Attempt{Account: "bob", Address: address(1)}); err != nil {
		t.Fatal(err)
	}
	k := l.keysOf(Attempt{Account: "bob", Address: address(1)})
	pending, err := w.redis.Do(t.Context(), "hget", redisKey(classAccount, k.account), "p").Int()
	if err != nil || pending != 1 {
		t.Fatalf("%d reservations, %v, want one", pending, err)
	}
}

func redisClient(t *testing.T, opt *redis.Options) *redis.Client {
	client := redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// swallowScripts passes bytes between a client and Redis until the client sends a script: Redis
// gets the script, and the client loses its connection.
func swallowScripts(client net.Conn, redisAddr string) {
	defer client.Close()
	server, err := net.Dial("tcp", redisAddr)
	if err != nil {
		return
	}
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
		script := strings.Contains(strings.ToLower(string(buf[:n])), "eval")
		n, err = server.Read(buf)
		if err != nil || script {
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func mustNetwork(a Attempt) netip.Prefix {
	network, _ := networks(a.Address)
	return network
}

// measured returns the sum of the metric's values with the label value, or of all its values.
func measured(t *testing.T, registry *prometheus.Registry, name, label string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labelled := label == ""
			for _, pair := range m.GetLabel() {
				labelled = labelled || pair.GetValue() == label
			}
			if family.GetName() == name && labelled {
				found = true
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	if !found {
		t.Fatalf("no metric %s %s", name, label)
	}
	return sum
}

func TestMetricsCountRefusalsByLimit(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	l, err := New(defaults(t), Options{Secret: "secret", Now: newClock().now, Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		guess(t, l, Attempt{Account: "alice", Address: address(1)})
	}
	for _, want := range []struct {
		name, label string
		value       float64
	}{
		{"authctl_throttle_refused_total", "pair", 3},
		{"authctl_throttle_refused_total", "", 3},
		{"authctl_throttle_attempts_total", "failed", 5},
		{"authctl_throttle_attempts_total", "common", 5},
		{"authctl_throttle_lockouts_total", "", 1},
		{"authctl_throttle_entries", "", 4},
		{"authctl_throttle_evicted_total", "", 0},
	} {
		if got := measured(t, registry, want.name, want.label); got != want.value {
			t.Errorf("%s %s is %v, want %v", want.name, want.label, got, want.value)
		}
	}
	if _, err := New(defaults(t), Options{Secret: "secret", Registry: registry}); err == nil {
		t.Error("the same metrics registered twice")
	}
}

// held keeps scripts from Redis until it is released, and counts how many wait at once.
type held struct {
	letGo chan struct{}
	now   atomic.Int32
	most  atomic.Int32
}

func (h *held) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *held) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h *held) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !strings.HasPrefix(cmd.Name(), "eval") { // commands that begin a connection
			return next(ctx, cmd)
		}
		n := h.now.Add(1)
		defer h.now.Add(-1)
		for most := h.most.Load(); n > most && !h.most.CompareAndSwap(most, n); most = h.most.Load() {
		}
		<-h.letGo
		return next(ctx, cmd)
	}
}

// A flood leaves connections, and Redis itself, to the others.
func TestAFloodAsksRedisInTurns(t *testing.T) {
	t.Parallel()
	client := cachetest.Shared(t)
	h := &held{letGo: make(chan struct{})}
	client.AddHook(h)
	w := onRedisAt(t, client)
	l := w.node(defaults(t))
	store := l.shared.(*shared)
	store.timeout, store.patience = testenv.Patience, testenv.Patience
	var all sync.WaitGroup
	var asked atomic.Int32
	flood := 4 * int(turns())
	for i := range flood {
		all.Go(func() {
			asked.Add(1)
			if _, err := store.begin(t.Context(),
				l.keysOf(Attempt{Account: fmt.Sprint(i), Address: address(1)})); err != nil {
				t.Error(err)
			}
		})
	}
	testenv.Eventually(t, "all ask, and the allowed number waits for Redis", func() bool {
		return int(asked.Load()) == flood && int64(h.now.Load()) >= turns()
	})
	close(h.letGo)
	all.Wait()
	if most := int64(h.most.Load()); most > turns() {
		t.Errorf("%d asked at once, want at most %d", most, turns())
	}
}

// A stranger who gets no turn in time is refused. If each process judged alone instead, many
// servers would allow many more guesses. Known devices need no turn, and Redis does not count as
// down.
func TestAStrangerWhoGetsNoTurnIsRefused(t *testing.T) {
	t.Parallel()
	w := onRedis(t)
	l := w.node(defaults(t))
	store := l.shared.(*shared)
	ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(1)})
	if err != nil {
		t.Fatal(err)
	}
	device := l.Succeeded(t.Context(), ticket, "owner")
	store.timeout, store.patience = testenv.Patience, time.Millisecond
	if !store.turns.TryAcquire(turns()) {
		t.Fatal("somebody has a turn")
	}
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(2)}); !errors.Is(err, ErrCrowded) {
		t.Errorf("a stranger without a turn: %v", err)
	}
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(2), DeviceToken: device}); err != nil {
		t.Errorf("a known device without a turn: %v", err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := store.begin(left, ticket.keys); !errors.Is(err, context.Canceled) {
		t.Errorf("of a caller who has left: %v", err)
	}
	if !store.up() {
		t.Error("Redis counts as down")
	}
	store.turns.Release(1)
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(2)}); err != nil {
		t.Errorf("with a turn: %v", err)
	}
	if !store.turns.TryAcquire(1) {
		t.Fatal("somebody has the turn")
	}
	store.note(errors.New("Redis hangs"))
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(3)}); err != nil {
		t.Errorf("without a turn, and Redis is down: %v", err)
	}
}
