package tracing_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// clear unsets the variables of this process's own environment.
func clear(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER",
	} {
		t.Setenv(name, "")
	}
}

func TestWithoutAnEndpointThereIsNoTracer(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, test := range []struct {
		env   string
		on    bool
		error string
	}{
		{"", false, ""},
		{"OTEL_SERVICE_NAME=x OTEL_TRACES_SAMPLER=always_on", false, ""},
		{endpoint + " OTEL_TRACES_EXPORTER=none", false, ""},
		{endpoint + " OTEL_SDK_DISABLED=true", false, ""},
		{endpoint, true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:1/v1/traces", true, ""},
		{endpoint + " OTEL_TRACES_EXPORTER=otlp", true, ""},
		{endpoint + " OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false, "4318"},
	} {
		t.Run(test.env, func(t *testing.T) {
			clear(t)
			for one := range strings.FieldsSeq(test.env) {
				name, value, _ := strings.Cut(one, "=")
				t.Setenv(name, value)
			}
			tracer, err := tracing.Open(t.Context(), "1", zap.NewNop())
			if (tracer != nil) != test.on || (err != nil) != (test.error != "") || err != nil &&
				!strings.Contains(err.Error(), test.error) {
				t.Errorf("tracer %v, %v", tracer, err)
			}
			if err := tracer.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOffNothingIsMade(t *testing.T) {
	clear(t)
	ctx := context.WithValue(t.Context(), t, "something")
	at := time.Now()
	var tracer *tracing.Tracer
	header := func(string) string { return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" }
	if n := testing.AllocsPerRun(100, func() {
		ctx, root := tracer.Server(ctx, header, "GET", at)
		ctx, span := tracing.Client(ctx, "SELECT")
		tracing.Past(ctx, "wait", at, at)
		span.Fail("x")
		span.End()
		root.EndAt(at)
		if root.TraceID() != "" || span.Recorded() || tracing.Parent(ctx) != "" {
			t.Error("there is a trace")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSpansAreSampledByTheirParent(t *testing.T) {
	clear(t)
	collector := tracingtest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	tracer, err := tracing.Open(t.Context(), "1.2.3", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	const sampled, not = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
	for _, parent := range []string{"00-" + sampled + "-b7ad6b7169203331-01", "00-" + not + "-b7ad6b7169203331-00",
		"", "nonsense"} {
		ctx, root := tracer.Server(t.Context(), func(name string) string {
			if name == "traceparent" {
				return parent
			}
			return ""
		}, "GET", time.Now())
		_, span := tracing.Client(ctx, "SELECT")
		span.End()
		tracing.Past(ctx, "wait", time.Now().Add(-time.Second), time.Now())
		root.End()
		if parent != "" && len(parent) > 50 && !strings.Contains(parent, root.TraceID()) {
			t.Errorf("the trace of %s is %s", parent, root.TraceID())
		}
	}
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	var roots, children, ours int
	testenv.Eventually(t, "the spans have come", func() bool { return len(collector.Spans()) >= 9 })
	for _, span := range collector.Spans() {
		if span.Trace == not {
			t.Errorf("%s is recorded, but its parent is not", span.Name)
		}
		if span.Trace == sampled {
			ours++
		}
		switch {
		case span.Name != "GET":
			children++
		case span.Trace == sampled && span.Parent != "b7ad6b7169203331", span.Trace != sampled && span.Parent != "":
			t.Errorf("the parent of %s is %q", span.Name, span.Parent)
		default:
			roots++
		}
		if a := span.ResourceAttributes; a["service.name"] != "authctl" || a["service.version"] != "1.2.3" ||
			a["deployment.environment.name"] != "test" {
			t.Errorf("the resource is %v", a)
		}
	}
	if roots != 3 || children != 6 || ours != 3 {
		t.Errorf("%d roots, %d children, %d of the client's trace", roots, children, ours)
	}
}

// The recorded parent of a span is the traceparent with which its trace continues.
func TestParentIsTheTraceparentOfTheSpan(t *testing.T) {
	clear(t)
	const span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
	for _, parent := range []string{span + "-01", span + "-00", ""} {
		if got := tracing.Parent(tracingtest.Within(t.Context(), parent)); got != parent {
			t.Errorf("the parent is %q, want %q", got, parent)
		}
	}
	// A flag of later versions is not passed on.
	later := tracingtest.Within(t.Context(), span+"-03")
	if got := tracing.Parent(later); !strings.HasSuffix(got, "-01") {
		t.Errorf("the parent is %q", got)
	}
}

func TestProbeSaysWhetherACollectorTakesSpans(t *testing.T) {
	collector := tracingtest.New(t)
	for _, test := range []struct {
		endpoint, protocol string
		on, works          bool
	}{
		{"", "", false, true},
		{collector.URL, "", true, true},
		{collector.URL, "grpc", true, false},
		{"http://127.0.0.1:1", "", true, false},
	} {
		clear(t)
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", test.endpoint)
		t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", test.protocol)
		if on, err := tracing.Probe(t.Context(), "1"); on != test.on || (err == nil) != test.works {
			t.Errorf("%+v: %v, %v", test, on, err)
		}
	}
	if spans := collector.Spans(); len(spans) > 0 {
		t.Errorf("spans were sent: %v", spans)
	}
}

// BenchmarkOff measures the cost of each call that would make a span, where no collector is
// configured. The context is as deep as a request's.
func BenchmarkOff(b *testing.B) {
	ctx := b.Context()
	type key int
	for i := range 8 {
		ctx = context.WithValue(ctx, key(i), i)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.Run("statement", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, span := tracing.Client(ctx, "database")
			if span.Recorded() {
				b.Fatal("there is a trace")
			}
			span.End()
		}
	})
	b.Run("event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ctx, span := tracing.Producer(ctx, "CloudEvents Create")
			span.End()
			if span.Recorded() || tracing.Parent(ctx) != "" {
				b.Fatal("there is a trace")
			}
		}
	})
	b.Run("request", func(b *testing.B) {
		var tracer *tracing.Tracer
		b.ReportAllocs()
		for b.Loop() {
			_, span := tracer.Server(ctx, nil, "GET", time.Time{})
			span.End()
		}
	})
}
