package docs_test

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of routes in the README")

// TestTheReadmeHasTheRoutesOfTheDocument holds the README's table to the OpenAPI document,
// which other tests hold to the service.
func TestTheReadmeHasTheRoutesOfTheDocument(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "cmd/authctl/openapi/*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("documents %v, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]struct {
			Summary  string
			Security []map[string][]string
		}
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var rows []string
	for path, operations := range document.Paths {
		for method, o := range operations {
			var words []string
			for _, scheme := range o.Security {
				for name := range scheme {
					word := map[string]string{"bearer": "access token", "basic": "client",
						"cookie": "refresh token"}[strings.ToLower(name)]
					if word == "" {
						t.Errorf("%s %s: the table has no name for %s", method, path, name)
					}
					words = append(words, word)
				}
			}
			who := cmp.Or(strings.Join(words, " or "), "anyone")
			rows = append(rows, fmt.Sprintf("| `%s %s` | %s | %s |\n", strings.ToUpper(method), path, who, o.Summary))
		}
	}
	slices.SortFunc(rows, func(a, b string) int {
		path := func(row string) string { return strings.Trim(strings.Fields(row)[2], "`") }
		return cmp.Or(strings.Compare(path(a), path(b)), strings.Compare(a, b))
	})
	want := "| Route | Who | What |\n|---|---|---|\n" + strings.Join(rows, "")

	readme := filepath.Join(root, "README.md")
	page, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(page), "-update -->\n")
	have, tail, closed := strings.Cut(rest, "<!-- /routes -->")
	switch {
	case !found || !closed:
		t.Fatal("the README has no <!-- routes --> marks")
	case have == want:
	case *update:
		if err := os.WriteFile(readme, []byte(head+"-update -->\n"+want+"<!-- /routes -->"+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of routes differs from the document; go test ./docs -run Routes -update:\n%s", want)
	}
}
