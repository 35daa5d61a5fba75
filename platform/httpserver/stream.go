package httpserver

import (
	"bufio"
	"bytes"
	"context"
	"net/http"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// Events are server-sent events, instead of the body of an answer: a function of a route that
// Waits returns them in the field Events of its output. They are made while they are sent; ctx
// ends when the server stops and, if that is known, when the client has gone. send returns an
// error when the client has gone.
type Events func(ctx context.Context, send func(Event) error)

// Event is one server-sent event. Only Data may have line breaks.
type Event struct {
	Name string
	ID   string // empty: none
	Data []byte // one line
}

func (e Event) write(w *bufio.Writer) error {
	field := func(name, value string) {
		if value != "" {
			_, _ = w.WriteString(name + ": " + value + "\n")
		}
	}
	field("event", e.Name)
	field("id", e.ID)
	for line := range bytes.SplitSeq(e.Data, []byte("\n")) {
		_, _ = w.WriteString("data: ")
		_, _ = w.Write(line)
		_ = w.WriteByte('\n')
	}
	_ = w.WriteByte('\n')
	return w.Flush() // the first error stays
}

// stream answers with events. The exchange may end before they do.
func (x *exchange) stream(events Events) {
	// no-transform (RFC 9111 §5.2.2.6): proxies that compress answers, such as Caddy, would hold events
	// back until a block is full.
	cache := "no-transform"
	if x.route.Cache != "" {
		cache = x.route.Cache + ", " + cache
	}
	x.carrier.set("Cache-Control", cache)
	x.carrier.set("Content-Type", "text/event-stream")
	x.carrier.set("X-Accel-Buffering", "no") // nginx hands them on as they come
	x.carrier.close()
	x.status = x.route.Status
	if x.carrier.method() == http.MethodHead {
		x.carrier.send(x.status, nil)
		over, cancel := context.WithCancel(x.waiting)
		cancel()
		events(over, func(Event) error { return context.Canceled }) // it may have something to release
		return
	}
	log, id, longest := x.log, x.id, x.cfg.HTTP.WriteTimeout
	x.carrier.stream(x.waiting, x.status, func(ctx context.Context, w *bufio.Writer, until func(time.Time)) {
		defer func() {
			if value := recover(); value != nil {
				log.Error("stream_panicked", zap.String("request_id", id), zap.Error(panicked{value}),
					zap.ByteString("stack", debug.Stack()))
			}
		}()
		events(ctx, func(e Event) error {
			until(time.Now().Add(longest))
			return e.write(w)
		})
	})
}
