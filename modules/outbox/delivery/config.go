package delivery

import (
	"cmp"
	"time"

	"github.com/toppira/authctl/platform/config"
)

const (
	// maxRequests limits the deliveries of one process that are under way, and maxOfTarget those to one
	// target. Each target has a share of its own, so one that hangs takes none from another.
	maxRequests = 256
	maxOfTarget = 64

	firstPause = time.Second // after the first attempt that failed; doubled with each
	lastPause  = 5 * time.Minute
	longestAsk = 24 * time.Hour // the longest pause that a target may ask for

	// outagePauses is for how many first pauses a target must take nothing to count as away.
	outagePauses = 8

	busyPoll = 250 * time.Millisecond
	idlePoll = time.Second

	shortestLull = 5 * time.Millisecond
	longestLull  = 100 * time.Millisecond

	sweepEvery = time.Minute
	voidEvery  = time.Minute

	// The times of so many keys change together, while deliveries wait: of fewer after an attempt that failed.
	keysAtOnce, fewAtOnce = 5000, 500

	// leastJump is how far the database's clock must be from what was expected to count as having jumped. It is
	// above the longest time that an answer can take.
	leastJump = time.Minute

	// followWithin is how long the times of all keys that wait may take to follow the clock.
	followWithin = time.Minute

	repeatReport = 10 * time.Second // of an outage that lasts
	tellEvery    = time.Minute      // of attempts that fail, in the log

	// saveTimeout is how long a stopping deliverer tries to record the last answers.
	saveTimeout = 5 * time.Second
)

// Config is outbox.webhook.*, and the settings that the deliverer shares with the relay.
type Config struct {
	RetryFor time.Duration `config:"outbox.webhook.retry_for" default:"72h" min:"1m" max:"720h" doc:"For how long an event that a webhook does not take is retried. After that its user is parked for this webhook."`

	Lease time.Duration // outbox.lease; 0: 5 s

	// Only tests set these.
	Drain time.Duration // how long a stopping deliverer waits at most; 0: as long as its sinks may need
	Pause time.Duration // instead of firstPause; 0: that
}

func (c Config) withDefaults() Config {
	c = config.WithDefaults(c)
	c.Lease = cmp.Or(c.Lease, 5*time.Second)
	c.Pause = cmp.Or(c.Pause, firstPause)
	return c
}
