// Package feed tells those who verify access tokens by themselves what has ended, so that
// "ended" holds with them too. It is what /oauth2/revocations answers.
//
// # Facts
//
// The table revocation holds a fact for each session, account or signing key that has ended and
// whose tokens could still be accepted somewhere. Triggers write them (see the migration): a
// fact is part of the transaction that ends, whoever runs it. Facts are a set: to apply one
// twice, or in another order, changes nothing. The one mistake there is, is to miss one.
//
// # What a reader has seen
//
// Neither the order of ids nor that of times is the order in which transactions commit, so that
// a reader that goes on after the highest it saw misses what commits later. On PostgreSQL each
// fact carries its transaction's id, and a look at the table comes with the snapshot it was made
// in, which says of each transaction whether it had committed by then. The next look asks for
// the facts that this snapshot does not contain: those of the few transactions that were under
// way, by their ids, and those of all that began later. That is exact. Nothing is missed, nothing
// repeated and nobody waited for, however long a foreign transaction stays open. SQLite has one
// writer; there the order of ids will do. A [position] is either.
//
// # Cursors
//
// A cursor is a position and says which database it is of: one that was restored, promoted or
// made anew has given the same transaction ids to others. See [store.incarnation]. What has
// expired since need not be known any more, so that no cursor gets too old.
//
// # One reader
//
//	followers ──wait──→ Feed ←──look── one reader ──→ database
//
// While anybody follows, one goroutine looks a few times a second, and at once when something
// ended in this process. What it finds is kept for a while, so that followers are answered from
// memory; only who begins, or comes with a cursor from before, costs a query, which those who
// come together share.
package feed
