package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// campaign is how long a run with faults takes: AUTHCTL_CAMPAIGN is a duration, or long.
func campaign() time.Duration {
	switch text := os.Getenv("AUTHCTL_CAMPAIGN"); text {
	case "":
		return 4 * time.Second
	case "long":
		return 2 * time.Minute
	default:
		d, err := time.ParseDuration(text)
		if err != nil {
			panic("AUTHCTL_CAMPAIGN: " + err.Error())
		}
		return d
	}
}

// job is the work of a child process: it relays, and writes too if Writers is set.
type job struct {
	Database string
	File     string
	Kafka    sink.KafkaConfig
	Config   relay.Config
	Writers  int
	StopAt   int  // stops itself, as by SIGSTOP, between reading so many events and sending them
	NoCheck  bool // a defect: it does not check its lease before it sends
}

// writing runs writers while fn runs, and returns what they have committed.
func writing(t *testing.T, db *database.DB, fn func(*outboxtest.Log)) *outboxtest.Log {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 4, Keys: 30, Pause: 5 * time.Millisecond}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { w.Run(ctx) })
	fn(log)
	return log
}

const jobVariable = "AUTHCTL_TEST_JOB"

func TestMain(m *testing.M) {
	text := os.Getenv(jobVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := j.do(); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func (j job) start(t testing.TB) *outboxtest.Process {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	return outboxtest.StartProcess(t, jobVariable+"="+string(text))
}

func (j job) do() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	db, err := dbtest.Connect(ctx, j.Database, 0)
	if err != nil {
		return err
	}
	defer db.Close()
	var s relay.Sink
	if j.File != "" {
		s, err = sink.OpenFile(j.File)
	} else {
		s, err = sink.OpenKafka(j.Kafka, sink.KafkaOptions{})
	}
	if err != nil {
		return err
	}
	defer s.Close()
	if j.StopAt > 0 {
		s = &stopping{Sink: s, at: int64(j.StopAt), noCheck: j.NoCheck}
	}
	waker := relay.NewWaker(db)
	defer waker.Close()
	log, err := zap.NewDevelopment(zap.IncreaseLevel(zap.WarnLevel))
	if err != nil {
		return err
	}
	opt := relay.Options{Log: log, Waker: waker}
	r, err := relay.New(db, s, j.Config, opt)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	if j.Writers > 0 {
		w := outboxtest.Workload{DB: db, Log: &outboxtest.Log{}, Writers: j.Writers, Keys: 20, Wake: waker.Wake}
		wg.Go(func() { w.Run(ctx) })
	}
	fmt.Println("begun")
	err = r.Run(ctx)
	wg.Wait()
	return err
}

// stopping stops its own process just before a batch goes to the sink.
type stopping struct {
	relay.Sink
	at, seen int64
	noCheck  bool
	mu       sync.Mutex
}

func (s *stopping) Publish(ctx context.Context, b *relay.Batch) error {
	s.mu.Lock()
	before := s.seen
	s.seen += int64(len(b.Records))
	stop := before < s.at && s.seen >= s.at
	s.mu.Unlock()
	if stop {
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond) // the signal may reach another thread first
	}
	if s.noCheck {
		b.Owned = func() bool { return true }
	}
	return s.Sink.Publish(ctx, b)
}

// existing is the log in the database itself: every event there was committed.
func existing(t testing.TB, db *database.DB) *outboxtest.Log {
	t.Helper()
	rows, err := db.QueryContext(context.Background(), `SELECT event_id, key, key_seq FROM outbox_event`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	log := &outboxtest.Log{}
	for rows.Next() {
		var w outboxtest.Written
		if err := rows.Scan(&w.ID, &w.Key, &w.Seq); err != nil {
			t.Fatal(err)
		}
		log.Add(w)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return log
}

// Everything runs in one process, as in embedded mode, which is killed again and again. In the end
// the database and the file agree.
func TestEmbeddedModeSurvivesKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := job{Database: "sqlite:" + filepath.Join(dir, "authctl.db"), File: filepath.Join(dir, "events.ndjson"),
		Writers: 3,
		Config:  relay.Config{Lease: time.Second}}
	db := dbtest.Open(t, j.Database)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	kills := 0
	for end := time.Now().Add(campaign()); time.Now().Before(end) || kills == 0; kills++ {
		p := j.start(t)
		// Some are killed before they own anything, others at full speed.
		time.Sleep(time.Duration(rand.IntN(2500)) * time.Millisecond)
		p.Kill()
	}
	j.Writers = 0
	p := j.start(t)
	drained(t, db)
	p.Signal(t, syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	// At most one batch was in flight at each kill.
	checkFile(t, existing(t, db), j.File, kills*1000)
}

// Relay processes are killed, or stopped for longer than two leases, at random while others write.
func TestRelayProcessesSurviveKillsAndStops(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	url := dbtest.PostgresURL(t)
	db := dbtest.Open(t, url)
	j := job{Database: url, Kafka: cfg, Config: relay.Config{Lease: time.Second}}
	relays := []*outboxtest.Process{j.start(t), j.start(t), j.start(t)}
	faults := 0
	log := writing(t, db, func(*outboxtest.Log) {
		for end := time.Now().Add(campaign()); time.Now().Before(end); faults++ {
			time.Sleep(time.Duration(200+rand.IntN(600)) * time.Millisecond)
			i := rand.IntN(len(relays))
			if faults%3 == 2 {
				relays[i].Signal(t, syscall.SIGSTOP)
				time.Sleep(2200 * time.Millisecond)
				relays[i].Signal(t, syscall.SIGCONT)
				continue
			}
			relays[i].Kill()
			relays[i] = j.start(t)
		}
	})
	drained(t, db)
	for _, p := range relays {
		p.Signal(t, syscall.SIGTERM)
	}
	for _, p := range relays {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	checkKafka(t, log, cfg, faults*4*200)
}

// A relay is stopped between reading events and sending them, long enough for another relay to take
// its shards and send them. When it continues it must send nothing.
func TestStoppedRelaySendsNothingAfterItsLease(t *testing.T) {
	t.Parallel()
	if report := stopPastLease(t, false); !report.Sound(0) {
		t.Error("promises were broken")
	}
}

func stopPastLease(t *testing.T, defect bool) outboxtest.Report {
	t.Helper()
	dir := t.TempDir()
	url := dbtest.PostgresURL(t)
	db := dbtest.Open(t, url)
	for range 50 {
		outboxtest.AddKeys(t, db, "a", "b", "c")
	}
	j := job{Database: url, File: filepath.Join(dir, "events.ndjson"),
		Config: relay.Config{Lease: time.Second, BatchEvents: 40}, StopAt: 60, NoCheck: defect}
	first := j.start(t)
	testenv.Eventually(t, "the first relay to stop", first.Stopped)
	j.StopAt, j.NoCheck, j.Config.Lease = 0, false, calm.Lease
	j.start(t)
	drained(t, db)
	first.Signal(t, syscall.SIGCONT)
	first.Signal(t, syscall.SIGTERM)
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
	seen, err := outboxtest.ReadFile(j.File)
	if err != nil {
		t.Fatal(err)
	}
	report := outboxtest.Check(existing(t, db).All(), seen)
	t.Log(report)
	return report
}

// How long events wait until another relay takes over: hardly at all after an orderly stop, and one
// lease after kill -9. The figures are for people; the short run has a shorter lease.
func TestAnotherRelayTakesOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	url := dbtest.PostgresURL(t)
	db := dbtest.Open(t, url)
	j := job{Database: url, File: filepath.Join(dir, "events.ndjson")}
	goes, stays := j, j
	stays.Config = calm
	if campaign() < time.Minute {
		goes.Config.Lease = time.Second
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		first, second := goes.start(t), stays.start(t)
		testenv.Eventually(t, "two fair shares", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil && len(st.Relays) == 2 && st.Relays[0].Shards == 48 && st.Relays[1].Shards == 48
		})
		first.Signal(t, sig)
		if err := first.Wait(); (err == nil) != (sig == syscall.SIGTERM) {
			t.Errorf("after %v the relay ended with %v", sig, err)
		}
		gone := time.Now()
		var events []outbox.Event
		for i := range 96 { // enough for nearly every shard
			events = append(events, outboxtest.Event(fmt.Sprint("key-", i)))
		}
		outboxtest.Add(t, db, events...)
		drained(t, db)
		t.Logf("after %v everything was published within %v", sig, time.Since(gone))
		second.Signal(t, syscall.SIGTERM)
		if err := second.Wait(); err != nil {
			t.Error(err)
		}
	}
	checkFile(t, existing(t, db), j.File, 0)
}

// Again and again the table is locked as for a new index: writers queue, and then commit in any
// order. Relays still publish each key in order.
func TestOrderSurvivesALockedTable(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgresURL(t)
	db := dbtest.Open(t, url)
	s, path := file(t)
	startRelay(t, db, s, calm, relay.Options{})
	startRelay(t, db, fileAt(t, path), calm, relay.Options{})
	log := lockingTable(t, url, campaign())
	drained(t, db)
	checkFile(t, log, path, 0)
}

// lockingTable runs writers of many keys, some of them busy ones, while the table of events is
// locked as CREATE INDEX locks it. It returns what they have committed.
func lockingTable(t *testing.T, url string, long time.Duration) *outboxtest.Log {
	t.Helper()
	db, writers := dbtest.Open(t, url), dbtest.Open(t, url) // waiting writers would leave no connection to others
	ctx, cancel := context.WithCancel(t.Context())
	log := &outboxtest.Log{}
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for _, w := range []*outboxtest.Workload{{Keys: 4, Writers: 3}, {Keys: 100_000, Writers: 5}} {
		w.DB, w.Log, w.Pause = writers, log, 5*time.Millisecond
		w.Prefix = fmt.Sprint("of-", w.Keys, "-")
		all.Go(func() { w.Run(ctx) })
	}
	for until, locks := time.Now().Add(long), 0; time.Now().Before(until) || locks == 0; locks++ {
		before := log.Committed()
		testenv.Eventually(t, "writers to go on", func() bool { return log.Committed() > before+100 })
		tx, end := dbtest.Begin(t, db)
		_, err := tx.ExecContext(t.Context(), `LOCK TABLE outbox_event IN SHARE MODE`)
		testenv.Must(t, err)
		testenv.Eventually(t, "the watermarks to reach the last id", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil &&
				!slices.ContainsFunc(st.Shards, func(s outbox.ShardState) bool { return s.Watermark < st.LastID })
		})
		testenv.Must(t, end(true))
	}
	return log
}

// The leader of the partitions is killed. Another broker takes over, and has all records.
func TestRelayFollowsALeaderThatMoves(t *testing.T) {
	t.Parallel()
	cluster := outboxtest.StartKafka(t, 3)
	kills := 1
	if campaign() > time.Minute {
		kills = 3
	}
	cfg := sink.KafkaConfig{Brokers: cluster.Brokers, Topic: "events", Partitions: 6, RequestTimeout: 2 * time.Second}
	if st := ensure(t, cfg); st.ReplicationFactor != 3 || st.MinInSync != 2 || len(st.Problems) > 0 {
		t.Fatalf("made %+v", st)
	}
	db := dbtest.Postgres(t)
	startRelay(t, db, kafka(t, cfg), calm, relay.Options{})
	log := writing(t, db, func(log *outboxtest.Log) {
		for id := 1; id <= kills; id++ {
			before := log.Committed()
			testenv.Eventually(t, "some events", func() bool { return log.Committed() > before+300 })
			cluster.Signal(t, id, syscall.SIGKILL)
			killed := time.Now()
			backlog := log.Committed()
			testenv.Eventually(t, "writers to go on", func() bool { return log.Committed() > backlog+100 })
			testenv.Eventually(t, "the others to lead", func() bool { return pending(t, db) < 50 })
			t.Logf("events went on %v after broker %d was killed", time.Since(killed), id)
			if id < kills {
				cluster.Restart(t, id)
			}
		}
	})
	drained(t, db)
	checkKafka(t, log, cfg, 0)
}

// The broker's answers are lost for a while, again and again. The relay repeats the batches
// unchanged, so nothing is duplicated and nothing is missing.
func TestRelayRepeatsNothingWhenAnswersAreLost(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	cfg.RequestTimeout = 500 * time.Millisecond
	var deaf atomic.Bool
	k, err := sink.OpenKafka(cfg, sink.KafkaOptions{Dial: func(network, address string) (net.Conn, error) {
		c, err := net.DialTimeout(network, address, 5*time.Second)
		return deafConn{c, &deaf}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	db := dbtest.Postgres(t)
	startRelay(t, db, k, calm, relay.Options{})
	log := writing(t, db, func(*outboxtest.Log) {
		for end := time.Now().Add(campaign()); time.Now().Before(end); {
			time.Sleep(time.Duration(200+rand.IntN(300)) * time.Millisecond)
			deaf.Store(true)
			time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
			deaf.Store(false)
		}
	})
	drained(t, db)
	checkKafka(t, log, cfg, 0)
}

type deafConn struct {
	net.Conn
	cut *atomic.Bool
}

func (d deafConn) Read(p []byte) (int, error) {
	for {
		n, err := d.Conn.Read(p)
		if err != nil || !d.cut.Load() {
			return n, err
		}
	}
}

// The broker is killed and stays down for a while. The backlog shows, and drains in order.
func TestRelayWaitsForABrokerThatWasKilled(t *testing.T) {
	t.Parallel()
	cluster := outboxtest.StartKafka(t, 1)
	cfg := sink.KafkaConfig{Brokers: cluster.Brokers, Topic: "events", Partitions: 4, RequestTimeout: 2 * time.Second}
	ensure(t, cfg)
	db := dbtest.Postgres(t)
	startRelay(t, db, kafka(t, cfg), calm, relay.Options{})
	log := writing(t, db, func(log *outboxtest.Log) {
		for range max(1, int(campaign()/(20*time.Second))) {
			before := log.Committed()
			testenv.Eventually(t, "some events", func() bool { return log.Committed() > before+200 })
			cluster.Signal(t, 1, syscall.SIGKILL)
			before = log.Committed()
			testenv.Eventually(t, "writers to go on", func() bool { return log.Committed() > before+200 })
			testenv.Eventually(t, "the backlog to show", func() bool { return pending(t, db) > 100 })
			cluster.Restart(t, 1)
			back := time.Now()
			backlog := pending(t, db)
			testenv.Eventually(t, "the backlog to shrink", func() bool { return pending(t, db) < backlog })
			t.Logf("the backlog shrank %v after the broker was back", time.Since(back))
		}
	})
	drained(t, db)
	checkKafka(t, log, cfg, 0)
}

// The database crashes and comes back. Relays keep running, and no committed event is lost.
// Acknowledgements that were not on disk yet cause duplicates.
func TestRelaySurvivesACrashOfTheDatabase(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t)
	survive(t, server.URL, func() {
		server.Crash(t)
		time.Sleep(300 * time.Millisecond)
		server.Start(t)
	})
}

// A standby is promoted after the primary has crashed. With synchronous replication no committed
// event is lost.
func TestRelaySurvivesAFailover(t *testing.T) {
	t.Parallel()
	primary := outboxtest.StartPostgres(t, "wal_level = replica")
	standby := primary.Standby(t)
	admin := dbtest.Open(t, primary.URL)
	for _, q := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'",
		"ALTER SYSTEM SET synchronous_commit = 'remote_apply'", "SELECT pg_reload_conf()"} {
		if _, err := admin.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "the standby to be synchronous", func() bool {
		var n int
		err := admin.QueryRowContext(t.Context(),
			"SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").Scan(&n)
		return err == nil && n == 1
	})
	host := func(url string) string {
		_, rest, _ := strings.Cut(url, "@")
		host, _, _ := strings.Cut(rest, "/")
		return host
	}
	once := sync.OnceFunc(func() {
		primary.Crash(t)
		standby.Promote(t)
		promoted := dbtest.Open(t, standby.URL)
		for _, q := range []string{"ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()"} {
			if _, err := promoted.ExecContext(t.Context(), q); err != nil {
				t.Error(err)
			}
		}
	})
	both := fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable", host(primary.URL), host(standby.URL))
	survive(t, both, once)
}

func survive(t *testing.T, url string, fault func()) {
	t.Helper()
	db := dbtest.Open(t, url)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	s, path := file(t)
	startRelay(t, db, s, relay.Config{Lease: time.Second}, relay.Options{})
	startRelay(t, db, fileAt(t, path), relay.Config{Lease: time.Second}, relay.Options{})
	faults := 0
	log := writing(t, db, func(log *outboxtest.Log) {
		for end := time.Now().Add(campaign()); time.Now().Before(end) || faults == 0; faults++ {
			before := log.Committed()
			testenv.Eventually(t, "some events", func() bool { return log.Committed() > before+200 })
			fault()
		}
		before := log.Committed()
		testenv.Eventually(t, "writers to go on", func() bool { return log.Committed() > before+200 })
	})
	testenv.Eventually(t, "the outbox to be empty", func() bool {
		st, err := outbox.Status(context.Background(), db)
		return err == nil && st.Pending == 0
	})
	// What was acknowledged but not recorded yet: some tenths of a second.
	checkFile(t, log, path, faults*3000)
}
