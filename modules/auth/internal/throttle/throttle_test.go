package throttle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// clock is a time that only tests move.
type clock struct{ ms atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.ms.Store(time.Now().UnixMilli())
	return c
}

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *clock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// defaults are the settings with the defaults of their tags.
func defaults(t testing.TB) Config {
	t.Helper()
	var cfg Config
	if err := config.Load(&cfg, config.Options{}); err != nil {
		t.Fatal(err)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return cfg
}

// world is one set of counters and their clock. Its nodes share what processes share through the
// store, but each has its own connections.
type world struct {
	t        testing.TB
	clock    *clock
	redis    cache.Client
	postgres string // the URL of a database; without it and without Redis the counters are in the process
	secret   config.Secret
}

// onEach runs the test with the counters in this process, in Redis and in PostgreSQL.
func onEach(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, newWorld(t))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, onRedis(t))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, onPostgres(t))
	})
}

func onRedis(t *testing.T) *world { return onRedisAt(t, cachetest.Shared(t)) }

func onRedisAt(t testing.TB, client cache.Client) *world {
	w := newWorld(t)
	w.redis = client
	return w
}

func onPostgres(t *testing.T) *world { return onPostgresAt(t, dbtest.PostgresURL(t)) }

func onPostgresAt(t testing.TB, url string) *world {
	w := newWorld(t)
	w.postgres = url
	return w
}

// With its own secret every test has its own counters.
func newWorld(t testing.TB) *world {
	return &world{t: t, clock: newClock(), secret: config.Secret(rand.Text())}
}

// fewer is the number of steps of a campaign: n, or fewer in PostgreSQL, where each step takes
// longer.
func (w *world) fewer(n, part int) int {
	if w.postgres != "" && os.Getenv("AUTHCTL_CAMPAIGN") != "long" {
		return n / part
	}
	return n
}

func (w *world) node(cfg Config) *Limiter {
	w.t.Helper()
	return w.nodeWith(cfg, Options{})
}

func (w *world) nodeWith(cfg Config, opt Options) *Limiter {
	w.t.Helper()
	opt.Secret, opt.Now, opt.Redis = w.secret, w.clock.now, w.redis
	if w.postgres != "" {
		opt.DB = dbtest.Open(w.t, w.postgres)
	}
	// For a busy machine.
	cfg.PostgresTimeout = time.Minute
	l, err := New(cfg, opt)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(l.Close)
	switch counters := l.shared.(type) {
	case *shared:
		counters.clock, counters.timeout, counters.patience = w.clock.now, time.Minute, testenv.Patience
	case *postgres:
		counters.clock = w.clock.now
	}
	l.gates.patience = 50 * time.Millisecond
	return l
}

// inRedis and inPostgres are the shared counters of a limiter.
func inRedis(l *Limiter) *shared { return l.shared.(*shared) }

func inPostgres(l *Limiter) *postgres { return l.shared.(*postgres) }

// guess tries a wrong password and reports whether it was compared.
func guess(t testing.TB, l *Limiter, a Attempt) bool {
	t.Helper()
	ticket, err := l.Begin(t.Context(), a)
	if err != nil {
		refusal(t, err)
		return false
	}
	l.Failed(t.Context(), ticket)
	return true
}

// ownerOf maps accounts of these tests to their passwords.
func ownerOf(account string) string { return "owner of " + account }

func remember(t testing.TB, l *Limiter, account string, address netip.Addr) string {
	t.Helper()
	return l.Remember(t.Context(), account, ownerOf(account), address)
}

// known reports whether the attempt passed as one of a known device or address.
func known(ticket *Ticket) bool { return ticket.tier == tierDevice || ticket.tier == tierPair }

// signIn gives the right password and returns the device token.
func signIn(t testing.TB, l *Limiter, a Attempt) string {
	t.Helper()
	ticket, err := l.Begin(t.Context(), a)
	if err != nil {
		t.Fatalf("the owner is refused: %v", err)
	}
	return l.Succeeded(t.Context(), ticket, ownerOf(a.Account))
}

// refusal returns the time after which a refused attempt may come back.
func refusal(t testing.TB, err error) time.Duration {
	t.Helper()
	var f *fault.Fault
	if !errors.Is(err, ErrTooManyAttempts) || !errors.As(err, &f) {
		t.Fatalf("refused with %v, want too_many_attempts", err)
	}
	if f.RetryAfter < time.Second || f.RetryAfter%time.Second != 0 {
		t.Fatalf("Retry-After of %v is not whole seconds", f.RetryAfter)
	}
	return f.RetryAfter
}

// address returns the n-th of many addresses.
func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

func name(n int) string { return fmt.Sprintf("user%05d", n) }

func TestDelaysBeginAfterTheFreeFailuresAndDouble(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for n := range 5 {
			if !guess(t, l, a) {
				t.Fatalf("failure %d is refused", n+1)
			}
		}
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
			_, err := l.Begin(t.Context(), a)
			if got := refusal(t, err); got != want*time.Second {
				t.Fatalf("come back after %v, want %v", got, want*time.Second)
			}
			w.clock.advance(want*time.Second - time.Millisecond)
			if guess(t, l, a) {
				t.Fatal("not refused before the delay is over")
			}
			w.clock.advance(time.Millisecond)
			if !guess(t, l, a) {
				t.Fatal("refused after the delay is over")
			}
		}
	})
}

func TestSuccessForgetsTheStreak(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for range 20 {
			for range 4 {
				if !guess(t, l, a) {
					t.Fatal("refused within the free failures")
				}
			}
			signIn(t, l, a)
		}
	})
}

func TestGuessesSentAtOnceAreNotMoreGuesses(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		passed := make([]*Ticket, 1000)
		var wg sync.WaitGroup
		for n := range passed {
			wg.Go(func() {
				passed[n], _ = l.Begin(context.Background(), Attempt{Account: "alice", Address: address(n)})
			})
		}
		wg.Wait() // no attempt has failed yet
		through := 0
		for _, ticket := range passed {
			if ticket != nil {
				through++
				l.Failed(t.Context(), ticket)
			}
		}
		if through != 20 {
			t.Fatalf("%d of 1000 guesses at once were compared, want the 20 free ones", through)
		}
		if guess(t, l, Attempt{Account: "alice", Address: address(2000)}) {
			t.Fatal("no delay after the free failures")
		}
	})
}

func TestGuessesAtOnceFromOneAddressAreNotMoreGuesses(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		var through atomic.Int64
		var wg sync.WaitGroup
		for n := range 1000 {
			wg.Go(func() {
				if _, err := l.Begin(context.Background(), Attempt{Account: name(n), Address: address(1)}); err == nil {
					through.Add(1)
				}
			})
		}
		wg.Wait()
		if n := through.Load(); n != 200 {
			t.Fatalf("%d of 1000 guesses at once were compared, want 200 for an address", n)
		}
	})
}

func TestRightPasswordsAreNeverLimitedHoweverManyAtOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		// No attempt has to come back, and those that wait are woken instead of polling.
		l.gates.patience, l.gates.recheckEvery = time.Minute, time.Hour
		var wg sync.WaitGroup
		for range w.fewer(300, 3) {
			wg.Go(func() {
				ticket, err := l.Begin(context.Background(), Attempt{Account: "alice", Address: address(1)})
				if err != nil {
					t.Errorf("a sign-in with the right password is refused: %v", err)
					return
				}
				l.Succeeded(context.Background(), ticket, ownerOf("alice"))
			})
		}
		wg.Wait()
		for n := range w.fewer(500, 10) {
			signIn(t, l, Attempt{Account: name(n), Address: address(1)})
		}
	})
}

func TestACancelledAttemptIsNoFailure(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for range w.fewer(300, 5) {
			ticket, err := l.Begin(t.Context(), a)
			if err != nil {
				t.Fatalf("refused although nothing has failed: %v", err)
			}
			l.Cancel(t.Context(), ticket)
		}
	})
}

func TestATicketEndsOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for range 5 {
			ticket, err := l.Begin(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			l.Failed(t.Context(), ticket)
			l.Cancel(t.Context(), ticket)
			l.Succeeded(t.Context(), ticket, ownerOf(a.Account))
		}
		if guess(t, l, a) {
			t.Fatal("ending a failed attempt again undid the failure")
		}
	})
}

func TestAnAttemptThatNeverEndsBecomesAFailure(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for range 5 {
			if _, err := l.Begin(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Begin(t.Context(), a); err == nil {
			t.Fatal("not refused although as many are in flight as may fail")
		}
		w.clock.advance(lease + time.Second)
		if !guess(t, l, a) { // the delay of one second after the fifth failure has passed too
			t.Fatal("a process that died keeps the account locked")
		}
		if guess(t, l, a) {
			t.Fatal("a reservation that never ended has been forgotten")
		}
	})
}

func TestThresholdsAreToldOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, told := w.node(defaults(t)), []int{}
		for n := 1; n <= 105; n++ {
			a := Attempt{Account: "alice", Address: address(n)}
			ticket, err := l.Begin(t.Context(), a)
			if err != nil {
				w.clock.advance(refusal(t, err))
				if ticket, err = l.Begin(t.Context(), a); err != nil {
					t.Fatal(err)
				}
			}
			lockedOut, until := l.Failed(t.Context(), ticket)
			if lockedOut {
				told = append(told, n)
			}
			if n >= 80 && !until.Equal(w.clock.now().Add(24*time.Hour)) {
				t.Fatalf("after %d failures refused until %v, want a day", n, until)
			}
		}
		if fmt.Sprint(told) != "[20 80]" {
			t.Fatalf("reported at failures %v, want [20 80]", told)
		}
	})
}

func TestAThresholdOfOneAddressIsToldWhetherItIsKnownOrNot(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		remember(t, l, "known", address(1))
		for _, account := range []string{"known", "unknown"} {
			told := 0
			for range 5 {
				ticket, err := l.Begin(t.Context(), Attempt{Account: account, Address: address(1)})
				if err != nil {
					t.Fatal(err)
				}
				if lockedOut, _ := l.Failed(t.Context(), ticket); lockedOut {
					told++
				}
			}
			if told != 1 {
				t.Fatalf("%s: reported %d times, want once", account, told)
			}
		}
	})
}

func TestAStreakIsForgottenAfterADayForEachFailure(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults(t)), Attempt{Account: "alice", Address: address(1)}
		for range 10 {
			for range 4 {
				if !guess(t, l, a) {
					t.Fatal("refused within the free failures")
				}
			}
			w.clock.advance(4*24*time.Hour - time.Millisecond)
			if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 4 {
				t.Fatalf("state %+v, %v, want 4 failures", s, err)
			}
			w.clock.advance(2 * time.Millisecond)
			if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 0 {
				t.Fatalf("state %+v, %v, want no failures", s, err)
			}
		}
	})
}

func TestUnlockClearsEveryLane(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		stolen := remember(t, l, "alice", address(1))
		for n := range 60 { // device, pair and account in turn
			guess(t, l, Attempt{Account: "alice", Address: address(1), DeviceToken: stolen})
			guess(t, l, Attempt{Account: "alice", Address: address(2 + n/5)})
		}
		a := Attempt{Account: "alice", Address: address(1)}
		if guess(t, l, a) {
			t.Fatal("not refused before Unlock")
		}
		s, err := l.State(t.Context(), "alice")
		if err != nil || s.Failures < 20 || !s.RefusedUntil.After(w.clock.now()) {
			t.Fatalf("state %+v, %v, want 20 failures and refused", s, err)
		}
		if err := l.Unlock(t.Context(), "alice"); err != nil {
			t.Fatal(err)
		}
		if s, err := l.State(t.Context(), "alice"); err != nil || s != (State{}) {
			t.Fatalf("state %+v, %v after Unlock, want none", s, err)
		}
		w.clock.advance(time.Millisecond)
		a.DeviceToken = stolen
		for n := range 10 { // five with the token, five from the address
			if !guess(t, l, a) {
				t.Fatalf("refused at failure %d after Unlock", n+1)
			}
		}
	})
}

// While a secret is replaced, servers count under two of them. A command shows and clears what any of them counted.
func TestUnlockClearsWhatIsCountedUnderAnotherSecret(t *testing.T) {
	t.Parallel()
	for engine, on := range map[string]func(*testing.T) *world{"redis": onRedis, "postgres": onPostgres} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			w := on(t)
			server := w.node(defaults(t))
			for n := range 30 {
				guess(t, server, Attempt{Account: "alice", Address: address(n)})
			}
			former := w.secret
			w.secret = config.Secret(rand.Text())
			command := w.nodeWith(defaults(t), Options{PreviousSecrets: []config.Secret{former}})
			s, err := command.State(t.Context(), "alice")
			if err != nil || s.Failures != 20 || !s.RefusedUntil.After(w.clock.now()) {
				t.Errorf("state %+v, %v, want 20 failures and refused", s, err)
			}
			if err := command.Unlock(t.Context(), "alice"); err != nil {
				t.Fatal(err)
			}
			if !guess(t, server, Attempt{Account: "alice", Address: address(99)}) {
				t.Error("refused after Unlock")
			}
		})
	}
}

// The secret with fewer failures may be the one under which servers refuse.
func TestTheStateIsTheWorstOfAllSecrets(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	present := w.secret
	wait := func(l *Limiter) {
		s, err := l.State(t.Context(), "alice")
		if err != nil || !s.RefusedUntil.After(w.clock.now()) {
			t.Fatalf("state %+v, %v", s, err)
		}
		w.clock.advance(s.RefusedUntil.Sub(w.clock.now()) + time.Millisecond)
	}
	server := w.node(defaults(t))
	for n := range 20 {
		guess(t, server, Attempt{Account: "alice", Address: address(n)})
	}
	wait(server)
	guess(t, server, Attempt{Account: "alice", Address: address(20)})
	wait(server)
	w.secret = config.Secret(rand.Text())
	other := w.node(defaults(t))
	for n := range 20 {
		guess(t, other, Attempt{Account: "alice", Address: address(n)})
	}
	former := w.secret
	w.secret = present
	command := w.nodeWith(defaults(t), Options{PreviousSecrets: []config.Secret{former}})
	s, err := command.State(t.Context(), "alice")
	if err != nil || s.Failures != 21 || !s.RefusedUntil.After(w.clock.now()) {
		t.Errorf("state %+v, %v, want 21 failures and refused", s, err)
	}
}

func TestRegistrationsAreOnlyLimitedWhenAskedFor(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		for range 1000 {
			if err := l.Register(t.Context(), address(1)); err != nil {
				t.Fatal(err)
			}
		}
		cfg := defaults(t)
		cfg.RegisterPerMinute = 10
		l = w.node(cfg)
		for n := range 10 {
			if err := l.Register(t.Context(), address(1)); err != nil {
				t.Fatalf("registration %d: %v", n+1, err)
			}
		}
		if after := refusal(t, l.Register(t.Context(), address(1))); after != 6*time.Second {
			t.Fatalf("come back after %v, want 6s", after)
		}
		if err := l.Register(t.Context(), address(2)); err != nil {
			t.Fatalf("another address: %v", err)
		}
		w.clock.advance(6 * time.Second)
		if err := l.Register(t.Context(), address(1)); err != nil {
			t.Fatalf("after the announced time: %v", err)
		}
	})
}

func TestSwitchedOffItRefusesNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		cfg := defaults(t)
		cfg.Enabled = false
		l, a := w.node(cfg), Attempt{Account: "alice", Address: address(1)}
		for range 1000 {
			if !guess(t, l, a) {
				t.Fatal("refused although switched off")
			}
		}
		if signIn(t, l, a) == "" {
			t.Fatal("no device token: nobody would have one when the throttle is switched on")
		}
	})
}

func TestTheLimitsFitEachOther(t *testing.T) {
	t.Parallel()
	if err := config.Check(&Config{}); err != nil {
		t.Fatal(err)
	}
	l := Limits{}.withDefaults()
	for what, holds := range map[string]bool{
		"strangers get delays before they are refused": l.AccountFree < l.strangersFailures(),
		"a delay is shorter than the lock":             l.BaseDelay < l.MaxDelay && l.MaxDelay < l.Lock,
		"a refusal is not forgotten before it ends":    l.MaxDelay <= l.Forget && l.Lock <= l.memory(),
		"a network is given at least what each address in it is": l.AddressBurst <= l.PrefixBurst &&
			l.AddressPerMinute <= l.PrefixPerMinute,
	} {
		if !holds {
			t.Errorf("not true: %s", what)
		}
	}
	if _, err := New(defaults(t), Options{}); err == nil {
		t.Error("New works without a secret")
	}
}
