package httpserver

import (
	"cmp"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// exchange is one request and its answer, as far as this package is concerned. It lives in
// the fasthttp context from begin to end and is used again afterwards: nothing may keep it.
type exchange struct {
	server *Server
	start  time.Time
	id     string     // of the request
	path   string     // of what could not be read, empty when even that is not known
	unread bool       // the request could not be read
	route  *route     // nil until the router found one
	client netip.Addr // zero until asked for
	user   string     // set by a handler
	code   string     // of the fault that was answered
	cause  error      // what the client is not told
	stack  []byte     // of a panic
	quiet  bool       // not worth more than a debug line

	fields [13]zap.Field // room for the log line
}

type exchangeKey struct{}

func exchangeOf(c *fiber.Ctx) *exchange {
	return c.Context().UserValue(exchangeKey{}).(*exchange)
}

// RequestID returns the id that the answer carries in X-Request-Id.
func RequestID(c *fiber.Ctx) string { return exchangeOf(c).id }

// SetUser names the account in the request's log line.
func SetUser(c *fiber.Ctx, id string) { exchangeOf(c).user = id }

// ClientIP returns the address of the client: the connection's peer, or where that is a
// trusted proxy, the nearest address in X-Forwarded-For that is not one. What stands further
// left was written by the client and is never looked at. IPv4-mapped addresses come as IPv4,
// without zones.
func ClientIP(c *fiber.Ctx) netip.Addr { return exchangeOf(c).clientIP(c.Context()) }

func (x *exchange) clientIP(fctx *fasthttp.RequestCtx) netip.Addr {
	if !x.client.IsValid() {
		hop := peer(fctx.RemoteAddr())
		var unread bool
		x.client, unread = x.server.trusted.client(hop, &fctx.Request.Header)
		x.server.noteForwarding(hop, unread, &fctx.Request.Header)
	}
	return x.client
}

// proxies are the networks of app.trusted_proxies.
type proxies []netip.Prefix

func (p proxies) contain(addr netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// client walks X-Forwarded-For from the right while the hop that wrote an entry is trusted.
// Empty entries are no entries (RFC 9110 §5.6.1). One that is no address ends the walk at the
// last hop that was known, and is reported as unread.
func (p proxies) client(hop netip.Addr, header *fasthttp.RequestHeader) (client netip.Addr, unread bool) {
	if len(p) == 0 || !p.contain(hop) {
		return hop, false
	}
	lines := header.PeekAll(fiber.HeaderXForwardedFor)
	for i := len(lines) - 1; i >= 0; i-- {
		rest, entry := string(lines[i]), ""
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

// noteForwarding tells the operator, now and then, where clients cannot be told apart: a proxy
// writes what cannot be read, or is not among the trusted.
func (s *Server) noteForwarding(hop netip.Addr, unread bool, header *fasthttp.RequestHeader) {
	const often = time.Hour
	switch {
	case unread:
		if s.unreadForward.due(s.now(), often) {
			s.log.Warn("forwarded_unread", zap.Stringer("proxy", hop),
				zap.String("remedy", "an entry of X-Forwarded-For is no address: let each proxy add its client's address, or else all its clients count as one"))
		}
	case !s.trusted.contain(hop) && (hop.IsPrivate() || hop.IsLoopback()) && len(header.Peek(fiber.HeaderXForwardedFor)) > 0:
		if s.unknownProxy.due(s.now(), often) {
			s.log.Warn("proxy_not_trusted", zap.Stringer("proxy", hop),
				zap.String("remedy", "if it is a proxy of yours, add its address to app.trusted_proxies: until then all its clients count as one"))
		}
	}
}

// reminder says when something that goes on is worth another line in the log.
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

// askedFor is the path of the request, fit for logs and answers: * where none could be read,
// which is HTTP's own word for the server as a whole (RFC 9112 §3.2.4).
func (x *exchange) askedFor(fctx *fasthttp.RequestCtx) string {
	if x.unread {
		return cmp.Or(x.path, "*")
	}
	return cleanPath(fctx.URI().PathOriginal())
}

// serve is what fasthttp calls for each request that could be read.
func (s *Server) serve(fctx *fasthttp.RequestCtx) {
	x := s.begin(fctx)
	defer s.end(fctx, x)
	readWhole(fctx.Conn())
	if fault := wireFault(&fctx.Request.Header); fault != nil {
		fctx.SetConnectionClose() // where the next request begins is not certain
		s.answer(fctx, x, fault)
		return
	}
	switch string(fctx.Method()) {
	case fiber.MethodGet, fiber.MethodHead, fiber.MethodPost, fiber.MethodPut, fiber.MethodPatch, fiber.MethodDelete:
		s.fiber(fctx)
	case fiber.MethodOptions:
		s.options(fctx, x)
	default:
		// Fiber answers methods that it does not know by itself, and in plain text.
		s.answer(fctx, x, fiber.ErrMethodNotAllowed)
	}
}

// unreadable is what fasthttp calls when a request could not be read.
func (s *Server) unreadable(fctx *fasthttp.RequestCtx, err error) {
	x := s.begin(fctx)
	defer s.end(fctx, x)
	x.quiet = isGone(err)
	x.unread, x.path = true, asked(fctx.Conn())
	s.answer(fctx, x, readFault(err))
	lingerOnClose(fctx.Conn())
}

// expectation decides whether the body is worth sending, for clients that ask first
// (RFC 9110 §10.1.1). Any status but 100 is the final answer, and ours has a body.
func (s *Server) expectation(fctx *fasthttp.RequestCtx) int {
	if fctx.Request.Header.ContentLength() <= MaxBody {
		return fasthttp.StatusContinue
	}
	s.unreadable(fctx, fasthttp.ErrBodyTooLarge)
	return fctx.Response.StatusCode()
}

func (s *Server) begin(fctx *fasthttp.RequestCtx) *exchange {
	x := s.exchanges.Get().(*exchange)
	*x = exchange{server: s, start: s.now(), id: requestID(&fctx.Request.Header)}
	fctx.SetUserValue(exchangeKey{}, x)
	s.metrics.inFlight.Inc()
	s.decorate(fctx, x)
	return x
}

// end answers a panic and writes the request's one log line.
func (s *Server) end(fctx *fasthttp.RequestCtx, x *exchange) {
	if value := recover(); value != nil {
		x.stack = debug.Stack()
		fctx.Response.Reset()
		s.decorate(fctx, x)
		s.answer(fctx, x, panicked{value})
	}
	if s.stopping.Load() {
		fctx.SetConnectionClose()
	}
	s.metrics.inFlight.Dec()
	took := s.now().Sub(x.start)
	status := fctx.Response.StatusCode()
	method := knownMethod(fctx.Method())
	pattern := "none"
	if x.route != nil {
		pattern = x.route.Path
		x.route.duration.Observe(took.Seconds())
	}
	s.metrics.requests.WithLabelValues(pattern, method, s.metrics.status(status)).Inc()
	s.logRequest(fctx, x, pattern, method, status, took)
	fctx.RemoveUserValue(exchangeKey{})
	s.exchanges.Put(x)
}

func (s *Server) logRequest(fctx *fasthttp.RequestCtx, x *exchange, pattern, method string, status int, took time.Duration) {
	level := zapcore.InfoLevel
	switch {
	case status >= 500 && status != fasthttp.StatusServiceUnavailable:
		level = zapcore.ErrorLevel
	case x.cause != nil:
		level = zapcore.WarnLevel
	case x.quiet, x.route != nil && x.route.Quiet && status < 400:
		level = zapcore.DebugLevel
	}
	entry := s.log.Check(level, "request")
	if entry == nil {
		return
	}
	bytes := 0
	if !fctx.Response.IsBodyStream() {
		bytes = len(fctx.Response.Body())
	}
	fields := append(x.fields[:0],
		zap.String("method", method),
		zap.String("route", pattern),
		zap.String("path", x.askedFor(fctx)),
		zap.Int("status", status),
		zap.Float64("duration_ms", float64(took.Microseconds())/1000),
		zap.Int("bytes", bytes),
		zap.Stringer("ip", x.clientIP(fctx)),
		zap.String("request_id", x.id),
	)
	if x.user != "" {
		fields = append(fields, zap.String("user_id", cleanText(x.user)))
	}
	if x.code != "" {
		fields = append(fields, zap.String("code", x.code))
	}
	if x.cause != nil {
		fields = append(fields, zap.String("error", cleanText(x.cause.Error())))
	}
	if x.stack != nil {
		fields = append(fields, zap.ByteString("stack", x.stack))
	}
	entry.Write(fields...)
}

// requestID takes the client's id when it is one that can go into a log and a header as it
// is, so that a call can be followed through several services, and makes one otherwise.
func requestID(header *fasthttp.RequestHeader) string {
	if id := header.Peek(fiber.HeaderXRequestID); plainID(id) {
		return string(id)
	}
	var raw [16]byte
	for i := 0; i < len(raw); i += 8 {
		n := rand.Uint64() // unique is enough: nobody is let in by guessing one
		for j := range 8 {
			raw[i+j] = byte(n >> (8 * j))
		}
	}
	return hex.EncodeToString(raw[:])
}

func plainID(id []byte) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, b := range id {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '.', b == '_', b == '-':
		default:
			return false
		}
	}
	return true
}

const maxLogged = 256 // bytes of a path in a log line or an answer

// cleanPath is the path as it was sent, without the query, cut to a length that a log can
// bear; bytes that are not printable ASCII are percent-encoded, which also makes it a URI.
func cleanPath(path []byte) string {
	const digits = "0123456789ABCDEF"
	var clean []byte
	cut := path
	if len(cut) > maxLogged {
		cut = cut[:maxLogged]
	}
	for i, b := range cut {
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
	if clean == nil {
		clean = cut
	}
	if len(path) > maxLogged {
		return string(clean) + "..."
	}
	return string(clean)
}

// cleanText makes foreign text fit for one line of a log, whatever writes it: line and
// paragraph separators, control and direction characters become spaces.
func cleanText(text string) string {
	const most = 2048
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0, r == 0x2028, r == 0x2029, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return ' '
		}
		return r
	}, text)
}

func knownMethod(method []byte) string {
	switch string(method) {
	case fiber.MethodGet:
		return fiber.MethodGet
	case fiber.MethodHead:
		return fiber.MethodHead
	case fiber.MethodPost:
		return fiber.MethodPost
	case fiber.MethodPut:
		return fiber.MethodPut
	case fiber.MethodPatch:
		return fiber.MethodPatch
	case fiber.MethodDelete:
		return fiber.MethodDelete
	case fiber.MethodOptions:
		return fiber.MethodOptions
	}
	return "OTHER"
}
