package schema

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// Deadline is when all leases of this process end, by its own clock. Zero: it has none.
type Deadline struct{ at atomic.Pointer[time.Time] }

// Renew sets the deadline after a renewal that was requested at a moment: the lease in the database begins
// and ends later. A tenth of the lease is left for clocks that run at different speeds.
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

// Sighting is what was last seen of another process with leases. A live process changes it at least every
// third of its lease. A process that has not changed it for a whole lease, by the clock of this process, has
// lost its leases, even if they end in the future by the database's clock, which may have been ahead
// when the end was written, or may have been set back since.
type Sighting struct {
	Ends  [2]int64 // of its row and of its leases, by the database's clock
	Since time.Time
	Lease time.Duration
	Taken bool // its leases were taken
}

// Gone reports whether the process has not renewed its leases for the length of one.
func (s Sighting) Gone(t time.Time) bool { return t.Sub(s.Since) >= s.Lease }

// Sightings are what was last seen of other processes, by their ids.
type Sightings map[string]Sighting

// Look returns what is seen now of a process.
func (s Sightings) Look(id string, ends [2]int64, leaseMS int64, now time.Time) Sighting {
	seen, known := s[id]
	if !known || seen.Ends != ends {
		seen = Sighting{Ends: ends, Since: now}
	}
	seen.Lease = time.Duration(leaseMS) * time.Millisecond
	return seen
}

// Server is the name of the database server that answered last; empty before any did, and on SQLite.
type Server struct{ name atomic.Pointer[string] }

// Load returns the name.
func (s *Server) Load() string {
	if name := s.name.Load(); name != nil {
		return *name
	}
	return ""
}

// Store replaces the name.
func (s *Server) Store(name string) { s.name.Store(&name) }

// Release gives up the leases of a process at once, so that others need not wait until they expire, and deletes its
// row among the processes.
func Release(ctx context.Context, db *database.DB, bound time.Duration, leases, processes, id string) error {
	return db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := Bounded(ctx, tx, bound); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE `+leases+` SET owner = NULL, until_ms = 0 WHERE owner = ?`, id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+processes+` WHERE id = ?`, id); err != nil {
			return err
		}
		return NotifyLeases(ctx, tx)
	})
}

// ProcessName names this process for people, by its host and process id.
func ProcessName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}
