// Package delivery brings events to targets that take one event at a time, such as webhooks and mail:
// it makes one attempt at a time for a key, and attempts for many keys at once. It does for these targets
// what package relay does for the log, and neither waits for the other.
//
// # One event
//
// A writer adds a row to outbox_delivery for each target that wants its event. A [Deliverer] that holds
// the lease of the row's place (one shard of one target) reads it and makes an attempt:
//
//	        the target took it, or it was dropped
//	┌───────┐─────────────────────────────────────────────────▶ row deleted
//	│ ready │                                                      ▲
//	└───────┘─────────────┐                                        │ taken: the key's next event
//	    ▲                 │ not taken: the key is held,            │ comes at once
//	    │ no event of     ▼ and with it its later events           │
//	    │ the key     ┌──────┐  its time has come                  │
//	    └─────────────│ held │─────────────────────────────────────┤
//	      waits any   └──────┘◀── not taken: a longer pause        │
//	      more            │  ▲                                     │
//	             refused, │  │ retried by an operator,             │
//	    or for too long   ▼  │ or the first event discarded        │
//	                  ┌────────┐                                   │
//	                  │ parked │───────────────────────────────────┘
//	                  └────────┘
//
// Rows of held keys leave the index of ready rows. Each row is set aside once, so ten thousand held keys
// cost the others nothing. The key itself has a row in outbox_held_key, with the first
// failure and the next attempt, which survive a change of the owner. When a target takes an event again
// after an outage, the keys that failed meanwhile are tried at once: their pauses have grown with
// the outage.
//
// # Order
//
// The id of an event is drawn while its key is locked, so a reader that sees an event of a key sees all
// earlier ones: see package outbox. One goroutine makes all decisions about a target's places. It reads
// ready rows in the order of ids, has at most one attempt of a key under way, and begins the next event
// only when the row of the last one is deleted. A deliverer that takes over a place begins with the
// remaining rows.
//
// # Leases
//
// The protocol is that of package relay, with separate rows: the database's clock, a deadline by the
// deliverer's own clock that a sink checks right before it sends ([Attempt.Owned]), release after
// draining, and take-over from deliverers that have not renewed for a whole lease, whatever the clock says.
// The list of live deliverers with a sink of its kind decides which of them should have a place, so they
// need not agree on anything else.
//
// Each target has at most 64 attempts under way and at most its share of 256; at most half of them
// are for keys that failed before. So a target that hangs takes nothing from another one, and keys that
// hang leave room for others of the same target.
package delivery
