package archtest

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// verbs are the files of modules/auth with the operations for callers. Nothing else uses what they
// declare: what two of them share belongs in a file named for a thing, such as session.go or
// user.go.
var verbs = []string{
	"account.go", "authenticate.go", "calibrate.go", "export.go", "fence.go", "housekeeping.go", "import.go",
	"inspect.go",
	"introspect.go",
	"login.go", "logout.go", "password.go", "refresh.go", "register.go", "revocations.go", "revoke.go", "sessions.go",
}

// things are the other files of modules/auth: what verbs share, each named for a thing.
var things = []string{
	"caller.go", "config.go", "credential.go", "device.go", "doc.go", "errors.go", "event.go", "guess.go", "hooks.go",
	"keys.go", "lockout.go", "origin.go", "pace.go", "pendinguser.go", "population.go", "rehearsal.go", "service.go",
	"session.go", "sessionlist.go", "sessionstate.go", "sessiontable.go", "token.go", "user.go", "verifiers.go",
}

func TestNoFileOfAuthReachesIntoAVerb(t *testing.T) {
	t.Parallel()
	const pkg = module + "modules/auth"
	files := map[string]string{}
	paths, err := filepath.Glob("../../modules/auth/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if text, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		} else if !strings.HasSuffix(path, "_test.go") {
			files[filepath.Base(path)] = string(text)
		}
	}
	for _, name := range slices.Concat(verbs, things) {
		if files[name] == "" {
			t.Errorf("modules/auth/%s is on a list and does not exist: take it off", name)
		}
	}
	for name := range files {
		if !slices.Contains(verbs, name) && !slices.Contains(things, name) {
			t.Errorf("modules/auth/%s is on no list: it is a verb if it holds operations for callers, which no other "+
				"file uses, and else a thing", name)
		}
	}
	problems, err := intoVerbs(files, exports(t, pkg))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

func TestReachingIntoAVerbIsFound(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"login.go":   "package auth\nfunc (S) Login() { helper(); S{}.shared(); _ = try{}.n }\nfunc helper() {}\ntype try struct{ n int }",
		"session.go": "package auth\ntype S struct{}\nfunc (S) shared() { login := 1; _ = login }",
	}
	for _, test := range []struct{ file, text, problem string }{
		{"refresh.go", "func (S) Refresh() { S{}.shared() }", ""},
		{"refresh.go", "func (S) Refresh() { S{}.Login() }", "refresh.go uses Login of login.go"},
		{"refresh.go", "var f = helper", "refresh.go uses helper of login.go"},
		{"user.go", "type a struct{ try }", "user.go uses try of login.go"},
		{"user.go", "func f(v interface{ Login() }) { v.Login() }", ""},
	} {
		all := map[string]string{test.file: "package auth\n" + test.text}
		for name, text := range files {
			all[name] = text
		}
		problems, err := intoVerbs(all, nil)
		if got := strings.Join(problems, "\n"); err != nil || !strings.Contains(got, test.problem) ||
			test.problem == "" &&
				got != "" {
			t.Errorf("%s: %q, %v, want %q", test.text, got, err, test.problem)
		}
	}
}

// intoVerbs lists the uses of what a verb declares in the package's other files.
func intoVerbs(files map[string]string, imports types.Importer) (problems []string, err error) {
	set := token.NewFileSet()
	var parsed []*ast.File
	for name, text := range files {
		file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, file)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: imports}
	pkg, err := conf.Check("auth", set, parsed, info)
	if err != nil {
		return nil, err
	}
	for ident, object := range info.Uses {
		user, owner := set.Position(ident.Pos()).Filename, set.Position(object.Pos()).Filename
		if object.Pkg() == pkg && user != owner && slices.Contains(verbs, owner) {
			problems = append(problems,
				fmt.Sprintf("%s uses %s of %s: what a verb declares is its own; what it shares belongs in a file named for a thing",
					user, object.Name(), owner))
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems), nil
}

// exports imports the package's dependencies from the compiler's export files.
func exports(t *testing.T, pkg string) types.Importer {
	t.Helper()
	files := compiled(t, pkg)
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(files[path])
	})
}

// compiled returns the compiler's files of a package and all that it imports, by their import paths.
func compiled(t *testing.T, pkg string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", pkg)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -export: %v", err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		files[name] = file
	}
	return files
}
