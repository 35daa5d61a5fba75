package httpserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
)

// Encoded is JSON of a T that is already encoded, such as a key set that is the same for all.
type Encoded[T any] []byte

// MarshalJSON returns the bytes as they are.
func (e Encoded[T]) MarshalJSON() ([]byte, error) { return e, nil }

func (Encoded[T]) encodes() reflect.Type { return reflect.TypeFor[T]() }
func (e Encoded[T]) encoded() []byte     { return e }

// Encodes returns the T of an [Encoded] type.
func Encodes(t reflect.Type) (reflect.Type, bool) {
	encoded, ok := reflect.Zero(t).Interface().(interface{ encodes() reflect.Type })
	if !ok {
		return nil, false
	}
	return encoded.encodes(), true
}

// OneOrMany is in JSON a string if it holds one, otherwise an array, like aud in RFC 7519.
type OneOrMany []string

// MarshalJSON writes a string or an array.
func (o OneOrMany) MarshalJSON() ([]byte, error) {
	if len(o) == 1 {
		return json.Marshal(o[0])
	}
	return json.Marshal([]string(o))
}

// output is how a function's output is written as an answer.
type output struct {
	of      reflect.Type // nil when there is none
	body    int          // field of an envelope; -1: the whole is the body; -2: there is no body
	status  int          // field of an envelope, -1 without one
	headers []outHeader
	cookies []int // fields of an envelope
	events  int   // field of an envelope, -1 without one
	other   int   // field of an envelope that may take the place of the body, -1 without one
	instead int   // the status then
}

type outHeader struct {
	field int
	name  string
}

const (
	wholeIsBody = -1
	noBody      = -2
)

var (
	cookieType = reflect.TypeFor[*http.Cookie]()
	eventsType = reflect.TypeFor[Events]()
)

// outputOf makes the plan for an output type. It panics on a field of an envelope that does not
// say where it goes.
func outputOf(t reflect.Type) output {
	out := output{of: t, body: wholeIsBody, status: -1, events: -1, other: -1}
	if t.Kind() != reflect.Struct || !isEnvelope(t) {
		return out
	}
	out.body = noBody
	for i := range t.NumField() {
		field := t.Field(i)
		switch name, header := field.Tag.Lookup("header"); {
		case header && field.Type.Kind() == reflect.String:
			out.headers = append(out.headers, outHeader{i, name})
		case field.Name == "Status" && field.Type.Kind() == reflect.Int:
			out.status = i
		case field.Type == cookieType && field.Tag.Get("cookie") != "":
			out.cookies = append(out.cookies, i)
		case field.Name == "Body":
			out.body = i
		case field.Type == eventsType:
			out.events = i
		case field.Type.Kind() == reflect.Pointer && field.Tag.Get("status") != "":
			n, err := strconv.Atoi(field.Tag.Get("status"))
			if err != nil {
				panic(fmt.Sprintf("httpserver: the status of %s.%s is no number", t, field.Name))
			}
			out.other, out.instead = i, n
		default:
			panic(fmt.Sprintf("httpserver: %s.%s has no tag that says where it goes", t, field.Name))
		}
	}
	return out
}

// isEnvelope reports whether an output is more than a body.
func isEnvelope(t reflect.Type) bool {
	for i := range t.NumField() {
		field := t.Field(i)
		_, header := field.Tag.Lookup("header")
		_, cookie := field.Tag.Lookup("cookie")
		if header || cookie || field.Name == "Body" && field.Tag.Get("json") == "" {
			return true
		}
	}
	return false
}

// Body returns the type of the JSON in an answer of a function with this output; nil when
// there is none.
func (f Function) Body() reflect.Type {
	switch {
	case f.output.of == nil, f.output.body == noBody:
		return nil
	case f.output.body == wholeIsBody:
		return f.output.of
	}
	return f.output.of.Field(f.output.body).Type
}

// Streams reports whether the function may answer with [Events].
func (f Function) Streams() bool { return f.output.of != nil && f.output.events >= 0 }

func (o output) headerNames() (names []string) {
	for _, h := range o.headers {
		names = append(names, h.name)
	}
	return names
}

// write sends a success. The answer is a pointer to the output.
func (o output) write(x *exchange, answer reflect.Value) error {
	status, value := x.route.Status, answer.Elem()
	var body any
	switch {
	case o.body == wholeIsBody:
		body = answer.Interface()
	case o.events >= 0 && !value.Field(o.events).IsNil():
		x.stream(value.Field(o.events).Interface().(Events))
		return nil
	case o.other >= 0 && !value.Field(o.other).IsNil():
		status, body = o.instead, value.Field(o.other).Interface()
	case o.body >= 0:
		body = value.Field(o.body).Addr().Interface()
	}
	text, err := encode(body)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	for _, h := range o.headers {
		if text := value.Field(h.field).String(); text != "" {
			x.carrier.set(h.name, text)
		}
	}
	o.writeCookies(x, value)
	if o.status >= 0 {
		if n := value.Field(o.status).Int(); n != 0 {
			status = int(n)
		}
	}
	if status == http.StatusNotModified || text == nil {
		x.success(status, "", nil)
		return nil
	}
	x.success(status, "application/json", text)
	return nil
}

// encode returns the JSON of a body, which may be encoded already; nil if there is none.
func encode(body any) ([]byte, error) {
	switch body := body.(type) {
	case nil:
		return nil, nil
	case interface{ encoded() []byte }:
		return body.encoded(), nil
	}
	return json.Marshal(body)
}

// writeCookies puts the cookies of an output into the answer.
func (o output) writeCookies(x *exchange, value reflect.Value) {
	for _, i := range o.cookies {
		if cookie := value.Field(i).Interface().(*http.Cookie); cookie != nil {
			x.carrier.add("Set-Cookie", cookie.String())
		}
	}
}
