package openapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

var (
	timeType      = reflect.TypeFor[time.Time]()
	oneOrManyType = reflect.TypeFor[httpserver.OneOrMany]()
)

// isUUID reports whether a type is uuid.UUID, whose text form is its JSON.
func isUUID(t reflect.Type) bool {
	return t.PkgPath() == "github.com/google/uuid" && t.Name() == "UUID"
}

// schema returns a type's schema; structs are among the components.
func (w *writer) schema(t reflect.Type) *openapi3.SchemaRef {
	if encodes, ok := httpserver.Encodes(t); ok {
		return w.schema(encodes)
	}
	switch {
	case t == timeType:
		return (&openapi3.Schema{Type: types("string"), Format: "date-time"}).NewRef()
	case isUUID(t):
		return (&openapi3.Schema{Type: types("string"), Format: "uuid"}).NewRef()
	case t == oneOrManyType:
		// Any value: of a string or an array, generators for Java and Kotlin make what does not compile or
		// cannot be read.
		return (&openapi3.Schema{}).NewRef()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return w.schema(t.Elem())
	case reflect.String:
		return (&openapi3.Schema{Type: types("string")}).NewRef()
	case reflect.Bool:
		return (&openapi3.Schema{Type: types("boolean")}).NewRef()
	case reflect.Int, reflect.Int32, reflect.Int64:
		return (&openapi3.Schema{Type: types("integer"), Format: "int64"}).NewRef()
	case reflect.Slice:
		return (&openapi3.Schema{Type: types("array"), Items: w.schema(t.Elem())}).NewRef()
	case reflect.Map: // any object
		anything := true
		return (&openapi3.Schema{Type: types("object"),
			AdditionalProperties: openapi3.AdditionalProperties{Has: &anything}}).NewRef()
	case reflect.Struct:
		return w.component(t)
	}
	w.fail(fmt.Errorf("%s has no schema", t))
	return (&openapi3.Schema{}).NewRef()
}

func nameOf(t reflect.Type) string {
	if t == reflect.TypeFor[fault.Field]() {
		return "FaultyField" // Field is a word of its own in what generators make for Python
	}
	return t.Name()
}

func (w *writer) component(t reflect.Type) *openapi3.SchemaRef {
	name := nameOf(t)
	if other, taken := w.named[name]; taken && other != t {
		w.fail(fmt.Errorf("%s and %s have one name", t, other))
	} else if !taken {
		w.named[name] = t
		object := &openapi3.Schema{Type: types("object"), Properties: openapi3.Schemas{}}
		w.components.Schemas[name] = object.NewRef()
		for i := range t.NumField() {
			field := t.Field(i)
			member, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			if member == "" || member == "-" {
				w.fail(fmt.Errorf("%s.%s has no name in JSON", t, field.Name))
			}
			object.Properties[member] = w.field(field)
			if list := strings.Split(options, ","); !slices.Contains(list, "omitempty") &&
				!slices.Contains(list, "omitzero") {
				object.Required = append(object.Required, member)
			}
		}
	}
	return &openapi3.SchemaRef{Ref: "#/components/schemas/" + name, Value: w.components.Schemas[name].Value}
}

func (w *writer) field(field reflect.StructField) *openapi3.SchemaRef {
	schema := w.schema(field.Type)
	if schema.Ref != "" {
		return schema
	}
	s := schema.Value
	s.Description, s.Pattern = field.Tag.Get("doc"), field.Tag.Get("pattern")
	if format := field.Tag.Get("format"); format != "" {
		s.Format = format
	}
	if enum := field.Tag.Get("enum"); enum != "" {
		for value := range strings.SplitSeq(enum, ",") {
			s.Enum = append(s.Enum, value)
		}
	}
	for tag, set := range map[string]func(uint64){
		"minLength": func(n uint64) { s.MinLength = n }, "maxLength": func(n uint64) { s.MaxLength = &n },
		"minimum": func(n uint64) { least := float64(n); s.Min = &least },
	} {
		if text := field.Tag.Get(tag); text != "" {
			n, err := strconv.ParseUint(text, 10, 63)
			if err != nil {
				w.fail(fmt.Errorf("%s: %s: %w", field.Name, tag, err))
			}
			set(n)
		}
	}
	if field.Tag.Get("example") != "" {
		s.Examples = []any{w.exampleOf(field)}
	}
	return schema
}

// example puts together a value of a type from the example tags of its fields. Members that
// may be left out and have no example are.
func (w *writer) example(t reflect.Type) any {
	if encodes, ok := httpserver.Encodes(t); ok {
		return w.example(encodes)
	}
	if t.Kind() == reflect.Map { // what its members are is for the type to say
		own, ok := reflect.Zero(t).Interface().(interface {
			Example() (map[string]any, error)
		})
		if !ok {
			w.fail(fmt.Errorf("%s has no example", t))
			return nil
		}
		value, err := own.Example()
		w.fail(err)
		return value
	}
	if t.Kind() != reflect.Struct {
		w.fail(fmt.Errorf("%s has no example", t))
		return nil
	}
	object := map[string]any{}
	for i := range t.NumField() {
		field := t.Field(i)
		member, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if strings.Contains(options, "omitempty") && field.Tag.Get("example") == "" {
			continue
		}
		object[member] = w.exampleOf(field)
	}
	return object
}

func (w *writer) exampleOf(field reflect.StructField) any {
	text, t := field.Tag.Get("example"), field.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == oneOrManyType:
		return text
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return []any{w.example(t.Elem())}
	case t.Kind() == reflect.Slice && text == "":
		return []any{}
	case t.Kind() == reflect.Slice:
		return []any{text}
	case text == "":
		w.fail(fmt.Errorf("%s has no example", field.Name))
	case t.Kind() == reflect.Bool:
		yes, err := strconv.ParseBool(text)
		w.fail(err)
		return yes
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return json.Number(text)
	}
	return text
}

// plain is a value as JSON has it, which is what examples are made of.
func plain(value any) any {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and numbers only
	}
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}
