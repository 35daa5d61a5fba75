// Package relay publishes the events of the outbox: a [Relay], in the process of the writers or in
// another one, sends what package outbox has written to a [Sink].
//
// # Shards and leases
//
// A key belongs to the shard murmur2(key) modulo outbox.shards and to the partition murmur2(key)
// modulo the number of partitions. The number of shards is a multiple of the number of partitions,
// so a shard feeds one partition: the one that the default partitioner of the Java client picks.
//
//	         free, or its lease expired: epoch + 1
//	  ┌──────────────────────────────────────────────────────────────────────────┐
//	  ▼                                                                          │
//	┌──────┐ pending rows ┌─────────┐ sent  ┌───────────┐ acknowledged ┌──────┐  │
//	│ idle │─────────────▶│ batched │──────▶│ in flight │─────────────▶│ done │  │
//	└──────┘   one query  └─────────┘       └───────────┘              └──────┘  │
//	  ▲ │       for all      │  ▲              │   │                      │      │
//	  │ │                    │  └─ not owned ──┘   │ no answer: the same  │      │
//	  │ │ more than its      │     now: wait       └ batch again          │      │
//	  │ │ share, or stop     │                                            │      │
//	  │ ▼                    ▼ the lease was lost                 rows deleted   │
//	  │ released ────────── dropped ─────────────────────────────────────────────┘
//	  └───────────────────────────────────────────────────────────────────┘
//
// Leases last outbox.lease by the database's clock, and a relay renews them every third of that. It
// computes their end by its own clock, from before it asked, less a tenth: so it stops before the
// database would let another relay take them, and a sink calls [Batch.Owned] right before each time
// it sends. Relays share the shards evenly. A relay that is told to stop finishes what it has sent
// and releases its shards; another one takes them at once.
//
// The database's clock may have been ahead when a lease was written, or may be set back after its
// owner died. So each relay also watches by its own clock whether the others renew: one that has not
// renewed for a whole lease is gone, whenever its lease ends.
//
// If two relays still send the same events, because a machine was suspended between the check and
// the sending, the events are there twice, with the same ids and bytes. No order is broken and none
// is lost: a relay sends the oldest pending events of a key first, and the next ones only when those
// are acknowledged.
//
// # Waking
//
// Whoever commits events names their keys to the relays: in its own process directly, elsewhere by
// NOTIFY; what a process notifies of itself it ignores. A relay that is woken asks the database only about the shards
// of those keys. It asks about all shards when it polls, every 5 ms while that finds events and then less and less
// often, so a wake-up that is lost, or that names no key, costs time alone. A partition with a batch in flight is not
// asked then. If that is so each time, because the next batch is of what the relay is woken for, it is asked about all
// its shards between two batches, 250 ms after the last time.
//
// # Watermarks
//
// Deleted rows stay in PostgreSQL's index until vacuum, and a search for the first pending row of a
// shard would walk over all of them. So each shard has a watermark: no pending id is at or below it,
// and none can appear there. It never exceeds the stable watermark, up to which every id is committed
// or will never appear: read the sequence, then the set of transactions that hold a writer's lock on
// outbox_event; when all of these have ended, the value read is the stable watermark. Readers, dumps
// and writers of other tables do not matter.
//
// The invariant is: the stable watermark is below every id that can still appear. It holds because a
// transaction draws an id only while it holds the lock. The first version of outbox_add drew the id
// and took the lock afterwards, with the INSERT. A writer that had to wait in between, for CREATE
// INDEX or for a CPU, was not seen; the watermark passed its id, and a later event of the same key was
// published before it. The function therefore starts with LOCK TABLE, and windows_test.go stops a
// writer between any two of its statements.
//
// What a relay remembers is of one database server. After a fail-over, or a crash that undid what was
// not on disk, the same ids may belong to other events. So a relay fetches, acknowledges and parks
// only on the server that its memory is of.
//
// A wrong watermark loses nothing, but it can change the order of a key: the events that it hides are
// published late. Every 30 seconds a sweep looks below the watermarks. It must find nothing, and it
// counts what it finds.
package relay
