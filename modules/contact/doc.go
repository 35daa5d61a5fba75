// Package contact keeps the addresses at which the owners of accounts can be reached, and lets a
// person who forgot the password back in.
//
// A contact is an address of an account. It is verified when its owner has entered a code that was
// sent to it, or an operator says so. A challenge is such a code, with a link that does the same:
// it lives for a while, works once, and the database has only digests of it. A message is what
// is sent to an address. It is an event of the outbox for the target mail, sealed under a key derived
// from the service's secret, and written in the transaction of its challenge: it is sent exactly when
// the challenge exists.
package contact
