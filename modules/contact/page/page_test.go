package page

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/testenv"
)

const service = "auth.example.com"

var names = []string{"verify", "reset", "undo"}

func TestEveryLanguageHasEveryText(t *testing.T) {
	t.Parallel()
	for _, w := range all {
		for _, list := range []struct{ have, want map[string]string }{
			{w.common, all[0].common}, {w.codes, all[0].codes},
		} {
			for key := range list.want {
				if list.have[key] == "" {
					t.Errorf("%s has no text for %s", w.tag, key)
				}
			}
			if len(list.have) != len(list.want) {
				t.Errorf("%s has %d texts, want %d", w.tag, len(list.have), len(list.want))
			}
		}
		for _, name := range names {
			p, first := w.pages[name], all[0].pages[name]
			if p.title == "" || p.done == "" || len(p.paragraphs) != len(first.paragraphs) ||
				(p.act == "") != (first.act == "") {
				t.Errorf("%s lacks texts of %s", w.tag, name)
			}
			text := string(render(name, service, w))
			if strings.Contains(text, "no value") || strings.Contains(text, "ZgotmplZ") ||
				strings.Contains(text, "<p></p>") {
				t.Errorf("%s %s: %s", w.tag, name, text)
			}
		}
	}
}

var (
	strictPolicy = regexp.MustCompile(`^default-src 'none'; img-src data:; connect-src 'self'; frame-ancestors 'none'; ` +
		`base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; ` +
		`style-src 'sha256-\S{44}'; script-src 'sha256-\S{44}'$`)
	outside = regexp.MustCompile(`\bsrc=|https?://|@import|url\(| style=| on[a-z]+=|innerHTML|\beval\b`)
)

// A page contains everything that it loads, and its policy allows only that.
func TestAPageAllowsOnlyWhatIsInIt(t *testing.T) {
	t.Parallel()
	httpservertest.Each(t, func(t *testing.T, start httpservertest.Start) {
		base := start(t, httpserver.Options{}, Routes(service)...)
		for _, name := range names {
			for query, lang := range map[string]string{"": "de", "?lang=en": "en", "?lang=de-AT": "de", "?lang=": "de",
				"?lang=%zz": "de"} {
				request, err := http.NewRequestWithContext(t.Context(), "GET", base+"/account/"+name+query, nil)
				if err != nil {
					t.Fatal(err)
				}
				request.Header["Accept-Language"] = []string{"tlh", "de-CH,en;q=0.5"} // two lines are one list
				answer, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				if err != nil || answer.StatusCode != 200 || !strings.Contains(string(text), `<html lang="`+lang+`">`) {
					t.Errorf("%s%s: %d, %v, not in %s", name, query, answer.StatusCode, err, lang)
				}
				for header, want := range map[string]string{"Cache-Control": "no-store",
					"Referrer-Policy":        "no-referrer",
					"X-Content-Type-Options": "nosniff", "Content-Type": "text/html; charset=utf-8"} {
					if answer.Header.Get(header) != want {
						t.Errorf("%s: %s is %q", name, header, answer.Header.Get(header))
					}
				}
				policy := answer.Header.Get("Content-Security-Policy")
				if !strictPolicy.MatchString(policy) {
					t.Errorf("%s: the policy is %s", name, policy)
				}
				if found := outside.Find(text); found != nil {
					t.Errorf("%s has %s", name, found)
				}
			}
		}
	})
}

// TestPagesAreUsable opens each page in Chromium, narrow and wide, light and dark, in each
// language. A stand-in answers the requests of the pages; cmd/authctl tests them with the service
// itself.
func TestPagesAreUsable(t *testing.T) {
	t.Parallel()
	node := testenv.Program(t, "install Node.js", "node")
	chromium := testenv.Program(t, "install the package chromium", "chromium", "chromium-browser")
	modules := testenv.NodeModules(t, "../../../docs/testdata/openapi")
	script, err := os.ReadFile("testdata/look.mjs")
	if err != nil {
		t.Fatal(err)
	}
	// In the folder of node_modules, where Node.js looks for imports.
	at := filepath.Join(modules, fmt.Sprintf("look-%d.mjs", os.Getpid()))
	if err := os.WriteFile(at, script, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(at)
	base := httpservertest.Fiber(t, httpserver.Options{}, Routes(service)...)
	cmd := exec.CommandContext(t.Context(), node, at, base, chromium, os.Getenv("AUTHCTL_PICTURES"))
	cmd.Env = append(os.Environ(), "PATIENCE_MS="+strconv.FormatInt(testenv.Patience.Milliseconds(), 10))
	cmd.Stderr = t.Output()
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	var result struct {
		Seen     int
		Problems []string
		Posts    []string
	}
	if err := json.Unmarshal(said, &result); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if result.Seen != 2*2*2*6 {
		t.Errorf("%d states were checked", result.Seen)
	}
	for _, problem := range result.Problems {
		t.Error(problem)
	}
	slices.Sort(result.Posts)
	for _, want := range []string{
		`/api/v1/auth/verify {"token":"act_secret"}`,
		`/api/v1/auth/password/forgot {"email":"alice@example.com"}`,
		`/api/v1/auth/password/forgot {"username":"alice"}`,
		`/api/v1/auth/password/reset {"challenge_id":"00000000-0000-4000-8000-000000000000","code":"ABCD-EFGH",` +
			`"new_password":"correct horse battery staple"}`,
		`/api/v1/auth/password/reset {"token":"act_secret","new_password":"correct horse battery staple"}`,
		`/api/v1/auth/undo {"token":"act_secret"}`,
	} {
		if !slices.Contains(result.Posts, want) {
			t.Errorf("%s was not sent, but %q", want, slices.Compact(result.Posts))
		}
	}
}
