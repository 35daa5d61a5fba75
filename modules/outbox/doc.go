// Package outbox brings events out of the database: an event exists exactly when its change
// committed, reaches the target at least once, and per key in order, whatever fails.
//
// A change and its event are written in one transaction with [Add]; a relay (package relay), in the
// same process or in others, publishes what was written to Kafka or a file (package sink).
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
//	    │ or behind  │        │ the sink is away, the relay died, the lease ended:
//	    │ a refused  │        └ it stays pending, and is sent again unchanged
//	    │ one of its ▼
//	    │  key   ┌────────┐ DiscardParked, the refused one only
//	    └────────│ parked │──────────────────────────────────▶ published, but to nobody
//	RetryParked, └────────┘
//	or later ones after DiscardParked
//
// A key is parked from its lowest refused event on, also when that is met last, in a replay.
// What is refused twice is tried with growing pauses, whatever the reason.
//
// What state an event is in is where rows of it are, never a column that is updated:
//
//	outbox_event        every event, append-only, until the retention has passed
//	outbox_pending      a row while it is to be published; deleting it is the mark of being done
//	outbox_dead         a row while it waits with a parked key
//	outbox_parked_key   the keys of which nothing is sent, and why
//	outbox_key          the last sequence number of each key
//	outbox_finished_key the keys that will have no more events, until the retention has passed
//	outbox_shard        who may publish which part, until when, and from where on to look
//	outbox_relay        the relays that are alive, for fair shares and for people
//	outbox_target       where events go and have gone, and how many partitions the order relies on
//	outbox_trouble      what keeps relays from publishing, for those who look from elsewhere
//	outbox_setting      the number of shards; the length of a segment
//
// # Why not a cursor
//
// Ids are drawn before transactions commit, and those do not commit in the order of ids. A
// reader that remembers the highest id it has seen steps over an id that is still open, and
// never comes back to it. A reader that goes by transaction numbers loses nothing, but the
// number is drawn before the key's lock is taken, so two events of a key can come in the
// wrong order, and any old transaction in the cluster stops it. Rows in outbox_pending are
// not stepped over, however late they appear, and whoever reads them need not know when
// they were begun.
//
// Order per key comes from the lock on its row in outbox_key: the counter is raised first,
// then the id is drawn, and nobody else can do either until the commit. Hence of two events
// of a key the first to commit has the lower id, whoever sees the second sees the first, and
// the numbers have no gaps: an aborted transaction takes its number back. Consumers see the
// number as the attribute sequence.
//
// # Where to publish
//
// One target is active, and its row in outbox_target says which: kind and place, and what
// tells it from another of the same name, such as the id of a Kafka cluster. The first relay
// records it. A relay whose sink is another one ends with [ErrOtherTarget] before it takes a
// shard, and one whose target was changed does so when it next renews its leases. [SetTarget]
// changes it while no relay runs.
//
// # Retention
//
// On PostgreSQL outbox_event is a ring of sixteen partitions in time, all of which exist
// from the first migration on: no writer ever fails for want of one, though no relay has run
// for weeks. The oldest are emptied with TRUNCATE, which asks for one table's lock only, for
// a fifth of a second at most, and needs no right to make or drop tables. A segment in which
// anything is pending or parked stays. On SQLite old rows are deleted in small steps.
//
// The counter of a key stays for as long as the key may have events: its owner says with
// [Finish] that it will have none. A retention later the counter goes, unless it has moved.
//
// # Rights
//
// Who writes events needs INSERT on outbox_event and outbox_pending, SELECT, INSERT and
// UPDATE on outbox_key and outbox_finished_key, SELECT on outbox_setting and USAGE of the
// sequence outbox_event_id; it cannot read events. A relay needs SELECT and TRUNCATE on
// outbox_event and its sixteen segments, SELECT and DELETE on outbox_pending and outbox_key,
// SELECT, UPDATE and DELETE on outbox_finished_key, SELECT and UPDATE on outbox_setting, SELECT
// and INSERT on outbox_dead, SELECT, INSERT and UPDATE on outbox_parked_key and outbox_target,
// everything on outbox_shard, outbox_relay and outbox_trouble, and SELECT on the sequence; it
// cannot write events. What operators need is in rights_test.go, which holds all of this to be
// true.
//
// # What it costs
//
// Writers pay one round trip an event. A row of pending is inserted and deleted once;
// nothing is updated but the key's counter. The deletion of pending rows does not wait for
// the disk: a crash can bring rows back, which repeats events and loses none.
package outbox
