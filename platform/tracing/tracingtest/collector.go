// Package tracingtest is a collector of spans for tests.
package tracingtest

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
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
	Links              []string // the traces that it is linked to
}

// Collector takes what is sent by OTLP over HTTP in protobuf.
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

// Spans are those that have come, in the order in which they ended or were sent.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

func (c *Collector) take(r *http.Request) error {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		return fmt.Errorf("is no request of OTLP: %v", r.Header)
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
	var request collector.ExportTraceServiceRequest
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
					ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()), Kind: s.GetKind(),
					Attributes: attributes(s.GetAttributes()), Failed: s.GetStatus().GetCode() == wire.Status_STATUS_CODE_ERROR,
					Begun: s.GetStartTimeUnixNano(), Ended: s.GetEndTimeUnixNano(), ResourceAttributes: about,
				}
				for _, link := range s.GetLinks() {
					span.Links = append(span.Links, hex.EncodeToString(link.GetTraceId()))
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
