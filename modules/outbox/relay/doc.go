// Package relay publishes the events of the outbox: a [Relay], in the process of the writers or
// in others, sends what package outbox has written to a [Sink].
//
// # One relay
//
// A key belongs to the shard murmur2(key) modulo outbox.shards and to the partition
// murmur2(key) modulo the number of partitions, of which the number of shards is a multiple:
// a shard feeds one partition, the one that the Java client's default partitioner picks.
//
//	         free, or its lease ran out: epoch + 1
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
// Leases last outbox.lease by the database's clock and are renewed every third of it. A
// relay counts from before it asked, by its own clock, and less a tenth: it stops before the
// database would let another one in, and a sink asks [Batch.Owned] right before each time it
// sends. Relays share the shards evenly. One that is told to stop finishes what it has sent
// and releases its shards; another takes them at once.
//
// The database's clock may have been ahead when a lease was written, or may be set back after
// its owner died. So relays also watch, each by its own clock, whether the others renew: one
// that has not for as long as its lease lasts is gone, whatever the end of the lease.
//
// Should two relays send the same events in spite of all (a machine that was suspended
// between the question and the sending), then the same events are there twice, with the same
// ids and bytes. No order is broken and nothing is lost: whoever sends, sends the oldest
// pending events of a key first, and the next ones only when those are acknowledged.
//
// # Where to look from
//
// Deleted rows stay in PostgreSQL's index until vacuum, and a look for the first pending row
// of a shard would walk over all of them. So each shard has a low: no pending id is, or can
// ever appear, at or below it. It is only raised to ids that are settled: read the sequence,
// then the set of transactions that hold a writer's lock on outbox_event; when none of those
// is left, all ids up to what was read are committed or gone. Readers, dumps and writers of
// other tables do not matter.
//
// So the invariant is: the bound is never at or above an id that can still appear. It holds
// because an id is drawn only by a transaction that holds the lock already. The first version
// of outbox_add drew the id and took the lock afterwards, with the INSERT. A writer that had
// to wait in between, for CREATE INDEX or for a CPU, was not seen; the bound passed its id,
// and a later event of the same key was published before it. The function therefore begins
// with LOCK TABLE, and windows_test.go stops a writer between any two of its statements.
//
// What a relay remembers is of one database server. After a fail-over, or a crash that took
// back what was not on disk, the same ids may belong to other events: nothing is read from,
// marked done on or parked on another server than the one that the memory is of.
//
// A low that is wrong loses nothing, but it can change the order of a key: what it hides is
// published late. Every 30 seconds a sweep looks below it, must find nothing, and counts what
// it finds.
package relay
