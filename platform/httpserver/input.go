package httpserver

import (
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/toppira/authctl/platform/fault"
)

// Peer is where a request comes from.
type Peer struct {
	// IP is the address of the client: the connection's peer, or, if that is a trusted proxy, the
	// nearest address in X-Forwarded-For that is not one. Entries further left come from the
	// client and are ignored. IPv4-mapped addresses are returned as IPv4, without zones.
	IP        netip.Addr
	UserAgent string
	RequestID string // of the answer's X-Request-Id
}

// input is how a function's input is read from a request.
type input struct {
	of      reflect.Type
	parts   []part
	queries []string // its query parameters
}

// part is one field of the input, at any depth of embedded structs.
type part struct {
	index  []int
	source string // path, query, header, cookie, form, body, peer, browser
	name   string
	enum   []string // of a query parameter: the values it may have

	optional bool  // of a body: it may be missing
	required []int // of a body: its pointer fields that must be there
}

var peerType, browserType = reflect.TypeFor[Peer](), reflect.TypeFor[Browser]()

// inputOf makes the plan for an input type. It panics on a field that does not say where it comes
// from, which is a mistake in the declaration.
func inputOf(t reflect.Type) input {
	in := input{of: t}
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("httpserver: the input %s is not a struct", t))
	}
	for _, field := range reflect.VisibleFields(t) {
		if field.Anonymous && field.Type != peerType && field.Type != browserType {
			continue
		}
		p := part{index: field.Index}
		for _, source := range []string{"path", "query", "header", "cookie", "form"} {
			if name, ok := field.Tag.Lookup(source); ok {
				p.source, p.name = source, name
			}
		}
		switch {
		case p.source != "" && field.Type.Kind() != reflect.String:
			panic(fmt.Sprintf("httpserver: %s.%s must be a string", t, field.Name))
		case p.source == "query":
			in.queries = append(in.queries, p.name)
			if values := field.Tag.Get("enum"); values != "" {
				p.enum = strings.Split(values, ",")
			}
		case p.source != "":
		case field.Type == peerType:
			p.source = "peer"
		case field.Type == browserType:
			p.source = "browser"
		case field.Name == "Body" && field.Type.Kind() == reflect.Struct:
			p.source, p.optional, p.required = "body", field.Tag.Get("body") == "optional", requiredOf(field.Type)
		default:
			panic(fmt.Sprintf("httpserver: %s.%s has no tag that says where it comes from", t, field.Name))
		}
		in.parts = append(in.parts, p)
	}
	return in
}

// requiredOf lists the required fields of a body.
func requiredOf(t reflect.Type) (fields []int) {
	for i := range t.NumField() {
		if name, optional := jsonName(t.Field(i)); t.Field(i).Type.Kind() == reflect.Pointer && name != "" &&
			!optional {
			fields = append(fields, i)
		}
	}
	return fields
}

// jsonName is a field's name in JSON, empty when it has none, and whether it may be left out.
func jsonName(field reflect.StructField) (name string, optional bool) {
	name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
	if name == "-" || !field.IsExported() {
		return "", false
	}
	list := strings.Split(options, ",")
	return name, slices.Contains(list, "omitempty") || slices.Contains(list, "omitzero")
}

// headers names the request headers that are part of the input.
func (in input) headers() (names []string) {
	for _, p := range in.parts {
		if p.source == "header" {
			names = append(names, p.name)
		}
	}
	return names
}

// read fills the input. Its faults are those of the contract for bodies and parameters.
func (in input) read(x *exchange, into reflect.Value) error {
	if in.queries != nil {
		if err := in.readQuery(x.carrier.query(), into); err != nil {
			return err
		}
	}
	for _, p := range in.parts {
		field := into.FieldByIndex(p.index)
		switch p.source {
		case "path":
			field.SetString(x.route.param(p.name, x.carrier.path()))
		case "header":
			field.SetString(x.combined(p.name))
		case "cookie":
			field.SetString(x.carrier.cookie(p.name))
		case "peer":
			*field.Addr().Interface().(*Peer) = x.peer()
		case "browser":
			*field.Addr().Interface().(*Browser) = x.browser()
		case "form":
			form, err := x.form()
			if err != nil {
				return err
			}
			field.SetString(form[p.name])
		case "body":
			if err := p.readBody(x, field); err != nil {
				return err
			}
		}
	}
	return nil
}

// readQuery is strict: a misspelt parameter must not be ignored, because it may have been meant to
// prevent something.
func (in input) readQuery(query string, into reflect.Value) error {
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		at := slices.IndexFunc(in.parts, func(p part) bool { return p.source == "query" && p.name == name })
		switch {
		case errName != nil || errValue != nil:
			return ErrMalformed.Detail("The query is not percent-encoded correctly.")
		case at < 0:
			return ErrValidation.Field(shownName(name), "unknown",
				"is not a parameter of this route; its parameters are: "+strings.Join(in.queries, ", "))
		case seen[name]:
			return ErrValidation.Field(shownName(name), "twice", "is there twice")
		case in.parts[at].enum != nil && !slices.Contains(in.parts[at].enum, value):
			return ErrValidation.Field(shownName(name), "invalid_value",
				"must be "+strings.Join(in.parts[at].enum, " or ")+", or left out")
		}
		seen[name] = true
		into.FieldByIndex(in.parts[at].index).SetString(value)
	}
	return nil
}

func (p part) readBody(x *exchange, field reflect.Value) error {
	body, err := x.carrier.body()
	if err != nil {
		return err
	}
	if len(body) == 0 { // whatever its type
		if p.optional {
			return nil
		}
		if x.route.Instead != "" {
			return errEmptyBody.Detail(errEmptyBody.Message + " If a proxy drops the body of a DELETE, " +
				x.route.Instead + " does the same.")
		}
		return errEmptyBody
	}
	if err := checkMedia(x, "application/json"); err != nil {
		return err
	}
	if err := decodeJSON(body, field.Addr().Interface()); err != nil {
		return err
	}
	var refused *fault.Fault
	for _, i := range p.required {
		if field.Field(i).IsNil() {
			if refused == nil {
				refused = ErrValidation
			}
			name, _ := jsonName(field.Type().Field(i))
			refused = refused.Field(name, "required", "is required")
		}
	}
	if refused != nil {
		return refused
	}
	return nil
}
