package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// benchFlood measures how a flood of sign-ins affects everything else. Flood, bare hashing and
// requests without a flood take turns, since the machine's speed varies.
func benchFlood(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	// The probes' accounts do not sign in here: sign-ins beyond the limit would evict their
	// sessions.
	const apart = 3
	names, list, err := s.users(apart + people)
	if err != nil {
		return err
	}
	const turns = 4
	floods := []flooding{{workers: 64}, {workers: 512}}
	quiet := s.probes(list)
	for range turns {
		for i := range floods {
			if err := s.flood(ctx, o, &floods[i], names[apart:], list, quiet); err != nil {
				return err
			}
		}
	}
	for _, f := range floods {
		r.rate(fmt.Sprintf("sign-in, %d connections (shed %d, failed %d)", f.workers, f.shed, f.failed),
			mean(f.signIns), mean(f.hashing), "bare bcrypt", 0.9)
		r.steady(slices.Max(f.hashing) / slices.Min(f.hashing))
		r.rate("the same, of what hashing has beside the same requests", mean(f.signIns), mean(f.beside),
			"bare bcrypt beside them", 0)
		for i, p := range f.loud {
			for _, q := range []float64{0.5, 0.99} {
				unloaded := quantile(slices.Concat(quiet[i].took...), q)
				took := quantile(slices.Concat(p.took...), q)
				if q == 0.5 {
					r.latency(fmt.Sprintf("%s p50 under %d sign-ins (failed %d)", p.name, f.workers, p.failed), took,
						unloaded, 0)
					continue
				}
				r.underLoad(fmt.Sprintf("%s p99 under %d sign-ins", p.name, f.workers), took, unloaded, 2,
					10*time.Millisecond)
				r.steady(quiet[i].moved(q))
			}
		}
	}
	_, peak := s.process.memory()
	r.plain("memory, peak at 512 sign-ins", fmt.Sprintf("%.0f MiB", peak), "≤ 128 MiB", peak <= 128)
	return nil
}

// flooding is what was measured at a number of connections, by turn.
type flooding struct {
	workers                  int
	signIns, hashing, beside []float64 // a second; the last two: bare hashing alone and beside the probes
	shed, failed             int64
	loud                     []probe
}

// flood takes one turn: bare hashing, the probes alone, bare hashing beside the probes, the probes during a
// flood.
func (s *server) flood(ctx context.Context, o options, f *flooding, names []string, list []tokens,
	quiet []probe) error {
	if f.loud == nil {
		f.loud = s.probes(list)
	}
	bare, err := bareHashing(o.cost, o.duration/2)
	if err != nil {
		return err
	}
	alone, end := context.WithTimeout(ctx, o.duration)
	defer end()
	probeAll(alone, quiet)
	beside, err := s.hashingBeside(ctx, o, list)
	if err != nil {
		return err
	}
	var come floodResult
	var failed error
	during, end := context.WithCancel(ctx) // its last sign-ins are answered seconds after the last has come
	var group sync.WaitGroup
	group.Go(func() {
		defer end()
		come, failed = runFlood(ctx, floodOrder{s.base, names, f.workers, o.duration})
	})
	time.Sleep(500 * time.Millisecond) // until the flood has begun
	probeAll(during, f.loud)
	group.Wait()
	f.hashing, f.beside, f.signIns = append(f.hashing, bare), append(f.beside, beside), append(f.signIns, come.Rate)
	f.shed, f.failed = f.shed+come.Shed, f.failed+come.Failed
	return failed
}

// hashingBeside is bare hashing while the probes run: what they leave to a flood. It competes with them as
// an equal, while the hashing of serve gives way to them.
func (s *server) hashingBeside(ctx context.Context, o options, list []tokens) (rate float64, err error) {
	during, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { probeAll(during, s.probes(list)) })
	rate, err = bareHashing(o.cost, o.duration)
	end()
	group.Wait()
	return rate, err
}

func mean(list []float64) (m float64) {
	for _, v := range list {
		m += v / float64(len(list))
	}
	return m
}

// floodCommand makes this program the clients of a flood. They are separate from the probes, so
// that a probe waits for the server, not for five hundred clients in its own process.
const floodCommand = "flood-clients"

type floodOrder struct {
	Base     string
	Names    []string
	Workers  int
	Duration time.Duration
}

type floodResult struct {
	Rate         float64
	Shed, Failed int64
}

// runFlood returns when the flood has ended.
func runFlood(ctx context.Context, order floodOrder) (got floodResult, err error) {
	self, err := os.Executable()
	if err != nil {
		return got, err
	}
	text, err := json.Marshal(order)
	if err != nil {
		return got, err
	}
	cmd := exec.CommandContext(ctx, self, floodCommand)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return got, fmt.Errorf("flood: %w", err)
	}
	return got, json.Unmarshal(out, &got)
}

func floodClients(in io.Reader, out io.Writer) error {
	var order floodOrder
	if err := json.NewDecoder(in).Decode(&order); err != nil {
		return err
	}
	s := &server{base: order.Base, client: newClient()}
	got := s.signIns(order.Names, order.Workers, order.Duration)
	return json.NewEncoder(out).Encode(floodResult{got.rate, got.shed, got.failed})
}

// probe is a request that must not suffer.
type probe struct {
	name   string
	do     func() outcome
	took   [][]time.Duration // by turn
	failed int
}

// moved is how much a quantile differs between the two halves of the turns.
func (p probe) moved(q float64) float64 {
	half := len(p.took) / 2
	at := func(turns [][]time.Duration) float64 { return float64(quantile(slices.Concat(turns...), q)) }
	return apart(at(p.took[:half]), at(p.took[half:]))
}

func (s *server) probes(list []tokens) []probe {
	return []probe{
		{name: "refresh", do: func() outcome { return s.refresh(&list[0]) }},
		{name: "me", do: func() outcome { return s.me(list[1]) }},
		{name: "jwks", do: func() outcome { return s.outcomeOf(s.call("GET", "/.well-known/jwks.json", nil)) }},
		{name: "introspect", do: func() outcome {
			return s.outcomeOf(s.call("POST", "/oauth2/introspect", "token="+url.QueryEscape(list[2].Access),
				"Authorization", basicAuth(), "Content-Type", "application/x-www-form-urlencoded"))
		}},
		{name: "healthz", do: func() outcome { return s.outcomeOf(s.call("GET", "/healthz", nil)) }},
	}
}

// probeAll is a turn of the probes: it tries them one after the other, each some thirty times a
// second until ctx ends, and measures their latency. They and their client take CPU time from the sign-ins.
func probeAll(ctx context.Context, probes []probe) {
	for i := range probes {
		probes[i].took = append(probes[i].took, nil)
	}
	for ; ctx.Err() == nil && !interrupted.Load(); time.Sleep(30 * time.Millisecond) {
		for i := range probes {
			p := &probes[i]
			turn := &p.took[len(p.took)-1]
			start := time.Now()
			if p.do() == done {
				*turn = append(*turn, time.Since(start))
			} else {
				p.failed++
			}
		}
	}
}
