package relay_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// refused runs a relay that must be refused, and returns the reason.
func refused(t *testing.T, db *database.DB, s relay.Sink) string {
	t.Helper()
	r, err := relay.New(db, s, relay.Config{}, relay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	if err = r.Run(ctx); !errors.Is(err, outbox.ErrOtherTarget) {
		t.Fatalf("a relay to %s ended with: %v, want ErrOtherTarget", s.Name(), err)
	}
	return err.Error()
}

func target(t *testing.T, db *database.DB) outbox.Target {
	t.Helper()
	st, err := outbox.Status(t.Context(), db)
	if err != nil || st.Target() == nil {
		t.Fatalf("no target: %v", err)
	}
	return *st.Target()
}

func TestRelayToAnotherTargetIsRefused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		right, path := file(t)
		other, elsewhere := file(t)
		stop := startRelay(t, db, right, relay.Config{}, relay.Options{})
		outboxtest.AddKeys(t, db, "a")
		drained(t, db)
		// While the right relay runs, after it has ended, and with waiting events.
		for range 2 {
			why := refused(t, db, other)
			for _, words := range []string{path, elsewhere, "OUTBOX_RELAY=off", "authctl outbox target set"} {
				if !strings.Contains(why, words) {
					t.Errorf("it does not say %q: %s", words, why)
				}
			}
			stop()
			outboxtest.AddKeys(t, db, "a")
		}
		if got := lines(t, elsewhere); len(got) != 0 {
			t.Errorf("published elsewhere: %v", got)
		}
		startRelay(t, db, right, relay.Config{}, relay.Options{})
		drained(t, db)
		if got := strings.Join(lines(t, path), " "); got != "a/1 a/2 a/3" {
			t.Errorf("published %s", got)
		}
	})
}

// Relays with different settings start at the same moment on a new database. One target wins, and
// the other relays publish nothing.
func TestOnlyOneTargetIsRecorded(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var wg sync.WaitGroup
		admitted := make([]bool, 8)
		names := make([]string, len(admitted))
		for i := range admitted {
			names[i] = "file:" + filepath.Join(t.TempDir(), "events.ndjson")
			wg.Go(func() {
				_, err := outbox.AdmitTarget(t.Context(), db, names[i], new(""))
				if err != nil && !errors.Is(err, outbox.ErrOtherTarget) {
					t.Error(err)
				}
				admitted[i] = err == nil
			})
		}
		wg.Wait()
		if i := slices.Index(admitted, true); i < 0 || slices.Contains(admitted[i+1:], true) ||
			target(t, db).Name != names[i] {
			t.Errorf("admitted %v, the target is %+v", admitted, target(t, db))
		}
	})
}

func TestTargetIsChangedByCommandAlone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		first, path := file(t)
		second, elsewhere := file(t)
		to := outbox.Target{Name: second.Name(), Partitions: 1}
		stop := startRelay(t, db, first, relay.Config{}, relay.Options{Name: "the first"})
		outboxtest.AddKeys(t, db, "a", "b")
		drained(t, db)
		if _, err := outbox.SetTarget(t.Context(), db, to, 96); !errors.Is(err, outbox.ErrRelaysAlive) ||
			!strings.Contains(err.Error(), "the first") {
			t.Errorf("while a relay runs: %v, want ErrRelaysAlive and its name", err)
		}
		stop()
		// A row left by a clock that was ahead does not count as a relay.
		if _, err := db.Write(t.Context(),
			`INSERT INTO outbox_relay (id, name, started_ms, until_ms, lease_ms) VALUES (?, 'ahead', 0, ?, 5000)`,
			uuid.NewString(), time.Now().Add(100*time.Hour).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "a")
		plan, err := outbox.PlanTarget(t.Context(), db, to, 96)
		if err != nil || !plan.Changed || plan.Waiting != 1 || plan.From == nil || plan.From.Name != first.Name() ||
			target(t, db).Name != first.Name() {
			t.Fatalf("planned %+v, %v", plan, err)
		}
		seven := outbox.Target{Name: second.Name(), Partitions: 7}
		if _, err := outbox.SetTarget(t.Context(), db, seven, 96); !errors.Is(err, outbox.ErrShards) {
			t.Errorf("seven partitions for 96 shards: %v, want ErrShards", err)
		}
		if done, err := outbox.SetTarget(t.Context(), db, to, 96); err != nil || !done.Changed ||
			target(t, db).Name != second.Name() || target(t, db).Since.IsZero() {
			t.Fatalf("changed %+v, %v; the target is %+v", done, err, target(t, db))
		}
		if again, err := outbox.SetTarget(t.Context(), db, to, 96); err != nil || again.Changed {
			t.Errorf("once more: %+v, %v", again, err)
		}
		refused(t, db, first)
		stop = startRelay(t, db, second, relay.Config{}, relay.Options{})
		drained(t, db)
		stop()
		before, after := strings.Join(lines(t, path), " "), strings.Join(lines(t, elsewhere), " ")
		if before != "a/1 b/1" && before != "b/1 a/1" || after != "a/2" {
			t.Errorf("published %s, and then %s", before, after)
		}
		// And back, to a target whose number of partitions is recorded.
		back := outbox.Target{Name: first.Name(), Partitions: 4}
		if _, err := outbox.SetTarget(t.Context(), db, back, 96); !errors.Is(err, outbox.ErrPartitionsChanged) {
			t.Errorf("back, with other partitions: %v, want ErrPartitionsChanged", err)
		}
		back.Partitions = 1
		if _, err := outbox.SetTarget(t.Context(), db, back, 96); err != nil {
			t.Error(err)
		}
		refused(t, db, second)
		list, err := outbox.Targets(t.Context(), db)
		if err != nil || len(list) != 2 || list[0].Name != first.Name() || list[1].State != "former" {
			t.Errorf("targets %+v, %v", list, err)
		}
	})
}

// When the target changes while a relay runs, the relay ends at its next renewal and releases its
// leases.
func TestRelayEndsWhenItsTargetIsChanged(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s, path := file(t)
		r, err := relay.New(db, s, relay.Config{}, relay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- r.Run(t.Context()) }()
		outboxtest.AddKeys(t, db, "a")
		drained(t, db)
		for _, change := range []string{
			`UPDATE outbox_target SET state = 'former'`,
			`INSERT INTO outbox_target (name, partitions, state) VALUES ('file:/elsewhere', 1, 'active')`,
		} {
			if _, err := db.Write(t.Context(), change); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-done:
			if !errors.Is(err, outbox.ErrOtherTarget) {
				t.Errorf("it ended with %v, want ErrOtherTarget", err)
			}
		case <-time.After(testenv.Patience):
			t.Fatal("the relay goes on")
		}
		outboxtest.AddKeys(t, db, "a")
		st, err := outbox.Status(t.Context(), db)
		if err != nil || len(st.Relays) != 0 ||
			slices.ContainsFunc(st.Shards, func(s outbox.ShardState) bool { return s.Owner != "" }) {
			t.Errorf("still there: %+v, %v", st.Relays, err)
		}
		if got := strings.Join(lines(t, path), " "); got != "a/1" {
			t.Errorf("published %s", got)
		}
	})
}

// embedded is an installation in a folder: SQLite with the file next to it.
func embedded(t *testing.T, dir string) *database.DB {
	t.Helper()
	db := dbtest.Open(t, "sqlite:"+filepath.Join(dir, "authctl.db"))
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestDataFolderMayMove(t *testing.T) {
	t.Parallel()
	name := func(dir string) string { return "file:" + filepath.Join(dir, "events.ndjson") }
	for _, legacy := range []bool{false, true} {
		root := t.TempDir()
		place := func(name string) string { return filepath.Join(root, name) }
		if err := os.Mkdir(place("old"), 0o700); err != nil {
			t.Fatal(err)
		}
		db := embedded(t, place("old"))
		publish := func(db *database.DB, dir string) {
			t.Helper()
			stop := startRelay(t, db, fileAt(t, filepath.Join(dir, "events.ndjson")), relay.Config{}, relay.Options{})
			outboxtest.AddKeys(t, db, "a")
			drained(t, db)
			stop()
		}
		publish(db, place("old"))
		if legacy { // the target of a release that recorded only the path
			if _, err := db.Write(t.Context(), `UPDATE outbox_target SET identity = '', since_ms = 0`); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(place("old"), place("new")); err != nil {
			t.Fatal(err)
		}
		db = embedded(t, place("new"))
		publish(db, place("new"))
		if got := target(t, db); got.Name != name(place("new")) {
			t.Errorf("the target is %+v", got)
		}
		// By a link, and by a path that is not normalised.
		if err := os.Symlink(place("new"), place("link")); err != nil {
			t.Fatal(err)
		}
		publish(embedded(t, place("link")), place("link"))
		publish(db, filepath.Join(root, "new", "..", "link"))
		// A copy is another installation.
		if err := os.CopyFS(place("copy"), os.DirFS(place("new"))); err != nil {
			t.Fatal(err)
		}
		publish(embedded(t, place("copy")), place("copy"))
		// A folder other than the database's is another target, whether or not the first one
		// exists.
		other, _ := file(t)
		refused(t, db, other)
		if err := os.Remove(filepath.Join(place("new"), "events.ndjson")); err != nil {
			t.Fatal(err)
		}
		refused(t, db, other)
	}
	t.Run("two folders", func(t *testing.T) {
		data, database := t.TempDir(), t.TempDir()
		db := embedded(t, database)
		first := fileAt(t, filepath.Join(data, "events.ndjson"))
		startRelay(t, db, first, relay.Config{}, relay.Options{})
		outboxtest.AddKeys(t, db, "a")
		drained(t, db)
		refused(t, db, fileAt(t, filepath.Join(database, "events.ndjson")))
	})
}

// After the migration the target is the one that relays of the previous release had published to,
// and their statements still work.
func TestTargetOfTheReleaseBeforeIsAdopted(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO outbox_target (name, partitions) VALUES (?, ?) ON CONFLICT DO NOTHING`
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		dialect := "sqlite"
		if db.IsPostgres() {
			dialect = "postgres"
		}
		run := func(way string) {
			t.Helper()
			text, err := os.ReadFile(filepath.Join("..", "..", "..", "migrations", dialect,
				"20261128000200_outbox_target.tx."+way+".sql"))
			switch {
			case err != nil:
			case db.IsPostgres():
				err = db.Postgres(t.Context(), func(c *pgx.Conn) error {
					_, err := c.PgConn().Exec(t.Context(), string(text)).ReadAll()
					return err
				})
			default:
				_, err = db.Write(t.Context(), string(text))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		write := func(query string, args ...any) error {
			_, err := db.Write(t.Context(), query, args...)
			return err
		}
		run("down")
		first, path := file(t)
		if err := write(insert, first.Name(), 1); err != nil {
			t.Fatal(err)
		}
		run("up")
		if got := target(t, db); got.Name != first.Name() || got.Partitions != 1 || !got.Since.IsZero() {
			t.Errorf("adopted %+v", got)
		}
		other, _ := file(t)
		if err := write(insert, first.Name(), 1); err != nil {
			t.Errorf("a relay of the release before, to the target: %v", err)
		}
		if err := write(insert, other.Name(), 1); err == nil {
			t.Error("a relay of the release before may publish elsewhere")
		}
		refused(t, db, other)
		stop := startRelay(t, db, first, relay.Config{}, relay.Options{})
		outboxtest.AddKeys(t, db, "a")
		drained(t, db)
		stop()
		if n := len(lines(t, path)); n != 1 {
			t.Errorf("%d events published, want 1", n)
		}

		// There were several targets: it is one of them, and the first relay's.
		run("down")
		if err := errors.Join(write(insert, first.Name(), 1), write(insert, other.Name(), 1)); err != nil {
			t.Fatal(err)
		}
		run("up")
		third, _ := file(t)
		if why := refused(t, db, third); !strings.Contains(why, first.Name()[5:]) ||
			!strings.Contains(why, other.Name()[5:]) {
			t.Errorf("it does not name both: %s", why)
		}
		startRelay(t, db, other, relay.Config{}, relay.Options{})
		outboxtest.AddKeys(t, db, "a")
		drained(t, db)
		refused(t, db, first)
	})
}

// place is a target whose identity the test sets.
type place struct {
	relay.Sink
	mu       sync.Mutex
	identity string
	err      error
}

func (p *place) set(identity string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity, p.err = identity, err
}

func (p *place) Identity(context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.identity, p.err
}

func (p *place) Name() string { return "kafka:events" }

// A target that cannot be reached at the start is recorded by its name, and meanwhile no other
// relay publishes. When it is reached it must be the same one.
func TestTargetThatIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		real, path := file(t)
		s := &place{Sink: real, err: errors.New("no broker answers")}
		outboxtest.AddKeys(t, db, "a")
		stop := startRelay(t, db, s, relay.Config{}, relay.Options{})
		testenv.Eventually(t, "the target is recorded", func() bool {
			st, err := outbox.Status(t.Context(), db)
			return err == nil && st.Target() != nil
		})
		if got := target(t, db); got.Name != s.Name() || got.Identity != "" || got.Partitions != 0 {
			t.Errorf("recorded %+v", got)
		}
		other, elsewhere := file(t)
		refused(t, db, other)
		s.set("cluster-1", nil)
		drained(t, db)
		if got := target(t, db); got.Identity != "cluster-1" || got.Partitions != 1 {
			t.Errorf("recorded %+v", got)
		}
		stop()

		outboxtest.AddKeys(t, db, "a")
		for _, identity := range []string{"cluster-2", ""} {
			wrong := &place{Sink: other, identity: identity}
			if why := refused(t, db, wrong); !strings.Contains(why, `"events" of the cluster cluster-1`) {
				t.Errorf("it does not name the cluster: %s", why)
			}
		}
		late := &place{Sink: other, err: errors.New("no broker answers")}
		r, err := relay.New(db, late, relay.Config{}, relay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- r.Run(t.Context()) }()
		late.set("cluster-2", nil)
		if err := <-done; !errors.Is(err, outbox.ErrOtherTarget) {
			t.Errorf("it came back as another cluster: %v, want ErrOtherTarget", err)
		}
		if got := lines(t, elsewhere); len(got) != 0 {
			t.Errorf("published elsewhere: %v", got)
		}
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		if n := len(lines(t, path)); n != 2 {
			t.Errorf("%d events published, want 2", n)
		}
	})
}

// A cluster that does not say its id is identified by its topic alone, until it does.
func TestClusterWithoutAnIDIsToldByItsTopic(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	for _, identity := range []string{"", "", "cluster-1"} {
		if _, err := outbox.AdmitTarget(t.Context(), db, "kafka:events", &identity); err != nil {
			t.Fatal(err)
		}
	}
	if err := outbox.CheckTarget(t.Context(), db, "kafka:other", nil); !errors.Is(err, outbox.ErrOtherTarget) {
		t.Errorf("another topic: %v", err)
	}
	if got := target(t, db); got.Identity != "cluster-1" {
		t.Errorf("recorded %+v", got)
	}
}

func TestKafkaClusterIsToldByItsID(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	db := dbtest.Postgres(t)
	stop := startRelay(t, db, kafka(t, cfg), relay.Config{}, relay.Options{})
	outboxtest.AddKeys(t, db, "a")
	drained(t, db)
	stop()
	if got := target(t, db); got.Name != "kafka:"+cfg.Topic || got.Partitions != 4 || got.Identity == "" {
		t.Errorf("recorded %+v", got)
	}
	// The same cluster at another address.
	same := cfg
	same.Brokers = slices.Clone(cfg.Brokers)
	for i, b := range same.Brokers {
		same.Brokers[i] = strings.Replace(b, "127.0.0.1", "localhost", 1)
	}
	stop = startRelay(t, db, kafka(t, same), relay.Config{}, relay.Options{})
	outboxtest.AddKeys(t, db, "a")
	drained(t, db)
	stop()
	// Another cluster with a topic of the same name.
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, cfg.Topic), kfake.ClusterID("another"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	other := sink.KafkaConfig{Brokers: c.ListenAddrs(), Topic: cfg.Topic}
	if why := refused(t, db, kafka(t, other)); !strings.Contains(why, "another") {
		t.Errorf("it does not name the cluster: %s", why)
	}
	if got, err := outboxtest.ReadKafka(t.Context(), other.Brokers, other.Topic); err != nil || len(got) != 0 {
		t.Errorf("published elsewhere: %v, %v", got, err)
	}
	if got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic); err != nil || len(got) != 2 {
		t.Errorf("published %v, %v", got, err)
	}
}

// A topic that is deleted and created again while a relay runs is the same target.
func TestTopicMayBeMadeAgain(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	db := dbtest.Postgres(t)
	startRelay(t, db, kafka(t, cfg), relay.Config{}, relay.Options{})
	outboxtest.AddKeys(t, db, "a")
	drained(t, db)
	request(t, cfg, func(c *kgo.Client) error {
		req := kmsg.NewPtrDeleteTopicsRequest()
		one := kmsg.NewDeleteTopicsRequestTopic()
		one.Topic = &cfg.Topic
		req.Topics, req.TopicNames = append(req.Topics, one), append(req.TopicNames, cfg.Topic)
		resp, err := req.RequestWith(t.Context(), c)
		if err == nil {
			err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
		}
		return err
	})
	k := kafka(t, cfg)
	testenv.Eventually(t, "the topic is gone", func() bool {
		_, err := k.Partitions(t.Context())
		stalled, ok := errors.AsType[*relay.Stalled](err)
		return ok && stalled.Kind == "topic"
	})
	outboxtest.AddKeys(t, db, "a")
	ensure(t, cfg)
	drained(t, db)
	if got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic); err != nil || len(got) != 1 ||
		got[0].Seq != 2 {
		t.Errorf("published %v, %v", got, err)
	}
}
