package verify

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"
)

// newBench makes a verifier that knows many ends, and a good token.
func newBench(tb testing.TB, algorithm string, ends int) (*Verifier, string, signer) {
	tb.Helper()
	key := newSigner(tb, "k", algorithm)
	i := newIssuer(tb, key)
	i.issuer = "http://auth.example.com/auth"
	cfg := testConfig(i)
	cfg.Transport = &direct{hosts: map[string]http.Handler{"auth.example.com": i}}
	v := start(tb, cfg)
	ready(tb, v)
	fill(v.known.list.Load(), ends)
	return v, i.token(id(1), id(2), 0), key
}

func fill(d *denylist, ends int) {
	random := rand.NewChaCha8([32]byte{})
	until := time.Now().Add(5 * time.Hour)
	for n := range ends {
		var sid uuid
		_, _ = random.Read(sid[:])
		if n%10 == 0 {
			d.addAccount(sid, int64(n), uuid{}, until)
		} else {
			d.addSession(sid, until)
		}
	}
}

// BenchmarkCheck compares Check with the bare verification of its ECDSA signature, which is the
// bound. Both are measured in turns in one run and their medians compared, because a busy machine
// slows down both.
func BenchmarkCheck(b *testing.B) {
	v, token, key := newBench(b, "ES256", 100_000)
	c, err := split(token)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte(c.signed))
	der, _ := derSignature(c.signature)
	public := key.private.Public().(*ecdsa.PublicKey)
	var checks, bares []time.Duration
	for b.Loop() {
		begun := time.Now()
		if _, err := v.Check(b.Context(), token); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		if !ecdsa.VerifyASN1(public, digest[:], der) {
			b.Fatal("bad signature")
		}
		checks, bares = append(checks, between.Sub(begun)), append(bares, time.Since(between))
	}
	slices.Sort(checks)
	slices.Sort(bares)
	check, bare := checks[len(checks)/2], bares[len(bares)/2]
	b.ReportMetric(float64(bare)/float64(check), "of-bare-ECDSA")
	b.ReportMetric(float64(check.Nanoseconds()), "ns/check")
}

// heap is the size of the live heap.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC() // twice, because pools and finalizers of other tests keep things for one more round
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		d := &denylist{}
		fill(d, 100_000)
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB/100,000-ends")
		runtime.KeepAlive(d)
	}
}
