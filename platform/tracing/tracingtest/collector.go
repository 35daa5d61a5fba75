// Package tracingtest is a collector of spans for tests.
package tracingtest

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span as a collector gets it.
type Span struct {
	Name, Service      string
	Trace, ID, Parent  string // in hex; Parent is empty at the root
	Kind               wire.Span_SpanKind
	Attributes         map[string]string
	Failed             bool
	Begun, Ended       uint64 // Unix nanoseconds
	ResourceAttributes map[string]string
	Links              []string // the spans that it is linked to
}

// Within is a context within the span of a traceparent, like a request's.
func Within(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// Collector accepts spans by OTLP over HTTP in protobuf.
type Collector struct {
	URL string

	mu    sync.Mutex
	spans []Span
}

// New starts a collector, which ends with the test.
func New(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(r); err != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Spans returns the spans received so far, in the order in which they ended or were sent.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Consume adds the span of another service that works on something with a traceparent.
func (c *Collector) Consume(ctx context.Context, service, name, traceparent string) error {
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exporter{c}),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", service))))
	_, span := provider.Tracer("consumer").Start(Within(ctx, traceparent), name,
		trace.WithSpanKind(trace.SpanKindConsumer))
	span.End()
	return provider.Shutdown(ctx)
}

// exporter passes spans of the SDK to a collector in the same process.
type exporter struct{ c *Collector }

func (e exporter) ExportSpans(_ context.Context, spans []sdk.ReadOnlySpan) error {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	for _, s := range spans {
		span := Span{
			Name: s.Name(), Trace: s.SpanContext().TraceID().String(), ID: s.SpanContext().SpanID().String(),
			Kind: wire.Span_SpanKind(s.SpanKind()), Attributes: map[string]string{},
			ResourceAttributes: map[string]string{},
			Begun:              uint64(s.StartTime().UnixNano()), Ended: uint64(s.EndTime().UnixNano()),
		}
		if s.Parent().IsValid() {
			span.Parent = s.Parent().SpanID().String()
		}
		for _, one := range s.Resource().Attributes() {
			span.ResourceAttributes[string(one.Key)] = one.Value.AsString()
		}
		span.Service = span.ResourceAttributes["service.name"]
		e.c.spans = append(e.c.spans, span)
	}
	return nil
}

func (exporter) Shutdown(context.Context) error { return nil }

func (c *Collector) take(r *http.Request) error {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" ||
		r.Header.Get("Content-Type") != "application/x-protobuf" {
		return fmt.Errorf("is not an OTLP request: %v", r.Header)
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			return err
		}
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var request wire.TracesData // looks like a request
	if err := proto.Unmarshal(text, &request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		about := attributes(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				span := Span{
					Name: s.GetName(), Service: about["service.name"], Trace: hex.EncodeToString(s.GetTraceId()),
					ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Kind:       s.GetKind(),
					Attributes: attributes(s.GetAttributes()),
					Failed:     s.GetStatus().GetCode() == wire.Status_STATUS_CODE_ERROR,
					Begun:      s.GetStartTimeUnixNano(), Ended: s.GetEndTimeUnixNano(), ResourceAttributes: about,
				}
				for _, link := range s.GetLinks() {
					span.Links = append(span.Links, hex.EncodeToString(link.GetSpanId()))
				}
				c.spans = append(c.spans, span)
			}
		}
	}
	return nil
}

func attributes(list []*common.KeyValue) map[string]string {
	values := map[string]string{}
	for _, one := range list {
		switch value := one.GetValue().GetValue().(type) {
		case *common.AnyValue_IntValue:
			values[one.GetKey()] = fmt.Sprint(value.IntValue)
		default:
			values[one.GetKey()] = one.GetValue().GetStringValue()
		}
	}
	return values
}
