// Package auth holds accounts, signing in, device sessions and tokens. It knows no HTTP:
// authhttp gives it routes, and a monolith of your own can call [Service] directly.
//
// # Who decides what
//
// The database decides which sessions have begun, and which have ended: those of a disabled or
// deleted account, those below the account's session epoch (except the one that raised it), and
// those revoked by id. Each change commits in one transaction with the event that announces it.
// The session store (Redis or SQL) holds the rotating half: which refresh token of a session is
// the current one, and what its owner sees of the device.
//
//	           store record first          transaction                  answer
//	sign in    create record          →    check account, event    →    tokens
//	end        (nothing)              ←    revocation, event       →    204, record removed
//
// So there is never a live session that was not announced, nor an announced end that did not hold,
// whatever dies between two steps: nobody has the token of a record without its transaction, and
// it expires unseen; a record left after its revocation is refused by the database.
//
// # A refresh
//
//	parse, check the MAC      no I/O; garbage can end nothing
//	ask the database          is the account active, the session live?
//	rotate in the store       one atomic step: rotated, replayed, superseded, reused or gone
//	sign the access token
//
// See package session for the state machine of the rotation.
//
// # Where to look
//
// A file named for what a caller asks for (login.go, refresh.go, password.go) holds that alone, and
// no such file uses another one. What they share is in files named for things. Five are about sessions:
//
//	session.go       begins, revokes and ends sessions, with their events
//	sessionstate.go  asks the database whether a session is live, for every request
//	sessiontable.go  the rows of sessions that have begun or were revoked
//	sessionlist.go   finds records in the session store, and leaves out those that have ended
//	sessions.go      what owners ask for: list their sessions, end one or all
//
// What clients and operators end is in revoke.go.
package auth
