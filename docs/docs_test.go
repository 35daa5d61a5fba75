// Package docs_test checks the pages: their examples run, and the codes, commands, settings,
// metrics, files and tests that they name exist.
package docs_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/platform/httpserver"
)

const root = ".." // the root of the module

// page is a Markdown file.
type page struct {
	path  string // relative to the root
	text  string
	prose string  // without the fenced blocks
	fence []block // in order
}

// block is a fenced block.
type block struct{ language, text, heading string }

var (
	fences   = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	headings = regexp.MustCompile(`(?m)^#+ (.+)$`)
	spans    = regexp.MustCompile("`([^`\n]+)`")
)

// pages are all Markdown pages of the repository, including the README.
func pages(t *testing.T) []page {
	t.Helper()
	var list []page
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "deploy/*.md", "deploy/*/*.md",
		".github/*.md", "verify/*.md", "verify/*/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			list = append(list, read(t, file))
		}
	}
	if len(list) < 10 {
		t.Fatalf("only %d pages were found", len(list))
	}
	return list
}

func read(t *testing.T, file string) page {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := page{path: strings.TrimPrefix(file, root+"/"), text: string(text)}
	heading, at := "", 0
	for _, m := range fences.FindAllStringSubmatchIndex(p.text, -1) {
		between := p.text[at:m[0]]
		p.prose += between
		if all := headings.FindAllStringSubmatch(between, -1); len(all) > 0 {
			heading = all[len(all)-1][1]
		}
		p.fence = append(p.fence, block{p.text[m[2]:m[3]], p.text[m[4]:m[5]], heading})
		at = m[1]
	}
	p.prose += p.text[at:]
	return p
}

func (p page) headings() []string {
	var list []string
	for _, m := range headings.FindAllStringSubmatch(p.prose, -1) {
		list = append(list, strings.Trim(m[1], "`"))
	}
	return list
}

// anchor is the anchor that GitHub makes from a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return -1
	}, strings.ToLower(heading))
}

func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchors := map[string][]string{}
	for _, p := range pages(t) {
		for _, h := range p.headings() {
			anchors[p.path] = append(anchors[p.path], anchor(h))
		}
	}
	links := 0
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			links++
			file, fragment, _ := strings.Cut(m[1], "#")
			target := p.path
			if file != "" {
				target = filepath.Join(filepath.Dir(p.path), file)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", p.path, m[1])
			} else if fragment != "" && !slices.Contains(anchors[target], fragment) {
				t.Errorf("%s links to %s, and there is no such heading", p.path, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found", links)
	}
}

// same compares what exists with what the pages explain.
func same(t *testing.T, what string, is, said []string) {
	t.Helper()
	slices.Sort(is)
	is = slices.Compact(is)
	slices.Sort(said)
	for _, one := range is {
		if !slices.Contains(said, one) {
			t.Errorf("%s %s is not explained", what, one)
		}
	}
	for i, one := range said {
		if !slices.Contains(is, one) {
			t.Errorf("%s %s is explained, but does not exist", what, one)
		}
		if i > 0 && said[i-1] == one {
			t.Errorf("%s %s is explained twice", what, one)
		}
	}
}

func TestEveryErrorCodeIsExplained(t *testing.T) {
	t.Parallel()
	var codes []string
	for _, f := range slices.Concat(auth.Faults(), contact.Faults(), httpserver.Faults()) {
		codes = append(codes, f.Code)
	}
	declared := regexp.MustCompile(`fault\.New\(fault\.\w+, "(\w+)"`)
	for _, file := range goFiles(t, filepath.Join(root, "modules")) {
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllStringSubmatch(string(code), -1) {
			if !strings.HasSuffix(file, "_test.go") && !slices.Contains(codes, m[1]) {
				t.Errorf("%s declares the code %s: list it in Faults of its module", file, m[1])
			}
		}
	}
	p := read(t, "errors.md")
	var explained []string
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)$`).FindAllStringSubmatch(p.prose, -1) {
		explained = append(explained, m[1])
	}
	// Faults of the process itself, which belong to no module, by their source.
	for _, m := range declared.FindAllStringSubmatch(source(t, "cmd/authctl"), -1) {
		codes = append(codes, m[1])
	}
	same(t, "the code", codes, explained)
}

func TestEveryFieldCodeIsExplained(t *testing.T) {
	t.Parallel()
	// Field codes are the second argument of Field, and the constants of two packages.
	var codes []string
	for _, dir := range []string{"modules/auth", "modules/auth/authhttp", "modules/contact",
		"modules/contact/contacthttp", "platform/httpserver"} {
		inspect(t, dir, func(n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 {
				return
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Field" {
				return
			}
			if lit, ok := call.Args[1].(*ast.BasicLit); ok {
				codes = append(codes, unquote(t, lit))
			}
		})
	}
	code := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	for _, dir := range []string{"modules/auth/internal/username", "modules/auth/internal/password"} {
		refused := ""
		inspect(t, dir, func(n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Refuse" {
				return
			}
			if first, ok := call.Args[0].(*ast.Ident); ok {
				refused += " " + first.Name + " "
			}
		})
		inspect(t, dir, func(n ast.Node) {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 || !strings.Contains(refused, " "+spec.Names[0].Name+" ") {
				return
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok && code.MatchString(unquote(t, lit)) {
				codes = append(codes, unquote(t, lit))
			}
		})
	}
	for _, m := range regexp.MustCompile(`fault\.Refuse\("(\w+)"`).FindAllStringSubmatch(source(t, "modules/contact"),
		-1) {
		codes = append(codes, m[1])
	}
	same(t, "the code of a field", codes, tableOf(t, "errors.md", "Fields"))
}

func TestEveryOAuthErrorIsExplained(t *testing.T) {
	t.Parallel()
	var codes []string
	text := source(t, "platform/httpserver") + source(t, "modules/auth/authhttp")
	for _, m := range regexp.MustCompile(`(?:OAuthError\{[^}\n]*Code: |\be\.Code = )"(\w+)"`).FindAllStringSubmatch(text, -1) {
		codes = append(codes, m[1])
	}
	same(t, "the OAuth error", codes, tableOf(t, "errors.md", "OAuth"))
}

// tableOf returns the code spans that begin the rows under a heading.
func tableOf(t *testing.T, name, heading string) []string {
	t.Helper()
	_, text, found := strings.Cut(read(t, name).text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %s", name, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var list []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		if m[1] != "error" {
			list = append(list, m[1])
		}
	}
	return list
}

// source is the code of a folder, without its tests.
func source(t *testing.T, dir string) string {
	t.Helper()
	var text bytes.Buffer
	for _, file := range goFiles(t, filepath.Join(root, dir)) {
		if strings.HasSuffix(file, "_test.go") || filepath.Dir(file) != filepath.Join(root, dir) {
			continue
		}
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(code)
	}
	return text.String()
}

// inspect visits the code of a folder, without its tests.
func inspect(t *testing.T, dir string, visit func(ast.Node)) {
	t.Helper()
	for _, file := range goFiles(t, filepath.Join(root, dir)) {
		if strings.HasSuffix(file, "_test.go") || filepath.Dir(file) != filepath.Join(root, dir) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool { visit(n); return true })
	}
}

func unquote(t *testing.T, lit *ast.BasicLit) string {
	t.Helper()
	text, err := strconv.Unquote(lit.Value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func goFiles(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 {
			return fs.SkipDir
		}
		if err == nil && strings.HasSuffix(path, ".go") {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Go code in the pages is an excerpt of a test in the same folder, so it compiles and runs.
func TestGoInThePagesIsThatOfTests(t *testing.T) {
	t.Parallel()
	var tests string
	for _, file := range append(goFiles(t, "."), goFiles(t, "../verify")...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests += string(text)
	}
	blocks := 0
	for _, p := range pages(t) {
		for _, b := range p.fence {
			if b.language != "go" {
				continue
			}
			if blocks++; !strings.Contains(tests, b.text) {
				t.Errorf("%s, %s: this is in no test of docs/ or verify/:\n%s", p.path, b.heading, b.text)
			}
		}
	}
	if blocks < 3 {
		t.Errorf("only %d blocks of Go were found", blocks)
	}
}

func TestExamplesOfEventsAreValid(t *testing.T) {
	t.Parallel()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	shown := map[string]bool{}
	check := func(p page, b block, eventType string, data any) {
		text, err := os.ReadFile(filepath.Join("schemas", eventType+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s, %s: there is no type %q", p.path, b.heading, eventType)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		address := fmt.Sprintf("test:%s/%d", eventType, len(shown))
		if err := compiler.AddResource(address, doc); err != nil {
			var already *jsonschema.ResourceExistsError
			if !errors.As(err, &already) {
				t.Fatal(err)
			}
		}
		schema, err := compiler.Compile(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(data); err != nil {
			t.Errorf("%s, %s: %v", p.path, b.heading, err)
		}
		shown[eventType] = true
	}
	p := read(t, "events.md")
	for _, b := range p.fence {
		if b.language != "json" {
			continue
		}
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(b.text))
		if err != nil {
			t.Errorf("%s, %s: %v", p.path, b.heading, err)
			continue
		}
		object := value.(map[string]any)
		if whole, is := object["type"].(string); is {
			check(p, b, whole, object["data"])
			continue
		}
		check(p, b, strings.Trim(b.heading, "`"), value)
	}
	for _, eventType := range slices.Concat(auth.EventTypes(), contact.EventTypes()) {
		if !shown[eventType] {
			t.Errorf("there is no example of %s", eventType)
		}
	}
}

// scratch is a folder for what the tests build; [TestMain] removes it.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "authctl-docs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "authctl")
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/authctl")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build authctl: %w\n%s", err, out)
	}
	return binary, nil
})

func authctl(t *testing.T) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// helps returns the help of a command, from a cache.
type helps struct {
	mu    sync.Mutex
	known map[string]string
}

func (h *helps) of(t *testing.T, words ...string) (string, bool) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	key := strings.Join(words, " ")
	text, known := h.known[key]
	if !known {
		cmd := exec.CommandContext(t.Context(), authctl(t), append(words, "--help")...)
		cmd.Dir = t.TempDir()
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}
		out, err := cmd.Output()
		if err == nil {
			text = string(out)
		}
		h.known[key] = text
	}
	// For an unknown word, cobra prints the help of the parent.
	return text, strings.Contains(text, "\n  authctl"+prefixed(words)+" ") ||
		strings.Contains(text, "\n  authctl"+prefixed(words)+"\n") || len(words) == 0
}

func prefixed(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return " " + strings.Join(words, " ")
}

// Every command line in the pages names a command that exists, and flags that it has.
func TestCommandsInThePagesExist(t *testing.T) {
	t.Parallel()
	cache := helps{known: map[string]string{}}
	word := regexp.MustCompile(`^[a-z][a-z-]*$`)
	lines := 0
	for _, p := range pages(t) {
		var commands []string
		for _, b := range p.fence {
			if b.language == "sh" {
				commands = append(commands, strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n")...)
			}
		}
		for _, m := range spans.FindAllStringSubmatch(p.prose, -1) {
			commands = append(commands, m[1])
		}
		for _, line := range commands {
			if line, _, _ = strings.Cut(line, " #"); !strings.Contains(line, "authctl ") {
				continue
			}
			for part := range strings.FieldsFuncSeq(line, func(r rune) bool {
				return r == '|' || r == ';' || r == '&' || r == '(' || r == ')'
			}) {
				fields := strings.Fields(part)
				i := slices.IndexFunc(fields, func(f string) bool {
					return f == "authctl" || strings.HasSuffix(f, "/authctl")
				})
				if i < 0 || i+1 == len(fields) || slices.Contains(fields[:i], "build") ||
					slices.Contains(fields[:i], "test") || slices.Contains(fields[:i], "install") ||
					slices.Contains(fields[:i], "FROM") || slices.Contains(fields[:i], "psql") {
					continue
				}
				var words, flags []string
				for _, f := range fields[i+1:] {
					if strings.HasPrefix(f, "-") && f != "-" {
						name, _, _ := strings.Cut(f, "=")
						flags = append(flags, name)
					}
				}
				for _, f := range fields[i+1:] {
					if !word.MatchString(f) {
						break
					}
					if _, exists := cache.of(t, append(slices.Clone(words), f)...); !exists {
						break
					}
					words = append(words, f)
				}
				lines++
				if len(words) == 0 && len(flags) == 0 && word.MatchString(fields[i+1]) {
					t.Errorf("%s: there is no such command: %s", p.path, strings.TrimSpace(part))
					continue
				}
				help, _ := cache.of(t, words...)
				if strings.Contains(help, "Available Commands:") && len(fields) > i+1+len(words) &&
					word.MatchString(fields[i+1+len(words)]) && len(words) > 0 {
					t.Errorf("%s: authctl %s has no command %s", p.path, strings.Join(words, " "),
						fields[i+1+len(words)])
				}
				for _, f := range flags {
					if !regexp.MustCompile(`(^|[\s,])` + regexp.QuoteMeta(f) + `([\s,=[]|$)`).MatchString(help) {
						t.Errorf("%s: authctl %s has no flag %s", p.path, strings.Join(words, " "), f)
					}
				}
			}
		}
	}
	if lines < 40 {
		t.Errorf("only %d command lines were found", lines)
	}
}

func TestSettingsInThePagesExist(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), authctl(t), "config", "show", "-o", "json", "--config", os.DevNull)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"HOME=" + cmd.Dir}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var keys []struct{ Path, Env string }
	if err := json.Unmarshal(out, &keys); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, k := range keys {
		known[k.Path], known[k.Env], known[k.Env+"_FILE"] = true, true, true
	}
	if len(known) < 100 {
		t.Fatalf("only %d names of settings are known", len(known))
	}
	setting := regexp.MustCompile(`^(app|auth|cache|database|db|kafka|log|outbox|redis)(\.[a-z0-9_]+)+$`)
	variable := regexp.MustCompile(`\b(APP|AUTH|CACHE|DATABASE|DB|KAFKA|LOG|OUTBOX|REDIS)_[A-Z0-9_]+\b`)
	// Not settings: the default name of the topic, and names from docker-compose.yml and of files.
	others := []string{"auth.events", "DB_MIGRATE_PASSWORD", "DB_SERVE_PASSWORD", "DB_RELAY_PASSWORD", "auth.md",
		"outbox.md"}
	check := func(p page, name string) {
		if !known[name] && !slices.Contains(others, name) {
			t.Errorf("%s: there is no setting %s", p.path, name)
		}
	}
	for _, p := range pages(t) {
		for _, m := range spans.FindAllStringSubmatch(p.prose, -1) {
			name, _, _ := strings.Cut(m[1], ":")
			if setting.MatchString(name) && !strings.HasSuffix(name, ".go") {
				check(p, name)
			}
			for _, v := range variable.FindAllString(m[1], -1) {
				check(p, v)
			}
		}
		for _, b := range p.fence {
			if b.language != "go" {
				for _, v := range variable.FindAllString(b.text, -1) {
					check(p, v)
				}
			}
		}
	}
}

// metrics are the names that the code registers.
func metrics(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	direct := regexp.MustCompile(`(?:Name:\s+|NewDesc\()"(authctl_[a-z0-9_]+)"`)
	outbox := regexp.MustCompile(`\b(?:gauge|counter)\("([a-z0-9_]+)"`)
	for _, file := range goFiles(t, root) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range direct.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
		for suffix, prefix := range map[string]string{
			"outbox/relay/metrics.go": "authctl_outbox_", "outbox/delivery/metrics.go": "authctl_outbox_target_",
		} {
			if strings.HasSuffix(file, suffix) {
				for _, m := range outbox.FindAllSubmatch(text, -1) {
					known[prefix+string(m[1])] = true
				}
			}
		}
	}
	if len(known) < 25 {
		t.Fatalf("only %d metrics were found", len(known))
	}
	return known
}

var metric = regexp.MustCompile(`\bauthctl_(?:http|outbox|password|throttle|build|revocation|redis)_[a-z0-9_]+\b`)

func checkMetrics(t *testing.T, where, text string, known map[string]bool) {
	t.Helper()
	for _, name := range metric.FindAllString(text, -1) {
		plain := name
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			plain = strings.TrimSuffix(plain, suffix)
		}
		if !known[name] && !known[plain] {
			t.Errorf("%s: there is no metric %s", where, name)
		}
	}
}

func TestMetricsInThePagesExist(t *testing.T) {
	t.Parallel()
	known := metrics(t)
	for _, p := range pages(t) {
		checkMetrics(t, p.path, p.text, known)
	}
}

// Each alert uses metrics that exist, with labels that they have, and is explained.
func TestAlertsAreSoundAndExplained(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	values := regexp.MustCompile(`\{[^}]*\}`)
	quoted := regexp.MustCompile(`(\w+)(?:=|!=|=~|!~)"([^"]*)"`)
	var code strings.Builder
	for _, dir := range []string{"modules/outbox", "modules/outbox/relay", "modules/auth/internal/feed",
		"modules/auth/internal/password", "modules/auth/internal/throttle", "modules/auth/authhttp", "cmd/authctl",
		"platform/httpserver"} {
		code.WriteString(source(t, dir))
	}
	var names []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names = append(names, r.Alert)
			checkMetrics(t, r.Alert, r.Expr, known)
			if strings.Count(r.Expr, "(") != strings.Count(r.Expr, ")") {
				t.Errorf("%s: parentheses do not match", r.Alert)
			}
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or no summary", r.Alert)
			}
			if want := "https://github.com/toppira/authctl/blob/main/docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: the runbook is %s", r.Alert, want)
			}
			for _, labels := range values.FindAllString(r.Expr, -1) {
				for _, m := range quoted.FindAllStringSubmatch(labels, -1) {
					for value := range strings.SplitSeq(m[2], "|") {
						if m[1] == "job" || m[1] == "status" {
							continue
						}
						if !strings.Contains(code.String(), `"`+value+`"`) {
							t.Errorf("%s: no metric has a label %s of %q", r.Alert, m[1], value)
						}
					}
				}
			}
		}
	}
	var explained []string
	for _, h := range read(t, "operations.md").headings() {
		if strings.HasPrefix(h, "Authctl") {
			explained = append(explained, h)
		}
	}
	same(t, "the alert", names, explained)
}

// tests are the names of all tests, fuzz targets and scripts.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	for _, file := range goFiles(t, root) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
	}
	scripts, err := filepath.Glob(filepath.Join(root, "cmd/authctl/testdata/script/*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scripts {
		known["TestScripts/"+strings.TrimSuffix(filepath.Base(s), ".txtar")] = true
	}
	return known
}

func TestTestsNamedInThePagesExist(t *testing.T) {
	t.Parallel()
	known, named := tests(t), 0
	name := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*(?:/[a-z_]+)?`)
	for _, p := range pages(t) {
		for _, m := range spans.FindAllStringSubmatch(p.prose, -1) {
			for _, one := range name.FindAllString(m[1], -1) {
				if named++; !known[one] {
					t.Errorf("%s: there is no test %s", p.path, one)
				}
			}
		}
	}
	if named < 60 {
		t.Errorf("only %d tests are named", named)
	}
}

func TestTheConformanceTableHolds(t *testing.T) {
	t.Parallel()
	f, err := os.Open("asvs.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"id", "level", "status", "evidence", "test"}; !slices.Equal(rows[0], want) {
		t.Fatalf("the columns are %q, want %q", rows[0], want)
	}
	known := tests(t)
	id := regexp.MustCompile(`^\d+\.\d+\.\d+$`)
	seen := map[string]bool{}
	for _, row := range rows[1:] {
		switch {
		case !id.MatchString(row[0]) || seen[row[0]]:
			t.Errorf("%q is no id, or occurs twice", row[0])
		case row[1] != "1" && row[1] != "2" && row[1] != "3":
			t.Errorf("%s has the level %q", row[0], row[1])
		case !slices.Contains([]string{"met", "partly", "not yet", "operator", "n/a"}, row[2]):
			t.Errorf("%s has the status %q", row[0], row[2])
		case row[3] == "":
			t.Errorf("%s has no evidence", row[0])
		}
		seen[row[0]] = true
		for name := range strings.FieldsSeq(row[4]) {
			if !known[name] {
				t.Errorf("%s: there is no test %s", row[0], name)
			}
		}
	}
	if len(seen) < 200 {
		t.Errorf("only %d rows", len(seen))
	}
}

// A code span that looks like a file of the repository names an existing one.
func TestFilesNamedInThePagesExist(t *testing.T) {
	t.Parallel()
	path := regexp.MustCompile(`^(?:\./)?(?:cmd|deploy|docs|migrations|modules|platform|\.ci|\.github)/[\w./*-]+$`)
	// Files that exist only after a run.
	made := regexp.MustCompile(`^docs/decisions/NNN-|^docs/swagger`)
	found := 0
	for _, p := range pages(t) {
		for _, m := range spans.FindAllStringSubmatch(p.prose, -1) {
			name := strings.TrimSuffix(m[1], "/...")
			if !path.MatchString(name) || made.MatchString(name) {
				continue
			}
			found++
			if list, err := filepath.Glob(filepath.Join(root, name)); err != nil || len(list) == 0 {
				t.Errorf("%s: there is no %s", p.path, m[1])
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d files are named", found)
	}
}

func TestDecisionsAreNumberedWithoutGaps(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range files {
		if !strings.HasPrefix(filepath.Base(file), fmt.Sprintf("%03d-", i+1)) {
			t.Errorf("%s is number %d", file, i+1)
		}
		p := read(t, file)
		if got := p.headings(); len(got) != 4 || !slices.Equal(got[1:], []string{"Context", "Choice", "Price"}) {
			t.Errorf("%s has the headings %q", file, got)
		}
	}
	if len(files) < 12 {
		t.Errorf("only %d decisions", len(files))
	}
}

func TestEveryTableHasItsOwnerInThePages(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "migrations/*/*.up.sql"))
	if err != nil {
		t.Fatal(err)
	}
	is := []string{"bun_migrations", "bun_migration_locks"} // Bun makes these itself
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^CREATE TABLE (\w+) \(`).FindAllSubmatch(text, -1) {
			// SQLite changes a table by making a copy under another name.
			if !strings.Contains(string(text), "ALTER TABLE "+string(m[1])+" RENAME TO ") {
				is = append(is, string(m[1]))
			}
		}
	}
	_, section, _ := strings.Cut(read(t, "architecture.md").text, "\n## Tables and their owners\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var said []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllStringSubmatch(section, -1) {
		for _, m := range spans.FindAllStringSubmatch(row[1], -1) {
			said = append(said, m[1])
		}
	}
	same(t, "the table", is, said)
}

// A name with underscores in a page, such as a column, a claim or a log record, occurs in the code.
func TestNamesInThePagesAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)+$`)
	words := map[string]bool{}
	word := regexp.MustCompile(`[a-z][a-z0-9]*(?:_[a-z0-9]+)+`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() &&
			(strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || path == filepath.Join(root, "docs")):
			return fs.SkipDir
		case !slices.Contains([]string{".go", ".sql", ".lua", ".yml", ".yaml", ".conf"}, filepath.Ext(path)) &&
			d.Name() != "Caddyfile":
			return nil
		}
		text, err := os.ReadFile(path)
		for _, w := range word.FindAll(text, -1) {
			words[string(w)] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Settings of PgBouncer, Envoy and PostgreSQL, which the code need not name.
	others := []string{
		"remote_write", "archive_command", "pg_restore", "pg_upgrade",
		"archive_timeout", "failed_count", "log_temp_files", "pg_archivecleanup", "pg_stat_archiver", "recovery_target_time",
		"recovery_target_timeline", "pg_last_wal_receive_lsn", "primary_conninfo",
		"max_prepared_statements", "query_wait_timeout", "path_prefix", "failure_mode_allow",
		"headers_with_underscores_action",
	}
	found := 0
	for _, p := range pages(t) {
		for _, m := range spans.FindAllStringSubmatch(p.prose, -1) {
			if !name.MatchString(m[1]) || slices.Contains(others, m[1]) {
				continue
			}
			if found++; !words[m[1]] && !words["authctl_outbox_"+m[1]] && !metric.MatchString(m[1]) {
				t.Errorf("%s: the code has no %s", p.path, m[1])
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d names were found", found)
	}
}
