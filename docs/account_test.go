package docs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// A person registers, confirms the address, forgets the password twice and undoes a change, by the
// mails and the pages of their links, in Chromium. Before each step a mail scanner fetches and
// renders every link of the mail, which must change nothing.
func TestAPersonGetsBackInByTheMailsAndTheirPages(t *testing.T) {
	t.Parallel()
	node := testenv.Program(t, "install Node.js", "node")
	chromium := testenv.Program(t, "install the package chromium", "chromium", "chromium-browser")
	modules := testenv.NodeModules(t, tools)
	script, err := os.ReadFile("testdata/account.mjs")
	if err != nil {
		t.Fatal(err)
	}
	// In the folder of node_modules, where Node.js looks for imports.
	at := filepath.Join(modules, fmt.Sprintf("account-%d.mjs", os.Getpid()))
	if err := os.WriteFile(at, script, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(at)
	address, dir := fmt.Sprint("127.0.0.1:", testenv.FreePort(t)), t.TempDir()
	_, port, _ := strings.Cut(address, ":")
	base := serve(t, dir, "APP_PORT="+port, "AUTH_TOKEN_ISSUER=http://"+address)
	said := tool(t, t.TempDir(), []string{"PATIENCE_MS=" + strconv.FormatInt(testenv.Patience.Milliseconds(), 10)},
		node, at, base, chromium, filepath.Join(dir, "data", "mail"))
	var result struct{ Problems, Scanned []string }
	if err := json.Unmarshal([]byte(said), &result); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for _, problem := range result.Problems {
		t.Error(problem)
	}
	if len(result.Scanned) < 6 {
		t.Errorf("scanned: %q", result.Scanned)
	}
}
