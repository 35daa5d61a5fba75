package main

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/contacthttp"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/openapi"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/testenv"
)

var update = flag.Bool("update", false, "write generated files again")

// surface is every route that is served, in the order of the table. No test calls its functions.
func surface() []httpserver.Route {
	routes := authhttp.Routes(nil, authhttp.Options{})
	routes = append(routes, contacthttp.Routes(nil, nil)...)
	return append(routes, processRoutes(func() bool { return false }, telemetry.NewReadiness())...)
}

func TestOpenAPIIsWhatTheTableSays(t *testing.T) {
	document, err := openapi.Document(openapi.Info{
		Title: "authctl", Version: "1", Summary: "Accounts, device sessions and signed tokens",
		Description: "Errors are RFC 9457 problem documents with a stable `code`, which " +
			"[docs/errors.md](https://github.com/toppira/authctl/blob/main/docs/errors.md) explains; `/oauth2/*` answers RFC 6749 errors. " +
			"A body is exactly one JSON object in UTF-8 of at most 16 KiB, with exactly the documented names. " +
			"Times are RFC 3339 in UTC. Pages of `app.origins` may call everything and send cookies (CORS).",
		ContactURL: "https://github.com/toppira/authctl", License: "Apache-2.0", Server: "../..",
		Groups: append(slices.Concat(authhttp.Groups, contacthttp.Groups),
			[2]string{"probes", "For load balancers and orchestrators"}),
	}, surface())
	testenv.Must(t, err)
	if *update {
		testenv.Must(t, os.WriteFile("openapi/openapi.json", document, 0o644))
		return
	}
	if string(document) != string(openAPI) {
		t.Error("openapi/openapi.json is out of date; write it with: go test ./cmd/authctl -run OpenAPI -update")
	}
}

// Generators make types of the names in the document, beside types and constructors of their own. openapi-generator
// makes a function NewContact for a schema Contact, in Go; ogen makes a type of each security scheme, and has a Client.
func TestNamesInTheDocumentDoNotCollideInGeneratedCode(t *testing.T) {
	components := loadOpenAPI(t).Components
	taken := map[string]string{}
	for _, name := range []string{"Client", "Server", "Handler", "Option", "Configuration", "APIClient"} {
		taken[strings.ToLower(name)] = "a type of generators"
	}
	for name := range components.Schemas {
		taken["new"+strings.ToLower(name)] = "the constructor of the schema " + name
	}
	names := map[string]string{}
	for name := range components.Schemas {
		names[name] = "schema"
	}
	for name := range components.SecuritySchemes {
		names[name] = "security scheme"
	}
	for name, kind := range names {
		if as := taken[strings.ToLower(name)]; as != "" {
			t.Errorf("the %s %s is named as %s: give it another name", kind, name, as)
		}
	}
}

// What openapi-generator makes of a string or an array does not compile in Java's native client, and Kotlin's cannot
// read it.
func TestTheDocumentHasNoUnions(t *testing.T) {
	for name, schema := range loadOpenAPI(t).Components.Schemas {
		for member, property := range schema.Value.Properties {
			if len(property.Value.OneOf)+len(property.Value.AnyOf)+len(property.Value.AllOf) > 0 {
				t.Errorf("%s.%s is one of several types", name, member)
			}
		}
	}
}

// loadOpenAPI reads the document that is served.
func loadOpenAPI(t *testing.T) *openapi3.T {
	t.Helper()
	document, err := openapi3.NewLoader().LoadFromData(openAPI)
	testenv.Must(t, err)
	return document
}

// clientCodes lists every code that an answer may carry, in alphabetical order. Only commands
// answer with the codes for signing keys.
func clientCodes() []string {
	commands := []*fault.Fault{auth.ErrKeyNotFound, auth.ErrKeyStatus, auth.ErrKeyTooNew, auth.ErrKeyInUse,
		auth.ErrKeysUnused}
	var codes []string
	for _, f := range slices.Concat(httpserver.Faults(), auth.Faults(), contact.Faults(), []*fault.Fault{errNotReady}) {
		if !slices.Contains(commands, f) {
			codes = append(codes, f.Code)
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// The document names exactly the codes that the modules can answer with.
func TestOpenAPINamesTheCodesThatThereAre(t *testing.T) {
	t.Parallel()
	document := loadOpenAPI(t)
	named := map[string]bool{}
	for path, item := range document.Paths.Map() {
		for method, operation := range item.Operations() {
			for status, response := range operation.Responses.Map() {
				content := response.Value.Content["application/problem+json"]
				if content == nil {
					continue
				}
				for code, example := range content.Examples {
					if value := example.Value.Value.(map[string]any); value["code"] != code {
						t.Errorf("%s %s: the example of %s in %s has the code %s", method, path, code, status,
							value["code"])
					}
					named[code] = true
				}
			}
		}
	}
	// Codes of routes that do not exist, and of programs that mount the module.
	for _, code := range []string{"not_found", "method_not_allowed", "unauthenticated", "forbidden",
		"too_many_requests"} {
		named[code] = true
	}
	for _, code := range clientCodes() {
		if !named[code] {
			t.Errorf("no operation answers %s: name it in its routes, then run: go test ./cmd/authctl -run OpenAPI -update",
				code)
		}
		delete(named, code)
	}
	for code := range named {
		t.Errorf("%s is a code of no module: list it in Faults of its module", code)
	}
}

// Imported accounts may break today's rules for names and passwords, and login must accept them.
func TestLoginIsNotHeldToTheRulesOfRegistration(t *testing.T) {
	t.Parallel()
	schemas := loadOpenAPI(t).Components.Schemas
	register, login := schemas["RegisterRequest"].Value, schemas["LoginRequest"].Value
	for _, name := range []string{"username", "password"} {
		if p := register.Properties[name].Value; p.MinLength == 0 || p.MaxLength == nil {
			t.Errorf("register has no limits for %s", name)
		}
		if p := login.Properties[name].Value; p.MinLength != 0 || p.MaxLength != nil {
			t.Errorf("login has limits for %s: %+v", name, p)
		}
	}
	for name, want := range map[string]string{
		"RegisterRequest": "username password", "LoginRequest": "username password", "RefreshRequest": "",
		"LogoutRequest": "",
		"PasswordProof": "password", "PasswordChange": "current_password new_password", "Sessions": "sessions",
	} {
		if got := strings.Join(schemas[name].Value.Required, " "); got != want {
			t.Errorf("%s requires %q, want %q", name, got, want)
		}
	}
}
