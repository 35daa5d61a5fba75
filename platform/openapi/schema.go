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
func (w *writer) schema(t reflect.Type) (*openapi3.SchemaRef, error) {
	if encodes, ok := httpserver.Encodes(t); ok {
		return w.schema(encodes)
	}
	switch {
	case t == timeType:
		return (&openapi3.Schema{Type: types("string"), Format: "date-time"}).NewRef(), nil
	case isUUID(t):
		return (&openapi3.Schema{Type: types("string"), Format: "uuid"}).NewRef(), nil
	case t == oneOrManyType:
		// Any value: of a string or an array, generators for Java and Kotlin make what does not compile or
		// cannot be read.
		return (&openapi3.Schema{}).NewRef(), nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return w.schema(t.Elem())
	case reflect.String:
		return (&openapi3.Schema{Type: types("string")}).NewRef(), nil
	case reflect.Bool:
		return (&openapi3.Schema{Type: types("boolean")}).NewRef(), nil
	case reflect.Int, reflect.Int32, reflect.Int64:
		return (&openapi3.Schema{Type: types("integer"), Format: "int64"}).NewRef(), nil
	case reflect.Slice:
		items, err := w.schema(t.Elem())
		if err != nil {
			return nil, err
		}
		return (&openapi3.Schema{Type: types("array"), Items: items}).NewRef(), nil
	case reflect.Map: // any object
		anything := true
		return (&openapi3.Schema{Type: types("object"),
			AdditionalProperties: openapi3.AdditionalProperties{Has: &anything}}).NewRef(), nil
	case reflect.Struct:
		return w.component(t)
	}
	return nil, fmt.Errorf("%s has no schema", t)
}

func nameOf(t reflect.Type) string {
	if t == reflect.TypeFor[fault.Field]() {
		return "FaultyField" // Field is a word of its own in what generators make for Python
	}
	return t.Name()
}

// component puts a struct among the components and returns a reference to it.
func (w *writer) component(t reflect.Type) (*openapi3.SchemaRef, error) {
	name := nameOf(t)
	if other, taken := w.named[name]; taken && other != t {
		return nil, fmt.Errorf("%s and %s have one name", t, other)
	} else if !taken {
		w.named[name] = t
		object := &openapi3.Schema{Type: types("object"), Properties: openapi3.Schemas{}}
		w.components.Schemas[name] = object.NewRef()
		for i := range t.NumField() {
			field := t.Field(i)
			member, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			if member == "" || member == "-" {
				return nil, fmt.Errorf("%s.%s has no name in JSON", t, field.Name)
			}
			schema, err := w.field(field)
			if err != nil {
				return nil, fmt.Errorf("%s.%s: %w", t, field.Name, err)
			}
			object.Properties[member] = schema
			if list := strings.Split(options, ","); !slices.Contains(list, "omitempty") &&
				!slices.Contains(list, "omitzero") {
				object.Required = append(object.Required, member)
			}
		}
	}
	return &openapi3.SchemaRef{Ref: "#/components/schemas/" + name, Value: w.components.Schemas[name].Value}, nil
}

// field is the schema of a field with what its tags add.
func (w *writer) field(field reflect.StructField) (*openapi3.SchemaRef, error) {
	schema, err := w.schema(field.Type)
	if err != nil || schema.Ref != "" {
		return schema, err
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
				return nil, fmt.Errorf("%s: %w", tag, err)
			}
			set(n)
		}
	}
	if field.Tag.Get("example") != "" {
		value, err := exampleOf(field)
		if err != nil {
			return nil, err
		}
		s.Examples = []any{value}
	}
	return schema, nil
}

// example puts together a value of a type from the example tags of its fields. Members that
// may be left out and have no example are.
func example(t reflect.Type) (any, error) {
	if encodes, ok := httpserver.Encodes(t); ok {
		return example(encodes)
	}
	if t.Kind() == reflect.Map { // what its members are is for the type to say
		own, ok := reflect.Zero(t).Interface().(interface {
			Example() (map[string]any, error)
		})
		if !ok {
			return nil, fmt.Errorf("%s has no example", t)
		}
		return own.Example()
	}
	object := map[string]any{}
	for i := range t.NumField() {
		field := t.Field(i)
		member, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if strings.Contains(options, "omitempty") && field.Tag.Get("example") == "" {
			continue
		}
		value, err := exampleOf(field)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, field.Name, err)
		}
		object[member] = value
	}
	return object, nil
}

func exampleOf(field reflect.StructField) (any, error) {
	text, t := field.Tag.Get("example"), field.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == oneOrManyType:
		return text, nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		one, err := example(t.Elem())
		return []any{one}, err
	case t.Kind() == reflect.Slice && text == "":
		return []any{}, nil
	case t.Kind() == reflect.Slice:
		return []any{text}, nil
	case text == "":
		return nil, fmt.Errorf("has no example")
	case t.Kind() == reflect.Bool:
		return strconv.ParseBool(text)
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return json.Number(text), nil
	}
	return text, nil
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
