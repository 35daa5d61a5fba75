package token

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"testing"
)

func BenchmarkSign(b *testing.B) {
	for _, algorithm := range algorithms {
		b.Run(algorithm, func(b *testing.B) {
			key, c := newTestKey(b, algorithm), testClaims()
			for b.Loop() {
				if _, err := key.Sign(c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("bare-ECDSA", func(b *testing.B) { // the bound of ES256
		key := newTestKey(b, ES256).private.(*ecdsa.PrivateKey)
		digest := sha256.Sum256([]byte("x"))
		for b.Loop() {
			if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, algorithm := range append(algorithms, "cached") {
		b.Run(algorithm, func(b *testing.B) {
			key := newTestKey(b, ES256)
			if algorithm != "cached" {
				key = newTestKey(b, algorithm)
			}
			v := testVerifier(key)
			if algorithm == "cached" {
				v.Cache = NewCache(DefaultCacheEntries)
			}
			token := mustSign(b, key, testClaims())
			for b.Loop() {
				if _, err := v.Verify(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
