// Package throttle decides, before any hashing, whether a sign-in may be tried now.
//
// Guessing must be slowed, and must not keep the owner out. Both follow from one idea: a device or
// an address that has signed in to the account before has a tier of its own, which strangers
// cannot fill.
//
//	           presents a device token       signed in from this            anyone else
//	           that we made for the name     address to this account
//	           ──────────┬──────────────     before ───────┬──────          ──────┬────
//	                device tier                        pair tier             common tier
//	own budget:     5 failures a token,           5 failures a pair,      pair, account, address,
//	                until a success               until a success         /48 prefix and global
//	                     └──────────┬──────────────────────┘
//	together:       20 failures of all that the owner is known by
//	                                │ used up                                    ▲
//	                                └────────────────────────────────────────────┘
//
// In the common tier, five limits hold at once:
//
//	pair      one address at one account   5 failures, then a delay that doubles: 1s, 2s, … 15m
//	account   all strangers at an account  20 failures, then the same; at 80 failures 24h each
//	address   IPv4 /32 or IPv6 /64         200 failures, then 10 a minute, whatever the names
//	prefix    IPv6 /48                     800 failures, then 40 a minute
//	global    all strangers                2000 failures, then 600 a minute
//
// The account allows more than the pair on purpose: one address that hammers an account is stopped
// by the pair's delay, hours before strangers elsewhere notice.
//
// # What is counted
//
// Only failures: sign-ins that succeed cost nothing. But an attempt in flight may fail, so
// [Limiter.Begin] reserves room for it, and [Limiter.Failed], [Limiter.Succeeded] or
// [Limiter.Cancel] ends the reservation: sending a thousand guesses at once does not help. Attempts
// that find all room reserved, but not used up, wait a little for others to end, since those may
// succeed. A reservation that never ends, because a process died, becomes a failure after two
// minutes.
//
// A success in the common tier forgets the failures of the account and of the pair. In the
// other tiers it forgets those of that tier only, also where they count in the owner's 20:
// else an owner who signs in every hour would hand strangers a new budget every hour.
//
// A streak of n failures is forgotten after n days without another, and beyond 80 failures
// one guess a day is let through. What known devices have failed is forgotten when their
// tokens are no longer valid. So an attacker has 100 guesses at an account, 80 as a stranger and 20
// with tokens, addresses and sessions of the owner, and one more a day: NIST SP 800-63B-4 §3.2.2
// with a trickle, without which they could lock out an owner's new devices for good.
//
// Accounts are named by a keyed hash of the canonical name, whether there is such an account
// or not. The package never learns which, so its answers cannot show it (R01).
//
// # What a known device is worth to a thief
//
// A stolen device token, or an address shared with the owner, gives five guesses and then
// the common tier. The owner's next success with the same token, or without any token from
// the same address, gives five more; each sign-in hands out a new token, so a stolen one
// does not profit for long. Any number of them give 20 together. Of those 20, ten are for
// tokens and addresses that have not failed yet: a thief with a few tokens uses up ten, and
// the owner's other devices still have their tier.
//
// What is known is known to one account with one password: [Limiter.Trusts]. After a change of the
// password, and to a new account of the same name, all of it is unknown.
//
// # Where the counters live, and what they take
//
// In Redis when there is one: one script, so one round trip, for Begin and one to end it.
// All keys begin with authctl:{throttle}: the hash tag puts them into one slot, because one
// script reads several of them. Redis' clock is the clock.
//
// Else in PostgreSQL, in the table throttle_counter, by its clock. A refusal is one query that locks
// and writes nothing. What changes counters is decided by this process under one lock that all
// processes share, in two round trips more; attempts that come at the same time go together. It takes
// at most two connections of each process. Nothing waits for the disk, so a crash
// forgets the last second; a standby that is promoted knows what it had received.
//
// Every counter expires. Strangers make one only by a failure, which keeps it for a day, and the global
// limit bounds failures, by default to 600 a minute: the worst flood makes some 900,000 accounts
// and as many pairs, about 350 MB in Redis and 450 MB in PostgreSQL. Owners leave a known address for 30
// days.
//
// On SQLite, in this process: a fixed number of entries, some 200 bytes each. When they
// are used up, those with the fewest failures go first, so that spraying new names cannot
// push out the count of an account under attack. SQLite has one writer, who waits for the disk: counters
// there would make each wrong password wait its turn to write, twice.
//
// When the shared counters are away or slow, each process goes on with its own, which have followed
// what this process saw, and returns to the shared ones by itself. Limits are then per process, so n
// processes give n times as many guesses at most; device tokens work all the same.
package throttle
