// Package tracing makes OpenTelemetry spans and sends them to a collector by OTLP. The standard OTEL_*
// variables configure it. Without an endpoint it is off: then it makes no spans, and
// its functions only look at the context.
//
// Only a request begins a trace, with [Tracer.Server]. Its work adds spans with [Start]
// and [Client], which find the trace in the context; work outside a sampled request makes no spans.
// Work that is done later or elsewhere continues the trace with [Tracer.Continue], from the traceparent
// that [Parent] returned.
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

// Tracer begins traces. A nil Tracer begins none.
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
	client, err := newCollector(version, os.Getenv)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("send spans: %w", err)
	}
	what, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "authctl"),
			attribute.String("service.version", version)),
		resource.WithHost(), resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override the others
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("describe this process to the collector: %w", err), exporter.Shutdown(ctx))
	}
	otel.SetLogger(logr.Discard()) // it would write to stderr
	otel.SetErrorHandler(&complaints{log: log})
	// The sampler is OTEL_TRACES_SAMPLER.
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(what))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}, nil
}

// named reports whether the environment names a collector, and does not turn spans off.
func named() bool {
	exporters := strings.Split(cmp.Or(os.Getenv("OTEL_TRACES_EXPORTER"), "otlp"), ",")
	return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != "" &&
		slices.Contains(exporters, "otlp") && !strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true")
}

// Check reports what is wrong with the variables that name a collector. It does not connect.
func Check() error {
	if !named() {
		return nil
	}
	client, err := newCollector("", os.Getenv)
	if err != nil {
		return err
	}
	client.stop()
	return nil
}

// Probe sends an empty request to the collector that the environment names, to see whether it takes spans.
// on is false if it names none.
func Probe(ctx context.Context, version string) (on bool, err error) {
	if !named() {
		return false, nil
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

// Close sends the waiting spans, for a few seconds at most.
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

// complaints logs errors of the exporter, at most once a minute.
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

// Span is a piece of work in a trace. The zero Span belongs to no trace and does nothing.
type Span struct{ span trace.Span }

// Server begins the span of a request, which began at the given time, in the trace of its headers (W3C
// Trace Context), or in a new one. A nil tracer returns ctx and the zero span.
func (t *Tracer) Server(
	ctx context.Context, header func(string) string, name string, at time.Time,
) (context.Context, Span) {
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

// Start begins a child of the context's span, if that is recorded.
func Start(ctx context.Context, name string) (context.Context, Span) {
	return child(ctx, name, trace.SpanKindInternal)
}

// Client is [Start] for a request to another process.
func Client(ctx context.Context, name string) (context.Context, Span) {
	return child(ctx, name, trace.SpanKindClient)
}

// Producer is [Start] for making something that another process works on later, such as an event. Pass
// [Parent] of the returned context along with it.
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

// Continue begins a span in the trace of a traceparent that [Parent] returned earlier, such as for sending
// an event. It is a child of the traceparent's span, and linked to it as the conventions for messages want
// it. Without a traceparent, or if its span was not recorded, it returns the zero span.
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

// Parent is the W3C traceparent of the context's span, to continue the trace later or elsewhere. It
// is empty outside a trace. If the span is not recorded, the traceparent says so.
func Parent(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	flags := span.TraceFlags() & trace.FlagsSampled
	return "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + flags.String()
}

// Recorded reports whether the span is recorded, so that its attributes matter.
func (s Span) Recorded() bool { return s.span != nil && s.span.IsRecording() }

// Rename changes the span's name.
func (s Span) Rename(name string) {
	if s.span != nil {
		s.span.SetName(name)
	}
}

// Set sets an attribute, by the semantic conventions. A value is a string or an int.
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

// Fail marks the work as failed. The text must not hold a value of a statement or a request.
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

// TraceID is the id of the trace, for the log; empty for the zero span.
func (s Span) TraceID() string {
	if s.span == nil || !s.span.SpanContext().HasTraceID() {
		return ""
	}
	return s.span.SpanContext().TraceID().String()
}

// ID is the attribute of a log line with the id of the context's trace; none if there is no trace.
func ID(ctx context.Context) zap.Field {
	if id := (Span{trace.SpanFromContext(ctx)}).TraceID(); id != "" {
		return zap.String("trace_id", id)
	}
	return zap.Skip()
}

// Observe observes a value, with the context's trace as its exemplar if that is recorded.
func Observe(ctx context.Context, to prometheus.Observer, value float64) {
	Span{trace.SpanFromContext(ctx)}.Observe(to, value)
}

// Observe is the function [Observe] with the span's own trace.
func (s Span) Observe(to prometheus.Observer, value float64) {
	if with, can := to.(prometheus.ExemplarObserver); can && s.Recorded() {
		with.ObserveWithExemplar(value, prometheus.Labels{"trace_id": s.TraceID()})
		return
	}
	to.Observe(value)
}
