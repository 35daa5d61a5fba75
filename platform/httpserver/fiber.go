package httpserver

import (
	"bufio"
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// fastCarrier carries an exchange with fasthttp, on whose contexts Fiber works.
type fastCarrier struct{ ctx *fasthttp.RequestCtx }

func (c fastCarrier) method() string            { return string(c.ctx.Method()) }
func (c fastCarrier) path() string              { return string(c.ctx.URI().PathOriginal()) }
func (c fastCarrier) query() string             { return string(c.ctx.URI().QueryString()) }
func (c fastCarrier) header(name string) string { return string(c.ctx.Request.Header.Peek(name)) }
func (c fastCarrier) cookie(name string) string { return string(c.ctx.Request.Header.Cookie(name)) }
func (c fastCarrier) body() ([]byte, error)     { return c.ctx.Request.Body(), nil }
func (c fastCarrier) remote() netip.Addr        { return peer(c.ctx.RemoteAddr()) }
func (c fastCarrier) set(name, value string)    { c.ctx.Response.Header.Set(name, value) }
func (c fastCarrier) add(name, value string)    { c.ctx.Response.Header.Add(name, value) }
func (c fastCarrier) close()                    { c.ctx.SetConnectionClose() }

func (c fastCarrier) headers(name string) (values []string) {
	for _, value := range c.ctx.Request.Header.PeekAll(name) {
		values = append(values, string(value))
	}
	return values
}

func (c fastCarrier) send(status int, body []byte) {
	c.ctx.SetStatusCode(status)
	c.ctx.Response.SetBodyRaw(body)
}

// stream returns at once: write runs in another goroutine, and what it sends follows the headers.
func (c fastCarrier) stream(ctx context.Context, status int,
	write func(context.Context, *bufio.Writer, func(time.Time))) {
	conn := c.ctx.Conn()
	over := func() {}
	if one := ours(conn); one != nil && one.watched != nil {
		watched := one.watched
		watched.kept, ctx = true, watched.ctx
		over = func() { one.unwatch(watched) }
	}
	c.ctx.SetStatusCode(status)
	c.ctx.Response.ImmediateHeaderFlush = true
	c.ctx.Response.SetBodyStreamWriter(func(w *bufio.Writer) {
		defer over() // before fasthttp may read again
		write(ctx, w, func(deadline time.Time) { _ = conn.SetWriteDeadline(deadline) })
	})
}

// limit does not notice that a client left, so only the deadline ends the work.
func (c fastCarrier) limit(base context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(base, most)
}

// wait watches for the client to go.
func (c fastCarrier) wait(ctx context.Context) (context.Context, context.CancelFunc) {
	one := ours(c.ctx.Conn())
	if one == nil {
		return ctx, func() {}
	}
	w := one.watch(ctx)
	return w.ctx, func() {
		if !w.kept { // streams outlast the request
			one.unwatch(w)
		}
	}
}

func (c fastCarrier) trust() {
	if one := ours(c.ctx.Conn()); one != nil {
		one.listener.trust(one)
	}
}

type exchangeKey struct{}

func exchangeOf(fctx *fasthttp.RequestCtx) *exchange {
	return fctx.UserValue(exchangeKey{}).(*exchange)
}

// serve is what fasthttp calls for each request that could be read.
func (s *Server) serve(fctx *fasthttp.RequestCtx) {
	x := s.open(fctx)
	defer s.end(fctx, x)
	readWhole(fctx.Conn())
	if fault := wireFault(&fctx.Request.Header); fault != nil {
		x.carrier.close() // it is not certain where the next request begins
		if fault == errTwice {
			x.refuseTwice()
		} else {
			x.answer(fault)
		}
		return
	}
	switch string(fctx.Method()) {
	case fiber.MethodGet, fiber.MethodHead, fiber.MethodPost, fiber.MethodPut, fiber.MethodPatch, fiber.MethodDelete:
		s.fiber(fctx)
	default:
		// Fiber itself would answer methods that it does not know, in plain text.
		x.beyondRouter()
	}
}

// unreadable is what fasthttp calls when a request could not be read.
func (s *Server) unreadable(fctx *fasthttp.RequestCtx, err error) {
	x := s.open(fctx)
	defer s.end(fctx, x)
	x.quiet = isGone(err)
	x.unread, x.asked = true, asked(fctx.Conn())
	x.answer(readFault(err))
	lingerOnClose(fctx.Conn())
}

// expectation decides whether a client that asks first should send the body (RFC 9110 §10.1.1).
// Any status except 100 is the final answer, and ours has a body.
func (s *Server) expectation(fctx *fasthttp.RequestCtx) int {
	if fctx.Request.Header.ContentLength() <= MaxBody {
		return fasthttp.StatusContinue
	}
	s.unreadable(fctx, fasthttp.ErrBodyTooLarge)
	return fctx.Response.StatusCode()
}

func (s *Server) open(fctx *fasthttp.RequestCtx) *exchange {
	x := s.begin(fastCarrier{fctx})
	fctx.SetUserValue(exchangeKey{}, x)
	return x
}

// end closes the exchange, also after a panic.
func (s *Server) end(fctx *fasthttp.RequestCtx, x *exchange) {
	if value := recover(); value != nil {
		fctx.Response.Reset()
		x.panicked(value)
	}
	if s.stopping.Load() {
		x.carrier.close()
	}
	fctx.RemoveUserValue(exchangeKey{})
	x.end()
}

// fiberPattern is a path in Fiber's notation.
func fiberPattern(segments []string) string {
	parts := make([]string, len(segments))
	for i, segment := range segments {
		if parts[i] = segment; isParam(segment) {
			parts[i] = ":" + strings.Trim(segment, "{}")
		}
	}
	return strings.Join(parts, "/")
}
