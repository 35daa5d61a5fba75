// Package archtest checks the architecture: which package may import which, and which library is
// used where. The lists below are the architecture. A package that is not on them fails the test,
// so that somebody decides where it belongs.
package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/toppira/authctl/"

// arrows lists every package with the packages of this module that its code may import. A name that
// ends in /... means the package and all below it. Arrows point down: cmd → modules/auth/authhttp →
// modules/auth → modules/outbox → platform.
var arrows = map[string][]string{
	"cmd/authctl": {"migrations", "modules/...", "platform/..."},
	"cmd/bench":   {"migrations", "modules/...", "platform/..."},
	"deploy":      {}, // tests of the files in this folder, which run the binary
	// the examples of the pages, and tests of the pages
	"docs": {"migrations", "modules/...", "platform/..."},

	"docs/schemas": {}, // files, for the route that serves them

	"modules/auth/authhttp": {"docs/schemas", "modules/auth", "platform/config", "platform/fault",
		"platform/httpserver"},
	"modules/auth": {
		"modules/auth/internal/...", "modules/outbox",
		"platform/batch", "platform/cache", "platform/config", "platform/database", "platform/fault",
		"platform/logging",
		"platform/retry", "platform/tracing",
	},
	"modules/auth/authbench": {"modules/auth/internal/session/...", "platform/cache", "platform/config",
		"platform/database"}, // fills an installation, for cmd/bench
	"modules/auth/campaign":      {}, // tests of the binary
	"modules/auth/internal/feed": {"platform/database", "platform/metric"},
	"modules/auth/internal/password": {"platform/config", "platform/fault", "platform/metric", "platform/tracing",
		"platform/tuning"},
	"modules/auth/internal/password/blocklist/generate": {},
	"modules/auth/internal/session":                     {"platform/config", "platform/fault"},
	"modules/auth/internal/session/redis": {"modules/auth/internal/session", "platform/cache",
		"platform/config", "platform/retry"},
	"modules/auth/internal/session/sql": {"modules/auth/internal/session", "platform/config",
		"platform/database"},
	"modules/auth/internal/signingkey": {"modules/auth/internal/token", "platform/database",
		"platform/fault", "platform/logging"},
	"modules/auth/internal/throttle": {"platform/batch", "platform/cache", "platform/config",
		"platform/database", "platform/fault", "platform/metric"},
	"modules/auth/internal/token":    {"platform/config", "platform/fault", "platform/seal"},
	"modules/auth/internal/userfile": {"modules/auth/internal/password", "platform/fault"},
	"modules/auth/internal/username": {"platform/fault"},

	"modules/contact": {
		"modules/auth", "modules/outbox",
		"platform/config", "platform/database", "platform/fault", "platform/logging", "platform/metric", "platform/retry",
		"platform/seal", "platform/tracing",
	},
	"modules/contact/page": {"platform/httpserver"},
	"modules/contact/contacthttp": {"modules/auth", "modules/auth/authhttp", "modules/contact", "platform/fault",
		"platform/httpserver"},
	"modules/contact/mail": {"modules/contact", "modules/outbox", "modules/outbox/delivery", "platform/config",
		"platform/database"},

	"modules/outbox": {"modules/outbox/internal/schema", "platform/database", "platform/retry", "platform/tracing"},
	"modules/outbox/delivery": {"modules/outbox", "modules/outbox/internal/schema", "modules/outbox/relay",
		"platform/config", "platform/database", "platform/metric", "platform/retry", "platform/tracing"},
	"modules/outbox/internal/schema": {"platform/database"},
	"modules/outbox/relay": {"modules/outbox", "modules/outbox/internal/schema", "platform/config",
		"platform/database", "platform/metric", "platform/retry", "platform/tracing"},
	"modules/outbox/sink": {"modules/outbox", "modules/outbox/relay", "platform/config", "platform/metric"},
	"modules/outbox/webhook": {"modules/outbox", "modules/outbox/delivery", "modules/outbox/sink",
		"platform/config", "platform/seal"},
	"modules/outbox/outboxbench": {"modules/outbox", "modules/outbox/relay", "platform/database",
		"platform/retry"},

	"platform/cache":      {"platform/config", "platform/tracing"},
	"platform/config":     {},
	"platform/database":   {"platform/config", "platform/retry", "platform/tracing"},
	"platform/fault":      {},
	"platform/batch":      {},
	"platform/engines":    {}, // starts servers, for tests and cmd/bench
	"platform/httpserver": {"platform/config", "platform/fault", "platform/metric", "platform/tracing"},
	"platform/openapi":    {"platform/fault", "platform/httpserver"}, // for tests and tools only
	"platform/logging":    {"platform/config"},
	"platform/telemetry":  {"platform/config"},
	"platform/metric":     {},
	"platform/retry":      {},
	"platform/seal":       {"platform/config"},
	"platform/tracing":    {"platform/retry"},
	"platform/tuning":     {"platform/retry"},

	"migrations":      {"deploy/postgres", "platform/database", "platform/retry"},
	"deploy/postgres": {}, // the rights of the database roles, which the binary grants

	// Support for tests: imported by tests and by each other, see testSupport.
	"modules/auth/internal/session/sessiontest": {"modules/auth/internal/session"},
	"modules/outbox/outboxtest":                 {"modules/outbox", "platform/database", "platform/engines"},
	"platform/archtest":                         {},
	"platform/httpserver/httpservertest":        {"platform/httpserver"},
	"platform/openapi/openapitest":              {},
	"platform/cache/cachetest":                  {"platform/cache", "platform/config", "platform/retry"},
	"platform/database/dbtest": {"migrations", "platform/config", "platform/database",
		"platform/retry"},
	"platform/testenv":             {"platform/engines"},
	"platform/tracing/tracingtest": {},
}

// testSupport reports whether a package exists for tests only.
func testSupport(pkg string) bool {
	return pkg == "platform/testenv" || strings.HasSuffix(path.Base(pkg), "test")
}

// libraries lists libraries that may only be used in a few places, and those places. Without a
// place the library is forbidden. Tests may use it where the second list says so.
var libraries = []struct {
	prefix      string
	code, tests []string
	why         string
}{
	{"github.com/gofiber/", []string{"platform/httpserver", "cmd/bench"}, nil,
		"an endpoint is a declaration and a plain function: see httpserver.Route"},
	{"github.com/valyala/fasthttp", []string{"platform/httpserver", "cmd/bench"}, nil,
		"an endpoint is a declaration and a plain function: see httpserver.Route"},
	{"github.com/getkin/kin-openapi", []string{"platform/openapi/..."}, []string{"cmd/authctl"},
		"the binary carries the document, not what makes it"},
	{"github.com/swaggo/", nil, nil, "the document is made of the table: see platform/openapi"},
	{"github.com/IBM/sarama", []string{"modules/outbox/sink", "cmd/bench"}, nil,
		"Kafka is one kind of sink: use relay.Sink"},
	{"github.com/twmb/franz-go", []string{"modules/outbox/outboxtest"},
		[]string{"modules/outbox/...", "cmd/...", "docs"},
		"it is the tests' second opinion on Kafka, not the service's client"},
	{"github.com/wneessen/go-mail", []string{"modules/contact/mail"}, nil,
		"mail is one kind of target: see modules/contact/mail"},
	{"github.com/spf13/cobra", []string{"cmd/authctl"}, nil, "only commands know the command line"},
	{"github.com/spf13/pflag", []string{"cmd/authctl"}, nil, "only commands know the command line"},
	{"github.com/spf13/viper", []string{"platform/config"}, nil, "settings come as a struct: see platform/config"},
	{"github.com/golang-jwt/jwt", []string{"modules/auth/internal/token"}, []string{"docs"},
		"its defaults are not strict enough: use the one wrapped verifier"},
	{"github.com/alicebob/miniredis", nil, []string{"..."}, "it is a stand-in for tests"},
	{"github.com/anishathalye/porcupine", []string{"modules/auth/internal/session/sessiontest"}, []string{"..."},
		"it checks histories in tests"},
	{"github.com/uptrace/bun", []string{"platform/database", "migrations"}, nil,
		"it writes arguments into the text of a statement: platform/database binds them; Bun is for its migrator"},
	{"github.com/redis/go-redis", []string{"platform/cache", "modules/auth/internal/session/redis",
		"modules/auth/internal/throttle", "cmd/bench"}, []string{"..."},
		"Redis keeps sessions and counters: each store hides how"},
	{"github.com/uptrace/bun/driver/", nil, nil,
		"PostgreSQL is reached through pgx, SQLite through modernc.org/sqlite"},
	{"github.com/lib/pq", nil, nil, "PostgreSQL is reached through pgx"},
	{"github.com/mattn/go-sqlite3", nil, nil, "it needs cgo: modernc.org/sqlite does not"},
	{"go.opentelemetry.io/", []string{"platform/tracing/..."}, nil,
		"spans come from the context: use platform/tracing"},
	{"math/rand", []string{"modules/auth/internal/feed", "modules/auth/internal/password", "modules/outbox",
		"modules/outbox/delivery", "platform/engines", "platform/httpserver", "platform/retry", "cmd/bench"}, []string{"..."},
		"secrets come from crypto/rand; this spreads retries and numbers requests"},
}

// pkg is what go list says about a package, with paths relative to the module.
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestEveryPackageImportsOnlyWhatTheArchitectureAllows(t *testing.T) {
	t.Parallel()
	for _, problem := range check(list(t), arrows) {
		t.Error(problem)
	}
}

// The rules hold whatever the lists say.
func TestTheListsKeepTheArrowsPointingDown(t *testing.T) {
	t.Parallel()
	for from, targets := range arrows {
		if testSupport(from) {
			continue
		}
		for _, to := range targets {
			if upward(from, to) {
				t.Errorf("the list lets %s import %s: arrows point down", from, to)
			}
			if testSupport(to) {
				t.Errorf("the list lets the code of %s import %s, which is for tests", from, to)
			}
		}
	}
}

func upward(from, to string) bool {
	switch layer := strings.Split(from, "/")[0]; layer {
	case "cmd", "docs":
		return false
	case "modules":
		// Of the modules, auth may use outbox, contact may use both, and nothing uses contact.
		crosses := strings.HasPrefix(to, "modules/") &&
			!within(to, strings.Join(strings.Split(from, "/")[:2], "/")+"/...")
		allowed := within(from, "modules/auth/...") && to == "modules/outbox" ||
			within(from, "modules/contact/...") && (within(to, "modules/outbox/...") || within(to, "modules/auth/..."))
		return strings.HasPrefix(to, "cmd/") || crosses && !allowed
	default:
		return strings.HasPrefix(to, "cmd/") || strings.HasPrefix(to, "modules/")
	}
}

// within reports whether a pattern matches a package: by its name, or by a name and /... .
func within(name, pattern string) bool {
	parent, all := strings.CutSuffix(pattern, "...")
	if !all {
		return name == pattern
	}
	return strings.HasPrefix(name+"/", parent)
}

func withinAny(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(name, p) })
}

// check returns the faults, one sentence each.
func check(pkgs []pkg, arrows map[string][]string) (problems []string) {
	bad := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	seen := map[string]bool{}
	for _, p := range pkgs {
		seen[p.ImportPath] = true
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared"},
			path.Base(p.ImportPath)) {
			bad("%s: name a package for what it provides", p.ImportPath)
		}
		allowed, listed := arrows[p.ImportPath]
		if !listed {
			bad("%s is not on the list: decide what it may import and who it serves, and add it to arrows in platform/archtest", p.ImportPath)
			continue
		}
		for _, to := range p.Imports {
			if slices.ContainsFunc(pkgs, func(q pkg) bool { return q.ImportPath == to }) {
				ok := withinAny(to, allowed) || testSupport(p.ImportPath) && testSupport(to)
				if !ok || testSupport(to) && !testSupport(p.ImportPath) {
					bad("%s imports %s, which its line of arrows in platform/archtest does not allow", p.ImportPath, to)
				}
			}
		}
		for _, to := range slices.Concat(p.TestImports, p.XTestImports) {
			if slices.ContainsFunc(pkgs, func(q pkg) bool { return q.ImportPath == to }) {
				ok := to == p.ImportPath || to == "migrations" || testSupport(to) || withinAny(to, allowed)
				// Tests may import what their package's imports import.
				ok = ok || !upward(p.ImportPath, to)
				if !ok {
					bad("the tests of %s import %s: arrows point down there too", p.ImportPath, to)
				}
			}
		}
		for _, lib := range libraries {
			uses := func(imports []string) bool {
				return slices.ContainsFunc(imports, func(i string) bool { return strings.HasPrefix(i, lib.prefix) })
			}
			if uses(p.Imports) && !withinAny(p.ImportPath, lib.code) &&
				!(testSupport(p.ImportPath) && withinAny(p.ImportPath, lib.tests)) {
				bad("%s imports %s: %s", p.ImportPath, lib.prefix, lib.why)
			}
			if uses(slices.Concat(p.TestImports, p.XTestImports)) &&
				!withinAny(p.ImportPath, slices.Concat(lib.code, lib.tests)) {
				bad("the tests of %s import %s: %s", p.ImportPath, lib.prefix, lib.why)
			}
		}
	}
	for name := range arrows {
		if !seen[name] {
			bad("%s is on the list of platform/archtest, and does not exist: take it off", name)
		}
	}
	slices.Sort(problems)
	return problems
}

// list asks the go command for every package of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return pkgs
		case err != nil:
			t.Fatalf("read what go list says: %v", err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		for _, imports := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			for i := range imports {
				imports[i] = strings.TrimPrefix(imports[i], module)
			}
		}
		pkgs = append(pkgs, p)
	}
}

// platform/tracing has its own client for collectors, since the published one brings gRPC and its
// gateway: 95 unused packages in the binary.
func TestTheBinaryHasNoGRPC(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/authctl")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "go.opentelemetry.io/otel/exporters/otlp/otlptrace") {
		t.Error("the list is not that of the binary")
	}
	for _, dep := range deps {
		if strings.HasPrefix(dep, "google.golang.org/grpc") || strings.HasPrefix(dep, "github.com/grpc-ecosystem/") ||
			strings.HasPrefix(dep, "google.golang.org/genproto") {
			t.Errorf("the binary has %s", dep)
		}
	}
}

// A check that cannot fail shows nothing.
func TestCheckFindsEachKindOfFault(t *testing.T) {
	t.Parallel()
	list := map[string][]string{
		"modules/auth":   {"modules/outbox"},
		"modules/outbox": {"platform/fault"},
		"platform/fault": {}, "platform/testenv": {}, "cmd/authctl": {"modules/..."},
	}
	whole := func(changed pkg) []pkg {
		pkgs := []pkg{{ImportPath: "modules/auth"}, {ImportPath: "modules/outbox"}, {ImportPath: "platform/fault"},
			{ImportPath: "platform/testenv"}, {ImportPath: "cmd/authctl"}}
		for i := range pkgs {
			if pkgs[i].ImportPath == changed.ImportPath {
				pkgs[i] = changed
				return pkgs
			}
		}
		return append(pkgs, changed)
	}
	for _, test := range []struct {
		name    string
		changed pkg
		problem string // part of the fault; empty for none
	}{
		{"downward", pkg{ImportPath: "modules/auth", Imports: []string{"modules/outbox"}}, ""},
		{"upward", pkg{ImportPath: "modules/outbox", Imports: []string{"modules/auth"}},
			"modules/outbox imports modules/auth"},
		{"upward in a test", pkg{ImportPath: "modules/outbox", XTestImports: []string{"modules/auth"}},
			"the tests of modules/outbox import modules/auth"},
		{"platform knows a module", pkg{ImportPath: "platform/fault", Imports: []string{"modules/outbox"}},
			"platform/fault imports modules/outbox"},
		{"not on its line", pkg{ImportPath: "modules/auth", Imports: []string{"platform/fault"}},
			"modules/auth imports platform/fault"},
		{"unlisted", pkg{ImportPath: "modules/mail"}, "modules/mail is not on the list"},
		{"named for nothing", pkg{ImportPath: "platform/util"}, "name a package for what it provides"},
		{"test support in code", pkg{ImportPath: "modules/auth", Imports: []string{"platform/testenv"}},
			"modules/auth imports platform/testenv"},
		{"test support in tests", pkg{ImportPath: "modules/auth", TestImports: []string{"platform/testenv"}}, ""},
		{"Fiber in a module", pkg{ImportPath: "modules/auth", Imports: []string{"github.com/gofiber/fiber/v2"}},
			"a plain function"},
		{"Fiber in a command", pkg{ImportPath: "cmd/authctl", Imports: []string{"github.com/gofiber/fiber/v2"}},
			"a plain function"},
		{"Fiber in a test", pkg{ImportPath: "modules/auth", TestImports: []string{"github.com/gofiber/fiber/v2"}},
			"a plain function"},
		{"Sarama in the outbox", pkg{ImportPath: "modules/outbox", TestImports: []string{"github.com/IBM/sarama"}},
			"use relay.Sink"},
		{"weak randomness", pkg{ImportPath: "modules/auth", Imports: []string{"math/rand/v2"}}, "crypto/rand"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			problems := check(whole(test.changed), list)
			if test.problem == "" && len(problems) > 0 {
				t.Errorf("refused: %q", problems)
			}
			if test.problem != "" && !strings.Contains(strings.Join(problems, "\n"), test.problem) {
				t.Errorf("problems are %q, want %q", problems, test.problem)
			}
		})
	}
}
