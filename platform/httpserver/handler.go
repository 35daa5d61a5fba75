package httpserver

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// Handler serves routes in the host's own net/http server. Answers are the same as those of a
// [Server]: routing, bodies, errors, headers, CORS, the client's address, the log line and the
// metrics of a request.
//
// Functions get the values of the request's context, and its deadline if that is before the one of
// app.http.request_timeout. They do not notice that a client left, except on routes that wait.
//
// The host is responsible for what happens before a request is read: timeouts and limits of
// headers and connections (the only setting that counts is app.http.request_timeout), parsing
// (net/http accepts folded header lines and bare LF, and refuses in plain text), and an orderly
// stop: requests that wait end with their context. Its middleware must let a ResponseWriter flush
// (see [http.ResponseController]), or streams of events end at once. http.TimeoutHandler does not.
func Handler(cfg Config, opt Options, routes ...Route) (http.Handler, error) {
	cfg.TLS = TLSConfig{} // the host's
	s, err := newCore(cfg, opt, nil)
	if err != nil {
		return nil, err
	}
	for _, definition := range routes {
		s.add(definition)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := s.begin(&netCarrier{w: w, r: r})
		defer x.end()
		if sent, err := url.ParseRequestURI(r.RequestURI); err == nil {
			x.asked = sent.EscapedPath() // http.StripPrefix leaves it as it is
		}
		defer func() {
			if value := recover(); value != nil {
				x.panicked(value)
			}
		}()
		for _, single := range onceHeaders {
			if len(r.Header.Values(single)) > 1 {
				x.refuseTwice()
				return
			}
		}
		x.dispatch()
	}), nil
}

// dispatch does for net/http what Fiber's router and [Server.serve] do together.
func (x *exchange) dispatch() {
	switch method := x.carrier.method(); method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		r := x.find(method, x.carrier.path())
		if r == nil {
			x.answer(ErrNotFound)
		} else if err := x.run(r); err != nil {
			x.answer(err)
		}
	default:
		x.beyondRouter()
	}
}

// netCarrier carries an exchange with net/http.
type netCarrier struct {
	w    http.ResponseWriter
	r    *http.Request
	data []byte
	read bool
	err  error
}

func (c *netCarrier) method() string               { return c.r.Method }
func (c *netCarrier) path() string                 { return c.r.URL.EscapedPath() }
func (c *netCarrier) query() string                { return c.r.URL.RawQuery }
func (c *netCarrier) header(name string) string    { return c.r.Header.Get(name) }
func (c *netCarrier) headers(name string) []string { return c.r.Header.Values(name) }
func (c *netCarrier) set(name, value string)       { c.w.Header().Set(name, value) }
func (c *netCarrier) add(name, value string)       { c.w.Header().Add(name, value) }
func (c *netCarrier) close()                       { c.w.Header().Set("Connection", "close") }

func (c *netCarrier) cookie(name string) string {
	if cookie, err := c.r.Cookie(name); err == nil {
		return cookie.Value
	}
	return ""
}

func (c *netCarrier) body() ([]byte, error) {
	if c.read {
		return c.data, c.err
	}
	c.read = true
	c.data, c.err = io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(c.err, &tooLarge):
		c.err = ErrBodyTooLarge
	case c.err != nil:
		c.err = readFault(c.err)
	}
	return c.data, c.err
}

func (c *netCarrier) remote() netip.Addr {
	addr, err := netip.ParseAddrPort(c.r.RemoteAddr)
	if err != nil {
		host, _, _ := net.SplitHostPort(c.r.RemoteAddr)
		bare, _ := netip.ParseAddr(host)
		return bare.Unmap().WithZone("")
	}
	return addr.Addr().Unmap().WithZone("")
}

func (c *netCarrier) send(status int, body []byte) {
	if bodyAllowed(status) {
		c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	c.w.WriteHeader(status)
	if bodyAllowed(status) && c.r.Method != http.MethodHead {
		_, _ = c.w.Write(body) // a client that left cannot be told
	}
}

// stream writes until there is no more to send.
func (c *netCarrier) stream(ctx context.Context, status int,
	write func(context.Context, *bufio.Writer, func(time.Time))) {
	ctx, cancel := c.wait(ctx)
	defer cancel()
	control := http.NewResponseController(c.w)
	c.w.WriteHeader(status)
	_ = control.Flush()
	write(ctx, bufio.NewWriter(flusher{c.w, control}),
		func(deadline time.Time) { _ = control.SetWriteDeadline(deadline) })
}

// flusher hands on what is written at once.
type flusher struct {
	w       io.Writer
	control *http.ResponseController
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// limit keeps the values of the host's context, such as the span of a trace, and its deadline, which
// http.TimeoutHandler sets. As under Fiber, a client that leaves does not end the work: each one
// would cost a connection to the database, and count as an outage.
func (c *netCarrier) limit(base context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	until := time.Now().Add(most)
	if host, set := c.r.Context().Deadline(); set && host.Before(until) {
		until = host
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(c.r.Context()), until)
	unhook := context.AfterFunc(base, cancel)
	return ctx, func() { unhook(); cancel() }
}

// wait lifts the host's deadlines from the request.
func (c *netCarrier) wait(ctx context.Context) (context.Context, context.CancelFunc) {
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Time{}) // where that is not supported there is none
	_ = control.SetWriteDeadline(time.Time{})
	both, cancel := context.WithCancel(c.r.Context())
	unhook := context.AfterFunc(ctx, cancel)
	return both, func() { unhook(); cancel() }
}

func (c *netCarrier) trust() {} // connections are the host's

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
