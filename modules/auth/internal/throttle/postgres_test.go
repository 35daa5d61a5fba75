package throttle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/batch"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// What PostgreSQL stores means the same when it is read again.
func TestPostgresGivesTheSameAnswers(t *testing.T) {
	t.Parallel()
	answers := map[string]int{}
	w := onPostgres(t)
	sharedAsLocal(t, w, w.node(tight(t)), rand.New(rand.NewPCG(6, 2)), 2000, answers)
	everyAnswer(t, answers, 1)
}

// crowd makes the attempts all at once, spread over the nodes, and ends none.
func crowd(nodes []*Limiter, attempts []Attempt) (passed []*Ticket) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n, a := range attempts {
		wg.Go(func() {
			ticket, err := nodes[n%len(nodes)].Begin(context.Background(), a)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			passed = append(passed, ticket)
		})
	}
	wg.Wait()
	return passed
}

// Several servers get attempts at the same moment, from strangers and with many tokens.
func TestServersOnOnePostgresGiveNoRoomAwayTwice(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	cfg := defaults(t)
	nodes := []*Limiter{w.node(cfg), w.node(cfg), w.node(cfg)}
	for round := range 4 {
		var strangers, hoard []Attempt
		for n := range 120 {
			strangers = append(strangers, Attempt{Account: name(round), Address: address(n)})
			a := Attempt{Account: "rich" + name(round), Address: address(1000)}
			a.DeviceToken = remember(t, nodes[n%3], a.Account, address(1000+n))
			hoard = append(hoard, a)
		}
		if n := len(crowd(nodes, strangers)); n != 20 {
			t.Fatalf("round %d: %d guesses of strangers at once, want the 20 of one server", round, n)
		}
		// 20 with tokens, plus what one address may have as a stranger.
		if n := len(crowd(nodes, hoard)); n != 25 {
			t.Fatalf("round %d: %d guesses with tokens at once, want 25", round, n)
		}
	}
}

// Each server counts what the others have allowed, while all attempts fail at the same time.
func TestFailuresOnManyServersAddUp(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	cfg := defaults(t)
	cfg.AccountFree, cfg.PairFree, cfg.MaxFailures = 1000, 1000, 100_000
	nodes := []*Limiter{w.node(cfg), w.node(cfg)}
	var wg sync.WaitGroup
	for n := range 300 {
		wg.Go(func() {
			l := nodes[n%2]
			ticket, err := l.Begin(context.Background(), Attempt{Account: "alice", Address: address(n % 4)})
			if err != nil {
				t.Errorf("attempt %d: %v", n, err)
				return
			}
			l.Failed(context.Background(), ticket)
		})
	}
	wg.Wait()
	for n, l := range nodes {
		if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 300 {
			t.Errorf("server %d: state %+v, %v, want 300 failures", n, s, err)
		}
	}
	var global int64
	if err := inPostgres(nodes[0]).db.QueryRowContext(t.Context(), "SELECT failed FROM throttle_counter WHERE id = ?",
		idOf(nodes[0].keysOf(Attempt{}).global)).Scan(&global); err != nil || global != 300*unit {
		t.Errorf("%d failures of everybody, %v, want 300", global/unit, err)
	}
}

func idOf(i id) []byte { return i[:] }

// A reservation of a killed server becomes a failure on the others.
func TestWhatAKilledServerHadBegunFailsOnTheOthers(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	killed, other := w.node(defaults(t)), w.node(defaults(t))
	for n := range 20 {
		if _, err := killed.Begin(t.Context(), Attempt{Account: "alice", Address: address(n)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Begin(t.Context(), Attempt{Account: "alice", Address: address(100)}); err == nil {
		t.Fatal("not refused although as many are in flight as may fail")
	}
	if s, err := other.State(t.Context(), "alice"); err != nil || s.Failures != 0 {
		t.Fatalf("state %+v, %v before the reservations end", s, err)
	}
	w.clock.advance(lease + time.Millisecond)
	if s, err := other.State(t.Context(), "alice"); err != nil || s.Failures != 20 {
		t.Fatalf("state %+v, %v, want 20 failures", s, err)
	}
}

func TestPostgresClockIsTheClock(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	for hours := range 3 { // servers whose clocks differ by hours
		w.clock.advance(time.Duration(hours) * time.Hour)
		l, frozen := w.node(defaults(t)), w.clock.now()
		l.now = func() time.Time { return frozen }
		inPostgres(l).clock = nil
		for n := range 4 {
			if passed, want := guess(t, l,
				Attempt{Account: "alice", Address: address(1)}), 4*hours+n < 5; passed != want {
				t.Fatalf("server %d, guess %d: compared %t, want %t", hours, n+1, passed, want)
			}
		}
		var off int64
		if err := inPostgres(l).db.QueryRowContext(t.Context(),
			`SELECT max(abs(at_ms - extract(epoch FROM now()) * 1000))::bigint
			FROM throttle_counter`).Scan(&off); err != nil || off > testenv.Patience.Milliseconds() {
			t.Fatalf("written %d ms off the clock of the database (%v)", off, err)
		}
	}
}

// holdLock holds the lock that servers need to change counters, until the test calls release.
func holdLock(t *testing.T, db *database.DB) (release func()) {
	t.Helper()
	tx, end := dbtest.Begin(t, db)
	if _, err := tx.ExecContext(t.Context(),
		"SELECT pg_advisory_xact_lock(?, 'throttle_counter'::regclass::oid::integer)",
		int32(lockClass)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := end(false); err != nil {
			t.Error(err)
		}
	}
}

// A flood is refused without a lock and without a write, on any number of servers.
func TestARefusalNeitherLocksNorWrites(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	nodes := []*Limiter{w.node(defaults(t)), w.node(defaults(t))}
	for n := range 25 {
		guess(t, nodes[n%2], Attempt{Account: "alice", Address: address(n)})
	}
	db := dbtest.Open(t, w.postgres)
	versions := func() (all string) {
		t.Helper()
		err := db.QueryRowContext(t.Context(),
			"SELECT string_agg(ctid || ' ' || xmin || ' ' || xmax, ',' ORDER BY id) FROM throttle_counter").Scan(&all)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := versions()
	release := holdLock(t, db)
	var attempts []Attempt
	for n := range 500 {
		attempts = append(attempts, Attempt{Account: "alice", Address: address(1000 + n)})
	}
	if passed := crowd(nodes, attempts); len(passed) != 0 {
		t.Errorf("%d guesses compared", len(passed))
	}
	for n, l := range nodes {
		if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 20 || !inPostgres(l).up() {
			t.Errorf("server %d: %+v, %v, shared %t", n, s, err, inPostgres(l).up())
		}
	}
	release()
	if after := versions(); after != before {
		t.Errorf("refusals wrote:\n%s\n%s", before, after)
	}
}

// However many people sign in and however slow the database is, the limiter leaves the process's
// other connections alone.
func TestAFloodTakesTwoConnections(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	db := dbtest.OpenLimited(t, w.postgres, 3)
	cfg := defaults(t)
	cfg.PostgresTimeout = testenv.Patience
	l, err := New(cfg, Options{Secret: w.secret, DB: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	release := holdLock(t, dbtest.Open(t, w.postgres))
	var attempts []Attempt
	for n := range 300 {
		attempts = append(attempts, Attempt{Account: name(n), Address: address(n)})
	}
	flooded := make(chan []*Ticket)
	go func() { flooded <- crowd([]*Limiter{l}, attempts) }()
	testenv.Eventually(t, "the flood to wait for the lock", func() bool {
		var n int
		err := db.QueryRowContext(t.Context(),
			"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'").Scan(&n)
		return err == nil && n == 2
	})
	for range 50 { // with the remaining connection
		if err := db.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	release()
	if passed := <-flooded; len(passed) != 300 {
		t.Errorf("%d of 300 compared", len(passed))
	}
}

// postgresWorld is two servers on one database, with the log and metrics of the first.
func postgresWorld(t *testing.T, url string) (*world, []*Limiter, *observer.ObservedLogs, *prometheus.Registry) {
	t.Helper()
	w := onPostgresAt(t, url)
	core, logs := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	return w, []*Limiter{w.nodeWith(defaults(t), Options{Log: zap.New(core), Registry: registry}),
		w.node(defaults(t))}, logs, registry
}

// One that answers queries and refuses changes, as for want of space or rights, is away until it takes them again.
func TestAPostgresThatRefusesWritesIsAway(t *testing.T) {
	t.Parallel()
	w, nodes, _, registry := postgresWorld(t, dbtest.PostgresURL(t))
	db := dbtest.Open(t, w.postgres)
	run := func(statement string) {
		t.Helper()
		if _, err := db.Write(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	run("ALTER TABLE throttle_counter ADD CONSTRAINT no_space CHECK (false) NOT VALID")
	guess(t, nodes[0], Attempt{Account: "alice", Address: address(1)})
	for range 2 {
		w.clock.advance(retryAway)
		if got := measured(t, registry, "authctl_throttle_postgres_up", ""); got != 0 {
			t.Errorf("postgres_up is %v while nothing can be written", got)
		}
	}
	run("ALTER TABLE throttle_counter DROP CONSTRAINT no_space")
	testenv.Eventually(t, "the counters to be shared again", func() bool {
		w.clock.advance(retryAway)
		return measured(t, registry, "authctl_throttle_postgres_up", "") == 1
	})
	left, err := database.Value[int](db.QueryRowContext(t.Context(), "SELECT count(*) FROM throttle_counter"))
	if err != nil || left != 0 {
		t.Errorf("%d counters are left, %v", left, err)
	}
}

// Many strangers guess at an account on two servers, and PostgreSQL is killed in between.
func TestWithPostgresAwayEachProcessGoesOnWithWhatItSaw(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t)
	if _, err := migrations.Up(t.Context(), dbtest.Open(t, server.URL)); err != nil {
		t.Fatal(err)
	}
	w, nodes, logs, registry := postgresWorld(t, server.URL)
	l := nodes[0]
	phone := remember(t, l, "alice", address(1))
	guesses := 0
	for n := range 15 {
		if guess(t, nodes[n%2], Attempt{Account: "alice", Address: address(100 + n)}) {
			guesses++
		}
	}
	begun, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(200)})
	if err != nil {
		t.Fatal(err)
	}
	server.Crash(t)
	l.Failed(t.Context(), begun) // it counts on any server
	for n := range 200 {
		if guess(t, nodes[n%2], Attempt{Account: "alice", Address: address(300 + n)}) {
			guesses++
		}
	}
	// Alone, each server knows what it saw: of the 15, the first has seen eight and one more, the
	// second seven.
	if guesses != 15+11+13 {
		t.Errorf("%d guesses, want 15 that were shared and the rest of 20 in each process", guesses)
	}
	phone = signIn(t, l, Attempt{Account: "alice", Address: address(400), DeviceToken: phone})
	signIn(t, l, Attempt{Account: "alice", Address: address(1)})
	if got := measured(t, registry, "authctl_throttle_postgres_up", ""); got != 0 {
		t.Errorf("postgres_up is %v while it is away", got)
	}
	if err := l.Unlock(t.Context(), "alice"); err == nil {
		t.Error("Unlock succeeds without the counters")
	}
	if _, err := l.State(t.Context(), "alice"); err == nil {
		t.Error("State answers without the counters")
	}

	server.Start(t)
	testenv.Eventually(t, "the counters to be shared again, while nobody signs in", func() bool {
		w.clock.advance(retryAway)
		return measured(t, registry, "authctl_throttle_postgres_up", "") == 1
	})
	signIn(t, l, Attempt{Account: "alice", Address: address(400), DeviceToken: phone})
	if got := measured(t, registry, "authctl_throttle_postgres_up", ""); got != 1 {
		t.Errorf("postgres_up is %v after it came back", got)
	}
	// Commits do not wait for the disk, so the crash may have lost the newest of the 15, and the
	// one in flight.
	if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures > 15 {
		t.Errorf("state %+v, %v, want what PostgreSQL kept", s, err)
	}
	w.clock.advance(lease + time.Second) // attempts in flight count as failures
	again := 0
	for n := range 100 {
		if guess(t, l, Attempt{Account: "alice", Address: address(600 + n)}) {
			again++
		}
	}
	if again > 20 {
		t.Errorf("%d guesses after the crash, want at most the 20 of one server", again)
	}
	var messages []string
	for _, entry := range logs.All() {
		messages = append(messages, entry.Message)
	}
	if got := strings.Join(messages, " "); got != "throttle_postgres_away throttle_postgres_back" {
		t.Errorf("logged %q, want one line for each change", got)
	}
}

func TestASilentPostgresHoldsUpOneSignInASecond(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	db := dbtest.Open(t, w.postgres)
	cfg := defaults(t)
	l, err := New(cfg, Options{Secret: w.secret, Now: w.clock.now, DB: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	release := holdLock(t, dbtest.Open(t, w.postgres))
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
		t.Fatal("a silent PostgreSQL holds up sign-ins")
	}
	if l.shared.up() {
		t.Error("the outage was not noticed")
	}
	release()
	testenv.Eventually(t, "the counters to be shared again", func() bool {
		w.clock.advance(retryAway)
		signIn(t, l, Attempt{Account: "alice", Address: address(1)})
		return l.shared.up()
	})
}

// In a flood operations wait for those of others. A stranger whose turn does not come is refused: if each process
// judged alone instead, many servers would allow many more guesses. PostgreSQL does not count as away.
func TestAStrangerWhomNoBatchCarriesIsRefused(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	l, err := New(defaults(t), Options{Secret: w.secret, Now: w.clock.now, DB: dbtest.Open(t, w.postgres)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	device := signIn(t, l, Attempt{Account: "alice", Address: address(1)})
	store := l.shared.(*postgres)
	store.patience = time.Millisecond
	release, taken := make(chan struct{}), make(chan struct{}, 2)
	store.batch.Close()
	store.batch = batch.New(batch.Config{Linger: time.Millisecond, Concurrency: 2, MaxBatch: 1,
		Timeout: testenv.Patience}, func(ctx context.Context, asked []operation) ([]answer, error) {
		select {
		case <-release:
		default:
			taken <- struct{}{}
			<-release
		}
		return store.ask(ctx, asked)
	})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			_, err := store.batch.Do(t.Context(), operation{nil, true, func(decision) answer { return answer{} }})
			if err != nil {
				t.Error(err)
			}
		})
	}
	<-taken
	<-taken
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(2)}); !errors.Is(err, ErrCrowded) {
		t.Errorf("a stranger without a turn: %v", err)
	}
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(3), DeviceToken: device}); err != nil {
		t.Errorf("a known device without a turn: %v", err)
	}
	if !store.up() {
		t.Error("PostgreSQL counts as away")
	}
	close(release)
	others.Wait()
	store.patience = testenv.Patience
	if _, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(2)}); err != nil {
		t.Errorf("with a turn: %v", err)
	}
}

func TestARoleWithoutRightsCountsAlone(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgresURL(t)
	_, nodes, logs, _ := postgresWorld(t, dbtest.AsReader(t, url, "bun_migrations"))
	guesses := 0
	for n := range 100 {
		if guess(t, nodes[0], Attempt{Account: "alice", Address: address(n)}) {
			guesses++
		}
	}
	if guesses != 20 || logs.Len() == 0 || !strings.Contains(fmt.Sprint(logs.All()[0].Context), "throttle_counter") {
		t.Errorf("%d guesses, want 20; logged %v", guesses, logs.All())
	}
}

func TestACallerWhoLeftSaysNothingAboutPostgres(t *testing.T) {
	t.Parallel()
	_, nodes, logs, _ := postgresWorld(t, dbtest.PostgresURL(t))
	l := nodes[0]
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

// PgBouncer in transaction mode, with three connections for everybody: the lock and the settings of
// a change end with its transaction.
func TestLimitsAreSharedThroughAPooler(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgresURL(t)
	w := onPostgresAt(t, dbtest.PgBouncer(t, url))
	nodes := []*Limiter{w.node(defaults(t)), w.node(defaults(t))}
	var attempts []Attempt
	for n := range 200 {
		attempts = append(attempts, Attempt{Account: "alice", Address: address(n)})
	}
	passed := crowd(nodes, attempts)
	if len(passed) != 20 {
		t.Fatalf("%d guesses at once, want 20", len(passed))
	}
	for n, ticket := range passed {
		nodes[n%2].Failed(t.Context(), ticket)
	}
	if s, err := nodes[1].State(t.Context(), "alice"); err != nil || s.Failures != 20 || !nodes[0].shared.up() {
		t.Errorf("state %+v, %v", s, err)
	}
	var left string
	if err := dbtest.Open(t, w.postgres).QueryRowContext(t.Context(),
		"SELECT current_setting('synchronous_commit')").Scan(&left); err != nil || left != "on" {
		t.Errorf("synchronous_commit is %q for the next client, %v", left, err)
	}
}

func TestNoNameOrAddressIsInPostgresAndEveryCounterExpires(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	l := w.node(defaults(t))
	phone := remember(t, l, "planted-name", address(1))
	for n := range 200 {
		guess(t, l, Attempt{Account: "planted-name", Address: address(n / 7), DeviceToken: phone})
		guess(t, l, Attempt{Account: "planted-name", Address: v6(n, n)})
	}
	if err := l.Unlock(t.Context(), "planted-name"); err != nil {
		t.Fatal(err)
	}
	db := dbtest.Open(t, w.postgres)
	var rows, unlike int
	if err := db.QueryRowContext(t.Context(),
		`SELECT count(*), count(*) FILTER (WHERE octet_length(id) <> 16 OR octet_length(owner) <> 16
			OR c::text LIKE '%planted%' OR c::text LIKE '%10.0.%' OR expires_hour > extract(epoch FROM now()) / 3600 + 4321)
		FROM throttle_counter c`).Scan(&rows, &unlike); err != nil || rows < 30 || unlike != 0 {
		t.Fatalf("%d counters, %d of them reveal something or do not expire, %v", rows, unlike, err)
	}
}

func TestWhatHasExpiredIsPurgedInPortions(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	db := dbtest.Open(t, w.postgres)
	count := func() (n int) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM throttle_counter").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	purge := func() int64 {
		t.Helper()
		n, err := Purge(t.Context(), db, 50)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	l := w.node(defaults(t))
	w.clock.advance(30 * time.Minute) // current counters stay valid beyond the end of this test
	today := w.clock.now()
	guess(t, l, Attempt{Account: "alice", Address: address(1)})
	live := count()
	if n := purge(); n != 0 {
		t.Fatalf("%d counters purged that still count", n)
	}
	w.clock.ms.Store(today.Add(-50 * time.Hour).UnixMilli())
	for n := range 40 { // an account and a pair each, for a day
		guess(t, l, Attempt{Account: name(n), Address: address(2)})
	}
	w.clock.ms.Store(today.Add(5 * 365 * 24 * time.Hour).UnixMilli()) // a clock that was ahead
	for n := range 40 {
		guess(t, l, Attempt{Account: name(100 + n), Address: address(3)})
	}
	w.clock.ms.Store(today.UnixMilli())
	expired := int64(count() - live)
	if expired < 160 {
		t.Fatalf("%d expired counters", expired)
	}
	for purged := int64(0); purged < expired; {
		n := purge()
		if n == 0 || n > 50 {
			t.Fatalf("%d counters purged at once, %d of %d before", n, purged, expired)
		}
		purged += n
	}
	if n := count(); n != live-1 || purge() != 0 { // the clock that was ahead has written the counter of everybody
		t.Errorf("%d counters remain, want the %d valid ones", n, live-1)
	}
	if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 1 {
		t.Errorf("state %+v, %v", s, err)
	}
}

// A purge during sign-ins neither waits for them nor deletes what they are changing.
func TestPurgingBesideSignInsLosesNothing(t *testing.T) {
	t.Parallel()
	w := onPostgres(t)
	cfg := defaults(t)
	cfg.AccountFree, cfg.PairFree, cfg.MaxFailures = 1000, 1000, 100_000
	l, db := w.node(cfg), dbtest.Open(t, w.postgres)
	var over atomic.Bool
	var purging sync.WaitGroup
	purging.Go(func() {
		for !over.Load() {
			if _, err := Purge(context.Background(), db, 10); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for n := range 80 {
		guess(t, l, Attempt{Account: "alice", Address: address(n)})
	}
	over.Store(true)
	purging.Wait()
	if s, err := l.State(t.Context(), "alice"); err != nil || s.Failures != 80 {
		t.Errorf("state %+v, %v, want 80 failures", s, err)
	}
}
