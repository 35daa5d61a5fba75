package delivery_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
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
		return 3 * time.Second
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

// job is the work of a child process: it relays to a file, and delivers to the targets of the
// database.
type job struct {
	Database, File string
	Lease          time.Duration
}

const jobVariable = "AUTHCTL_TEST_JOB"

func TestMain(m *testing.M) {
	text := os.Getenv(jobVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err == nil {
		err = j.do()
	}
	if err != nil {
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
	fmt.Println("begun")
	return j.run(ctx, db)
}

// run relays and delivers until ctx ends.
func (j job) run(ctx context.Context, db *database.DB) error {
	file, err := sink.OpenFile(j.File)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := relay.New(db, file, relay.Config{Lease: j.Lease}, relay.Options{})
	if err != nil {
		return err
	}
	d, err := delivery.New(db, map[string]delivery.Sink{"webhook": posting{new(http.Client)}},
		delivery.Config{Lease: j.Lease, Pause: 50 * time.Millisecond,
			Drain: 2 * time.Second}, delivery.Options{Log: zap.NewNop()})
	if err != nil {
		return err
	}
	var both sync.WaitGroup
	both.Go(func() { err = r.Run(ctx) })
	_ = d.Run(ctx)
	both.Wait()
	return err
}

// posting is a sink that posts each event to a receiver.
type posting struct{ client *http.Client }

func (p posting) AnswerTimeout() time.Duration { return testenv.Patience }

func (p posting) Deliver(ctx context.Context, t outbox.Subscription, r outbox.Record, a delivery.Attempt) error {
	timeout := testenv.Patience // so that a busy machine repeats nothing
	if t.Name == dead {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := json.Marshal(outboxtest.Seen{ID: r.EventID, Key: r.Key, Seq: r.Seq, Replay: r.Replay,
		Body: r.Type + r.Source + r.Time + string(r.Data)})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", t.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if !a.Owned() {
		return delivery.ErrNotOwned
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", res.Status)
	}
	return nil
}

// receiver is a server that keeps what it gets, in the order of arrival.
type receiver struct {
	mu   sync.Mutex
	seen []outboxtest.Seen
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var s outboxtest.Seen
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil { // the sender was killed
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, s)
}

func (r *receiver) all() []outboxtest.Seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]outboxtest.Seen{}, r.seen...)
}

// dead is the target that never answers.
const dead = "dead"

// field is a database with three targets, one of which is dead, and the file of the log.
type field struct {
	db        *database.DB
	job       job
	receivers map[string]*receiver
}

func newField(t *testing.T, db *database.DB, url string) *field {
	t.Helper()
	f := &field{db: db, receivers: map[string]*receiver{},
		job: job{Database: url, File: filepath.Join(t.TempDir(), "events.ndjson"), Lease: 2 * time.Second}}
	add := func(name string, h http.Handler) {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		_, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{
			Name: name, Kind: outbox.KindWebhook, Types: []string{"*"}, URL: server.URL,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	add(dead, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body) // so that the receiver notices when the sender gives up
		<-req.Context().Done()
	}))
	for _, name := range []string{"one", "two"} {
		f.receivers[name] = &receiver{}
		add(name, f.receivers[name])
	}
	return f
}

// write runs writers while fn runs, waits until the log and the living targets have everything, and
// returns what each of them has.
func (f *field) write(t *testing.T, fn func(*outboxtest.Log)) map[string]outboxtest.Report {
	t.Helper()
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: f.db, Log: log, Writers: 4, Keys: 30, Pause: 5 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	writers.Go(func() { w.Run(ctx) })
	fn(log)
	cancel()
	writers.Wait()
	for name := range f.receivers {
		testenv.Eventually(t, "nothing waits for "+name, func() bool { return state(t, f.db, name).Waiting == 0 })
	}
	testenv.Eventually(t, "nothing waits for the log", func() bool {
		st, err := outbox.Status(t.Context(), f.db)
		return err == nil && st.Pending == 0
	})
	reports := map[string]outboxtest.Report{}
	for name, r := range f.receivers {
		reports[name] = outboxtest.Check(log.All(), r.all())
	}
	seen, err := outboxtest.ReadFile(f.job.File)
	if err != nil {
		t.Fatal(err)
	}
	reports["log"] = outboxtest.Check(log.All(), seen)
	return reports
}

// inProcess relays and delivers in this process until the test ends. As nobody is killed, no lease has to end.
func (f *field) inProcess(t *testing.T) {
	t.Helper()
	f.job.Lease = 30 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.job.run(ctx, f.db) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// grown waits until writers have committed more.
func grown(t *testing.T, log *outboxtest.Log, by int) {
	t.Helper()
	want := log.Committed() + by
	testenv.Eventually(t, "the writers go on", func() bool { return log.Committed() >= want })
}

func TestTheLogAndThreeTargetsAtOnceWithOneDead(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		f := newField(t, db, "")
		f.inProcess(t)
		reports := f.write(t, func(log *outboxtest.Log) {
			end := time.Now().Add(campaign())
			for time.Now().Before(end) {
				grown(t, log, 20)
			}
		})
		for name, r := range reports {
			if !r.Sound(0) || r.Written == 0 {
				t.Errorf("%s: %s", name, r)
			}
		}
		if st := state(t, db, dead); st.Waiting < int64(reports["log"].Written) {
			t.Errorf("%d wait for the dead target, want %d or more", st.Waiting, reports["log"].Written)
		}
	})
}

// Processes are killed and cannot release anything.
func TestKilledProcessesLoseAndReorderNothing(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, db *database.DB, url string) {
		f := newField(t, db, url)
		kills := 0
		steady := f.job.start(t)
		reports := f.write(t, func(log *outboxtest.Log) {
			end := time.Now().Add(campaign())
			for kills < 3 || time.Now().Before(end) {
				p := f.job.start(t)
				before := len(f.receivers["one"].all())
				grown(t, log, 30)
				testenv.Eventually(t, "deliveries go on", func() bool {
					return len(f.receivers["one"].all()) >= before+10
				})
				if kills%2 == 0 {
					p, steady = steady, p
				}
				p.Kill()
				kills++
			}
		})
		for name, r := range reports {
			// At most what was in flight at each kill.
			most := 64 * kills
			if name == "log" {
				most = 1000 * kills
			}
			if !r.Sound(most) || r.Written == 0 {
				t.Errorf("%s after %d kills: %s", name, kills, r)
			}
			t.Logf("%s after %d kills: %s", name, kills, r)
		}
	}
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		url := dbtest.PostgresURL(t)
		run(t, dbtest.Open(t, url), url)
	})
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		url := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
		db := dbtest.Open(t, url)
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		run(t, db, url)
	})
}

// The checks above find the likeliest mistakes. Triggers make the mistakes, so the rest of the code
// is the real one.
func TestTheCampaignFindsMistakes(t *testing.T) {
	t.Parallel()
	for name, extra := range map[string]string{
		"an acknowledgement counts for all targets": `id = OLD.id`,
		"a position instead of rows":                `target = OLD.target AND id < OLD.id`,
		"a position shared by all targets":          `id <= OLD.id`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			_, err := db.ExecContext(t.Context(),
				`CREATE FUNCTION mistake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF pg_trigger_depth() = 1 THEN DELETE FROM outbox_delivery WHERE `+extra+`; END IF; RETURN NULL; END $$;
				CREATE TRIGGER mistake AFTER DELETE ON outbox_delivery FOR EACH ROW EXECUTE FUNCTION mistake()`)
			if err != nil {
				t.Fatal(err)
			}
			f := newField(t, db, "")
			f.inProcess(t)
			reports := f.write(t, func(log *outboxtest.Log) { grown(t, log, 300) })
			if reports["one"].Lost+reports["two"].Lost == 0 {
				t.Errorf("the checks found nothing: %s; %s", reports["one"], reports["two"])
			}
			if r := reports["log"]; !r.Sound(0) {
				t.Errorf("the log is not affected: %s", r)
			}
		})
	}
}
