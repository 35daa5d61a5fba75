package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// The clients in docs/examples are generated from the document, compiled, and run against the
// binary.

// example copies an example into the test's folder, for the generated code to join it there.
func example(t *testing.T, language string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("examples", language))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// saysWhatItShould checks the output of an example.
func saysWhatItShould(t *testing.T, said string) {
	t.Helper()
	if !regexp.MustCompile(`(?mi)^signed in: example \S+ true\r?$`).MatchString(said) ||
		!regexp.MustCompile(`(?m)^refused: 401 (\S*invalid_credentials )?Username or password is wrong\r?$`).MatchString(said) {
		t.Errorf("the client says:\n%s", said)
	}
}

func TestATypeScriptClientIsMadeOfTheDocument(t *testing.T) {
	t.Parallel()
	node := testenv.Program(t, "install Node.js", "node")
	modules := testenv.NodeModules(t, "examples/typescript")
	dir := example(t, "typescript")
	if err := os.Symlink(filepath.Join(modules, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, nil, node, "node_modules/openapi-typescript/bin/cli.js", document(t), "--output", "authctl.d.ts")
	types, err := os.ReadFile(filepath.Join(dir, "authctl.d.ts"))
	if err != nil {
		t.Fatal(err)
	}
	const published = "examples/typescript/authctl.d.ts"
	if *update {
		if err := os.WriteFile(published, types, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != string(types) {
		t.Errorf("docs/%s is out of date; go test ./docs -run TypeScript -update writes it", published)
	}
	tool(t, dir, nil, node, "node_modules/typescript/bin/tsc")
	saysWhatItShould(t, tool(t, dir, []string{"AUTHCTL_URL=" + serve(t, t.TempDir())}, node, "client.js"))
}

func TestAGoClientIsMadeOfTheDocument(t *testing.T) {
	t.Parallel()
	dir := example(t, "go")
	offline := []string{"GOFLAGS=-mod=readonly", "GOWORK=off"}
	testenv.GoModules(t, dir)
	tool(t, dir, offline, "go", "tool", "oapi-codegen", "-config", "oapi-codegen.yaml", document(t))
	tool(t, dir, offline, "go", "vet", ".")
	saysWhatItShould(t, tool(t, dir, append(offline, "AUTHCTL_URL="+serve(t, t.TempDir())), "go", "run", "."))
}

// harmless matches harmless warnings of openapi-generator: version 3.1, a server address relative
// to the document, a parameter named like a Python keyword, and unnamed parts of a schema.
var harmless = regexp.MustCompile(`OpenAPI 3.1 support is still in beta|server URL \[http://../..\]|Except \(reserved word\)|schema name: null`)

func TestAPythonClientIsMadeOfTheDocument(t *testing.T) {
	t.Parallel()
	python := testenv.Program(t, "install Python 3", "python3")
	java := testenv.Program(t, "openapi-generator needs a Java runtime", "java")
	packages := testenv.PythonPackages(t, tools)
	dir := example(t, "python")
	said := tool(t, dir, nil, java, "-jar", filepath.Join(packages, "openapi_generator_cli/openapi-generator.jar"),
		"generate", "-g", "python", "--package-name", "authctl_client", "-i", document(t), "-o", "generated")
	for line := range strings.Lines(said) {
		if strings.Contains(line, " ERROR ") || strings.Contains(line, " WARN ") && !harmless.MatchString(line) {
			t.Errorf("the generator warns: %s", line)
		}
	}
	path := "PYTHONPATH=" + filepath.Join(dir, "generated") + string(os.PathListSeparator) + packages
	saysWhatItShould(t, tool(t, dir, []string{path, "AUTHCTL_URL=" + serve(t, t.TempDir())}, python, "-W", "error",
		"client.py"))
}
