package verify

import (
	"math"
	"sync"
	"time"
)

// Infinite is the lag of a verifier that knows nothing of what has ended.
const Infinite time.Duration = math.MaxInt64

// clockWindow is how long a measurement of the issuer's clock is used: within it, two clocks
// that are 100 millionths apart differ by 60 ms.
const clockWindow = 5 * time.Minute

// answerAge is how long before it was asked the issuer may have looked into its database: it looks
// five times a second, for all who follow.
const answerAge = 500 * time.Millisecond

// serverClock is what is known of the issuer's clocks, and of how old the knowledge is. The
// clock of this machine is not believed: offsets are between an issuer's clock and the
// monotonic one.
//
// An answer that is complete up to as_of, asked for at one moment and read at a later one, says
// that the issuer's clock was not before as_of when it was read, and (the issuer looks into its
// database when it is asked) not more than answerAge after as_of when it was asked for. The latter
// is not true of a page of a snapshot, which is also given to others who ask later.
//
// The issuer has two clocks. That of its database tells how old the knowledge is. That of the server that
// answered is the one that servers issue tokens by. Either may be wrong, so tokens are judged by neither
// alone: see issuerTime.
type serverClock struct {
	now  func() time.Time
	base time.Time // the beginning of the monotonic count

	mu         sync.Mutex
	began      time.Time // of the present window
	beganAsOf  time.Time // the issuer's time then
	measured   time.Time // when an answer that was not waited for was last read
	database   estimate
	server     estimate
	read       time.Time // when the last answer was read
	asOf       time.Time // of the newest complete knowledge; zero: there is none
	doubtful   bool      // the issuer's clocks may be others since they were measured
	eventsUpTo int64     // offset: the newest time of an event
}

// bounds are of a clock of the issuer less the monotonic count, in nanoseconds.
type bounds struct{ low, high int64 }

var unbounded = bounds{low: math.MinInt64, high: math.MaxInt64}

// estimate is what is known of a clock: in the present window, and in the one before.
type estimate struct{ cur, prev bounds }

// sane reports whether a time can be one of a clock that was ever set.
func sane(t time.Time) bool { return t.Year() >= 2000 && t.Year() < 2200 }

func newServerClock(now func() time.Time) *serverClock {
	none := estimate{unbounded, unbounded}
	return &serverClock{now: now, base: now(), database: none, server: none, eventsUpTo: math.MinInt64}
}

func (c *serverClock) elapsed(t time.Time) int64 { return int64(t.Sub(c.base)) }

// measure is what an answer says of the clock.
type measure struct {
	asked, read, asOf time.Time
	server            time.Time // by the clock of the server; zero: it is of a release that does not say
	page              bool      // it may be older than the question
	waited            bool      // it came when something had ended, or after a while
	another           bool      // the first of another database, whose clock is another one
	complete          time.Time // everything up to then is known now; zero: no news of that
}

// answered takes what an answer says. Only one that was not waited for begins a window, since others
// bound the clock badly; and only if the issuer's time goes on: a server that stands still must not
// make the better ones forgotten.
func (c *serverClock) answered(m measure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	atOnce := !m.page && !m.waited
	if atOnce {
		c.measured = m.read
	}
	switch {
	case m.another:
		none := estimate{unbounded, unbounded}
		c.database, c.server, c.began, c.beganAsOf, c.doubtful = none, none, m.read, m.asOf, false
	case atOnce && m.read.Sub(c.began) > clockWindow && m.asOf.Sub(c.beganAsOf) > clockWindow/2:
		c.database = estimate{unbounded, c.database.cur}
		c.server = estimate{unbounded, c.server.cur}
		c.began, c.beganAsOf = m.read, m.asOf
	}
	c.observe(&c.database, m, m.asOf)
	if m.server.IsZero() {
		m.server = m.asOf
	}
	c.observe(&c.server, m, m.server)
	c.read = m.read
	if !m.complete.IsZero() {
		c.asOf = m.complete
	}
}

// doubt says that the issuer's database is another one, or that its clock was set back. Nothing is
// forgotten until its clock has been measured: by the former one, what a new snapshot tells had expired.
func (c *serverClock) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubtful = true
}

func (c *serverClock) observe(e *estimate, m measure, at time.Time) {
	e.cur.low = max(e.cur.low, at.UnixNano()-c.elapsed(m.read))
	if !m.page {
		e.cur.high = min(e.cur.high, at.UnixNano()-c.elapsed(m.asked))
	}
}

// wantsMeasure reports that the next answer should not be waited for.
func (c *serverClock) wantsMeasure() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Sub(c.measured) > clockWindow
}

// happened takes the time of an event. It bounds what may be forgotten where no answer tells the
// time, and nothing else: the server that wrote it may have a wrong clock.
func (c *serverClock) happened(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eventsUpTo = max(c.eventsUpTo, at.UnixNano()-c.elapsed(c.now()))
}

// span returns the bounds of the time by a clock of the issuer at this moment. known says that there are
// any from answers; early is zero where nothing at all is known.
func (c *serverClock) span(e estimate, now time.Time) (early, late time.Time, known bool) {
	low := max(e.cur.low, e.prev.low)
	if low != math.MinInt64 {
		early = time.Unix(0, low+c.elapsed(now))
	}
	high := min(e.cur.high, e.prev.high)
	if low == math.MinInt64 || high == math.MaxInt64 {
		return early, time.Time{}, false
	}
	// A stale answer makes the upper bound too low, which the lower one of a better answer tells.
	high = max(low, high+int64(answerAge))
	// While a machine sleeps its monotonic count may stand still, and its wall clock does not.
	sinceRead := max(now.Sub(c.read), now.Round(0).Sub(c.read.Round(0)))
	late = time.Unix(0, high+c.elapsed(c.read)+int64(sinceRead))
	return early, late, true
}

// issuerTime is the moment by which tokens are judged: that of this machine's clock, unless it is
// certainly wrong, because it is ahead of both clocks of the issuer, or behind both. What has expired by
// early may be forgotten: a database whose clock is ahead must not make ends forgotten whose tokens servers
// still take for good.
func (c *serverClock) issuerTime() (now, early time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now = c.now()
	early, late, known := c.span(c.database, now)
	least, most, _ := c.span(c.server, now)
	early, late = earlier(early, least), later(late, most)
	judged := now
	if known && judged.After(late.Add(leeway)) {
		judged = late
	}
	// What was forgotten had expired by the early bound: no token may be judged by an earlier one.
	if judged.Before(early) {
		judged = early
	}
	if c.doubtful {
		return judged, time.Time{}
	}
	if early.IsZero() && c.eventsUpTo != math.MinInt64 {
		if early = time.Unix(0, c.eventsUpTo+c.elapsed(now)); early.After(now) {
			early = now
		}
	}
	return judged, early
}

// lag is how old the knowledge is at most.
func (c *serverClock) lag() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, late, known := c.span(c.database, c.now())
	if !known || c.asOf.IsZero() {
		return Infinite
	}
	return max(0, late.Sub(c.asOf))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
