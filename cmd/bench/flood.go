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

// benchFlood measures what everything else feels of a flood of sign-ins. Bare hashing is
// measured before and after each flood: the machine is not the same all the time.
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
	long := 6 * o.duration // the probes are few
	quiet := s.probe(list, long)
	bound, err := bareHashing(o.cost, o.duration)
	if err != nil {
		return err
	}
	for _, workers := range []int{64, 512} {
		var flood result
		var group sync.WaitGroup
		group.Go(func() { flood = s.signIns(names[apart:], workers, long+time.Second) })
		time.Sleep(500 * time.Millisecond) // until the flood is there
		loud := s.probe(list, long)
		group.Wait()
		before := bound
		if bound, err = bareHashing(o.cost, o.duration); err != nil {
			return err
		}
		r.rate(fmt.Sprintf("sign-in, %d connections (shed %d, failed %d)", workers, flood.shed, flood.failed), flood.rate, (before+bound)/2, "bare bcrypt", 0.9)
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

// probe calls each of the things that must not suffer, one after the other, twenty times a
// second: what is measured is their latency. What they and their client take of the machine,
// sign-ins do not have.
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
	took := make([][]time.Duration, len(kinds))
	out := make([]probed, len(kinds))
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for i, kind := range kinds {
			start := time.Now()
			if kind.do() == done {
				took[i] = append(took[i], time.Since(start))
			} else {
				out[i].failed++
			}
		}
	}
	for i, kind := range kinds {
		out[i].name, out[i].p50, out[i].p99 = kind.name, quantile(took[i], 0.5), quantile(took[i], 0.99)
	}
	return out
}
