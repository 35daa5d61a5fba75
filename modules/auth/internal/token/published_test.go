package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write verify/testdata/vectors.json with new keys")

const vectorsFile = "../../../../verify/testdata/vectors.json"

// published are the vectors for verifiers of our tokens in any language; verify/testdata/README.md
// explains them.
type published struct {
	Issuer   string                     `json:"issuer"`
	Audience string                     `json:"audience"`
	Keys     map[string]json.RawMessage `json:"keys"`
	Feeds    map[string]json.RawMessage `json:"feeds"`
	Vectors  []vector                   `json:"vectors"`
}

type vector struct {
	Name    string    `json:"name"`
	Token   string    `json:"token"`
	Keys    string    `json:"keys"`
	Feed    string    `json:"feed"`
	Time    time.Time `json:"time"`
	Verdict string    `json:"verdict"`
	Reason  string    `json:"reason,omitempty"`
	Strict  bool      `json:"strict,omitempty"`
}

// reasons are the words that the vectors use for refusals.
var reasons = map[string]error{
	"malformed": ErrMalformed, "type": ErrType, "unknown_key": ErrUnknownKey, "algorithm": ErrAlgorithm,
	"signature": ErrSignature,
	"claims":    ErrClaims, "issuer": ErrIssuer, "audience": ErrAudience, "not_yet_valid": ErrNotYetValid,
	"expired": ErrExpired,
	"revoked": errRevoked,
}

// errRevoked is only known to services that ask the database or follow the feed.
var errRevoked = errors.New("revoked")

// everybody lists the attacks that every careful verifier must refuse, or must not. Only the holder
// of the signing key could use the others; refusing them too is our own strictness. Whoever has stolen a key
// holds it too, and must not pass by leaving out the name by which it was revoked.
var everybody = []string{
	"alg none", "alg None", "alg in lower case", "alg of another key", "unknown kid", "kid of a path", "kid of SQL",
	"kid of a URL", "no kid", "kid not a string",
	"typ JWT", "no typ", "typ of another use", "crit",
	"another issuer", "another audience", "other audiences", "one of the audiences", "nbf in the future", "nbf",
	"no exp", "no iss", "no aud",
	"an unknown claim", "EXP beside exp", "exp zero",
	"empty", "one segment", "two segments", "five segments (JWE)", "only dots", "JSON serialisation", "no signature",
	"half a signature",
	"r and s of zero", "another signature", "another payload", "an ASN.1 signature size", "empty header",
	"header that is not base64",
}

// facts are what the vectors' feeds say.
func facts(entries ...map[string]any) json.RawMessage {
	for _, e := range entries {
		e["expires_at"] = "2026-11-24T18:00:00Z"
	}
	body, err := json.Marshal(map[string]any{
		"cursor": "1", "as_of": "2026-11-24T12:00:00.5Z", "more": false, "revocations": append([]map[string]any{},
			entries...),
	})
	if err != nil {
		panic(err)
	}
	return body
}

func makeVectors(t *testing.T) published {
	t.Helper()
	es, ed, rs := newTestKey(t, ES256), newTestKey(t, EdDSA), newTestKey(t, RS256)
	jwks, _, err := MarshalJWKS([]PublicKey{es.Public(), ed.Public(), rs.Public()})
	if err != nil {
		t.Fatal(err)
	}
	c := testClaims()
	sub, sid, other := c.Subject.String(), c.SessionID.String(), "018f3c5e-7b6a-7000-8000-00000000000f"
	p := published{
		Issuer: c.Issuer, Audience: c.Audience[0], Keys: map[string]json.RawMessage{"all": jwks},
		Feeds: map[string]json.RawMessage{
			"none":            facts(),
			"session":         facts(map[string]any{"type": "session", "sid": sid, "sub": sub}),
			"another session": facts(map[string]any{"type": "session", "sid": other, "sub": sub}),
			"below epoch 7":   facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 7}),
			"below epoch 8":   facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 8}),
			"another account": facts(map[string]any{"type": "account", "sub": other, "session_epoch": 8}),
			"kept": facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 8,
				"kept_sid": sid}),
			"another kept": facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 8,
				"kept_sid": other}),
			"kept, then not": facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 8, "kept_sid": sid},
				map[string]any{"type": "account", "sub": sub, "session_epoch": 9}),
			"not, then kept": facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 9},
				map[string]any{"type": "account", "sub": sub, "session_epoch": 8, "kept_sid": sid}),
			"kept twice": facts(map[string]any{"type": "account", "sub": sub, "session_epoch": 9, "kept_sid": sid},
				map[string]any{"type": "account", "sub": sub, "session_epoch": 8}),
			"key":         facts(map[string]any{"type": "key", "kid": es.KID()}),
			"another key": facts(map[string]any{"type": "key", "kid": ed.KID()}),
			"session, twice and amid others": facts(map[string]any{"type": "planet", "name": "x"},
				map[string]any{"type": "session", "sid": sid, "more": 1},
				map[string]any{"type": "session", "sid": other}, map[string]any{"type": "session", "sid": sid}),
		},
	}
	add := func(name, token, feed string, at time.Time, want error, strict bool) {
		v := vector{Name: name, Token: token, Keys: "all", Feed: feed, Time: at.UTC(), Verdict: "accept",
			Strict: strict}
		for word, reason := range reasons {
			if want == reason {
				v.Verdict, v.Reason = "refuse", word
			}
		}
		p.Vectors = append(p.Vectors, v)
	}
	now := testNow()
	for _, key := range []Key{es, ed, rs} {
		add("good, "+key.Algorithm(), mustSign(t, key, c), "none", now, nil, false)
		stranger := newTestKey(t, key.Algorithm())
		add("signed by another key, "+key.Algorithm(), forge(t, stranger, goodHeader(key), goodPayload(t)), "none",
			now, ErrSignature, false)
		add("of an unknown key, "+key.Algorithm(), mustSign(t, stranger, c), "none", now, ErrUnknownKey, false)
	}
	good := mustSign(t, es, c)
	revoked := []string{"session", "below epoch 8", "another kept", "kept, then not", "not, then kept", "key",
		"session, twice and amid others"}
	for _, feed := range slices.Sorted(maps.Keys(p.Feeds)) {
		var want error
		if slices.Contains(revoked, feed) {
			want = errRevoked
		}
		add("ended: "+feed, good, feed, now, want, false)
	}
	add("in its last second", good, "none", c.ExpiresAt.Add(-time.Second), nil, false)
	add("at its end", good, "none", c.ExpiresAt, ErrExpired, true)
	add("an hour after its end", good, "session", c.ExpiresAt.Add(time.Hour), ErrExpired, false)
	add("30 seconds before iat", good, "none", c.IssuedAt.Add(-30*time.Second), nil, false)
	add("31 seconds before iat", good, "none", c.IssuedAt.Add(-31*time.Second), ErrNotYetValid, true)
	table := func(group string, attacks map[string]attack) {
		for _, name := range slices.Sorted(maps.Keys(attacks)) {
			a := attacks[name]
			strict := !slices.Contains(everybody, name) && group != "disguise"
			if len(a.token) < 20_000 { // the longest test only the length
				add(group+": "+name, a.token, "none", now, a.want, strict)
			}
		}
	}
	table("header", headerAttacks(t, es))
	table("claims", claimAttacks(t, es)) // not every library supports EdDSA
	table("text", textAttacks(t, es))
	table("disguise", disguises(t, es, ed, rs))
	return p
}

func (p published) write(t *testing.T) {
	t.Helper()
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorsFile, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The published vectors have this parser's verdicts. The module verify runs them too, and so do the
// examples in other languages.
func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	if *update {
		makeVectors(t).write(t)
	}
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var p published
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		t.Fatal(err)
	}
	set, err := ParseJWKS(p.Keys["all"])
	if err != nil || len(set.keys) != 3 {
		t.Fatalf("%v, %v", set.keys, err)
	}
	seen := map[string]int{}
	for _, v := range p.Vectors {
		verifier := &Verifier{Issuer: p.Issuer, Audiences: []string{p.Audience},
			Now: func() time.Time {
				return v.Time
			}, Key: set.Key}
		want, known := reasons[v.Reason]
		if known != (v.Verdict == "refuse") || p.Feeds[v.Feed] == nil || p.Keys[v.Keys] == nil {
			t.Errorf("%s is inconsistent: %s, %s", v.Name, v.Verdict, v.Reason)
		}
		if want == errRevoked {
			want = nil // a good token, as far as this parser knows
		}
		if _, err := verifier.Verify(v.Token); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", v.Name, err, want)
		}
		seen[v.Reason]++
		if seen[v.Name]++; seen[v.Name] > 1 {
			t.Errorf("%s occurs twice", v.Name)
		}
	}
	for word := range reasons {
		if seen[word] == 0 {
			t.Errorf("no vector has the reason %s", word)
		}
	}
	if len(p.Vectors) < 150 || seen[""] < 15 {
		t.Errorf("only %d vectors, %d of them good tokens", len(p.Vectors), seen[""])
	}
	if strings.Contains(string(text), `"d"`) {
		t.Error("the vectors contain a private key")
	}
}
