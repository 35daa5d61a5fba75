// Command probe checks tokens in a process of its own, for tests of the service: what a
// verifier elsewhere says of the tokens that the service signs, and how soon it knows of ends.
// It reads one JSON object a line, and answers each with one.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/toppira/authctl/verify"
)

// setup is the first line.
type setup struct {
	Issuer   string   `json:"issuer"`
	Audience string   `json:"audience"`
	Servers  []string `json:"servers"`
	ClientID string   `json:"client_id"`
	Secret   string   `json:"secret"`
	Name     string   `json:"name"`
	MaxLag   float64  `json:"max_lag"` // seconds
	Stale    string   `json:"stale"`   // refuse, accept, introspect

	// With a key set there is no network, no feed, and the time that was last given.
	Keys json.RawMessage `json:"keys"`
}

// question is each further line.
type question struct {
	Token string    `json:"token"`
	Time  time.Time `json:"time"`
	Ready bool      `json:"ready"` // wait until the verifier is ready
}

// reply answers it.
type reply struct {
	Reason string         `json:"reason,omitempty"` // empty: accepted
	Error  string         `json:"error,omitempty"`
	Lag    float64        `json:"lag"` // seconds
	Claims *verify.Claims `json:"claims,omitempty"`
}

var reasons = []struct {
	err  error
	word string
}{
	{verify.ErrMalformed, "malformed"}, {verify.ErrType, "type"}, {verify.ErrUnknownKey, "unknown_key"},
	{verify.ErrAlgorithm, "algorithm"},
	{verify.ErrSignature, "signature"}, {verify.ErrClaims, "claims"}, {verify.ErrIssuer, "issuer"},
	{verify.ErrAudience, "audience"},
	{verify.ErrNotYetValid, "not_yet_valid"}, {verify.ErrExpired, "expired"}, {verify.ErrRevoked, "revoked"},
	{verify.ErrStale, "stale"},
	{verify.ErrNoKeys, "no_keys"},
}

// offline answers for an issuer that is a key set, at a time that is set.
type offline struct {
	mu     sync.Mutex
	now    time.Time
	issuer string
	keys   json.RawMessage
}

func (o *offline) time() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now
}

func (o *offline) RoundTrip(req *http.Request) (*http.Response, error) {
	body := []byte(o.keys)
	if req.URL.Path != "/keys" {
		body = fmt.Appendf(nil, `{"issuer":%q,"jwks_uri":"https://keys.invalid/keys"}`, o.issuer)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Cache-Control": {"max-age=3600"}},
		Body: io.NopCloser(bytes.NewReader(body)), Request: req,
	}, nil
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 4<<20)
	if !lines.Scan() {
		return errors.New("the first line says what to do")
	}
	var s setup
	if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
		return fmt.Errorf("read the first line: %w", err)
	}
	cfg := verify.Config{
		Issuer: s.Issuer, Audience: s.Audience, Servers: s.Servers, Name: s.Name,
		MaxLag: time.Duration(s.MaxLag * float64(time.Second)),
		Client: verify.Client{ID: s.ClientID, Secret: s.Secret},
		Stale: map[string]verify.Policy{"refuse": verify.Refuse, "accept": verify.Accept,
			"introspect": verify.Introspect}[s.Stale],
	}
	var still *offline
	if s.Keys != nil {
		still = &offline{issuer: s.Issuer, keys: s.Keys}
		cfg.Transport, cfg.Now, cfg.Stale = still, still.time, verify.Accept
	}
	v, err := verify.New(cfg)
	if err != nil {
		return err
	}
	defer v.Close()
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		if still != nil && !q.Time.IsZero() {
			still.mu.Lock()
			still.now = q.Time
			still.mu.Unlock()
		}
		if err := answers.Encode(answer(v, q)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return lines.Err()
}

func answer(v *verify.Verifier, q question) reply {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var err error
	var claims verify.Claims
	if q.Ready {
		err = v.Ready(ctx)
	} else {
		claims, err = v.Check(ctx, q.Token)
	}
	r := reply{Lag: v.Lag().Seconds()}
	if err == nil {
		r.Claims = &claims
		return r
	}
	r.Error, r.Reason = err.Error(), "unexpected"
	for _, known := range reasons {
		if errors.Is(err, known.err) {
			r.Reason = known.word
		}
	}
	return r
}
