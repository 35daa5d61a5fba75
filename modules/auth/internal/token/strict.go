package token

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

const (
	maxToken = 8 << 10 // bytes of a whole token
	maxDepth = 8       // nested JSON
	maxKID   = 64      // characters
)

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
		case isBase64(rune(c)):
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

// decodeBase64 takes the one canonical form only: no padding, and no bits left over that
// are not zero. The decoder itself skips CR and LF, which no caller lets through.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("not base64url")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not base64url in its canonical form")
	}
	return b, nil
}

func encodeBase64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// validKID reports ^[A-Za-z0-9_-]{1,64}$: a kid is a name to look up, never a path, a query
// or a URL.
func validKID(kid string) bool {
	return kid != "" && len(kid) <= maxKID && !strings.ContainsFunc(kid, func(r rune) bool { return !isBase64(r) })
}

func isBase64(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

// readObject calls member for each member of the one JSON object that data must be. Names
// come once, compared with case and after unescaping; text is UTF-8. member must read or
// skip the value.
func readObject(data []byte, member func(name string, v value) error) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(data))
	open, err := dec.ReadToken()
	if err != nil {
		return jsonProblem(err)
	}
	if open.Kind() != '{' {
		return errors.New("not a JSON object")
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return jsonProblem(err)
		}
		if err := member(name.String(), value{dec}); err != nil {
			return err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return jsonProblem(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something after the JSON object")
	}
	return nil
}

// jsonProblem says in our words what is wrong: the decoder's words quote the text, which the sender of
// the token chose.
func jsonProblem(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return errors.New("a name that comes twice")
	}
	return errors.New("not JSON that is accepted")
}

// value is the next value of the decoder.
type value struct{ dec *jsontext.Decoder }

// skip reads any value, nested no deeper than is accepted.
func (v value) skip() error {
	for outside := v.dec.StackDepth(); ; {
		if _, err := v.dec.ReadToken(); err != nil {
			return jsonProblem(err)
		}
		switch depth := v.dec.StackDepth(); {
		case depth > maxDepth:
			return fmt.Errorf("nested deeper than %d", maxDepth)
		case depth == outside:
			return nil
		}
	}
}

// text reads a string that is not empty.
func (v value) text() (string, error) {
	if kind := v.dec.PeekKind(); kind != '"' {
		return "", v.wrong("a string")
	}
	tok, err := v.dec.ReadToken()
	if err != nil {
		return "", jsonProblem(err)
	}
	if s := tok.String(); s != "" {
		return s, nil
	}
	return "", errors.New("empty")
}

// texts reads a string, or an array of 1 to limit strings.
func (v value) texts(limit int) ([]string, error) {
	if v.dec.PeekKind() != '[' {
		if v.dec.PeekKind() != '"' {
			return nil, v.wrong("a string or an array of strings")
		}
		s, err := v.text()
		return []string{s}, err
	}
	if _, err := v.dec.ReadToken(); err != nil {
		return nil, jsonProblem(err)
	}
	var list []string
	for v.dec.PeekKind() != ']' {
		s, err := v.text()
		if err != nil {
			return nil, err
		}
		if len(list) == limit {
			return nil, fmt.Errorf("more than %d", limit)
		}
		list = append(list, s)
	}
	if _, err := v.dec.ReadToken(); err != nil {
		return nil, jsonProblem(err)
	}
	if len(list) == 0 {
		return nil, errors.New("empty")
	}
	return list, nil
}

// uuid reads a UUID in its canonical form, not all zeros.
func (v value) uuid() (uuid.UUID, error) {
	s, err := v.text()
	if err != nil {
		return uuid.Nil, err
	}
	id, err := uuid.Parse(s)
	if err != nil || id == uuid.Nil || id.String() != s {
		return uuid.Nil, errors.New("not a UUID in canonical form")
	}
	return id, nil
}

// integer reads a number written with digits alone, 0 or more. A number with a fraction or
// an exponent is refused even where its value is whole: what is signed here has none.
func (v value) integer() (int64, error) {
	if v.dec.PeekKind() != '0' {
		return 0, v.wrong("a number")
	}
	tok, err := v.dec.ReadToken()
	if err != nil {
		return 0, jsonProblem(err)
	}
	n, err := strconv.ParseInt(tok.String(), 10, 64)
	if err != nil || n < 0 || tok.String()[0] == '-' {
		return 0, errors.New("not a whole number from 0 to 2^63-1")
	}
	return n, nil
}

// time reads a NumericDate (RFC 7519 §2) in whole seconds.
func (v value) time() (time.Time, error) {
	n, err := v.integer()
	if err != nil {
		return time.Time{}, err
	}
	if n > maxTime {
		return time.Time{}, errors.New("later than the year 9999")
	}
	return time.Unix(n, 0).UTC(), nil
}

// wrong tells broken JSON, which PeekKind does not, from a value of another type.
func (v value) wrong(want string) error {
	if v.dec.PeekKind() == 0 {
		return v.skip()
	}
	return fmt.Errorf("not %s", want)
}
