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

func TestAnOutageIsLoggedOnceAndATrifleIsNot(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	o := outages{log: zap.New(core), now: func() time.Time { return now }}
	logged := func(want int) {
		t.Helper()
		if got := logs.Len(); got != want {
			t.Fatalf("%d lines, want %d: %v", got, want, logs.All())
		}
	}
	boom := errors.New("boom")
	o.begin(1, "retry", boom)
	o.resolved(1)
	logged(0) // a short outage
	o.begin(1, "retry", boom)
	o.begin(2, "retry", boom)
	now = now.Add(2 * time.Second)
	o.begin(1, "retry", boom)
	o.begin(2, "retry", boom)
	logged(1)
	now = now.Add(time.Minute)
	o.begin(1, "retry", boom)
	logged(2) // still
	o.resolved(1)
	logged(2) // only some of them
	o.resolved(2)
	logged(3)
	o.begin(3, "topic", boom) // it needs a person
	logged(4)
}

// The log tells an outage that waits for a person from one that passes.
func TestTheNameOfAnOutageTellsWhoIsNeeded(t *testing.T) {
	t.Parallel()
	for kind, name := range map[string]string{
		"database": "relay_database_away", "retry": "relay_target_away", "topic": "relay_stalled",
		"rights": "relay_stalled",
	} {
		core, logs := observer.New(zap.DebugLevel)
		now := time.Unix(1000, 0)
		o := outages{log: zap.New(core), now: func() time.Time { return now }}
		o.begin(1, kind, errors.New("boom"))
		now = now.Add(2 * time.Second)
		o.begin(1, kind, errors.New("boom"))
		if lines := logs.All(); len(lines) != 1 || lines[0].Message != name || lines[0].ContextMap()["kind"] != kind {
			t.Errorf("%s: %v", kind, lines)
		}
	}
}

// The shards of a partition move to another relay while the target is down. That ends the outage of
// this relay, and the log says so. Outages of its other partitions continue.
func TestAnOutageEndsWithTheLease(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	db := dbtest.SQLite(t)
	r, err := New(db, &counting{partitions: 4}, Config{}, Options{Log: zap.New(core),
		Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	r.partitions, r.workers = 4, make([]partitionWorker, 4)
	r.held = map[int]*shard{1: {id: 1}, 2: {id: 2}, 6: {id: 6}}
	boom := errors.New("boom")
	r.outages.begin(1, "topic", boom)
	r.outages.begin(2, "topic", boom)
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
	last("relay_shards_lost")
	renew()
	var messages []string
	for _, e := range logs.All() {
		messages = append(messages, e.Message)
	}
	if !slices.Contains(messages, "relay_outage_left_to_others") {
		t.Errorf("the end is not logged: %v", messages)
	}
	// The next outage is a new one, with an ordinary end.
	now = now.Add(time.Hour)
	r.outages.begin(3, "topic", boom)
	now = now.Add(time.Second)
	r.outages.resolved(3)
	last("relay_outage_ended")
	if d := logs.All()[logs.Len()-1].ContextMap()["lasted"]; d != time.Second {
		t.Errorf("it lasted %v", d)
	}
}

func TestTheWorstOutageIsReported(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	o := outages{log: zap.NewNop(), now: func() time.Time { return now }}
	worst := func(want string) {
		t.Helper()
		h, any := o.worst()
		if got := h.kind; got != want || any != (want != "") {
			t.Errorf("the worst is %q (%v), want %q", got, any, want)
		}
	}
	boom := errors.New("boom")
	o.begin(1, "retry", boom)
	worst("") // a short outage
	now = now.Add(2 * time.Second)
	o.begin(1, "retry", boom)
	worst("retry")
	o.begin(2, "topic", boom)
	worst("topic") // needs a person
	now = now.Add(time.Second)
	o.begin(0, "clock", boom)
	worst("topic") // it has lasted longer
	o.resolved(2)
	worst("clock")
	o.keep(map[int]bool{1: true})
	worst("retry")
	o.begin(databaseOutage, "database", boom)
	o.resolved(1)
	worst("") // an outage of the database cannot be reported to it

	reg := prometheus.NewRegistry()
	reg.MustRegister(&o)
	now = now.Add(7 * time.Second)
	o.begin(1, "retry", boom)
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

// Any text of a broker fits the column, as one line of limited length.
func TestErrorTextFitsItsColumn(t *testing.T) {
	t.Parallel()
	got := outbox.ErrorText(errors.New("a\x00b\nc\xff" + strings.Repeat("ü", 1000)))
	if !strings.HasPrefix(got, "a?b c?ü") || !utf8.ValidString(got) || len(got) > 1000+len("…") {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}

// failing is a sink that fails as the test says.
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

// While an outage lasts, the database says what keeps the relay from publishing, at the start and
// later. A relay's last report stays.
func TestOutagesAreReportedToTheDatabase(t *testing.T) {
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
		reported := func(want string) {
			t.Helper()
			for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(5 * time.Millisecond) {
				got := ""
				for _, o := range state().Outages {
					got += fmt.Sprintf("%s %s %v %s|", o.Relay, o.Kind, o.Lasts, o.Error)
					if o.Target != "test" || o.Since.IsZero() || time.Since(o.Since).Abs() > testenv.Patience {
						t.Fatalf("reported %+v", o)
					}
				}
				if regexp.MustCompile("^" + want + "$").MatchString(got) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("reported %q, want %q", got, want)
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
		reported(`r topic true ask test for its partitions: make the topic\|`)
		s.set(nil, errors.New("no broker answers"))
		reported(`r retry true attempt \d+: no broker answers\|`)
		s.set(nil, &Stalled{Kind: "authorization", Err: errors.New("allow it")})
		reported(`r authorization true attempt \d+: allow it\|`)
		s.set(nil, nil)
		reported("")
		if n := state().Pending; n != 0 {
			t.Errorf("%d events wait", n)
		}
		s.set(nil, &Stalled{Kind: "clock", Err: errors.New("set it right")})
		outboxtest.AddKeys(t, db, "a")
		reported(`r clock true .*\|`)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		reported(`r clock false .*set it right\|`)
		_, ended = run(Config{Shards: 12})
		if err := <-ended; !errors.Is(err, outbox.ErrShards) {
			t.Errorf("ended with %v, want ErrShards", err)
		}
		reported(`r clock false .*\|r shards false .*outbox.shards is 12.*\|`)
		if _, err := db.Write(t.Context(),
			`UPDATE outbox_trouble SET until_ms = CASE WHEN kind = 'clock' THEN 1000 ELSE until_ms + 100000000 END`); err != nil {
			t.Fatal(err)
		}
		if err := forgetOutages(t.Context(), db); err != nil {
			t.Error(err)
		}
		reported("")
	})
}

// silent is a sink that takes a batch and answers only when the test lets it.
type silent struct {
	*counting
	first  time.Time // when the first batch came
	answer chan error
}

func (s *silent) Publish(ctx context.Context, b *Batch) error {
	if s.first.IsZero() {
		s.first = time.Now()
	}
	if err := <-s.answer; err != nil {
		return err
	}
	return s.counting.Publish(ctx, b)
}

// A frozen broker takes connections and requests. Nothing fails before the time limits of Kafka, and until then status
// must not look as if all were well. The report names the time at which the batch was sent.
func TestATargetThatDoesNotAnswerIsReported(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	core, logs := observer.New(zap.InfoLevel)
	s := &silent{counting: &counting{partitions: 1, seen: make(chan Record, 100)}, answer: make(chan error)}
	r, err := New(db, s, Config{}, Options{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	r.outages.patience = 1500 * time.Millisecond // an outage that passes is reported after a second
	defer start(t, r)()
	defer close(s.answer)
	outboxtest.AddKeys(t, db, "a")
	reported := func(want string) {
		t.Helper()
		testenv.Eventually(t, "reported: "+want, func() bool {
			st, err := outbox.Status(t.Context(), db)
			if err != nil || len(st.Outages) == 0 {
				return err == nil && want == ""
			}
			o := st.Outages[0]
			return o.Lasts && o.Kind == "retry" && o.Error == want
		})
	}
	reported("test has not answered for 1.5s")
	if logs.FilterMessage("relay_target_away").Len() != 1 {
		t.Errorf("the log says %v", logs.All())
	}
	s.answer <- errors.New("read: i/o timeout")
	testenv.Eventually(t, "the error of the attempt", func() bool {
		later, any := r.outages.worst()
		return any && later.err.Error() == "read: i/o timeout" && !later.since.After(s.first)
	})
	s.answer <- nil
	reported("")
	s.wait(t, 1)
}

// However often a relay fails, and with whatever error, it writes to the database only when the
// outage begins and a few times a minute.
func TestAnOutageIsNotReportedForEveryAttempt(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	if _, err := db.Write(t.Context(),
		`CREATE TABLE written (n integer); CREATE TRIGGER written AFTER INSERT ON outbox_trouble BEGIN INSERT INTO written VALUES (1); END;
		CREATE TRIGGER again AFTER UPDATE ON outbox_trouble BEGIN INSERT INTO written VALUES (2); END`); err != nil {
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
	begun := time.Now()
	stop := start(t, r)
	for deadline := time.Now().Add(testenv.Patience); s.attempts.Load() < 500; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d attempts", s.attempts.Load())
		}
	}
	stop()
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM written`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if most := 2 + int(time.Since(begun)/repeatReport); n < 1 || n > most {
		t.Errorf("reported %d times, want 1 to %d", n, most)
	}
}

// A role may lack a right for one thing alone, as after a migration. That leases are renewed does not end the outage.
func TestAnOutageOfOneStatementLasts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ refuse, allow string }{
		"fetch": {`ALTER TABLE outbox_pending RENAME TO away`, `ALTER TABLE away RENAME TO outbox_pending`},
		"acknowledge": {`CREATE TRIGGER refuse BEFORE DELETE ON outbox_pending BEGIN SELECT raise(ABORT, 'no'); END`,
			`DROP TRIGGER refuse`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.SQLite(t)
			core, logs := observer.New(zap.InfoLevel)
			s := &counting{partitions: 1, seen: make(chan Record, 100)}
			r, err := New(db, s, Config{Lease: time.Second}, Options{Log: zap.New(core)})
			if err != nil {
				t.Fatal(err)
			}
			defer start(t, r)()
			outboxtest.AddKeys(t, db, "a")
			s.wait(t, 1)
			logged := func(want string) {
				t.Helper()
				testenv.Eventually(t, want, func() bool {
					return want == fmt.Sprint(logs.FilterMessage("relay_database_away").Len(),
						logs.FilterMessage("relay_outage_ended").Len())
				})
			}
			if _, err := db.ExecContext(t.Context(), c.refuse); err != nil {
				t.Fatal(err)
			}
			if name == "acknowledge" {
				outboxtest.AddKeys(t, db, "b")
			}
			logged("1 0")
			if _, err := db.ExecContext(t.Context(), c.allow); err != nil {
				t.Fatal(err)
			}
			logged("1 1")
		})
	}
}
