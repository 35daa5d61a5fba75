package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// chartDecides are the settings that the Helm chart derives from other values.
var chartDecides = []string{"app.data_dir", "app.host", "app.operator_addr", "outbox.relay"}

// TestTheDocumentsOfTheChartAreUpToDate compares the settings in the schema of the chart's values
// with the settings of the binary.
func TestTheDocumentsOfTheChartAreUpToDate(t *testing.T) {
	t.Parallel()
	const path = "../../deploy/helm/authctl/values.schema.json"
	have, err := os.ReadFile(path)
	testenv.Must(t, err)
	var schema map[string]any
	testenv.Must(t, json.Unmarshal(have, &schema))
	defs := schema["$defs"].(map[string]any)
	defs["settings"], defs["secrets"] = settingsSchema(config.Keys(&settings{}))
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	testenv.Must(t, encoder.Encode(schema))
	if *update {
		testenv.Must(t, os.WriteFile(path, want.Bytes(), 0o644))
		return
	}
	if !bytes.Equal(have, want.Bytes()) {
		t.Errorf("%s is out of date; write it again with: go test ./cmd/authctl -run Documents -update", path)
	}
}

// settingsSchema returns JSON schemas: of the settings, nested as in config.yaml, and of the secret
// settings, each under its full name. Helm itself handles null, which unsets a value.
func settingsSchema(keys []config.Key) (plain, secret map[string]any) {
	object := func() map[string]any {
		return map[string]any{"type": []string{"object", "null"}, "additionalProperties": false,
			"properties": map[string]any{}}
	}
	plain, secret = object(), object()
	for _, key := range keys {
		properties := func(of map[string]any) map[string]any { return of["properties"].(map[string]any) }
		if key.Secret {
			properties(secret)[key.Path] = map[string]any{"$ref": "#/$defs/secret", "description": key.Doc}
			continue
		}
		if slices.Contains(chartDecides, key.Path) {
			continue
		}
		at, parts := plain, strings.Split(key.Path, ".")
		for _, part := range parts[:len(parts)-1] {
			if properties(at)[part] == nil {
				properties(at)[part] = object()
			}
			at = properties(at)[part].(map[string]any)
		}
		properties(at)[parts[len(parts)-1]] = valueSchema(key)
	}
	return plain, secret
}

func valueSchema(key config.Key) map[string]any {
	schema := map[string]any{"description": key.Doc}
	limit := func(name, value string) {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			schema[name] = n
		}
	}
	switch key.Type {
	case "true or false":
		schema["type"] = "boolean"
	case "whole number":
		schema["type"] = "integer"
		limit("minimum", key.Min)
		limit("maximum", key.Max)
	case "number":
		schema["type"] = "number"
	case "duration":
		schema["type"], schema["pattern"] = "string", `^([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+$`
	case "list":
		schema["type"], schema["items"] = "array", map[string]any{"type": "string"}
	default:
		schema["type"] = "string"
	}
	if len(key.OneOf) > 0 {
		schema["enum"] = key.OneOf
	}
	return schema
}
