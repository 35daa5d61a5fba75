package relay

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/toppira/authctl/platform/tracing"
)

// maxSpans is how many events of one batch get a span. More would only push other spans out of the queue
// to the collector.
const maxSpans = 128

// sending are the spans of a batch, from the first attempt until the target has it.
type sending []sent

type sent struct {
	tracing.Span
	index int // of its record
}

// traced begins a span for each event of the batch whose trace is recorded. It is in the event's own trace,
// and not one span for the batch with links to the events: a trace does not show what is linked to it.
func (r *Relay) traced(ctx context.Context, b *Batch) (spans sending) {
	if r.tracer == nil {
		return nil
	}
	system, destination, _ := strings.Cut(r.sink.Name(), ":")
	name := "send " + destination
	for i := range b.Records {
		_, span := r.tracer.Continue(ctx, b.Records[i].TraceParent, name)
		if !span.Recorded() {
			continue
		}
		span.Set("messaging.system", system)
		span.Set("messaging.destination.name", destination)
		span.Set("messaging.destination.partition.id", strconv.Itoa(b.Partition))
		span.Set("messaging.operation.name", "send")
		span.Set("messaging.operation.type", "send")
		span.Set("messaging.message.id", b.Records[i].EventID)
		span.Set("messaging.batch.message_count", len(b.Records))
		if spans = append(spans, sent{span, i}); len(spans) == maxSpans {
			break
		}
	}
	return spans
}

// end says what came of it.
func (s sending) end(attempts int, refused *Refused, ok bool) {
	for _, span := range s {
		span.Set("authctl.attempts", attempts)
		switch {
		case !ok:
			span.Fail("given up: another relay sends the batch, or this one when it runs again")
		case refused != nil && len(refused.Records) > 0 && !slices.Contains(refused.Records, span.index):
			span.Set("authctl.outcome", "sent again without a refused event")
		case refused != nil:
			span.Fail("the target refuses an event of the batch for good")
		}
		span.End()
	}
}
