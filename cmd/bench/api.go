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

// benchSignIn measures what starts with a password, together with bare hashing.
func benchSignIn(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	started := s.process.started
	r.plain("cold start", short(started), "≤ 50 ms", started <= 50*time.Millisecond)
	time.Sleep(time.Second) // garbage of the start-up is not collected yet
	idle, _ := s.process.memory()
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
			after, err := bareHashing(o.cost, o.duration/2) // the machine's speed varies
			if err != nil {
				return err
			}
			r.rate(fmt.Sprintf("%s, %d connections (shed %d, failed %d)", kind.name, workers, got.shed, got.failed),
				got.rate, (before+after)/2, "bare bcrypt", 0.9)
			r.steady(apart(before, after))
			before = after
		}
	}
	_, peak := s.process.memory()
	r.plain("memory, peak at 512 sign-ins", fmt.Sprintf("%.0f MiB", peak), "≤ 128 MiB", peak <= 128)
	return nil
}

func (s *server) register(int) outcome {
	return s.outcomeOf(s.call("POST", "/api/v1/auth/register",
		map[string]string{"username": "bench-" + uuid.NewString(), "password": password}))
}

// people are the accounts that sign in: many, as in a flood. Few would mostly wait for each other.
const people = 256

// sessionTurns is how often each load of benchSession takes its turn, since the machine's speed
// varies.
const sessionTurns = 4

// benchSession measures the hot paths of a session together with a bare handler, and with another
// authctl if one is named.
func benchSession(ctx context.Context, o options, r *report) (err error) {
	if os.Getenv("AUTHCTL_TEST_REDIS") == "" {
		fmt.Fprintln(os.Stderr, "no Redis: refresh and me have no bound")
		return nil
	}
	bare, err := startBare(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	type installation struct {
		*server
		list []tokens
	}
	var installations []installation
	binaries := []string{o.binary}
	if o.beside != "" {
		binaries = append(binaries, o.beside)
	}
	for _, path := range binaries {
		o.binary = path
		s, err := startServer(ctx, o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.stop()) }()
		_, list, err := s.users(64)
		if err != nil {
			return err
		}
		installations = append(installations, installation{s, list})
	}
	const script, signature = "handler + script", "handler + script + row + signature"
	for _, workers := range []int{1, 16, 64} {
		var handler, signed []result
		refresh, me := make([][]result, len(installations)), make([][]result, len(installations))
		for range sessionTurns {
			slice := o.duration / 2
			handler = append(handler, bare.bareHandler(barePath, workers, slice))
			signed = append(signed, bare.bareHandler(bareSignedPath, workers, slice))
			for i, at := range installations {
				refresh[i] = append(refresh[i],
					load(workers, slice, func(w int) outcome { return at.refresh(&at.list[w]) }))
			}
			for i, at := range installations {
				me[i] = append(me[i], load(workers, slice, func(w int) outcome { return at.me(at.list[w]) }))
			}
		}
		r.turns(fmt.Sprintf("refresh, %d connections", workers), refresh[0], handler, script, 0)
		r.turns(fmt.Sprintf("refresh, %d connections", workers), refresh[0], signed, signature, 0.9)
		r.turns(fmt.Sprintf("me, %d connections", workers), me[0], handler, script, 0.8)
		if o.beside != "" {
			r.turns(fmt.Sprintf("refresh, %d connections", workers), refresh[0], refresh[1], "the other", 0.98)
			r.turns(fmt.Sprintf("me, %d connections", workers), me[0], me[1], "the other", 0.98)
		}
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
