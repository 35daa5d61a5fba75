package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxWait       = 25 * time.Second // of a poll
	maxCursor     = 4 << 10
	maxNamedKeys  = 32
	feedRetry     = 100 * time.Millisecond
	feedRetryLast = 2 * time.Second
	refusedRetry  = 10 * time.Second // after an answer that only an operator can change
	sweepShards   = 4                // of the denylist, after each answer

	snapshotBegins = 10 * time.Second // the first byte of a snapshot's first page
	answerTimeout  = time.Minute      // the whole of it
	pollTimeout    = 15 * time.Second // the whole of any other answer, beyond its wait
	bodyTimeout    = 5 * time.Second  // a body without progress
)

// answer is one of the feed.
type answer struct {
	Cursor      string       `json:"cursor"`
	AsOf        time.Time    `json:"as_of"`
	ServerTime  time.Time    `json:"server_time"` // zero: a release that does not say
	More        bool         `json:"more"`
	Revocations []revocation `json:"revocations"`
}

// revocation is an entry of the feed, and the data of an event that ends something.
type revocation struct {
	Type         string    `json:"type"`
	SessionID    string    `json:"sid"`
	Subject      string    `json:"sub"`
	SessionEpoch int64     `json:"session_epoch"`
	KeptID       string    `json:"kept_sid"`
	KID          string    `json:"kid"`
	ExpiresAt    time.Time `json:"expires_at"`
}

// addTo puts the fact on the list. known is false for a type that this version does not know.
func (r revocation) addTo(d *denylist) (known bool, err error) {
	if r.ExpiresAt.IsZero() {
		return true, fmt.Errorf("a revocation of the type %q without expires_at", r.Type)
	}
	switch r.Type {
	case "session":
		sid, ok := parseUUID(r.SessionID)
		if !ok {
			return true, errors.New("a revoked session without its sid")
		}
		d.addSession(sid, r.ExpiresAt)
	case "account":
		sub, ok := parseUUID(r.Subject)
		kept, keptOK := parseUUID(r.KeptID)
		if !ok || !keptOK && r.KeptID != "" || r.SessionEpoch < 1 {
			return true, errors.New("ended sessions of an account without its sub and session_epoch")
		}
		d.addAccount(sub, r.SessionEpoch, kept, r.ExpiresAt)
	case "key":
		if r.KID == "" {
			return true, errors.New("a revoked key without its kid")
		}
		d.addKey(r.KID, r.ExpiresAt)
	default:
		return false, nil
	}
	return true, nil
}

// knowledge is what a verifier knows of what has ended.
type knowledge struct {
	list atomic.Pointer[denylist] // what counts
	mu   sync.Mutex               // held to add, or to put another list in its place
	next *denylist                // a snapshot that is not whole yet, beside an older list; nil: none
}

func newKnowledge() *knowledge {
	k := &knowledge{}
	k.list.Store(&denylist{})
	return k
}

// add puts facts on the list, and on the one that will replace it.
func (k *knowledge) add(facts []revocation) (unknown int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, fact := range facts {
		known, problem := fact.addTo(k.list.Load())
		if k.next != nil && problem == nil {
			_, problem = fact.addTo(k.next)
		}
		if err == nil {
			err = problem
		}
		if !known {
			unknown++
		}
	}
	return unknown, err
}

// begin starts a new list. What is known stays in use until the new one is whole.
func (k *knowledge) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = &denylist{}
}

// install puts the new list in place of the old one.
func (k *knowledge) install() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next != nil {
		k.list.Store(k.next)
		k.next = nil
	}
}

// follower follows the feed.
type follower struct {
	v        *Verifier
	wait     time.Duration // of a poll
	grace    time.Duration // beyond it, until a server counts as dead
	cursor   string        // empty: a snapshot begins
	whole    bool          // the snapshot is whole
	another  bool          // the database is another one since the clock was measured
	paged    bool          // the last answer was a page, or there was none
	chained  bool          // the last answer had more
	chainMin time.Time     // the least as_of of the answers since the last one that was complete
}

func newFollower(v *Verifier) *follower {
	third := v.cfg.MaxLag / 3
	return &follower{
		v:     v,
		paged: true,
		wait:  min(max(third.Truncate(time.Second), time.Second), maxWait),
		grace: min(max(third, time.Second), 10*time.Second),
	}
}

// follow runs until its context ends.
func (f *follower) follow(ctx context.Context) {
	preferred, retry, failing := 0, feedRetry, false
	for ctx.Err() == nil {
		err := f.v.eachServer(&preferred, func(s *server) error {
			err := f.step(ctx, s)
			if gone(err) {
				// The database cannot continue from where we are. The next question begins a snapshot.
				f.restart()
				f.v.metric(MetricSnapshots, 1)
				f.v.keys.renew(ctx)
				err = f.step(ctx, s)
			}
			return err
		})
		if ctx.Err() != nil {
			return
		}
		f.v.syncState(err)
		if err == nil {
			if failing {
				f.v.log.Info("revocations_followed_again")
			}
			retry, failing = feedRetry, false
			continue
		}
		if !failing {
			f.v.log.Warn("revocations_not_followed", "error", err.Error(), "lag", f.v.Lag(),
				"hint", "what is known stays in use")
		}
		failing = true
		f.v.metric(MetricFeedErrors, 1)
		_ = sleep(ctx, jitter(max(retry, asksFor(err)))) // the loop looks at the context
		retry = min(2*retry, feedRetryLast)
	}
}

func (f *follower) restart() {
	f.cursor, f.chained, f.chainMin, f.another = "", false, time.Time{}, true
	f.v.clock.doubt()
	if f.whole {
		f.v.known.begin()
	}
}

func gone(err error) bool {
	answered, ok := errors.AsType[*statusError](err)
	return ok && answered.status == http.StatusGone
}

// asksFor is how long an answer asks to be left alone.
func asksFor(err error) time.Duration {
	answered, ok := errors.AsType[*statusError](err)
	switch {
	case !ok:
		return 0
	case answered.status == http.StatusServiceUnavailable, answered.status == http.StatusTooManyRequests:
		return min(answered.retryAfter, refusedRetry)
	case answered.status >= 300 && answered.status < 500 && answered.status != http.StatusGone:
		return refusedRetry
	}
	return 0
}

// step asks once and takes the answer.
func (f *follower) step(ctx context.Context, s *server) error {
	v := f.v
	meta, err := v.discover(ctx, s)
	if err != nil {
		return fmt.Errorf("find the feed of revocations: %w", err)
	}
	if meta.Feed == "" {
		s.distrust()
		return fmt.Errorf("find the feed of revocations: the metadata of %s names no revocation_feed_endpoint: %w",
			s.base, &statusError{status: http.StatusNotFound})
	}
	var wait time.Duration
	if f.whole && f.cursor != "" && !f.paged && !v.clock.wantsMeasure() {
		wait = f.wait
	}
	asked := v.now()
	a, err := f.ask(ctx, meta.Feed, wait)
	if err != nil {
		if !gone(err) {
			s.distrust()
		}
		return fmt.Errorf("ask for revocations: %w", err)
	}
	read := v.now()
	if err := f.take(ctx, a, asked, read, wait > 0); err != nil {
		return err
	}
	if lag := v.Lag(); !f.paged && lag > v.cfg.MaxLag && len(v.servers) > 1 {
		return fmt.Errorf("%s is %v behind", s.base, lag.Round(time.Millisecond))
	}
	if early := wait/2 - read.Sub(asked); early > 0 && len(a.Revocations) == 0 {
		// It did not wait. Asking it again at once would never end.
		return sleep(ctx, min(early, time.Second))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take applies an answer. The cursor moves when all of it is applied.
func (f *follower) take(ctx context.Context, a answer, asked, read time.Time, waited bool) error {
	v := f.v
	unknown, err := v.known.add(a.Revocations)
	if err != nil {
		return fmt.Errorf("read revocations: %w", err)
	}
	if unknown > 0 {
		v.metric(MetricUnknownTypes, float64(unknown))
	}
	same := a.Cursor == f.cursor
	f.paged = f.cursor == "" || f.chained || a.More
	f.cursor, f.chained = a.Cursor, a.More
	if f.chainMin.IsZero() || a.AsOf.Before(f.chainMin) {
		f.chainMin = a.AsOf
	}
	m := measure{
		asked: asked, read: read, asOf: a.AsOf, server: a.ServerTime,
		page: f.paged, waited: waited, another: f.another && !f.paged,
	}
	if !a.More {
		// All answers of a chain together are complete up to the least of their times.
		v.known.install()
		m.complete = f.chainMin
	}
	v.clock.answered(m)
	f.another = f.another && f.paged
	if !a.More {
		f.whole, f.chainMin = true, time.Time{}
		v.metric(MetricLag, v.Lag().Seconds())
	}
	list := v.known.list.Load()
	_, early := v.clock.issuerTime()
	list.forget(early, sweepShards)
	v.metric(MetricEntries, float64(list.len()))
	if same && (a.More || len(a.Revocations) > 0) { // asking it again at once would never end
		return errors.New("read revocations: an answer that leads nowhere")
	}
	return ctx.Err()
}

// ask sends one question. A server that does not begin to answer in time, or stops in the
// middle, counts as dead.
func (f *follower) ask(ctx context.Context, feed string, wait time.Duration) (answer, error) {
	v := f.v
	whole, silence := wait+f.grace+pollTimeout, wait+f.grace
	if f.cursor == "" {
		whole, silence = answerTimeout, snapshotBegins
	}
	ctx, cancel := context.WithTimeoutCause(ctx, whole, errors.New("the answer took too long"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	target, err := url.Parse(feed)
	if err != nil {
		return answer{}, err
	}
	query := target.Query()
	if f.cursor != "" {
		query.Set("after", f.cursor)
		query.Set("wait", strconv.Itoa(int(wait/time.Second)))
	}
	query.Set("verifier", v.cfg.Name)
	query.Set("instance", v.instance)
	query.Set("version", v.cfg.Version)
	if kids := v.keys.kids(); len(kids) > 0 {
		query.Set("keys", strings.Join(kids[:min(len(kids), maxNamedKeys)], ","))
	}
	target.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	v.cfg.Client.authenticate(req)

	watch := time.AfterFunc(silence, func() { stop(errors.New("no answer in time")) })
	defer watch.Stop()
	got, err := v.do(req, maxFeedAnswer, func() { watch.Reset(bodyTimeout) })
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%s: %w", feed, cause)
		}
		return answer{}, err
	}
	var a answer
	dec := json.NewDecoder(bytes.NewReader(got.body))
	if err := dec.Decode(&a); err != nil {
		return answer{}, fmt.Errorf("read the answer of %s: %w", feed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return answer{}, fmt.Errorf("read the answer of %s: something after its end", feed)
	}
	if a.Cursor == "" || len(a.Cursor) > maxCursor || !sane(a.AsOf) || !a.ServerTime.IsZero() && !sane(a.ServerTime) {
		return answer{}, fmt.Errorf("read the answer of %s: no cursor or no as_of", feed)
	}
	return a, nil
}
