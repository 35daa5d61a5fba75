package docs_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// The page of the API works in a browser: at the service, and behind a proxy that mounts the
// service at a path and removes the path.
func TestThePageOfTheAPIWorksInABrowser(t *testing.T) {
	t.Parallel()
	node := testenv.Program(t, "install Node.js", "node")
	chromium := testenv.Program(t, "install the package chromium", "chromium", "chromium-browser")
	modules := testenv.NodeModules(t, tools)
	nginx := testenv.Program(t, "install the package nginx", "nginx", "/usr/sbin/nginx")
	script, err := os.ReadFile(filepath.Join(tools, "page.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	// In the folder of node_modules, where Node.js looks for imports.
	at := filepath.Join(modules, fmt.Sprintf("page-%d.mjs", os.Getpid()))
	if err := os.WriteFile(at, script, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(at)

	proxy := fmt.Sprint("http://127.0.0.1:", testenv.FreePort(t))
	base := serve(t, t.TempDir(), "AUTH_TOKEN_ISSUER="+proxy+"/auth",
		"APP_TRUSTED_PROXIES=127.0.0.1")
	mountAt(t, nginx, strings.TrimPrefix(proxy, "http://"), base)
	for _, page := range []string{base, proxy + "/auth"} {
		env := []string{"PATIENCE_MS=" + strconv.FormatInt(testenv.Patience.Milliseconds(), 10)}
		said := tool(t, t.TempDir(), env, node, at, page+"/docs/swagger/index.html", chromium)
		var result struct {
			Version                               []string
			Operations, Registered, Before, After int
			Problems                              []string
		}
		if err := json.Unmarshal([]byte(said), &result); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		if !strings.Contains(strings.Join(result.Version, " "), "OAS 3.1") || result.Operations < 15 {
			t.Errorf("%s shows %d operations, as %q", page, result.Operations, result.Version)
		}
		if result.Registered != 201 || result.Before != 401 || result.After != 200 || len(result.Problems) > 0 {
			t.Errorf("%s: %s", page, said)
		}
	}
}

// mountAt runs an nginx that serves a service at /auth.
func mountAt(t *testing.T, nginx, address, base string) {
	t.Helper()
	dir := t.TempDir()
	user, temporary := "", ""
	if os.Geteuid() == 0 { // the workers could not enter the folder
		user = "user root;"
	}
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temporary += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	config := fmt.Sprintf("%s worker_processes 1; pid %s/pid; error_log stderr; events {}\nhttp { access_log off;\n%s\nserver { listen %s;\nlocation /auth/ { proxy_pass %s/; proxy_set_header X-Forwarded-For $remote_addr; } } }\n",
		user, dir, temporary, address, base)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-p", dir, "-e", "stderr", "-c", file, "-g", "daemon off;")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	})
	testenv.Eventually(t, "nginx listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}
