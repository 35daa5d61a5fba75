//go:build unix

package password

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFlood puts sign-ins of so many clients at once, each coming back at once when it
// is answered, beside bare hashing on as many goroutines as there are CPUs, in one run:
//
//	served/bare  how much of bare hashing reaches sign-ins
//	cpu/bare     the same for each second of CPU the process got, for a machine that others use
//	other-p99-ms the 99th percentile of other work (a signature every 2 ms) meanwhile
//	heap-MiB     the most the heap held
//
// Run it with -benchtime 1x; it takes about ten seconds for each count.
func BenchmarkFlood(b *testing.B) {
	for _, cfg := range []Config{{Algorithm: "bcrypt", BcryptCost: 10}, {Algorithm: "argon2id"}} {
		bare, bareCPU := bareRate(cfg)
		for _, clients := range []int{16, 64, 512} {
			b.Run(fmt.Sprintf("%s/%d", cfg.Algorithm, clients), func(b *testing.B) {
				for b.Loop() {
					flood(b, cfg, clients, bare, bareCPU)
				}
			})
		}
	}
}

// bareRate is how many hashes per second the machine computes without any other work.
func bareRate(cfg Config) (rate, rateOfCPU float64) {
	p := &Passwords{cfg: cfg.withDefaults()}
	maker, size := p.maker(nil)
	h := maker.seal([]byte("right"), size)
	var all sync.WaitGroup
	var n atomic.Int64
	start, cpu := time.Now(), cpuSeconds()
	for range runtime.NumCPU() {
		all.Go(func() {
			for time.Since(start) < 3*time.Second {
				h.matches([]byte("wrong"))
				n.Add(1)
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(start).Seconds(), float64(n.Load()) / (cpuSeconds() - cpu)
}

func flood(b *testing.B, cfg Config, clients int, bare, bareCPU float64) {
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(procs)
	p, err := New(cfg, Options{ReserveProcs: true})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	encoded, err := p.Hash(b.Context(), "right")
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithTimeout(b.Context(), 8*time.Second)
	defer stop()
	var served, shed atomic.Int64
	var all sync.WaitGroup
	start, cpu := time.Now(), cpuSeconds()
	for range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				switch _, err := p.Verify(ctx, "", "wrong", stored(encoded)); {
				case err == nil:
					served.Add(1)
				case errors.Is(err, ErrOverloaded):
					shed.Add(1)
				}
			}
		})
	}
	p99, heap := otherWork(ctx)
	all.Wait()
	b.ReportMetric(float64(served.Load())/time.Since(start).Seconds()/bare, "served/bare")
	b.ReportMetric(float64(served.Load())/(cpuSeconds()-cpu)/bareCPU, "cpu/bare")
	b.ReportMetric(float64(shed.Load()), "shed")
	b.ReportMetric(float64(p99.Microseconds())/1000, "other-p99-ms")
	b.ReportMetric(float64(heap)/(1<<20), "heap-MiB")
	b.ReportMetric(0, "ns/op")
}

// cpuSeconds is the CPU time that the process has used.
func cpuSeconds() float64 {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}

// otherWork signs something every 2 ms, each time on a new goroutine, until ctx ends.
func otherWork(ctx context.Context) (p99 time.Duration, heap uint64) {
	_, key, _ := ed25519.GenerateKey(nil)
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		due := <-tick.C
		all.Go(func() {
			ed25519.Sign(key, []byte("token"))
			late := time.Since(due)
			mu.Lock()
			took = append(took, late)
			mu.Unlock()
		})
		if i%50 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			heap = max(heap, m.HeapSys-m.HeapReleased)
		}
	}
	all.Wait()
	slices.Sort(took)
	return took[len(took)*99/100], heap
}
