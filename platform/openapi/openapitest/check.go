// Package openapitest checks answers against an OpenAPI document: everything in them must be
// documented.
package openapitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// Document is a document that answers are checked against.
type Document struct{ *openapi3.T }

// Load reads a document.
func Load(t testing.TB, text []byte) Document {
	t.Helper()
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	return Document{document}
}

// framing are headers of HTTP itself and of CORS, which the document leaves to the standards.
var framing = []string{"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding", "Allow",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers"}

// Operation returns the documented operation for a method and a path, or nil.
func (d Document) Operation(method, path string) *openapi3.Operation {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	segments := strings.Split(path, "/")
	for _, pattern := range slices.Sorted(maps.Keys(d.Paths.Map())) {
		want := strings.Split(pattern, "/")
		same := slices.EqualFunc(want, segments, func(w, s string) bool {
			return w == s || strings.HasPrefix(w, "{") && s != ""
		})
		if op := d.Paths.Value(pattern).GetOperation(method); same && op != nil {
			return op
		}
	}
	return nil
}

// Check says what of an answer its operation does not document: its status, media type, headers and
// every member.
func (d Document) Check(op *openapi3.Operation, method string, answer *http.Response, body []byte) (problems []string) {
	bad := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	ref := op.Responses.Value(strconv.Itoa(answer.StatusCode))
	if ref == nil {
		return []string{fmt.Sprintf("the status %d is not documented", answer.StatusCode)}
	}
	response := ref.Value
	for name, values := range answer.Header {
		documented := func(h string) bool { return strings.EqualFold(h, name) }
		names := slices.AppendSeq(slices.Clone(framing), maps.Keys(response.Headers))
		if !slices.ContainsFunc(names, documented) {
			bad("the header %s: %s is not documented for %d", name, values, answer.StatusCode)
		}
	}
	for name, h := range response.Headers {
		values := answer.Header.Values(name)
		if h.Value.Required && len(values) != 1 {
			bad("the header %s occurs %d times in %d", name, len(values), answer.StatusCode)
		}
		for _, text := range values {
			var value any = text
			if n, err := strconv.Atoi(text); err == nil && h.Value.Schema.Value.Type.Is("integer") {
				value = float64(n)
			}
			if err := h.Value.Schema.Value.VisitJSON(value, rules...); err != nil {
				bad("the header %s: %s of %d: %v", name, text, answer.StatusCode, err)
			}
		}
	}
	got := answer.Header.Get("Content-Type")
	if method == http.MethodHead {
		return problems
	}
	if len(response.Content) == 0 {
		if len(body) > 0 || got != "" {
			bad("%d has the body %q of type %q, but none is documented", answer.StatusCode, body, got)
		}
		return problems
	}
	content := response.Content[got]
	if content == nil {
		bad("%d has the media type %q, but %q is documented", answer.StatusCode, got,
			slices.Collect(maps.Keys(response.Content)))
		return problems
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		bad("%d is no JSON: %v", answer.StatusCode, err)
		return problems
	}
	if err := content.Schema.Value.VisitJSON(value, rules...); err != nil {
		bad("%d %s: %v", answer.StatusCode, body, err)
	}
	for _, member := range undocumented("", value, content.Schema.Value) {
		bad("%d has the member %s, which is not documented", answer.StatusCode, member)
	}
	return problems
}

var rules = []openapi3.SchemaValidationOption{
	openapi3.EnableJSONSchema2020(), openapi3.EnableFormatValidation(), openapi3.VisitAsResponse(),
	openapi3.MultiErrors(),
}

// undocumented lists the members of a value that its schema does not name.
func undocumented(at string, value any, schema *openapi3.Schema) (members []string) {
	switch value := value.(type) {
	case map[string]any:
		for name, part := range value {
			if schema.AdditionalProperties.Has != nil && *schema.AdditionalProperties.Has {
				continue
			}
			property := propertyOf(schema, name)
			if property == nil {
				members = append(members, at+"."+name)
				continue
			}
			members = append(members, undocumented(at+"."+name, part, property)...)
		}
	case []any:
		for _, part := range value {
			if schema.Items != nil {
				members = append(members, undocumented(at+"[]", part, schema.Items.Value)...)
			}
		}
	}
	return members
}

func propertyOf(schema *openapi3.Schema, name string) *openapi3.Schema {
	// A part that only narrows a property says less about it than the one that describes it.
	for _, part := range schema.AllOf {
		if property := propertyOf(part.Value, name); property != nil {
			return property
		}
	}
	if property := schema.Properties[name]; property != nil {
		return property.Value
	}
	return nil
}
