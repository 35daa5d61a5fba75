package deploy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// gateway is a published configuration. The test runs it between a client and a backend.
type gateway struct {
	t       *testing.T
	addr    string
	backend *witness
	stop    func() // stops authctl
	live    string // an access token
	dead    string // an access token of an ended session
	who     map[string]string
}

// gateways are the published configurations, and how to start each program with one.
var gateways = map[string]struct {
	file    string
	wrap    func(dir, config string) string // what the file is part of
	command func(t *testing.T, dir, file string) *exec.Cmd
	away    int // the status while authctl cannot be reached
}{
	"nginx": {
		file: "gateway/nginx.conf",
		wrap: func(dir, config string) string {
			user := ""
			if os.Geteuid() == 0 { // the workers could not enter the folder
				user = "user root;"
			}
			var temporary strings.Builder
			for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				fmt.Fprintf(&temporary, "%s_temp_path %s/%s;\n", kind, dir, kind)
			}
			return fmt.Sprintf("%s\nworker_processes 1;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n%s\n%s\n}\n",
				user, dir, &temporary, config)
		},
		command: func(t *testing.T, dir, file string) *exec.Cmd {
			nginx := testenv.Program(t, "install the package nginx", "nginx", "/usr/sbin/nginx")
			return exec.Command(nginx, "-p", dir, "-e", "stderr", "-c", file, "-g", "daemon off;")
		},
		away: 503,
	},
	"caddy": {
		file: "gateway/Caddyfile",
		wrap: func(_, config string) string { return "{\n\tadmin off\n}\n" + config },
		command: func(t *testing.T, dir, file string) *exec.Cmd {
			caddy := testenv.Program(t, "install the package caddy", "caddy")
			cmd := exec.Command(caddy, "run", "--adapter", "caddyfile", "--config", file)
			cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
			return cmd
		},
		away: 502,
	},
}

// witness is a backend that records the requests that reach it.
type witness struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
	body []byte // of the last request
}

func newWitness(t *testing.T) *witness {
	w := &witness{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // including trailers
		if err != nil {
			t.Errorf("the backend reads %s %s: %v", r.Method, r.URL, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen, w.body = append(w.seen, r), body
	}))
	t.Cleanup(w.Close)
	return w
}

// taken returns the requests that have reached the backend since the last call.
func (w *witness) taken() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// launch starts a process and returns a function that ends it. The end of the test calls that too.
func launch(t *testing.T, cmd *exec.Cmd) (log *lockedBuffer, stop func()) {
	t.Helper()
	log = &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		_ = cmd.Wait() // the exit code with which it confirms the signal
	})
	t.Cleanup(stop)
	return log, stop
}

func openGateway(t *testing.T, name string) *gateway {
	t.Helper()
	kind := gateways[name]
	dir := t.TempDir()
	kind.command(t, dir, "") // does it accept connections
	g := &gateway{t: t, backend: newWitness(t)}

	serve := exec.Command(binary(t), "serve")
	serve.Dir = dir
	serve.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "APP_HOST=127.0.0.1",
		fmt.Sprint("APP_PORT=", testenv.FreePort(t)), // nobody else listens there once authctl is stopped
		"APP_OPERATOR_ADDR=off",
		"APP_TRUSTED_PROXIES=127.0.0.1", "AUTH_PASSWORD_BCRYPT_COST=4"}
	log, stop := launch(t, serve)
	g.stop = stop
	port := regexp.MustCompile(`"port": ?(\d+)`)
	var found []string
	eventually(t, "authctl listens", func() bool {
		found = port.FindStringSubmatch(log.String())
		return found != nil
	})
	api := client{t, "http://127.0.0.1:" + found[1]}
	account := map[string]any{"username": "al.ice+x@example.com", "password": "correct horse battery staple"}
	tokens := api.call("POST", "/api/v1/auth/register", "", account, 201)
	g.live = tokens["access_token"].(string)
	g.who = map[string]string{
		"auth-user":     api.call("GET", "/api/v1/auth/me", g.live, nil, 200)["id"].(string),
		"auth-session":  tokens["session_id"].(string),
		"auth-username": "al.ice%2Bx%40example.com",
	}
	g.dead = api.call("POST", "/api/v1/auth/login", "", account, 200)["access_token"].(string)
	api.call("DELETE", "/api/v1/auth/sessions?except=current", g.live, nil, 204)

	config := read(t, kind.file)
	for _, published := range []string{":8000", "127.0.0.1:8080", "127.0.0.1:9000"} {
		if !strings.Contains(config, published) {
			t.Fatalf("%s does not name %s", kind.file, published)
		}
	}
	listens := fmt.Sprintf(":%d", testenv.FreePort(t))
	g.addr = "127.0.0.1" + listens
	// On a busy machine authctl takes long.
	config = regexp.MustCompile(`(proxy_\w+_timeout) \d+s`).ReplaceAllString(config, "$1 180s")
	config = strings.NewReplacer(":8000", listens, "127.0.0.1:8080", strings.TrimPrefix(api.base, "http://"),
		"127.0.0.1:9000", g.backend.Listener.Addr().String()).Replace(config)
	file := filepath.Join(dir, filepath.Base(kind.file))
	if err := os.WriteFile(file, []byte(kind.wrap(dir, config)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, _ = launch(t, kind.command(t, dir, file))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s says:\n%s", name, log)
		}
	})
	eventually(t, name+" listens", func() bool {
		conn, err := net.Dial("tcp", g.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return g
}

// send writes a request unchanged and returns the status of the answer.
func (g *gateway) send(method, token, body string, lines ...string) *http.Response {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(g.t.Context(), testenv.Patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	head := append([]string{method + " /orders?x=%20 HTTP/1.1", "Host: shop.example"}, lines...)
	if token != "" {
		head = append(head, "Authorization: Bearer "+token)
	}
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "Transfer-Encoding") }) {
		head = append(head, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	if _, err := io.WriteString(conn, strings.Join(head, "\r\n")+"\r\n\r\n"+body); err != nil {
		g.t.Fatalf("%s %q: %v", method, lines, err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		g.t.Fatalf("%s %q: %v", method, lines, err)
	}
	_ = res.Body.Close()
	return res
}

// plainName is a header's name in backends that turn headers into variables.
func plainName(name string) string {
	return regexp.MustCompile(`[^a-z0-9]`).ReplaceAllString(strings.ToLower(name), "-")
}

// mustKnow checks that the request names the caller exactly once, and nobody else under any
// spelling.
func (g *gateway) mustKnow(r *http.Request, what string) {
	g.t.Helper()
	told := map[string]int{}
	for _, part := range []http.Header{r.Header, r.Trailer} {
		for name, values := range part {
			plain := plainName(name)
			if !strings.HasPrefix(plain, "auth-") {
				continue
			}
			for _, value := range values {
				told[plain]++
				if plainName(name) != strings.ToLower(name) || value != g.who[plain] {
					g.t.Errorf("%s: the backend gets %s: %s", what, name, value)
				}
			}
		}
	}
	for name := range g.who {
		if told[name] != 1 {
			g.t.Errorf("%s: the backend gets %s %d times", what, name, told[name])
		}
	}
}

// forgeries are what clients may try in order to pass for somebody else.
var forgeries = [][]string{
	{"Auth-User: victim"}, {"auth-user: victim"}, {"AUTH-USER: victim"}, {"aUtH-uSeR:victim"}, {"Auth-User:"},
	{"Auth-User: victim", "Auth-User: victim"}, {"Auth-User: victim", "auth-user: other"}, {"Auth-User: victim,victim"},
	{"Auth_User: victim"}, {"auth_user: victim"}, {"AUTH_USER: victim"}, {"Auth_User: victim", "Auth_User: victim"},
	{"Auth_User: victim", "Auth-User: victim", "AUTH-USER: victim"},
	{"Auth-Session: 0199b7f2-6f3f-7000-8000-5b1f6a100c8c"}, {"auth_session: victim"},
	{"Auth-Username: root"}, {"AUTH_USERNAME: root"}, {"Auth-Username: root", "Auth_Username: root"},
	{"Auth-User : victim"}, {"Auth-User\t: victim"}, {"X-Other: a", " Auth-User: victim"}, {"X-Other: a",
		"\tAuth-User: victim"},
	{"Auth.User: victim"}, {"Auth~User: victim"}, {"Auth!User: victim"},
	{"Connection: Auth-User"}, {"Connection: close, Auth-User, Auth-Session, Auth-Username", "Auth-User: victim"},
	{"Connection: Auth_User", "Auth_User: victim"}, {"Connection: Authorization"},
	{"X-Forwarded-Method: OPTIONS"}, {"X-Forwarded-Uri: /public", "X-Original-URL: /public", "X-Rewrite-URL: /public"},
	{"X-HTTP-Method-Override: OPTIONS"}, {"Upgrade: websocket", "Connection: Upgrade, Auth-User"},
	{"Authorization: Bearer x.y.z"}, {"Authorization: Basic dmljdGltOg=="}, {"Cookie: Auth-User=victim"},
	{"X-Long: " + strings.Repeat("a", 6000), "Auth-User: victim"},
}

func TestGatewaysTellTheBackendWhoCallsAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, kind := range gateways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := openGateway(t, name)
			large := strings.Repeat("0123456789abcdef", 30_000) // more than authctl itself accepts
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
				what := []string{"Content-Type: multipart/form-data; boundary=x", "Content-Encoding: br"}
				body := ""
				if method == "POST" || method == "PUT" || method == "PATCH" {
					body = large
				}
				if res := g.send(method, g.live, body, what...); res.StatusCode != 200 {
					t.Errorf("%s: %s", method, res.Status)
				}
				reached := g.backend.taken()
				if len(reached) != 1 || reached[0].Method != method || reached[0].RequestURI != "/orders?x=%20" ||
					!bytes.Equal(g.backend.body, []byte(body)) {
					t.Fatalf("%s: %d requests reached the backend: %v", method, len(reached), reached)
				}
				g.mustKnow(reached[0], method)
				for why, token := range map[string]string{"nobody": "", "an ended session": g.dead,
					"nonsense": "x.y.z", "a changed token": g.live + "x"} {
					res := g.send(method, token, "", what...)
					if res.StatusCode != 401 || !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Bearer") {
						t.Errorf("%s by %s: %s %v", method, why, res.Status, res.Header)
					}
				}
			}
			cookies := "Cookie: x=" + strings.Repeat("a", 6000)
			if res := g.send("GET", g.live, "", cookies, cookies, cookies); res.StatusCode != 200 {
				t.Errorf("more cookies than authctl itself accepts: %s", res.Status)
			}
			for _, r := range g.backend.taken() {
				g.mustKnow(r, "many cookies")
			}
			for _, lines := range forgeries {
				for _, token := range []string{g.live, g.dead, ""} {
					what := fmt.Sprintf("%.60q with the token %.3q", lines, token)
					res := g.send("GET", token, "", lines...)
					reached := g.backend.taken()
					switch {
					case token != g.live && len(reached) > 0:
						t.Errorf("%s: the request reached the backend", what)
					case res.StatusCode == 200 && len(reached) == 1:
						g.mustKnow(reached[0], what)
					case res.StatusCode/100 != 4 || len(reached) > 0:
						t.Errorf("%s: %s, and %d requests reached the backend", what, res.Status, len(reached))
					}
				}
			}
			g.send("POST", g.live, "1\r\nx\r\n0\r\nAuth-User: victim\r\n\r\n", "Transfer-Encoding: chunked",
				"Trailer: Auth-User")
			for _, r := range g.backend.taken() {
				g.mustKnow(r, "a trailer")
			}
			if reached := g.backend.taken(); len(reached) > 0 {
				t.Errorf("%d requests too many reached the backend", len(reached))
			}
			g.stop()
			if res := g.send("GET", g.live, ""); res.StatusCode != kind.away {
				t.Errorf("without authctl: %s", res.Status)
			}
			if reached := g.backend.taken(); len(reached) > 0 {
				t.Error("without authctl a request reached the backend")
			}
		})
	}
}
