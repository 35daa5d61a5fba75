package httpserver

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/toppira/authctl/platform/fault"
)

const maxDepth = 16 // of a JSON body, the object itself included

var errEmptyBody = ErrMalformed.Detail("The body is empty; a JSON object is expected.")

// decodeJSON reads a body into a pointer to a struct, and is the only way to read JSON. It accepts
// one object in UTF-8, of at most 16 levels, with the members of the struct by their exact names,
// each at most once. Errors are faults: 400 malformed_request for anything else, and 400
// validation_failed with the field whose value has the wrong type. null is the wrong type for
// every member; a client leaves the member out instead.
func decodeJSON(body []byte, into any) error {
	switch text := bytes.TrimLeft(body, " \t\r\n"); {
	case len(text) == 0:
		return errEmptyBody
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")):
		return ErrMalformed.Detail("The body begins with a byte order mark (EF BB BF), which JSON must not " +
			"(RFC 8259 §8.1). Send it without.")
	case isUTF16(text):
		return ErrMalformed.Detail("The body is UTF-16 or UTF-32; JSON is sent as UTF-8.")
	case text[0] != '{':
		return ErrMalformed.Detail("The body must be a JSON object.")
	}
	// The exact checks for nesting and for null run only if a cheap one says they may be needed.
	if bytes.Count(body, []byte("{"))+bytes.Count(body, []byte("[")) > maxDepth && tooDeep(body) {
		return ErrMalformed.Detail("The JSON is nested too deeply.")
	}
	if err := json.Unmarshal(body, into, json.RejectUnknownMembers(true)); err != nil {
		return jsonFault(body, err)
	}
	if bytes.Contains(body, []byte("null")) {
		if pointer, found := findNull(body); found {
			return wrongType(pointer, "null is not accepted here")
		}
	}
	return nil
}

// isUTF16 reports whether a body is UTF-16 or UTF-32: it begins with a byte order mark, or with an
// ASCII character in more than one byte.
func isUTF16(body []byte) bool {
	return bytes.HasPrefix(body, []byte("\xff\xfe")) || bytes.HasPrefix(body, []byte("\xfe\xff")) ||
		bytes.IndexByte(body[:min(2, len(body))], 0) >= 0
}

// jsonFault says what is wrong with a body without quoting its values.
func jsonFault(body []byte, err error) error {
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		return ErrMalformed.Detail("The body has a member that is not known here: " + field(semantic.JSONPointer) + ".")
	case errors.Is(err, jsontext.ErrDuplicateName):
		detail := "The body has a member twice"
		if errors.As(err, &syntactic) {
			detail += ": " + field(syntactic.JSONPointer)
		}
		return ErrMalformed.Detail(detail + ".")
	case errors.As(err, &semantic) && jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(false)):
		return wrongType(semantic.JSONPointer, "must be "+kindName(semantic.GoType))
	}
	at := ""
	if errors.As(err, &syntactic) {
		at = fmt.Sprintf(" at byte %d", syntactic.ByteOffset)
	}
	switch after := bytes.TrimLeft(body[min(end(body), len(body)):], " \t\r\n"); {
	case !utf8.Valid(body):
		return ErrMalformed.Detail("The body is not valid UTF-8.")
	case len(after) > 0:
		return ErrMalformed.Detail("The body goes on after its JSON object.")
	}
	if syntactic != nil && isEscapedSurrogate(body, syntactic.ByteOffset) {
		at += ": an escaped surrogate lacks its other half"
	}
	return ErrMalformed.Detail("The body is not valid JSON" + at + ".")
}

// isEscapedSurrogate reports whether a surrogate is escaped at an offset (RFC 8259 §7, §8.2).
func isEscapedSurrogate(body []byte, offset int64) bool {
	const begin = `\ud`
	rest := body[min(max(offset, 0), int64(len(body))):]
	return bytes.EqualFold(rest[:min(len(begin), len(rest))], []byte(begin))
}

// end is the offset at which the first JSON value of a body ends, or the length of the body.
func end(body []byte) int {
	decoder := jsontext.NewDecoder(bytes.NewReader(body))
	if decoder.SkipValue() != nil {
		return len(body)
	}
	return int(decoder.InputOffset())
}

func wrongType(pointer jsontext.Pointer, detail string) error {
	return ErrValidation.Field(field(pointer), "wrong_type", detail)
}

// field names a member as a client would: user.name, scopes.0. The client may have chosen the
// names, so they are shortened and made printable.
func field(pointer jsontext.Pointer) string {
	name := strings.Join(slices.Collect(pointer.Tokens()), ".")
	if len(name) > 64 {
		name = name[:64]
	}
	return strings.Trim(strconv.QuoteToASCII(strings.ToValidUTF8(name, "")), `"`)
}

func kindName(t reflect.Type) string {
	if t == nil {
		return "of another type"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number in range"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "of another type"
}

// tooDeep counts nesting without parsing: brackets in strings do not count.
func tooDeep(body []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch b := body[i]; {
		case inString && b == '\\':
			i++
		case b == '"':
			inString = !inString
		case inString:
		case b == '{', b == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case b == '}', b == ']':
			depth--
		}
	}
	return false
}

// findNull returns the place of the first null in a valid body.
func findNull(body []byte) (jsontext.Pointer, bool) {
	decoder := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		token, err := decoder.ReadToken()
		if err != nil {
			return "", false
		}
		if token.Kind() == 'n' {
			return decoder.StackPointer(), true
		}
	}
}

// checkMedia refuses a body of another type, charset or content coding. It ignores parameters
// other than charset.
func checkMedia(x *exchange, want string) error {
	if coding := x.carrier.header("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		x.carrier.set("Accept-Encoding", "identity") // RFC 9110 §15.5.16
		return ErrUnsupportedMedia.Detail("Compressed bodies are not accepted.")
	}
	return mediaFault(x, want)
}

// mediaFault refuses every Content-Type except the wanted one.
func mediaFault(x *exchange, want string) error {
	got := x.carrier.header("Content-Type")
	if got == want {
		return nil
	}
	media, rest, _ := strings.Cut(got, ";")
	media = strings.Trim(media, " \t")
	switch {
	case media == "":
		return ErrUnsupportedMedia.Detail("Content-Type is missing; it must be " + want + ".")
	case !strings.EqualFold(media, want):
		return ErrUnsupportedMedia.Detail("Content-Type must be " + want + ", not " + shown(media) + ".")
	}
	for _, charset := range charsets(rest) {
		if !isUTF8(charset) {
			return ErrUnsupportedMedia.Detail("The charset must be UTF-8, not " + shown(charset) + ".")
		}
	}
	return nil
}

// charsets returns the values of charset among the parameters of a media type (RFC 9110
// §5.6.6). It is lenient, because the body itself shows its encoding.
func charsets(parameters string) (values []string) {
	for parameters != "" {
		var name, value string
		end := strings.IndexAny(parameters, ";=")
		if end < 0 {
			return values
		}
		name, parameters = strings.Trim(parameters[:end], " \t"), strings.TrimLeft(parameters[end:], " \t")
		if after, is := strings.CutPrefix(parameters, "="); is {
			parameters = strings.TrimLeft(after, " \t")
			if text, quoted := strings.CutPrefix(parameters, `"`); quoted {
				value, parameters, _ = strings.Cut(text, `"`)
			}
			more, after, _ := strings.Cut(parameters, ";")
			value, parameters = value+more, after
		} else {
			parameters = parameters[1:]
		}
		if strings.EqualFold(name, "charset") {
			values = append(values, strings.Trim(value, " \t"))
		}
	}
	return values
}

// isUTF8 reports whether a charset is UTF-8 by one of the names that are in use: with and
// without punctuation, those of IANA, and those that the Encoding standard lists.
func isUTF8(charset string) bool {
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("-_ '", r) {
			return -1
		}
		return r
	}, strings.ToLower(charset))
	switch name {
	case "utf8", "csutf8", "unicode11utf8", "unicode20utf8", "xunicode20utf8", "xutf8", "utf8mb4":
		return true
	}
	return false
}

// shownName makes a name that the client chose fit for an answer.
func shownName(name string) string { return strings.Trim(shown(name), `"`) }

// shown quotes what the client sent, shortened and made printable.
func shown(text string) string {
	return strconv.QuoteToASCII(strings.ToValidUTF8(text[:min(len(text), 64)], ""))
}

// Form is the body of an OAuth request: parameters by name, each sent once (RFC 6749 §3.2).
type Form map[string]string

// readForm reads an application/x-www-form-urlencoded body in UTF-8. Parameters without a
// value count as not sent. Errors are [OAuthError]s.
func readForm(x *exchange) (Form, error) {
	body, err := x.carrier.body()
	if err != nil || len(body) == 0 {
		return Form{}, err
	}
	if err := checkMedia(x, "application/x-www-form-urlencoded"); err != nil {
		var f *fault.Fault
		errors.As(err, &f)
		return nil, &OAuthError{Status: http.StatusBadRequest, Code: "invalid_request", Description: f.Message}
	}
	return decodeForm(string(body))
}

func decodeForm(body string) (Form, error) {
	malformed := func(description string) (Form, error) {
		return nil, &OAuthError{Status: http.StatusBadRequest, Code: "invalid_request", Description: description}
	}
	form := make(Form)
	for body != "" {
		var pair string
		if pair, body, _ = strings.Cut(body, "&"); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		if errName != nil || errValue != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return malformed("The body is not a valid form in UTF-8.")
		}
		if _, twice := form[name]; twice {
			return malformed("A parameter was sent twice: " + shown(name))
		}
		form[name] = value
	}
	for name, value := range form {
		if value == "" {
			delete(form, name)
		}
	}
	return form, nil
}
