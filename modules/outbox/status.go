package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// State is the state of the outbox at one moment.
type State struct {
	Pending int64 `json:"pending"` // events to be published
	// OldestAge is how long the oldest pending event has waited. An event that was put back by a replay was
	// written long before and is left out.
	OldestAge    time.Duration `json:"oldest_age_ns"`
	ParkedKeys   int64         `json:"parked_keys"`
	ParkedEvents int64         `json:"parked_events"`          // that wait with their keys
	Rate         float64       `json:"rate"`                   // recent events a second of all relays
	LeasesAhead  int           `json:"leases_ahead,omitempty"` // leases that end later than any lease can; they are void
	LastID       int64         `json:"last_id"`
	Relays       []RelayState  `json:"relays"`
	Shards       []ShardState  `json:"shards"`
	Targets      []Target      `json:"targets"` // the active one first
	Outages      []Outage      `json:"outages"` // of relays that live and, for a day, of those that have ended
}

// RelayState is a living relay.
type RelayState struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	Shards  int       `json:"shards"` // whose leases it holds
	Rate    float64   `json:"rate"`   // events a second
}

// ShardState is one shard. Owner is empty while no relay holds the lease.
type ShardState struct {
	Shard     int           `json:"shard"`
	Owner     string        `json:"owner,omitempty"`
	Epoch     int64         `json:"epoch"`
	LeaseLeft time.Duration `json:"lease_left_ns"`
	Watermark int64         `json:"watermark"`
	Pending   int64         `json:"pending"`
	OldestAge time.Duration `json:"oldest_age_ns"`
}

// Target returns the active target, or nil while there is none.
func (st State) Target() *Target {
	if len(st.Targets) == 0 || st.Targets[0].State != active {
		return nil
	}
	return &st.Targets[0]
}

// Status reads the state of the outbox. It counts, which takes a moment when millions are pending.
func Status(ctx context.Context, db *database.DB) (st State, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the state of the outbox: %w", err)
		}
	}()
	var nowMS int64
	err = db.QueryRowContext(ctx, `SELECT `+schema.Now(db)+`, (SELECT count(*) FROM outbox_parked_key), (SELECT count(*) FROM outbox_dead)`).
		Scan(&nowMS, &st.ParkedKeys, &st.ParkedEvents)
	if err != nil {
		return st, err
	}
	if st.LastID, err = schema.LastID(ctx, db); err != nil {
		return st, err
	}
	age := func(ms int64) time.Duration { return time.Duration(max(0, nowMS-ms)) * time.Millisecond }

	// A lease that ends later than a lease can was written by a clock that was ahead, or before the
	// clock was set back. A second of tolerance allows for small steps. The query reads the clock
	// again, because relays may have renewed since the first time.
	latest := schema.Now(db) + ` + coalesce(r.lease_ms, ?1) + 1000`
	owned := map[string]int{}
	st.Shards, err = database.Collect(ctx, db, "read the shards", func(row database.Row) (s ShardState, err error) {
		var owner *string
		var until, latest, created int64
		err = row.Scan(&s.Shard, &owner, &s.Epoch, &until, &latest, &s.Watermark, &s.Pending, &created)
		switch {
		case owner == nil || until <= nowMS:
		case until > latest:
			st.LeasesAhead++
		default:
			s.Owner, s.LeaseLeft = *owner, time.Duration(until-nowMS)*time.Millisecond
			owned[s.Owner]++
		}
		if s.Pending > 0 {
			s.OldestAge = age(created)
		}
		st.Pending += s.Pending
		st.OldestAge = max(st.OldestAge, s.OldestAge)
		return s, err
	}, `SELECT s.shard, s.owner, s.epoch, s.until_ms, `+latest+`, s.low,
			coalesce(p.n, 0), coalesce(e.created_ms, `+schema.Now(db)+`)
		FROM outbox_shard s
		LEFT JOIN outbox_relay r ON r.id = s.owner
		LEFT JOIN (SELECT shard, count(*) AS n, min(CASE WHEN NOT replay THEN id END) AS first FROM outbox_pending GROUP BY shard) p ON p.shard = s.shard
		LEFT JOIN outbox_event e ON e.id = p.first ORDER BY s.shard`, schema.LongestLease.Milliseconds())
	if err != nil {
		return st, err
	}
	st.Relays, err = database.Collect(ctx, db, "read the relays", func(row database.Row) (r RelayState, err error) {
		var started int64
		err = row.Scan(&r.ID, &r.Name, &started, &r.Rate)
		r.Started, r.Shards = time.UnixMilli(started).UTC(), owned[r.ID]
		st.Rate += r.Rate
		return r, err
	}, `SELECT id, name, started_ms, rate FROM outbox_relay r WHERE until_ms > ?2 AND until_ms <= `+latest+` ORDER BY id`,
		schema.LongestLease.Milliseconds(), nowMS)
	if err != nil {
		return st, err
	}
	if st.Targets, err = Targets(ctx, db); err != nil {
		return st, err
	}
	if st.Outages, err = outages(ctx, db); database.IsForbidden(err) {
		err = nil // grants.sql has not been run since the table came; the rest can be shown
	}
	return st, err
}
