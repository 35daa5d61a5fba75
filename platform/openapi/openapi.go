// Package openapi writes the OpenAPI 3.1 document of a table of routes. Everything in it comes
// from the declarations and the types of the functions, so that the document cannot differ from
// the service; what all answers have in common comes from platform/httpserver.
//
// It is for tests and tools: a program serves the written document and does not contain this
// package.
package openapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

// Info is the part of the document that does not come from routes.
type Info struct {
	Title       string
	Version     string
	Summary     string
	Description string
	ContactURL  string
	License     string      // an SPDX identifier
	Server      string      // relative to the document
	Groups      [][2]string // tags and what they group
}

// Document returns the document as indented JSON. It fails if a declaration lacks a text that
// readers need.
func Document(info Info, routes []httpserver.Route) ([]byte, error) {
	w := &writer{components: openapi3.NewComponents(), named: map[string]reflect.Type{}, statuses: map[string]int{}}
	w.components.Schemas, w.components.Headers = openapi3.Schemas{}, openapi3.Headers{}
	w.components.SecuritySchemes, w.components.Responses = openapi3.SecuritySchemes{}, openapi3.ResponseBodies{}
	doc := &openapi3.T{
		OpenAPI: "3.1.0",
		Info: &openapi3.Info{
			Title: info.Title, Version: info.Version, Summary: info.Summary, Description: info.Description,
			Contact: &openapi3.Contact{Name: info.Title, URL: info.ContactURL},
			License: &openapi3.License{Name: info.License, Identifier: info.License},
		},
		Servers: openapi3.Servers{{URL: info.Server, Description: "The server of this document."}},
		Paths:   openapi3.NewPaths(),
	}
	w.commonHeaders()
	used := map[string]bool{}
	for _, r := range routes {
		if !r.Documented() {
			continue
		}
		used[r.Group] = true
		doc.AddOperation(r.Path, r.Method, w.operation(r))
		if w.err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.Method, r.Path, w.err)
		}
	}
	for _, group := range info.Groups {
		doc.Tags = append(doc.Tags, &openapi3.Tag{Name: group[0], Description: group[1]})
		delete(used, group[0])
	}
	for group := range used {
		return nil, fmt.Errorf("the group %q is not described", group)
	}
	doc.Components = &w.components
	text, err := doc.MarshalJSON()
	if err != nil {
		return nil, err
	}
	// Loading it resolves references and checks every rule of the specification.
	read, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	if err := read.Validate(context.Background(), openapi3.EnableExamplesValidation()); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// writer collects what several operations share, and keeps the first error.
type writer struct {
	err        error
	components openapi3.Components
	named      map[string]reflect.Type // of the schemas among the components
	statuses   map[string]int          // of the responses among the components
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) operation(r httpserver.Route) *openapi3.Operation {
	for what, text := range map[string]string{"ID": r.ID, "Group": r.Group, "Summary": r.Summary,
		"Success": r.Success} {
		if text == "" {
			w.fail(fmt.Errorf("has no %s", what))
		}
	}
	op := &openapi3.Operation{
		OperationID: r.ID, Tags: []string{r.Group}, Summary: r.Summary,
		Description: cmp.Or(r.Description, r.Summary+"."),
		Responses:   openapi3.NewResponses(), Security: w.security(r),
	}
	op.Responses.Delete("default")
	if r.Instead != "" {
		op.Description += " If a proxy drops the body of a DELETE, " + r.Instead + " does the same."
	}
	w.request(op, r)
	w.success(op, r)
	w.refusals(op, r)
	return op
}

// security says who may call: nobody is asked for anything, or for the route's scheme, or may
// show one of several and also do without.
func (w *writer) security(r httpserver.Route) *openapi3.SecurityRequirements {
	requirements := openapi3.NewSecurityRequirements()
	schemes, optional := r.Accepts, true
	if scheme := r.Do.Scheme(); scheme != nil {
		schemes, optional = []*httpserver.Scheme{scheme}, scheme.InForm
	}
	for _, scheme := range schemes {
		w.components.SecuritySchemes[scheme.Name] = &openapi3.SecuritySchemeRef{Value: securityScheme(scheme)}
		requirements.With(openapi3.SecurityRequirement{scheme.Name: []string{}})
	}
	if optional && len(schemes) > 0 {
		requirements.With(openapi3.SecurityRequirement{})
	}
	return requirements
}

func securityScheme(s *httpserver.Scheme) *openapi3.SecurityScheme {
	if s.Cookie != "" {
		return &openapi3.SecurityScheme{Type: "apiKey", In: "cookie", Name: s.Cookie, Description: s.Description}
	}
	return &openapi3.SecurityScheme{Type: "http", Scheme: s.HTTP, BearerFormat: s.Format, Description: s.Description}
}

func (w *writer) request(op *openapi3.Operation, r httpserver.Route) {
	form := &openapi3.Schema{Type: types("object"), Properties: openapi3.Schemas{}}
	formExample := map[string]any{}
	for _, field := range reflect.VisibleFields(r.Do.In()) {
		if field.Anonymous {
			continue
		}
		for _, in := range []string{"path", "query", "header", "cookie"} {
			name, ok := field.Tag.Lookup(in)
			if !ok || name == "Authorization" || name == "Accept" { // the security scheme's, and the media types'
				continue
			}
			schema := w.field(field)
			p := &openapi3.Parameter{Name: name, In: in, Required: in == "path", Schema: schema,
				Description: schema.Value.Description}
			schema.Value.Description = ""
			op.Parameters = append(op.Parameters, &openapi3.ParameterRef{Value: p})
		}
		if name, ok := field.Tag.Lookup("form"); ok {
			form.Properties[name] = w.field(field)
			if field.Tag.Get("required") == "true" {
				form.Required = append(form.Required, name)
				formExample[name] = field.Tag.Get("example")
			}
		}
		if field.Name == "Body" {
			schema, closed := w.schema(field.Type), false
			body := w.components.Schemas[nameOf(field.Type)].Value
			body.AdditionalProperties = openapi3.AdditionalProperties{Has: &closed}
			op.RequestBody = requestBody(field.Tag.Get("body") != "optional", "application/json", schema,
				w.example(field.Type))
		}
	}
	if len(form.Properties) > 0 {
		op.RequestBody = requestBody(true, "application/x-www-form-urlencoded", form.NewRef(), formExample)
	}
}

func requestBody(required bool, media string, schema *openapi3.SchemaRef, example any) *openapi3.RequestBodyRef {
	content := openapi3.Content{media: &openapi3.MediaType{Schema: schema, Examples: named("example", example)}}
	return &openapi3.RequestBodyRef{Value: &openapi3.RequestBody{Required: required, Content: content}}
}

func (w *writer) success(op *openapi3.Operation, r httpserver.Route) {
	answer := w.returned(r, r.Success, r.Do.Body())
	if answer.Content != nil && r.Do.Streams() {
		answer.Content["text/event-stream"] = &openapi3.MediaType{Schema: (&openapi3.Schema{
			Type: types("string"), Description: "Server-sent events, with the JSON of one answer each.",
		}).NewRef()}
	}
	if out := r.Do.Out(); out != nil && out.Kind() == reflect.Struct {
		if cookies := cookiesOf(out, ""); cookies != nil {
			answer.Headers["Set-Cookie"] = cookies
		}
		for _, field := range reflect.VisibleFields(out) {
			if name, ok := field.Tag.Lookup("header"); ok {
				schema := w.field(field)
				answer.Headers[name] = header(schema.Value.Description, schema.Value,
					field.Tag.Get("required") == "true")
				schema.Value.Description = ""
			}
		}
		if field, ok := out.FieldByName("Status"); ok && field.Tag.Get("status") != "" {
			other := w.answer(field.Tag.Get("doc")) // the same headers, and no body
			maps.Copy(other.Headers, answer.Headers)
			op.Responses.Set(field.Tag.Get("status"), &openapi3.ResponseRef{Value: other})
		}
		for _, field := range reflect.VisibleFields(out) {
			if status := field.Tag.Get("status"); status != "" && field.Type.Kind() == reflect.Pointer {
				other := w.returned(r, field.Tag.Get("doc"), field.Type.Elem())
				op.Responses.Set(status, &openapi3.ResponseRef{Value: other})
			}
		}
	}
	op.Responses.Set(strconv.Itoa(r.SuccessStatus()), &openapi3.ResponseRef{Value: answer})
}

// returned is a success with the JSON of a type; nil: without a body.
func (w *writer) returned(r httpserver.Route, description string, t reflect.Type) *openapi3.Response {
	answer := w.answer(description)
	if r.Cache != "" {
		answer.Headers["Cache-Control"] = constant("How long the answer may be cached.", r.Cache)
	}
	if t != nil {
		answer.Content = openapi3.Content{
			"application/json": &openapi3.MediaType{Schema: w.schema(t), Examples: named("example", w.example(t))},
		}
	}
	return answer
}

// cookiesOf describes the cookies of an output, or those that a refusal of this status takes
// back; nil when there are none.
func cookiesOf(out reflect.Type, refused string) *openapi3.HeaderRef {
	if out == nil || out.Kind() != reflect.Struct {
		return nil
	}
	var words []string
	for _, field := range reflect.VisibleFields(out) {
		name, ok := field.Tag.Lookup("cookie")
		switch {
		case !ok:
		case refused == "" && field.Tag.Get("doc") != "":
			words = append(words, "`"+name+"`: "+field.Tag.Get("doc"))
		case refused != "" && field.Tag.Get("refused") == refused:
			words = append(words, "`"+name+"`: deleted if the server refuses it for good.")
		}
	}
	if words == nil {
		return nil
	}
	return header(strings.Join(words, " "), &openapi3.Schema{Type: types("string")}, false)
}

// refusals describes what the function may refuse, and what anything may be refused for.
func (w *writer) refusals(op *openapi3.Operation, r httpserver.Route) {
	if r.Gateway || r.OAuth {
		w.oauthRefusals(op, r) // before the request is understood
		if r.Gateway {
			w.gatewayRefusals(op, r)
		}
		return
	}
	problem := w.schema(reflect.TypeFor[httpserver.Problem]())
	byStatus := map[int][]*fault.Fault{}
	for _, f := range slices.Concat(r.Do.IdentityFaults(), r.Faults, Inherent(r)) {
		status := httpserver.Status(f)
		if !slices.ContainsFunc(byStatus[status], func(known *fault.Fault) bool { return known.Code == f.Code }) {
			byStatus[status] = append(byStatus[status], f)
		}
	}
	for status, faults := range byStatus {
		slices.SortFunc(faults, func(a, b *fault.Fault) int { return strings.Compare(a.Code, b.Code) })
		var codes []string
		for _, f := range faults {
			codes = append(codes, f.Code)
		}
		// A response that is not specific to this operation is shared.
		cookies := cookiesOf(r.Do.Out(), strconv.Itoa(status))
		own := cookies != nil ||
			slices.ContainsFunc(faults, func(f *fault.Fault) bool { return f.Kind == fault.Invalid })
		if name := w.responseName(r, status, codes); !own {
			if w.components.Responses[name] == nil {
				w.components.Responses[name] = &openapi3.ResponseRef{Value: w.problems(r, status, problem, faults)}
			}
			op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Ref: "#/components/responses/" + name})
			continue
		}
		refusal := w.problems(r, status, problem, faults)
		if cookies != nil {
			refusal.Headers["Set-Cookie"] = cookies
		}
		op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: refusal})
	}
}

// problemName makes a name out of the codes of a status. More than two, unless they are all of the identity and so of
// many operations, go under the name of the operation: it stays when a code is added.
func problemName(r httpserver.Route, status int, codes []string) string {
	own := slices.ContainsFunc(codes, func(code string) bool {
		return !slices.ContainsFunc(r.Do.IdentityFaults(), func(f *fault.Fault) bool { return f.Code == code })
	})
	if own && len(codes) > 2 {
		return componentName([]string{r.ID}) + strings.ReplaceAll(http.StatusText(status), " ", "")
	}
	return componentName(codes)
}

// responseName names the response for the codes of a status; a code that has several statuses
// is told apart by them.
func (w *writer) responseName(r httpserver.Route, status int, codes []string) string {
	name := problemName(r, status, codes)
	if first, taken := w.statuses[name]; taken && first != status {
		return name + strconv.Itoa(status)
	}
	w.statuses[name] = status
	return name
}

// componentName makes a name out of codes: InvalidTokenOrMissingToken.
func componentName(codes []string) string {
	var name strings.Builder
	for i, code := range codes {
		if i > 0 {
			name.WriteString("Or")
		}
		for word := range strings.SplitSeq(code, "_") {
			name.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return name.String()
}

func (w *writer) problems(r httpserver.Route, status int, problem *openapi3.SchemaRef,
	faults []*fault.Fault) *openapi3.Response {
	var codes []any
	var names, words []string
	examples := openapi3.Examples{}
	for _, f := range faults {
		codes, names = append(codes, f.Code), append(names, f.Code)
		words = append(words, "`"+f.Code+"`: "+f.Title+".")
		examples[f.Code] = summarized(f.Title, problemExample(r, f))
	}
	answer := w.refusal(strings.Join(words, " "), status)
	answer.Content = openapi3.Content{"application/problem+json": &openapi3.MediaType{
		Schema: w.narrowed(problemName(r, status, names)+"Problem", problem, "code", codes), Examples: examples,
	}}
	if status == http.StatusUnsupportedMediaType {
		answer.Headers["Accept-Encoding"] = uncompressed()
	}
	return answer
}

// narrowed is a schema whose member has one of these values. It is a named component, because
// client generators make one type for a named schema, and a type for each use of an unnamed one.
func (w *writer) narrowed(name string, schema *openapi3.SchemaRef, member string, values []any) *openapi3.SchemaRef {
	only := &openapi3.Schema{
		Type:       types("object"),
		Properties: openapi3.Schemas{member: (&openapi3.Schema{Type: types("string"), Enum: values}).NewRef()},
	}
	if w.components.Schemas[name] == nil {
		w.components.Schemas[name] = (&openapi3.Schema{AllOf: openapi3.SchemaRefs{schema, only.NewRef()}}).NewRef()
	}
	return &openapi3.SchemaRef{Ref: "#/components/schemas/" + name, Value: w.components.Schemas[name].Value}
}

func uncompressed() *openapi3.HeaderRef {
	return header("Sent if the body was compressed, which is not allowed.",
		&openapi3.Schema{Type: types("string"), Const: "identity"}, false)
}

func summarized(summary string, example any) *openapi3.ExampleRef {
	return &openapi3.ExampleRef{Value: &openapi3.Example{Summary: summary, Value: plain(example)}}
}

func (w *writer) oauthRefusals(op *openapi3.Operation, r httpserver.Route) {
	schema := w.schema(reflect.TypeFor[httpserver.OAuthProblem]())
	byStatus := map[int][]httpserver.OAuthError{}
	for _, e := range InherentOAuth(r) {
		if !slices.ContainsFunc(byStatus[e.Status],
			func(known httpserver.OAuthError) bool { return known.Code == e.Code }) {
			byStatus[e.Status] = append(byStatus[e.Status], e)
		}
	}
	for status, list := range byStatus {
		if r.Gateway && (status >= 500 || status == http.StatusUnauthorized) {
			continue
		}
		var codes []any
		var names, words []string
		examples := openapi3.Examples{}
		for _, e := range list {
			codes, names = append(codes, e.Code), append(names, e.Code)
			words = append(words, "`"+e.Code+"`: "+e.Description)
			problem := httpserver.OAuthProblem{Error: e.Code, Description: e.Description}
			examples[e.Code] = summarized(e.Description, problem)
		}
		answer := w.refusal(strings.Join(words, " "), status)
		if status == http.StatusBadRequest {
			answer.Headers["Accept-Encoding"] = uncompressed()
		}
		answer.Headers["Pragma"] = constant("For caches of HTTP/1.0 (RFC 6749 §5.1).", "no-cache")
		answer.Content = openapi3.Content{"application/json": &openapi3.MediaType{
			Schema: w.narrowed("OAuth"+componentName(names)+"Problem", schema, "error", codes), Examples: examples,
		}}
		name := "OAuth" + componentName(names) + strconv.Itoa(status)
		if known := w.components.Responses[name]; known == nil {
			w.components.Responses[name] = &openapi3.ResponseRef{Value: answer}
		} else if *known.Value.Description != *answer.Description {
			op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: answer})
			continue
		}
		op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Ref: "#/components/responses/" + name})
	}
}

// gatewayRefusals have only a status and headers.
func (w *writer) gatewayRefusals(op *openapi3.Operation, r httpserver.Route) {
	var words []string
	for _, f := range r.Do.IdentityFaults() {
		words = append(words, f.Title+".")
	}
	for status, description := range map[int]string{
		http.StatusUnauthorized:        strings.Join(words, " "),
		http.StatusServiceUnavailable:  "It cannot be known now.",
		http.StatusInternalServerError: httpserver.ErrInternal.Title + ".",
	} {
		op.Responses.Set(strconv.Itoa(status), &openapi3.ResponseRef{Value: w.refusal(description, status)})
	}
}

// Inherent lists the faults that every route of this form can answer, whatever its function does:
// those of the wire, of its deadline, and of the strict decoding of its body and query.
func Inherent(r httpserver.Route) []*fault.Fault {
	list := []*fault.Fault{
		httpserver.ErrMalformed, httpserver.ErrRequestTimeout, httpserver.ErrBodyTooLarge,
		httpserver.ErrHeadersTooLarge, httpserver.ErrUnavailable, httpserver.ErrInternal,
	}
	for _, field := range reflect.VisibleFields(r.Do.In()) {
		if field.Name == "Body" {
			list = append(list, httpserver.ErrValidation, httpserver.ErrUnsupportedMedia)
		}
		if field.Tag.Get("query") != "" {
			list = append(list, httpserver.ErrValidation)
		}
	}
	return list
}

// InherentOAuth is what an OAuth route may answer with, by RFC 6749 §5.2 and for the reasons
// of [Inherent].
func InherentOAuth(r httpserver.Route) []httpserver.OAuthError {
	list := slices.Clone(r.OAuthFaults)
	if r.Do.Scheme() != nil {
		list = append(list, httpserver.OAuthError{Status: http.StatusUnauthorized, Code: "invalid_client",
			Description: "The client is not known, or its secret is wrong."})
	}
	for _, f := range Inherent(r) {
		list = append(list, httpserver.OAuthErrorOf(f))
	}
	return list
}

func problemExample(r httpserver.Route, f *fault.Fault) httpserver.Problem {
	path := r.Path
	for _, field := range reflect.VisibleFields(r.Do.In()) {
		if name := field.Tag.Get("path"); name != "" {
			path = strings.ReplaceAll(path, "{"+name+"}", field.Tag.Get("example"))
		}
	}
	if f.Kind == fault.Invalid && len(f.Fields) == 0 {
		f = faultyField(r, f)
	}
	return httpserver.ProblemOf(f, path, "f3a9c1d27b604e5f8a1b2c3d4e5f6071")
}

// faultyField names a field of the route, as the strict decoder would.
func faultyField(r httpserver.Route, f *fault.Fault) *fault.Fault {
	for _, field := range reflect.VisibleFields(r.Do.In()) {
		if name := field.Tag.Get("query"); name != "" {
			values := strings.ReplaceAll(field.Tag.Get("enum"), ",", " or ")
			return f.Field(name, "invalid_value", "must be "+values+", or left out")
		}
		if field.Name != "Body" {
			continue
		}
		for i := range field.Type.NumField() {
			member := field.Type.Field(i)
			name, _, _ := strings.Cut(member.Tag.Get("json"), ",")
			if member.Type.Kind() == reflect.Pointer {
				return f.Field(name, "required", "is required")
			}
			return f.Field(name, "wrong_type", "must be a string")
		}
	}
	return f
}

func (w *writer) answer(description string) *openapi3.Response {
	headers := openapi3.Headers{}
	for name := range w.components.Headers {
		headers[name] = &openapi3.HeaderRef{Ref: "#/components/headers/" + name}
	}
	return &openapi3.Response{Description: &description, Headers: headers}
}

func (w *writer) refusal(description string, status int) *openapi3.Response {
	answer := w.answer(description)
	answer.Headers["Cache-Control"] = constant("Errors are never cached.", "no-store")
	switch status {
	case http.StatusUnauthorized:
		answer.Headers["WWW-Authenticate"] = header("How to authenticate.", &openapi3.Schema{Type: types("string")},
			true)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		least := 1.0
		answer.Headers["Retry-After"] = header("Seconds to wait before the next try.",
			&openapi3.Schema{Type: types("integer"), Min: &least}, true)
	}
	return answer
}

// commonHeaders are on every answer.
func (w *writer) commonHeaders() {
	text := func() *openapi3.Schema { return &openapi3.Schema{Type: types("string")} }
	for name, h := range map[string]*openapi3.HeaderRef{
		"X-Request-Id": header("The id of the request, also in the server's log. A client may send its own: up to 64 "+
			"letters, digits and `. _ -`.",
			&openapi3.Schema{Type: types("string"), Pattern: "^[A-Za-z0-9._-]{1,64}$"}, true),
		"X-Content-Type-Options":    constant("Keeps browsers from guessing the content type.", "nosniff"),
		"Referrer-Policy":           constant("Keeps addresses out of other sites' logs.", "no-referrer"),
		"Content-Security-Policy":   header("Forbids everything, because an answer is not a page.", text(), true),
		"Strict-Transport-Security": header("Sent over https.", text(), false),
		"Vary":                      header("Origin, if pages of other origins may call.", text(), false),
	} {
		w.components.Headers[name] = h
	}
}

func header(description string, schema *openapi3.Schema, required bool) *openapi3.HeaderRef {
	p := openapi3.Parameter{Description: description, Required: required, Schema: schema.NewRef()}
	return &openapi3.HeaderRef{Value: &openapi3.Header{Parameter: p}}
}

func constant(description, value string) *openapi3.HeaderRef {
	return header(description, &openapi3.Schema{Type: types("string"), Const: value}, true)
}

func types(name string) *openapi3.Types { return &openapi3.Types{name} }

func named(name string, value any) openapi3.Examples {
	return openapi3.Examples{name: &openapi3.ExampleRef{Value: &openapi3.Example{Value: value}}}
}
