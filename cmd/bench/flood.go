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

// benchFlood measures what everything else feels of a flood of sign-ins. Flood and bare
// hashing take turns, since the machine is not equally fast all the time.
func benchFlood(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	// Those who are probed take no part: sign-ins beyond the limit end their oldest session.
	const apart = 3
	names, list, err := s.users(apart + people)
	if err != nil {
		return err
	}
	const turns = 4
	quiet := s.probes(list)
	probeAll(quiet, turns*o.duration)
	for _, workers := range []int{64, 512} {
		loud := s.probes(list)
		var signIns, hashing float64
		var shed, failed int64
		for range turns {
			bare, err := bareHashing(o.cost, o.duration/2)
			if err != nil {
				return err
			}
			var flood result
			var group sync.WaitGroup
			group.Go(func() { flood = s.signIns(names[apart:], workers, o.duration+time.Second) })
			time.Sleep(500 * time.Millisecond) // until the flood is there
			probeAll(loud, o.duration)
			group.Wait()
			hashing += bare / turns
			signIns += flood.rate / turns
			shed += flood.shed
			failed += flood.failed
		}
		r.rate(fmt.Sprintf("sign-in, %d connections (shed %d, failed %d)", workers, shed, failed), signIns, hashing,
			"bare bcrypt", 0.9)
		for i, p := range loud {
			r.latency(fmt.Sprintf("%s p50 under %d sign-ins (failed %d)", p.name, workers, p.failed), quantile(p.took, 0.5),
				quantile(quiet[i].took, 0.5), 0)
			r.underLoad(fmt.Sprintf("%s p99 under %d sign-ins", p.name, workers), quantile(p.took, 0.99),
				quantile(quiet[i].took, 0.99), 2, 10*time.Millisecond)
		}
	}
	_, peak := s.memory()
	r.plain("memory, peak at 512 sign-ins", fmt.Sprintf("%.0f MiB", peak), "≤ 128 MiB", peak <= 128)
	return nil
}

// probe is something that must not suffer.
type probe struct {
	name   string
	do     func() outcome
	took   []time.Duration
	failed int
}

func (s *server) probes(list []tokens) []probe {
	pair := url.QueryEscape(clientID) + ":" + url.QueryEscape(clientSecret)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
	return []probe{
		{name: "refresh", do: func() outcome { return s.refresh(&list[0]) }},
		{name: "me", do: func() outcome { return s.me(list[1]) }},
		{name: "jwks", do: func() outcome { return s.outcomeOf(s.call("GET", "/.well-known/jwks.json", nil)) }},
		{name: "introspect", do: func() outcome {
			return s.outcomeOf(s.call("POST", "/oauth2/introspect", "token="+url.QueryEscape(list[2].Access),
				"Authorization", basic, "Content-Type", "application/x-www-form-urlencoded"))
		}},
		{name: "healthz", do: func() outcome { return s.outcomeOf(s.call("GET", "/healthz", nil)) }},
	}
}

// probeAll tries one after the other, each thirty times a second or so: what is measured is
// their latency. What they and their client take of the machine, sign-ins do not have.
func probeAll(probes []probe, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		for i := range probes {
			p := &probes[i]
			start := time.Now()
			if p.do() == done {
				p.took = append(p.took, time.Since(start))
			} else {
				p.failed++
			}
		}
	}
}
