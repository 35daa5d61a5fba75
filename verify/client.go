package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxMetadata      = 64 << 10
	maxIntrospection = 64 << 10
	maxFeedAnswer    = 16 << 20

	metadataAge    = time.Hour       // how long metadata is used
	requestTimeout = 5 * time.Second // of everything but the feed
)

// metadata is what is used of RFC 8414 §2.
type metadata struct {
	Issuer        string `json:"issuer"`
	JWKS          string `json:"jwks_uri"`
	Introspection string `json:"introspection_endpoint"`
	Feed          string `json:"revocation_feed_endpoint"`
}

// server is one base URL of the issuer.
type server struct {
	base string
	own  bool // the issuer's own URL, and not one that was configured

	turn  chan struct{} // holds one when nobody reads or changes what follows
	meta  metadata
	until time.Time
}

func newServer(base string, own bool) *server {
	s := &server{base: base, own: own, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// statusError is an answer that is not the one that was asked for.
type statusError struct {
	status     int
	code       string        // error of RFC 6749 §5.2
	retryAfter time.Duration // zero: not said
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("answered %d %s", e.status, http.StatusText(e.status))
	if e.code != "" {
		text += " (" + e.code + ")"
	}
	if e.status >= 300 && e.status < 400 {
		text += "; redirects are not followed: name the URL that it leads to"
	}
	return text
}

// newTransport is small and of bounded patience. Over HTTP/2 a request that was given up leaves its connection in
// use: pings find out whether there is still anybody at its other end.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:    3 * time.Second,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second},
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 32 << 10,
	}
}

// metadataURL puts the well-known path before that of the base URL (RFC 8414 §3.1).
func metadataURL(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u.Path = "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/")
	return u.String(), nil
}

// discover returns the metadata of a server, from an earlier call where it is fresh.
func (v *Verifier) discover(ctx context.Context, s *server) (metadata, error) {
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return metadata{}, context.Cause(ctx)
	}
	if v.now().Before(s.until) {
		return s.meta, nil
	}
	target, err := metadataURL(s.base)
	if err != nil {
		return metadata{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return metadata{}, err
	}
	got, err := v.do(req, maxMetadata, nil)
	if err != nil {
		return metadata{}, err
	}
	var m metadata
	if err := json.Unmarshal(got.body, &m); err != nil {
		return metadata{}, fmt.Errorf("read %s: %w", target, err)
	}
	if m.Issuer != v.cfg.Issuer {
		return metadata{}, fmt.Errorf("%s is of the issuer %q, and not of %q", target, m.Issuer, v.cfg.Issuer)
	}
	for _, endpoint := range []*string{&m.JWKS, &m.Introspection, &m.Feed} {
		if *endpoint, err = s.resolve(v.cfg.Issuer, *endpoint); err != nil {
			return metadata{}, fmt.Errorf("read %s: %w", target, err)
		}
	}
	s.meta, s.until = m, v.now().Add(metadataAge)
	return m, nil
}

// resolve returns where an endpoint of the issuer is on this server.
func (s *server) resolve(issuer, endpoint string) (string, error) {
	if endpoint == "" {
		return "", nil
	}
	if rest, below := strings.CutPrefix(endpoint, strings.TrimSuffix(issuer, "/")+"/"); below && !s.own {
		return strings.TrimSuffix(s.base, "/") + "/" + rest, nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || !strings.HasPrefix(issuer, "http:")) {
		return "", fmt.Errorf("%q is no URL of an endpoint", endpoint)
	}
	return endpoint, nil
}

// distrust makes the next call of discover ask again, unless somebody is asking.
func (s *server) distrust() {
	select {
	case <-s.turn:
		s.until = time.Time{}
		s.turn <- struct{}{}
	default:
	}
}

// reply is an answer that was read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request and reads the whole answer. An answer other than 200 and 304 is a
// [*statusError]. progress, if there is one, is called whenever something has come.
func (v *Verifier) do(req *http.Request, limit int64, progress func()) (reply, error) {
	req.Header.Set("User-Agent", "authctl-verify/"+v.cfg.Version)
	// Over HTTP/2 a connection outlives the requests that get no answer, and so would one whose other end is dead.
	// Close has it left: this request is its last one.
	_, req.Close = v.silent.Load(req.URL.Host)
	res, err := v.http.Do(req)
	if err != nil {
		v.silent.Store(req.URL.Host, nil)
		return reply{}, err // it names the URL
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols { // what follows is no answer, and no context ends its reading
		return reply{}, fmt.Errorf("%s %w", req.URL.Redacted(), &statusError{status: res.StatusCode})
	}
	if progress == nil {
		progress = func() {}
	}
	progress()
	body, err := readBounded(watched{res.Body, progress}, limit)
	if err != nil {
		v.silent.Store(req.URL.Host, nil)
		return reply{}, fmt.Errorf("read the answer of %s: %w", req.URL.Redacted(), err)
	}
	if req.Close {
		v.silent.Delete(req.URL.Host)
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusNotModified:
		return reply{res.StatusCode, res.Header, body}, nil
	}
	problem := &statusError{status: res.StatusCode, retryAfter: retryAfter(res.Header)}
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &said) == nil && len(said.Error) <= 64 {
		problem.code = said.Error
	}
	return reply{}, fmt.Errorf("%s %w", req.URL.Redacted(), problem)
}

// watched tells of each read that something came of.
type watched struct {
	io.Reader
	progress func()
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.progress()
	}
	return n, err
}

func readBounded(body io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	return data, err
}

func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 60)) * time.Second
}

// authenticate is client_secret_basic (RFC 6749 §2.3.1).
func (c Client) authenticate(req *http.Request) {
	req.SetBasicAuth(url.QueryEscape(c.ID), url.QueryEscape(c.Secret))
}

// eachServer calls f for each server from the one that worked last, until one works.
func (v *Verifier) eachServer(preferred *int, f func(s *server) error) error {
	var failed error
	for range v.servers {
		s := v.servers[*preferred%len(v.servers)]
		err := f(s)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, err)
		*preferred = (*preferred + 1) % len(v.servers)
	}
	return failed
}
