package relay_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/testenv"
)

// startRelay runs a relay until the returned function is called or the test ends.
func startRelay(t testing.TB, db *database.DB, s relay.Sink, cfg relay.Config, opt relay.Options) (stop func()) {
	t.Helper()
	if opt.Log == nil {
		opt.Log = zaptest.NewLogger(t)
	}
	reg := prometheus.NewRegistry()
	opt.Registry = reg
	r, err := relay.New(db, s, cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	relay.SweepOften(r)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the relay ended with: %v", err)
		}
		if n := outboxtest.Metric(t, reg, "authctl_outbox_sweep_found_total"); n != 0 {
			t.Errorf("%v events were below the watermark", n)
		}
	})
	t.Cleanup(stop)
	return stop
}

func file(t testing.TB) (relay.Sink, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	return fileAt(t, path), path
}

func fileAt(t testing.TB, path string) relay.Sink {
	t.Helper()
	s, err := sink.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pending(t testing.TB, db *database.DB) (n int64) {
	t.Helper()
	st, err := outbox.Status(context.Background(), db)
	if err != nil {
		t.Fatal(err)
	}
	return st.Pending
}

func drained(t testing.TB, db *database.DB) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); pending(t, db) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			st, err := outbox.Status(context.Background(), db)
			t.Fatalf("the outbox is not empty after a minute: %d pending, relays %+v, first shards %+v, %v", st.Pending,
				st.Relays, st.Shards[:3], err)
		}
	}
}

func checkFile(t testing.TB, log *outboxtest.Log, path string, duplicates int) {
	t.Helper()
	seen, err := outboxtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	report := outboxtest.Check(log.All(), seen)
	t.Log(report)
	if !report.Sound(duplicates) || report.Written == 0 {
		t.Error("promises were broken")
	}
}

// calm is for tests in which nothing may come twice: a lease that a busy machine does not renew in time brings
// duplicates.
var calm = relay.Config{Lease: 30 * time.Second}

// Writers and two relays run at once, and relays come and go in order. Nothing is lost, out of
// order or duplicated.
func TestRelayKeepsEveryPromiseWithoutFaults(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s, path := file(t)
		waker := relay.NewWaker(db)
		t.Cleanup(waker.Close)
		log := &outboxtest.Log{}
		w := outboxtest.Workload{DB: db, Log: log, Writers: 6, Keys: 20, Limit: 3000, Wake: waker.Wake}
		stopFirst := startRelay(t, db, s, calm, relay.Options{Waker: waker, Name: "first"})
		var wg sync.WaitGroup
		wg.Go(func() { w.Run(t.Context()) })
		testenv.Eventually(t, "the first thousand", func() bool { return log.Committed() > 1000 })
		startRelay(t, db, fileAt(t, path), calm, relay.Options{Name: "second"})
		testenv.Eventually(t, "the next thousand", func() bool { return log.Committed() > 2000 })
		stopFirst()
		wg.Wait()
		drained(t, db)
		checkFile(t, log, path, 0)
	})
}

// Whoever adds an event need not wake the relay: it polls, even if it is woken for other keys all the time.
func TestRelayPollsWhileItIsWoken(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s, _ := file(t)
		waker := relay.NewWaker(db)
		t.Cleanup(waker.Close)
		// Renewing its leases, it looks at everything as well.
		startRelay(t, db, s, relay.Config{Lease: time.Hour}, relay.Options{Waker: waker})
		outboxtest.AddKeys(t, db, "first")
		drained(t, db)
		ctx, stop := context.WithCancel(t.Context())
		var waking sync.WaitGroup
		waking.Go(func() {
			for ctx.Err() == nil {
				waker.Wake("other")
				retry.Sleep(ctx, time.Millisecond)
			}
		})
		defer waking.Wait()
		defer stop()
		for range 20 {
			outboxtest.AddKeys(t, db, uuid.NewString())
			drained(t, db)
		}
	})
}
