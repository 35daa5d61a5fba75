package verify

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// signer is a key of an issuer.
type signer struct {
	kid, algorithm string
	private        crypto.Signer
}

func newSigner(t testing.TB, kid, algorithm string) signer {
	t.Helper()
	s := signer{kid: kid, algorithm: algorithm}
	var err error
	switch algorithm {
	case "ES256":
		s.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, s.private, err = ed25519.GenerateKey(rand.Reader)
	case "RS256":
		s.private, err = rsa.GenerateKey(rand.Reader, 3072)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (s signer) jwk() map[string]string {
	j := map[string]string{"kid": s.kid, "alg": s.algorithm, "use": "sig"}
	switch k := s.private.Public().(type) {
	case *ecdsa.PublicKey:
		point, _ := k.Bytes()
		j["kty"], j["crv"], j["x"], j["y"] = "EC", "P-256", encode(point[1:33]), encode(point[33:])
	case ed25519.PublicKey:
		j["kty"], j["crv"], j["x"] = "OKP", "Ed25519", encode(k)
	case *rsa.PublicKey:
		j["kty"], j["n"], j["e"] = "RSA", encode(k.N.Bytes()), encode(big.NewInt(int64(k.E)).Bytes())
	}
	return j
}

// sign signs any header and payload.
func (s signer) sign(t testing.TB, header, payload string) string {
	t.Helper()
	signed := encode([]byte(header)) + "." + encode([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	var signature []byte
	var err error
	switch k := s.private.(type) {
	case *ecdsa.PrivateKey:
		var r, v *big.Int
		if r, v, err = ecdsa.Sign(rand.Reader, k, digest[:]); err == nil {
			signature = make([]byte, 64)
			r.FillBytes(signature[:32])
			v.FillBytes(signature[32:])
		}
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(signed))
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, digest[:])
	}
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + encode(signature)
}

func (s signer) header() string {
	return `{"alg":"` + s.algorithm + `","kid":"` + s.kid + `","typ":"at+jwt"}`
}

// id makes a UUID from a number.
func id(n int) string { return fmt.Sprintf("018f3c5e-7b6a-7000-8000-%012x", n) }

const (
	testIssuer   = "https://auth.example.com/auth"
	testAudience = "orders"
)

// issuer is authctl as its clients see it: metadata, keys, the feed and introspection. Tests tell
// it what to do wrong.
type issuer struct {
	t      testing.TB
	issuer string
	base   string // of the endpoints in the metadata

	mu        sync.Mutex
	skew      time.Duration // of its clock
	ahead     time.Duration // its database's clock, of its own
	keys      []signer
	maxAge    int
	facts     []map[string]any // all ended sessions, accounts and keys, oldest first
	changed   chan struct{}    // closed when there are more
	cursors   int              // the generation of its cursors; older ones are invalid
	page      int              // facts per answer
	inactive  map[string]bool  // tokens that introspection does not know
	asked     map[string]int   // requests, by path
	questions []map[string]string
	// disturb, if set, may answer a request instead of the issuer.
	disturb func(w http.ResponseWriter, r *http.Request) bool
}

func newIssuer(t testing.TB, keys ...signer) *issuer {
	return &issuer{
		t: t, issuer: testIssuer, base: testIssuer, keys: keys, maxAge: 300, page: 1000,
		changed: make(chan struct{}), inactive: map[string]bool{}, asked: map[string]int{},
	}
}

func (i *issuer) now() time.Time { return time.Now().Add(i.skew) }

// set changes the issuer.
func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *issuer) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

func (i *issuer) add(fact map[string]any) {
	if _, given := fact["expires_at"]; !given {
		fact["expires_at"] = i.now().Add(5 * time.Hour).UTC()
	}
	i.set(func() { i.facts = append(i.facts, fact) })
}

func (i *issuer) endSession(sid string) { i.add(map[string]any{"type": "session", "sid": sid}) }

// token signs a good token of a session with the issuer's newest key.
func (i *issuer) token(sub, sid string, epoch int) string {
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return i.tokenOf(key, sub, sid, epoch, 5*time.Hour)
}

func (i *issuer) tokenOf(key signer, sub, sid string, epoch int, life time.Duration) string {
	now := i.now().Unix()
	payload := fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"exp":%d,"iat":%d,"jti":%q,"sid":%q,"client_id":"web","auth_time":%d,"session_epoch":%d}`,
		i.issuer, sub, testAudience, now+int64(life/time.Second), now, id(999), sid, now, epoch)
	return key.sign(i.t, key.header(), payload)
}

const (
	metadataPath = "/.well-known/oauth-authorization-server/auth"
	jwksPath     = "/auth/.well-known/jwks.json"
	feedPath     = "/auth/oauth2/revocations"
	askPath      = "/auth/oauth2/introspect"
)

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked[r.URL.Path]++
	disturb := i.disturb
	i.mu.Unlock()
	if disturb != nil && disturb(w, r) {
		return
	}
	switch r.URL.Path {
	case metadataPath:
		i.write(w, http.StatusOK, map[string]any{
			"issuer": i.issuer, "jwks_uri": i.base + "/.well-known/jwks.json",
			"introspection_endpoint":   i.base + "/oauth2/introspect",
			"revocation_feed_endpoint": i.base + "/oauth2/revocations",
		})
	case jwksPath:
		i.mu.Lock()
		list := []map[string]string{}
		for _, k := range i.keys {
			list = append(list, k.jwk())
		}
		w.Header().Set("Cache-Control", "public, max-age="+strconv.Itoa(i.maxAge))
		i.mu.Unlock()
		i.write(w, http.StatusOK, map[string]any{"keys": list})
	case feedPath, askPath:
		if name, secret, _ := r.BasicAuth(); name != "orders" || secret != "s%26cret" {
			w.Header().Set("WWW-Authenticate", "Basic")
			i.write(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
			return
		}
		if r.URL.Path == feedPath {
			i.feed(w, r)
			return
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.write(w, http.StatusOK, map[string]bool{"active": !i.inactive[r.PostFormValue("token")]})
	default:
		http.NotFound(w, r)
	}
}

func (i *issuer) write(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		i.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// feed answers as the API does. A cursor is the number of facts that its owner has.
func (i *issuer) feed(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	seconds, _ := strconv.Atoi(query.Get("wait"))
	i.mu.Lock()
	question := map[string]string{}
	for name := range query {
		question[name] = query.Get(name)
	}
	i.questions = append(i.questions, question)
	i.mu.Unlock()
	deadline := time.NewTimer(time.Duration(seconds) * time.Second)
	defer deadline.Stop()
	for waiting := true; ; {
		i.mu.Lock()
		from := 0
		if after := query.Get("after"); after != "" {
			generation := 0
			if n, _ := fmt.Sscanf(after, "%d-%d", &generation, &from); n != 2 || generation != i.cursors {
				i.mu.Unlock()
				i.write(w, http.StatusGone, map[string]string{"error": "cursor_gone"})
				return
			}
		}
		if query.Get("after") != "" && from == len(i.facts) && waiting && seconds > 0 {
			changed := i.changed
			i.mu.Unlock()
			select {
			case <-changed:
			case <-deadline.C:
				waiting = false
			case <-r.Context().Done():
				return
			}
			continue
		}
		to := min(from+i.page, len(i.facts))
		body := map[string]any{
			"cursor": fmt.Sprintf("%d-%d", i.cursors, to), "as_of": i.now().Add(i.ahead).UTC(),
			"server_time": i.now().UTC(), "more": to < len(i.facts),
			"revocations": append([]map[string]any{}, i.facts[from:to]...),
		}
		i.mu.Unlock()
		i.write(w, http.StatusOK, body)
		return
	}
}

// pause delays a handler.
func pause(r *http.Request, d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
}

// direct is a transport without a network: it calls the handler of a host, so that a test can run
// in a bubble with its own time (testing/synctest).
type direct struct {
	mu    sync.Mutex
	hosts map[string]http.Handler // a nil handler refuses connections
	delay time.Duration
}

func (d *direct) set(host string, h http.Handler) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts[host] = h
}

func (d *direct) RoundTrip(req *http.Request) (*http.Response, error) {
	d.mu.Lock()
	h, delay := d.hosts[req.URL.Host], d.delay
	d.mu.Unlock()
	if h == nil {
		return nil, errors.New("connection refused")
	}
	// A server reads the form from the body.
	in := req.Clone(req.Context())
	in.RequestURI = req.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	done := make(chan *http.Response, 1)
	go func() {
		if delay > 0 {
			select {
			case <-time.After(delay):
			case <-req.Context().Done():
				return
			}
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, in)
		res := rec.Result()
		res.Request = req
		done <- res
	}()
	select {
	case res := <-done:
		return res, nil
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
}

// metrics adds up what a verifier reports.
type metrics struct {
	mu  sync.Mutex
	sum map[string]float64
}

func (m *metrics) add(name string, value float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sum == nil {
		m.sum = map[string]float64{}
	}
	if strings.HasSuffix(name, "_total") {
		value += m.sum[name]
	}
	m.sum[name] = value
}

func (m *metrics) get(name string) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sum[name]
}

// testConfig is the configuration of a verifier that reaches the issuer without a network.
func testConfig(i *issuer) Config {
	return Config{
		Issuer: i.issuer, Audience: testAudience, Client: Client{ID: "orders", Secret: "s&cret"}, Name: "orders-1",
		Transport: &direct{hosts: map[string]http.Handler{"auth.example.com": i}},
	}
}

func start(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// want checks one token.
func want(t testing.TB, v *Verifier, token string, reason error) {
	t.Helper()
	claims, err := v.Check(t.Context(), token)
	if !errors.Is(err, reason) || err != nil && claims.Subject != "" {
		t.Helper()
		t.Errorf("%+v, %v; want %v", claims.Subject, err, reason)
	}
}

// eventually waits, in the test's time, for what must happen.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
