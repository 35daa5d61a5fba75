package httpserver_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// Each request is one span of its client's trace, named by its pattern, not by its path.
func TestEachRequestIsASpan(t *testing.T) {
	collector := tracingtest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	tracer, err := tracing.Open(t.Context(), "test", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	var ways atomic.Int64
	type input struct {
		ID string `path:"id"`
	}
	httpservertest.Each(t, func(t *testing.T, start httpservertest.Start) {
		trace := fmt.Sprintf("%032x", 0xabc0+ways.Add(1))
		inside := func(ctx context.Context, in input) error {
			_, span := tracing.Start(ctx, "inside")
			span.End()
			if in.ID == "panics" {
				panic("it does")
			}
			return nil
		}
		base := start(t, httpserver.Options{Tracer: tracer},
			httpserver.Route{Method: "POST", Path: "/things/{id}/end", Do: httpserver.PublicDo(inside)},
			httpserver.Route{Method: "GET", Path: "/probe", Quiet: true, Do: httpserver.PublicDo(
				func(ctx context.Context, _ struct{}) error { return inside(ctx, input{}) })})
		for _, request := range []string{"GET /probe", "POST /things/canary/end", "POST /things/panics/end",
			"GET /canary", "BREW /things/canary/end"} {
			method, path, _ := strings.Cut(request, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("traceparent", "00-"+trace+"-b7ad6b7169203331-01")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
		}
		ours := func() (spans []tracingtest.Span) {
			for _, span := range collector.Spans() {
				if span.Trace == trace {
					spans = append(spans, span)
				}
			}
			return spans
		}
		want := map[string]int{
			"POST /things/{id}/end 204": 1, "POST /things/{id}/end 500 failed": 1, "GET 404": 1, "OTHER 405": 1,
			"inside ": 2,
		}
		testenv.Eventually(t, "the spans have come", func() bool { return len(ours()) >= 6 })
		got := map[string]int{}
		for _, span := range ours() {
			name := span.Name + " " + span.Attributes["http.response.status_code"]
			if span.Failed {
				name += " failed"
			}
			got[name]++
			if strings.Contains(fmt.Sprint(span.Attributes), "canary") {
				t.Errorf("%s reveals the path: %v", name, span.Attributes)
			}
			if (span.Name == "inside") == (span.Parent == "b7ad6b7169203331") {
				t.Errorf("the parent of %s is %s", name, span.Parent)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the spans are %v, want %v", got, want)
		}
	})
}
