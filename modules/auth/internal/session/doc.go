// Package session keeps device sessions and their rotating refresh tokens.
//
// One sign-in begins one session: one device and one chain of refresh tokens, of which one is
// current. [Codec] makes and reads the tokens; [Store] holds, for each session, a record with
// the hash of the current secret and, for the grace window, a link from each token that was
// replaced to its successor: the hash of the one, and the other sealed under the secret of the
// one. The stores are redis and sql; sessiontest holds both to the same rules.
//
// # The states of a session
//
//	                        the current token, or one ahead: rotated
//	                                 ┌──────┐
//	                                 │      ▼
//	┌─────────┐      Create        ┌──────────┐
//	│ unknown │ ─────────────────▶ │   live   │ ◀──────┐
//	│         │ ◀───────────────── │ n, h, .. │ ───────┘
//	└─────────┘  idle or absolute  └──────────┘  a replaced token in its window:
//	     ▲       expiry, Delete         │        replayed, or superseded
//	     │                              │
//	     │                              │  a replaced token after its window, or another
//	     │                              ▼  token of a generation: reused
//	     │                         ┌──────────┐
//	     │         Delete          │ stopped, │ ◀──────┐
//	     └──────────────────────── │  marked  │ ───────┘  any token: reused
//	      (revocation committed)   └──────────┘
//
// In every state the step is one script on Redis and one statement, or one transaction that
// holds the row, in SQL; nothing can come between looking and changing. An unknown session
// answers gone and stays unknown.
//
// # Which token is which
//
// The record has generation n and the hash h of its secret. Each token that was replaced less
// than the grace window ago has a link: the hash of its secret, when it was replaced, and its
// successor, sealed. A token whose MAC is right has generation g and hash t:
//
//	g = n,  t = h                              current: n+1 takes its place, its window opens
//	g > n                                      ahead: as current; the new generation is g+1
//	g < n,  linked, t right, in its window     replaced: the newest token
//	g < n,  perhaps in its window, no way      superseded; nothing changes
//	g = n,  t ≠ h;  g < n, linked, t wrong     a fork: reuse
//	g < n,  otherwise                          replaced longer ago: reuse
//
// Each window is counted from the rotation of its own token and does not move, whether it is
// used or others are rotated: a token that leaked is worth nothing more than that many seconds
// after its owner used it. Within them, requests may be repeated, be late and overtake each
// other: each token of the chain gets the newest one. A call that is sent twice because its answer
// was lost is recognised by its successor and answers rotated again, also after the window.
//
// The way to the newest token is walked outside of the store: the secret of the presented token
// opens the first link, each token the next. The store alone opens no link, and a token only those
// after it. Links are deleted after their windows.
//
// # Superseded
//
// Of some replaced tokens it is not known that their window is over, and no way leads from them
// to the newest. They are refused, and end nothing:
//
//   - More than [MaxLinks] tokens were replaced since, within the window. The oldest links give
//     way; when they were made is kept in [Mark]s, to a hundredth of the window.
//   - The token is of a generation that the record had missed before a fail-over.
//   - The store has lost a link, where Redis evicts keys although it must not.
//   - The link says that it was made later than now: the store's clock was ahead. Nobody knows
//     how long ago that was.
//   - Servers of the release before, which keep no links, have rotated since.
//
// After a Reissue, whose caller never showed the old token, the successor is sealed under a key
// of the service instead.
//
// # When the store fails over
//
// A replica that takes over may have missed the latest rotations, also in PostgreSQL, where they wait for no
// synchronous standby. Their answers have reached
// clients, who now hold tokens that are ahead of the record. The MAC shows that we made them
// and nobody else can, so the chain goes on from there: a fail-over signs nobody out.
//
// What this costs: until the first such token arrives, the record still takes the token that
// it believes to be current, which is in truth an old one. If both arrive, first the old one
// and then the true one, the chain has forked at one generation, and which branch is the
// thief's is unknown: reuse, the session ends. In the other order the old one is one that
// the record had missed: superseded for a window, reuse after it. So a stolen old token that a
// fail-over revives is found out when the true holder next refreshes (or the thief does), as it
// is without a fail-over.
//
// A fork without a thief needs a client that had its answer before the fail-over and a second
// request of the same client, with the same old token, served after it. The grace window
// cannot help there: its links open only with the old token, which the holder of the other
// branch no longer has. That client signs in again.
//
// # Two releases at once
//
// The previous release may use the same records. It reads the previous token and its successor,
// which this one keeps as they were; it answers those two as before, and ends the session for an
// older token as before.
//
// A fail-over may also lose a session that was just created, whose client signs in again, or
// the mark of a stopped one. Neither revives what the database has revoked.
package session
