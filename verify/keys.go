package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	unknownEvery  = 30 * time.Second // an unknown kid makes one fetch in this time
	firstWait     = 5 * time.Second  // how long a call waits for what is fetched at the start
	defaultMaxAge = 5 * time.Minute
	longestMaxAge = time.Hour
	keyRetryFirst = 500 * time.Millisecond
	keyRetryNone  = 2 * time.Second  // the longest pause while there are no keys, and no token can be judged
	keyRetryLast  = 30 * time.Second // while those at hand are used
)

// keyring holds the issuer's keys and keeps them fresh. Looking one up takes no lock.
type keyring struct {
	set  atomic.Pointer[keySet] // nil until there are some
	wake chan struct{}          // tells the goroutine that an unknown kid wants a fetch

	mu      sync.Mutex
	flight  chan struct{} // closed at the end of the fetch that is under way or asked for; nil: none
	asked   time.Time     // when an unknown kid last asked for a fetch
	started bool          // the first fetch has ended, one way or the other
	closed  bool
	lastErr error
}

func newKeyring() *keyring {
	return &keyring{wake: make(chan struct{}, 1), flight: make(chan struct{})}
}

func (k *keyring) get(kid string) (publicKey, bool) {
	set := k.set.Load()
	if set == nil {
		return publicKey{}, false
	}
	key, ok := (*set)[kid]
	return key, ok
}

func (k *keyring) kids() []string {
	if set := k.set.Load(); set != nil {
		return set.kids()
	}
	return nil
}

// find returns the key of a kid. A kid that is not known causes a fetch, at most one in
// unknownEvery for all callers together, and waits for the one that is under way.
func (k *keyring) find(ctx context.Context, kid string) (publicKey, error) {
	if key, ok := k.get(kid); ok {
		return key, nil
	}
	if flight := k.ask(); flight != nil {
		timer := time.NewTimer(firstWait)
		defer timer.Stop()
		select {
		case <-flight:
		case <-timer.C:
		case <-ctx.Done():
			return publicKey{}, context.Cause(ctx)
		}
	}
	switch key, ok := k.get(kid); {
	case ok:
		return key, nil
	case k.set.Load() == nil:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.lastErr != nil {
			return publicKey{}, refuse(ErrNoKeys, k.lastErr.Error())
		}
		return publicKey{}, refuse(ErrNoKeys, "")
	}
	return publicKey{}, refuse(ErrUnknownKey, "")
}

// ask returns the end of a fetch to wait for, or nil when none is worth waiting for.
func (k *keyring) ask() chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flight != nil {
		return k.flight
	}
	if k.closed || k.set.Load() == nil || time.Since(k.asked) < unknownEvery {
		return nil // it is being retried anyway, or was just looked for
	}
	k.asked, k.flight = time.Now(), make(chan struct{})
	k.wake <- struct{}{} // has room: it is filled only with a flight, and emptied before its end
	return k.flight
}

// renew fetches the keys at once and waits for that, but not for long: the database of the issuer is
// another one than before, and keys may be gone although nothing says that they were revoked.
func (k *keyring) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	for own := false; !own && ctx.Err() == nil; {
		k.mu.Lock()
		// A fetch that is under way may have asked before.
		if own = k.flight == nil; own && !k.closed {
			k.flight = make(chan struct{})
			k.wake <- struct{}{} // has room, as in ask
		}
		flight, closed := k.flight, k.closed
		k.mu.Unlock()
		if closed {
			return
		}
		select {
		case <-flight:
		case <-ctx.Done():
		}
	}
}

// landed ends the fetch that is under way.
func (k *keyring) landed(closed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = closed
	if k.flight != nil {
		close(k.flight)
		k.flight = nil
	}
}

// keepKeys fetches the keys ahead of their max-age, and when an unknown kid asks for it.
func (v *Verifier) keepKeys(ctx context.Context) {
	k := v.keys
	defer k.landed(true)
	preferred, retry, etag := 0, keyRetryFirst, ""
	for {
		var age time.Duration
		err := v.eachServer(&preferred, func(s *server) (err error) {
			age, err = v.fetchKeys(ctx, s, &etag)
			return err
		})
		var wait time.Duration
		if err == nil {
			// A quarter of the time is left for retries.
			wait, retry = jitter(age*3/4), keyRetryFirst
		} else {
			etag = ""
			last := keyRetryLast
			if k.set.Load() == nil {
				last = keyRetryNone
			}
			wait, retry = jitter(retry), min(2*retry, last)
		}
		v.keyState(err)
		k.landed(false)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			k.mu.Lock()
			if k.flight == nil {
				k.flight = make(chan struct{})
			}
			k.mu.Unlock()
			select { // an unknown kid that asked in the meantime gets this fetch
			case <-k.wake:
			default:
			}
		case <-k.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// keyState remembers and reports how a fetch ended.
func (v *Verifier) keyState(err error) {
	k := v.keys
	k.mu.Lock()
	before := k.lastErr
	k.lastErr = err
	first := !k.started
	k.started = true
	k.mu.Unlock()
	switch {
	case v.ctx.Err() != nil:
	case err != nil:
		v.metric(MetricKeyErrors, 1)
		if before == nil {
			v.log.Warn("issuer_keys_not_fetched", "error", err.Error(), "hint", "those at hand stay in use")
		}
	case before != nil && !first:
		v.log.Info("issuer_keys_fetched_again")
	}
}

// fetchKeys gets the set from one server, and says how long it may be used.
func (v *Verifier) fetchKeys(ctx context.Context, s *server, etag *string) (time.Duration, error) {
	meta, err := v.discover(ctx, s)
	if err != nil {
		return 0, fmt.Errorf("find the keys: %w", err)
	}
	if meta.JWKS == "" {
		s.distrust()
		return 0, fmt.Errorf("find the keys: the metadata of %s names no jwks_uri", s.base)
	}
	v.metric(MetricKeyFetches, 1)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, meta.JWKS, nil)
	if err != nil {
		return 0, fmt.Errorf("fetch the keys: %w", err)
	}
	if *etag != "" {
		req.Header.Set("If-None-Match", *etag)
	}
	got, err := v.do(req, maxJWKS, nil)
	if err != nil {
		s.distrust()
		return 0, fmt.Errorf("fetch the keys: %w", err)
	}
	age := maxAge(got.header)
	if got.status == http.StatusNotModified {
		if *etag == "" || v.keys.set.Load() == nil {
			return 0, fmt.Errorf("fetch the keys: %s answered 304 unasked", meta.JWKS)
		}
		return age, nil
	}
	set, err := parseJWKS(got.body)
	if err != nil {
		return 0, fmt.Errorf("read the keys of %s: %w", meta.JWKS, err)
	}
	if len(set) == 0 {
		return 0, fmt.Errorf("%s has no key for ES256, EdDSA or RS256 (with HS256 there are none, and tokens cannot "+
			"be verified here)", meta.JWKS)
	}
	v.keys.set.Store(&set)
	*etag = got.header.Get("ETag")
	return age, nil
}

// maxAge is how long an answer may be kept (RFC 9111 §4.2), within reason. Of that, it has spent Age in a cache.
func maxAge(h http.Header) time.Duration {
	lifetime := lifetimeOf(h)
	left := lifetime
	if spent, err := strconv.Atoi(h.Get("Age")); err == nil && spent > 0 {
		// A cache that gives nothing newer is not asked without end.
		left = min(lifetime, max(lifetime-spent, int(unknownEvery/time.Second)))
	}
	return time.Duration(min(left, int(longestMaxAge/time.Second))) * time.Second
}

// lifetimeOf is max-age, in seconds.
func lifetimeOf(h http.Header) int {
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		value, is := strings.CutPrefix(strings.ToLower(strings.TrimSpace(directive)), "max-age=")
		n, err := strconv.Atoi(strings.Trim(value, `"`))
		if errors.Is(err, strconv.ErrRange) && n > 0 { // for ever, as some say it: n is the largest number
			err = nil
		}
		if is && err == nil {
			return max(n, 1)
		}
	}
	return int(defaultMaxAge / time.Second)
}

// jitter keeps many verifiers from asking at one moment.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/8+1))
}
