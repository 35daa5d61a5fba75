package schema

import (
	"sync/atomic"
	"time"
)

// Deadline is when all leases of this process end, by its own clock. Zero: it has none.
type Deadline struct{ at atomic.Pointer[time.Time] }

// Renew sets the deadline after a renewal that was asked for at a moment: the lease in the database begins
// later, and ends later. A tenth is left for clocks that run at different speeds.
func (d *Deadline) Renew(asked time.Time, lease time.Duration) {
	until := asked.Add(lease - lease/10)
	d.at.Store(&until)
}

// HoldsAt reports whether the leases hold at a moment, by the monotonic clock and by the wall clock: the
// monotonic one stops while a machine is suspended.
func (d *Deadline) HoldsAt(t time.Time) bool {
	until := d.at.Load()
	return until != nil && t.Before(*until) && t.Round(0).Before(until.Round(0))
}

// Sighting is what was last seen of another process with leases. One that lives changes it at least every
// third of its lease. One that has not changed it for a whole lease, by the clock of this process, has
// lost its leases, even if they end in the future by the database's clock, which may have been ahead
// when the end was written, or may have been set back.
type Sighting struct {
	Ends  [2]int64 // of its row and of its leases, by the database's clock
	Since time.Time
	Lease time.Duration
	Taken bool // its leases were taken
}

// Gone reports whether the process has not renewed its leases for the length of one.
func (s Sighting) Gone(t time.Time) bool { return t.Sub(s.Since) >= s.Lease }
