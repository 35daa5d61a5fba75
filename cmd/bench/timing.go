package main

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// benchTiming checks whether a refused sign-in tells whether the account exists or is disabled. It
// compares the content of the answers, and their time: the chance that
// an answer for one state takes longer than one for another. 0.5 is no difference; with 2,000 of each,
// 0.47 to 0.53 cannot be distinguished from it.
//
// It measures three populations. In the first, all passwords have the same hash, of a quarter of the
// least cost in prod mode, so that other differences show. In the second, three schemes are mixed, as
// after an import. In the third, attempts are refused before anything is compared. Then it does the
// same for a forgotten password.
func benchTiming(ctx context.Context, o options, r *report) error {
	o.cost = timingCost
	alike := func(int) string { return bcryptHash() }
	for _, st := range []study{
		signInStudy("one scheme", alike), signInStudy("mixed schemes", mixedHash), throttledStudy(alike),
		forgotStudy(o.pairs),
	} {
		if err := st.run(ctx, o, r); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

// timingCost is the cost of bcrypt. The other work, such as reading a row or finding none, differs
// by some microseconds; at cost 4 a quiet machine could show that.
const timingCost = 8

// study compares the answers about accounts of several states.
type study struct {
	name    string
	states  []*state
	users   string   // the accounts, as an import reads them
	env     []string // of the server
	status  int      // of the answers
	prepare func(s *server) error
	ask     func(s *server, st *state, i int) (reply, error) // sends the i-th request about a state
}

// state is a state of accounts, with the times of the answers about them.
type state struct {
	name  string
	names []string
	times []time.Duration
}

func (st *state) anyName() string { return st.names[mathrand.IntN(len(st.names))] }

// signInStudy tries wrong passwords, at a new name each time where the account is missing.
func signInStudy(name string, hash func(i int) string) study {
	const accounts = 120 // in each state; a multiple of the kinds of hashes
	st := study{
		name: name, states: []*state{{name: "existing"}, {name: "missing"}, {name: "disabled"}},
		env: []string{"AUTH_THROTTLE_ENABLED=false"}, status: fasthttp.StatusUnauthorized,
		prepare: func(*server) error {
			time.Sleep(time.Second) // until the server knows the kinds of hashes
			return nil
		},
		ask: func(s *server, st *state, _ int) (reply, error) {
			if st.name == "missing" {
				return s.refused("bench-" + uuid.NewString())
			}
			return s.refused(st.anyName())
		},
	}
	status := map[string]string{"existing": "active", "disabled": "disabled"}
	st.fill(accounts, func(i int, state, username string) string {
		return fmt.Sprintf(`{"username":%q,"password_hash":%q,"status":%q}`, username, hash(i), status[state])
	})
	return st
}

// fill makes n names for each state, and the accounts of those that are not missing.
func (st *study) fill(n int, account func(i int, state, username string) string) {
	var file strings.Builder
	for i := range n {
		for _, of := range st.states {
			username := "bench-" + uuid.NewString()
			of.names = append(of.names, username)
			if of.name != "missing" {
				file.WriteString(account(i, of.name, username) + "\n")
			}
		}
	}
	st.users = file.String()
}

// throttledStudy tries wrong passwords at accounts that have one failure more than an address may have, so that
// all but one attempt in six seconds are refused.
func throttledStudy(hash func(i int) string) study {
	st := signInStudy("throttled", hash)
	st.env, st.status = nil, fasthttp.StatusTooManyRequests
	st.prepare = func(s *server) error {
		for _, of := range st.states {
			for _, name := range of.names {
				if _, err := s.refused(name); err != nil {
					return err
				}
			}
		}
		return nil
	}
	st.ask = func(s *server, st *state, _ int) (reply, error) {
		for {
			got, err := s.refused(st.anyName())
			if err != nil || got.status != fasthttp.StatusUnauthorized {
				return got, err
			}
		}
	}
	return st
}

// forgotStudy asks for a code: for an account with a verified address, which gets one, and for an
// unknown name. Each name has one request, since a second one within a minute does nothing.
func forgotStudy(pairs int) study {
	st := study{
		name: "forgotten passwords", states: []*state{{name: "existing"}, {name: "missing"}},
		env: []string{"AUTH_THROTTLE_ENABLED=false"}, status: fasthttp.StatusAccepted,
		prepare: func(*server) error { return nil },
		ask: func(s *server, st *state, i int) (reply, error) {
			return s.post("/api/v1/auth/password/forgot", map[string]string{"username": st.names[i]})
		},
	}
	hash := bcryptHash()
	st.fill(pairs, func(_ int, _, username string) string {
		return fmt.Sprintf(`{"username":%q,"password_hash":%q,"email":"%[1]s@example.com","email_verified":true}`, username, hash)
	})
	return st
}

func (st study) run(ctx context.Context, o options, r *report) (err error) {
	o.users = st.users
	s, err := startServer(ctx, o, st.env...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := st.prepare(s); err != nil {
		return err
	}
	looks := make(map[string]bool)
	for i := range o.pairs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, j := range mathrand.Perm(len(st.states)) { // interleaved, so that other work affects all alike
			of := st.states[j]
			got, err := st.ask(s, of, i)
			if err != nil {
				return err
			}
			if got.status != st.status {
				return fmt.Errorf("%s: status %d, want %d", of.name, got.status, st.status)
			}
			of.times = append(of.times, got.took)
			looks[got.look] = true
		}
	}
	var names, medians []string
	for i, a := range st.states {
		for _, b := range st.states[i+1:] {
			v := auc(b.times, a.times)
			r.plain(fmt.Sprintf("%s: AUC of %s against %s, %d pairs", st.name, b.name, a.name, o.pairs),
				fmt.Sprintf("%.3f", v), "0.47 to 0.53", v >= 0.47 && v <= 0.53)
		}
		names = append(names, a.name)
		medians = append(medians, short(quantile(slices.Clone(a.times), 0.5)))
	}
	r.plain(st.name+": median time of "+strings.Join(names, ", "), strings.Join(medians, ", "), "", true)
	r.plain(st.name+": different answers, but for what changes with each request", fmt.Sprint(len(looks)), "1",
		len(looks) == 1)
	return nil
}

// reply is an answer. Its look is its status, headers and body, without the parts that differ with
// each request.
type reply struct {
	took   time.Duration
	status int
	look   string
}

// refused tries a wrong password.
func (s *server) refused(name string) (reply, error) {
	return s.post("/api/v1/auth/login", map[string]string{"username": name, "password": "a wrong password"})
}

var challengeID = regexp.MustCompile(`"challenge_id":"[0-9a-f-]{36}"`)

func (s *server) post(path string, in any) (got reply, err error) {
	err = s.exchange(fasthttp.MethodPost, path, in, nil, func(res *fasthttp.Response, took time.Duration) {
		var lines []string
		for key, value := range res.Header.All() {
			line := string(key) + ": " + string(value)
			switch string(key) {
			case fasthttp.HeaderDate, "X-Request-Id", fasthttp.HeaderRetryAfter:
				line = string(key)
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		shape := bytes.ReplaceAll(res.Body(), res.Header.Peek("X-Request-Id"), []byte("ID"))
		shape = challengeID.ReplaceAll(shape, []byte("ID"))
		got = reply{took, res.StatusCode(),
			fmt.Sprintf("%d\n%s\n\n%s", res.StatusCode(), strings.Join(lines, "\n"), shape)}
	})
	return got, err
}

// mixedHash makes a hash of one of three schemes in turn, which differ in their time.
func mixedHash(i int) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	raw := base64.RawStdEncoding
	switch i % 3 {
	case 0:
		return bcryptHash()
	case 1:
		return "$argon2id$v=19$m=8192,t=1,p=1$" + raw.EncodeToString(salt) + "$" +
			raw.EncodeToString(argon2.IDKey([]byte(password), salt, 1, 8192, 1, 32))
	}
	key, err := pbkdf2.Key(sha256.New, password, salt, 20_000, 32)
	if err != nil {
		panic(err) // the lengths are constant
	}
	return "$pbkdf2-sha256$i=20000,l=32$" + raw.EncodeToString(salt) + "$" + raw.EncodeToString(key)
}

func bcryptHash() string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), timingCost)
	if err != nil {
		panic(err) // the password is short and the cost constant
	}
	return string(hash)
}

// auc is the probability that a value of a is above one of b (Mann–Whitney).
func auc(a, b []time.Duration) float64 {
	b = slices.Sorted(slices.Values(b))
	var sum float64
	for _, v := range a {
		below, _ := slices.BinarySearch(b, v)
		above, _ := slices.BinarySearch(b, v+1)
		sum += float64(below) + float64(above-below)/2
	}
	return sum / float64(len(a)) / float64(len(b))
}
