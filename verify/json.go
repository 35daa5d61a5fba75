package verify

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep JSON may be nested, the outermost object included.
const maxDepth = 8

var errNotJSON = errors.New("not JSON that is accepted")

// reader reads JSON by the strictest rules (RFC 7493): each name of an object once, compared
// with case and after unescaping, and text that is UTF-8. encoding/json takes duplicates,
// other case and broken UTF-8. Its errors never quote the text, which the sender chose.
type reader struct {
	data  []byte
	at    int
	depth int
}

// readObject calls member for each member of the one JSON object that data must be. member
// must read or skip the value.
func readObject(data []byte, member func(name string, r *reader) error) error {
	r := &reader{data: data}
	if err := r.object(member); err != nil {
		return err
	}
	if r.peek() != 0 || r.at != len(data) {
		return errors.New("something after the JSON object")
	}
	return nil
}

// peek skips white space and returns the byte after it, zero at the end.
func (r *reader) peek() byte {
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *reader) take(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

func (r *reader) enter() error {
	if r.depth++; r.depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	return nil
}

func (r *reader) object(member func(name string, r *reader) error) error {
	if r.peek() != '{' {
		return r.wrong("a JSON object")
	}
	r.at++
	if err := r.enter(); err != nil {
		return err
	}
	defer func() { r.depth-- }()
	if r.take('}') {
		return nil
	}
	var few []string // names so far
	var many map[string]struct{}
	for {
		if r.peek() != '"' {
			return errNotJSON
		}
		name, err := r.str()
		if err != nil {
			return err
		}
		_, twice := many[name]
		if twice || slices.Contains(few, name) {
			return errors.New("a name that comes twice")
		}
		switch {
		case len(few) < 16:
			few = append(few, name)
		case many == nil:
			many = map[string]struct{}{name: {}}
		default:
			many[name] = struct{}{}
		}
		if !r.take(':') {
			return errNotJSON
		}
		if err := member(name, r); err != nil {
			return err
		}
		if r.take('}') {
			return nil
		}
		if !r.take(',') {
			return errNotJSON
		}
	}
}

func (r *reader) array(element func(r *reader) error) error {
	if r.peek() != '[' {
		return r.wrong("an array")
	}
	r.at++
	if err := r.enter(); err != nil {
		return err
	}
	defer func() { r.depth-- }()
	if r.take(']') {
		return nil
	}
	for {
		if err := element(r); err != nil {
			return err
		}
		if r.take(']') {
			return nil
		}
		if !r.take(',') {
			return errNotJSON
		}
	}
}

// skip reads any value.
func (r *reader) skip() error {
	switch c := r.peek(); {
	case c == '{':
		return r.object(func(_ string, r *reader) error { return r.skip() })
	case c == '[':
		return r.array((*reader).skip)
	case c == '"':
		_, err := r.str()
		return err
	case c == '-' || isDigit(c):
		_, err := r.number()
		return err
	}
	for _, word := range []string{"true", "false", "null"} {
		if len(r.data)-r.at >= len(word) && string(r.data[r.at:r.at+len(word)]) == word {
			r.at += len(word)
			return nil
		}
	}
	return errNotJSON
}

// wrong tells broken JSON from a value of another type.
func (r *reader) wrong(want string) error {
	if err := r.skip(); err != nil {
		return err
	}
	return fmt.Errorf("not %s", want)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// number returns the text of a number (RFC 8259 §6).
func (r *reader) number() (string, error) {
	from := r.at
	digits := func() bool {
		begin := r.at
		for r.at < len(r.data) && isDigit(r.data[r.at]) {
			r.at++
		}
		return r.at > begin
	}
	next := func(set string) bool {
		if r.at < len(r.data) && slices.Contains([]byte(set), r.data[r.at]) {
			r.at++
			return true
		}
		return false
	}
	next("-")
	if !next("0") && !digits() {
		return "", errNotJSON
	}
	if next(".") && !digits() {
		return "", errNotJSON
	}
	if next("eE") {
		next("+-")
		if !digits() {
			return "", errNotJSON
		}
	}
	return string(r.data[from:r.at]), nil
}

// str reads a string, whose quotation mark comes next.
func (r *reader) str() (string, error) {
	r.at++
	from, plain := r.at, true
	for r.at < len(r.data) {
		switch c := r.data[r.at]; {
		case c == '"':
			raw := r.data[from:r.at]
			r.at++
			if plain {
				return string(raw), nil
			}
			return unescape(raw)
		case c < 0x20:
			return "", errNotJSON
		case c == '\\':
			plain = false
			r.at += 2
		case c < utf8.RuneSelf:
			r.at++
		default:
			plain = false // unescape checks UTF-8
			r.at++
		}
	}
	return "", errNotJSON
}

func unescape(raw []byte) (string, error) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			char, size := utf8.DecodeRune(raw[i:])
			if char == utf8.RuneError && size == 1 {
				return "", errNotJSON
			}
			out = append(out, raw[i:i+size]...)
			i += size
			continue
		}
		// A backslash is never the last byte: it would have escaped the end of the string.
		i += 2
		switch c := raw[i-1]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			char, ok := hex4(raw[i:])
			if !ok {
				return "", errNotJSON
			}
			i += 4
			if utf16.IsSurrogate(char) {
				if len(raw)-i < 6 || raw[i] != '\\' || raw[i+1] != 'u' {
					return "", errNotJSON
				}
				low, ok := hex4(raw[i+2:])
				if char = utf16.DecodeRune(char, low); !ok || char == utf8.RuneError {
					return "", errNotJSON
				}
				i += 6
			}
			out = utf8.AppendRune(out, char)
		default:
			return "", errNotJSON
		}
	}
	return string(out), nil
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[:4]), 16, 32)
	return rune(n), err == nil
}

// text reads a string that is not empty.
func (r *reader) text() (string, error) {
	if r.peek() != '"' {
		return "", r.wrong("a string")
	}
	s, err := r.str()
	if err == nil && s == "" {
		err = errors.New("empty")
	}
	return s, err
}

// texts reads a string, or an array of 1 to limit strings.
func (r *reader) texts(limit int) ([]string, error) {
	switch r.peek() {
	case '"':
		s, err := r.text()
		return []string{s}, err
	case '[':
	default:
		return nil, r.wrong("a string or an array of strings")
	}
	var list []string
	err := r.array(func(r *reader) error {
		s, err := r.text()
		if err == nil && len(list) == limit {
			err = fmt.Errorf("more than %d", limit)
		}
		list = append(list, s)
		return err
	})
	if err == nil && len(list) == 0 {
		err = errors.New("empty")
	}
	return list, err
}

// uuid reads a UUID in its canonical form, not all zeros.
func (r *reader) uuid() (string, error) {
	s, err := r.text()
	if err != nil {
		return "", err
	}
	if _, ok := parseUUID(s); !ok {
		return "", errors.New("not a UUID in canonical form")
	}
	return s, nil
}

// uuid is the bytes of a UUID.
type uuid [16]byte

// parseUUID takes the canonical form (RFC 9562 §4) in lower case, and not all zeros.
func parseUUID(s string) (id uuid, ok bool) {
	if len(s) != 36 {
		return uuid{}, false
	}
	n := 0
	for i := 0; i < len(s); {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return uuid{}, false
			}
			i++
			continue
		}
		high, low := hexDigit(s[i]), hexDigit(s[i+1])
		if high > 15 || low > 15 {
			return uuid{}, false
		}
		id[n] = high<<4 | low
		n++
		i += 2
	}
	return id, id != uuid{}
}

func hexDigit(c byte) byte {
	switch {
	case isDigit(c):
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return math.MaxUint8
}

// integer reads a number written with digits alone, 0 or more.
func (r *reader) integer() (int64, error) {
	if c := r.peek(); c != '-' && !isDigit(c) {
		return 0, r.wrong("a number")
	}
	text, err := r.number()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || text[0] == '-' {
		return 0, errors.New("not a whole number from 0 to 2^63-1")
	}
	return n, nil
}

// maxTime is the last second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const maxTime = 253402300799

// time reads a NumericDate (RFC 7519 §2) in whole seconds.
func (r *reader) time() (time.Time, error) {
	n, err := r.integer()
	if err != nil {
		return time.Time{}, err
	}
	if n > maxTime {
		return time.Time{}, errors.New("later than the year 9999")
	}
	return time.Unix(n, 0).UTC(), nil
}
