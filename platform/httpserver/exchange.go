package httpserver

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/platform/tracing"
)

// exchange is one request and its answer. It is reused after end, so nothing may keep it.
type exchange struct {
	*core
	carrier carrier
	start   time.Time
	id      string     // of the request
	asked   string     // path that the client sent; empty: it is the carrier's, or unknown
	unread  bool       // the request could not be read
	route   *route     // nil until it is found
	client  netip.Addr // zero until asked for
	fields  Form       // of the form in the body, once it was read
	user    string     // the account's id
	code    string     // of the fault that was answered
	cause   error      // not told to the client
	stack   []byte     // of a panic
	quiet   bool       // not worth more than a debug line
	status  int        // of the answer
	span    tracing.Span
	bytes   int // of its body

	line [13]zap.Field // room for the log line
}

// carrier is what an exchange needs from the server below it: fasthttp under Fiber, or net/http.
// What it returns may be kept, except the body.
type carrier interface {
	method() string
	path() string // as it was sent, without the query
	query() string
	header(name string) string // the first of that name
	headers(name string) []string
	cookie(name string) string
	body() ([]byte, error)
	remote() netip.Addr // the other end of the connection; invalid when there is none

	set(name, value string) // a header of the answer
	add(name, value string)
	send(status int, body []byte)
	// stream answers with what write sends. write sets the deadline of each part with until.
	// stream may return before write does.
	stream(ctx context.Context, status int, write func(ctx context.Context, w *bufio.Writer, until func(time.Time)))
	// limit is the context of a request that may take this long. It also ends with base.
	limit(base context.Context, most time.Duration) (context.Context, context.CancelFunc)
	// wait says that the request waits for longer than others may take. The returned context also
	// ends when the client has gone, if that is known.
	wait(ctx context.Context) (context.Context, context.CancelFunc)
	trust() // the client is known: the connection no longer counts against its address
	close() // the connection, after the answer
}

// peer is where the request comes from.
func (x *exchange) peer() Peer {
	return Peer{IP: x.clientIP(), UserAgent: x.carrier.header("User-Agent"), RequestID: x.id}
}

// combined is the value of a header that may be a list: several lines of it are one value (RFC 9110 §5.3).
func (x *exchange) combined(name string) string { return strings.Join(x.carrier.headers(name), ", ") }

// clientIP is [Peer.IP].
func (x *exchange) clientIP() netip.Addr {
	if !x.client.IsValid() {
		hop := x.carrier.remote()
		var unread bool
		x.client, unread = x.trusted.client(hop, x.carrier)
		x.noteForwarding(hop, unread, x.carrier)
	}
	return x.client
}

// form is the form in the body, read once.
func (x *exchange) form() (Form, error) {
	if x.fields == nil {
		form, err := readForm(x)
		if err != nil {
			return nil, err
		}
		x.fields = form
	}
	return x.fields, nil
}

// proxies are the networks of app.trusted_proxies.
type proxies []netip.Prefix

func (p proxies) contain(addr netip.Addr) bool {
	return slices.ContainsFunc(p, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// client walks X-Forwarded-For from the right while the hop that wrote an entry is trusted. It
// ignores empty entries (RFC 9110 §5.6.1). One that is not an address ends the walk at the last
// known hop, and is reported as unread.
func (p proxies) client(hop netip.Addr, from carrier) (client netip.Addr, unread bool) {
	if len(p) == 0 || !p.contain(hop) {
		return hop, false
	}
	lines := from.headers("X-Forwarded-For")
	for i := len(lines) - 1; i >= 0; i-- {
		rest, entry := lines[i], ""
		for more := true; more; {
			if cut := strings.LastIndexByte(rest, ','); cut >= 0 {
				rest, entry = rest[:cut], rest[cut+1:]
			} else {
				entry, more = rest, false
			}
			if entry = strings.Trim(entry, " \t"); entry == "" {
				continue
			}
			addr, ok := forwardedAddr(entry)
			if !ok {
				return hop, true
			}
			if hop = addr; !p.contain(hop) {
				return hop, false
			}
		}
	}
	return hop, false
}

// forwardedAddr reads an entry of X-Forwarded-For: an address, which proxies also write in
// brackets, in quotes, or with a port.
func forwardedAddr(text string) (netip.Addr, bool) {
	if inner, quoted := strings.CutPrefix(text, `"`); quoted {
		if text, quoted = strings.CutSuffix(inner, `"`); !quoted {
			return netip.Addr{}, false
		}
	}
	host, port := text, ""
	if inner, bracket := strings.CutPrefix(text, "["); bracket {
		if host, port, bracket = strings.Cut(inner, "]"); !bracket {
			return netip.Addr{}, false
		}
	} else if at := strings.IndexByte(text, ':'); at >= 0 && at == strings.LastIndexByte(text, ':') {
		host, port = text[:at], text[at:]
	}
	if port != "" {
		if _, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16); err != nil || port[0] != ':' {
			return netip.Addr{}, false
		}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, false
	}
	return addr.Unmap().WithZone(""), true
}

// noteForwarding tells the operator, now and then, why clients cannot be told apart: a proxy
// writes entries that cannot be read, or is not trusted.
func (s *core) noteForwarding(hop netip.Addr, unread bool, from carrier) {
	const often = time.Hour
	switch {
	case unread:
		if s.unreadForward.due(s.now(), often) {
			s.log.Warn("forwarded_unread", zap.Stringer("proxy", hop),
				zap.String("hint", "an entry of X-Forwarded-For is not an address: let each proxy add its client's "+
					"address; otherwise all its clients count as one"))
		}
	case !s.trusted.contain(hop) && (hop.IsPrivate() || hop.IsLoopback()) && from.header("X-Forwarded-For") != "":
		if s.unknownProxy.due(s.now(), often) {
			s.log.Warn("proxy_not_trusted", zap.Stringer("proxy", hop),
				zap.String("hint", "if it is a proxy of yours, add its address to app.trusted_proxies; until then "+
					"all its clients count as one"))
		}
	}
}

// reminder says when a condition that lasts is due another line in the log.
type reminder struct{ last atomic.Int64 }

func (r *reminder) due(now time.Time, often time.Duration) bool {
	last := r.last.Load()
	return (last == 0 || now.Sub(time.Unix(0, last)) >= often) && r.last.CompareAndSwap(last, now.UnixNano())
}

// peer is the address at the other end of a connection; invalid when there is none.
func peer(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// askedFor is the path of the request, fit for logs and answers. It is * if none could be read,
// which in HTTP means the server as a whole (RFC 9112 §3.2.4).
func (x *exchange) askedFor() string {
	if x.unread {
		return cmp.Or(x.asked, "*")
	}
	return cleanPath(cmp.Or(x.asked, x.carrier.path()))
}

// begin opens an exchange and sets the headers that every answer has.
func (s *core) begin(c carrier) *exchange {
	x := s.exchanges.Get().(*exchange)
	*x = exchange{core: s, carrier: c, start: s.now(), id: requestID(c.header("X-Request-Id"))}
	s.metrics.inFlight.Inc()
	x.decorate()
	return x
}

func (x *exchange) run(r *route) error {
	x.route = r
	if r.page != nil {
		return r.page(x)
	}
	if r.Waits {
		ctx, cancel := x.carrier.wait(x.waiting)
		defer cancel()
		return r.Do.run(x.trace(ctx), x)
	}
	ctx, cancel := x.carrier.limit(x.base, x.cfg.HTTP.RequestTimeout)
	defer cancel()
	return r.Do.run(x.trace(ctx), x)
}

// trace begins the span of the request, unless it is one that nobody wants to see.
func (x *exchange) trace(ctx context.Context) context.Context {
	if x.tracer == nil || x.route != nil && x.route.Quiet {
		return ctx
	}
	ctx, x.span = x.tracer.Server(ctx, x.carrier.header, knownMethod(x.carrier.method()), x.start)
	return ctx
}

// endTrace says what became of the request.
func (x *exchange) endTrace(pattern, method string, took time.Duration) {
	if x.tracer != nil && x.span == (tracing.Span{}) { // what asks nobody else begins its span late
		x.trace(x.base)
	}
	if !x.span.Recorded() {
		return
	}
	x.span.Set("http.request.method", method)
	if x.route != nil {
		x.span.Rename(method + " " + pattern)
		x.span.Set("http.route", pattern)
	}
	x.span.Set("http.response.status_code", x.status)
	x.span.Set("authctl.request_id", x.id)
	if x.code != "" {
		x.span.Set("error.type", x.code)
	}
	if x.status >= http.StatusInternalServerError {
		x.span.Fail("")
	}
	x.span.EndAt(x.start.Add(took))
}

// beyondRouter answers methods that Fiber's router does not know.
func (x *exchange) beyondRouter() {
	method := x.carrier.method()
	switch r := x.find(method, x.carrier.path()); {
	case r != nil:
		if err := x.run(r); err != nil {
			x.answer(err)
		}
	case method == http.MethodOptions:
		x.options()
	default:
		x.answer(ErrMethodNotAllowed)
	}
}

// refuseTwice answers [errTwice]. Unlike for other faults of this kind, the route is known.
func (x *exchange) refuseTwice() {
	x.route = x.find(x.carrier.method(), x.carrier.path())
	x.answer(errTwice)
}

// success answers with what a function returned.
func (x *exchange) success(status int, contentType string, body []byte) {
	if x.route.Cache != "" {
		x.carrier.set("Cache-Control", x.route.Cache)
	}
	if contentType != "" {
		x.carrier.set("Content-Type", contentType)
	}
	x.send(status, body)
}

func (x *exchange) send(status int, body []byte) {
	x.status, x.bytes = status, len(body)
	x.carrier.send(status, body)
}

func (x *exchange) panicked(value any) {
	x.stack = debug.Stack()
	x.decorate()
	x.answer(panicked{value})
}

// end writes the request's one log line and counts it.
func (x *exchange) end() {
	x.metrics.inFlight.Dec()
	took := x.now().Sub(x.start)
	method := knownMethod(x.carrier.method())
	pattern := "none"
	if x.route != nil {
		pattern = x.route.Path
		if !x.route.Waits {
			x.span.Observe(x.route.duration, took.Seconds())
		}
	}
	x.endTrace(pattern, method, took)
	x.metrics.requests.WithLabelValues(pattern, method, x.metrics.status(x.status)).Inc()
	x.logRequest(pattern, method, took)
	x.carrier = nil
	x.exchanges.Put(x)
}

func (x *exchange) logRequest(pattern, method string, took time.Duration) {
	level := zapcore.InfoLevel
	switch {
	case x.status >= 500 && x.status != http.StatusServiceUnavailable:
		level = zapcore.ErrorLevel
	case x.cause != nil:
		level = zapcore.WarnLevel
	case x.quiet, x.route != nil && x.route.Quiet && x.status < 400:
		level = zapcore.DebugLevel
	}
	entry := x.log.Check(level, "request")
	if entry == nil {
		return
	}
	fields := append(x.line[:0],
		zap.String("method", method),
		zap.String("route", pattern),
		zap.String("path", x.askedFor()),
		zap.Int("status", x.status),
		zap.Float64("duration_ms", float64(took.Microseconds())/1000),
		zap.Int("bytes", x.bytes),
		zap.Stringer("ip", x.clientIP()),
		zap.String("request_id", x.id),
	)
	if id := x.span.TraceID(); id != "" {
		fields = append(fields, zap.String("trace_id", id))
	}
	if x.user != "" {
		fields = append(fields, zap.String("user_id", x.user))
	}
	if x.code != "" {
		fields = append(fields, zap.String("code", x.code))
	}
	if x.cause != nil {
		fields = append(fields, zap.String("error", x.cause.Error()))
	}
	if x.stack != nil {
		fields = append(fields, zap.ByteString("stack", x.stack))
	}
	entry.Write(fields...)
}

// requestID returns the client's id if it is fit for a log and a header, so that a call can be
// followed through several services. Otherwise it makes one.
func requestID(sent string) string {
	if plainID(sent) {
		return sent
	}
	var raw [16]byte
	for i := 0; i < len(raw); i += 8 {
		n := rand.Uint64() // it must be unique, but need not be secret
		for j := range 8 {
			raw[i+j] = byte(n >> (8 * j))
		}
	}
	return hex.EncodeToString(raw[:])
}

func plainID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, b := range []byte(id) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '.', b == '_', b == '-':
		default:
			return false
		}
	}
	return true
}

const maxLogged = 256 // bytes of a path in a log line or an answer

// cleanPath shortens the path for a log and percent-encodes bytes that are not printable ASCII,
// which also makes it a URI.
func cleanPath(path string) string {
	const digits = "0123456789ABCDEF"
	var clean []byte
	cut := path
	if len(cut) > maxLogged {
		cut = cut[:maxLogged]
	}
	for i, b := range []byte(cut) {
		if b > ' ' && b < 0x7f && b != '"' && b != '\\' && b != '<' && b != '>' {
			if clean != nil {
				clean = append(clean, b)
			}
			continue
		}
		if clean == nil {
			clean = append(make([]byte, 0, 3*len(cut)), cut[:i]...)
		}
		clean = append(clean, '%', digits[b>>4], digits[b&15])
	}
	if clean != nil {
		cut = string(clean)
	}
	if len(path) > maxLogged {
		return cut + "..."
	}
	return cut
}

// knownMethod is a method as metrics and the log show it.
func knownMethod(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return method
	}
	return otherMethod
}

const otherMethod = "OTHER"
