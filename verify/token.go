package verify

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxToken     = 8 << 10 // bytes of a whole token
	maxKID       = 64      // characters
	maxAudiences = 16

	// leeway is by how much iat and nbf may lie ahead. exp has none.
	leeway = 30 * time.Second
)

// Claims is what an access token says. Times are whole seconds in UTC.
type Claims struct {
	Issuer    string    // iss
	Subject   string    // sub: the id of the user, a UUID that is never used again
	Audience  []string  // aud
	ExpiresAt time.Time // exp: the first moment at which the token is over
	NotBefore time.Time // nbf; zero when absent
	IssuedAt  time.Time // iat
	ID        string    // jti, a UUID
	SessionID string    // sid, a UUID
	ClientID  string    // client_id: the application the person signed in to
	AuthTime  time.Time // auth_time: when the person last proved who they are

	// SessionEpoch (session_epoch) is what an end of all sessions of the account is compared with.
	SessionEpoch int64
}

// compact is a JWS in compact serialisation, taken apart and decoded (RFC 7515 §7.1).
type compact struct {
	header, payload, signature []byte
	signed                     string // what the signature covers
}

// split takes the text apart. It looks at every byte before it decodes any.
func split(token string) (compact, error) {
	if len(token) > maxToken {
		return compact{}, fmt.Errorf("longer than %d bytes", maxToken)
	}
	dots := 0
	for i := range len(token) {
		switch c := token[i]; {
		case isBase64URL(c):
		case c == '.':
			dots++
		default:
			return compact{}, errors.New("a character that is neither base64url nor a dot")
		}
	}
	if dots != 2 {
		return compact{}, fmt.Errorf("%d dots, not two", dots)
	}
	last := strings.LastIndexByte(token, '.')
	header, payload, _ := strings.Cut(token[:last], ".")
	c := compact{signed: token[:last]}
	var err error
	if c.header, err = decodeBase64(header); err != nil {
		return compact{}, fmt.Errorf("header: %w", err)
	}
	if c.payload, err = decodeBase64(payload); err != nil {
		return compact{}, fmt.Errorf("payload: %w", err)
	}
	if c.signature, err = decodeBase64(token[last+1:]); err != nil {
		return compact{}, fmt.Errorf("signature: %w", err)
	}
	return c, nil
}

func isBase64URL(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || isDigit(c) || c == '-' || c == '_'
}

var strictBase64 = base64.RawURLEncoding.Strict()

// decodeBase64 takes the one canonical form only: no padding, and no bits left over that are
// not zero. The decoder itself skips CR and LF.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("not base64url")
	}
	b, err := strictBase64.DecodeString(s)
	if err != nil {
		return nil, errors.New("not base64url in its canonical form")
	}
	return b, nil
}

// validKID reports ^[A-Za-z0-9_-]{1,64}$: a kid is a name to look up, never a path or a URL.
func validKID(kid string) bool {
	for i := range len(kid) {
		if !isBase64URL(kid[i]) {
			return false
		}
	}
	return kid != "" && len(kid) <= maxKID
}

// header is the JOSE header of an access token.
type header struct{ alg, kid, typ string }

// parseHeader takes alg, kid and typ, and nothing else: every other member of RFC 7515 either
// names a key of the sender's choice or changes how the token is read.
func parseHeader(data []byte) (header, error) {
	var h header
	err := readObject(data, func(name string, r *reader) (err error) {
		switch name {
		case "alg":
			h.alg, err = r.text()
		case "kid":
			h.kid, err = r.text()
		case "typ":
			h.typ, err = r.text()
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

// required lists the claims that every token has, as bits of what was found.
var required = []string{"iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "auth_time", "session_epoch"}

// parseClaims reads the payload of an access token. Claims that are not known are ignored.
func parseClaims(payload []byte) (Claims, error) {
	var c Claims
	found := 0
	err := readObject(payload, func(name string, r *reader) (err error) {
		switch name {
		case "iss":
			c.Issuer, err = r.text()
		case "sub":
			c.Subject, err = r.uuid()
		case "aud":
			c.Audience, err = r.texts(maxAudiences)
		case "exp":
			c.ExpiresAt, err = r.time()
		case "nbf":
			c.NotBefore, err = r.time()
		case "iat":
			c.IssuedAt, err = r.time()
		case "jti":
			c.ID, err = r.uuid()
		case "sid":
			c.SessionID, err = r.uuid()
		case "client_id":
			c.ClientID, err = r.text()
		case "auth_time":
			c.AuthTime, err = r.time()
		case "session_epoch":
			c.SessionEpoch, err = r.integer()
		default:
			return r.skip()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if i := slices.Index(required, name); i >= 0 {
			found |= 1 << i
		}
		return nil
	})
	if err != nil {
		return Claims{}, err
	}
	for i, name := range required {
		if found&(1<<i) == 0 {
			return Claims{}, fmt.Errorf("%s: missing", name)
		}
	}
	return c, nil
}

// check does everything that depends on who verifies, and when.
func (c Claims) check(issuer, audience string, now time.Time) error {
	switch {
	case c.Issuer != issuer:
		return refuse(ErrIssuer, "")
	case !slices.Contains(c.Audience, audience):
		return refuse(ErrAudience, "")
	case !c.ExpiresAt.After(c.IssuedAt):
		return refuse(ErrClaims, "exp is not after iat")
	case c.IssuedAt.After(now.Add(leeway)):
		return &Refusal{Reason: ErrNotYetValid, Detail: "issued in the future", At: c.IssuedAt}
	case c.NotBefore.After(now.Add(leeway)):
		return &Refusal{Reason: ErrNotYetValid, At: c.NotBefore}
	case !now.Before(c.ExpiresAt):
		return &Refusal{Reason: ErrExpired, At: c.ExpiresAt}
	}
	return nil
}
