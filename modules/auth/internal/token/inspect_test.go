package token

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestInspectShowsWhatVerifyRefuses(t *testing.T) {
	t.Parallel()
	text := func(s string) string { return encodeBase64([]byte(s)) }
	d, err := Inspect(text(`{"alg":"none","jku":"https://evil.example"}`) + "." + text(`{"exp":1.5e9,"x":[1]}`) + ".")
	if err != nil || d.Header["alg"] != "none" || d.Header["jku"] != "https://evil.example" ||
		d.Claims["exp"] != json.Number("1.5e9") ||
		string(d.Payload) != `{"exp":1.5e9,"x":[1]}` {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := Inspect(vectorEdDSA); err != nil || d.Claims != nil ||
		string(d.Payload) != "Example of Ed25519 signing" {
		t.Errorf("a bare JWS: %+v, %v", d, err)
	}
	for name, token := range map[string]string{
		"empty":              "",
		"no dots":            "abc",
		"header not JSON":    text("x") + "." + text("{}") + ".",
		"header an array":    text("[]") + "." + text("{}") + ".",
		"header name twice":  text(`{"alg":"ES256","alg":"none"}`) + "." + text("{}") + ".",
		"a space at the end": vectorES256 + " ",
	} {
		if d, err := Inspect(token); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if d, err := Inspect(text(`{"alg":"ES256"}`) + "." + text(`{"sub":"a","sub":"b"}`) + "."); err != nil ||
		d.Claims != nil {
		t.Errorf("a claim twice: %+v, %v", d, err)
	}
}

func TestVerifyJWSIsStrictAboutAlgorithmAndKey(t *testing.T) {
	t.Parallel()
	ec, ed, shared := newTestKey(t, ES256), newTestKey(t, EdDSA), newTestKey(t, HS256)
	set := Set{[]PublicKey{ec.Public(), ed.Public(), shared.Public()}}
	for name, tc := range map[string]struct {
		key    Key
		header string
		want   error
	}{
		"with its kid":              {ec, `{"alg":"ES256","kid":"` + ec.KID() + `"}`, nil},
		"without a kid":             {ed, `{"alg":"EdDSA"}`, nil},
		"the shared secret":         {shared, `{"typ":"JWT","alg":"HS256"}`, nil},
		"a hint at a key elsewhere": {ec, `{"alg":"ES256","jku":"https://evil.example","jwk":{"kty":"oct"}}`, nil},
		"the kid of another key":    {ec, `{"alg":"ES256","kid":"` + ed.KID() + `"}`, ErrAlgorithm},
		"an unknown kid":            {ec, `{"alg":"ES256","kid":"x"}`, ErrUnknownKey},
		"another algorithm":         {ec, `{"alg":"EdDSA"}`, ErrSignature},
		"an algorithm without key":  {ec, `{"alg":"RS256"}`, ErrAlgorithm},
		"an unused algorithm":       {ec, `{"alg":"ES512"}`, ErrAlgorithm},
		"none":                      {ec, `{"alg":"none"}`, ErrAlgorithm},
		"no alg":                    {ec, `{"kid":"` + ec.KID() + `"}`, ErrAlgorithm},
		"alg twice":                 {ec, `{"alg":"ES256","alg":"ES256"}`, ErrMalformed},
		"crit":                      {ec, `{"alg":"ES256","crit":["exp"],"exp":1}`, ErrMalformed},
		"b64":                       {ec, `{"alg":"ES256","b64":false}`, ErrMalformed},
		"zip":                       {ec, `{"alg":"ES256","zip":"DEF"}`, ErrMalformed},
		"kid not a string":          {ec, `{"alg":"ES256","kid":[]}`, ErrMalformed},
		"not an object":             {ec, `"ES256"`, ErrMalformed},
	} {
		payload, err := VerifyJWS(forge(t, tc.key, tc.header, "any payload"), set)
		if !errors.Is(err, tc.want) || err == nil && string(payload) != "any payload" {
			t.Errorf("%s: %q, %v; want %v", name, payload, err, tc.want)
		}
	}
	if _, err := VerifyJWS("a.b", set); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	if _, err := VerifyJWS(vectorES256, Set{}); !errors.Is(err, ErrUnknownKey) {
		t.Error(err)
	}
}
