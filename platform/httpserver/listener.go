package httpserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
)

// listener accepts connections within the limits, and tracks them, so that a stop can end those
// that fasthttp would wait for.
type listener struct {
	net.Listener
	tls     *tls.Config // nil for plain HTTP
	total   int
	perIP   int
	idle    time.Duration // for the first byte of a connection
	read    time.Duration // from then on, for the rest of its first request
	trusted proxies
	log     *zap.Logger
	refused func(limit string)
	closed  chan struct{}
	once    sync.Once

	mu      sync.Mutex
	conns   map[*conn]struct{}
	clients map[netip.Prefix]map[*conn]struct{} // those that count against perIP
	empty   chan struct{}                       // made by wait, closed with the last connection
	warned  time.Time
}

// Accept returns the next connection within the limits. It waits when the process is out of file
// descriptors, which would make fasthttp end the server.
func (l *listener) Accept() (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; {
		raw, err := l.Listener.Accept()
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) &&
				!errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ENOMEM) {
				return nil, err
			}
			l.refused("files")
			l.warn("files_exhausted", zap.Error(err),
				zap.String("hint", "the process may not open more files, and connections wait: raise its limit "+
					"(LimitNOFILE)"))
			select {
			case <-time.After(pause):
			case <-l.closed:
				return nil, net.ErrClosed
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		now := time.Now()
		c := &conn{Conn: raw, listener: l, since: now, client: network(peer(raw.RemoteAddr()))}
		c.waits.Store(now.UnixNano())
		limit, longest := l.admit(c)
		if longest != nil {
			longest.drop()
			again, _ := l.admit(c) // there is room now, and only this goroutine admits
			if again == "" {
				l.refused("waiting")
			}
			l.warn("connections_refused", zap.String("limit", limit), zap.Stringer("network", c.client))
			limit = again
		}
		if limit != "" {
			// No answer: a write that stalls would hold up all other connections.
			_ = raw.Close()
			l.refused(limit)
			l.warn("connections_refused", zap.String("limit", limit), zap.Stringer("network", c.client))
			continue
		}
		if l.tls != nil {
			c.Conn = tls.Server(raw, l.tls)
			return &secureConn{conn: c, Conn: c.Conn.(*tls.Conn)}, nil
		}
		return c, nil
	}
}

// Close ends Accept. Connections stay open.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// admit accepts a connection, or names the limit that it exceeds and, if there is one, the
// connection that should make room: the one that has waited longest for its client. So a client
// that holds many silent connections keeps nobody out, not even others at the same address.
func (l *listener) admit(c *conn) (limit string, longest *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= l.total {
		return "total", longestWaiting(l.conns)
	}
	if c.client.IsValid() && !l.trusted.contain(c.client.Addr()) {
		others := l.clients[c.client]
		if len(others) >= l.perIP {
			return "ip", longestWaiting(others)
		}
		if others == nil {
			others = make(map[*conn]struct{})
			l.clients[c.client] = others
		}
		others[c] = struct{}{}
		c.counted = true
	}
	l.conns[c] = struct{}{}
	return "", nil
}

// longestWaiting looks at a limited number of connections, in random order, so that a flood of new
// ones does not slow accepting down.
func longestWaiting(conns map[*conn]struct{}) (longest *conn) {
	looks, begun := 256, int64(0)
	for c := range conns {
		if waits := c.waits.Load(); waits != 0 && !c.closed.Load() && (longest == nil || waits < begun) {
			longest, begun = c, waits
		}
		if looks--; looks == 0 {
			break
		}
	}
	return longest
}

// trust stops counting a connection against its address, because the client is known.
func (l *listener) trust(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uncount(c)
}

// uncount removes a connection from those of its address. The caller holds the lock.
func (l *listener) uncount(c *conn) {
	if !c.counted {
		return
	}
	c.counted = false
	others := l.clients[c.client]
	if delete(others, c); len(others) == 0 {
		delete(l.clients, c.client)
	}
}

func (l *listener) release(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.uncount(c)
	if l.empty != nil && len(l.conns) == 0 {
		close(l.empty)
		l.empty = nil
	}
}

// warn logs at most one line in ten seconds.
func (l *listener) warn(message string, fields ...zap.Field) {
	if now := time.Now(); now.Sub(l.warned) > 10*time.Second {
		l.warned = now
		l.log.Warn(message, fields...)
	}
}

func (l *listener) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// wait returns when no connection is left, or with the error of ctx.
func (l *listener) wait(ctx context.Context) error {
	l.mu.Lock()
	if len(l.conns) == 0 {
		l.mu.Unlock()
		return nil
	}
	if l.empty == nil {
		l.empty = make(chan struct{})
	}
	empty := l.empty
	l.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closeSilent closes connections on which nothing was ever sent, which fasthttp counts as idle
// only after five seconds.
func (l *listener) closeSilent(since time.Time) {
	for _, c := range l.list() {
		if !c.spoke.Load() && c.since.Before(since) {
			_ = c.Close()
		}
	}
}

func (l *listener) closeAll() {
	for _, c := range l.list() {
		_ = c.Close()
	}
}

func (l *listener) list() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.conns))
}

// network is what counts as one client: an IPv4 address, or the /64 that one IPv6 user has.
func network(addr netip.Addr) netip.Prefix {
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}

// conn is a connection within the limits. fasthttp reads and writes it from one goroutine;
// Close may come from any.
type conn struct {
	net.Conn
	listener *listener
	client   netip.Prefix
	since    time.Time
	counted  bool
	waits    atomic.Int64 // for its client since then, in Unix nanoseconds; 0 while a request is answered
	spoke    atomic.Bool  // a byte was read
	linger   atomic.Bool  // it was answered before everything was read
	closed   atomic.Bool
	framing  framing
	head     [192]byte // the first bytes read since the last request that could be read
	headLen  int
	watched  *watch  // while a request waits
	ahead    [1]byte // what it read, if hasAhead
	hasAhead atomic.Bool
}

// secureConn is a conn that fasthttp recognises as TLS by the methods of tls.Conn.
type secureConn struct {
	*conn
	*tls.Conn
}

func (c *secureConn) Read(b []byte) (int, error) { return c.conn.Read(b) }
func (c *secureConn) Close() error               { return c.conn.Close() }

// Read also refuses what fasthttp would accept without a trace: see [framing].
//
// Browsers and proxies open spare connections and use them later. fasthttp would answer such a
// connection with 408 when its time is over, and a client that begins a request at that moment takes
// that for its answer. So a new connection waits as long as one between two requests, and ends as
// silently. Once a client has begun its request, it has as long as for any other.
func (c *conn) Read(b []byte) (int, error) {
	first := !c.spoke.Load()
	if first {
		if err := c.Conn.SetReadDeadline(time.Now().Add(c.listener.idle)); err != nil {
			return 0, io.EOF
		}
	}
	n, err := c.readOn(b)
	if first && n == 0 && err != nil {
		if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil &&
			isHTTP(plain.RecordHeader) {
			answerPlain(plain.Conn)
		}
		return 0, io.EOF // to fasthttp: the client has left without a request
	}
	if n > 0 {
		if first {
			c.spoke.Store(true)
			if err := c.Conn.SetReadDeadline(time.Now().Add(c.listener.read)); err != nil {
				return 0, err
			}
		}
		c.headLen += copy(c.head[c.headLen:], b[:n])
		if err := c.framing.read(b[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

// isHTTP reports whether what came in place of a TLS record begins a request of HTTP.
func isHTTP(head [5]byte) bool {
	return slices.Contains([]string{"GET /", "HEAD ", "POST ", "PUT /", "DELET", "OPTIO", "PATCH"}, string(head[:]))
}

// answerPlain answers plain HTTP on a connection that should have begun with TLS. It does not read
// the request, which may hold a password.
func answerPlain(raw net.Conn) {
	id := requestID("")
	problem := ProblemOf(ErrMalformed.Detail("This port takes only https: the URL must begin with https://."), "*", id)
	body, err := json.Marshal(problem)
	if err != nil || raw.SetDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	_, _ = fmt.Fprintf(raw, "HTTP/1.1 400 Bad Request\r\n"+
		"Content-Type: application/problem+json\r\nX-Request-Id: %s\r\nCache-Control: no-store\r\n"+
		"Connection: close\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
	if half, ok := raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, raw, 64<<10) // see Close
	}
}

// readOn reads what a watch has left.
func (c *conn) readOn(b []byte) (int, error) {
	if len(b) > 0 && c.hasAhead.CompareAndSwap(true, false) {
		return copy(b, c.ahead[:]), nil
	}
	return c.Conn.Read(b)
}

// Close closes the connection. Closing a socket with unread bytes resets it, which can destroy
// the answer on its way. Where that may happen, Close first ends its own half and reads for a
// moment (RFC 9112 §9.6).
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	defer c.listener.release(c)
	if c.linger.Load() {
		const most, longest = 256 << 10, 500 * time.Millisecond
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_ = c.Conn.SetReadDeadline(time.Now().Add(longest))
			_, _ = io.CopyN(io.Discard, c.Conn, most)
		}
	}
	return c.Conn.Close()
}

// drop closes a connection at once, without sending anything that could take time.
func (c *conn) drop() {
	if c.closed.Swap(true) {
		return
	}
	defer c.listener.release(c)
	raw := c.Conn
	if secure, ok := raw.(*tls.Conn); ok {
		raw = secure.NetConn()
	}
	_ = raw.Close()
}

// lingerOnClose marks a connection whose last answer may overtake what the client sends.
func lingerOnClose(c net.Conn) {
	if one := ours(c); one != nil {
		one.linger.Store(true)
	}
}

// asked is the path of a request that could not be read, as far as it is known; empty if it is
// not. fasthttp no longer has it.
func asked(c net.Conn) string {
	one := ours(c)
	if one == nil {
		return ""
	}
	line := bytes.TrimLeft(one.head[:one.headLen], "\r\n")
	method, target, _ := bytes.Cut(line, []byte(" "))
	isNoLetter := func(r rune) bool { return r < 'A' || r > 'Z' }
	if len(method) == 0 || len(method) > 16 || bytes.ContainsFunc(method, isNoLetter) {
		return ""
	}
	whole := false
	if end := bytes.IndexAny(target, " ?\r\n"); end >= 0 {
		target, whole = target[:end], true
	}
	switch {
	case !bytes.HasPrefix(target, []byte("/")):
		return ""
	case whole:
		return cleanPath(string(target))
	}
	return cleanPath(string(target)) + "..."
}

// readWhole says that the request on a connection has arrived and is being answered, so that the
// next bytes begin another one. If requests are pipelined, the path of the second may be unknown.
func readWhole(c net.Conn) {
	if one := ours(c); one != nil {
		one.headLen = 0
		one.waits.Store(0)
	}
}

// waitsAnew is what fasthttp calls when the state of a connection changes.
func waitsAnew(c net.Conn, state fasthttp.ConnState) {
	switch state {
	case fasthttp.StateIdle, fasthttp.StateActive: // answered, or the first byte of a request came
		if one := ours(c); one != nil {
			one.waits.Store(time.Now().UnixNano())
		}
	}
}

func ours(c net.Conn) *conn {
	switch c := c.(type) {
	case *conn:
		return c
	case *secureConn:
		return c.conn
	}
	return nil
}
