package throttle

import "time"

// The rules, in Go for counters in this process. limits.lua says the same for counters in
// Redis; a test runs both side by side and compares every answer. All times are Unix
// milliseconds and all arithmetic is in whole numbers below 2^53, so that it is the same in
// both languages.

// lease is after how long a reservation that nobody settled counts as a failure. It is
// longer than any request may take.
const lease = 2 * time.Minute

// unit is one failure in the level of a bucket: a bucket that loses n failures a minute
// loses n units a millisecond.
const unit = 60_000

// lane says in which lane an attempt was let through.
type lane int64

const (
	laneNone lane = iota
	laneDevice
	lanePair
	laneCommon
)

var laneNames = map[lane]string{laneDevice: "device", lanePair: "pair", laneCommon: "common"}

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

// verdict is the answer to an attempt: a lane, or the limit that refused it. A refusal of
// no duration means that all room is reserved, but not used up.
type verdict struct {
	lane  lane
	limit limit
	wait  time.Duration
}

// orLonger returns the refusal of the two that lasts longer.
func (v verdict) orLonger(w verdict) verdict {
	if w.limit != limitNone && (v.limit == limitNone || w.wait > v.wait) {
		return w
	}
	return v
}

// settlement is what settling tells: whether a threshold was crossed by just this failure,
// and how long attempts like it are refused from now on.
type settlement struct {
	crossed bool
	wait    time.Duration
}

// record is one counter, as it is stored. In a lane, failed and pending are failures and
// reservations; in a bucket they are levels in units.
type record struct {
	failed, pending int64
	at              int64 // when it was written
	until           int64 // lanes: no attempt before
	// mark is, in an account, when an operator cleared it: lanes written before count as
	// empty. In a pair, until when the address is known to the account.
	mark int64
}

// laneRule is the rule of a counter of consecutive failures.
type laneRule struct {
	free          int64 // failures without a delay
	base, longest int64 // the delays; base 0: none
	max, lock     int64 // beyond max failures, lock is the delay; max 0: no such
	// A streak is remembered for forget times its length, at most memory. So whoever pauses
	// until it is forgotten gains one guess for each time of forget; and so many failures
	// fill the memory of a store only so far, however they are spread.
	forget, memory int64
	// cleared is set for accounts: how long it is remembered that one was cleared. That is
	// as long as any lane of the account is, or what was cleared would come back.
	cleared int64
}

func (r laneRule) keep(rec record) int64 { return min(max(1, rec.failed)*r.forget, r.memory) }

func (r laneRule) delay(failures int64) int64 {
	switch {
	case failures < r.free:
		return 0
	case r.max > 0 && failures >= r.max:
		return r.lock
	}
	return min(r.base<<min(failures-r.free, 30), r.longest)
}

// current returns what the record means now: what is to be forgotten is, and reservations
// that nobody settled are failures.
func (r laneRule) current(rec record, now, cleared int64) record {
	if rec.at <= cleared || rec.at+r.keep(rec) < now {
		rec.failed, rec.pending, rec.until = 0, 0, 0
	}
	if rec.pending > 0 && rec.at+lease.Milliseconds() < now {
		rec.failed, rec.pending = rec.failed+rec.pending, 0
		rec.until = rec.at + r.delay(rec.failed)
	}
	return rec
}

// room refuses an attempt while a delay runs, and while as many are in flight as may fail:
// up to the free failures, and one at a time from there.
func (r laneRule) room(rec record, name limit, now int64) verdict {
	switch {
	case rec.until > now:
		return verdict{limit: name, wait: milliseconds(rec.until - now)}
	case rec.pending >= max(1, r.free-rec.failed):
		return verdict{limit: name}
	}
	return verdict{}
}

// fail counts a failure and reports whether it crossed a threshold.
func (r laneRule) fail(rec *record, now int64) (crossed bool) {
	before := rec.failed
	rec.failed++
	if d := r.delay(rec.failed); d > 0 {
		rec.until = now + d
	}
	return before < r.free && rec.failed >= r.free || before < r.max && rec.failed >= r.max
}

// life is how long the record must be kept; 0 when it says nothing.
func (r laneRule) life(rec record, now int64) int64 {
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
// one which nobody settled does not stay.
func (b bucketRule) current(rec record, now int64) record {
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
	device, pair, account             laneRule
	address, prefix, global, register bucketRule
	known                             int64 // how long a pair that signed in is known
}

// memory is how long the longest streak is remembered.
func (c Config) memory() time.Duration { return time.Duration(c.MaxFailures) * c.Forget }

func (c Config) rules() rules {
	forget, memory, device := c.Forget.Milliseconds(), c.memory().Milliseconds(), c.Device.Milliseconds()
	base, longest := c.BaseDelay.Milliseconds(), c.MaxDelay.Milliseconds()
	return rules{
		// A used-up token stays used up for as long as it could have been good.
		device: laneRule{free: int64(c.DeviceFree), forget: device / int64(c.DeviceFree), memory: device},
		pair:   laneRule{free: int64(c.PairFree), base: base, longest: longest, forget: forget, memory: memory},
		account: laneRule{free: int64(c.AccountFree), base: base, longest: longest, max: int64(c.MaxFailures),
			lock: c.Lock.Milliseconds(), forget: forget, memory: memory, cleared: max(memory, device)},
		address:  bucketRule{int64(c.AddressBurst), int64(c.AddressPerMinute)},
		prefix:   bucketRule{int64(c.PrefixBurst), int64(c.PrefixPerMinute)},
		global:   bucketRule{int64(c.GlobalBurst), int64(c.GlobalPerMinute)},
		register: bucketRule{int64(c.RegisterPerMinute), int64(c.RegisterPerMinute)},
		known:    c.Remember.Milliseconds(),
	}
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
