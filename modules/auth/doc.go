// Package auth holds accounts, signing in, device sessions and tokens. It knows no HTTP:
// authhttp puts it behind routes, and a monolith of your own can call [Service] directly.
//
// # Who decides what
//
// The database decides what is over: a disabled or deleted account, the account's session
// epoch (every session begun under a lower one has ended, but for the one that asked for it)
// and the list of sessions ended by name; and what has begun. Each change commits in one transaction with the
// event that announces it. The session store (Redis or SQL) holds the rotating half: which
// refresh token of a session is the current one, and what its owner sees of the device.
//
//	           store record first          transaction                  answer
//	sign in    create record          →    check account, event    →    tokens
//	end        (nothing)              ←    revocation, event       →    204, record removed
//
// So there is never a live session that was not announced, nor an announced end that did
// not hold, whatever dies between two steps: a record without its transaction is held by
// nobody, shown to nobody and expires; a record left after its revocation is refused by the database.
//
// # A refresh
//
//	parse, check the MAC      no I/O; garbage can end nothing
//	ask the database          is the account active, the session live?
//	rotate in the store       one atomic step: rotated, replayed, reused or gone
//	sign the access token
//
// See package session for the state machine of the rotation.
package auth
