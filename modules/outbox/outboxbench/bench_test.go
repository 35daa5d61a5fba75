package outboxbench_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox/outboxbench"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// The figures are for people. AUTHCTL_BENCH is the length of the runs in seconds.
func options(t *testing.T) outboxbench.Options {
	t.Helper()
	opt := outboxbench.Options{Events: 2000, Rate: 200, Duration: 400 * time.Millisecond, Writers: 4,
		Progress: func(s string) { t.Log(s) }}
	if s, err := strconv.Atoi(os.Getenv("AUTHCTL_BENCH")); err == nil {
		opt = outboxbench.Options{Duration: time.Duration(s) * time.Second, Progress: opt.Progress}
	}
	return opt
}

func TestBenchMeasuresKafka(t *testing.T) {
	opt := options(t)
	cfg := sink.KafkaConfig{Brokers: strings.Split(testenv.Kafka(t), ","), Topic: "bench." + uuid.NewString()}
	k, err := sink.OpenKafka(cfg, sink.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := k.EnsureTopic(t.Context()); err != nil {
		t.Fatal(err)
	}
	opt.DB, opt.Sink = dbtest.Postgres(t), k
	show(t, opt)
}

func TestBenchMeasuresTheFile(t *testing.T) {
	opt := options(t)
	s, err := sink.OpenFile(filepath.Join(t.TempDir(), "events.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	opt.DB, opt.Sink, opt.Config = dbtest.SQLite(t), s, relay.Config{}
	show(t, opt)
}

func show(t *testing.T, opt outboxbench.Options) {
	t.Helper()
	report, err := outboxbench.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(string(text))
	if report.DrainPerSec <= 0 || report.BarePerSec <= 0 || report.LatencyP99 <= 0 || report.WritersOutbox <= 0 {
		t.Error("something was not measured")
	}
}
