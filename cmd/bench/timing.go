package main

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
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

// benchTiming asks whether a refused sign-in tells what the account is: whether there is one,
// whether it is disabled. It compares what is answered, and the time it takes: the chance that
// an answer of one state takes longer than one of another. 0.5 is no difference; 0.47 to 0.53
// is what 2,000 of each can tell from it.
//
// Three populations are asked. In the first, all passwords are hashed alike, and a quarter as
// dear as prod mode allows at the least: differences of everything else stand out. In the second,
// three schemes are mixed, as
// after an import. In the third, attempts are refused before anything is compared.
func benchTiming(ctx context.Context, o options, r *report) error {
	o.cost = timingCost
	alike := func(int) string { return bcryptHash() }
	for _, study := range []struct {
		name   string
		hash   func(i int) string
		status int
		env    []string
	}{
		{"one scheme", alike, 401, []string{"AUTH_THROTTLE_ENABLED=false"}},
		{"mixed schemes", mixedHash, 401, []string{"AUTH_THROTTLE_ENABLED=false"}},
		// With a failure at each account, more than one address may make, everything is closed to it
		// but for one attempt in six seconds.
		{"throttled", alike, fasthttp.StatusTooManyRequests, nil},
	} {
		if err := timingStudy(ctx, o, r, study.name, study.hash, study.status, study.env); err != nil {
			return fmt.Errorf("%s: %w", study.name, err)
		}
	}
	if err := forgotStudy(ctx, o, r); err != nil {
		return fmt.Errorf("forgotten passwords: %w", err)
	}
	return nil
}

// forgotStudy asks the same of a request for a forgotten password: of an account with a verified
// address, which gets a code, and of a name that nobody has. Each is asked for once, since a second
// request within a minute does nothing.
func forgotStudy(ctx context.Context, o options, r *report) (err error) {
	states := []*state{{name: "existing"}, {name: "missing"}}
	var file strings.Builder
	hash := bcryptHash()
	for range o.pairs {
		for _, st := range states {
			name := "bench-" + uuid.NewString()
			st.names = append(st.names, name)
			if st.name == "existing" {
				fmt.Fprintf(&file, `{"username":%q,"password_hash":%q,"email":"%[1]s@example.com","email_verified":true}`+"\n", name, hash)
			}
		}
	}
	o.prepare = func(run func(stdin string, args ...string) error) error {
		return run(file.String(), "user", "import", "-")
	}
	s, err := startServer(ctx, o, "AUTH_THROTTLE_ENABLED=false")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	looks := make(map[string]bool)
	for i := range o.pairs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, j := range mathrand.Perm(len(states)) { // interleaved: what else goes on meets both alike
			took, status, look, err := s.post("/api/v1/auth/password/forgot", map[string]string{"username": states[j].names[i]})
			if err != nil {
				return err
			}
			if status != fasthttp.StatusAccepted {
				return fmt.Errorf("%s: status %d", states[j].name, status)
			}
			states[j].times = append(states[j].times, took)
			looks[challengeID.ReplaceAllString(look, "ID")] = true
		}
	}
	v := auc(states[1].times, states[0].times)
	r.plain(fmt.Sprintf("forgotten passwords: AUC of missing against existing, %d pairs", o.pairs), fmt.Sprintf("%.3f", v), "0.47 to 0.53",
		v >= 0.47 && v <= 0.53)
	r.plain("forgotten passwords: median time of existing, missing", fmt.Sprintf("%s, %s", short(quantile(slices.Clone(states[0].times), 0.5)),
		short(quantile(slices.Clone(states[1].times), 0.5))), "", true)
	r.plain("forgotten passwords: different answers, but for what changes with each request", fmt.Sprint(len(looks)), "1", len(looks) == 1)
	return nil
}

var challengeID = regexp.MustCompile(`"challenge_id":"[0-9a-f-]{36}"`)

// timingCost is of bcrypt. What is not hashing differs by some millionths of a second, a row
// that is read and one that is not; at cost 4 a quiet machine could show that.
const timingCost = 8

// state is what an account may be, and what was answered about it.
type state struct {
	name  string
	names []string // of the accounts; for missing ones as many as there are attempts, or a few
	times []time.Duration
	looks map[string]int // of the answers: how often each was seen
}

func timingStudy(ctx context.Context, o options, r *report, study string, hash func(i int) string, status int,
	env []string) (err error) {
	const accounts = 120 // in each state; a multiple of the kinds of hashes
	states := []*state{{name: "existing"}, {name: "missing"}, {name: "disabled"}}
	var file strings.Builder
	for i := range accounts {
		for _, st := range states {
			name := "bench-" + uuid.NewString()
			st.names = append(st.names, name)
			if st.name == "missing" {
				continue
			}
			status := map[string]string{"existing": "active", "disabled": "disabled"}[st.name]
			fmt.Fprintf(&file, `{"username":%q,"password_hash":%q,"status":%q}`+"\n", name, hash(i), status)
		}
	}
	o.prepare = func(run func(stdin string, args ...string) error) error {
		return run(file.String(), "user", "import", "-")
	}
	s, err := startServer(ctx, o, env...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	time.Sleep(time.Second) // until the server has looked at how passwords are hashed
	if status == fasthttp.StatusTooManyRequests {
		for _, st := range states {
			for _, name := range st.names {
				if _, _, _, err := s.refused(name); err != nil {
					return err
				}
			}
		}
	}
	for _, st := range states {
		st.looks = make(map[string]int)
	}
	for range o.pairs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, i := range mathrand.Perm(len(states)) { // interleaved: what else goes on meets all alike
			st := states[i]
			name := st.names[mathrand.IntN(len(st.names))]
			if st.name == "missing" && status != fasthttp.StatusTooManyRequests {
				name = "bench-" + uuid.NewString()
			}
			took, got, look, err := s.refused(name)
			if err != nil {
				return err
			}
			if got == fasthttp.StatusUnauthorized && status == fasthttp.StatusTooManyRequests {
				continue
			}
			if got != status {
				return fmt.Errorf("%s: status %d, want %d", st.name, got, status)
			}
			st.times = append(st.times, took)
			st.looks[look]++
		}
	}
	for i, a := range states {
		for _, b := range states[i+1:] {
			v := auc(b.times, a.times)
			r.plain(fmt.Sprintf("%s: AUC of %s against %s, %d pairs", study, b.name, a.name, o.pairs), fmt.Sprintf("%.3f", v),
				"0.47 to 0.53", v >= 0.47 && v <= 0.53)
		}
	}
	r.plain(study+": median time of existing, missing, disabled", fmt.Sprintf("%s, %s, %s",
		short(quantile(slices.Clone(states[0].times), 0.5)), short(quantile(slices.Clone(states[1].times), 0.5)),
		short(quantile(slices.Clone(states[2].times), 0.5))), "", true)
	looks := make(map[string]bool)
	for _, st := range states {
		for look := range st.looks {
			looks[look] = true
		}
	}
	r.plain(study+": different answers, but for what changes with each request", fmt.Sprint(len(looks)), "1",
		len(looks) == 1)
	return nil
}

// refused tries a wrong password.
func (s *server) refused(name string) (took time.Duration, status int, look string, err error) {
	return s.post("/api/v1/auth/login", map[string]string{"username": name, "password": "a wrong password"})
}

// post sends a request. The look of an answer is its status, its headers and its body without what
// belongs to the one request.
func (s *server) post(path string, in any) (took time.Duration, status int, look string, err error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(fasthttp.MethodPost)
	req.SetRequestURI(s.base + path)
	req.Header.SetContentType("application/json")
	body, err := json.Marshal(in)
	if err != nil {
		return 0, 0, "", err
	}
	req.SetBody(body)
	start := time.Now()
	err = s.client.Do(req, res)
	took = time.Since(start)
	if err != nil {
		return 0, 0, "", err
	}
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
	return took, res.StatusCode(), fmt.Sprintf("%d\n%s\n\n%s", res.StatusCode(), strings.Join(lines, "\n"), shape), nil
}

// mixedHash is of one of three schemes in turn; which is which shows by its time.
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
