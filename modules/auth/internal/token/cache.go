package token

import (
	"crypto/sha256"
	"sync"
)

// DefaultCacheEntries is the size of the cache of [Config.Verifier]: about 5 MB when full.
const DefaultCacheEntries = 8192

const cacheShards = 16

// Cache remembers tokens whose text and signature were good, since verifying a signature
// costs more than all the rest of an authenticated request. It spares that alone: on every
// use the key is looked up again and the claims are validated again, so that a revoked key, an
// expired token or another audience is refused as if there were no cache. It holds digests
// and claims, no tokens.
type Cache struct {
	perShard int
	shards   [cacheShards]cacheShard
}

type cacheShard struct {
	mu      sync.Mutex
	entries map[[sha256.Size]byte]entry
}

type entry struct {
	claims Claims
	key    PublicKey
}

// NewCache makes a cache of about that many entries.
func NewCache(entries int) *Cache {
	return &Cache{perShard: max(1, entries/cacheShards)}
}

func (c *Cache) shard(digest [sha256.Size]byte) *cacheShard { return &c.shards[digest[0]%cacheShards] }

func (c *Cache) get(digest [sha256.Size]byte) (entry, bool) {
	s := c.shard(digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[digest]
	return e, ok
}

// put makes room by forgetting any other entry, or more likely one that is of no more use:
// of a few, the one that expires first.
func (c *Cache) put(digest [sha256.Size]byte, e entry) {
	s := c.shard(digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries == nil {
		s.entries = make(map[[sha256.Size]byte]entry)
	}
	if _, known := s.entries[digest]; !known && len(s.entries) >= c.perShard {
		var victim [sha256.Size]byte
		var soonest entry
		looked := 0
		for d, other := range s.entries { // in random order
			if looked == 0 || other.claims.ExpiresAt.Before(soonest.claims.ExpiresAt) {
				victim, soonest = d, other
			}
			if looked++; looked == 4 {
				break
			}
		}
		delete(s.entries, victim)
	}
	s.entries[digest] = e
}

func (c *Cache) drop(digest [sha256.Size]byte) {
	s := c.shard(digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, digest)
}
