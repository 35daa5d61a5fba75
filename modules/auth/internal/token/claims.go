package token

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// Claims is what an access token says. Times are whole seconds in UTC; a finer one is cut
// when it is signed.
type Claims struct {
	Issuer    string    // iss
	Subject   uuid.UUID // sub: the user
	Audience  []string  // aud: a string in the token when there is one, else an array
	ExpiresAt time.Time // exp: the first moment at which the token is over
	NotBefore time.Time // nbf: not issued, but heeded; zero when absent
	IssuedAt  time.Time // iat
	ID        uuid.UUID // jti
	SessionID uuid.UUID // sid
	ClientID  string    // client_id
	AuthTime  time.Time // auth_time: when the person last proved who they are

	// SessionEpoch (session_epoch, a private claim) is the epoch of the account under which
	// the session began. It means something to this service alone.
	SessionEpoch int64
}

// maxTime is the last second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const maxTime = 253402300799

// maxAudiences bounds the aud array.
const maxAudiences = 16

// append writes the claims as JSON, in a fixed order. It refuses what parseClaims would.
func (c Claims) append(b []byte) ([]byte, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	b, err := appendString(append(b, `{"iss":`...), c.Issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	b = appendUUID(append(b, `,"sub":`...), c.Subject)
	b = append(b, `,"aud":`...)
	for i, aud := range c.Audience {
		switch {
		case i > 0:
			b = append(b, ',')
		case len(c.Audience) > 1:
			b = append(b, '[')
		}
		if b, err = appendString(b, aud); err != nil {
			return nil, fmt.Errorf("audience: %w", err)
		}
	}
	if len(c.Audience) > 1 {
		b = append(b, ']')
	}
	b = strconv.AppendInt(append(b, `,"exp":`...), c.ExpiresAt.Unix(), 10)
	if !c.NotBefore.IsZero() {
		b = strconv.AppendInt(append(b, `,"nbf":`...), c.NotBefore.Unix(), 10)
	}
	b = strconv.AppendInt(append(b, `,"iat":`...), c.IssuedAt.Unix(), 10)
	b = appendUUID(append(b, `,"jti":`...), c.ID)
	b = appendUUID(append(b, `,"sid":`...), c.SessionID)
	if b, err = appendString(append(b, `,"client_id":`...), c.ClientID); err != nil {
		return nil, fmt.Errorf("client id: %w", err)
	}
	b = strconv.AppendInt(append(b, `,"auth_time":`...), c.AuthTime.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"session_epoch":`...), c.SessionEpoch, 10)
	return append(b, '}'), nil
}

// complete says what is missing or impossible.
func (c Claims) complete() error {
	valid := func(t time.Time) bool { return t.Unix() >= 0 && t.Unix() <= maxTime }
	switch {
	case c.Issuer == "":
		return errors.New("no issuer")
	case c.Subject == uuid.Nil:
		return errors.New("no subject")
	case len(c.Audience) == 0 || len(c.Audience) > maxAudiences || slices.Contains(c.Audience, ""):
		return fmt.Errorf("not one to %d audiences, none of them empty", maxAudiences)
	case c.ID == uuid.Nil:
		return errors.New("no token id")
	case c.SessionID == uuid.Nil:
		return errors.New("no session id")
	case c.ClientID == "":
		return errors.New("no client id")
	case !valid(c.ExpiresAt), !valid(c.IssuedAt), !valid(c.AuthTime), !c.NotBefore.IsZero() && !valid(c.NotBefore):
		return errors.New("a time is missing, or not from 1970 to 9999")
	case c.SessionEpoch < 0:
		return errors.New("a session epoch below zero")
	}
	return nil
}

func appendString(b []byte, s string) ([]byte, error) { return jsontext.AppendQuote(b, s) }

func appendUUID(b []byte, id uuid.UUID) []byte {
	return append(append(append(b, '"'), id.String()...), '"')
}

func parseClaims(payload []byte) (Claims, error) {
	var c Claims
	// The standard claims are required whatever they hold, so that their presence is counted
	// apart from their values.
	missing := []string{"iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "auth_time", "session_epoch"}
	err := readObject(payload, func(name string, v value) (err error) {
		switch name {
		case "iss":
			c.Issuer, err = v.text()
		case "sub":
			c.Subject, err = v.uuid()
		case "aud":
			c.Audience, err = v.texts(maxAudiences)
		case "exp":
			c.ExpiresAt, err = v.time()
		case "nbf":
			c.NotBefore, err = v.time()
		case "iat":
			c.IssuedAt, err = v.time()
		case "jti":
			c.ID, err = v.uuid()
		case "sid":
			c.SessionID, err = v.uuid()
		case "client_id":
			c.ClientID, err = v.text()
		case "auth_time":
			c.AuthTime, err = v.time()
		case "session_epoch":
			c.SessionEpoch, err = v.integer()
		default:
			return v.skip()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if i := slices.Index(missing, name); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		}
		return nil
	})
	if err != nil {
		return Claims{}, err
	}
	if len(missing) > 0 {
		return Claims{}, fmt.Errorf("%s: missing", missing[0])
	}
	return c, nil
}
