package archtest

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// snake is the form of the name of a log line, and of its attributes.
var snake = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// loggers are the names that variables, fields and parameters with a logger have, so that the tests here find every
// call.
var loggers = []string{"log", "Log", "security"}

// levels are the methods that write a line, with the number of arguments before its name.
var levels = map[string]int{"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "DPanic": 0, "Panic": 0, "Fatal": 0,
	"Log": 1, "Check": 1}

// synonyms are attributes that have another name in this project.
var synonyms = map[string]string{"advice": "hint", "remedy": "hint", "consequence": "hint", "err": "error",
	"cause": "error", "uid": "user_id", "user": "user_id", "session": "sid", "session_id": "sid", "attempt": "attempts",
	"address": "ip", "example": "key", "message": "msg", "for": "lasted"}

// logLine is a line that the code writes under one of its names.
type logLine struct {
	pkg, at, name string
	level         string // empty where the code chooses it while it runs
	security      bool
}

func TestLogLinesHaveNames(t *testing.T) {
	t.Parallel()
	lines, problems := logLines(t)
	for _, problem := range problems {
		t.Error(problem)
	}
	if len(lines) < 120 {
		t.Errorf("only %d log lines were found", len(lines))
	}
}

// notServed begin the paths of what neither serve nor relay runs.
var notServed = []string{"cmd/bench", "docs", "verify"}

// What serve and relay log as a warning or an error is in the table of operations.md, with its level.
func TestEveryWarningIsExplained(t *testing.T) {
	t.Parallel()
	lines, _ := logLines(t)
	coded := map[string][]string{}
	for _, line := range lines {
		served := !slices.ContainsFunc(notServed, func(p string) bool { return strings.HasPrefix(line.pkg+"/", p+"/") })
		if !served || line.security || line.level == "debug" || line.level == "info" {
			continue
		}
		found := []string{line.level}
		if line.level == "" {
			found = chosen[line.name]
		}
		for _, level := range found {
			if !slices.Contains(coded[line.name], level) {
				coded[line.name] = append(coded[line.name], level)
			}
		}
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## What the log says\n")
	section, _, _ = strings.Cut(section, "\n## ")
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([a-z, ]+) \\| ")
	written := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(section, -1) {
		if written[m[1]] != "" {
			t.Errorf("operations.md explains %s twice", m[1])
		}
		written[m[1]] = m[2]
	}
	if len(coded) < 40 {
		t.Errorf("only %d warnings were found", len(coded))
	}
	for name, found := range coded {
		slices.Sort(found)
		if level := strings.Join(found, ", "); written[name] != level {
			t.Errorf("%s is logged as %q, and operations.md says %q", name, level, written[name])
		}
	}
	for name := range written {
		if coded[name] == nil {
			t.Errorf("operations.md explains %s, which nothing logs as a warning or an error", name)
		}
	}
}

// chosen are the levels of lines that choose theirs while they run.
var chosen = map[string][]string{"request": {"warn", "error"}, "setting_doubtful": {"warn"}}

func TestALogLineWithoutANameIsFound(t *testing.T) {
	t.Parallel()
	const head = "package p\ntype s struct{ log *zap.Logger }\n"
	for text, problem := range map[string]string{
		`func (s s) f() { s.log.Info("shard_lost", zap.Int("shards", 1), zap.Error(nil)) }`:          "",
		`const name = "shard_lost"; func (s s) f() { s.log.Info(name) }`:                             "",
		`func (s s) f() { n := "a"; if x { n = "b_c" }; s.log.Error(n) }`:                            "",
		`func (s s) w(n string) { s.log.Warn(n) }; func (s s) f() { s.w("a_b") }`:                    "",
		`func (s s) f() { say := func(n string) { s.log.Warn(n) }; say("a_b") }`:                     "",
		`func (s s) f(err error) { _ = err.Error(); t.Error("no log"); math.Log(2) }`:                "",
		`func (s s) f() { s.log.Info("a shard is lost") }`:                                           "a shard is lost",
		`func (s s) f() { s.log.Info("shard lost") }`:                                                "shard lost",
		`func (s s) f() { s.log.Info("Lost") }`:                                                      "Lost",
		`func (s s) f() { s.log.Log(level, "a b") }`:                                                 "a b",
		`func (s s) f() { s.log.With(zap.Int("n", 1)).Info("a b") }`:                                 "a b",
		`func (s s) f() { logging.Security(s.log).Info("a b") }`:                                     "a b",
		`func (s s) f() { s.log.Info("a_" + s.kind) }`:                                               "no constant",
		`func (s s) f() { s.log.Info(fmt.Sprint(1)) }`:                                               "no constant",
		`func (s s) f() { n := "a"; if x { n = "b c" }; s.log.Error(n) }`:                            "b c",
		`func (s s) f() { n := "a"; n += s.kind; s.log.Error(n) }`:                                   "no constant",
		`func (s s) w(n string) { s.log.Warn(n) }; func (s s) f() { s.w("a b") }`:                    "a b",
		`func (s s) f() { say := func(n string) { s.log.Warn(n) }; say("a b") }`:                     "a b",
		`func (s s) f() { say := func(n string) { _ = zapcore.Entry{Message: n} }; say("a b") }`:     "a b",
		`func (s s) f() { s.log.Info("a", zap.Int("N", 1)) }`:                                        "N",
		`func (s s) f() { s.log.Info("a", zap.Int(s.kind, 1)) }`:                                     "no constant",
		`func (s s) f() { s.log.Info("a", zap.String("session_id", "1")) }`:                          "is called sid",
		`func (s s) f() { s.log.Info("a", zap.NamedError("err", nil)) }`:                             "is called error",
		`type v struct { log *slog.Logger }; func (v v) f() { v.log.Warn("a", "err", 1) }`:           "is called error",
		`type v struct { log *slog.Logger }; func (v v) f() { v.log.Warn("a", "error", 1, "B", 2) }`: "B",
		`type v struct { l *slog.Logger }`:                                                           "a logger is called l",
		`func f(console *zap.Logger) {}`:                                                             "a logger is called console",
		`func f() { out := zap.New(nil); out.Info("a b") }`:                                          "a logger is called out",
	} {
		files := map[string]string{"p.go": head + text}
		if strings.Contains(text, "slog") {
			files["slog.go"] = "package p\nimport \"log/slog\""
		}
		_, problems := linesOf("p", files)
		got := strings.Join(problems, "\n")
		if problem == "" && got != "" || !strings.Contains(got, problem) {
			t.Errorf("%s: %q, want %q", text, got, problem)
		}
	}
}

// logLines reads the log lines of all code but tests and what supports them.
func logLines(t *testing.T) (lines []logLine, problems []string) {
	t.Helper()
	const root = "../.."
	packages := map[string]map[string]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && file != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := os.ReadFile(file)
		name := strings.TrimPrefix(filepath.ToSlash(file), root+"/")
		pkg := path.Dir(name)
		if testSupport(pkg) {
			return err
		}
		if packages[pkg] == nil {
			packages[pkg] = map[string]string{}
		}
		packages[pkg][name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg, files := range packages {
		found, wrong := linesOf(pkg, files)
		lines, problems = append(lines, found...), append(problems, wrong...)
	}
	slices.Sort(problems)
	return lines, problems
}

// linesOf reads the log lines of a package.
func linesOf(pkg string, files map[string]string) (lines []logLine, problems []string) {
	p := &logPackage{fset: token.NewFileSet()}
	for name, text := range files {
		file, err := parser.ParseFile(p.fset, name, text, 0)
		if err != nil {
			return nil, []string{err.Error()}
		}
		p.files = append(p.files, file)
	}
	complain := func(n ast.Node, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%s: %s", p.fset.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	names := func(n ast.Node, within []ast.Node, level string, security bool, message ast.Expr) {
		values, err := p.values(message, within, 0)
		if err != nil {
			complain(n, "the name of a log line is %v", err)
		}
		for _, name := range values {
			if !snake.MatchString(name) {
				complain(n, "%q is no name for a log line: write it like shard_lost, and explain it in the attribute hint",
					name)
			}
			lines = append(lines, logLine{pkg, p.fset.Position(n.Pos()).String(), name, level, security})
		}
	}
	key := func(n ast.Expr) {
		name, ok := text(n)
		switch {
		case !ok:
			complain(n, "the key of an attribute is no constant")
		case !snake.MatchString(name):
			complain(n, "%q is no key for an attribute: write it like user_id", name)
		case synonyms[name] != "":
			complain(n, "the attribute %s is called %s elsewhere", name, synonyms[name])
		}
	}
	for _, file := range p.files {
		inspect(file, func(n ast.Node, within []ast.Node) {
			switch n := n.(type) {
			case *ast.Field:
				if isLogger(n.Type) {
					for _, name := range n.Names {
						if !slices.Contains(loggers, name.Name) {
							complain(name, "a logger is called %s, which hides its lines: call it log", name.Name)
						}
					}
				}
			case *ast.AssignStmt:
				if call, ok := n.Rhs[0].(*ast.CallExpr); ok && makesLogger(call) {
					if name := lastName(n.Lhs[0]); !slices.Contains(loggers, name) {
						complain(n, "a logger is called %s, which hides its lines: call it log", name)
					}
				}
			case *ast.KeyValueExpr:
				if lit, ok := within[len(within)-1].(*ast.CompositeLit); ok && lastName(n.Key) == "Message" &&
					isSelector(lit.Type, "zapcore", "Entry") {
					names(n, within, "error", false, n.Value)
				}
			case *ast.CallExpr:
				fn, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return
				}
				if lastName(fn.X) == "zap" && len(n.Args) > 0 && !noKey[fn.Sel.Name] &&
					file.Name.Name != "logging" { // which encodes the attributes of others again
					key(n.Args[0])
				}
				method := strings.TrimSuffix(fn.Sel.Name, "Context")
				before, writes := levels[method]
				if _, plain := fn.X.(*ast.Ident); !writes || !logs(fn.X) || plain && imports(file, "log") {
					return
				}
				if method != fn.Sel.Name {
					before++
				}
				if len(n.Args) <= before {
					return
				}
				level := ""
				if method != "Log" && method != "Check" {
					level = strings.ToLower(method)
				}
				names(n, within, level, lastName(fn.X) == "security", n.Args[before])
				if pairs := n.Args[before+1:]; p.imports("log/slog") {
					for i := 0; i < len(pairs); i += 2 {
						key(pairs[i])
					}
				}
			}
		})
	}
	return lines, problems
}

// noKey are the functions of zap whose first argument is not the key of an attribute.
var noKey = map[string]bool{"New": true, "NewNop": true, "NewAtomicLevel": true, "NewAtomicLevelAt": true, "Error": true,
	"WithClock": true, "ErrorOutput": true, "WrapCore": true, "IncreaseLevel": true, "Inline": true, "AddCaller": true}

// logPackage is a package whose constants, parameters and variables can be followed to their values.
type logPackage struct {
	fset  *token.FileSet
	files []*ast.File
}

var errNoConstant = errors.New("no constant")

// values are the texts that an expression within these nodes can have.
func (p *logPackage) values(e ast.Expr, within []ast.Node, depth int) ([]string, error) {
	if value, ok := text(e); ok {
		return []string{value}, nil
	}
	name, ok := e.(*ast.Ident)
	if !ok || depth > 4 {
		return nil, errNoConstant
	}
	for i := len(within) - 1; i >= 0; i-- {
		var params *ast.FieldList
		var called string
		var body *ast.BlockStmt
		switch fn := within[i].(type) {
		case *ast.FuncDecl:
			params, called, body = fn.Type.Params, fn.Name.Name, fn.Body
		case *ast.FuncLit:
			params, body = fn.Type.Params, fn.Body
			if assign, ok := within[i-1].(*ast.AssignStmt); ok {
				called = lastName(assign.Lhs[0])
			}
		default:
			continue
		}
		if at := position(params, name.Name); at >= 0 {
			return p.arguments(called, at, depth)
		}
		if values, err := p.assigned(name.Name, body, within[:i+1], depth); err != nil || len(values) > 0 {
			return values, err
		}
	}
	return p.constant(name.Name)
}

// arguments are the values that the calls of a function give to one of its parameters.
func (p *logPackage) arguments(function string, at, depth int) (values []string, err error) {
	for _, file := range p.files {
		inspect(file, func(n ast.Node, within []ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || lastName(call.Fun) != function || len(call.Args) <= at {
				return
			}
			found, wrong := p.values(call.Args[at], within, depth+1)
			values, err = append(values, found...), errors.Join(err, wrong)
		})
	}
	if err == nil && len(values) == 0 {
		err = errNoConstant
	}
	return values, err
}

// assigned are the values that a function gives to a variable.
func (p *logPackage) assigned(name string, body *ast.BlockStmt, within []ast.Node, depth int) (
	values []string, err error,
) {
	inspect(body, func(n ast.Node, inner []ast.Node) {
		assign, ok := n.(*ast.AssignStmt)
		if !ok {
			return
		}
		for i, to := range assign.Lhs {
			if one, ok := to.(*ast.Ident); !ok || one.Name != name {
				continue
			}
			if len(assign.Rhs) != len(assign.Lhs) || assign.Tok == token.ADD_ASSIGN {
				err = errNoConstant
				return
			}
			found, wrong := p.values(assign.Rhs[i], slices.Concat(within, inner), depth+1)
			values, err = append(values, found...), errors.Join(err, wrong)
		}
	})
	return values, err
}

// constant is the value of a constant of the package.
func (p *logPackage) constant(name string) ([]string, error) {
	for _, file := range p.files {
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				spec := spec.(*ast.ValueSpec)
				for i, one := range spec.Names {
					if one.Name != name || i >= len(spec.Values) {
						continue
					}
					if value, ok := text(spec.Values[i]); ok {
						return []string{value}, nil
					}
				}
			}
		}
	}
	return nil, errNoConstant
}

// inspect calls fn for each node with the nodes around it.
func inspect(root ast.Node, fn func(n ast.Node, within []ast.Node)) {
	var within []ast.Node
	ast.Inspect(root, func(n ast.Node) bool {
		if n == nil {
			within = within[:len(within)-1]
			return true
		}
		fn(n, slices.Clip(within))
		within = append(within, n)
		return true
	})
}

// logs reports whether an expression is a logger.
func logs(e ast.Expr) bool {
	if call, ok := e.(*ast.CallExpr); ok {
		if makesLogger(call) {
			return true
		}
		fn, ok := call.Fun.(*ast.SelectorExpr)
		return ok && slices.Contains([]string{"With", "Named", "WithOptions", "WithGroup"}, fn.Sel.Name) && logs(fn.X)
	}
	return slices.Contains(loggers, lastName(e))
}

func makesLogger(call *ast.CallExpr) bool {
	return isSelector(call.Fun, "zap", "New") || isSelector(call.Fun, "zap", "NewNop") ||
		isSelector(call.Fun, "slog", "New") || isSelector(call.Fun, "logging", "New") ||
		isSelector(call.Fun, "logging", "Security")
}

func isLogger(e ast.Expr) bool {
	star, ok := e.(*ast.StarExpr)
	return ok && (isSelector(star.X, "zap", "Logger") || isSelector(star.X, "slog", "Logger"))
}

func isSelector(e ast.Expr, pkg, name string) bool {
	selector, ok := e.(*ast.SelectorExpr)
	return ok && selector.Sel.Name == name && lastName(selector.X) == pkg
}

// lastName is the last word of a.b.c.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// text is the value of a literal.
func text(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(lit.Value)
	return value, err == nil
}

// position is the number of a parameter, or -1.
func position(params *ast.FieldList, name string) int {
	at := 0
	for _, field := range params.List {
		for _, one := range field.Names {
			if one.Name == name {
				return at
			}
			at++
		}
	}
	return -1
}

func imports(file *ast.File, path string) bool {
	return slices.ContainsFunc(file.Imports, func(spec *ast.ImportSpec) bool {
		return spec.Path.Value == strconv.Quote(path)
	})
}

func (p *logPackage) imports(path string) bool {
	return slices.ContainsFunc(p.files, func(file *ast.File) bool { return imports(file, path) })
}
