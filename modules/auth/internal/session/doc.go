// Package session keeps device sessions and their rotating refresh tokens.
//
// One sign-in begins one session: one device and one chain of refresh tokens, of which one is
// current. [Codec] makes and reads the tokens; [Store] holds, for each session, a record with
// the hash of the current secret, the hash of the one before it and, for the grace window,
// the current token sealed under the secret of the one before. The stores are redis and sql;
// sessiontest holds both to the same rules.
//
// # The states of a session
//
//	                        the current token, or one ahead: turned
//	                                 ┌──────┐
//	                                 │      ▼
//	┌─────────┐      Create        ┌──────────┐
//	│ unknown │ ─────────────────▶ │   live   │ ◀──────┐
//	│         │ ◀───────────────── │ n, h, h' │ ───────┘
//	└─────────┘  idle or absolute  └──────────┘  the previous token, in the window: replayed
//	     ▲       expiry, Delete         │
//	     │                              │  an older token, the previous one after the window,
//	     │                              │  or another token of generation n: reused
//	     │                              ▼
//	     │                         ┌──────────┐
//	     │         Delete          │ stopped, │ ◀──────┐
//	     └──────────────────────── │  marked  │ ───────┘  any token: reused
//	      (revocation committed)   └──────────┘
//
// In every state the step is one script on Redis and one statement in SQL; nothing can come
// between looking and changing. An unknown session answers gone and stays unknown.
//
// # Which token is which
//
// The record has generation n, the hash h of its secret, and h' of generation n-1. A token
// whose MAC is right has generation g and hash t:
//
//	g = n,   t = h                       current: n+1 takes its place, the grace window opens
//	g > n                                ahead: as current; the new generation is g+1
//	g = n-1, t = h', within the window   previous: the same successor again
//	g = n-1, t = h', its successor lost  gone; nothing changes
//	g = n-1, t = h', after the window    reuse
//	g = n,   t ≠ h                       a fork: reuse
//	g < n    otherwise                   older: reuse
//
// The window is counted from the rotation and does not move when it is used, so a token that
// leaked is worth nothing more than that many seconds after its owner used it. A call that
// is sent twice because its answer was lost is recognised by its successor and answers
// turned again, window or no window.
//
// The successor can be lost where Redis evicts keys although it must not. The holder of the
// old token is then refused but the session, which is in order, is not stopped. After a
// Reissue, whose caller never showed the old token, the successor is sealed under a key of
// the service instead.
//
// # When Redis fails over
//
// A replica that takes over may have missed the latest rotations. Their answers have reached
// clients, who now hold tokens that are ahead of the record. The MAC shows that we made them
// and nobody else can, so the chain goes on from there: a fail-over signs nobody out.
//
// What this costs: until the first such token arrives, the record still takes the token that
// it believes to be current, which is in truth an old one. If both arrive, first the old one
// and then the true one, the chain has forked at one generation, and which branch is the
// thief's cannot be known: reuse, the session ends. In the other order the old one is simply
// older: reuse as well. So a stolen old token that a fail-over revives is found out when the
// true holder next refreshes (or the thief does), as it is without a fail-over.
//
// A fork without a thief needs a client that had its answer before the fail-over and a second
// request of the same client, with the same old token, served after it. The grace window
// cannot help there: its sealed successor opens only with the old token, which the holder of
// the other branch no longer has. That client signs in again.
//
// A fail-over may also lose a session that was just created, whose client signs in again, or
// the mark of a stopped one. Neither revives what the database has revoked.
package session
