package token

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"testing"
)

// RFC 7517 A.1's EC key is RFC 7515 A.3's; the OKP key is RFC 8037 A.2's.
const vectorJWKS = `{"keys":[
	{"kty":"EC","crv":"P-256","kid":"a3","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
	{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

const (
	vectorPayload = `eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ`
	vectorHS256   = `eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.` + vectorPayload + `.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk`
	vectorES256   = `eyJhbGciOiJFUzI1NiJ9.` + vectorPayload + `.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q`
	vectorEdDSA   = `eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg`
)

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRFC7515AndRFC8037Signatures(t *testing.T) {
	t.Parallel()
	set, err := ParseJWKS([]byte(vectorJWKS))
	if err != nil {
		t.Fatal(err)
	}
	shared, err := newPublicKey("a1", HS256,
		unbase64(t, "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"))
	if err != nil {
		t.Fatal(err)
	}
	set = Set{append(set.keys, shared)}
	joe := "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"
	for name, c := range map[string]struct{ token, payload string }{
		"RFC 7515 A.1": {vectorHS256, joe},
		"RFC 7515 A.3": {vectorES256, joe},
		"RFC 8037 A.4": {vectorEdDSA, "Example of Ed25519 signing"},
	} {
		got, err := VerifyJWS(c.token, set)
		if err != nil || string(got) != c.payload {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, err := VerifyJWS(alter(c.token, len(c.token)-8), set); !errors.Is(err, ErrSignature) {
			t.Errorf("%s with another signature: %v", name, err)
		}
	}
}

func TestRFC8037SignatureIsReproduced(t *testing.T) {
	t.Parallel()
	private := ed25519.NewKeyFromSeed(unbase64(t, "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
	key, err := newKey(EdDSA, private)
	if err != nil {
		t.Fatal(err)
	}
	c, err := split(vectorEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	got, err := method(EdDSA).Sign(c.signed, key.private)
	if err != nil || !bytes.Equal(got, c.signature) {
		t.Errorf("signature %x, %v; want %x", got, err, c.signature)
	}
}

func TestThumbprints(t *testing.T) {
	t.Parallel()
	set, err := ParseJWKS([]byte(`{"keys":[
		{"kty":"RSA","e":"AQAB","alg":"RS256","kid":"2011-04-29","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"},
		{"kty":"OKP","crv":"Ed25519","kid":"okp","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for kid, want := range map[string]string{
		"2011-04-29": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", // RFC 7638 §3.1
		"okp":        "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", // RFC 8037 A.3
	} {
		if p, ok := set.Key(kid); !ok || p.thumbprint() != want {
			t.Errorf("%s: %s, %v; want %s", kid, p.thumbprint(), ok, want)
		}
	}
}
