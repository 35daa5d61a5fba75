package main

import (
	"flag"
	"io"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/swaggo/swag"
	"github.com/swaggo/swag/gen"
)

var update = flag.Bool("update", false, "write generated files anew")

func TestOpenAPIIsWhatTheHandlersSay(t *testing.T) {
	out := t.TempDir()
	if err := gen.New().Build(&gen.Config{
		SearchDir:          ".,../../modules/auth/authhttp,../../platform/httpserver,../../platform/fault",
		MainAPIFile:        "process.go",
		OutputDir:          out,
		OutputTypes:        []string{"json"},
		PropNamingStrategy: swag.CamelCase,
		ParseInternal:      true,
		Debugger:           log.New(io.Discard, "", 0),
		Strict:             true,
	}); err != nil {
		t.Fatal(err)
	}
	generated, err := os.ReadFile(filepath.Join(out, "swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("openapi/swagger.json", generated, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(generated) != openAPI {
		t.Error("openapi/swagger.json is out of date; write it anew with: go test ./cmd/authctl -run OpenAPI -update")
	}
}
