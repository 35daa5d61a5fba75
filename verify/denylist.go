package verify

import (
	"sync"
	"sync/atomic"
	"time"
)

const denyShards = 64

// denylist is what has ended and could still be accepted. It is a set of facts: adding one
// twice, or in another order, changes nothing. A fact takes about 50 bytes.
type denylist struct {
	shards [denyShards]denyShard // by the last byte of the id, which is random
	keys   sync.Map              // kid → int64, until when, unix seconds
	sweep  atomic.Uint32         // the shard that is swept next
}

type denyShard struct {
	mu       sync.RWMutex
	sessions map[uuid]int64 // until when to remember that the session is over, unix seconds
	accounts map[uuid]ended
}

// ended says that sessions of an account that began below an epoch are over, but for one.
type ended struct {
	epoch int64
	kept  uuid // zero: none is kept
	until int64
}

// seconds rounds up, since forgetting a little late does no harm.
func seconds(t time.Time) int64 { return t.Add(time.Second - 1).Unix() }

func (d *denylist) shard(id uuid) *denyShard { return &d.shards[id[len(id)-1]%denyShards] }

func (d *denylist) addSession(sid uuid, until time.Time) {
	s := d.shard(sid)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions == nil {
		s.sessions = map[uuid]int64{}
	}
	s.sessions[sid] = max(s.sessions[sid], seconds(until))
}

// addAccount keeps the highest epoch. A lower one is covered by it.
func (d *denylist) addAccount(sub uuid, epoch int64, kept uuid, until time.Time) {
	s := d.shard(sub)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accounts == nil {
		s.accounts = map[uuid]ended{}
	}
	now, known := s.accounts[sub]
	switch {
	case !known || epoch > now.epoch:
		now.epoch, now.kept = epoch, kept
	case epoch == now.epoch && kept != now.kept:
		now.kept = uuid{} // they contradict each other
	}
	now.until = max(now.until, seconds(until))
	s.accounts[sub] = now
}

func (d *denylist) addKey(kid string, until time.Time) {
	for {
		was, known := d.keys.LoadOrStore(kid, seconds(until))
		if !known || was.(int64) >= seconds(until) || d.keys.CompareAndSwap(kid, was, seconds(until)) {
			return
		}
	}
}

func (d *denylist) hasKey(kid string) bool {
	_, revoked := d.keys.Load(kid)
	return revoked
}

// has says why a token is over, or nothing.
func (d *denylist) has(c Claims) string {
	sid, _ := parseUUID(c.SessionID)
	s := d.shard(sid)
	s.mu.RLock()
	_, over := s.sessions[sid]
	s.mu.RUnlock()
	if over {
		return "the session has ended"
	}
	sub, _ := parseUUID(c.Subject)
	s = d.shard(sub)
	s.mu.RLock()
	all, known := s.accounts[sub]
	s.mu.RUnlock()
	if known && c.SessionEpoch < all.epoch && sid != all.kept {
		return "all sessions of the account have ended"
	}
	return ""
}

// forget drops what no token can be affected by any more at that moment of the issuer's clock.
// A call looks at a few shards, so that nobody waits for it.
func (d *denylist) forget(now time.Time, shards int) {
	for range shards {
		s := &d.shards[d.sweep.Add(1)%denyShards]
		s.mu.Lock()
		for sid, until := range s.sessions {
			if until <= now.Unix() {
				delete(s.sessions, sid)
			}
		}
		for sub, all := range s.accounts {
			if all.until <= now.Unix() {
				delete(s.accounts, sub)
			}
		}
		s.mu.Unlock()
	}
	d.keys.Range(func(kid, until any) bool {
		if until.(int64) <= now.Unix() {
			d.keys.CompareAndDelete(kid, until)
		}
		return true
	})
}

func (d *denylist) len() int {
	n := 0
	for i := range d.shards {
		s := &d.shards[i]
		s.mu.RLock()
		n += len(s.sessions) + len(s.accounts)
		s.mu.RUnlock()
	}
	d.keys.Range(func(any, any) bool { n++; return true })
	return n
}
