package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// result is the result of a load.
type result struct {
	rate     float64 // successes a second
	shed     int64   // answers that said "later"
	failed   int64   // anything else
	p50, p99 time.Duration
	took     []time.Duration // of each success
}

// outcome of one call.
type outcome int

const (
	done outcome = iota
	later
	wrong
)

// interrupted ends what is measured: the run was stopped.
var interrupted atomic.Bool

// warmPart is the part of a load that comes before what is measured: the clients connect meanwhile.
const warmPart = 6

// load runs do on n workers, with their numbers, for the duration and its warming up. Latencies are those of the
// successful calls.
func load(workers int, d time.Duration, do func(worker int) outcome) result {
	var mu sync.Mutex
	var all []time.Duration
	var shed, failed atomic.Int64
	var group sync.WaitGroup
	begin := time.Now().Add(d / warmPart)
	end := begin.Add(d)
	for w := range workers {
		group.Go(func() {
			var mine []time.Duration
			for time.Now().Before(end) && !interrupted.Load() {
				start := time.Now()
				switch got := do(w); {
				case time.Now().Before(begin) && got != wrong:
				case got == done:
					mine = append(mine, time.Since(start))
				case got == later:
					shed.Add(1)
				default:
					failed.Add(1)
				}
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	group.Wait()
	took := time.Since(begin)
	r := result{rate: float64(len(all)) / took.Seconds(), shed: shed.Load(), failed: failed.Load()}
	r.p50, r.p99, r.took = quantile(all, 0.5), quantile(all, 0.99), all
	return r
}

// quantile sorts the list.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(q*float64(len(list))), len(list)-1)]
}
