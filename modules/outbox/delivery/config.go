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
	longestAsk = 24 * time.Hour // how long a target may ask to be left alone

	// outagePauses is for how many first pauses a target must have taken nothing to have been away.
	outagePauses = 8

	busyPoll = 250 * time.Millisecond
	idlePoll = time.Second

	shortestLull = 5 * time.Millisecond
	longestLull  = 100 * time.Millisecond

	gaugeEvery = 5 * time.Second
	sweepEvery = time.Minute
	voidEvery  = time.Minute

	repeatReport = 10 * time.Second // of an outage that lasts
	tellEvery    = time.Minute      // of attempts that fail, in the log
)

// Config is outbox.webhook.*, and what the deliverer shares with the relay.
type Config struct {
	RetryFor time.Duration `config:"outbox.webhook.retry_for" default:"72h" min:"1m" max:"720h" doc:"How long an event that a webhook does not take is tried again. After that its key is parked."`

	Lease time.Duration // outbox.lease; 0: 5 s

	// Only tests set these.
	Drain time.Duration // how long a deliverer that is told to stop waits for answers; 0: 5 s
	Pause time.Duration // instead of firstPause; 0: that
}

func (c Config) withDefaults() Config {
	c = config.WithDefaults(c)
	c.Lease = cmp.Or(c.Lease, 5*time.Second)
	c.Drain = cmp.Or(c.Drain, 5*time.Second)
	c.Pause = cmp.Or(c.Pause, firstPause)
	return c
}
