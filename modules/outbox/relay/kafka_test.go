package relay_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// topic makes a topic on the shared Kafka and returns the settings for it.
func topic(t testing.TB, partitions int) sink.KafkaConfig {
	t.Helper()
	cfg := sink.KafkaConfig{Brokers: strings.Split(testenv.Kafka(t), ","), Topic: "test." + uuid.NewString(),
		Partitions: partitions}
	if st := ensure(t, cfg); st.Partitions != partitions || len(st.Problems) > 0 {
		t.Fatalf("made %+v", st)
	}
	return cfg
}

// ensure makes a topic with the usual limits of time, whatever those of the test.
func ensure(t testing.TB, cfg sink.KafkaConfig) (st sink.TopicState) {
	t.Helper()
	cfg.RequestTimeout, cfg.DialTimeout = 0, 0
	k := kafka(t, cfg)
	var err error
	for deadline := time.Now().Add(testenv.Patience); time.Now().Before(deadline); {
		if st, err = k.EnsureTopic(t.Context()); err == nil {
			return st
		}
		t.Logf("make the topic: %v", err) // a busy broker
	}
	t.Fatal(err)
	return st
}

func kafka(t testing.TB, cfg sink.KafkaConfig) *sink.Kafka {
	t.Helper()
	k, err := sink.OpenKafka(cfg, sink.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func checkKafka(t testing.TB, log *outboxtest.Log, cfg sink.KafkaConfig, duplicates int) {
	t.Helper()
	seen, err := outboxtest.ReadKafka(context.Background(), cfg.Brokers, cfg.Topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seen {
		if want := outbox.Partition(s.Key, cfg.Partitions); s.Partition != want {
			t.Fatalf("key %s is in partition %d, want %d", s.Key, s.Partition, want)
		}
	}
	report := outboxtest.Check(log.All(), seen)
	t.Log(report)
	if !report.Sound(duplicates) || report.Written == 0 {
		t.Error("promises were broken")
	}
}

// One user's event is too large for the topic. The relay identifies it among the others; its user
// waits, and the others go on.
func TestEventTooLargeForTheTopicParksItsKeyAlone(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	limit(t, cfg, 3000)
	db := dbtest.Postgres(t)
	large := largeEvent("big")
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 2, Keys: 20, Limit: 300}
	w.Run(t.Context())
	outboxtest.Add(t, db, outboxtest.Event("big"), large, outboxtest.Event("big"))
	w.Limit = 600
	w.Run(t.Context())
	startRelay(t, db, kafka(t, cfg), calm, relay.Options{})
	drained(t, db)
	keys, err := outbox.Parked(t.Context(), db)
	if err != nil || len(keys) != 1 || keys[0].Key != "big" || keys[0].Events != 2 {
		t.Fatalf("parked %+v, %v", keys, err)
	}
	var id string
	if err := db.QueryRowContext(t.Context(),
		`SELECT event_id FROM outbox_event WHERE key = 'big' AND key_seq = 1`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	log.Add(outboxtest.Written{ID: id, Key: "big", Seq: 1})
	checkKafka(t, log, cfg, 0)
}

// limit makes the topic refuse larger events.
func limit(t testing.TB, cfg sink.KafkaConfig, bytes int) {
	t.Helper()
	request(t, cfg, func(c *kgo.Client) error {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		res := kmsg.NewIncrementalAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, cfg.Topic
		change := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		change.Name, change.Value = "max.message.bytes", kmsg.StringPtr(strconv.Itoa(bytes))
		res.Configs = append(res.Configs, change)
		req.Resources = append(req.Resources, res)
		resp, err := req.RequestWith(t.Context(), c)
		if err == nil {
			err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
		}
		return err
	})
}

func largeEvent(key string) outbox.Event {
	noise := make([]byte, 4000) // a client that does not compress
	_, _ = rand.Read(noise)
	e := outboxtest.Event(key)
	e.Data = fmt.Appendf(nil, `{"a":"%x"}`, noise)
	return e
}

// A user is parked, and an operator replays an earlier event that the topic no longer accepts. The
// user waits from that event on, and the others go on.
func TestAReplayThatKafkaRefusesParksTheKeyFromThere(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 1)
	db := dbtest.Postgres(t)
	startRelay(t, db, kafka(t, cfg), relay.Config{}, relay.Options{})
	outboxtest.Add(t, db, largeEvent("big"), outboxtest.Event("big"), outboxtest.Event("small"))
	drained(t, db)
	limit(t, cfg, 3000)
	outboxtest.Add(t, db, largeEvent("big"))
	testenv.Eventually(t, "the new limit to hold", func() bool {
		keys, err := outbox.Parked(t.Context(), db)
		if err == nil && len(keys) == 0 {
			outboxtest.Add(t, db, largeEvent("big"))
		}
		return err == nil && len(keys) == 1
	})
	drained(t, db)
	if res, err := outbox.Replay(t.Context(), db, outbox.Selection{FromID: 1, ToID: 3}, false, nil); err != nil ||
		res.Enqueued != 3 {
		t.Fatalf("replay: %+v, %v", res, err)
	}
	outboxtest.AddKeys(t, db, "small")
	drained(t, db)
	keys, err := outbox.Parked(t.Context(), db)
	if err != nil || len(keys) != 1 || keys[0].ID != 1 {
		t.Fatalf("parked %+v, %v", keys, err)
	}
	seen, err := outboxtest.ReadKafka(context.Background(), cfg.Brokers, cfg.Topic)
	if err != nil {
		t.Fatal(err)
	}
	var others []string // in any order: the replay may come before or after the new event
	for _, s := range seen {
		if s.Key == "small" {
			others = append(others, fmt.Sprintf("%d replay=%v", s.Seq, s.Replay))
		}
	}
	slices.Sort(others)
	if got := strings.Join(others, ", "); got != "1 replay=false, 1 replay=true, 2 replay=false" {
		t.Errorf("published of the other key: %s", got)
	}
}

// Partitions are added while a relay runs, which would move keys. The relay stops and says so, and
// new events wait.
func TestRelayStopsWhenTheTopicIsRepartitioned(t *testing.T) {
	t.Parallel()
	cfg := topic(t, 4)
	db := dbtest.Postgres(t)
	k := kafka(t, cfg)
	first := startRelay(t, db, k, relay.Config{}, relay.Options{})
	outboxtest.AddKeys(t, db, "a")
	drained(t, db)
	first()
	request(t, cfg, func(c *kgo.Client) error {
		req := kmsg.NewPtrCreatePartitionsRequest()
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = cfg.Topic, 8
		req.Topics = append(req.Topics, topic)
		req.TimeoutMillis = 5000
		resp, err := req.RequestWith(t.Context(), c)
		if err == nil {
			err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
		}
		return err
	})
	testenv.Eventually(t, "the new partitions to show", func() bool {
		n, err := k.Partitions(t.Context())
		return err == nil && n == 8
	})
	outboxtest.AddKeys(t, db, "a")
	r, err := relay.New(db, k, relay.Config{}, relay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, outbox.ErrPartitionsChanged) ||
		!strings.Contains(err.Error(), "8 partitions") {
		t.Errorf("got %v, want ErrPartitionsChanged", err)
	}
	if n := pending(t, db); n != 1 {
		t.Errorf("%d events are waiting, want 1", n)
	}
}

func request(t testing.TB, cfg sink.KafkaConfig, do func(*kgo.Client) error) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := do(c); err != nil {
		t.Fatal(err)
	}
}

func TestRelayKeepsEveryPromiseToKafka(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	cfg := topic(t, 8)
	waker := relay.NewWaker(db)
	t.Cleanup(waker.Close)
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 8, Keys: 50, Limit: 4000, Wake: waker.Wake}
	stopFirst := startRelay(t, db, kafka(t, cfg), calm, relay.Options{Waker: waker, Name: "first"})
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(t.Context()) })
	testenv.Eventually(t, "the first thousand", func() bool { return log.Committed() > 1000 })
	startRelay(t, db, kafka(t, cfg), calm, relay.Options{Name: "second"})
	testenv.Eventually(t, "the next thousand", func() bool { return log.Committed() > 2000 })
	stopFirst()
	wg.Wait()
	drained(t, db)
	checkKafka(t, log, cfg, 0)
}
