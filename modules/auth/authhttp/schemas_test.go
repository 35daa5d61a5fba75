package authhttp

import (
	"os"
	"strings"
	"testing"

	"github.com/toppira/authctl/docs/schemas"
	"github.com/toppira/authctl/modules/auth"
)

func TestEveryTypeOfEventHasItsSchemaServed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		for _, eventType := range auth.EventTypes() {
			path := "/.well-known/schemas/" + eventType + ".json"
			file, err := os.ReadFile("../../../docs/schemas/" + eventType + ".json")
			if err != nil {
				t.Fatal(err)
			}
			a := s.do("GET", path, nil)
			etag := a.Header.Get("ETag")
			if a.StatusCode != 200 || a.text != string(file) || a.Header.Get("Content-Type") != "application/json" ||
				a.Header.Get("Cache-Control") != "public, max-age=86400, immutable" || etag == "" {
				t.Errorf("%s: %d %v %s", path, a.StatusCode, a.Header, a.text)
			}
			again := s.do("GET", path, nil, "If-None-Match", etag)
			if again.StatusCode != 304 || again.text != "" || again.Header.Get("ETag") != etag {
				t.Errorf("%s with its tag: %d %v %s", path, again.StatusCode, again.Header, again.text)
			}
			if other := s.do("GET", path, nil, "If-None-Match", `"other"`); other.StatusCode != 200 {
				t.Errorf("%s with another tag: %d", path, other.StatusCode)
			}
		}
		for _, name := range []string{
			"auth.UserLoggedIn.v2.json", "auth.UserLoggedIn.v1", "auth.UserLoggedIn.v1.JSON", "schemas.go", ".json",
			"..%2Fevents.md",
			"auth.UserLoggedIn.v1.json/", "%00",
		} {
			a := s.do("GET", "/.well-known/schemas/"+name, nil)
			if a.StatusCode != 404 || a.str("code") != "not_found" ||
				a.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: %d %v %s", name, a.StatusCode, a.Header, a.text)
			}
		}
	})
}

// With a path in the issuer, a proxy has mounted the service there. The schema that an event names
// is then the one that the service has under that path.
func TestWhatEventsNameIsTheirSchema(t *testing.T) {
	t.Parallel()
	for _, mount := range []string{"", "/", "/auth", "/auth/", "/realms/one"} {
		for _, schema := range schemas.All() {
			below := issuer + strings.TrimRight(mount, "/")
			if url := auth.SchemaURL(issuer+mount,
				schema.Type); url != below+"/.well-known/schemas/"+schema.Type+".json" {
				t.Errorf("issuer %s: %s", issuer+mount, url)
			}
		}
	}
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		s.register()
		var url string
		if err := s.db.QueryRowContext(t.Context(), "SELECT dataschema FROM outbox_event").Scan(&url); err != nil {
			t.Fatal(err)
		}
		path, ours := strings.CutPrefix(url, issuer)
		if a := s.do("GET", path, nil); !ours || a.StatusCode != 200 || a.str("title") != auth.EventUserRegistered {
			t.Errorf("%s: %d %s", url, a.StatusCode, a.text)
		}
	})
}
