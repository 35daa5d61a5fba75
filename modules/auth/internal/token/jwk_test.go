package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAKeySetIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	var keys []PublicKey
	for _, algorithm := range algorithms {
		keys = append(keys, newTestKey(t, algorithm).Public())
	}
	body, etag, err := MarshalJWKS(keys)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(keys)
	again, sameTag, err := MarshalJWKS(keys)
	if err != nil || !bytes.Equal(body, again) || etag != sameTag {
		t.Errorf("the order of the keys matters: %s %s and %s %s, %v", body, etag, again, sameTag, err)
	}
	if _, other, err := MarshalJWKS(keys[1:3]); err != nil || other == etag {
		t.Errorf("other keys, the same ETag %s, %v", etag, err)
	}
	if len(etag) < 10 || etag[0] != '"' || etag[len(etag)-1] != '"' {
		t.Errorf("ETag %s is not a strong entity tag", etag)
	}

	set, err := ParseJWKS(body)
	if err != nil || len(set.keys) != 3 {
		t.Fatalf("read %d keys of %s: %v", len(set.keys), body, err)
	}
	for _, p := range keys {
		if q, ok := set.Key(p.kid); ok != (p.algorithm != HS256) || ok && !q.Equal(p) {
			t.Errorf("%v was read as %v", p, q)
		}
	}
}

func TestOnlyPublicMembersArePublished(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		ES256: {"alg", "crv", "kid", "kty", "use", "x", "y"},
		EdDSA: {"alg", "crv", "kid", "kty", "use", "x"},
		RS256: {"alg", "e", "kid", "kty", "n", "use"},
	}
	for algorithm, names := range want {
		key := newTestKey(t, algorithm)
		text, err := MarshalJWK(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]string
		if err := json.Unmarshal(text, &members); err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range members {
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, names) || members["use"] != "sig" || members["alg"] != algorithm ||
			members["kid"] != key.KID() {
			t.Errorf("%s: %s", algorithm, text)
		}
	}
	if text, err := MarshalJWK(newTestKey(t, HS256).Public()); err == nil {
		t.Errorf("the shared secret has a public form: %s", text)
	}
	if body, _, err := MarshalJWKS(nil); err != nil || string(body) != `{"keys":[]}` {
		t.Errorf("no keys: %s, %v", body, err)
	}
}

func TestKeysThatAreLeftOut(t *testing.T) {
	t.Parallel()
	const ec = `"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"`
	const okp = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`
	modulus := func(bytes int) string {
		return encodeBase64(slices.Repeat([]byte{0xff}, bytes))
	}
	for name, tc := range map[string]struct {
		members string
		taken   bool
	}{
		"EC":                   {ec, true},
		"EC for ES256":         {ec + `,"alg":"ES256","use":"sig","key_ops":["verify"],"x5c":["MIIB"]`, true},
		"EC for HS256":         {ec + `,"alg":"HS256"`, false},
		"EC for encryption":    {ec + `,"use":"enc"`, false},
		"EC, use not a string": {ec + `,"use":["sig"]`, false},
		"EC off the curve":     {strings.Replace(ec, "f83O", "g83O", 1), false},
		"EC with a short x": {strings.Replace(ec, "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
			"f83OJ3D2xF1B", 1), false},
		"EC at infinity": {`"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` +
			strings.Repeat("A", 43) + `"`, false},
		"EC without y":              {strings.Split(ec, `,"y"`)[0], false},
		"EC with padding":           {strings.Replace(ec, "RVEU", "RVEU=", 1), false},
		"EC with a newline":         {strings.Replace(ec, "RVEU", `RVE\nU`, 1), false},
		"EC on P-384":               {strings.Replace(ec, "P-256", "P-384", 1), false},
		"OKP":                       {okp, true},
		"OKP X25519":                {strings.Replace(okp, "Ed25519", "X25519", 1), false},
		"OKP for ES256":             {okp + `,"alg":"ES256"`, false},
		"OKP too short":             {strings.Replace(okp, "11qYAYKxCrfVS", "11qYAYKxC", 1), false},
		"RSA 2048":                  {`"kty":"RSA","e":"AQAB","n":"` + modulus(256) + `"`, true},
		"RSA 2040":                  {`"kty":"RSA","e":"AQAB","n":"` + modulus(255) + `"`, false},
		"RSA 8192":                  {`"kty":"RSA","e":"AQAB","n":"` + modulus(1024) + `"`, true},
		"RSA 8200":                  {`"kty":"RSA","e":"AQAB","n":"` + modulus(1025) + `"`, false},
		"RSA for PS256":             {`"kty":"RSA","alg":"PS256","e":"AQAB","n":"` + modulus(256) + `"`, false},
		"RSA e of 1":                {`"kty":"RSA","e":"AQ","n":"` + modulus(256) + `"`, false},
		"RSA even e":                {`"kty":"RSA","e":"Ag","n":"` + modulus(256) + `"`, false},
		"RSA huge e":                {`"kty":"RSA","e":"AQAAAAE","n":"` + modulus(256) + `"`, false},
		"RSA leading zero":          {`"kty":"RSA","e":"AAEAAQ","n":"` + modulus(256) + `"`, false},
		"RSA no e":                  {`"kty":"RSA","n":"` + modulus(256) + `"`, false},
		"a symmetric key":           {`"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"`, true},
		"a symmetric key too short": {`"kty":"oct","k":"AyM1SysPpbyDfgZld3umjw"`, false},
		"a symmetric key for HS512": {`"kty":"oct","alg":"HS512","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"`, false},
		"a type of the future":      {`"kty":"AKP","alg":"ML-DSA-65","pub":"AA"`, false},
		"no type":                   {`"x":"AA"`, false},
		"kty in another casing":     {strings.Replace(ec, "kty", "KTY", 1), false},
	} {
		set, err := ParseJWKS([]byte(`{"keys":[{"kid":"k",` + tc.members + `}]}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, taken := set.Key("k"); taken != tc.taken {
			t.Errorf("%s: accepted %v; want %v", name, taken, tc.taken)
		}
	}
}

func TestASingleKeyWillDoForASet(t *testing.T) {
	t.Parallel()
	set, err := ParseJWKS([]byte(`{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyJWS(vectorHS256, set); err != nil {
		t.Errorf("RFC 7515 A.1: %v", err)
	}
	if body, _, err := MarshalJWKS(set.keys); err != nil || string(body) != `{"keys":[]}` {
		t.Errorf("published as %s, %v", body, err)
	}
}

func TestSetsThatAreRefused(t *testing.T) {
	t.Parallel()
	const key = `{"kid":"k","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	for name, text := range map[string]string{
		"empty":          "",
		"not JSON":       "keys",
		"an array":       "[" + key + "]",
		"no keys":        "{}",
		"KEYS":           `{"KEYS":[]}`,
		"keys null":      `{"keys":null}`,
		"keys an object": `{"keys":` + key + `}`,
		"keys twice":     `{"keys":[],"keys":[` + key + `]}`,
		"a member twice": `{"keys":[{"kid":"a","kid":"b"}]}`,
		"one kid twice":  `{"keys":[` + key + `,` + key + `]}`,
		"too many":       `{"keys":[{}` + strings.Repeat(",{}", maxJWKSKeys) + `]}`,
		"too long":       `{"keys":[]}` + strings.Repeat(" ", maxJWKS),
		"something more": `{"keys":[]}{}`,
		"too deep":       `{"keys":` + strings.Repeat("[", 100_000),
	} {
		if set, err := ParseJWKS([]byte(text)); err == nil {
			t.Errorf("%s: read %d keys", name, len(set.keys))
		}
	}
	for name, text := range map[string]string{
		"unknown members":   `{"keys":[` + key + `],"x":1}`,
		"a byte order mark": "\ufeff" + `{"keys":[` + key + `]}`,
		"keys of no sense":  `{"keys":[1,null,"x",[],` + key + `]}`,
		"keys without kid": `{"keys":[` + strings.Replace(key, `"kid":"k",`, "", 1) + `,` + strings.Replace(key,
			`"kid":"k",`, "", 1) + `,` + key + `]}`,
	} {
		set, err := ParseJWKS([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := set.Key("k"); !ok {
			t.Errorf("%s: the key was not read", name)
		}
		if _, ok := set.Key(""); ok {
			t.Errorf("%s: a key without a kid is not found without one", name)
		}
	}
}

func FuzzParseJWKS(f *testing.F) {
	f.Add([]byte(vectorJWKS))
	f.Add([]byte(`{"keys":[{"kty":"RSA","e":"AQAB","n":"` + strings.Repeat("_", 342) + `","kid":"k"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := ParseJWKS(data)
		if err != nil {
			return
		}
		for i := range set.keys { // name them, or two keys without a kid are refused
			set.keys[i].kid = fmt.Sprintf("k%03d", i)
		}
		body, _, err := MarshalJWKS(set.keys)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseJWKS(body)
		if err != nil || !slices.EqualFunc(again.keys, set.keys, PublicKey.Equal) {
			t.Errorf("%s was read as %v, and again as %v, %v", data, set.keys, again.keys, err)
		}
	})
}
