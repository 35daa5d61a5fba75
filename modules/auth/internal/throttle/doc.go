// Package throttle decides, before any hashing, whether a sign-in may be tried now.
//
// Everybody who guesses passwords must be slowed, and nobody who guesses may thereby keep
// the owner out. Both follow from one idea: whoever has signed in to the account before
// travels in a tier of their own, which strangers cannot fill.
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
// That the account is more patient than the pair is on purpose: one address hammering an
// account is stopped by the pair's delay, hours before strangers elsewhere feel anything.
//
// # What is counted
//
// Only failures. A sign-in that succeeds costs nothing, however many there are. But a guess
// in flight may turn out to be a failure, so [Limiter.Begin] reserves room for it and
// [Limiter.Failed], [Limiter.Succeeded] or [Limiter.Cancel] ends the reservation: a
// thousand guesses sent at once are not a thousand guesses. Attempts that find all room
// reserved, but not used up, wait a little for others to end, since those may succeed.
// A reservation that never ends, because a process died, becomes a failure after
// two minutes.
//
// A success in the common tier forgets the failures of the account and of the pair. In the
// other tiers it forgets those of that tier only, also where they count in the owner's 20:
// else an owner who signs in every hour would hand strangers a new budget every hour.
//
// A streak of n failures is forgotten after n days without another, and beyond 80 failures
// one guess a day is let through. What known devices have failed is forgotten when their
// tokens are no longer good. So whoever guesses at an account has 100 guesses, 80 as a
// stranger and 20 with whatever tokens, addresses and sessions of the owner, and one more a
// day, however they go about it: NIST SP 800-63B-4 §3.2.2 with a trickle, without which
// they could shut an owner's new devices out for good.
//
// Accounts are named by a keyed hash of the canonical name, whether there is such an account
// or not. The package never learns which; its answers cannot tell (R01).
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
// What is known is known to one account with one password: [Limiter.Trusts]. After a change
// of the password, and to whoever takes a name that was given up, all of it is strange.
//
// # Where the counters live, and what they take
//
// In Redis when there is one: one script, so one round trip, for Begin and one to end it.
// All keys begin with authctl:{throttle}: the hash tag puts them into one slot, because one
// script reads several of them. Redis' clock is the clock.
//
// Every key expires. Strangers only make one by a failure, which pays for a day of it, and
// the global limit bounds failures, by default to 600 a minute: under the worst flood, for
// as long as it lasts, that is some 900,000 accounts and as many pairs, about 350 MB. What
// owners leave behind is a known address for 30 days.
//
// Without Redis, in this process: a fixed number of entries, some 200 bytes each. When they
// are used up, those with the fewest failures go first, so that spraying new names cannot
// push out the count of an account under attack.
//
// When Redis is away or slow, each process goes on with its own counters, which have followed
// what this process saw, and returns to Redis by itself. Limits are then per process, so n
// processes give n times as many guesses at most; device tokens work all the same.
package throttle
