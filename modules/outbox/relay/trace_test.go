package relay_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// shaky fails at first.
type shaky struct {
	relay.Sink
	attempts atomic.Int64
}

func (s *shaky) Publish(ctx context.Context, b *relay.Batch) error {
	if s.attempts.Add(1) == 1 {
		return errors.New("not now")
	}
	return s.Sink.Publish(ctx, b)
}

func tracer(t *testing.T) (*tracing.Tracer, *tracingtest.Collector) {
	t.Helper()
	collector := tracingtest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_on") // the event's flag decides, not this one
	tracer, err := tracing.Open(t.Context(), "test", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	return tracer, collector
}

// Each event that was written within a recorded span is sent within another span of the same trace,
// until the target has it. Other events have no span.
func TestSendingIsASpanOfTheEventsTrace(t *testing.T) { // not parallel: it sets the environment
	tracer, collector := tracer(t)
	db := dbtest.SQLite(t)
	const first, second, parent = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for key, parent := range map[string]string{
		"good": "00-" + first + "-" + parent + "-01", "bad": "00-" + second + "-" + parent + "-01",
		"not": "00-" + first + "-" + parent + "-00", "none": "",
	} {
		err := db.Tx(tracingtest.Within(t.Context(), parent), func(ctx context.Context, tx database.Tx) error {
			return outbox.Add(ctx, tx, outboxtest.Event(key))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	real, path := file(t)
	s := &shaky{Sink: &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Key == "bad" }}}
	stop := startRelay(t, db, s, relay.Config{Lease: time.Minute}, relay.Options{Tracer: tracer}) // no batch is given up
	drained(t, db)
	stop()
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	slices.Sort(got)
	if strings.Join(got, " ") != "good/1 none/1 not/1" {
		t.Errorf("published %v", got)
	}
	var taken, refused int
	for _, span := range collector.Spans() {
		a := span.Attributes
		if span.Name != "send "+path || span.Parent != parent || !slices.Equal(span.Links, []string{parent}) ||
			a["messaging.system"] != "file" || a["messaging.destination.name"] != path ||
			a["messaging.message.id"] == "" {
			t.Errorf("the span is %+v", span)
		}
		switch {
		case span.Trace == second && span.Failed:
			refused++
		case span.Trace == first && !span.Failed && a["authctl.outcome"] == "":
			taken++
		case span.Trace != first || span.Failed: // but not events that were refused together with another one
			t.Errorf("the span is %+v", span)
		}
	}
	if taken != 1 || refused != 1 {
		t.Errorf("%d spans of accepted events, %d of refused ones: %+v", taken, refused, collector.Spans())
	}
	again := func(s tracingtest.Span) bool { return s.Attributes["authctl.attempts"] == "2" }
	if n := s.attempts.Load(); n < 3 || !slices.ContainsFunc(collector.Spans(), again) {
		t.Errorf("%d attempts, and no span says 2: %+v", n, collector.Spans())
	}
}
