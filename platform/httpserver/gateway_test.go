package httpserver_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
)

// anyMethods are the methods with which a gateway may ask.
var anyMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"}

// A gateway's request has the method, the body and the headers of the request that it asks about.
func TestAGatewayIsAnsweredWhateverItAsksWith(t *testing.T) {
	t.Parallel()
	someone := httpserver.Identity[string]{
		Scheme: &httpserver.Scheme{Name: "bearer", HTTP: "bearer"},
		Of: func(_ context.Context, c httpserver.Credentials) (string, error) {
			switch who, found := strings.CutPrefix(c.Authorization(), "Bearer "); {
			case !found:
				return "", errNobody
			case who == "away":
				return "", errAway
			case who == "malformed":
				return "", httpserver.ErrMalformed
			case who == "broken":
				panic("broken")
			default:
				return who, nil
			}
		},
	}
	type told struct {
		User string `header:"Auth-User"`
	}
	check := httpserver.Route{Method: "GET", Path: "/oauth2/check", OAuth: true, Gateway: true, Cache: "no-store",
		Do: httpserver.As(someone, func(_ context.Context, who string, _ struct{}) (told, error) {
			return told{who}, nil
		})}
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{Origins: []string{"https://app.example"}}, check)
		for _, method := range anyMethods {
			for _, test := range []struct {
				authorization string
				status        int
				header, value string
			}{
				{"Bearer alice", 200, "Auth-User", "alice"},
				{"", 401, "WWW-Authenticate", `Bearer realm="authctl"`},
				{"Bearer malformed", 401, "WWW-Authenticate", `Bearer realm="authctl", error="invalid_token"`},
				{"Bearer away", 503, "Retry-After", "1"},
				{"Bearer broken", 500, "Retry-After", ""},
			} {
				body := "<not even JSON>"
				if method == "TRACE" { // HEAD has none
					body = ""
				}
				a := s.do(t, method, "/oauth2/check?any=%zz", body, "Authorization", test.authorization,
					"Content-Type", "application/xml", "Content-Encoding", "br", "Auth-User", "forged",
					"Origin", "https://app.example", "Access-Control-Request-Method", "DELETE")
				if a.StatusCode != test.status || a.Header.Get(test.header) != test.value || a.body != "" ||
					a.Header.Get("Content-Type") != "" || a.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s as %q: %d %v %q", method, test.authorization, a.StatusCode, a.Header, a.body)
				}
				if test.status != 200 && a.Header.Values("Auth-User") != nil {
					t.Errorf("%s as %q: Auth-User %q", method, test.authorization, a.Header.Values("Auth-User"))
				}
				if got := a.Header.Get("Access-Control-Allow-Methods") +
					a.Header.Get("Access-Control-Expose-Headers"); strings.Contains(got, "DELETE") ||
					strings.Contains(got, "Auth-User") {
					t.Errorf("%s as %q: CORS allows %q", method, test.authorization, got)
				}
			}
		}
		// With two headers nobody knows which one the gateway has checked.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/oauth2/check", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Authorization"] = []string{"Bearer alice", "Bearer bob"}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("with two tokens: %d %v", res.StatusCode, res.Header)
		}
		if lines := s.requests(t, 1); lines[0].ContextMap()["route"] != "/oauth2/check" {
			t.Errorf("%v", lines[0].ContextMap())
		}
		// Other routes behave as usual.
		s.do(t, "PROPFIND", "/plain", "").problem(t, 405, "method_not_allowed")
		if a := s.do(t, "OPTIONS", "/plain", ""); a.StatusCode != 204 || a.Header.Get("Allow") != "GET, HEAD, OPTIONS" {
			t.Errorf("OPTIONS elsewhere: %d %v", a.StatusCode, a.Header)
		}
		if a := s.do(t, "GET", "/oauth2/check/", "", "Authorization", "Bearer alice"); a.StatusCode != 404 {
			t.Errorf("a path below: %d %s", a.StatusCode, a.body)
		}
	})
}
