package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// securityEvent is a record of the security log as the code writes it.
type securityEvent struct {
	level  string
	fields map[string]bool
}

// securityEvents finds, in the code, what goes to the security log: calls of
// x.security.Info and its like, and of noted, which passes a name on to one.
func securityEvents(t *testing.T) map[string]securityEvent {
	t.Helper()
	events := map[string]securityEvent{}
	passedOn := securityEvent{}
	var noted []string
	for _, top := range []string{"../../modules", "../../platform", "../../cmd"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok {
					continue
				}
				ast.Inspect(fn, func(n ast.Node) bool {
					call, ok := n.(*ast.CallExpr)
					if !ok {
						return true
					}
					method, ok := call.Fun.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					if method.Sel.Name == "noted" {
						noted = append(noted, literal(call.Args[0]))
					}
					if !toSecurityLog(call) {
						return true
					}
					e := securityEvent{strings.ToLower(method.Sel.Name), map[string]bool{}}
					// Fields that come as a slice are gathered all over the function.
					scope := ast.Node(call)
					if call.Ellipsis.IsValid() {
						scope = fn
					}
					zapFields(scope, call, e.fields)
					if name := literal(call.Args[0]); name != "" {
						if former, ok := events[name]; ok {
							maps.Copy(e.fields, former.fields)
						}
						events[name] = e
					} else if fn.Name.Name == "noted" {
						passedOn = e
					} else {
						t.Errorf("%s: a security event has no constant name", path)
					}
					return true
				})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range noted {
		events[name] = passedOn
	}
	return events
}

func literal(e ast.Expr) string {
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		text, _ := strconv.Unquote(lit.Value)
		return text
	}
	return ""
}

func toSecurityLog(call *ast.CallExpr) bool {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	to, ok := method.X.(*ast.SelectorExpr)
	return ok && to.Sel.Name == "security"
}

// zapFields adds the names of the fields that are made in scope, but for those of records
// other than this one.
func zapFields(scope ast.Node, record *ast.CallExpr, names map[string]bool) {
	ast.Inspect(scope, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		if call != record && toSecurityLog(call) {
			return false
		}
		if fn, ok := call.Fun.(*ast.SelectorExpr); ok {
			if pkg, ok := fn.X.(*ast.Ident); ok && pkg.Name == "zap" && fn.Sel.Name != "Error" {
				names[literal(call.Args[0])] = true
			}
		}
		return true
	})
}

func TestEverySecurityEventIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/security-log.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([a-z_]+)`")
	words := func(cell string) (list []string) {
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			list = append(list, m[1])
		}
		return list
	}
	written := map[string]string{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.Contains(cells[1], "`") {
			continue
		}
		for _, name := range words(cells[1]) {
			fields := words(cells[3])
			slices.Sort(fields)
			written[name] = fmt.Sprint(strings.TrimSpace(cells[2]), fields)
		}
	}
	coded := map[string]string{}
	for name, e := range securityEvents(t) {
		coded[name] = fmt.Sprint(e.level, slices.Sorted(maps.Keys(e.fields)))
	}
	if len(coded) < 20 {
		t.Errorf("only %d security events were found in the code", len(coded))
	}
	for name, what := range coded {
		if written[name] != what {
			t.Errorf("docs/security-log.md has %s as %q, the code as %q", name, written[name], what)
		}
	}
	for name := range written {
		if coded[name] == "" {
			t.Errorf("docs/security-log.md has %s, the code has not", name)
		}
	}
}
