// Package delivery brings events to targets that take one event at a time, such as webhooks and mail:
// one attempt under way for a key, many keys side by side. It is to these targets what package relay is
// to the log, and neither waits for the other.
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
// Rows of held keys leave the index of ready rows, so ten thousand keys that wait cost the others
// nothing: each row is set aside once. The key itself has a row in outbox_held_key, with the first
// failure and the next attempt, which survive a change of the owner. When a target that took nothing for
// a while takes an event, the keys that failed meanwhile are tried at once: their pauses have grown with
// the outage.
//
// # Order
//
// The id of an event is drawn while its key is locked, so of two events of a key a reader that sees the
// later one sees the earlier one: see package outbox. All decisions about a target's places are made by
// one goroutine, which reads ready rows in the order of ids, has at most one event of a key under way,
// and begins the next one only when the row of the last one is deleted. Whoever takes over a place
// begins with what is not deleted.
//
// # Leases
//
// Their protocol is that of package relay, with rows of its own: the database's clock, a deadline by the
// deliverer's own clock that a sink asks for right before it sends ([Attempt.Owned]), release after
// draining, and take-over of those that have not renewed for a whole lease, whatever the clock says.
// Which deliverer should have a place follows from the list of those that live and have a sink of its
// kind, so they need not agree on anything else.
//
// A target has attempts of its own, at most 64 and at most its share of 256, and at most half of them
// are for keys that failed before. So a target that hangs takes nothing from another one, and keys that
// hang leave room for others of the same target.
package delivery
