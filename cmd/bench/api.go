package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
)

// benchSignIn measures what starts with a password beside bare hashing.
func benchSignIn(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	r.plain("cold start", short(s.started), "≤ 50 ms", s.started <= 50*time.Millisecond)
	time.Sleep(time.Second) // what start-up left to the collector
	idle, _ := s.memory()
	r.plain("memory, idle", fmt.Sprintf("%.0f MiB", idle), "≤ 40 MiB", idle <= 40)

	names, _, err := s.users(people)
	if err != nil {
		return err
	}
	before, err := bareHashing(o.cost, o.duration/2)
	if err != nil {
		return err
	}
	for _, workers := range []int{16, 64, 512} {
		for _, kind := range []struct {
			name string
			load func() result
		}{
			{"sign-in", func() result { return s.signIns(names, workers, o.duration) }},
			{"register", func() result { return load(workers, o.duration, s.register) }},
		} {
			got := kind.load()
			after, err := bareHashing(o.cost, o.duration/2) // the machine is not equally fast all the time
			if err != nil {
				return err
			}
			r.rate(fmt.Sprintf("%s, %d connections (shed %d, failed %d)", kind.name, workers, got.shed, got.failed), got.rate,
				(before+after)/2, "bare bcrypt", 0.9)
			before = after
		}
	}
	_, peak := s.memory()
	r.plain("memory, peak at 512 sign-ins", fmt.Sprintf("%.0f MiB", peak), "≤ 128 MiB", peak <= 128)
	return nil
}

func (s *server) register(int) outcome {
	return s.outcomeOf(s.call("POST", "/api/v1/auth/register", map[string]string{"username": "bench-" + uuid.NewString(),
		"password": password}))
}

// people are who signs in: many, as a flood has. Few would mostly wait for each other.
const people = 256

// benchSession measures the hot paths of a session beside a bare handler.
func benchSession(ctx context.Context, o options, r *report) (err error) {
	if os.Getenv("AUTHCTL_TEST_REDIS") == "" {
		fmt.Fprintln(os.Stderr, "no Redis: refresh and me have no bound to stand beside")
		return nil
	}
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	_, list, err := s.users(64)
	if err != nil {
		return err
	}
	for _, workers := range []int{1, 16, 64} {
		bare, err := bareHandler(ctx, barePath, workers, o.duration)
		if err != nil {
			return err
		}
		signed, err := bareHandler(ctx, bareSignedPath, workers, o.duration)
		if err != nil {
			return err
		}
		goal := 0.0
		if workers == 16 {
			goal = 1
		}
		got := load(workers, o.duration, func(w int) outcome { return s.refresh(&list[w]) })
		r.rate(fmt.Sprintf("refresh, %d connections (failed %d)", workers, got.failed), got.rate, bare.rate,
			"handler + script", 0.6*goal)
		r.rate(fmt.Sprintf("refresh, %d connections", workers), got.rate, signed.rate, "handler + script + row + signature",
			0)
		r.latency(fmt.Sprintf("refresh p99, %d connections", workers), got.p99, bare.p99, 0)
		got = load(workers, o.duration, func(w int) outcome { return s.me(list[w]) })
		r.rate(fmt.Sprintf("me, %d connections (failed %d)", workers, got.failed), got.rate, bare.rate, "handler + script",
			0.5*goal)
		r.latency(fmt.Sprintf("me p99, %d connections", workers), got.p99, bare.p99, 0)
	}
	return nil
}

// signIns floods the sign-in with right passwords of the accounts.
func (s *server) signIns(names []string, workers int, d time.Duration) result {
	return load(workers, d, func(w int) outcome {
		return s.outcomeOf(s.call("POST", "/api/v1/auth/login", map[string]string{"username": names[w%len(names)],
			"password": password}))
	})
}

func (s *server) outcomeOf(status int, _ []byte, err error) outcome {
	switch {
	case err != nil:
		return wrong
	case status < 300:
		return done
	case status == 503:
		return later
	}
	return wrong
}

func (s *server) refresh(t *tokens) outcome {
	status, body, err := s.call("POST", "/api/v1/auth/refresh", map[string]string{"refresh_token": t.Refresh})
	if err != nil || status != 200 || json.Unmarshal(body, t) != nil {
		return wrong
	}
	return done
}

func (s *server) me(t tokens) outcome {
	return s.outcomeOf(s.call("GET", "/api/v1/auth/me", nil, "Authorization", "Bearer "+t.Access))
}
