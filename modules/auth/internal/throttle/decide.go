package throttle

import "time"

// counters are what a decision reads and writes. A missing counter is the zero record.
type counters interface {
	get(i id) record
	// put keeps a record for life milliseconds after it was written, or drops it if life is not positive.
	// failures is how many are in it.
	put(i id, rec record, failures, life int64)
}

// decision applies the rules at one moment to counters that nobody else changes meanwhile. It is for
// counters in this process and in PostgreSQL; limits.lua does the same in Redis.
type decision struct {
	rules rules
	counters
	now int64
}

// begin lets an attempt through and reserves room for its failure, or refuses it. A refusal
// changes nothing.
func (d decision) begin(k keys) verdict {
	r, now := d.rules, d.now
	account := d.account(k)

	if k.device != (id{}) {
		device := r.device.current(d.get(k.device), now, account.mark)
		if r.device.hasRoom(device) && d.reserveKnown(k.known, device, account.mark) {
			device.pending++
			d.putStreak(k.device, device, r.device)
			return verdict{tier: tierDevice, known: k.known}
		}
	}
	pair := r.pair.current(d.get(k.pair), now, account.mark)
	if !k.stranger && r.remembers(pair, now) && pair.owner != (id{}) && r.pair.hasRoom(pair) &&
		d.reserveKnown(pair.owner, pair, account.mark) {
		pair.pending++
		d.putStreak(k.pair, pair, r.pair)
		return verdict{tier: tierPair, known: pair.owner}
	}

	address := r.address.current(d.get(k.address), now)
	v := r.pair.room(pair, limitPair, now).
		orLonger(r.account.room(account, limitAccount, now)).
		orLonger(r.address.room(address, limitAddress))
	var prefix record
	if k.prefix != (id{}) {
		prefix = r.prefix.current(d.get(k.prefix), now)
		v = v.orLonger(r.prefix.room(prefix, limitPrefix))
	}
	v = v.orLonger(r.global.room(r.global.current(d.get(k.global), now), limitGlobal))
	if v.limit != limitNone {
		return v
	}
	pair.pending++
	account.pending++
	address.pending += unit
	prefix.pending += unit
	d.putStreak(k.pair, pair, r.pair)
	d.putStreak(k.account, account, r.account)
	d.putBucket(k.address, address, r.address)
	if k.prefix != (id{}) {
		d.putBucket(k.prefix, prefix, r.prefix)
	}
	return verdict{tier: tierCommon}
}

// reserveKnown takes room for a failure of the known device or address in rec, unless the failures
// that the owner's devices and addresses may have together are used up or reserved.
func (d decision) reserveKnown(i id, rec record, cleared int64) bool {
	known := d.rules.known.current(d.get(i), d.now, cleared)
	if !d.rules.known.hasKnownRoom(known, rec) {
		return false
	}
	known.pending++
	d.putStreak(i, known, d.rules.known)
	return true
}

// finishKnown counts in the owner's counter how an attempt in the tier of rec ended. A success
// forgives only the failures of that tier: those were the owner's own.
func (d decision) finishKnown(i id, rec *record, how outcome, cleared int64) {
	known := d.rules.known.current(d.get(i), d.now, cleared)
	known.pending = max(0, known.pending-1)
	count(&known, rec, how)
	d.putStreak(i, known, d.rules.known)
}

func count(known, rec *record, how outcome) {
	switch how {
	case failed:
		known.failed++
		rec.counted++
	case succeeded:
		known.failed = max(0, known.failed-rec.counted)
		rec.counted = 0
	}
}

// finish ends an attempt that begin let through in the tier, known to an owner or to none. It also takes
// attempts that were begun elsewhere: their outcome counts, and no reservation is taken
// back. With tierNone and succeeded it only remembers the pair. After a success the pair is
// known to the owner.
func (d decision) finish(k keys, in tier, how outcome, known, owner id) result {
	r, now := d.rules, d.now
	account := d.account(k)
	pair := r.pair.current(d.get(k.pair), now, account.mark)
	var s result

	if in == tierDevice {
		device := r.device.current(d.get(k.device), now, account.mark)
		d.finishKnown(known, &device, how, account.mark)
		end(r.device, &device, how, now)
		d.putStreak(k.device, device, r.device)
	}
	switch {
	case in == tierPair:
		d.finishKnown(known, &pair, how, account.mark)
	case in == tierCommon && how == succeeded && pair.counted > 0:
		forgiven := r.known.current(d.get(pair.owner), now, account.mark)
		count(&forgiven, &pair, how)
		d.putStreak(pair.owner, forgiven, r.known)
	}
	if in == tierPair || in == tierCommon {
		s.crossed = end(r.pair, &pair, how, now)
		s.wait = milliseconds(max(0, pair.until-now))
		d.fill(k.address, r.address, in, how)
		if k.prefix != (id{}) {
			d.fill(k.prefix, r.prefix, in, how)
		}
		if how == failed {
			global := r.global.current(d.get(k.global), now)
			global.failed += unit
			d.putBucket(k.global, global, r.global)
		}
	}
	if in == tierCommon {
		s.crossed = end(r.account, &account, how, now) || s.crossed
		s.wait = max(s.wait, milliseconds(account.until-now))
		d.putStreak(k.account, account, r.account)
	}
	if how == succeeded {
		pair.mark = now + r.remember
		if pair.owner != owner {
			pair.owner, pair.counted = owner, 0
		}
	}
	if in != tierDevice || how == succeeded {
		d.putStreak(k.pair, pair, r.pair)
	}
	return s
}

func end(r streakRule, rec *record, how outcome, now int64) (crossed bool) {
	rec.pending = max(0, rec.pending-1)
	switch how {
	case failed:
		return r.fail(rec, now)
	case succeeded:
		rec.failed, rec.until = 0, 0
	}
	return false
}

// fill ends one attempt in a bucket. Only the common tier reserves there, but failures
// in the tier of a known pair fill it too: the address may be shared with a stranger.
func (d decision) fill(i id, r bucketRule, in tier, how outcome) {
	rec := r.current(d.get(i), d.now)
	if in == tierCommon {
		rec.pending = max(0, rec.pending-unit)
	}
	if how == failed {
		rec.failed += unit
	}
	d.putBucket(i, rec, r)
}

// take counts one registration against the address, or says how long it must wait.
func (d decision) take(i id) time.Duration {
	r, now := d.rules.register, d.now
	rec := r.current(d.get(i), now)
	if v := r.room(rec, limitAddress); v.limit != limitNone {
		return v.wait
	}
	rec.failed += unit
	d.putBucket(i, rec, r)
	return 0
}

// clear forgets the failures of the account in all tiers.
func (d decision) clear(k keys) {
	d.putStreak(k.account, record{mark: d.now}, d.rules.account)
}

// state returns the failures of the account in the common tier, and for how long it
// refuses.
func (d decision) state(k keys) (failures int64, wait time.Duration) {
	account := d.account(k)
	return account.failed, milliseconds(max(0, account.until-d.now))
}

func (d decision) account(k keys) record {
	rec := d.get(k.account)
	return d.rules.account.current(rec, d.now, rec.mark)
}

func (d decision) putStreak(i id, rec record, r streakRule) {
	rec.at = d.now
	d.put(i, rec, rec.failed, r.life(rec, d.now))
}

func (d decision) putBucket(i id, rec record, r bucketRule) {
	rec.at = d.now
	d.put(i, rec, rec.failed/unit, r.life(rec))
}
