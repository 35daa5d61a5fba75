package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/sink"
)

const (
	// dialTimeout bounds the connection to one address, so that another one is tried within timeout.
	dialTimeout = 4 * time.Second
	maxBody     = 4 << 10 // bytes of an answer that are read, so that its connection can be reused
	maxHeader   = 16 << 10

	// idleTimeout is shorter than the 5 seconds after which many servers close a connection.
	idleTimeout = 4 * time.Second
	// maxIdle is how many idle connections to one receiver are kept.
	maxIdle = 64
	// connectionAge is how long connections are used; then the name is resolved again.
	connectionAge = time.Minute

	maxRetryAfter = time.Hour

	// maxTries is how often an attempt sends its event. Each of the idle connections may have been closed while it
	// was idle, or by the event itself: then all of them would get it.
	maxTries = 3
)

// Options are what a [Sink] needs besides its settings.
type Options struct {
	Prod    bool   // https only
	Version string // of authctl, for the header User-Agent
	Seals   *Seals

	// For tests.
	Timeout  time.Duration // for a whole attempt; 0: 10s
	BodyTime time.Duration // for the rest of the answer after the status; 0: 1s
	Resolver *net.Resolver // nil: the system's
	RootCAs  *x509.CertPool
	Connect  func(address string) error // called with each address that has passed the check; nil: none
	Now      func() time.Time
}

// Sink sends events to webhooks. It implements [delivery.Sink].
type Sink struct {
	cfg Config
	opt Options

	mu     sync.Mutex
	client *http.Transport
	since  time.Time // of client
}

var _ delivery.Sink = (*Sink)(nil)

// New makes a sink. The caller closes it.
func New(cfg Config, opt Options) *Sink {
	opt.Timeout = cmp.Or(opt.Timeout, 10*time.Second)
	opt.BodyTime = cmp.Or(opt.BodyTime, time.Second)
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &Sink{cfg: cfg, opt: opt}
}

// Close closes the connections that no request uses.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	return nil
}

// Deliver implements [delivery.Sink].
func (s *Sink) Deliver(ctx context.Context, t outbox.Subscription, r outbox.Record, attempt delivery.Attempt) error {
	answer, err := s.Send(ctx, t, r, attempt.Owned)
	if err != nil {
		return err
	}
	return answer.Err()
}

// AnswerTimeout implements [delivery.Sink].
func (s *Sink) AnswerTimeout() time.Duration { return s.opt.Timeout }

// Answer is the result of a request.
type Answer struct {
	Address    string // that was connected to; empty: none was
	Status     int    // zero: no answer came
	RetryAfter time.Duration
	Took       time.Duration
}

// Err says what an answer means for its event; nil: the receiver took it.
func (a Answer) Err() error {
	switch {
	case a.Status >= 200 && a.Status <= 299:
		return nil
	case a.Status == http.StatusGone:
		return &delivery.Gone{Err: errors.New("the receiver answered 410, which says that it is gone")}
	case a.Status >= 300 && a.Status <= 399:
		return &delivery.Later{After: a.RetryAfter,
			Err: fmt.Errorf("the receiver answered %d; redirects are not followed: add a target with the URL that it "+
				"leads to", a.Status)}
	default:
		return &delivery.Later{After: a.RetryAfter, Err: fmt.Errorf("the receiver answered %d", a.Status)}
	}
}

// Send makes one request with an event. The answer has what is known, also with an error. owned is
// called right before the event is sent; see [delivery.Attempt].
func (s *Sink) Send(ctx context.Context, t outbox.Subscription, r outbox.Record,
	owned func() bool) (a Answer, err error) {
	start := time.Now()
	defer func() { a.Took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	req, body, err := s.request(t, r, owned)
	if err != nil {
		return a, err
	}
	seen := &connection{}
	answer, err := s.transport().RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, seen.trace())))
	var handshake error
	a.Address, handshake = seen.what()
	if err != nil {
		return a, s.explain(ctx, err, handshake)
	}
	a.Status = answer.StatusCode
	a.RetryAfter = retryAfter(answer.Header.Get("Retry-After"), s.opt.Now())
	if a.Status != http.StatusSwitchingProtocols { // no context ends reading what follows
		stop := time.AfterFunc(s.opt.BodyTime, cancel)
		defer stop.Stop()
		_, _ = io.CopyN(io.Discard, answer.Body, maxBody) // only the status matters
	}
	_ = answer.Body.Close()
	if a.Err() == nil && body.left.Load() > 0 { // it cannot have the whole event; or the lease had ended
		return a, errors.New("the receiver acknowledged the event before it was sent")
	}
	return a, nil
}

// Reach connects to the receiver of a target as Send does, and sends nothing.
func (s *Sink) Reach(ctx context.Context, t outbox.Subscription) error {
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	to, err := parseURL(t.URL, s.opt.Prod)
	if err != nil {
		return err
	}
	port := cmp.Or(to.Port(), map[string]string{"http": "80", "https": "443"}[to.Scheme])
	conn, err := s.dialer().DialContext(ctx, "tcp", net.JoinHostPort(to.Hostname(), port))
	if err != nil {
		return s.explain(ctx, err, nil)
	}
	defer conn.Close()
	if to.Scheme == "https" {
		secured := s.tls()
		secured.ServerName = to.Hostname()
		if err := tls.Client(conn, secured).HandshakeContext(ctx); err != nil {
			return s.explain(ctx, err, err)
		}
	}
	return nil
}

// connection has what is known of the connection of a request. It is locked, since net/http may still be
// making a connection after the request has failed.
type connection struct {
	mu        sync.Mutex
	address   string
	handshake error
}

func (c *connection) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.address = got.Conn.RemoteAddr().String()
		},
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.handshake = err
		},
	}
}

func (c *connection) what() (address string, handshake error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.address, c.handshake
}

func (s *Sink) request(t outbox.Subscription, r outbox.Record, owned func() bool) (*http.Request, *eventBody, error) {
	to, err := parseURL(t.URL, s.opt.Prod)
	if err != nil {
		return nil, nil, err
	}
	line, err := sink.Line(&r)
	if err != nil {
		return nil, nil, &delivery.Refused{Err: fmt.Errorf("write the event as JSON: %w", err)}
	}
	text := bytes.TrimSuffix(line, []byte("\n"))
	now := s.opt.Now()
	keys, err := s.opt.Seals.keys(t, now)
	if err != nil {
		return nil, nil, err
	}
	body := &eventBody{text: text, owned: owned}
	req := &http.Request{
		Method: http.MethodPost, URL: to, Host: to.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type":      {"application/cloudevents+json; charset=utf-8"},
			"User-Agent":        {"authctl/" + s.opt.Version},
			"Webhook-Id":        {r.EventID},
			"Webhook-Timestamp": {timestamp(now)},
			"Webhook-Signature": {sign(keys, r.EventID, now, text)},
			// An empty value sends no header, and lets net/http repeat a request at once if the receiver had
			// already closed its connection.
			"Idempotency-Key": {},
		},
		Body: body.open(), GetBody: body.again,
		ContentLength: int64(len(text)),
	}
	if r.TraceParent != "" { // the event's, not the attempt's: every delivery has the same
		req.Header["Traceparent"] = []string{r.TraceParent}
	}
	return req, body, nil
}

// eventBody is the body of a request. net/http reads it once for each connection that it tries.
type eventBody struct {
	text  []byte
	owned func() bool
	left  atomic.Int64 // bytes that the last connection did not read
	tries int          // besides the first one
}

// errClosed is the fault of a receiver that closes connections that were used before, one after the other.
var errClosed = errors.New("the receiver closed the connection before it answered")

// again is the body for another connection. net/http asks for it where it repeats a request.
func (b *eventBody) again() (io.ReadCloser, error) {
	if b.tries++; b.tries >= maxTries {
		return nil, errClosed
	}
	return b.open(), nil
}

func (b *eventBody) open() io.ReadCloser {
	b.left.Store(int64(len(b.text)))
	return &ownedReader{of: b, text: bytes.NewReader(b.text)}
}

// ownedReader calls owned before it returns the first byte. If that is false, the receiver gets
// headers and no event, and the connection is closed.
type ownedReader struct {
	of    *eventBody
	text  *bytes.Reader
	asked bool
}

func (r *ownedReader) Read(p []byte) (int, error) {
	if !r.asked && r.of.owned != nil && !r.of.owned() {
		return 0, delivery.ErrNotOwned
	}
	r.asked = true
	n, err := r.text.Read(p)
	r.of.left.Store(int64(r.text.Len()))
	return n, err
}

func (r *ownedReader) Close() error { return nil }

// transport returns the client. Connections are replaced after a while: otherwise a busy one
// would never close, and a new address of the name would go unnoticed.
func (s *Sink) transport() *http.Transport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil && time.Since(s.since) < connectionAge {
		return s.client
	}
	if s.client != nil {
		s.client.CloseIdleConnections() // those in use close after idleTimeout
	}
	only1 := new(http.Protocols)
	only1.SetHTTP1(true) // a connection that hangs holds up one request
	s.client = &http.Transport{
		Proxy:       nil, // not even that of the environment: it would resolve the name again
		DialContext: s.dialer().DialContext, Protocols: only1, TLSClientConfig: s.tls(),
		// Longer than the request, so that a handshake that hangs is reported like any missing answer.
		TLSHandshakeTimeout: s.opt.Timeout + time.Second, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns: 4 * maxIdle, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleTimeout,
	}
	s.since = time.Now()
	return s.client
}

func (s *Sink) dialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, Resolver: s.opt.Resolver, Control: s.control}
}

func (s *Sink) tls() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.opt.RootCAs}
}

// control is called with the address of every connection, before it is made.
func (s *Sink) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("no address to connect to: %w", err)
	}
	if err := checkAddress(to.Addr(), s.cfg.AllowPrivate); err != nil {
		return err
	}
	if s.opt.Connect != nil {
		return s.opt.Connect(address)
	}
	return nil
}

// explain says why no answer came, without any words of the receiver. handshake is the error of the TLS
// handshake.
func (s *Sink) explain(ctx context.Context, err, handshake error) error {
	address, isAddress := errors.AsType[*AddressError](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	_, isCertificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, delivery.ErrNotOwned):
		return delivery.ErrNotOwned
	case isAddress:
		return address
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer came within %s", s.opt.Timeout)
	case ctx.Err() != nil:
		return ctx.Err()
	case isDNS:
		return fmt.Errorf("resolve %s: %s", dns.Name, dns.Err)
	case isCertificate:
		return errors.New("the certificate of the receiver is not accepted: " + certificateProblem(err))
	case handshake != nil:
		return errors.New("the receiver and authctl cannot agree on TLS: it must speak TLS 1.2 or 1.3 on this port")
	case isOp && op.Op == "dial" && op.Addr != nil:
		return fmt.Errorf("connect to %s: %w", op.Addr, op.Err)
	case isOp, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errClosed):
		return errClosed
	default:
		return errors.New("the answer of the receiver is not HTTP/1.1")
	}
}

// certificateProblem leaves out the names in the certificate.
func certificateProblem(err error) string {
	if host, is := errors.AsType[x509.HostnameError](err); is {
		return "it is not for " + strconv.Quote(host.Host)
	}
	if _, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		return "its authority is not known here; authctl trusts those of the system, and of SSL_CERT_FILE"
	}
	if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is && invalid.Reason == x509.Expired {
		return "it has expired, or is not valid yet"
	}
	return "it is not valid"
}

// retryAfter reads a Retry-After in either form: seconds, or a date. It is at most maxRetryAfter.
func retryAfter(text string, now time.Time) time.Duration {
	if text == "" {
		return 0
	}
	// A number that is too large for the type is the largest one, with its error.
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
