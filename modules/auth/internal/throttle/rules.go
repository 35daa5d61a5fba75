package throttle

import "time"

// The rules, in Go for counters in this process and in PostgreSQL. limits.lua says the same for
// counters in Redis; a test runs both side by side and compares every answer. All times are Unix
// milliseconds and all arithmetic is in whole numbers below 2^53, so that it is the same in
// both languages.

// lease is after how long a reservation that nobody ended counts as a failure. It is
// longer than any request may take.
const lease = 2 * time.Minute

// unit is one failure in the level of a bucket: a bucket that loses n failures a minute
// loses n units a millisecond.
const unit = 60_000

// tier says in which tier an attempt was let through.
type tier int64

const (
	tierNone tier = iota
	tierDevice
	tierPair
	tierCommon
)

var tierNames = map[tier]string{tierDevice: "device", tierPair: "pair", tierCommon: "common"}

// limit says what refused an attempt.
type limit int64

const (
	limitNone limit = iota
	limitPair
	limitAccount
	limitAddress
	limitPrefix
	limitGlobal
)

var limitNames = map[limit]string{
	limitPair: "pair", limitAccount: "account", limitAddress: "address", limitPrefix: "prefix", limitGlobal: "global",
}

// outcome is how an attempt ended.
type outcome int64

const (
	failed outcome = iota
	succeeded
	cancelled
)

var outcomeNames = map[outcome]string{failed: "failed", succeeded: "succeeded", cancelled: "cancelled"}

// verdict is the answer to an attempt: a tier, or the limit that refused it. A refusal of
// no duration means that all room is reserved, but not used up.
type verdict struct {
	tier  tier
	limit limit
	wait  time.Duration
	known id // of the device and pair tiers: the counter of the owner they were known to
}

func (v verdict) orLonger(w verdict) verdict {
	if w.limit != limitNone && (v.limit == limitNone || w.wait > v.wait) {
		return w
	}
	return v
}

// result is what the end of an attempt tells: whether a threshold was crossed by just this failure,
// and how long attempts like it are refused from now on.
type result struct {
	crossed bool
	wait    time.Duration
}

// record is one counter, as it is stored. In a tier, failed and pending are failures and
// reservations; in a bucket they are levels in units.
type record struct {
	failed, pending int64
	at              int64 // when it was written
	until           int64 // tiers: no attempt before
	// mark is, in an account, when an operator cleared it: tiers written before count as
	// empty. In a pair, until when the address is known to its owner.
	mark int64
	// owner is, in a pair, the counter of the owner to whom the address is known.
	owner id
	// counted is how many of the failures of a device or a pair count in the counter of their
	// owner, too: so many go from there when they are forgiven here.
	counted int64
}

// streakRule is the rule of a counter of consecutive failures.
type streakRule struct {
	free          int64 // failures without a delay
	base, longest int64 // the delays; base 0: none
	max, lock     int64 // beyond max failures, lock is the delay; max 0: no such
	// A streak is remembered for forget times its length, at most memory. So an attacker who pauses
	// until it is forgotten gains one guess for each time of forget, and failures
	// fill the memory of a store only to a limit, however they are spread.
	forget, memory int64
	// cleared is set for accounts: how long it is remembered that one was cleared. That is
	// as long as any tier of the account is, or what was cleared would come back.
	cleared int64
}

func (r streakRule) keep(rec record) int64 { return min(max(1, rec.failed)*r.forget, r.memory) }

func (r streakRule) delay(failures int64) int64 {
	switch {
	case failures < r.free:
		return 0
	case r.max > 0 && failures >= r.max:
		return r.lock
	}
	return min(r.base<<min(failures-r.free, 30), r.longest)
}

// current returns what the record means now: what is to be forgotten is, and reservations
// that nobody ended are failures.
//
// Times that no clock of ours can have written void themselves: a clock that was ahead must not
// stop anybody until the right one has caught up.
func (r streakRule) current(rec record, now, cleared int64) record {
	if rec.until > now+r.delay(rec.failed)+lease.Milliseconds() {
		rec.until = 0
	}
	if cleared > now {
		cleared = 0
	}
	if wiped := rec.at <= cleared; wiped || rec.at+r.keep(rec) < now {
		rec.failed, rec.pending, rec.until = 0, 0, 0
		if wiped || rec.mark <= now { // what a known address has used up outlasts the streak
			rec.counted = 0
		}
	}
	if rec.pending > 0 && (rec.at+lease.Milliseconds() < now || rec.at > now+lease.Milliseconds()) {
		rec.failed, rec.pending = rec.failed+rec.pending, 0
		rec.until = min(rec.at, now) + r.delay(rec.failed)
	}
	return rec
}

// room refuses an attempt while a delay runs, and while as many are in flight as may fail:
// up to the free failures, and one at a time from there.
func (r streakRule) room(rec record, name limit, now int64) verdict {
	switch {
	case rec.until > now:
		return verdict{limit: name, wait: milliseconds(rec.until - now)}
	case rec.pending >= max(1, r.free-rec.failed):
		return verdict{limit: name}
	}
	return verdict{}
}

func (r streakRule) hasRoom(rec record) bool { return rec.failed+rec.pending < r.free }

// hasKnownRoom reports whether the counter of an owner has room for one more failure of the
// device or address in rec. Half of the room is kept for those that have not failed: a few
// stolen tokens cannot use up what the owner's other devices need.
func (r streakRule) hasKnownRoom(known, rec record) bool {
	room := r.free
	if rec.counted+rec.pending > 0 {
		room = (r.free + 1) / 2
	}
	return known.failed+known.pending < room
}

func (r streakRule) fail(rec *record, now int64) (crossed bool) {
	before := rec.failed
	rec.failed++
	if d := r.delay(rec.failed); d > 0 {
		rec.until = now + d
	}
	return before < r.free && rec.failed >= r.free || before < r.max && rec.failed >= r.max
}

// life is how long the record must be kept; 0 when it says nothing.
func (r streakRule) life(rec record, now int64) int64 {
	var life int64
	if rec.failed > 0 || rec.pending > 0 {
		life = max(r.keep(rec), rec.until-now)
	}
	if rec.mark > 0 {
		life = max(life, rec.mark+r.cleared-now)
	}
	return life
}

// bucketRule is the rule of a limit of failures over time: burst at once, perMinute on and on.
type bucketRule struct{ burst, perMinute int64 }

// current lets the bucket leak. Reservations leak too, over the length of the lease, so that
// one that nobody ended does not stay. A bucket that was filled by a clock far ahead is empty: it
// would not leak until then.
func (b bucketRule) current(rec record, now int64) record {
	if rec.at > now+lease.Milliseconds() {
		return record{}
	}
	past := max(0, now-rec.at)
	rec.failed = leak(rec.failed, past, b.perMinute)
	rec.pending = leak(rec.pending, past, b.drain())
	return rec
}

// leak is what is left of a level after past milliseconds. It divides first: a bucket that was
// never written has been leaking since 1970, and that long times a rate is more than a number
// of 64 bits holds.
func leak(level, past, rate int64) int64 {
	if past > level/rate {
		return 0
	}
	return level - past*rate
}

func (b bucketRule) drain() int64 { return (b.burst*unit)/lease.Milliseconds() + 1 }

func (b bucketRule) room(rec record, name limit) verdict {
	over := rec.failed + unit - b.burst*unit
	switch {
	case over > 0:
		return verdict{limit: name, wait: milliseconds((over + b.perMinute - 1) / b.perMinute)}
	case over+rec.pending > 0:
		return verdict{limit: name}
	}
	return verdict{}
}

// life is until the bucket has run dry.
func (b bucketRule) life(rec record) int64 {
	life := (rec.failed + b.perMinute - 1) / b.perMinute
	if rec.pending > 0 {
		life = max(life, lease.Milliseconds())
	}
	return life
}

// rules is the whole of it.
type rules struct {
	device, pair, account, known      streakRule
	address, prefix, global, register bucketRule
	remember                          int64 // how long a pair that signed in is known
}

// memory is how long the longest streak is remembered.
func (c Limits) memory() time.Duration { return time.Duration(c.MaxFailures) * c.Forget }

// knownFailures is how many of the failures that an account takes in all are kept for its known
// devices and addresses. The rest is for strangers.
func (c Limits) knownFailures() int { return max(1, c.MaxFailures/5) }

func (c Limits) strangersFailures() int { return c.MaxFailures - c.knownFailures() }

func (c Config) rules() rules {
	forget, memory, device := c.Forget.Milliseconds(), c.memory().Milliseconds(), c.DeviceTTL.Milliseconds()
	// What known devices have used up stays used up for as long as any of them is known.
	known, knownFailures := max(device, c.Remember.Milliseconds()), int64(c.knownFailures())
	base, longest := c.BaseDelay.Milliseconds(), c.MaxDelay.Milliseconds()
	return rules{
		// What a token has used up stays used up for as long as it could be good.
		device: streakRule{free: int64(c.DeviceFree), forget: device, memory: device},
		pair:   streakRule{free: int64(c.PairFree), base: base, longest: longest, forget: forget, memory: memory},
		account: streakRule{free: int64(c.AccountFree), base: base, longest: longest, max: int64(c.strangersFailures()),
			lock: c.Lock.Milliseconds(), forget: forget, memory: memory, cleared: max(memory, known)},
		known:    streakRule{free: knownFailures, forget: known / knownFailures, memory: known},
		address:  bucketRule{int64(c.AddressBurst), int64(c.AddressPerMinute)},
		prefix:   bucketRule{int64(c.PrefixBurst), int64(c.PrefixPerMinute)},
		global:   bucketRule{int64(c.GlobalBurst), int64(c.GlobalPerMinute)},
		register: bucketRule{int64(c.RegisterPerMinute), int64(c.RegisterPerMinute)},
		remember: c.Remember.Milliseconds(),
	}
}

func (r rules) remembers(pair record, now int64) bool {
	return now < pair.mark && pair.mark <= now+r.remember
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
