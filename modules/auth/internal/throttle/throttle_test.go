package throttle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// clock is a time that only tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now().Truncate(time.Millisecond)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// defaults are the settings as their tags say.
func defaults() Config {
	return Config{Enabled: true, AccountFree: 20, PairFree: 5, DeviceFree: 5, BaseDelay: time.Second, MaxDelay: 15 * time.Minute,
		MaxFailures: 100, Lock: 24 * time.Hour, AddressBurst: 200, AddressPerMinute: 10, PrefixBurst: 800, PrefixPerMinute: 40,
		GlobalBurst: 2000, GlobalPerMinute: 600, Forget: 24 * time.Hour, Remember: 720 * time.Hour, Device: 4320 * time.Hour,
		MemoryEntries: 100_000}
}

// world is one set of counters and the clock they go by. Its nodes share what processes
// share through the store.
type world struct {
	t      testing.TB
	clock  *clock
	redis  *redis.Client // nil: in process
	secret config.Secret
}

// onBoth runs the test with the counters in this process and in Redis.
func onBoth(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, newWorld(t, nil))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, newWorld(t, dial(t, testenv.Redis(t))))
	})
}

// A secret of its own gives every test counters of its own.
func newWorld(t testing.TB, client *redis.Client) *world {
	return &world{t: t, clock: newClock(), redis: client, secret: config.Secret(rand.Text())}
}

func dial(t testing.TB, url string) *redis.Client {
	t.Helper()
	opt, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	opt.ContextTimeoutEnabled = true
	client := redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func (w *world) node(cfg Config) *Limiter {
	w.t.Helper()
	opt := Options{Secret: w.secret, Now: w.clock.now}
	if w.redis != nil {
		opt.Redis = w.redis
	}
	l, err := New(cfg, opt)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.redis != nil {
		l.shared.clock = w.clock.now
	}
	l.patience = 50 * time.Millisecond
	return l
}

// guess tries a wrong password and reports whether it was let through to be compared.
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

// signIn gives the right password and returns the device token.
func signIn(t testing.TB, l *Limiter, a Attempt) string {
	t.Helper()
	ticket, err := l.Begin(t.Context(), a)
	if err != nil {
		t.Fatalf("the owner is refused: %v", err)
	}
	return l.Succeeded(t.Context(), ticket)
}

// refusal returns after how long a refused attempt may come back.
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
	onBoth(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults()), Attempt{Account: "alice", Address: address(1)}
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
				t.Fatal("let through before the delay is over")
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
	onBoth(t, func(t *testing.T, w *world) {
		l, a := w.node(defaults()), Attempt{Account: "alice", Address: address(1)}
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
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults())
		passed := make([]*Ticket, 1000)
		var wg sync.WaitGroup
		for n := range passed {
			wg.Go(func() {
				passed[n], _ = l.Begin(context.Background(), Attempt{Account: "alice", Address: address(n)})
			})
		}
		wg.Wait() // nobody has failed yet
		through := 0
		for _, ticket := range passed {
			if ticket != nil {
				through++
				l.Failed(t.Context(), ticket)
			}
		}
		if through != 20 {
			t.Fatalf("%d of 1000 guesses at once were let through, want the 20 free ones", through)
		}
		if guess(t, l, Attempt{Account: "alice", Address: address(2000)}) {
			t.Fatal("no delay after the free failures")
		}
	})
}
