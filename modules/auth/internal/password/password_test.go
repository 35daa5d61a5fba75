package password

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
)

// cheap returns the settings that tests start from.
func cheap() Config {
	return Config{Algorithm: "bcrypt", BcryptCost: 4, Argon2Memory: 7, Workers: 2}
}

func start(t testing.TB, cfg Config) *Passwords {
	t.Helper()
	p, err := New(cfg, Options{Key: []byte("key"), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func mustHash(t testing.TB, p *Passwords, password string) string {
	t.Helper()
	encoded, err := p.Hash(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// stored looks up that hash; nobody looks up none.
func stored(encoded string) func() (string, bool, error) {
	return func() (string, bool, error) { return encoded, true, nil }
}

func nobody() (string, bool, error) { return "", false, nil }

func mustVerify(t testing.TB, p *Passwords, encoded, password string) Result {
	t.Helper()
	r, err := p.Verify(t.Context(), "", password, stored(encoded))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEveryPasswordWorksWhole(t *testing.T) {
	t.Parallel()
	argon := cheap()
	argon.Algorithm = "argon2id"
	for _, cfg := range []Config{cheap(), argon} {
		p := start(t, cfg)
		for name, password := range map[string]string{
			"ascii":                     "correct horse battery staple",
			"spaces at both ends":       "  staple ",
			"72 bytes":                  strings.Repeat("x", 72),
			"73 bytes":                  strings.Repeat("x", 73),
			"64 of four bytes":          strings.Repeat("🔑", 64),
			"256 of four bytes":         strings.Repeat("🔑", 256),
			"NUL":                       "before\x00after",
			"NUL in a long one":         strings.Repeat("x", 80) + "\x00y",
			"NUL first":                 "\x00",
			"nothing":                   "",
			"the last of 72 characters": strings.Repeat("é", 71) + "x",
		} {
			encoded := mustHash(t, p, password)
			if r := mustVerify(t, p, encoded, password); r != (Result{OK: true}) {
				t.Errorf("%s, %s: %+v", cfg.Algorithm, name, r)
			}
			for _, other := range []string{password + "x", password + "\x00", password + " ", password + password +
				"x", "x" + password} {
				if mustVerify(t, p, encoded, other).OK {
					t.Errorf("%s, %s: another password is accepted", cfg.Algorithm, name)
				}
			}
			if runes := []rune(password); len(runes) > 0 {
				if mustVerify(t, p, encoded, string(runes[:len(runes)-1])).OK {
					t.Errorf("%s, %s: a shorter password is accepted", cfg.Algorithm, name)
				}
			}
		}
	}
}

func TestTheFormOfNewHashes(t *testing.T) {
	t.Parallel()
	argon := cheap()
	argon.Algorithm = "argon2id"
	for _, test := range []struct {
		cfg              Config
		password, prefix string
	}{
		{cheap(), "short", "$2b$04$"},
		{cheap(), strings.Repeat("x", 72), "$2b$04$"},
		{cheap(), strings.Repeat("x", 73), "$bcrypt-sha256$v=2,t=2b,r=4$"},
		{cheap(), "a\x00b", "$bcrypt-sha256$v=2,t=2b,r=4$"},
		{argon, "short", "$argon2id$v=19$m=7168,t=1,p=1$"},
		{argon, strings.Repeat("x", 73), "$argon2id$v=19$m=7168,t=1,p=1$"},
	} {
		encoded := mustHash(t, start(t, test.cfg), test.password)
		if !strings.HasPrefix(encoded, test.prefix) {
			t.Errorf("%d bytes: %s, want %s", len(test.password), encoded, test.prefix)
		}
	}
}

// Neither its form nor the time of a sign-in tells that a password is closed. No two are the same.
func TestAClosedPasswordCostsWhatOthersDo(t *testing.T) {
	t.Parallel()
	argon := cheap()
	argon.Algorithm = "argon2id"
	for _, cfg := range []Config{cheap(), argon} {
		p := start(t, cfg)
		closed := p.Closed()
		if kindOf(t, closed) != kindOf(t, mustHash(t, p, "a")) || closed == p.Closed() || mustVerify(t, p, closed, "").OK {
			t.Errorf("%s", closed)
		}
	}
}

func TestSaltsDiffer(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	if mustHash(t, p, "same") == mustHash(t, p, "same") {
		t.Error("the same hash twice")
	}
}

func TestDecomposedCharactersAreTheSamePassword(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	const composed, decomposed = "caf\u00e9 \u1e69", "cafe\u0301 s\u0307\u0323"
	for _, typed := range [][2]string{{composed, decomposed}, {decomposed, composed}} {
		if r := mustVerify(t, p, mustHash(t, p, typed[0]), typed[1]); !r.OK || r.Renewed != "" {
			t.Errorf("%+v", r)
		}
	}
	// Compatibility characters are different: nothing is folded.
	if mustVerify(t, p, mustHash(t, p, "ﬁne"), "fine").OK {
		t.Error("a ligature is the same as its letters")
	}
}

func TestHashesMadeElsewhereAlsoTakeThePasswordAsTyped(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	const decomposed = "cafe\u0301"
	theirs, err := bcrypt.GenerateFromPassword([]byte(decomposed), 4)
	if err != nil {
		t.Fatal(err)
	}
	// The cost is as set, but our own hash would be of the composed form.
	if r := mustVerify(t, p, string(theirs), decomposed); !r.OK || r.Renewed == "" {
		t.Errorf("%+v", r)
	}
}

func TestInvalidUnicodeIsNotHashed(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	var problem *fault.Refusal
	if _, err := p.Hash(t.Context(), "abc\xffdefgh"); !errors.As(err, &problem) || problem.Code != InvalidUnicode {
		t.Errorf("%v", err)
	}
	if mustVerify(t, p, mustHash(t, p, "abc\ufffddefgh"), "abc\xffdefgh").OK {
		t.Error("an invalid byte is taken for the replacement character")
	}
}

func TestRehashWhenAlgorithmOrCostIsBelowTheSetting(t *testing.T) {
	t.Parallel()
	with := func(change func(*Config)) Config {
		c := cheap()
		c.BcryptCost = 5
		change(&c)
		return c
	}
	bcrypt5 := with(func(*Config) {})
	bcrypt6 := with(func(c *Config) { c.BcryptCost = 6 })
	argon := with(func(c *Config) { c.Algorithm = "argon2id" })
	argonMemory := with(func(c *Config) { c.Algorithm, c.Argon2Memory = "argon2id", 8 })
	long := strings.Repeat("x", 80)
	for _, test := range []struct {
		name     string
		made     Config
		set      Config
		password string
		rehash   bool
	}{
		{"bcrypt as set", bcrypt5, bcrypt5, "pw", false},
		{"bcrypt below", bcrypt5, bcrypt6, "pw", true},
		{"bcrypt above", bcrypt6, bcrypt5, "pw", false},
		{"bcrypt-sha256 as set", bcrypt5, bcrypt5, long, false},
		{"bcrypt-sha256 below", bcrypt5, bcrypt6, long, true},
		{"bcrypt to argon2id", bcrypt5, argon, "pw", true},
		{"argon2id as set", argon, argon, "pw", false},
		{"argon2id to bcrypt", argon, bcrypt5, "pw", true},
		{"argon2id less memory", argon, argonMemory, "pw", true},
		{"argon2id more memory", argonMemory, argon, "pw", false},
	} {
		encoded := mustHash(t, start(t, test.made), test.password)
		p := start(t, test.set)
		if r := mustVerify(t, p, encoded, test.password); !r.OK || r.Renewed != "" != test.rehash {
			t.Errorf("%s: %+v", test.name, r)
		}
		if r := mustVerify(t, p, encoded, "wrong"); r != (Result{}) {
			t.Errorf("%s, wrong password: %+v", test.name, r)
		}
	}
}

func TestHashesOfOtherSystemsAreReplaced(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	for _, v := range vectors() {
		r := mustVerify(t, p, v.encoded, v.password)
		own := strings.HasPrefix(v.encoded, "$2") || strings.HasPrefix(v.encoded, "$bcrypt-sha256$v=2,")
		if !r.OK || r.Renewed == "" != own {
			t.Errorf("%s: %+v", v.encoded, r)
		}
		if r.Renewed != "" {
			if again := mustVerify(t, p, r.Renewed, v.password); !again.OK || again.Renewed != "" {
				t.Errorf("%s: the new hash %s: %+v", v.encoded, r.Renewed, again)
			}
		}
	}
}

func TestAStoredHashThatCannotBeReadIsAnErrorThatDoesNotShowIt(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	for _, encoded := range append(bombs()[:2], "", "*",
		"$2b$04$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe") {
		r, err := p.Verify(t.Context(), "", "hunter2secret", stored(encoded))
		if err == nil || r.OK {
			t.Errorf("%q: %+v, %v", encoded, r, err)
			continue
		}
		if strings.Contains(err.Error(), "CCCC") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows it: %v", err)
		}
	}
}

func TestAMissingNameIsHashedLikeTheAccountsAre(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	cfg := cheap()
	cfg.BcryptCost = 5
	costlier := start(t, cfg)
	const imported = "$pbkdf2-sha256$100$jHHuvddaqxXi/L.3NmZMSQ$fmAdn44iQNKsZO5idaGAJt5dyV1GUkTQtaMzremLOHI"
	cheaper, dearer := mustHash(t, p, "a"), mustHash(t, costlier, "a")
	var sample []string
	for i := range 1000 {
		switch {
		case i < 600:
			sample = append(sample, cheaper)
		case i < 900:
			sample = append(sample, dearer)
		default:
			sample = append(sample, imported)
		}
	}
	p.Learn(sample)
	share := func() map[string]float64 {
		found := make(map[string]float64)
		for i := range 10_000 {
			found[p.population.pick(fmt.Sprint("name", i)).kind()] += 1.0 / 10_000
		}
		return found
	}
	want := map[string]float64{kindOf(t, cheaper): .6, kindOf(t, dearer): .3, kindOf(t, imported): .1}
	found := share()
	for kind, part := range want {
		if math.Abs(found[kind]-part) > .02 { // four standard deviations
			t.Errorf("%q: %.3f of the names, want %.1f", kind, found[kind], part)
		}
	}

	// The same name has the same kind, also after a restart and on another node, which reads the
	// sample's rows in another order.
	other := start(t, cheap())
	other.Learn(append(sample[500:], sample[:500]...))
	before := make(map[string]string)
	for i := range 1000 {
		name := fmt.Sprint("name", i)
		before[name] = p.population.pick(name).kind()
		if other.population.pick(name).kind() != before[name] {
			t.Fatalf("%s has another kind on another node", name)
		}
	}

	// A hundred accounts change their kind. Names may only move from the kind that became rarer to
	// the one that became more frequent.
	for i := 600; i < 700; i++ {
		sample[i] = cheaper
	}
	p.Learn(sample)
	moved := 0
	for name, kind := range before {
		now := p.population.pick(name).kind()
		if now != kind {
			moved++
			if kind == kindOf(t, cheaper) || now == kindOf(t, dearer) {
				t.Errorf("%s moved from %q to %q", name, kind, now)
			}
		}
	}
	if moved == 0 || moved > 250 {
		t.Errorf("%d of 1000 names moved", moved)
	}

	// No password signs in without an account.
	for i := range 100 {
		h := p.population.pick(fmt.Sprint("name", i))
		if h.matches([]byte("a")) || h.matches([]byte(elsewhere)) {
			t.Fatal("a missing name has a password")
		}
	}
	if r, err := p.Verify(t.Context(), "name", "a", nobody); err != nil || r.OK {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAMissingNameIsHashedAsSetWhenThereAreNoAccounts(t *testing.T) {
	t.Parallel()
	argon := cheap()
	argon.Algorithm = "argon2id"
	for _, cfg := range []Config{cheap(), argon} {
		p := start(t, cfg)
		want := kindOf(t, mustHash(t, p, "password"))
		for _, sample := range [][]string{nil, {}, {"", "not a hash"}} {
			p.Learn(sample)
			if got := p.population.pick("name").kind(); got != want {
				t.Errorf("%s: %q, want %q", cfg.Algorithm, got, want)
			}
		}
	}
}

func TestWhatIsLearnedIsBounded(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	var sample []string
	for i := range 10 * maxKinds {
		sample = append(sample,
			fmt.Sprintf("$pbkdf2-sha256$%d$jHHuvddaqxXi/L.3NmZMSQ$fmAdn44iQNKsZO5idaGAJt5dyV1GUkTQtaMzremLOHI", 100+i))
	}
	p.Learn(sample)
	if n := len(*p.population.mix.Load()); n != maxKinds {
		t.Errorf("%d kinds", n)
	}
}

func kindOf(t testing.TB, encoded string) string {
	t.Helper()
	h, err := parse(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return h.kind()
}

func TestWhoHasLeftIsNotHashedFor(t *testing.T) {
	t.Parallel()
	p := start(t, cheap())
	encoded := mustHash(t, p, "password")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Hash(ctx, "password"); !errors.Is(err, context.Canceled) {
		t.Errorf("hash: %v", err)
	}
	if r, err := p.Verify(ctx, "", "password", stored(encoded)); !errors.Is(err, context.Canceled) || r.OK {
		t.Errorf("verify: %+v, %v", r, err)
	}
	if _, err := p.Verify(ctx, "name", "password", nobody); !errors.Is(err, context.Canceled) {
		t.Errorf("verify nothing: %v", err)
	}
}

func TestWorkersAreCountedBeforePsAreReserved(t *testing.T) {
	if got := (Config{Workers: 3}).workers(); got != 3 {
		t.Errorf("%d", got)
	}
	if got := (Config{}).workers(); got < 1 {
		t.Errorf("%d", got)
	}
}

func TestWorkersFitIntoHalfOfTheMemory(t *testing.T) {
	t.Parallel()
	argon2 := Config{Algorithm: "argon2id", Argon2Memory: 64} // 192 MiB for each worker
	for memory, want := range map[uint64]int{64 << 20: 1, 384 << 20: 1, 768 << 20: 2, 1 << 40: 8} {
		if got := argon2.fit(8, memory); got != want {
			t.Errorf("%d of 8 workers with %d MiB of memory, want %d", got, memory>>20, want)
		}
	}
	if got := (Config{Algorithm: "bcrypt", Argon2Memory: 64}).fit(8, 64<<20); got != 8 {
		t.Errorf("%d of 8 workers of bcrypt", got)
	}
	if got, want := argon2.HashMemory(4), uint64(768<<20); got != want {
		t.Errorf("4 workers take %d bytes, want %d", got, want)
	}
}

func TestCalibrationIsNeverBelowWhatIsSafe(t *testing.T) {
	t.Parallel()
	c, err := Calibrate(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if c.BcryptCost != 10 || c.Argon2Memory != 46 || c.BcryptTakes <= 0 || c.Argon2Takes <= 0 {
		t.Errorf("%+v", c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Calibrate(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A password verifies against its own hash only, whatever its bytes.
func FuzzHash(f *testing.F) {
	f.Add("password", "Password")
	f.Add("a", "a\x00a")
	f.Add(strings.Repeat("x", 72), strings.Repeat("x", 73))
	f.Add(strings.Repeat("x", 80), strings.Repeat("x", 80)+"y")
	f.Add("cafe\u0301", "caf\u00e9")
	f.Add("a"+strings.Repeat("\u0301", 60), "a"+strings.Repeat("\u0301", 61))
	p := start(f, cheap())
	f.Fuzz(func(t *testing.T, a, b string) {
		encoded, err := p.Hash(t.Context(), a)
		if err != nil {
			if utf8.ValidString(a) {
				t.Fatal(err)
			}
			return
		}
		if r := mustVerify(t, p, encoded, a); r != (Result{OK: true}) {
			t.Fatalf("%q: %+v", a, r)
		}
		if r := mustVerify(t, p, encoded, b); r.OK != (norm.NFC.String(a) == norm.NFC.String(b) ||
			norm.NFC.String(a) == b) {
			t.Fatalf("%q by %q: %+v", a, b, r)
		}
	})
}

func TestAFileThatCannotBeReadIsReported(t *testing.T) {
	t.Parallel()
	reported := func(c Config) (paths []string) {
		c.Validate(func(path, _ string) { paths = append(paths, path) })
		return paths
	}
	if got := reported(Config{}); got != nil {
		t.Errorf("%v", got)
	}
	if got := reported(Config{BreachedFile: "/does/not/exist"}); !slices.Equal(got,
		[]string{"auth.password.breached_file"}) {
		t.Errorf("%v", got)
	}
}
