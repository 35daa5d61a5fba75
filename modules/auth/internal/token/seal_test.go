package token

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"testing"

	"github.com/toppira/authctl/platform/config"
)

const otherSecret = config.Secret("another secret that is long enough")

func TestASealedKeyOpensAsItself(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{ES256, EdDSA, RS256} {
		key := newTestKey(t, algorithm)
		sealed, err := key.Seal(testSecret)
		if err != nil {
			t.Fatal(err)
		}
		opened, reseal, err := Open(sealed, key.KID(), algorithm, testSecret, otherSecret)
		if err != nil || reseal || !opened.Public().Equal(key.Public()) {
			t.Fatalf("%s: opened %v, reseal %v, %v", algorithm, opened, reseal, err)
		}
		if _, err := testVerifier(key).Verify(mustSign(t, opened, testClaims())); err != nil {
			t.Errorf("%s: what the opened key signs: %v", algorithm, err)
		}
		if _, reseal, err := Open(sealed, key.KID(), algorithm, otherSecret, testSecret); err != nil || !reseal {
			t.Errorf("%s: with a previous secret: reseal %v, %v", algorithm, reseal, err)
		}
		again, err := key.Seal(testSecret)
		if err != nil || bytes.Equal(again, sealed) {
			t.Errorf("%s: sealed twice, the same bytes, %v", algorithm, err)
		}
	}
}

func TestASealedKeyOpensAsNothingElse(t *testing.T) {
	t.Parallel()
	key, other := newTestKey(t, ES256), newTestKey(t, ES256)
	sealed, err := key.Seal(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() error{
		"another secret":    func() error { _, _, err := Open(sealed, key.KID(), ES256, otherSecret); return err },
		"no secret":         func() error { _, _, err := Open(sealed, key.KID(), ES256); return err },
		"another kid":       func() error { _, _, err := Open(sealed, other.KID(), ES256, testSecret); return err },
		"another algorithm": func() error { _, _, err := Open(sealed, key.KID(), EdDSA, testSecret); return err },
	} {
		if err := open(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v; want %v", name, err, ErrSealed)
		}
	}
	for i := range sealed {
		broken := slices.Clone(sealed)
		broken[i] ^= 1
		if _, _, err := Open(broken, key.KID(), ES256, testSecret); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
		if _, _, err := Open(sealed[:i], key.KID(), ES256, testSecret); err == nil {
			t.Fatalf("opened although cut off at %d", i)
		}
	}
	for name, seal := range map[string]func() ([]byte, error){
		"a short secret": func() ([]byte, error) { return key.Seal("short") },
		"the shared key": func() ([]byte, error) { return newTestKey(t, HS256).Seal(testSecret) },
		"no key":         func() ([]byte, error) { return Key{}.Seal(testSecret) },
	} {
		if sealed, err := seal(); err == nil {
			t.Errorf("%s: sealed %x", name, sealed)
		}
	}
}

// Without the check of the thumbprint, a key sealed by hand would work under any kid.
func TestASealedKeyHasToBeTheOneItIsCalled(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, EdDSA)
	key.public.kid = "a-name-of-its-own"
	sealed, err := key.Seal(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(sealed, "a-name-of-its-own", EdDSA, testSecret); err == nil {
		t.Error("opened a key whose kid is not its thumbprint")
	}
}

func TestNoShortRSAKeyIsTaken(t *testing.T) {
	t.Parallel()
	short, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newKey(RS256, short); err == nil {
		t.Error("a 2048 bit key signs")
	}
}

func FuzzOpen(f *testing.F) {
	key := newTestKey(f, ES256)
	sealed, err := key.Seal(testSecret)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add([]byte{})
	f.Add(sealed[:1])
	f.Fuzz(func(t *testing.T, data []byte) {
		opened, _, err := Open(data, key.KID(), ES256, testSecret)
		if err == nil && (!bytes.Equal(data, sealed) || !opened.Public().Equal(key.Public())) {
			t.Errorf("opened %x", data)
		}
	})
}
