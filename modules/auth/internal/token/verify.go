package token

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Why a token was refused. A [Refusal] wraps one of them.
var (
	ErrMalformed   = errors.New("malformed token")
	ErrType        = errors.New("not an access token")
	ErrUnknownKey  = errors.New("unknown key")
	ErrAlgorithm   = errors.New("wrong algorithm")
	ErrSignature   = errors.New("bad signature")
	ErrClaims      = errors.New("bad claims")
	ErrIssuer      = errors.New("wrong issuer")
	ErrAudience    = errors.New("wrong audience")
	ErrNotYetValid = errors.New("not yet valid")
	ErrExpired     = errors.New("expired")
)

// Refusal is the error of [Verifier.Verify] and [VerifyJWS]. Its text is for operators and
// logs: it never quotes the token.
type Refusal struct {
	Reason error     // one of the sentinels
	Detail string    // what exactly; may be empty
	At     time.Time // of ErrExpired and ErrNotYetValid: the moment in question
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Reason.Error()
	}
	return r.Reason.Error() + ": " + r.Detail
}

func (r *Refusal) Unwrap() error { return r.Reason }

// Leeway is by how much iat and nbf may lie ahead. For exp there is none.
const Leeway = 30 * time.Second

// Verifier decides which access tokens are accepted. All fields but Cache must be set. It is safe for
// concurrent use and must not change once it is in use.
type Verifier struct {
	Issuer    string
	Audiences []string // one of them must be among the token's
	Now       func() time.Time

	// Key returns the key of a kid if it may verify at this moment. It is asked on every
	// call, with a kid that has the right form.
	Key func(kid string) (PublicKey, bool)

	// Cache, if there is one, remembers whose signature was good.
	Cache *Cache
}

// Verify returns the claims of a token that is good now, else a [*Refusal].
func (v *Verifier) Verify(token string) (Claims, error) {
	var digest [sha256.Size]byte
	if v.Cache != nil && len(token) <= maxToken {
		digest = sha256.Sum256([]byte(token))
		if e, ok := v.Cache.get(digest); ok {
			// The signature was good under this key; whether the key is still published is asked again.
			if key, ok := v.Key(e.key.kid); ok && key.Equal(e.key) {
				return v.validate(e.claims)
			}
			v.Cache.drop(digest)
		}
	}
	claims, key, err := v.read(token)
	if err != nil {
		return Claims{}, err
	}
	if v.Cache != nil {
		v.Cache.put(digest, entry{claims: claims, key: key})
	}
	return v.validate(claims)
}

// read does everything that depends on the token and its key alone.
func (v *Verifier) read(token string) (Claims, PublicKey, error) {
	refuse := func(reason error, detail string) (Claims, PublicKey, error) {
		return Claims{}, PublicKey{}, &Refusal{Reason: reason, Detail: detail}
	}
	c, err := split(token)
	if err != nil {
		return refuse(ErrMalformed, err.Error())
	}
	h, err := parseHeader(c.header)
	if err != nil {
		return refuse(ErrMalformed, "header: "+err.Error())
	}
	if !isAccessToken(h.typ) {
		return refuse(ErrType, "typ is not at+jwt")
	}
	key, ok := v.Key(h.kid)
	if !ok {
		return refuse(ErrUnknownKey, "")
	}
	if key.algorithm != h.alg {
		return refuse(ErrAlgorithm, "the key is for "+key.algorithm)
	}
	if !key.verify(c.signed, c.signature) {
		return refuse(ErrSignature, "")
	}
	claims, err := parseClaims(c.payload)
	if err != nil {
		return refuse(ErrClaims, err.Error())
	}
	return claims, key, nil
}

// validate checks everything that depends on who verifies, and when.
func (v *Verifier) validate(c Claims) (Claims, error) {
	now := v.Now()
	switch {
	case c.Issuer != v.Issuer || v.Issuer == "":
		return Claims{}, &Refusal{Reason: ErrIssuer}
	case !slices.ContainsFunc(c.Audience,
		func(aud string) bool { return aud != "" && slices.Contains(v.Audiences, aud) }):
		return Claims{}, &Refusal{Reason: ErrAudience}
	case !c.ExpiresAt.After(c.IssuedAt):
		return Claims{}, &Refusal{Reason: ErrClaims, Detail: "exp is not after iat"}
	case c.IssuedAt.After(now.Add(Leeway)):
		return Claims{}, &Refusal{Reason: ErrNotYetValid, Detail: "issued in the future", At: c.IssuedAt}
	case c.NotBefore.After(now.Add(Leeway)):
		return Claims{}, &Refusal{Reason: ErrNotYetValid, At: c.NotBefore}
	case !now.Before(c.ExpiresAt):
		return Claims{}, &Refusal{Reason: ErrExpired, At: c.ExpiresAt}
	}
	c.Audience = slices.Clone(c.Audience) // the cache keeps its own
	return c, nil
}

// header is the JOSE header of an access token.
type header struct{ alg, kid, typ string }

// parseHeader takes alg, kid and typ, and nothing else: what is not known cannot be heeded,
// and every other member of RFC 7515 either names a key of the sender's choice or changes
// how the token is read.
func parseHeader(data []byte) (header, error) {
	var h header
	err := readObject(data, func(name string, v value) (err error) {
		switch name {
		case "alg":
			h.alg, err = v.text()
		case "kid":
			h.kid, err = v.text()
		case "typ":
			h.typ, err = v.text()
		default:
			return errors.New("a member that is not accepted")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return header{}, err
	case h.alg == "":
		return header{}, errors.New("no alg")
	case h.typ == "":
		return header{}, errors.New("no typ")
	case !validKID(h.kid):
		return header{}, errors.New("no kid of 1 to 64 letters, digits, _ and -")
	}
	return h, nil
}

// isAccessToken follows RFC 9068 §4; media types are compared without case (RFC 7515 §4.1.9).
func isAccessToken(typ string) bool {
	return strings.EqualFold(typ, "at+jwt") || strings.EqualFold(typ, "application/at+jwt")
}
