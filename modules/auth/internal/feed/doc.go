// Package feed tells those who verify access tokens by themselves what has ended, so that
// "ended" holds with them too. It is what /oauth2/revocations answers.
//
// # Facts
//
// The table revocation holds a fact for each session, account or signing key that has ended and
// whose tokens could still be accepted somewhere. Triggers write them (see the migration): a
// fact is part of the transaction that ends something, whatever program runs it. Facts are a set:
// applying one twice, or in another order, changes nothing. The only possible mistake is to miss
// one.
//
// # What a reader has seen
//
// Transactions do not commit in the order of ids or times, so a reader that continues after the
// highest id it saw misses what commits later. On PostgreSQL each fact carries the id of its
// transaction, and each look at the table returns the snapshot that it was made in, which says of
// every transaction whether it had committed. The next look asks for the facts that this snapshot
// does not contain: those of the few transactions that were open, by their ids, and those of all
// later ones. That is exact: nothing is missed or repeated, and nobody waits, however long a
// foreign transaction stays open. SQLite has one writer, so the order of ids is enough. A
// [position] is either.
//
// # Cursors
//
// A cursor is a position, and names the database that it is of: after a restore or a promotion
// the same transaction ids mean other transactions. See incarnationPostgres. Nobody needs to know
// of what has expired since, so no cursor gets too old. It also says when it was made, by the
// database's clock. If that is in the future by a later look, the clock was set back, and the
// follower has forgotten by a time that is still to come. Such a cursor is gone, too.
//
// # One reader
//
//	followers ──wait──→ Feed ←──look── one reader ──→ database
//
// While somebody follows, one goroutine looks five times a second, and at once when something
// ended in this process. It keeps what it finds for a while and answers followers from memory.
// Only a snapshot, or a cursor from before, costs a query, which followers that come at the same
// time share.
package feed
