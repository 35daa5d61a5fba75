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

// decide has a decision made while nobody else makes one.
func (m *memory) decide(do func(decision)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(decision{m.rules, m, m.now().UnixMilli()})
}

func (m *memory) get(i id) record {
	if e := m.entries[i]; e != nil {
		return e.rec
	}
	return record{}
}

func (m *memory) put(i id, rec record, failures, life int64) {
	now := rec.at
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
