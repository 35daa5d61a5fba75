package docs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// tools is the folder that pins the tools for the OpenAPI document.
const tools = "testdata/openapi"

// document is the OpenAPI document as other programs get it.
func document(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, "cmd/authctl/openapi/openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a program in a folder and returns its output. A failure fails the test.
func tool(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*testenv.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out.Bytes())
	}
	return out.String()
}

// schemathesis makes requests from the document, right and wrong ones, alone and in sequences. No
// answer is a 5xx, or has an undocumented status, media type, header or member. Requests that fit
// the document are accepted; those that do not, or lack credentials, are refused.
func TestSchemathesisFindsNothingInTheAnswers(t *testing.T) {
	t.Parallel()
	python := testenv.Program(t, "install Python 3", "python3")
	packages := testenv.PythonPackages(t, tools)
	pinned, err := filepath.Abs(tools)
	if err != nil {
		t.Fatal(err)
	}
	base := serve(t, t.TempDir(), "AUTH_THROTTLE_ENABLED=false",
		"AUTH_CLIENTS=gateway:1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0") // the hash of s3cret
	said := tool(t, t.TempDir(), []string{
		"PYTHONPATH=" + packages + string(os.PathListSeparator) + pinned, "PYTHONDONTWRITEBYTECODE=1",
		"SCHEMATHESIS_HOOKS=hooks",
		"AUTHCTL_URL=" + base,
	}, python, filepath.Join(packages, "bin/schemathesis"), "--no-color", "--config-file", filepath.Join(pinned, "schemathesis.toml"),
		"run", document(t), "--url", base, "--generation-deterministic",
		"--max-examples", "15", "--workers", "2", "--warnings", "off", "--continue-on-failure",
		"--request-timeout", strconv.Itoa(int(testenv.Patience.Seconds())))
	ran := regexp.MustCompile(`(?m)^\s*(\d+) generated, \d+ passed`).FindStringSubmatch(said)
	if ran == nil {
		t.Fatalf("schemathesis does not say how many cases ran:\n%s", said)
	}
	if n, _ := strconv.Atoi(ran[1]); n < 300 {
		t.Errorf("only %d cases ran:\n%s", n, said)
	}
}

func TestALinterFindsNothingInTheDocument(t *testing.T) {
	t.Parallel()
	modules := testenv.NodeModules(t, tools)
	rules := filepath.Join(modules, "spectral.yaml")
	if err := os.WriteFile(rules, []byte("extends: [\"spectral:oas\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lint := func(file string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(modules, "node_modules/.bin/spectral"),
			"lint", "--ruleset", rules, "--fail-severity", "hint", file)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := lint(document(t)); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The linter does find planted errors.
	text, err := os.ReadFile(document(t))
	if err != nil {
		t.Fatal(err)
	}
	worse := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(worse,
		bytes.Replace(text, []byte(`"operationId": "me"`), []byte(`"operationId": "login"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := lint(worse); err == nil || !strings.Contains(out, "operation-operationId-unique") {
		t.Errorf("the linter accepts two operations of one name: %v\n%s", err, out)
	}
}
