package delivery_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// Each attempt to deliver an event is a span of the event's trace, and the sink's requests are
// inside it.
func TestEachAttemptIsASpanOfTheEventsTrace(t *testing.T) { // not parallel: it sets the environment
	collector := tracingtest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tracer, err := tracing.Open(t.Context(), "test", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	db := dbtest.SQLite(t)
	subscribe(t, db, "one")
	err = db.Tx(tracingtest.Within(t.Context(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
		func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, outboxtest.Event("a")) })
	if err != nil {
		t.Fatal(err)
	}
	outboxtest.AddKeys(t, db, "a")
	s := newReceivers()
	s.answer = func(ctx context.Context, _ string, r outbox.Record, a delivery.Attempt) error {
		_, span := tracing.Start(ctx, "inside")
		span.End()
		if r.Seq == 1 && a.Number == 1 {
			return errors.New("user@example.com is not in")
		}
		return nil
	}
	stop, _ := start(t, db, s, quick, func(opt *delivery.Options) { opt.Tracer = tracer })
	empty(t, db, "one")
	stop()
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	var failed, took, inside int
	for _, span := range collector.Spans() {
		a := span.Attributes
		switch {
		case span.Trace != "0af7651916cd43dd8448eb211c80319c":
			t.Errorf("another trace: %+v", span)
		case span.Name == "inside":
			inside++
		case span.Name != "send one", span.Parent != "b7ad6b7169203331", !slices.Equal(span.Links,
			[]string{span.Parent}),
			a["messaging.system"] != "webhook", a["messaging.destination.name"] != "one", a["messaging.message.id"] == "":
			t.Errorf("the span is %+v", span)
		case span.Failed && a["authctl.attempt"] == "1":
			failed++
		case !span.Failed && a["authctl.attempt"] == "2":
			took++
		}
	}
	if failed != 1 || took != 1 || inside != 2 {
		t.Errorf("%d failed, %d succeeded, %d spans inside them: %+v", failed, took, inside, collector.Spans())
	}
}
