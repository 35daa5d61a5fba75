package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"
)

// benchFlood measures what everything else feels of a flood of sign-ins.
func benchFlood(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	// Those who are probed take no part: sign-ins beyond the limit end their oldest session.
	const apart = 3
	names, list, err := s.users(apart + 64)
	if err != nil {
		return err
	}
	hashing, err := bareHashing(o.cost, o.duration)
	if err != nil {
		return err
	}
	quiet := s.probe(list, o.duration)
	for _, workers := range []int{64, 512} {
		var flood result
		var group sync.WaitGroup
		group.Go(func() { flood = s.signIns(names[apart:], workers, o.duration+time.Second) })
		time.Sleep(500 * time.Millisecond) // until the flood is there
		loud := s.probe(list, o.duration)
		group.Wait()
		r.rate(fmt.Sprintf("sign-in, %d connections (shed %d, failed %d)", workers, flood.shed, flood.failed), flood.rate, hashing, "bare bcrypt", 0.9)
		for i, p := range loud {
			r.latency(fmt.Sprintf("%s p50 under %d sign-ins (failed %d)", p.name, workers, p.failed), p.p50, quiet[i].p50, 0)
			r.latency(fmt.Sprintf("%s p99 under %d sign-ins", p.name, workers), p.p99, quiet[i].p99, 10*time.Millisecond)
		}
	}
	_, peak := s.memory()
	r.plain("memory, peak at 512 sign-ins", fmt.Sprintf("%.0f MiB", peak), "≤ 128 MiB", peak <= 128)
	return nil
}

type probed struct {
	name string
	result
}

// probe calls each of the things that must not suffer, one client each, a hundred times a
// second or so: what is measured is their latency and not the machine's limit.
func (s *server) probe(list []tokens, d time.Duration) []probed {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(clientID)+":"+url.QueryEscape(clientSecret)))
	kinds := []struct {
		name string
		do   func() outcome
	}{
		{"refresh", func() outcome { return s.refresh(&list[0]) }},
		{"me", func() outcome { return s.me(list[1]) }},
		{"jwks", func() outcome { return s.outcomeOf(s.call("GET", "/.well-known/jwks.json", nil)) }},
		{"introspect", func() outcome {
			return s.outcomeOf(s.call("POST", "/oauth2/introspect", "token="+url.QueryEscape(list[2].Access),
				"Authorization", basic, "Content-Type", "application/x-www-form-urlencoded"))
		}},
		{"healthz", func() outcome { return s.outcomeOf(s.call("GET", "/healthz", nil)) }},
	}
	out := make([]probed, len(kinds))
	var group sync.WaitGroup
	for i, kind := range kinds {
		group.Go(func() {
			var all []time.Duration
			failed := int64(0)
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				start := time.Now()
				if kind.do() == done {
					all = append(all, time.Since(start))
				} else {
					failed++
				}
			}
			out[i] = probed{kind.name, result{failed: failed, p50: quantile(all, 0.5), p99: quantile(all, 0.99)}}
		})
	}
	group.Wait()
	return out
}
