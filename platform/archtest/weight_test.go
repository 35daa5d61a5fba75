package archtest

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// heavy lists types of libraries that take long to compile wherever they are reached, even through the fields,
// methods or small functions of another package, and the packages of the binary that have them. See cache.Client
// and "The first command" of docs/performance.md.
var heavy = []struct {
	name     string // as the compiler writes it
	packages []string
}{
	{"github.com/redis/go-redis/v9.baseClient", []string{"platform/cache"}}, // what each client of it embeds
	{"github.com/uptrace/bun/schema.Table", []string{"platform/database", "migrations"}},
}

func TestFewPackagesCompileHeavyTypes(t *testing.T) {
	t.Parallel()
	found := map[string][]string{}
	for name, path := range compiled(t, "../../cmd/authctl") {
		name, ours := strings.CutPrefix(name, module)
		if !ours {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range heavy {
			if bytes.Contains(text, []byte(kind.name)) {
				found[kind.name] = append(found[kind.name], name)
			}
		}
	}
	for _, kind := range heavy {
		for _, name := range found[kind.name] {
			if !slices.Contains(kind.packages, name) {
				t.Errorf("%s compiles %s: something that it uses leads to that type; hide it behind an interface, "+
					"or keep what leads to it from being inlined", name, kind.name)
			}
		}
		// Otherwise nothing would be found if the compiler wrote the name in another way.
		for _, name := range kind.packages {
			if !slices.Contains(found[kind.name], name) {
				t.Errorf("%s does not compile %s any more: take it off the list", name, kind.name)
			}
		}
	}
}
