package token

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// Each token has only one accepted text: taken apart and put together again, it is the same.
func FuzzVerify(f *testing.F) {
	key, shared := newTestKey(f, ES256), newTestKey(f, HS256)
	v := testVerifier(key, shared)
	cached := testVerifier(key, shared)
	cached.Cache = NewCache(64)
	for _, k := range []Key{key, shared} {
		f.Add(mustSign(f, k, testClaims()))
		f.Add(forge(f, k, goodHeader(k), `{"aud":[],"exp":1e3}`))
		f.Add(forge(f, k, with(`"crit":["x"]`, goodHeader(k)), goodPayload(f)))
	}
	f.Add(vectorES256)
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := v.Verify(token)
		for range 2 {
			again, againErr := cached.Verify(token)
			if !reflect.DeepEqual(again, c) || !reflect.DeepEqual(againErr, err) {
				t.Errorf("with a cache %+v, %v; without %+v, %v", again, againErr, c, err)
			}
		}
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Errorf("refused with %T", err)
			}
			return
		}
		parts, err := split(token)
		if err != nil {
			t.Fatal(err)
		}
		if again := encodeBase64(parts.header) + "." + encodeBase64(parts.payload) + "." + encodeBase64(parts.signature); again != token {
			t.Errorf("%q was accepted, but its canonical text is %q", token, again)
		}
	})
}

// The parser of claims, which FuzzVerify cannot reach without a signature.
func FuzzParseClaims(f *testing.F) {
	f.Add([]byte(goodPayload(f)))
	f.Add([]byte(set(f, goodPayload(f), "aud", `["a","b"]`)))
	f.Add([]byte(with(`"nbf":0,"x":{"y":[null]}`, goodPayload(f))))
	f.Add([]byte(set(f, goodPayload(f), "exp", `1e10`)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload)
		if err != nil {
			return
		}
		text, err := c.append(nil)
		if err != nil {
			t.Fatalf("%s was accepted as %+v, which cannot be written: %v", payload, c, err)
		}
		if again, err := parseClaims(text); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%s was read as %+v, and again as %+v, %v", payload, c, again, err)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte(`{"alg":"ES256","kid":"k","typ":"at+jwt"}`))
	f.Add([]byte(`{"alg":"none","kid":"k","typ":"JWT","crit":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseHeader(data)
		if err == nil && (!validKID(h.kid) || h.alg == "" || h.typ == "" || strings.Count(string(data), ":") < 3) {
			t.Errorf("%s was accepted as %+v", data, h)
		}
	})
}

func FuzzInspect(f *testing.F) {
	set, err := ParseJWKS([]byte(vectorJWKS))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(vectorES256)
	f.Add(vectorEdDSA)
	f.Add("e30.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		d, err := Inspect(token)
		payload, jwsErr := VerifyJWS(token, set)
		if err != nil && jwsErr == nil {
			t.Errorf("%q verifies, but cannot be shown: %v", token, err)
		}
		if err != nil {
			return
		}
		c, err := split(token)
		if again := encodeBase64(c.header) + "." + encodeBase64(d.Payload) + "." + encodeBase64(c.signature); err != nil || again != token {
			t.Errorf("%q was shown as %q", token, again)
		}
		if jwsErr == nil && string(payload) != string(d.Payload) {
			t.Errorf("verified %q, but shown %q", payload, d.Payload)
		}
	})
}
