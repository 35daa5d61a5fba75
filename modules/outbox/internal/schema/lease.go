package schema

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
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

// Processes are the tables of processes and of their leases.
type Processes struct{ table, leases string }

// The processes that have leases.
var (
	Relays     = Processes{"outbox_relay", "outbox_shard"}
	Deliverers = Processes{"outbox_deliverer", "outbox_delivery_lease"}
)

// Living is a process that runs.
type Living struct {
	ID    string
	Kinds string // of targets that a deliverer delivers to, in JSON
}

// Look lists the processes: the living ones in the order of their ids, and by their ids the others that have not
// renewed for a whole lease when the database is asked, whatever its clock says, with when their leases end: one that
// ends later was renewed since, and is not free. It keeps what it has seen for the next call. self is the id of this
// process.
func (s *Sightings) Look(
	ctx context.Context, tx database.Tx, of Processes, self string, asked time.Time, now func() time.Time, nowMS int64,
) (living []Living, gone map[string]int64, err error) {
	kinds := "''"
	if of == Deliverers {
		kinds = "p.kinds"
	}
	all := Sightings{}
	gone = map[string]int64{}
	_, err = database.Collect(ctx, tx, "read "+of.table, func(row database.Row) (p Living, err error) {
		var ends [2]int64
		var lease int64
		if err := row.Scan(&p.ID, &p.Kinds, &ends[0], &ends[1], &lease); err != nil {
			return p, err
		}
		seen, known := (*s)[p.ID]
		if !known || seen.Ends != ends {
			seen = Sighting{Ends: ends, Since: now()}
		}
		seen.Lease = time.Duration(lease) * time.Millisecond
		switch {
		case p.ID != self && seen.Gone(asked):
			seen.Taken = true
			gone[p.ID] = ends[1]
		case ends[0] > nowMS:
			living = append(living, p)
		}
		all[p.ID] = seen
		return p, nil
	}, `SELECT p.id, `+kinds+`, p.until_ms, coalesce(l.until_ms, 0), coalesce(p.lease_ms, ?1) FROM `+of.table+` p
			LEFT JOIN (SELECT owner, max(until_ms) AS until_ms FROM `+of.leases+` GROUP BY owner) l ON l.owner = p.id
		UNION ALL SELECT owner, '', 0, max(until_ms), ?1 FROM `+of.leases+`
			WHERE owner IS NOT NULL AND owner NOT IN (SELECT id FROM `+of.table+`) GROUP BY owner
		ORDER BY 1`, LongestLease.Milliseconds())
	if err != nil {
		return nil, nil, err
	}
	delete(all, self)
	*s = all
	return living, gone, nil
}

// IDs lists the ids of processes that are gone.
func IDs(gone map[string]int64) any { return database.List(slices.Collect(maps.Keys(gone))) }

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
func Release(ctx context.Context, db *database.DB, bound time.Duration, of Processes, id string) error {
	return db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := Bounded(ctx, tx, bound); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE `+of.leases+` SET owner = NULL, until_ms = 0 WHERE owner = ?`, id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+of.table+` WHERE id = ?`, id); err != nil {
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
