package verify

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"
)

// vectors are published for verifiers in any language; see testdata/README.md.
type vectors struct {
	Issuer   string                     `json:"issuer"`
	Audience string                     `json:"audience"`
	Keys     map[string]json.RawMessage `json:"keys"`
	Feeds    map[string]json.RawMessage `json:"feeds"`
	Vectors  []struct {
		Name    string    `json:"name"`
		Token   string    `json:"token"`
		Keys    string    `json:"keys"`
		Feed    string    `json:"feed"`
		Time    time.Time `json:"time"`
		Verdict string    `json:"verdict"`
		Reason  string    `json:"reason"`
	} `json:"vectors"`
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var all vectors
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// still makes a verifier that knows these keys and ends, at a moment that does not pass.
func still(t testing.TB, all vectors, keys, feed json.RawMessage, now time.Time) *Verifier {
	t.Helper()
	set, err := parseJWKS(keys)
	if err != nil {
		t.Fatal(err)
	}
	v := &Verifier{
		cfg: Config{Issuer: all.Issuer, Audience: all.Audience, Client: Client{"orders", "secret"},
			MaxLag: time.Second},
		now:  func() time.Time { return now },
		keys: newKeyring(), known: newKnowledge(), synced: make(chan struct{}), ctx: t.Context(),
	}
	close(v.synced)
	v.keys.set.Store(&set)
	v.keys.landed(true)
	v.clock = newServerClock(v.now)
	var a answer
	if err := json.Unmarshal(feed, &a); err != nil {
		t.Fatal(err)
	}
	if _, err := v.known.add(a.Revocations); err != nil {
		t.Fatal(err)
	}
	v.clock.answered(measure{asked: now, read: now, asOf: now, complete: now})
	return v
}

func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	reasons := map[string]error{
		"malformed": ErrMalformed, "type": ErrType, "unknown_key": ErrUnknownKey, "algorithm": ErrAlgorithm,
		"signature": ErrSignature,
		"claims":    ErrClaims, "issuer": ErrIssuer, "audience": ErrAudience, "not_yet_valid": ErrNotYetValid,
		"expired": ErrExpired,
		"revoked": ErrRevoked,
	}
	all := readVectors(t)
	for _, c := range all.Vectors {
		reason, known := reasons[c.Reason]
		if known != (c.Verdict == "refuse") {
			t.Errorf("%s: the verdict %s for the reason %q", c.Name, c.Verdict, c.Reason)
		}
		v := still(t, all, all.Keys[c.Keys], all.Feeds[c.Feed], c.Time)
		if _, err := v.Check(t.Context(), c.Token); !errors.Is(err, reason) {
			t.Errorf("%s: %v; want %v", c.Name, err, reason)
		}
	}
	if len(all.Vectors) < 150 {
		t.Errorf("only %d vectors", len(all.Vectors))
	}
}

// Each token has only one accepted text.
func FuzzCheck(f *testing.F) {
	all := readVectors(f)
	v := still(f, all, all.Keys["all"], all.Feeds["session"], all.Vectors[0].Time)
	for _, c := range all.Vectors {
		f.Add(c.Token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		claims, err := v.Check(t.Context(), token)
		if _, refused := errors.AsType[*Refusal](err); err != nil && !refused {
			t.Errorf("refused with %T", err)
		}
		if err != nil {
			return
		}
		parts, err := split(token)
		if err != nil {
			t.Fatal(err)
		}
		if again := encode(parts.header) + "." + encode(parts.payload) + "." + encode(parts.signature); again != token || claims.Subject == "" {
			t.Errorf("%q was accepted, but its canonical text is %q", token, again)
		}
	})
}

// The JSON reader, which FuzzCheck cannot reach without a signature. It accepts nothing that
// encoding/json refuses.
func FuzzReadObject(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"a":[1,-0,1.5e+3,true,false,null,"\u00e9\ud83d\ude00é😀"],"b":{"c":{}}}`, `{"a":"\ud800"}`,
		"{\"a\":\"\xff\"}", `{"a":1,"\u0061":2}`,
		`{"exp":01}`, ` { "a" : 1 } `, `{"a":1}x`, `{"a":"` + "\x01" + `"}`, `{"a":.5}`, `{"a":1.}`, `{"a":-}`,
		`{"a":tru}`, `{"":"\/\b\f\n\r\t\"\\"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := map[string]string{}
		err := readObject(data, func(name string, r *reader) error {
			if r.peek() != '"' {
				got[name] = ""
				return r.skip()
			}
			s, err := r.str()
			got[name] = s
			return err
		})
		if err != nil {
			return
		}
		var want map[string]any
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q was read, but is not JSON: %v", data, err)
		}
		if len(want) != len(got) {
			t.Errorf("%q: %v and %v", data, got, want)
		}
		for name, value := range want {
			if text, is := value.(string); is && text != got[name] {
				t.Errorf("%q: %s is %q and %q", data, name, got[name], text)
			}
		}
	})
}
