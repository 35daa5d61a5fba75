package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/toppira/authctl/platform/testenv"
)

// securityEvent is a record of the security log, as the code writes it.
type securityEvent struct {
	level  string
	fields map[string]bool
}

// securityEvents finds the records in the code: calls of x.security.Info and the like, also in
// functions that pass on a name that they were given.
func securityEvents(t *testing.T) map[string]securityEvent {
	t.Helper()
	events := map[string]securityEvent{}
	type passing struct {
		event securityEvent
		at    int // the index of the parameter with the name
	}
	passedOn := map[string]passing{} // keyed by folder and function
	calls := map[string][]*ast.CallExpr{}
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
					function := filepath.Dir(path) + "." + method.Sel.Name
					calls[function] = append(calls[function], call)
					if !toSecurityLog(call) {
						return true
					}
					e := securityEvent{strings.ToLower(method.Sel.Name), map[string]bool{}}
					// Fields in a slice are collected from the whole function.
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
					} else if at := parameter(fn, call.Args[0]); at >= 0 {
						passedOn[filepath.Dir(path)+"."+fn.Name.Name] = passing{e, at}
					} else {
						t.Errorf("%s: a security event has no constant name", path)
					}
					return true
				})
			}
			return nil
		})
		testenv.Must(t, err)
	}
	for function, p := range passedOn {
		for _, call := range calls[function] {
			events[literal(call.Args[p.at])] = p.event
		}
	}
	return events
}

// parameter is the index of an expression among the parameters of a function, or -1.
func parameter(fn *ast.FuncDecl, e ast.Expr) int {
	name, ok := e.(*ast.Ident)
	at := 0
	for _, field := range fn.Type.Params.List {
		for _, p := range field.Names {
			if ok && p.Name == name.Name {
				return at
			}
			at++
		}
	}
	return -1
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

// zapFields adds the names of the fields made in scope, except those of other records.
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
	testenv.Must(t, err)
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
			t.Errorf("docs/security-log.md has %s, the code does not", name)
		}
	}
}

// A request makes one line of the log whatever it contains, and so does each security event.
func TestARequestIsOneLineOfTheLogWhateverIsInIt(t *testing.T) {
	t.Parallel()
	f := newPlanting(t)
	f.env = append(f.env, "APP_MODE=prod", "AUTH_TOKEN_ISSUER=https://auth.test", "AUTH_PASSWORD_BCRYPT_COST=10")
	server := f.serve()
	requests := 0
	send := func(method, path, body string, header map[string]string) {
		f.send(method, path, body, header)
		requests++
	}
	const forged = `{"level":"info","msg":"forged"}`
	for _, nasty := range []string{
		"a\r\n" + forged, "b\n" + forged + "\n", "c\x1b[2J\x1b]0;title\x07", "d\u2028" + forged + "\u2029",
		"e\u0085\u202e" + forged,
		"f\x00\x7f\b", `g"` + "\\\",\"msg\":\"forged", strings.Repeat("h\n", 3000), "i\ufeff\u200f\U000e0001",
	} {
		text, err := json.Marshal(nasty)
		testenv.Must(t, err)
		for _, path := range []string{"login", "register"} {
			send("POST", "/api/v1/auth/"+path, `{"username":`+string(text)+`,"password":"not the password"}`, nil)
			send("POST", "/api/v1/auth/"+path, `{"username":"alice","password":`+string(text)+`,"device_name":`+
				string(text)+`}`, nil)
		}
		send("POST", "/api/v1/auth/"+url.PathEscape(nasty), nasty, nil)
		send("GET", "/api/v1/auth/sessions/"+url.PathEscape(nasty)+"?q="+url.QueryEscape(nasty), "", nil)
		send("POST", "/oauth2/introspect", "token="+url.QueryEscape(nasty), map[string]string{
			"Content-Type":  "application/x-www-form-urlencoded",
			"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(nasty+":x")),
		})
		// Bytes that a client library would refuse to send.
		for _, line := range []string{"GET /" + nasty + " HTTP/1.1\r\n", "GET / HTTP/1.1\r\nUser-Agent: " + nasty +
			"\r\n", "GET / HTTP/1.1\r\nX-Request-Id: " + nasty + "\r\n", nasty + " / HTTP/1.1\r\n"} {
			requests += f.sendRaw(line + "Host: localhost\r\nConnection: close\r\n\r\n")
		}
	}
	huge := strings.Repeat("x", 1<<20)
	body := `{"username":"` + huge + `","password":"x"}`
	requests += f.sendRaw(fmt.Sprintf("POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	requests += f.sendRaw("GET /" + huge + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
	requests += f.sendRaw("GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + huge + "\r\n\r\n")
	testenv.Must(t, server.Process.Signal(syscall.SIGTERM))
	_ = server.Wait()

	seen := map[string]int{}
	for line := range strings.Lines(readFile(t, filepath.Join(f.dir, "log", "authctl.log"))) {
		var record struct {
			Time, Level, Msg, Log string
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("not a record: %v: %.300q", err, line)
		}
		if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool {
			return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) ||
				r == utf8.RuneError
		}); i >= 0 {
			t.Errorf("a record has control characters: %.300q", line[max(0, i-20):])
		}
		if len(line) > 70_000 {
			t.Errorf("a record has %d bytes", len(line))
		}
		seen[record.Msg]++
		if record.Log == "security" {
			seen["security"]++
		}
	}
	if seen["request"] != requests || seen["forged"] != 0 {
		t.Errorf("%d requests were sent, %d are in the log, %d forged", requests, seen["request"], seen["forged"])
	}
	if seen["sign_in_failed"] == 0 || seen["client_refused"] == 0 || seen["security"] < 9 {
		t.Errorf("the security log has %v", seen)
	}
}

// sendRaw sends bytes unchanged, and returns the number of answers.
func (f *planting) sendRaw(request string) int {
	f.t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(f.base, "http://"), patience)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		f.t.Fatal(err)
	}
	_, _ = io.WriteString(conn, request) // the server may refuse it before all of it has arrived
	answer, _ := io.ReadAll(conn)
	return strings.Count(string(answer), "HTTP/1.1 ")
}
