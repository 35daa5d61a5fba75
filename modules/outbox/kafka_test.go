package outbox_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// topic makes a topic of its own on the shared Kafka and returns how to reach it.
func topic(t testing.TB, partitions int) sink.KafkaConfig {
	t.Helper()
	cfg := sink.KafkaConfig{Brokers: strings.Split(testenv.Kafka(t), ","), Topic: "test." + uuid.NewString(), Partitions: partitions}
	st, err := kafka(t, cfg).EnsureTopic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !st.Created || st.Partitions != partitions || len(st.Problems) > 0 {
		t.Fatalf("made %+v", st)
	}
	return cfg
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

func TestRelayKeepsEveryPromiseToKafka(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	cfg := topic(t, 8)
	waker := outbox.NewWaker(db)
	t.Cleanup(waker.Close)
	log := &outboxtest.Log{}
	w := outboxtest.Workload{DB: db, Log: log, Writers: 8, Keys: 50, Limit: 4000, Waker: waker}
	stopFirst := relay(t, db, kafka(t, cfg), outbox.Config{}, outbox.RelayOptions{Waker: waker, Name: "first"})
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(t.Context()) })
	eventually(t, "the first thousand", func() bool { return log.Committed() > 1000 })
	relay(t, db, kafka(t, cfg), outbox.Config{}, outbox.RelayOptions{Name: "second"})
	eventually(t, "the next thousand", func() bool { return log.Committed() > 2000 })
	stopFirst()
	wg.Wait()
	drained(t, db)
	checkKafka(t, log, cfg, 0)
}
