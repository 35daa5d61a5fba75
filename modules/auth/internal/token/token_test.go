package token

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/config"
)

const testSecret = config.Secret("0123456789abcdef0123456789abcdef")

var algorithms = []string{ES256, EdDSA, RS256, HS256}

func newTestKey(t testing.TB, algorithm string) Key {
	t.Helper()
	var key Key
	var err error
	if algorithm == HS256 {
		key, err = SharedKey(testSecret)
	} else {
		key, err = Generate(algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testNow() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 500_000_000, time.UTC) }

func testClaims() Claims {
	now := testNow().Truncate(time.Second)
	return Claims{
		Issuer: "https://auth.example.com", Audience: []string{"api"}, ClientID: "web",
		Subject:   uuid.MustParse("018f3c5e-7b6a-7000-8000-000000000001"),
		ID:        uuid.MustParse("018f3c5e-7b6a-7000-8000-000000000002"),
		SessionID: uuid.MustParse("018f3c5e-7b6a-7000-8000-000000000003"),
		IssuedAt:  now, AuthTime: now.Add(-time.Hour), ExpiresAt: now.Add(5 * time.Hour), SessionEpoch: 7,
	}
}

func testVerifier(keys ...Key) *Verifier {
	return &Verifier{
		Issuer: "https://auth.example.com", Audiences: []string{"api"}, Now: testNow,
		Key: func(kid string) (PublicKey, bool) {
			for _, k := range keys {
				if k.KID() == kid {
					return k.Public(), true
				}
			}
			return PublicKey{}, false
		},
	}
}

func mustSign(t testing.TB, key Key, c Claims) string {
	t.Helper()
	token, err := key.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// alter replaces the base64url character at i by another one.
func alter(token string, i int) string {
	c := byte('A')
	if token[i] == c {
		c = 'Q'
	}
	return token[:i] + string(c) + token[i+1:]
}

func TestWhatIsSignedIsVerified(t *testing.T) {
	t.Parallel()
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			key := newTestKey(t, algorithm)
			want := testClaims()
			token := mustSign(t, key, want)
			got, err := testVerifier(key).Verify(token)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
			c, err := split(token)
			if err != nil {
				t.Fatal(err)
			}
			if want := `{"alg":"` + algorithm + `","kid":"` + key.KID() + `","typ":"at+jwt"}`; string(c.header) != want {
				t.Errorf("header %s; want %s", c.header, want)
			}
			want.Audience, want.NotBefore = []string{"other", "api"}, want.IssuedAt
			if got, err := testVerifier(key).Verify(mustSign(t, key, want)); err != nil ||
				!reflect.DeepEqual(got, want) {
				t.Errorf("with two audiences: got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestTheClaimsOnTheWire(t *testing.T) {
	t.Parallel()
	got, err := testClaims().append(nil)
	want := `{"iss":"https://auth.example.com","sub":"018f3c5e-7b6a-7000-8000-000000000001","aud":"api","exp":1795539600,"iat":1795521600,` +
		`"jti":"018f3c5e-7b6a-7000-8000-000000000002","sid":"018f3c5e-7b6a-7000-8000-000000000003","client_id":"web","auth_time":1795518000,"session_epoch":7}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestTimesAreJudgedToTheSecond(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, EdDSA)
	c := testClaims()
	token := mustSign(t, key, c)
	future := c
	future.IssuedAt, future.NotBefore = c.IssuedAt.Add(20*time.Second), c.IssuedAt.Add(90*time.Second)
	ahead := mustSign(t, key, future)
	for name, tc := range map[string]struct {
		token string
		at    time.Time
		want  error
	}{
		"last moment":              {token, c.ExpiresAt.Add(-1), nil},
		"expired":                  {token, c.ExpiresAt, ErrExpired},
		"issued within the leeway": {token, c.IssuedAt.Add(-30 * time.Second), nil},
		"issued in the future":     {token, c.IssuedAt.Add(-31 * time.Second), ErrNotYetValid},
		"nbf within the leeway":    {ahead, future.NotBefore.Add(-30 * time.Second), nil},
		"nbf in the future":        {ahead, future.NotBefore.Add(-31 * time.Second), ErrNotYetValid},
	} {
		v := testVerifier(key)
		v.Now = func() time.Time { return tc.at }
		if _, err := v.Verify(tc.token); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v; want %v", name, err, tc.want)
		}
	}
	v := testVerifier(key)
	v.Now = func() time.Time { return c.ExpiresAt.Add(3 * time.Minute) }
	_, err := v.Verify(token)
	if refusal, ok := errors.AsType[*Refusal](err); !ok || !refusal.At.Equal(c.ExpiresAt) {
		t.Errorf("an expired token: %v; want a refusal that says when it expired", err)
	}
}

func TestSignRefusesWhatVerifyWould(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, ES256)
	for name, change := range map[string]func(*Claims){
		"no issuer":          func(c *Claims) { c.Issuer = "" },
		"no subject":         func(c *Claims) { c.Subject = uuid.Nil },
		"no audience":        func(c *Claims) { c.Audience = nil },
		"empty audience":     func(c *Claims) { c.Audience = []string{"api", ""} },
		"many audiences":     func(c *Claims) { c.Audience = make([]string, 17) },
		"no expiry":          func(c *Claims) { c.ExpiresAt = time.Time{} },
		"expiry out of time": func(c *Claims) { c.ExpiresAt = time.Unix(maxTime+1, 0) },
		"no issue time":      func(c *Claims) { c.IssuedAt = time.Time{} },
		"no auth time":       func(c *Claims) { c.AuthTime = time.Time{} },
		"nbf before 1970":    func(c *Claims) { c.NotBefore = time.Unix(-1, 0) },
		"no id":              func(c *Claims) { c.ID = uuid.Nil },
		"no session":         func(c *Claims) { c.SessionID = uuid.Nil },
		"no client":          func(c *Claims) { c.ClientID = "" },
		"negative epoch":     func(c *Claims) { c.SessionEpoch = -1 },
		"not UTF-8":          func(c *Claims) { c.Issuer = "\xff" },
		"too long":           func(c *Claims) { c.ClientID = strings.Repeat("x", maxToken) },
	} {
		c := testClaims()
		change(&c)
		if token, err := key.Sign(c); err == nil {
			t.Errorf("%s: signed %s", name, token)
		}
	}
	if _, err := (Key{}).Sign(testClaims()); err == nil {
		t.Error("the zero key signed")
	}
}

func TestKeysPrintAsTheirNames(t *testing.T) {
	t.Parallel()
	for _, algorithm := range algorithms {
		key := newTestKey(t, algorithm)
		want := "[" + algorithm + " key " + key.KID() + "]"
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			for _, v := range []any{key, &key, key.Public()} {
				if got := fmt.Sprintf(verb, v); got != want {
					t.Errorf("%s: %s", verb, got)
				}
			}
		}
	}
}
