package verify

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	maxIntrospections = 16 // at once
	maxWaiting        = 1024
	introspectTimeout = 3 * time.Second
)

// introspector asks the issuer about tokens (RFC 7662), a few at once, and about one token
// once for all who ask at the same time.
type introspector struct {
	v      *Verifier
	places chan struct{}

	mu      sync.Mutex
	flights map[[sha256.Size]byte]*flight
	closed  bool
}

type flight struct {
	done chan struct{}
	err  error // once done is closed
}

func newIntrospector(v *Verifier) *introspector {
	return &introspector{v: v, places: make(chan struct{}, maxIntrospections), flights: map[[sha256.Size]byte]*flight{}}
}

// close lets no further question begin.
func (i *introspector) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
}

// ask returns nil for a token that is active.
func (i *introspector) ask(ctx context.Context, token string) error {
	digest := sha256.Sum256([]byte(token))
	i.mu.Lock()
	f, under := i.flights[digest]
	if !under {
		if len(i.flights) >= maxWaiting || i.closed {
			i.mu.Unlock()
			return i.v.stale("the issuer cannot be asked about so many tokens at once")
		}
		f = &flight{done: make(chan struct{})}
		i.flights[digest] = f
		i.v.wg.Go(func() {
			// Not the caller's context: others wait for this answer too.
			f.err = i.answer(i.v.ctx, token)
			i.mu.Lock()
			delete(i.flights, digest)
			i.mu.Unlock()
			close(f.done)
		})
	}
	i.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (i *introspector) answer(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(ctx, introspectTimeout)
	defer cancel()
	select {
	case i.places <- struct{}{}:
		defer func() { <-i.places }()
	case <-ctx.Done():
		return i.v.stale("the issuer cannot be asked about so many tokens at once")
	}
	i.v.metric(MetricIntrospections, 1)
	var active bool
	preferred := 0
	err := i.v.eachServer(&preferred, func(s *server) (err error) {
		active, err = i.v.introspect(ctx, s, token)
		return err
	})
	switch {
	case err != nil:
		i.v.metric(MetricIntrospectErr, 1)
		return i.v.stale("the issuer cannot be asked: " + err.Error())
	case !active:
		return refuse(ErrRevoked, "the issuer says that it is not active")
	}
	return nil
}

func (v *Verifier) introspect(ctx context.Context, s *server, token string) (bool, error) {
	meta, err := v.discover(ctx, s)
	if err != nil {
		return false, err
	}
	if meta.Introspection == "" {
		s.distrust()
		return false, fmt.Errorf("the metadata of %s names no introspection_endpoint", s.base)
	}
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, meta.Introspection, strings.NewReader(form.Encode()))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	v.cfg.Client.authenticate(req)
	got, err := v.do(req, maxIntrospection, nil)
	if err != nil {
		return false, err
	}
	var said struct {
		Active *bool `json:"active"`
	}
	if got.status != http.StatusOK || json.Unmarshal(got.body, &said) != nil || said.Active == nil {
		return false, errors.New(meta.Introspection + " answered something that is not RFC 7662")
	}
	return *said.Active, nil
}
