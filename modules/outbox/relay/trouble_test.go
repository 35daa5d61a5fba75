package relay

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestTroubleIsSaidOnceAndNotForTrifles(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	tr := trouble{log: zap.New(core), now: func() time.Time { return now }}
	said := func(want int) {
		t.Helper()
		if got := logs.Len(); got != want {
			t.Fatalf("%d lines, want %d: %v", got, want, logs.All())
		}
	}
	boom := errors.New("boom")
	tr.begin(1, "retry", boom)
	tr.over(1)
	said(0) // a trifle
	tr.begin(1, "retry", boom)
	tr.begin(2, "retry", boom)
	now = now.Add(2 * time.Second)
	tr.begin(1, "retry", boom)
	tr.begin(2, "retry", boom)
	said(1)
	now = now.Add(time.Minute)
	tr.begin(1, "retry", boom)
	said(2) // still
	tr.over(1)
	said(2) // not all of it
	tr.over(2)
	said(3)
	tr.begin(3, "topic", boom) // nothing that mends itself
	said(4)
}

// The shards of a partition go to another relay while the target is away: that ends the
// trouble here, and it is said. What is still this relay's goes on.
func TestTroubleEndsWithTheLease(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	db := dbtest.SQLite(t)
	r, err := New(db, &counting{partitions: 4}, Config{}, Options{Log: zap.New(core), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	r.partitions, r.lanes = 4, make([]lane, 4)
	r.held = map[int]*shard{1: {id: 1}, 2: {id: 2}, 6: {id: 6}}
	boom := errors.New("boom")
	r.trouble.begin(1, "topic", boom)
	r.trouble.begin(2, "topic", boom)
	last := func(want string) {
		t.Helper()
		if all := logs.All(); len(all) == 0 || all[len(all)-1].Message != want {
			t.Errorf("the last line is not %q: %v", want, all)
		}
	}
	renew := func(kept ...int) {
		var held, claims []claim
		for id := range r.held {
			held = append(held, claim{shard: id})
		}
		for _, id := range kept {
			claims = append(claims, claim{shard: id})
		}
		r.applyTick(now, held, tickResult{claims: claims})
	}
	renew(2, 6)
	renew(6)
	last("lost shards to another relay")
	renew()
	var messages []string
	for _, e := range logs.All() {
		messages = append(messages, e.Message)
	}
	if !slices.Contains(messages, "the events that could not be published are another relay's now") {
		t.Errorf("the end is not said: %v", messages)
	}
	// The next time is a time of its own, and its end the usual one.
	now = now.Add(time.Hour)
	r.trouble.begin(3, "topic", boom)
	now = now.Add(time.Second)
	r.trouble.over(3)
	last("events are published again")
	if d := logs.All()[logs.Len()-1].ContextMap()["after"]; d != time.Second {
		t.Errorf("after %v", d)
	}
}

func TestTroubleThatPeopleAreTold(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	tr := trouble{log: zap.NewNop(), now: func() time.Time { return now }}
	worst := func(want string) {
		t.Helper()
		h, any := tr.worst()
		if got := h.kind; got != want || any != (want != "") {
			t.Errorf("told %q (%v), want %q", got, any, want)
		}
	}
	boom := errors.New("boom")
	tr.begin(1, "retry", boom)
	worst("") // a trifle
	now = now.Add(2 * time.Second)
	tr.begin(1, "retry", boom)
	worst("retry")
	tr.begin(2, "topic", boom)
	worst("topic") // needs a person
	now = now.Add(time.Second)
	tr.begin(0, "clock", boom)
	worst("topic") // for longer
	tr.over(2)
	worst("clock")
	tr.keep(map[int]bool{1: true})
	worst("retry")
	tr.begin(databaseTrouble, "database", boom)
	tr.over(1)
	worst("") // that the database is away cannot be told to it

	reg := prometheus.NewRegistry()
	reg.MustRegister(&tr)
	now = now.Add(7 * time.Second)
	tr.begin(1, "retry", boom)
	now = now.Add(3 * time.Second)
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != len(outbox.Kinds) {
		t.Fatalf("%v, %v", families, err)
	}
	for _, m := range families[0].GetMetric() {
		want := map[string]float64{"retry": 3, "database": 10}[m.GetLabel()[0].GetValue()]
		if got := m.GetGauge().GetValue(); got != want {
			t.Errorf("%v: %v seconds, want %v", m.GetLabel(), got, want)
		}
	}
}

// Whatever a broker says goes into a column, on one line of bounded length.
func TestErrorTextFitsItsColumn(t *testing.T) {
	t.Parallel()
	got := errorText(errors.New("a\x00b\nc\xff" + strings.Repeat("ü", maxErrorText)))
	if !strings.HasPrefix(got, "a?b c?ü") || !utf8.ValidString(got) || len(got) > maxErrorText+len("…") {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}

// failing is a sink that fails as it is told.
type failing struct {
	*counting
	mu       sync.Mutex
	opens    error
	publish  error
	attempts atomic.Int64
}

func (f *failing) set(opens, publish error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opens, f.publish = opens, publish
}

func (f *failing) Partitions(ctx context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.partitions, f.opens
}

func (f *failing) Publish(ctx context.Context, b *Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.publish != nil {
		return fmt.Errorf("attempt %d: %w", f.attempts.Add(1), f.publish)
	}
	return f.counting.Publish(ctx, b)
}

// What keeps a relay from publishing can be read in the database while it lasts, from the
// start on and under way, and the last word of a relay stays.
func TestTroubleIsToldToTheDatabase(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := &failing{counting: &counting{partitions: 4, seen: make(chan Record, 100)}}
		state := func() outbox.State {
			t.Helper()
			st, err := outbox.Status(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		told := func(want string) {
			t.Helper()
			for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(5 * time.Millisecond) {
				got := ""
				for _, trouble := range state().Trouble {
					got += fmt.Sprintf("%s %s %v %s|", trouble.Relay, trouble.Kind, trouble.Lasts, trouble.Error)
					if trouble.Target != "test" || trouble.Since.IsZero() || time.Since(trouble.Since).Abs() > testenv.Patience {
						t.Fatalf("told %+v", trouble)
					}
				}
				if regexp.MustCompile("^" + want + "$").MatchString(got) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("told %q, want %q", got, want)
				}
			}
		}
		run := func(cfg Config) (stop func(), ended <-chan error) {
			r, err := New(db, s, cfg, Options{Name: "r"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			return cancel, done
		}
		s.set(&Stalled{Kind: "topic", Err: errors.New("make the topic")}, nil)
		outboxtest.AddKeys(t, db, "a")
		stop, ended := run(Config{})
		told(`r topic true ask test for its partitions: make the topic\|`)
		s.set(nil, errors.New("no broker answers"))
		told(`r retry true attempt \d+: no broker answers\|`)
		s.set(nil, &Stalled{Kind: "authorization", Err: errors.New("allow it")})
		told(`r authorization true attempt \d+: allow it\|`)
		s.set(nil, nil)
		told("")
		if n := state().Pending; n != 0 {
			t.Errorf("%d events wait", n)
		}
		s.set(nil, &Stalled{Kind: "clock", Err: errors.New("set it right")})
		outboxtest.AddKeys(t, db, "a")
		told(`r clock true .*\|`)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		told(`r clock false .*set it right\|`)
		_, ended = run(Config{Shards: 12})
		if err := <-ended; !errors.Is(err, outbox.ErrShards) {
			t.Errorf("ended with %v, want ErrShards", err)
		}
		told(`r clock false .*\|r shards false .*outbox.shards is 12.*\|`)
		if _, err := db.Write(t.Context(), `UPDATE outbox_trouble SET until_ms = CASE WHEN kind = 'clock' THEN 1000 ELSE until_ms + 100000000 END`); err != nil {
			t.Fatal(err)
		}
		if err := forgetTroubles(t.Context(), db); err != nil {
			t.Error(err)
		}
		told("")
	})
}

// However often a relay fails, and whatever it is told each time, the database hears of it
// when it begins and a few times a minute.
func TestTroubleIsNotToldForEveryAttempt(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	if _, err := db.Write(t.Context(), `CREATE TABLE told (n integer); CREATE TRIGGER told AFTER INSERT ON outbox_trouble BEGIN INSERT INTO told VALUES (1); END;
		CREATE TRIGGER again AFTER UPDATE ON outbox_trouble BEGIN INSERT INTO told VALUES (2); END`); err != nil {
		t.Fatal(err)
	}
	s := &failing{counting: &counting{partitions: 96}}
	s.set(nil, errors.New("no broker answers"))
	var keys []string
	for i := range 300 {
		keys = append(keys, fmt.Sprint(i))
	}
	outboxtest.AddKeys(t, db, keys...)
	r, err := New(db, s, Config{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for deadline := time.Now().Add(testenv.Patience); s.attempts.Load() < 500; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d attempts", s.attempts.Load())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM told`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if most := 2 + int(time.Since(start)/troubleRepeat); n < 1 || n > most {
		t.Errorf("told %d times, at most %d are right", n, most)
	}
}
