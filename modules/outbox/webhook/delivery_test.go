package webhook

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// taker is a receiver that verifies what it gets and remembers what it has acknowledged.
type taker struct {
	t      testing.TB
	key    []byte // the key of the secret
	short  bool   // attempts may be given up while this receiver still works on them
	answer func(w http.ResponseWriter, r *http.Request, key string, attempt int) (taken bool)

	mu       sync.Mutex
	taken    map[string][]string // sequences by key, in order
	attempts map[string]int      // by key
	now      map[string]bool     // keys with a request in flight
	problems []string
}

func newTaker(t testing.TB) *taker {
	t.Helper()
	keys, err := seals(t).keys(target(t, ""), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &taker{t: t, key: keys[0], taken: map[string][]string{}, attempts: map[string]int{}, now: map[string]bool{}}
}

func (k *taker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the lease ended before the event was sent, or the attempt was given up
	}
	seconds, err := strconv.ParseInt(r.Header.Get("Webhook-Timestamp"), 10, 64)
	want := sign([][]byte{k.key}, r.Header.Get("Webhook-Id"), time.Unix(seconds, 0), body)
	var event struct{ ID, Subject, Sequence string }
	if err := json.Unmarshal(body, &event); err != nil || event.ID != r.Header.Get("Webhook-Id") {
		k.problem("the body is %s: %v", body, err)
	}
	if err != nil || !hmac.Equal([]byte(want), []byte(r.Header.Get("Webhook-Signature"))) {
		k.problem("the signature of %s is wrong", event.ID)
	}
	key := event.Subject
	k.mu.Lock()
	if k.now[key] && !k.short {
		k.problems = append(k.problems, "two requests of "+key+" are under way")
	}
	k.now[key] = true
	k.attempts[key]++
	attempt := k.attempts[key]
	k.mu.Unlock()
	taken := false
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.now[key] = false
		if list := k.taken[key]; taken && !(k.short && slices.Contains(list, event.Sequence)) {
			k.taken[key] = append(list, event.Sequence)
		}
	}()
	taken = k.answer == nil || k.answer(w, r, key, attempt)
}

func (k *taker) problem(format string, a ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problems = append(k.problems, fmt.Sprintf(format, a...))
}

func (k *taker) has(key string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(k.taken[key], " ")
}

func (k *taker) check(t testing.TB) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, problem := range k.problems {
		t.Error(problem)
	}
}

func subscribe(t testing.TB, db *database.DB, url string) {
	t.Helper()
	hook := target(t, url)
	_, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{Name: hook.Name, Kind: outbox.KindWebhook, URL: url,
		Types: hook.Types, Secrets: hook.Secrets})
	if err != nil {
		t.Fatal(err)
	}
}

// deliver runs a deliverer to webhooks until the test ends.
func deliver(t testing.TB, db *database.DB, to *Sink) {
	t.Helper()
	opt := delivery.Options{}
	if test, is := t.(*testing.T); is {
		opt.Log = zaptest.NewLogger(test)
	}
	d, err := delivery.New(db, map[string]delivery.Sink{outbox.KindWebhook: to},
		delivery.Config{Lease: 20 * time.Second, Pause: 20 * time.Millisecond}, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the deliverer ended with: %v", err)
		}
	})
}

// With 50 keys 50 requests are in flight at once, one per key: a receiver that takes a tenth of a
// second gets 500 events a second.
func TestARequestForEachKeyIsUnderWayAtOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const keys = 50
		k := newTaker(t)
		var together sync.WaitGroup
		together.Add(keys)
		k.answer = func(_ http.ResponseWriter, _ *http.Request, _ string, attempt int) bool {
			if attempt == 1 {
				together.Done()
				together.Wait()
			}
			return true
		}
		subscribe(t, db, receiver(t, k.ServeHTTP))
		var names []string
		for i := range keys {
			names = append(names, fmt.Sprint("k", i))
		}
		for range 3 {
			outboxtest.AddKeys(t, db, names...)
		}
		deliver(t, db, open(t, Options{Timeout: testenv.Patience}))
		for _, key := range names {
			testenv.Eventually(t, "the events of "+key, func() bool { return k.has(key) == "1 2 3" })
		}
		k.check(t)
	})
}

// A receiver misbehaves for some keys in every way. In the end it gets all events, in order for
// each key, and the other keys' events come meanwhile.
func TestAReceiverThatMisbehavesGetsEveryEventInOrder(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		k := newTaker(t)
		k.short = true
		healed := make(chan struct{})
		k.answer = func(w http.ResponseWriter, r *http.Request, key string, attempt int) bool {
			select {
			case <-healed:
				return true
			default:
			}
			switch key {
			case "fails":
				w.WriteHeader(500)
			case "hangs":
				<-r.Context().Done()
			case "closes":
				panic(http.ErrAbortHandler)
			case "redirects":
				http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
			case "is busy":
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(429)
			case "recovers":
				if attempt > 3 {
					return true
				}
				w.WriteHeader(503)
			default:
				return true
			}
			return false
		}
		subscribe(t, db, receiver(t, k.ServeHTTP))
		bad, good := []string{"fails", "hangs", "closes", "redirects", "is busy"}, []string{"recovers", "a", "b", "c"}
		for range 3 {
			outboxtest.AddKeys(t, db, append(slices.Clone(bad), good...)...)
		}
		deliver(t, db, open(t, Options{Timeout: 2 * time.Second}))
		for _, key := range good {
			testenv.Eventually(t, "the events of "+key, func() bool { return k.has(key) == "1 2 3" })
		}
		for _, key := range bad {
			if has := k.has(key); has != "" {
				t.Errorf("%s has %s", key, has)
			}
			testenv.Eventually(t, key+" is tried again", func() bool {
				k.mu.Lock()
				defer k.mu.Unlock()
				return k.attempts[key] > 1
			})
		}
		close(healed)
		for _, key := range bad {
			testenv.Eventually(t, "the events of "+key, func() bool { return k.has(key) == "1 2 3" })
		}
		k.check(t)
	})
}

// An event that is not valid JSON, which no writer can create, waits for a person and holds up no
// other key.
func TestAnEventThatIsNoJSONParksItsKeyAlone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		k := newTaker(t)
		subscribe(t, db, receiver(t, k.ServeHTTP))
		outboxtest.AddKeys(t, db, "damaged", "good")
		if _, err := db.ExecContext(t.Context(),
			`UPDATE outbox_event SET data = '{' WHERE key = 'damaged'`); err != nil {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "damaged", "good")
		deliver(t, db, open(t, Options{}))
		testenv.Eventually(t, "the good one goes on", func() bool { return k.has("good") == "1 2" })
		testenv.Eventually(t, "the damaged one is parked", func() bool {
			list, err := outbox.Deliveries(t.Context(), db)
			return err == nil && slices.ContainsFunc(list, func(s outbox.DeliveryState) bool {
				return s.ParkedKeys == 1 && s.Waiting == 2 && strings.Contains(s.LastError, "JSON")
			})
		})
		k.check(t)
	})
}

func TestAReceiverThatIsGonePausesTheTarget(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		k := newTaker(t)
		back := make(chan struct{})
		k.answer = func(w http.ResponseWriter, _ *http.Request, _ string, _ int) bool {
			select {
			case <-back:
				return true
			default:
				w.WriteHeader(http.StatusGone)
				return false
			}
		}
		subscribe(t, db, receiver(t, k.ServeHTTP))
		outboxtest.AddKeys(t, db, "a", "b")
		deliver(t, db, open(t, Options{}))
		testenv.Eventually(t, "the target is paused", func() bool {
			s, err := outbox.FindSubscription(t.Context(), db, "hook")
			return err == nil && s.State == "paused" && strings.Contains(s.Reason, "410")
		})
		close(back)
		if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"a", "b"} {
			testenv.Eventually(t, "the event of "+key, func() bool { return k.has(key) == "1" })
		}
		k.check(t)
	})
}

// BenchmarkASlowReceiver measures how much one relay sends to a receiver that takes 100 ms per
// answer.
func BenchmarkASlowReceiver(b *testing.B) {
	for name, openDB := range map[string]func(testing.TB) *database.DB{"sqlite": dbtest.SQLite,
		"postgres": dbtest.Postgres} {
		b.Run(name, func(b *testing.B) {
			db := openDB(b)
			k := newTaker(b)
			left := make(chan struct{}, 1<<20)
			k.answer = func(http.ResponseWriter, *http.Request, string, int) bool {
				time.Sleep(100 * time.Millisecond)
				left <- struct{}{}
				return true
			}
			server := httptest.NewServer(k)
			defer server.Close()
			subscribe(b, db, server.URL)
			const keys = 1000
			names := make([]string, keys)
			for i := range names {
				names[i] = fmt.Sprint("k", i)
			}
			events := 0
			for events < max(b.N, 3*keys) {
				outboxtest.AddKeys(b, db, names...)
				events += keys
			}
			b.ResetTimer()
			start := time.Now()
			deliver(b, db, open(b, Options{}))
			for range events {
				<-left
			}
			b.ReportMetric(float64(events)/time.Since(start).Seconds(), "events/s")
			k.check(b)
		})
	}
}
