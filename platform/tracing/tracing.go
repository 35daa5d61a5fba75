// Package tracing makes OpenTelemetry spans and sends them to a collector by OTLP. The standard OTEL_*
// variables configure it, and without an endpoint in them it is off: then nothing is made, and
// the functions of this package do no more than look at the context.
//
// Only a request begins a trace, with [Tracer.Server]. What is done for it adds its spans with [Start]
// and [Client], which find the trace in the context: there is nothing to pass on, and work
// outside of a request that is sampled makes no spans. What is done for it later, and elsewhere, goes on
// with [Tracer.Continue] from what [Parent] wrote down.
package tracing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// scope names this instrumentation in spans.
const scope = "github.com/toppira/authctl"

// Tracer begins traces. Nil is one that begins none.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open starts to send spans if the environment names a collector, and returns nil otherwise. The caller
// closes the tracer. A collector that is away is no error: its spans are dropped, and the log says so.
func Open(ctx context.Context, version string, log *zap.Logger) (*Tracer, error) {
	if !named() {
		return nil, nil
	}
	if err := checkProtocol(); err != nil {
		return nil, err
	}
	client, err := newCollector(version, os.Getenv)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("send spans: %w", err)
	}
	what, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "authctl"), attribute.String("service.version", version)),
		resource.WithHost(), resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("describe this process to the collector: %w", err), exporter.Shutdown(ctx))
	}
	otel.SetLogger(logr.Discard()) // it writes lines of its own to stderr
	otel.SetErrorHandler(&complaints{log: log})
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(what)) // the sampler is OTEL_TRACES_SAMPLER
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}, nil
}

// named reports whether the environment names a collector, and does not turn spans off.
func named() bool {
	exporters := strings.Split(cmp.Or(os.Getenv("OTEL_TRACES_EXPORTER"), "otlp"), ",")
	return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != "" &&
		slices.Contains(exporters, "otlp") && !strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true")
}

// checkProtocol refuses a protocol that spans are not sent by.
func checkProtocol() error {
	if name, protocol := exporterEnv(os.Getenv).get("PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return fmt.Errorf("%s=%s: spans are sent by http/protobuf alone; remove the variable, and name the "+
			"collector's port for HTTP, which is usually 4318", name, protocol)
	}
	return nil
}

// Probe sends nothing to the collector that the environment names, to see whether it takes spans. on is
// false if there is none.
func Probe(ctx context.Context, version string) (on bool, err error) {
	if !named() {
		return false, nil
	}
	if err := checkProtocol(); err != nil {
		return true, err
	}
	client, err := newCollector(version, os.Getenv)
	if err != nil {
		return true, err
	}
	client.tries = 1
	if err := client.UploadTraces(ctx, nil); err != nil {
		return true, errors.Join(fmt.Errorf("send spans: %w", err), client.Stop(ctx))
	}
	return true, client.Stop(ctx)
}

// Close sends what waits, for a few seconds at most.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(fmt.Errorf("send the last spans: %w", err)) // no reason to fail
	}
	return nil
}

// complaints puts errors of the exporter into the log, now and then.
type complaints struct {
	log  *zap.Logger
	mu   sync.Mutex
	last time.Time
}

// Handle implements otel.ErrorHandler.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.last) > time.Minute {
		c.last = now
		c.log.Warn("spans_not_sent", zap.Error(err))
	}
}

// Span is a piece of work in a trace. The zero one is of no trace, and does nothing.
type Span struct{ span trace.Span }

// Server begins the span of a request, which began at the time, in the trace that its headers name (W3C
// Trace Context), or in a new one. A nil tracer returns ctx and the zero span.
func (t *Tracer) Server(ctx context.Context, header func(string) string, name string, at time.Time) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, carrier(header))
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(at))
	return ctx, Span{span}
}

// carrier reads the headers of a request.
type carrier func(string) string

func (c carrier) Get(name string) string { return c(name) }
func (carrier) Set(string, string)       {}
func (carrier) Keys() []string           { return nil }

// Start begins a span within the one of the context, if that is recorded.
func Start(ctx context.Context, name string) (context.Context, Span) {
	return child(ctx, name, trace.SpanKindInternal)
}

// Client is [Start] for what another process is asked.
func Client(ctx context.Context, name string) (context.Context, Span) {
	return child(ctx, name, trace.SpanKindClient)
}

// Producer is [Start] for making what another process works on later, such as an event. [Parent] of the
// returned context goes with it.
func Producer(ctx context.Context, name string) (context.Context, Span) {
	return child(ctx, name, trace.SpanKindProducer)
}

func child(ctx context.Context, name string, kind trace.SpanKind) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithSpanKind(kind))
	return ctx, Span{span}
}

// Continue begins a span of work for another process in the trace that a traceparent names, long after it
// was written down by [Parent]. It is a child of the span that was written down, and linked to it as the
// conventions for messages want it. Without a traceparent, or if that span was not recorded, there is none.
func (t *Tracer) Continue(ctx context.Context, traceparent, name string) (context.Context, Span) {
	if t == nil || traceparent == "" {
		return ctx, Span{}
	}
	within := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
	from := trace.SpanContextFromContext(within)
	if !from.IsSampled() {
		return ctx, Span{}
	}
	within, span := t.tracer.Start(within, name, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithLinks(trace.Link{SpanContext: from}))
	return within, Span{span}
}

// Past adds a span for what has already happened.
func Past(ctx context.Context, name string, from, to time.Time) {
	if parent := trace.SpanFromContext(ctx); parent.IsRecording() {
		_, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithTimestamp(from))
		span.End(trace.WithTimestamp(to))
	}
}

// Parent is the W3C traceparent of the context's span, for what continues the trace later or elsewhere. It
// is empty outside of a trace. That of a span that is not recorded says so.
func Parent(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	flags := span.TraceFlags() & trace.FlagsSampled
	return "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + flags.String()
}

// Recorded reports whether what is said of the span goes anywhere.
func (s Span) Recorded() bool { return s.span != nil && s.span.IsRecording() }

// Rename gives the span the name by which it is found.
func (s Span) Rename(name string) {
	if s.span != nil {
		s.span.SetName(name)
	}
}

// Set says something of the span, by the semantic conventions. A value is a string or an int.
func (s Span) Set(key string, value any) {
	if !s.Recorded() {
		return
	}
	switch value := value.(type) {
	case string:
		s.span.SetAttributes(attribute.String(key, value))
	case int:
		s.span.SetAttributes(attribute.Int(key, value))
	}
}

// Fail says that the work failed. The text must not hold a value of a statement or a request.
func (s Span) Fail(why string) {
	if s.Recorded() {
		s.span.SetStatus(codes.Error, why)
	}
}

// End ends the span now.
func (s Span) End() {
	if s.span != nil {
		s.span.End()
	}
}

// EndAt ends the span at a time.
func (s Span) EndAt(at time.Time) {
	if s.span != nil {
		s.span.End(trace.WithTimestamp(at))
	}
}

// TraceID is the trace's, for the log; empty for the zero span.
func (s Span) TraceID() string {
	if s.span == nil || !s.span.SpanContext().HasTraceID() {
		return ""
	}
	return s.span.SpanContext().TraceID().String()
}

// Observe observes a value, with the trace of the context as its exemplar if that is recorded.
func Observe(ctx context.Context, to prometheus.Observer, value float64) {
	Span{trace.SpanFromContext(ctx)}.Observe(to, value)
}

// Observe is the function of that name for the span's own trace.
func (s Span) Observe(to prometheus.Observer, value float64) {
	if with, can := to.(prometheus.ExemplarObserver); can && s.Recorded() {
		with.ObserveWithExemplar(value, prometheus.Labels{"trace_id": s.TraceID()})
		return
	}
	to.Observe(value)
}
