package token

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

func (c *Cache) len() int {
	n := 0
	for i := range c.shards {
		c.shards[i].mu.Lock()
		n += len(c.shards[i].entries)
		c.shards[i].mu.Unlock()
	}
	return n
}

// Whatever happens to the clock, the keys and the settings, the answer with a cache is the same as
// without one.
func TestACacheChangesNoVerdict(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	pool := []Key{newTestKey(t, EdDSA), newTestKey(t, EdDSA), newTestKey(t, ES256), newTestKey(t, HS256)}
	now := testNow()
	published := map[string]PublicKey{}
	cached := &Verifier{
		Issuer: testClaims().Issuer, Audiences: []string{"api"}, Now: func() time.Time {
			return now
		},
		Key:   func(kid string) (PublicKey, bool) { key, ok := published[kid]; return key, ok },
		Cache: NewCache(32), // so small that entries are evicted
	}
	plain := *cached
	plain.Cache = nil

	var tokens []string
	for range 100 {
		c := testClaims()
		c.ID = uuid.New()
		c.IssuedAt = now.Add(time.Duration(random.IntN(3600)-600) * time.Second)
		c.ExpiresAt = c.IssuedAt.Add(time.Duration(random.IntN(3600)+1) * time.Second)
		if random.IntN(4) == 0 {
			c.NotBefore = c.IssuedAt.Add(time.Duration(random.IntN(600)) * time.Second)
		}
		c.Audience = [][]string{{"api"}, {"web"}, {"web", "api"}}[random.IntN(3)]
		signed := mustSign(t, pool[random.IntN(len(pool))], c)
		if random.IntN(5) == 0 {
			signed = alter(signed, random.IntN(len(signed)))
		}
		tokens = append(tokens, signed)
	}
	accepted := 0
	for range 20_000 {
		switch random.IntN(100) {
		case 0:
			now = testNow().Add(time.Duration(random.IntN(7200)-1200) * time.Second)
		case 1, 2:
			key := pool[random.IntN(len(pool))]
			published[key.KID()] = key.Public()
		case 3:
			delete(published, pool[random.IntN(len(pool))].KID())
		case 4: // another key with the same name
			other := pool[random.IntN(2)].Public()
			other.kid = pool[random.IntN(2)].KID()
			published[other.kid] = other
		case 5:
			audiences := [][]string{{"api"}, {"web"}, {"api", "web"}}[random.IntN(3)]
			cached.Audiences, plain.Audiences = audiences, audiences
		}
		token := tokens[random.IntN(len(tokens))]
		got, gotErr := cached.Verify(token)
		want, wantErr := plain.Verify(token)
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotErr, wantErr) {
			t.Fatalf("with a cache %+v, %v; without %+v, %v", got, gotErr, want, wantErr)
		}
		if gotErr == nil {
			accepted++
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d were accepted, too few for this test", accepted)
	}
}

func TestACacheSparesTheSignature(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, ES256)
	v := testVerifier(key)
	v.Cache = NewCache(16)
	token := mustSign(t, key, testClaims())
	if _, err := v.Verify(token); err != nil || v.Cache.len() != 1 {
		t.Fatalf("%d entries, %v", v.Cache.len(), err)
	}
	// A key with the same name, algorithm and fingerprint that verifies nothing: the cache does not
	// ask it.
	v.Key = func(string) (PublicKey, bool) {
		blind := key.Public()
		blind.key = newTestKey(t, ES256).public.key
		return blind, true
	}
	if _, err := v.Verify(token); err != nil {
		t.Error(err)
	}
}

func TestACacheIsBounded(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, HS256)
	v := testVerifier(key)
	v.Cache = NewCache(64)
	for range 1000 {
		c := testClaims()
		c.ID = uuid.New()
		if _, err := v.Verify(mustSign(t, key, c)); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.Cache.len(); n > 64 || n < 32 {
		t.Errorf("%d entries; want at most 64, and most of them used", n)
	}
	// Refused tokens are not cached.
	v.Cache = NewCache(64)
	good := mustSign(t, key, testClaims())
	for _, bad := range []string{alter(good, len(good)-3), good + "A", strings.Repeat("A", maxToken+1)} {
		if _, err := v.Verify(bad); err == nil {
			t.Error("accepted")
		}
	}
	if n := v.Cache.len(); n != 0 {
		t.Errorf("%d refused tokens are in the cache", n)
	}
}

func TestACallerCannotChangeWhatIsCached(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, HS256)
	v := testVerifier(key)
	v.Cache = NewCache(64)
	c := testClaims()
	c.Audience = []string{"web", "api"}
	token := mustSign(t, key, c)
	for range 3 {
		got, err := v.Verify(token)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%+v, %v", got, err)
		}
		got.Audience[0], got.Audience[1] = "x", "y"
	}
}

func TestACacheIsSafeForManyAtOnce(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, HS256)
	v := testVerifier(key)
	v.Cache = NewCache(32)
	var tokens []string
	for range 100 {
		c := testClaims()
		c.ID = uuid.New()
		tokens = append(tokens, mustSign(t, key, c))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, token := range tokens {
				if _, err := v.Verify(token); err != nil {
					t.Error(err)
				}
				if _, err := v.Verify(alter(token, len(token)-3)); !errors.Is(err, ErrSignature) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
