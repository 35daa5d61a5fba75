package token

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// forge signs any header and payload with the key: what an attacker can do with a signature of
// ours, and more.
func forge(t testing.TB, key Key, header, payload string) string {
	t.Helper()
	signed := encodeBase64([]byte(header)) + "." + encodeBase64([]byte(payload))
	signature, err := method(key.Algorithm()).Sign(signed, key.private)
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + encodeBase64(signature)
}

func goodHeader(key Key) string {
	return `{"alg":"` + key.Algorithm() + `","kid":"` + key.KID() + `","typ":"at+jwt"}`
}

func goodPayload(t testing.TB) string {
	t.Helper()
	b, err := testClaims().append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// with puts members before those of a JSON object.
func with(members, object string) string { return "{" + members + "," + object[1:] }

func without(t testing.TB, payload, name string) string {
	t.Helper()
	from := strings.Index(payload, `"`+name+`":`)
	if from < 0 {
		t.Fatalf("no %s in %s", name, payload)
	}
	rest := payload[from:]
	if end := strings.Index(rest, `,"`); end >= 0 {
		return payload[:from] + rest[end+1:]
	}
	return strings.TrimSuffix(payload[:from], ",") + "}"
}

func set(t testing.TB, payload, name, value string) string {
	t.Helper()
	return with(`"`+name+`":`+value, without(t, payload, name))
}

// attack is a token and the error that refuses it, nil if it is accepted.
type attack struct {
	token string
	want  error
}

// headerAttacks are tokens signed with the key, with all kinds of headers.
func headerAttacks(t testing.TB, key Key) map[string]attack {
	good, payload := goodHeader(key), goodPayload(t)
	attacks := map[string]attack{}
	for name, tc := range map[string]struct {
		header string
		want   error
	}{
		"alg none":           {set(t, good, "alg", `"none"`), ErrAlgorithm},
		"alg None":           {set(t, good, "alg", `"None"`), ErrAlgorithm},
		"alg in lower case":  {set(t, good, "alg", `"es256"`), ErrAlgorithm},
		"alg of another key": {set(t, good, "alg", `"EdDSA"`), ErrAlgorithm},
		"alg of that type":   {set(t, good, "alg", `"ES384"`), ErrAlgorithm},
		"no alg":             {without(t, good, "alg"), ErrMalformed},
		"alg not a string":   {set(t, good, "alg", `["ES256"]`), ErrMalformed},
		"no kid":             {without(t, good, "kid"), ErrMalformed},
		"unknown kid":        {set(t, good, "kid", `"unknown"`), ErrUnknownKey},
		"kid of a path":      {set(t, good, "kid", `"../../../../dev/null"`), ErrMalformed},
		"kid of SQL":         {set(t, good, "kid", `"x' UNION SELECT 'k"`), ErrMalformed},
		"kid of a URL":       {set(t, good, "kid", `"https://evil.example/k"`), ErrMalformed},
		"kid with NUL":       {set(t, good, "kid", `"a\u0000"`), ErrMalformed},
		"kid with a newline": {set(t, good, "kid", `"`+key.KID()+`\n"`), ErrMalformed},
		"empty kid":          {set(t, good, "kid", `""`), ErrMalformed},
		"kid of 65":          {set(t, good, "kid", `"`+strings.Repeat("k", 65)+`"`), ErrMalformed},
		"kid of 64, unknown": {set(t, good, "kid", `"`+strings.Repeat("k", 64)+`"`), ErrUnknownKey},
		"kid not a string":   {set(t, good, "kid", `1`), ErrMalformed},
		"no typ":             {without(t, good, "typ"), ErrMalformed},
		"typ JWT":            {set(t, good, "typ", `"JWT"`), ErrType},
		"typ of another use": {set(t, good, "typ", `"logout+jwt"`), ErrType},
		"typ of a long form": {set(t, good, "typ", `"Application/AT+JWT"`), nil},
		"jku":                {with(`"jku":"https://evil.example/jwks"`, good), ErrMalformed},
		"jwk":                {with(`"jwk":{"kty":"oct","k":"AAAA"}`, good), ErrMalformed},
		"x5u":                {with(`"x5u":"https://evil.example/c"`, good), ErrMalformed},
		"x5c":                {with(`"x5c":["MIIB"]`, good), ErrMalformed},
		"x5t":                {with(`"x5t":"AA"`, good), ErrMalformed},
		"crit":               {with(`"crit":["exp"]`, good), ErrMalformed},
		"empty crit":         {with(`"crit":[]`, good), ErrMalformed},
		"b64":                {with(`"b64":false,"crit":["b64"]`, good), ErrMalformed},
		"zip":                {with(`"zip":"DEF"`, good), ErrMalformed},
		"enc":                {with(`"enc":"A256GCM"`, good), ErrMalformed},
		"cty":                {with(`"cty":"JWT"`, good), ErrMalformed},
		"unknown member":     {with(`"x":1`, good), ErrMalformed},
		"ALG":                {with(`"ALG":"none"`, good), ErrMalformed},
		"alg twice":          {with(`"alg":"none"`, good), ErrMalformed},
		"alg twice, escaped": {with(`"a\u006cg":"none"`, good), ErrMalformed},
		"kid twice":          {with(`"kid":"other"`, good), ErrMalformed},
		"not an object":      {`["ES256"]`, ErrMalformed},
		"null":               {`null`, ErrMalformed},
		"empty":              {``, ErrMalformed},
		"cut off":            {good[:len(good)-1], ErrMalformed},
		"something after it": {good + "{}", ErrMalformed},
		"not UTF-8":          {set(t, good, "kid", "\"\xff\""), ErrMalformed},
		"a byte order mark":  {"\ufeff" + good, ErrMalformed},
		"whitespace":         {" " + good + "\r\n\t ", nil},
	} {
		attacks[name] = attack{forge(t, key, tc.header, payload), tc.want}
	}
	return attacks
}

// claimAttacks are tokens signed with the key, with all kinds of claims.
func claimAttacks(t testing.TB, key Key) map[string]attack {
	good := goodPayload(t)
	type test struct {
		payload string
		want    error
	}
	tests := map[string]test{
		"another issuer":        {set(t, good, "iss", `"https://auth.example.com/"`), ErrIssuer},
		"an empty issuer":       {set(t, good, "iss", `""`), ErrClaims},
		"another audience":      {set(t, good, "aud", `"API"`), ErrAudience},
		"other audiences":       {set(t, good, "aud", `["a","b"]`), ErrAudience},
		"one of the audiences":  {set(t, good, "aud", `["a","api"]`), nil},
		"no audiences":          {set(t, good, "aud", `[]`), ErrClaims},
		"nested audiences":      {set(t, good, "aud", `[["api"]]`), ErrClaims},
		"17 audiences":          {set(t, good, "aud", `["api"`+strings.Repeat(`,"a"`, 16)+`]`), ErrClaims},
		"aud an object":         {set(t, good, "aud", `{"api":1}`), ErrClaims},
		"exp a string":          {set(t, good, "exp", `"1795539600"`), ErrClaims},
		"exp a float":           {set(t, good, "exp", `1795539600.0`), ErrClaims},
		"exp with an exponent":  {set(t, good, "exp", `1e18`), ErrClaims},
		"exp huge":              {set(t, good, "exp", `99999999999999999999999999`), ErrClaims},
		"exp beyond year 9999":  {set(t, good, "exp", `253402300800`), ErrClaims},
		"exp at the int's end":  {set(t, good, "exp", `9223372036854775807`), ErrClaims},
		"exp negative":          {set(t, good, "exp", `-1`), ErrClaims},
		"exp minus zero":        {set(t, good, "exp", `-0`), ErrClaims},
		"exp null":              {set(t, good, "exp", `null`), ErrClaims},
		"exp true":              {set(t, good, "exp", `true`), ErrClaims},
		"exp a leading zero":    {set(t, good, "exp", `01795539600`), ErrClaims},
		"exp before iat":        {set(t, good, "exp", `1795521599`), ErrClaims},
		"exp zero":              {set(t, good, "exp", `0`), ErrClaims},
		"iat a string":          {set(t, good, "iat", `"now"`), ErrClaims},
		"iat in the future":     {set(t, good, "iat", `1795521700`), ErrNotYetValid},
		"nbf in the future":     {with(`"nbf":1795521700`, good), ErrNotYetValid},
		"nbf a string":          {with(`"nbf":"0"`, good), ErrClaims},
		"nbf":                   {with(`"nbf":1795521600`, good), nil},
		"sub not a UUID":        {set(t, good, "sub", `"alice"`), ErrClaims},
		"sub a number":          {set(t, good, "sub", `1`), ErrClaims},
		"sub in capitals":       {set(t, good, "sub", `"018F3C5E-7B6A-7000-8000-000000000001"`), ErrClaims},
		"sub in braces":         {set(t, good, "sub", `"{018f3c5e-7b6a-7000-8000-000000000001}"`), ErrClaims},
		"sub all zeros":         {set(t, good, "sub", `"00000000-0000-0000-0000-000000000000"`), ErrClaims},
		"session_epoch -0":      {set(t, good, "session_epoch", `-0`), ErrClaims},
		"session_epoch a float": {set(t, good, "session_epoch", `7.5`), ErrClaims},
		"exp twice":             {with(`"exp":9999999999`, good), ErrClaims},
		"exp twice, escaped":    {with(`"e\u0078p":9999999999`, good), ErrClaims},
		"sub twice":             {with(`"sub":"018f3c5e-7b6a-7000-8000-000000000009"`, good), ErrClaims},
		"an unknown name twice": {with(`"x":1,"x":2`, good), ErrClaims},
		"a nested name twice":   {with(`"x":{"y":1,"y":2}`, good), ErrClaims},
		"EXP beside exp":        {with(`"EXP":1`, good), nil}, // another claim than exp, and unknown
		"an unknown claim":      {with(`"act":{"sub":"x"}`, good), nil},
		"nested 7 deep":         {with(`"x":`+strings.Repeat("[", 7)+strings.Repeat("]", 7), good), nil},
		"nested 8 deep":         {with(`"x":`+strings.Repeat("[", 8)+strings.Repeat("]", 8), good), ErrClaims},
		"nested 2,000 deep":     {with(`"x":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000), good), ErrClaims},
		"not an object":         {`[` + good + `]`, ErrClaims},
		"a string":              {`"{}"`, ErrClaims},
		"empty":                 {``, ErrClaims},
		"cut off":               {good[:len(good)-1], ErrClaims},
		"something after it":    {good + ` 1`, ErrClaims},
		"not UTF-8":             {with("\"x\":\"\xff\"", good), ErrClaims},
		"half a surrogate pair": {with(`"x":"\ud800"`, good), ErrClaims},
	}
	for _, name := range []string{"iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "auth_time",
		"session_epoch"} {
		tests["no "+name] = test{without(t, good, name), ErrClaims}
		tests[name+" null"] = test{set(t, good, name, "null"), ErrClaims}
		tests[name+" an object"] = test{set(t, good, name, "{}"), ErrClaims}
		tests[name+" in capitals only"] = test{with(`"`+strings.ToUpper(name)+`":1`, without(t, good, name)), ErrClaims}
	}
	attacks := map[string]attack{}
	for name, tc := range tests {
		attacks[name] = attack{forge(t, key, goodHeader(key), tc.payload), tc.want}
	}
	return attacks
}

// textAttacks are texts that are not tokens, or not signed with the key.
func textAttacks(t testing.TB, key Key) map[string]attack {
	attacks := map[string]attack{}
	good := mustSign(t, key, testClaims())
	header, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")

	// The last character of a 64-byte signature holds 2 significant bits, and 4 that must be 0.
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
		signature[len(signature)-1])
	loose := signature[:len(signature)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last|1])

	for name, token := range map[string]string{
		"empty":                 "",
		"one segment":           header,
		"two segments":          header + "." + payload,
		"four segments":         good + ".",
		"five segments (JWE)":   good + ".a.b",
		"only dots":             "..",
		"LF in the signature":   header + "." + payload + "." + signature[:10] + "\n" + signature[10:],
		"CRLF in the signature": header + "." + payload + "." + signature[:10] + "\r\n" + signature[10:],
		"LF at the end":         good + "\n",
		"LF in the payload":     header + "." + payload[:8] + "\n" + payload[8:] + "." + signature,
		"a space before":        " " + good,
		"Bearer":                "Bearer " + good,
		"NUL":                   good + "\x00",
		"padding":               good + "==",
		"standard base64":       header + "." + payload + "." + "+/" + signature[2:],
		"bits left over":        header + "." + payload + "." + loose,
		"length 1 modulo 4":     header + "." + payload + "." + signature + "AAA",
		"JSON serialisation":    `{"payload":"` + payload + `"}`,
		"not ASCII":             header + "." + payload + "." + signature + "é",
		"one byte too long": header + "." + payload + "." + strings.Repeat("A", maxToken+
			1-len(header)-len(payload)-2),
		"a megabyte":                strings.Repeat("A", 1<<20),
		"a megabyte of dots":        strings.Repeat(".", 1<<20),
		"empty header":              "." + payload + "." + signature,
		"header that is not base64": "A." + payload + "." + signature,
	} {
		attacks[name] = attack{token, ErrMalformed}
	}
	for name, token := range map[string]string{
		"no signature":     header + "." + payload + ".",
		"half a signature": header + "." + payload + "." + signature[:len(signature)/2&^3],
		"as long as may be": header + "." + payload + "." + strings.Repeat("A",
			maxToken-len(header)-len(payload)-2),
		"r and s of zero":   header + "." + payload + "." + strings.Repeat("A", 86),
		"another signature": header + "." + payload + "." + alter(signature, 5),
		"another payload": header + "." + encodeBase64([]byte(set(t, goodPayload(t), "session_epoch",
			"8"))) + "." + signature,
		"an ASN.1 signature size": header + "." + payload + "." + strings.Repeat("M", 96),
	} {
		attacks[name] = attack{token, ErrSignature}
	}
	return attacks
}

func refuses(t *testing.T, key Key, attacks map[string]attack) {
	t.Helper()
	v := testVerifier(key)
	if _, err := v.Verify(forge(t, key, goodHeader(key), goodPayload(t))); err != nil {
		t.Fatalf("the good token: %v", err)
	}
	for name, a := range attacks {
		if _, err := v.Verify(a.token); !errors.Is(err, a.want) {
			t.Errorf("%s: %v; want %v", name, err, a.want)
		}
	}
}

func TestHeadersThatAreRefused(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, ES256)
	refuses(t, key, headerAttacks(t, key))
}

func TestClaimsThatAreRefused(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, EdDSA)
	refuses(t, key, claimAttacks(t, key))
}

func TestTextsThatAreRefused(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, ES256)
	refuses(t, key, textAttacks(t, key))
}

// disguises use the public key as the key of an HMAC, or no key. The key is public, so a verifier
// that accepted these would let anybody sign.
func disguises(t testing.TB, keys ...Key) map[string]attack {
	attacks := map[string]attack{}
	for _, key := range keys {
		der, err := x509.MarshalPKIXPublicKey(key.public.key)
		if err != nil {
			t.Fatal(err)
		}
		jwkText, err := MarshalJWK(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		secrets := map[string][]byte{
			"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
				Bytes: der}), "JWK": jwkText, "empty": {},
		}
		for form, secret := range secrets {
			signed := encodeBase64([]byte(set(t, goodHeader(key), "alg",
				`"HS256"`))) + "." + encodeBase64([]byte(goodPayload(t)))
			mac, err := jwt.SigningMethodHS256.Sign(signed, secret)
			if err != nil {
				t.Fatal(err)
			}
			attacks["HS256 with the "+key.Algorithm()+" key as "+form] = attack{signed + "." + encodeBase64(mac),
				ErrAlgorithm}
		}
		none := encodeBase64([]byte(set(t, goodHeader(key), "alg",
			`"none"`))) + "." + encodeBase64([]byte(goodPayload(t))) + "."
		attacks["none with the kid of the "+key.Algorithm()+" key"] = attack{none, ErrAlgorithm}
	}
	return attacks
}

func TestAPublicKeyIsNoSharedSecret(t *testing.T) {
	t.Parallel()
	keys := []Key{newTestKey(t, RS256), newTestKey(t, ES256), newTestKey(t, EdDSA)}
	v := testVerifier(keys...)
	for name, a := range disguises(t, keys...) {
		if _, err := v.Verify(a.token); !errors.Is(err, a.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestATokenOfAnotherKeyUnderThisKID(t *testing.T) {
	t.Parallel()
	for _, algorithm := range algorithms[:2] {
		key, other := newTestKey(t, algorithm), newTestKey(t, algorithm)
		if _, err := testVerifier(key).Verify(forge(t, other, goodHeader(key),
			goodPayload(t))); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func TestARefusalNeverQuotesTheToken(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, EdDSA)
	v := testVerifier(key)
	const planted = "pl4nt3d"
	for _, token := range []string{
		planted, planted + "\n" + planted, planted + "." + planted + "." + planted,
		forge(t, key, with(`"`+planted+`":1`, goodHeader(key)), goodPayload(t)),
		forge(t, key, set(t, goodHeader(key), "kid", `"`+planted+`"`), goodPayload(t)),
		forge(t, key, set(t, goodHeader(key), "alg", `"`+planted+`"`), goodPayload(t)),
		forge(t, key, set(t, goodHeader(key), "typ", `"`+planted+`"`), goodPayload(t)),
		forge(t, key, goodHeader(key), with(`"`+planted+`":1,"`+planted+`":2`, goodPayload(t))),
		forge(t, key, goodHeader(key), set(t, goodPayload(t), "iss", `"`+planted+`"`)),
		forge(t, key, goodHeader(key), set(t, goodPayload(t), "aud", `"`+planted+`"`)),
		forge(t, key, goodHeader(key), set(t, goodPayload(t), "exp", `"`+planted+`"`)),
		forge(t, key, goodHeader(key), `{"exp":`+planted+`}`),
	} {
		_, err := v.Verify(token)
		if _, ok := errors.AsType[*Refusal](err); !ok || strings.Contains(err.Error(), planted) {
			t.Errorf("%v", err)
		}
	}
}

func TestRFC8725KeysOfTheWrongKindAreNotMade(t *testing.T) {
	t.Parallel()
	ec, rsa := newTestKey(t, ES256), newTestKey(t, RS256)
	for algorithm, key := range map[string]any{ES256: rsa.public.key, RS256: ec.public.key, EdDSA: ec.public.key,
		HS256: ec.public.key, "none": []byte{}, "ES384": ec.public.key} {
		if _, err := newPublicKey("k", algorithm, key); err == nil {
			t.Errorf("%T was accepted for %s", key, algorithm)
		}
	}
	for _, algorithm := range []string{HS256, "none", "", "ES512"} {
		if _, err := Generate(algorithm); err == nil {
			t.Errorf("a key for %q was made", algorithm)
		}
	}
	if _, err := SharedKey("too short"); err == nil {
		t.Error("a short secret was accepted for HS256")
	}
}
