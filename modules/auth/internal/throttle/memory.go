package throttle

import (
	"container/list"
	"math/bits"
	"sync"
	"time"
)

// memory keeps the counters of one process. It holds at most capacity of them.
//
// One lock guards all: a decision takes a microsecond or two, and a sign-in hashes for a
// thousand times that.
type memory struct {
	rules    rules
	now      func() time.Time
	capacity int

	mu      sync.Mutex
	entries map[id]*entry
	// ranks holds the entries by how much is lost when they are forgotten, in each rank in
	// the order of their last change. When there is no room the oldest of the lowest rank
	// goes: to flush a counter, an attacker has to bring more than capacity others as high.
	ranks   [8]list.List
	evicted uint64
}

type entry struct {
	id      id
	rec     record
	expires int64
	rank    int
	elem    *list.Element
}

func newMemory(r rules, capacity int, now func() time.Time) *memory {
	return &memory{rules: r, capacity: capacity, now: now, entries: make(map[id]*entry)}
}

// begin lets an attempt through and reserves room for its failure, or refuses it. A refusal
// changes nothing.
func (m *memory) begin(k keys) verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, now := m.rules, m.now().UnixMilli()
	account := m.account(k, now)

	if k.device != (id{}) {
		device := r.device.current(m.get(k.device), now, account.mark)
		if r.device.hasRoom(device) && m.reserveKnown(k.known, device, account.mark, now) {
			device.pending++
			m.putStreak(k.device, device, r.device, now)
			return verdict{tier: tierDevice, known: k.known}
		}
	}
	pair := r.pair.current(m.get(k.pair), now, account.mark)
	if !k.stranger && r.remembers(pair, now) && pair.owner != (id{}) && r.pair.hasRoom(pair) &&
		m.reserveKnown(pair.owner, pair, account.mark, now) {
		pair.pending++
		m.putStreak(k.pair, pair, r.pair, now)
		return verdict{tier: tierPair, known: pair.owner}
	}

	address := r.address.current(m.get(k.address), now)
	v := r.pair.room(pair, limitPair, now).
		orLonger(r.account.room(account, limitAccount, now)).
		orLonger(r.address.room(address, limitAddress))
	var prefix record
	if k.prefix != (id{}) {
		prefix = r.prefix.current(m.get(k.prefix), now)
		v = v.orLonger(r.prefix.room(prefix, limitPrefix))
	}
	v = v.orLonger(r.global.room(r.global.current(m.get(k.global), now), limitGlobal))
	if v.limit != limitNone {
		return v
	}
	pair.pending++
	account.pending++
	address.pending += unit
	prefix.pending += unit
	m.putStreak(k.pair, pair, r.pair, now)
	m.putStreak(k.account, account, r.account, now)
	m.putBucket(k.address, address, r.address, now)
	if k.prefix != (id{}) {
		m.putBucket(k.prefix, prefix, r.prefix, now)
	}
	return verdict{tier: tierCommon}
}

// reserveKnown takes room for a failure of the known device or address in rec, unless what the
// owner's devices and addresses may fail together is used up or reserved.
func (m *memory) reserveKnown(i id, rec record, cleared, now int64) bool {
	known := m.rules.known.current(m.get(i), now, cleared)
	if !m.rules.known.hasKnownRoom(known, rec) {
		return false
	}
	known.pending++
	m.putStreak(i, known, m.rules.known, now)
	return true
}

// finishKnown counts in the owner's counter how an attempt in the tier of rec ended. A success
// forgives the failures of that tier and of no other: those were its owner's own.
func (m *memory) finishKnown(i id, rec *record, how outcome, cleared, now int64) {
	known := m.rules.known.current(m.get(i), now, cleared)
	known.pending = max(0, known.pending-1)
	m.count(&known, rec, how)
	m.putStreak(i, known, m.rules.known, now)
}

func (m *memory) count(known, rec *record, how outcome) {
	switch how {
	case failed:
		known.failed++
		rec.counted++
	case succeeded:
		known.failed = max(0, known.failed-rec.counted)
		rec.counted = 0
	}
}

// finish ends what begin let through in the tier, known to an owner or to none. It also takes
// attempts that were begun elsewhere: their outcome counts, and there is no reservation to take
// back. With tierNone and succeeded it only remembers the pair. After a success the pair is
// known to the owner.
func (m *memory) finish(k keys, in tier, how outcome, known, owner id) result {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, now := m.rules, m.now().UnixMilli()
	account := m.account(k, now)
	pair := r.pair.current(m.get(k.pair), now, account.mark)
	var s result

	if in == tierDevice {
		device := r.device.current(m.get(k.device), now, account.mark)
		m.finishKnown(known, &device, how, account.mark, now)
		end(r.device, &device, how, now)
		m.putStreak(k.device, device, r.device, now)
	}
	switch {
	case in == tierPair:
		m.finishKnown(known, &pair, how, account.mark, now)
	case in == tierCommon && how == succeeded && pair.counted > 0:
		forgiven := r.known.current(m.get(pair.owner), now, account.mark)
		m.count(&forgiven, &pair, how)
		m.putStreak(pair.owner, forgiven, r.known, now)
	}
	if in == tierPair || in == tierCommon {
		s.crossed = end(r.pair, &pair, how, now)
		s.wait = milliseconds(max(0, pair.until-now))
		m.fill(k.address, r.address, in, how, now)
		if k.prefix != (id{}) {
			m.fill(k.prefix, r.prefix, in, how, now)
		}
		if how == failed {
			global := r.global.current(m.get(k.global), now)
			global.failed += unit
			m.putBucket(k.global, global, r.global, now)
		}
	}
	if in == tierCommon {
		s.crossed = end(r.account, &account, how, now) || s.crossed
		s.wait = max(s.wait, milliseconds(account.until-now))
		m.putStreak(k.account, account, r.account, now)
	}
	if how == succeeded {
		pair.mark = now + r.remember
		if pair.owner != owner {
			pair.owner, pair.counted = owner, 0
		}
	}
	if in != tierDevice || how == succeeded {
		m.putStreak(k.pair, pair, r.pair, now)
	}
	return s
}

// end ends one reservation in a tier and reports whether a failure crossed a threshold.
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
func (m *memory) fill(i id, r bucketRule, in tier, how outcome, now int64) {
	rec := r.current(m.get(i), now)
	if in == tierCommon {
		rec.pending = max(0, rec.pending-unit)
	}
	if how == failed {
		rec.failed += unit
	}
	m.putBucket(i, rec, r, now)
}

// take counts one registration against the address, or says how long it must wait.
func (m *memory) take(i id) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, now := m.rules.register, m.now().UnixMilli()
	rec := r.current(m.get(i), now)
	if v := r.room(rec, limitAddress); v.limit != limitNone {
		return v.wait
	}
	rec.failed += unit
	m.putBucket(i, rec, r, now)
	return 0
}

// clear forgets the failures of the account in all tiers.
func (m *memory) clear(k keys) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now().UnixMilli()
	m.putStreak(k.account, record{mark: now}, m.rules.account, now)
}

// state returns the failures of the account in the common tier, and for how long it
// refuses.
func (m *memory) state(k keys) (failures int64, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now().UnixMilli()
	account := m.account(k, now)
	return account.failed, milliseconds(max(0, account.until-now))
}

func (m *memory) account(k keys, now int64) record {
	rec := m.get(k.account)
	return m.rules.account.current(rec, now, rec.mark)
}

func (m *memory) get(i id) record {
	if e := m.entries[i]; e != nil {
		return e.rec
	}
	return record{}
}

func (m *memory) putStreak(i id, rec record, r streakRule, now int64) {
	m.put(i, rec, rec.failed, r.life(rec, now), now)
}

func (m *memory) putBucket(i id, rec record, r bucketRule, now int64) {
	m.put(i, rec, rec.failed/unit, r.life(rec), now)
}

func (m *memory) put(i id, rec record, failures, life, now int64) {
	rec.at = now
	e := m.entries[i]
	if e != nil {
		m.ranks[e.rank].Remove(e.elem)
	}
	if life <= 0 {
		delete(m.entries, i)
		return
	}
	if e == nil {
		m.makeRoom(now)
		e = &entry{id: i}
		m.entries[i] = e
	}
	e.rec, e.expires, e.rank = rec, now+life, rank(rec, failures)
	e.elem = m.ranks[e.rank].PushBack(e)
}

// rank grows with the logarithm of the failures. What a success has left ranks above
// noise: it is what keeps an owner from being shut out.
func rank(rec record, failures int64) int {
	n := min(bits.Len64(uint64(failures)), 7)
	if rec.mark > 0 {
		n = max(n, 4)
	}
	return n
}

// makeRoom drops what has expired at the old end of each rank and, when that is not enough,
// the oldest of the lowest rank.
func (m *memory) makeRoom(now int64) {
	for n := range m.ranks {
		for e := m.ranks[n].Front(); e != nil && e.Value.(*entry).expires < now; e = m.ranks[n].Front() {
			m.drop(e.Value.(*entry))
		}
	}
	for n := range m.ranks {
		for e := m.ranks[n].Front(); e != nil && len(m.entries) >= m.capacity; e = m.ranks[n].Front() {
			m.drop(e.Value.(*entry))
			m.evicted++
		}
	}
}

func (m *memory) drop(e *entry) {
	m.ranks[e.rank].Remove(e.elem)
	delete(m.entries, e.id)
}

func (m *memory) stats() (entries int, evicted uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries), m.evicted
}
