// Package outbox writes events with the changes that they announce, and publishes them: an event
// exists exactly if its change committed, reaches the target at least once, and in order per key,
// whatever fails.
//
// [Add] writes an event in the transaction of its change. A relay (package relay), in the same
// process or in others, publishes it to Kafka or a file (package sink).
//
// # One event
//
//	         Add, in the caller's transaction
//	                     │ commit
//	                     ▼
//	              ┌─────────────┐  the sink acknowledged   ┌───────────┐ retention ┌──────┐
//	    ┌────────▶│   pending   │─────────────────────────▶│ published │──────────▶│ gone │
//	    │         └─────────────┘                          └───────────┘           └──────┘
//	    │            │        ▲  ▲                               │
//	    │ refused,   │        │  └──────────── Replay ───────────┘
//	    │ or after   │        │ the sink is away, the relay died, the lease ended:
//	    │ a refused  │        └ it stays pending, and is sent again unchanged
//	    │ one of its ▼
//	    │  key   ┌────────┐ DiscardParked, the refused one only
//	    └────────│ parked │──────────────────────────────────▶ published, but to nobody
//	RetryParked, └────────┘
//	or later ones after DiscardParked
//
// A key is parked from its lowest refused event on, even if a replay meets that event last. An event
// that is refused again is retried with growing pauses, whatever the reason.
//
// The state of an event is which tables have a row of it, never a column that is updated:
//
//	outbox_event        every event, append-only, until the retention has passed
//	outbox_pending      a row while the event is to be published; deleting it marks it published
//	outbox_dead         a row while the event waits with a parked key
//	outbox_parked_key   the keys whose events are not sent, and why
//	outbox_key          the last sequence number of each key
//	outbox_finished_key the keys that will have no more events, until the retention has passed
//	outbox_shard        which relay may publish a shard, until when, and the shard's watermark
//	outbox_relay        the relays that live, for fair shares and for people
//	outbox_target       where events go and went, and how many partitions the order relies on
//	outbox_trouble      the outages of relays, for people who look from other machines
//	outbox_setting      the number of shards; the length of a segment; whether further targets want events; the
//	                    generation, which every event keeps: it rises when the database is set back to an older state
//
// and of targets besides the log:
//
//	outbox_subscription   what they are; the row of a removed one stays, so that its id is not used again
//	outbox_delivery       a row while a target has not taken an event
//	outbox_message        the events for one target alone, until it took them
//	outbox_held_key       the keys whose first event a target did not take
//	outbox_deliverer, outbox_delivery_lease   who delivers
//
// # Why not a cursor
//
// Ids are drawn before transactions commit, and transactions do not commit in the order of ids. A
// reader that remembers the highest id it has seen skips an id whose transaction is still open, and
// never returns to it. A reader that goes by transaction numbers loses nothing, but a transaction
// gets its number before it locks the key, so two events of a key can come in the wrong order, and
// any old transaction in the cluster stalls the reader. A row in outbox_pending cannot be skipped,
// however late it appears, and its reader need not know when its transaction began.
//
// The order per key comes from the lock on its row in outbox_key: the counter is incremented first,
// then the id is drawn, and no other transaction can do either for this key until the commit. So of
// two events of a key the first to commit has the lower id, a reader that sees the second sees the
// first, and the numbers have no gaps, because an aborted transaction takes its number back.
// Consumers see the number as the attribute sequence.
//
// # Where to publish
//
// One target is active. Its row in outbox_target has its kind and place, and what tells it from
// another target of the same name, such as the id of a Kafka cluster. The first relay records it. A
// relay with another sink ends with [ErrOtherTarget] before it takes a shard, and a relay whose
// target was changed ends when it next renews its leases. [SetTarget] changes the target while no
// relay runs.
//
// # Targets besides the log
//
// A [Subscription], such as a webhook, gets the events of the types that it wants from package delivery,
// one by one. Which targets want an event is read in its transaction, once its key is locked, so a target
// that gets an event of a key gets all later ones. Each has its own rows, leases, pauses and parked keys.
// [RemoveTarget] deletes what waits for a target, also what open transactions still add.
//
// # Retention
//
// On PostgreSQL outbox_event is a ring of sixteen partitions by time. The first migration creates
// all of them, so no writer ever fails for lack of one, even if no relay has run for weeks. Old ones
// are emptied with TRUNCATE, which waits at most a fifth of a second for the lock of one table, and
// needs no right to create or drop tables. A segment with events that wait for a target stays. On SQLite
// old rows are deleted in small steps.
//
// The counter of a key stays as long as the key may have events: [Finish] says that it will have
// none. The counter goes a retention later, unless the key had events since.
//
// # Rights
//
// A writer of events needs INSERT on outbox_event and outbox_pending, SELECT, INSERT and UPDATE on
// outbox_key and outbox_finished_key, SELECT on outbox_setting and USAGE of the sequence
// outbox_event_id; it cannot read events. A relay needs SELECT and TRUNCATE on outbox_event and its
// sixteen segments, SELECT and DELETE on outbox_pending and outbox_key, SELECT, UPDATE and DELETE on
// outbox_finished_key, SELECT and UPDATE on outbox_setting, SELECT and INSERT on outbox_dead, SELECT,
// INSERT and UPDATE on outbox_parked_key and outbox_target, all rights on outbox_shard, outbox_relay
// and outbox_trouble, and SELECT on the sequence; it cannot write events. For targets besides the log a
// writer needs EXECUTE of outbox_deliver and outbox_add_message_traced, which run as their owner, and a relay the
// rights that deploy/postgres/grants.sql names. relay/rights_test.go tests
// all of this, and has the rights of operators.
//
// # What it costs
//
// Writers pay one round trip for an event. A pending row is inserted and deleted once; the only row
// that is updated is the counter of the key. The deletion of pending rows does not wait for the
// disk: a crash can bring rows back, which repeats events and loses none.
package outbox
