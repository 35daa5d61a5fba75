package token

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// elsewhere is the module verify in its own process. Our module does not depend on it, so it is
// built in its own folder and asked through a pipe.
type elsewhere struct {
	in  io.Writer
	out *bufio.Reader
}

func newElsewhere(t testing.TB, keys ...Key) *elsewhere {
	t.Helper()
	probe := filepath.Join(t.TempDir(), "probe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", probe, "./internal/probe")
	build.Dir = "../../../../verify"
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, text)
	}
	var public []PublicKey
	for _, k := range keys {
		public = append(public, k.Public())
	}
	jwks, _, err := MarshalJWKS(public)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), probe) // it ends with the test
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	e := &elsewhere{in: in, out: bufio.NewReader(out)}
	e.write(t, map[string]any{"issuer": testClaims().Issuer, "audience": "api", "keys": json.RawMessage(jwks)})
	return e
}

func (e *elsewhere) write(t testing.TB, line any) {
	t.Helper()
	text, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.in.Write(append(text, '\n')); err != nil {
		t.Fatal(err)
	}
}

// says returns why the other verifier refuses a token, or the claims of the token.
func (e *elsewhere) says(t testing.TB, token string, now time.Time) (reason string, claims Claims) {
	t.Helper()
	e.write(t, map[string]any{"token": token, "time": now})
	line, err := e.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Reason string `json:"reason"`
		Claims struct {
			Claims
			Subject, ID, SessionID uuid.UUID
		} `json:"claims"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	claims = answer.Claims.Claims
	claims.Subject, claims.ID, claims.SessionID = answer.Claims.Subject, answer.Claims.ID, answer.Claims.SessionID
	return answer.Reason, claims
}

// differs says how the two verifiers differ about a token; empty if they agree.
func (e *elsewhere) differs(t testing.TB, v *Verifier, token string) string {
	t.Helper()
	claims, err := v.Verify(token)
	reason, theirs := e.says(t, token, v.Now())
	ours := ""
	for word, sentinel := range reasons {
		if errors.Is(err, sentinel) {
			ours = word
		}
	}
	if (err == nil) != (reason == "") || reason != ours {
		return "here: " + ours + "; elsewhere: " + reason
	}
	if err == nil && !reflect.DeepEqual(claims, theirs) {
		return "other claims"
	}
	return ""
}

// mutate changes one place of a text, in ways that JSON parsers disagree about.
func mutate(random *rand.Rand, text string) string {
	pieces := []string{
		"", " ", "\n", "\t", "\r", "\x00", "\x1f", "\v", ",", ":", "{", "}", "[", "]", `"`, `\`, `\u0000`, `\ud800`,
		`\ud83d\ude00`, `\udc00\ud800`,
		`\/`, `\x`, "é", "\u2028", "\xff", "\xc0\x80", "\xed\xa0\x80", "\ufeff", "0", "-", "-0", "1", "e5", "E+1",
		".0", "00", "9223372036854775807",
		"9223372036854775808", "null", "true", "nul", "NaN", "/**/", `"x":1,`, `"exp":1,`, `"e\u0078p":1,`,
		`,"x":[[[[[[[]]]]]]]`, `"aud":"api",`, "A", "f",
	}
	from := random.IntN(len(text) + 1)
	to := min(from+[]int{0, 0, 1, 1, 2, 8}[random.IntN(6)], len(text))
	if at := strings.IndexAny(text[from:], ",:{}"); at >= 0 && random.IntN(2) == 0 {
		from += at // between values, where much is allowed
		to = from
	}
	return text[:from] + pieces[random.IntN(len(pieces))] + text[to:]
}

// The module verify has another parser, which must be as strict as this one: both refuse the same
// texts for the same reasons, and read the accepted ones alike.
func TestTheModuleVerifyIsJustAsStrict(t *testing.T) {
	t.Parallel()
	es, ed, rs, stranger := newTestKey(t, ES256), newTestKey(t, EdDSA), newTestKey(t, RS256), newTestKey(t, EdDSA)
	e := newElsewhere(t, es, ed, rs)
	now := testNow()
	v := testVerifier(es, ed, rs)
	v.Now = func() time.Time { return now }
	tokens := []string{mustSign(t, rs, testClaims()), mustSign(t, stranger, testClaims()),
		mustSign(t, newTestKey(t, HS256), testClaims())}
	for _, attacks := range []map[string]attack{headerAttacks(t, es), claimAttacks(t, ed), textAttacks(t, es),
		disguises(t, es, ed, rs)} {
		for _, name := range slices.Sorted(maps.Keys(attacks)) {
			tokens = append(tokens, attacks[name].token)
		}
	}
	for _, token := range tokens {
		if how := e.differs(t, v, token); how != "" {
			t.Errorf("%q: %s", token, how)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	header, payload := goodHeader(ed), goodPayload(t)
	two := set(t, with(`"nbf":1795521600,"x":{"y":["z",1.5e3,null]}`, payload), "aud", `["web","api"]`)
	accepted := 0
	for n := range 4000 {
		h, p := header, []string{payload, two}[n%2]
		for range 1 + random.IntN(6)/5 {
			if random.IntN(4) == 0 {
				h = mutate(random, h)
			} else {
				p = mutate(random, p)
			}
		}
		now = testNow()
		if random.IntN(8) == 0 {
			now = now.Add([]time.Duration{-time.Minute, -30 * time.Second, 5*time.Hour - time.Second,
				5 * time.Hour}[random.IntN(4)])
		}
		token := forge(t, ed, h, p)
		if random.IntN(10) == 0 {
			token = mutate(random, token)
		}
		if how := e.differs(t, v, token); how != "" {
			t.Fatalf("%q %q: %s", h, p, how)
		}
		if _, err := v.Verify(token); err == nil {
			accepted++
		}
	}
	if accepted < 100 {
		t.Errorf("only %d were accepted, too few for this test", accepted)
	}
}

// The same for the fuzzer, which needs coverage and cannot start a process for each try.
func FuzzTheModuleVerify(f *testing.F) {
	key := newTestKey(f, EdDSA)
	e := newElsewhere(f, key)
	v := testVerifier(key)
	f.Add([]byte(goodHeader(key)), []byte(goodPayload(f)))
	f.Add([]byte(with(`"crit":["x"]`, goodHeader(key))), []byte(set(f, goodPayload(f), "aud", `["a","api"]`)))
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		token := forge(t, key, strings.ReplaceAll(string(header), "KID", key.KID()), string(payload))
		if how := e.differs(t, v, token); how != "" {
			t.Errorf("%q %q: %s", header, payload, how)
		}
	})
}
