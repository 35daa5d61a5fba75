package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/swaggo/swag"
	"github.com/swaggo/swag/gen"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
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
	generated = listCodes(t, generated)
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

// clientCodes lists every code that an answer may carry, in alphabetical order. What an
// operator may be told about signing keys comes from commands alone.
func clientCodes() []string {
	commands := []*fault.Fault{auth.ErrKeyNotFound, auth.ErrKeyStatus, auth.ErrKeyTooNew, auth.ErrKeyInUse, auth.ErrKeysUnused}
	var codes []string
	for _, f := range slices.Concat(httpserver.Faults(), auth.Faults(), []*fault.Fault{errNotReady}) {
		if !slices.Contains(commands, f) {
			codes = append(codes, f.Code)
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// listCodes adds to the document what no comment on a struct can know: every code.
func listCodes(t *testing.T, document []byte) []byte {
	t.Helper()
	head, problem, found := bytes.Cut(document, []byte(`"httpserver.problem": {`))
	before, after, has := bytes.Cut(problem, []byte(`"code": {`))
	if !found || !has {
		t.Fatal("the document describes no problem with a code")
	}
	const indent = "                    "
	codes, err := json.MarshalIndent(clientCodes(), indent, "    ")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(head, []byte(`"httpserver.problem": {`), before, []byte(`"code": {`+"\n"+indent+`"enum": `), codes, []byte(","), after)
}

func TestOpenAPIHasTheRoutesThatAreServed(t *testing.T) {
	t.Parallel()
	server, err := httpserver.New(httpserver.Config{}, httpserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server.Handle(authhttp.Routes(nil, authhttp.Options{})...)
	server.Handle(processRoutes(server, telemetry.NewReadiness(nil))...)
	var served []string
	for _, r := range server.Routes() {
		if r.Method == fiber.MethodHead || r.Page { // HEAD comes with GET; pages are for people
			continue
		}
		segments := strings.Split(r.Path, "/")
		for i, s := range segments {
			if name, is := strings.CutPrefix(s, ":"); is {
				segments[i] = "{" + name + "}"
			}
		}
		served = append(served, r.Method+" "+strings.Join(segments, "/"))
	}

	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]json.RawMessage `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal([]byte(openAPI), &doc); err != nil {
		t.Fatal(err)
	}
	var documented []string
	for path, methods := range doc.Paths {
		for method := range methods {
			documented = append(documented, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(served)
	slices.Sort(documented)
	if !slices.Equal(served, documented) {
		t.Errorf("served\n%s\ndocumented\n%s", strings.Join(served, "\n"), strings.Join(documented, "\n"))
	}
}

// A description of a refusal begins with its codes, which must be among those listed.
func TestOpenAPINamesOnlyCodesThatThereAre(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Description string `json:"description"`
				Schema      struct {
					Ref string `json:"$ref"`
				} `json:"schema"`
			} `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal([]byte(openAPI), &doc); err != nil {
		t.Fatal(err)
	}
	codes, named := clientCodes(), 0
	for path, methods := range doc.Paths {
		for method, operation := range methods {
			for status, response := range operation.Responses {
				if response.Schema.Ref != "#/definitions/httpserver.problem" {
					continue
				}
				for word := range strings.FieldsFuncSeq(response.Description, func(r rune) bool { return strings.ContainsRune(" ,;:", r) }) {
					if !strings.Contains(word, "_") && word != "overloaded" && word != "unavailable" {
						continue
					}
					if named++; !slices.Contains(codes, word) {
						t.Errorf("%s %s answers %s with %q, which is no code", method, path, status, word)
					}
				}
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d codes were found in the descriptions", named)
	}
}
