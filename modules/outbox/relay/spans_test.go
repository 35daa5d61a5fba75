package relay

import (
	"testing"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

type namedSink struct{ Sink }

func (namedSink) Name() string { return "kafka:auth.events" }

// A long backlog does not crowd out all other spans, and without a collector there are none.
func TestOfALargeBatchFewEventsHaveSpans(t *testing.T) { // not parallel: it sets the environment
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", tracingtest.New(t).URL)
	tracer, err := tracing.Open(t.Context(), "test", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	b := &Batch{Records: make([]Record, 1000)}
	for i := range b.Records {
		if i%2 == 0 {
			b.Records[i].TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		}
	}
	for _, test := range []struct {
		tracer *tracing.Tracer
		want   int
	}{{tracer, maxSpans}, {nil, 0}} {
		spans := (&Relay{tracer: test.tracer, sink: namedSink{}}).traced(t.Context(), b)
		spans.end(1, nil, true)
		if len(spans) != test.want {
			t.Errorf("%d spans, want %d", len(spans), test.want)
		}
	}
}
