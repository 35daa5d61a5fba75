package verify

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// plain makes a verifier that only checks signatures and claims.
func plain(i *issuer) Config {
	cfg := testConfig(i)
	cfg.Client, cfg.Stale = Client{}, Accept
	return cfg
}

func TestEachAlgorithmIsVerified(t *testing.T) {
	t.Parallel()
	keys := []signer{newSigner(t, "e", "ES256"), newSigner(t, "d", "EdDSA"), newSigner(t, "r", "RS256")}
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, keys...)
		v := start(t, plain(i))
		for _, key := range keys {
			token := i.tokenOf(key, id(1), id(2), 7, time.Hour)
			c, err := v.Check(t.Context(), token)
			if err != nil {
				t.Fatalf("%s: %v", key.algorithm, err)
			}
			now := time.Now().UTC().Truncate(time.Second)
			if c.Subject != id(1) || c.SessionID != id(2) || c.ID != id(999) || c.SessionEpoch != 7 ||
				c.ClientID != "web" ||
				!c.IssuedAt.Equal(now) || !c.AuthTime.Equal(now) || !c.ExpiresAt.Equal(now.Add(time.Hour)) ||
				!c.NotBefore.IsZero() ||
				len(c.Audience) != 1 || c.Audience[0] != testAudience || c.Issuer != testIssuer {
				t.Errorf("%s: %+v", key.algorithm, c)
			}
			middle, other := len(token)-20, "A" // of the signature
			if token[middle] == 'A' {
				other = "B"
			}
			want(t, v, token[:middle]+other+token[middle+1:], ErrSignature)
		}
		if lag := v.Lag(); lag != Infinite {
			t.Errorf("without credentials the lag is %v", lag)
		}
	})
}

// RFC 8414 §3.1 puts the path of the issuer after the well-known one.
func TestWhereTheMetadataIs(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"https://auth.example.com":          "https://auth.example.com/.well-known/oauth-authorization-server",
		"https://auth.example.com/":         "https://auth.example.com/.well-known/oauth-authorization-server",
		"https://example.com:8443/a/b":      "https://example.com:8443/.well-known/oauth-authorization-server/a/b",
		"http://[::1]:8080/auth/":           "http://[::1]:8080/.well-known/oauth-authorization-server/auth",
		"https://auth.example.com/te~n.a-t": "https://auth.example.com/.well-known/oauth-authorization-server/te~n.a-t",
	} {
		if got, err := metadataURL(base); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", base, got, err, want)
		}
	}
}

func TestMetadataOfAnotherIssuerIsRefused(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, key)
		cfg := plain(i)
		cfg.Issuer = testIssuer + "/" // the same place, but another issuer
		v := start(t, cfg)
		_, err := v.Check(t.Context(), i.token(id(1), id(2), 1))
		if !errors.Is(err, ErrNoKeys) || !Unknowable(err) || !strings.Contains(err.Error(), "is of the issuer") {
			t.Errorf("%v", err)
		}
		if n := i.count(jwksPath); n != 0 {
			t.Errorf("the keys were fetched %d times", n)
		}
	})
}

func TestEndpointsOnOtherServers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ issuer, base, endpoint, want string }{
		{"https://a.example", "", "https://a.example/oauth2/x", "https://a.example/oauth2/x"},
		{"https://a.example", "http://10.0.0.1:8080", "https://a.example/oauth2/x", "http://10.0.0.1:8080/oauth2/x"},
		{"https://a.example/auth", "http://10.0.0.1:8080", "https://a.example/auth/oauth2/x",
			"http://10.0.0.1:8080/oauth2/x"},
		{"https://a.example/auth", "https://b.example/auth/", "https://a.example/auth/x", "https://b.example/auth/x"},
		{"https://a.example", "https://b.example", "https://keys.example/k", "https://keys.example/k"},
		{"https://a.example", "", "", ""},
		{"https://a.example", "", "http://a.example/x", "refused"}, // no longer https
		{"https://a.example", "", "file:///etc/passwd", "refused"},
		{"https://a.example", "", "https://u:p@a.example/x", "refused"},
		{"https://a.example", "", "/x", "refused"},
		{"http://a.internal", "", "http://a.internal/x", "http://a.internal/x"},
	} {
		s := &server{base: c.base, own: c.base == ""}
		if s.own {
			s.base = c.issuer
		}
		got, err := s.resolve(c.issuer, c.endpoint)
		if err != nil {
			got = "refused"
		}
		if got != c.want {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
}

// 10,000 unknown key ids cost the issuer two requests a minute, and do not delay tokens with a
// known key.
func TestAFloodOfUnknownKeys(t *testing.T) {
	t.Parallel()
	known, flooder := newSigner(t, "known", "EdDSA"), newSigner(t, "x", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, known)
		i.maxAge = 3600
		v := start(t, plain(i))
		if err := v.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		good := i.token(id(1), id(2), 1)
		begun, before := time.Now(), i.count(jwksPath)
		n := 0
		for minute := range 3 {
			var wg sync.WaitGroup
			for range 60 {
				for range 170 {
					n++
					flooder.kid = fmt.Sprintf("unknown-%d", n)
					token := i.tokenOf(flooder, id(1), id(2), 1, time.Hour)
					wg.Go(func() { want(t, v, token, ErrUnknownKey) })
				}
				was := time.Now()
				want(t, v, good, nil)
				if waited := time.Since(was); waited != 0 {
					t.Errorf("the good token waited %v", waited)
				}
				time.Sleep(time.Second)
			}
			wg.Wait()
			if fetched := i.count(jwksPath) - before; fetched > 2*(minute+1) {
				t.Errorf("%d fetches in %v", fetched, time.Since(begun))
			}
		}
		if fetched := i.count(jwksPath) - before; n < 10_000 || fetched < 4 {
			t.Errorf("%d unknown keys and %d fetches are too few for this test", n, fetched)
		}
	})
}

// While a fetch for an unknown key hangs, tokens with known keys do not wait for it.
func TestAKnownKeyNeverWaits(t *testing.T) {
	t.Parallel()
	known, other := newSigner(t, "known", "EdDSA"), newSigner(t, "other", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, known)
		v := start(t, plain(i))
		if err := v.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		i.set(func() {
			i.disturb = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		})
		good, unknown := i.token(id(1), id(2), 1), i.tokenOf(other, id(1), id(2), 1, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, v, unknown, ErrUnknownKey) })
		synctest.Wait()
		was := time.Now()
		want(t, v, good, nil)
		if waited := time.Since(was); waited != 0 {
			t.Errorf("the known key waited %v", waited)
		}
		wg.Wait()
		if waited := time.Since(was); waited > firstWait {
			t.Errorf("the unknown key waited %v", waited)
		}
	})
}

// A new key is found when the first token with it comes.
func TestANewKeyIsFoundAtOnce(t *testing.T) {
	t.Parallel()
	first, second := newSigner(t, "first", "EdDSA"), newSigner(t, "second", "ES256")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, first)
		v := start(t, plain(i))
		want(t, v, i.token(id(1), id(2), 1), nil)
		i.set(func() { i.keys = append(i.keys, second) })
		token := i.token(id(1), id(2), 1)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { want(t, v, token, nil) })
		}
		wg.Wait()
		if n := i.count(jwksPath); n != 2 {
			t.Errorf("%d fetches", n)
		}
	})
}

// authctl publishes keys for their max-age before they sign, so verifiers have them in time and
// refuse nothing, however often the keys change.
func TestRotationEveryTwoSeconds(t *testing.T) {
	t.Parallel()
	var keys []signer
	for n := range 60 {
		keys = append(keys, newSigner(t, fmt.Sprintf("k%d", n), "EdDSA"))
	}
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, keys[0], keys[1])
		i.maxAge = 2
		v := start(t, plain(i))
		if err := v.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for n := 1; n < len(keys)-1; n++ {
			// The signing key and the next one; the last one stays for its tokens.
			i.set(func() { i.keys = keys[n-1 : n+2] })
			for range 20 {
				want(t, v, i.tokenOf(keys[n], id(1), id(2), 1, time.Hour), nil)
				want(t, v, i.tokenOf(keys[n-1], id(1), id(2), 1, time.Hour), nil)
				time.Sleep(100 * time.Millisecond)
			}
		}
	})
}

func TestKeysAreKeptThroughAnOutage(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	answers := map[string]func(w http.ResponseWriter, r *http.Request){
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"500":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"404":   http.NotFound,
		"a page": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<html>sign in to the Wi-Fi</html>"))
		},
		"no keys": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"half":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[{"kty":"OKP"`)) },
		"two":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}{"keys":[]}`)) },
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[]}` + strings.Repeat(" ", 1<<20)))
		},
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/", http.StatusFound)
		},
		"304":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"empty": func(http.ResponseWriter, *http.Request) {},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(t, key)
				var m metrics
				cfg := plain(i)
				cfg.Metric = m.add
				evil := 0
				cfg.Transport.(*direct).set("evil.example", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					evil++
				}))
				v := start(t, cfg)
				want(t, v, i.token(id(1), id(2), 1), nil)
				i.set(func() {
					i.disturb = func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true }
				})
				time.Sleep(2 * time.Hour)
				want(t, v, i.token(id(1), id(2), 1), nil)
				if m.get(MetricKeyErrors) < 50 {
					t.Errorf("only %v errors", m.get(MetricKeyErrors))
				}
				i.set(func() { i.disturb = nil })
				before := m.get(MetricKeyErrors)
				time.Sleep(time.Hour)
				if after := m.get(MetricKeyErrors); after > before+1 {
					t.Errorf("%v errors after the end of the outage", after-before)
				}
				if evil != 0 {
					t.Error("a redirect was followed")
				}
			})
		})
	}
}

// Before the first fetch of the keys a token cannot be judged, which is not a refusal.
func TestAnIssuerThatIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, key)
		cfg := plain(i)
		network := cfg.Transport.(*direct)
		network.set("auth.example.com", nil)
		v := start(t, cfg)
		_, err := v.Check(t.Context(), i.token(id(1), id(2), 1))
		if !errors.Is(err, ErrNoKeys) || !Unknowable(err) {
			t.Errorf("%v", err)
		}
		time.Sleep(10 * time.Minute)
		network.set("auth.example.com", i)
		time.Sleep(3 * time.Second) // nothing works without keys: they are not waited for longer
		want(t, v, i.token(id(1), id(2), 1), nil)
	})
}

func TestKeysThatAreNotTaken(t *testing.T) {
	t.Parallel()
	const ec = `"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"`
	const okp = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`
	rsaOf := func(bytes int) string {
		return `"kty":"RSA","e":"AQAB","n":"` + encode([]byte(strings.Repeat("\xff", bytes))) + `"`
	}
	for name, c := range map[string]struct {
		members string
		taken   bool
	}{
		"EC":                   {ec, true},
		"EC for ES256":         {ec + `,"alg":"ES256","use":"sig","key_ops":["verify"],"x5c":["MIIB"]`, true},
		"EC for HS256":         {ec + `,"alg":"HS256"`, false},
		"EC for encryption":    {ec + `,"use":"enc"`, false},
		"EC, use not a string": {ec + `,"use":["sig"]`, false},
		"EC that signs alone":  {ec + `,"key_ops":["sign"]`, false},
		"EC that does nothing": {ec + `,"key_ops":[]`, false},
		"EC, odd key_ops":      {ec + `,"key_ops":"verify"`, false},
		"EC, odder key_ops":    {ec + `,"key_ops":["verify",1]`, false},
		"EC of two uses":       {ec + `,"key_ops":["encrypt","verify"]`, true},
		"EC off the curve":     {strings.Replace(ec, "f83O", "g83O", 1), false},
		"EC with a short x": {strings.Replace(ec, "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "f83OJ3D2xF1B",
			1), false},
		"EC at infinity": {`"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` +
			strings.Repeat("A", 43) + `"`, false},
		"EC without y":          {strings.Split(ec, `,"y"`)[0], false},
		"EC with padding":       {strings.Replace(ec, "RVEU", "RVEU=", 1), false},
		"EC with a newline":     {strings.Replace(ec, "RVEU", `RVE\nU`, 1), false},
		"EC on P-384":           {strings.Replace(ec, "P-256", "P-384", 1), false},
		"OKP":                   {okp, true},
		"OKP X25519":            {strings.Replace(okp, "Ed25519", "X25519", 1), false},
		"OKP for ES256":         {okp + `,"alg":"ES256"`, false},
		"OKP too short":         {strings.Replace(okp, "11qYAYKxCrfVS", "11qYAYKxC", 1), false},
		"RSA 3072":              {rsaOf(384), true},
		"RSA 2048":              {rsaOf(256), false},
		"RSA 8192":              {rsaOf(1024), true},
		"RSA 8200":              {rsaOf(1025), false},
		"RSA for PS256":         {rsaOf(384) + `,"alg":"PS256"`, false},
		"RSA e of 1":            {strings.Replace(rsaOf(384), "AQAB", "AQ", 1), false},
		"RSA even e":            {strings.Replace(rsaOf(384), "AQAB", "Ag", 1), false},
		"RSA huge e":            {strings.Replace(rsaOf(384), "AQAB", "AQAAAAE", 1), false},
		"RSA leading zero":      {strings.Replace(rsaOf(384), "AQAB", "AAEAAQ", 1), false},
		"a symmetric key":       {`"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"`, false},
		"a type of the future":  {`"kty":"AKP","alg":"ML-DSA-65","pub":"AA"`, false},
		"no type":               {`"x":"AA"`, false},
		"kty in another casing": {strings.Replace(ec, "kty", "KTY", 1), false},
	} {
		set, err := parseJWKS([]byte(`{"keys":[{"kid":"k",` + c.members + `}]}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, taken := set["k"]; taken != c.taken {
			t.Errorf("%s: accepted %v; want %v", name, taken, c.taken)
		}
	}
	const key = `{"kid":"k",` + okp + `}`
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
		"a single key":   key,
	} {
		if set, err := parseJWKS([]byte(text)); err == nil {
			t.Errorf("%s: read %v", name, set.kids())
		}
	}
	set, err := parseJWKS([]byte(`{"keys":[1,null,"x",[],{` + okp + `},{"kid":"a/b",` + okp + `},` + key + `],"x":1}`))
	if err != nil || len(set) != 1 {
		t.Errorf("next to what is no key: %v, %v", set.kids(), err)
	}
}

func TestHowLongKeysAreUsed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"":                               defaultMaxAge,
		"no-store":                       defaultMaxAge,
		"public, max-age=300":            300 * time.Second,
		"MAX-AGE=60, public":             time.Minute,
		"max-age=0":                      time.Second,
		"max-age=99999999":               longestMaxAge,
		"max-age=9223372037":             longestMaxAge, // in nanoseconds more than 63 bits
		"max-age=9223372036854775807":    longestMaxAge,
		"max-age=99999999999999999999":   longestMaxAge,
		"max-age=-99999999999999999999":  defaultMaxAge,
		"max-age=x":                      defaultMaxAge,
		`max-age="10"`:                   10 * time.Second,
		"s-maxage=5, max-age=7, private": 7 * time.Second,
	} {
		if got := maxAge(http.Header{"Cache-Control": {text}}); got != want {
			t.Errorf("%s: %v; want %v", text, got, want)
		}
	}
	// A cache on the way has kept them for a while.
	for age, want := range map[string]time.Duration{
		"0": 300 * time.Second, "100": 200 * time.Second, "-100": 300 * time.Second, "x": 300 * time.Second,
		"299": unknownEvery, "9000": unknownEvery, "99999999999999999999": 300 * time.Second,
	} {
		if got := maxAge(http.Header{"Cache-Control": {"max-age=300"}, "Age": {age}}); got != want {
			t.Errorf("of the age %s: %v; want %v", age, got, want)
		}
	}
	if got := maxAge(http.Header{"Cache-Control": {"max-age=1"}, "Age": {"5"}}); got != time.Second {
		t.Errorf("a second, and older: %v", got)
	}
	if got := maxAge(http.Header{"Cache-Control": {"max-age=86400"}, "Age": {"7200"}}); got != longestMaxAge {
		t.Errorf("of a day, of which two hours are over: %v", got)
	}
}
