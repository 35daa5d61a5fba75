package httpserver_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/platform/httpserver"
)

func TestEveryAnswerCarriesTheSecurityHeaders(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	check := func(t *testing.T, a answer) {
		t.Helper()
		for header, want := range map[string]string{
			"X-Content-Type-Options":    "nosniff",
			"Referrer-Policy":           "no-referrer",
			"Content-Security-Policy":   "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
			"Strict-Transport-Security": "", // must be absent over plain HTTP
			"Server":                    "",
		} {
			if got := a.Header.Get(header); got != want {
				t.Errorf("%s: %q", header, got)
			}
		}
		if a.Header.Get("X-Request-Id") == "" {
			t.Error("no X-Request-Id")
		}
	}
	for _, path := range []string{"/plain", "/nowhere", "/panic", "/taken", "/oauth/nowhere", "/healthz"} {
		check(t, s.do(t, "GET", path, ""))
	}
	check(t, s.do(t, "HEAD", "/plain", ""))
	check(t, s.do(t, "OPTIONS", "/plain", ""))
	check(t, s.do(t, "DELETE", "/things/1", ""))
	for _, request := range []string{
		"nonsense\r\n\r\n",
		"GET /plain HTTP/1.1\nHost: a\r\n\r\n",
		"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n",
		"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n",
		"GET /plain HTTP/1.1\r\nHost: a\r\nX-A: " + strings.Repeat("x", 20000) + "\r\n\r\n",
	} {
		a, _ := s.raw(t, request)
		check(t, a)
	}
}

func TestThePageOfTheAPIWorks(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for path, to := range map[string]string{"/docs": "docs/index.html", "/docs/": "index.html"} {
			// No client may choose the links that others get.
			a := s.do(t, "GET", path, "", "X-Forwarded-Prefix", "//evil.example")
			if a.StatusCode != 301 || a.Header.Get("Location") != to {
				t.Errorf("%s: %d to %q", path, a.StatusCode, a.Header.Get("Location"))
			}
		}
		for range 2 { // the second time it comes from the cache
			a := s.do(t, "GET", "/docs/index.html", "", "X-Forwarded-Prefix", "//evil.example")
			_, after, _ := strings.Cut(a.body, "<script>")
			script, _, found := strings.Cut(after, "</script>")
			sum := sha256.Sum256([]byte(script))
			policy := a.Header.Get("Content-Security-Policy")
			if !found || !strings.Contains(policy,
				"script-src 'self' 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") ||
				strings.Contains(policy, "unsafe-eval") {
				t.Errorf("policy %q for script %q", policy, script)
			}
			for _, text := range []string{"onload=", "<script type", `href="http`, `src="http`, `href="//`, `src="//`,
				"evil"} {
				if strings.Contains(a.body, text) {
					t.Errorf("the page has %s, which its policy does not allow", text)
				}
			}
		}
		if a := s.do(t, "GET", "/docs/swagger-ui.css", ""); a.StatusCode != 200 || len(a.body) < 1000 ||
			!strings.HasPrefix(a.Header.Get("Content-Type"), "text/css") {
			t.Errorf("style sheet: %d %s, %d bytes", a.StatusCode, a.Header.Get("Content-Type"), len(a.body))
		}
		document := s.do(t, "GET", "/docs/doc.json", "")
		if document.body != `{"openapi":"3.1.0"}` || document.Header.Get("Content-Type") != "application/json" {
			t.Errorf("document: %d %s", document.StatusCode, document.body)
		}
		for _, lines := range [][]string{{"If-None-Match", document.Header.Get("ETag")},
			{"If-None-Match", `"older"`, "If-None-Match", "W/" + document.Header.Get("ETag")}} {
			if a := s.do(t, "GET", "/docs/doc.json", "", lines...); a.StatusCode != 304 || a.body != "" {
				t.Errorf("the same document, %q: %d %s", lines, a.StatusCode, a.body)
			}
		}
		s.do(t, "GET", "/docs/missing.js", "").problem(t, 404, "not_found")
		// What is served is kept, so it must not be there under any number of other paths.
		for _, other := range []string{"index.html/", "index.html//", "/index.html", "a/index.html"} {
			s.do(t, "GET", "/docs/"+other, "").problem(t, 404, "not_found")
		}
		s.do(t, "GET", "/docs/../../etc/passwd", "").problem(t, 404, "not_found")
		s.do(t, "POST", "/docs/index.html", "").problem(t, 405, "method_not_allowed")
	})
}

func TestHeadAnswersAsGetWithoutABody(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		a := s.do(t, "HEAD", "/plain", "")
		if a.StatusCode != 200 || a.body != "" || a.ContentLength != int64(len(`"plain"`)) {
			t.Errorf("%d %q, length %d", a.StatusCode, a.body, a.ContentLength)
		}
		if a := s.do(t, "HEAD", "/nowhere", ""); a.StatusCode != 404 || a.body != "" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
	})
}

func TestOnlyListedOriginsAreAllowed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{Origins: []string{"https://app.example.com", "http://localhost:3000"}})
		for origin, allowed := range map[string]bool{
			"https://app.example.com":         true,
			"http://localhost:3000":           true,
			"https://app.example.com.evil.io": false,
			"https://evilapp.example.com":     false,
			"http://app.example.com":          false,
			"https://app.example.com:8443":    false,
			"https://APP.example.com":         false,
			"https://app.example.com/":        false,
			"null":                            false,
			"*":                               false,
			"":                                false,
		} {
			for _, path := range []string{"/plain", "/nowhere", "/broken"} {
				a := s.do(t, "GET", path, "", "Origin", origin)
				got := a.Header.Get("Access-Control-Allow-Origin")
				if allowed && got != origin || !allowed && got != "" {
					t.Errorf("%s from %q: allowed %q", path, origin, got)
				}
				if vary := a.Header.Values("Vary"); len(vary) != 1 || vary[0] != "Origin" {
					t.Errorf("%s from %q: Vary %q", path, origin, vary)
				}
				if expose := a.Header.Get("Access-Control-Expose-Headers"); allowed != (expose == "ETag, Retry-After, WWW-Authenticate, X-Request-Id") {
					t.Errorf("expose %q", expose)
				}
				if got := a.Header.Get("Access-Control-Allow-Credentials"); allowed != (got == "true") || !allowed &&
					got != "" {
					t.Errorf("%s from %q: credentials %q", path, origin, got)
				}
			}
		}
		two := s.do(t, "GET", "/plain", "", "Origin", "https://app.example.com", "Origin", "https://evil.example")
		if got := two.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("two origins: %q", got)
		}

		preflight := []string{"Access-Control-Request-Method", "DELETE", "Access-Control-Request-Headers",
			"authorization"}
		a := s.do(t, "OPTIONS", "/things/1", "", append(preflight, "Origin", "https://app.example.com")...)
		if a.StatusCode != 204 || a.Header.Get("Access-Control-Allow-Methods") != "GET, HEAD, DELETE, OPTIONS" ||
			!strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "Authorization") ||
			!strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "Content-Type") {
			t.Errorf("preflight: %d %v", a.StatusCode, a.Header)
		}
		a = s.do(t, "OPTIONS", "/things/1", "", append(preflight, "Origin", "https://evil.example")...)
		if a.Header.Get("Access-Control-Allow-Origin") != "" || a.Header.Get("Access-Control-Allow-Methods") != "" ||
			a.Header.Get("Vary") != "Origin" {
			t.Errorf("preflight of a stranger: %v", a.Header)
		}
		s.do(t, "OPTIONS", "/nowhere", "", append(preflight, "Origin", "https://app.example.com")...).problem(t, 404,
			"not_found")
	})
}

// Headers that a browser adds to a page's request by itself must not prevent the answer.
func TestAPreflightPassesWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		const origin = "https://app.example.com"
		own := httpserver.Route{Method: "GET", Path: "/own", Do: httpserver.Public(func(_ context.Context, in struct {
			Own string `header:"Own-Header"`
		}) (struct {
			Shown string `header:"Shown-Header"`
			Body  string
		}, error) {
			return struct {
				Shown string `header:"Shown-Header"`
				Body  string
			}{in.Own, "x"}, nil
		})}
		s := serve(t, httpserver.Config{Origins: []string{origin}, CORSHeaders: []string{"X-Tenant", "X-Acme-*"}}, own)
		shown := s.do(t, "GET", "/own", "", "Origin", origin, "Own-Header", "kept")
		if shown.Header.Get("Shown-Header") != "kept" ||
			!strings.HasSuffix(shown.Header.Get("Access-Control-Expose-Headers"), ", Shown-Header") {
			t.Errorf("a header that a route declares: %v", shown.Header)
		}
		all := serve(t, httpserver.Config{Origins: []string{origin}, CORSHeaders: []string{"*"}})
		preflight := func(s *service, asked ...string) (passed []string) {
			headers := []string{"Origin", origin, "Access-Control-Request-Method", "POST"}
			for _, line := range asked {
				headers = append(headers, "Access-Control-Request-Headers", line)
			}
			a := s.do(t, "OPTIONS", "/echo", "", headers...)
			if a.StatusCode != 204 || a.Header.Get("Access-Control-Allow-Credentials") != "true" ||
				!slices.Contains(a.Header.Values("Vary"), "Access-Control-Request-Headers") {
				t.Errorf("%q: %d %v", asked, a.StatusCode, a.Header)
			}
			for name := range strings.SplitSeq(a.Header.Get("Access-Control-Allow-Headers"), ",") {
				passed = append(passed, strings.ToLower(strings.TrimSpace(name)))
			}
			return passed
		}
		for _, name := range []string{
			"authorization", "content-type", "x-request-id", "own-header", "traceparent", "tracestate", "baggage",
			"sentry-trace",
			"idempotency-key", "x-requested-with", "x-datadog-trace-id", "x-datadog-sampling-priority", "if-none-match",
			"cache-control", "pragma",
			"x-b3-traceid", "b3", "uber-trace-id", "newrelic", "x-csrf-token", "x-tenant", "x-acme-", "x-acme-anything",
			"X-Requested-With",
		} {
			if !slices.Contains(preflight(s, name), strings.ToLower(name)) {
				t.Errorf("%s does not pass", name)
			}
		}
		together := preflight(s, "content-type,traceparent , tracestate", "Baggage")
		for _, name := range []string{"content-type", "traceparent", "tracestate", "baggage"} {
			if !slices.Contains(together, name) {
				t.Errorf("%s does not pass among others: %q", name, together)
			}
		}
		always := preflight(s)
		for _, name := range []string{"x-tenants", "x-tenant x", "cookie", "x-forwarded-for", "x-acm", "*", "",
			"bad(name"} {
			if got := preflight(s, name); !slices.Equal(got, always) {
				t.Errorf("%q passes: %q", name, got)
			}
		}
		if !slices.Contains(preflight(all, "x-whatever"), "x-whatever") {
			t.Error("* is not every name")
		}
	})
}

func TestOriginsAreThoseThatBrowsersSend(t *testing.T) {
	t.Parallel()
	for entry, sent := range map[string]string{
		"capacitor://localhost": "capacitor://localhost", "tauri://localhost": "tauri://localhost",
		"ionic://localhost":                   "ionic://localhost",
		"chrome-extension://abcdefghijklmnop": "chrome-extension://abcdefghijklmnop", "app://-": "app://-",
		"safari-web-extension://6E1B0A5C-AB": "safari-web-extension://6E1B0A5C-AB",
		"HTTPS://App.Example.com:443":        "https://app.example.com", "http://localhost:80": "http://localhost",
		"http://localhost:443":         "http://localhost:443",
		"https://[2001:DB8:0::1]:8443": "https://[2001:db8::1]:8443", "http://127.0.0.1:03000": "http://127.0.0.1:3000",
		"Capacitor://localhost:81": "capacitor://localhost:81",
	} {
		s := serve(t, httpserver.Config{Origins: []string{entry}})
		if a := s.do(t, "GET", "/plain", "", "Origin", sent); a.Header.Get("Access-Control-Allow-Origin") != sent {
			t.Errorf("%s listed, %s sent: %q", entry, sent, a.Header.Get("Access-Control-Allow-Origin"))
		}
	}
}

func TestWithoutOriginsNoneIsAllowed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		a := s.do(t, "GET", "/plain", "", "Origin", "https://app.example.com")
		if a.Header.Get("Access-Control-Allow-Origin") != "" || a.Header.Get("Vary") != "Origin" {
			t.Errorf("headers %v", a.Header)
		}
	})
}

func TestUnauthenticatedAnswersSayHowToAuthenticate(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		bearer := &httpserver.Scheme{Name: "bearer", HTTP: "bearer"}
		refused := httpserver.Identity[string]{Scheme: bearer,
			Of: func(context.Context, httpserver.Credentials) (string, error) { return "", errNobody }}
		s := serve(t, httpserver.Config{},
			httpserver.Route{Method: "GET", Path: "/own", Do: httpserver.AsDo(refused,
				func(context.Context, string, nothing) error { return nil })},
			httpserver.Route{Method: "GET", Path: "/either", Accepts: []*httpserver.Scheme{bearer}, Do: httpserver.PublicDo(
				func(context.Context, nothing) error { return errNobody })})
		for authorization, sent := range map[string]bool{
			"": false, "Basic dTpw": false, "Bearer": false, "Bearer ": false, "Bearer something": true,
			"bearer something": true, "Bearer\tsomething": true,
		} {
			// The last one takes no token, as sign-in does: the error is not about the token.
			for path, takes := range map[string]bool{"/own": true, "/either": true, "/denied": false} {
				a := s.do(t, "GET", path, "", "Authorization", authorization)
				a.problem(t, 401, "invalid_token")
				want := `Bearer realm="authctl"`
				if sent && takes {
					want += `, error="invalid_token"`
				}
				if got := a.Header.Get("WWW-Authenticate"); got != want {
					t.Errorf("%s with %q: %q", path, authorization, got)
				}
			}
		}
	})
}

func TestAClientsRequestIDIsKeptWhenItIsPlain(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for id, kept := range map[string]bool{
			"abc-123_X.y":           true,
			strings.Repeat("a", 64): true,
			strings.Repeat("a", 65): false,
			"":                      false,
			"a b":                   false,
			"a\"b":                  false,
			"ä":                     false,
			"<script>":              false,
		} {
			a := s.do(t, "GET", "/me", "", "X-Request-Id", id)
			got := a.Header.Get("X-Request-Id")
			if (got == id) != kept || got != strings.Trim(a.body, `"`) || !kept && len(got) != 32 {
				t.Errorf("%q: header %q, handler %q", id, got, a.body)
			}
		}
	})
}

func TestTheClientsAddressIsTakenFromTrustedProxiesOnly(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		direct := serve(t, httpserver.Config{})
		behind := serve(t, httpserver.Config{TrustedProxies: []string{"127.0.0.0/8", "10.0.0.0/8",
			"::ffff:192.168.0.0/112", "fd00::/8"}})
		for name, test := range map[string]struct {
			service *service
			headers []string
			want    string
		}{
			"no proxy, forged": {direct, []string{"X-Forwarded-For", "1.2.3.4", "X-Real-Ip", "1.2.3.4", "Forwarded",
				"for=1.2.3.4"}, "127.0.0.1"},
			"no header":         {behind, nil, "127.0.0.1"},
			"one hop":           {behind, []string{"X-Forwarded-For", "203.0.113.9"}, "203.0.113.9"},
			"forged left of it": {behind, []string{"X-Forwarded-For", "1.1.1.1, 203.0.113.9"}, "203.0.113.9"},
			"two trusted hops":  {behind, []string{"X-Forwarded-For", "1.1.1.1, 203.0.113.9, 10.1.2.3"}, "203.0.113.9"},
			"several headers": {behind, []string{"X-Forwarded-For", "203.0.113.9", "X-Forwarded-For", "10.1.2.3"},
				"203.0.113.9"},
			"forged first header": {behind, []string{"X-Forwarded-For", "1.1.1.1", "X-Forwarded-For", "203.0.113.9"},
				"203.0.113.9"},
			"all trusted":          {behind, []string{"X-Forwarded-For", "10.9.9.9, 10.1.2.3"}, "10.9.9.9"},
			"garbage":              {behind, []string{"X-Forwarded-For", "203.0.113.9, unknown"}, "127.0.0.1"},
			"garbage further left": {behind, []string{"X-Forwarded-For", "203.0.113.9, unknown, 10.1.2.3"}, "10.1.2.3"},
			"empty entry":          {behind, []string{"X-Forwarded-For", "203.0.113.9,, 10.1.2.3"}, "203.0.113.9"},
			"trailing comma":       {behind, []string{"X-Forwarded-For", "203.0.113.9,"}, "203.0.113.9"},
			"trailing commas":      {behind, []string{"X-Forwarded-For", "203.0.113.9, ,\t, "}, "203.0.113.9"},
			"leading comma":        {behind, []string{"X-Forwarded-For", ", 203.0.113.9"}, "203.0.113.9"},
			"commas alone":         {behind, []string{"X-Forwarded-For", ",,"}, "127.0.0.1"},
			"an empty line between": {behind, []string{"X-Forwarded-For", "203.0.113.9", "X-Forwarded-For", "",
				"X-Forwarded-For", "10.1.2.3"}, "203.0.113.9"},
			"blanks around": {behind, []string{"X-Forwarded-For", "  203.0.113.9 \t,\t10.1.2.3  "},
				"203.0.113.9"},
			"brackets":             {behind, []string{"X-Forwarded-For", "[2001:db8::7]"}, "2001:db8::7"},
			"brackets and port":    {behind, []string{"X-Forwarded-For", "[2001:db8::7]:4711"}, "2001:db8::7"},
			"brackets and zone":    {behind, []string{"X-Forwarded-For", "[fe80::7%eth0]:80"}, "fe80::7"},
			"brackets, mapped":     {behind, []string{"X-Forwarded-For", "[::ffff:203.0.113.9]:80"}, "203.0.113.9"},
			"brackets around IPv4": {behind, []string{"X-Forwarded-For", "[203.0.113.9]:80"}, "203.0.113.9"},
			"trusted in brackets": {behind,
				[]string{"X-Forwarded-For", "203.0.113.9:1, [fd00::7], [::ffff:10.1.2.3]:443"},
				"203.0.113.9"},
			"IPv4 with port":    {behind, []string{"X-Forwarded-For", "1.2.3.4:5678"}, "1.2.3.4"},
			"quotes":            {behind, []string{"X-Forwarded-For", "\"[2001:db8::7]:4711\""}, "2001:db8::7"},
			"open bracket":      {behind, []string{"X-Forwarded-For", "[2001:db8::7"}, "127.0.0.1"},
			"after the bracket": {behind, []string{"X-Forwarded-For", "[2001:db8::7]x"}, "127.0.0.1"},
			"open quote":        {behind, []string{"X-Forwarded-For", "\"203.0.113.9"}, "127.0.0.1"},
			"port too large":    {behind, []string{"X-Forwarded-For", "203.0.113.9:99999"}, "127.0.0.1"},
			"port that is none": {behind, []string{"X-Forwarded-For", "203.0.113.9:http"}, "127.0.0.1"},
			"leading zeros":     {behind, []string{"X-Forwarded-For", "010.1.2.3"}, "127.0.0.1"},
			"a name":            {behind, []string{"X-Forwarded-For", "203.0.113.9, client.example"}, "127.0.0.1"},
			"a socket of nginx": {behind, []string{"X-Forwarded-For", "203.0.113.9, unix:"}, "127.0.0.1"},
			"garbage in the middle": {behind, []string{"X-Forwarded-For", "203.0.113.9, _hidden, [fd00::1], 10.1.2.3"},
				"fd00::1"},
			"empty header":       {behind, []string{"X-Forwarded-For", ""}, "127.0.0.1"},
			"IPv6":               {behind, []string{"X-Forwarded-For", "2001:db8::1"}, "2001:db8::1"},
			"IPv6 with zone":     {behind, []string{"X-Forwarded-For", "fe80::1%eth0"}, "fe80::1"},
			"mapped":             {behind, []string{"X-Forwarded-For", "::ffff:203.0.113.9"}, "203.0.113.9"},
			"mapped trusted hop": {behind, []string{"X-Forwarded-For", "203.0.113.9, ::ffff:10.1.2.3"}, "203.0.113.9"},
			"trusted by mapping": {behind, []string{"X-Forwarded-For", "203.0.113.9, 192.168.0.7"}, "203.0.113.9"},
			"with ports": {behind, []string{"X-Forwarded-For", "203.0.113.9:1234, [fd00::1]:80"},
				"203.0.113.9"},
			"other headers ignored": {behind,
				[]string{"X-Real-Ip", "1.2.3.4", "Forwarded", "for=1.2.3.4", "Cf-Connecting-Ip",
					"1.2.3.4"}, "127.0.0.1"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if got := strings.Trim(test.service.do(t, "GET", "/ip", "", test.headers...).body,
					`"`); got != test.want {
					t.Errorf("%s, want %s", got, test.want)
				}
			})
		}
	})
}

// When clients cannot be told apart they are limited together, and the operator is told once.
func TestTheOperatorIsToldWhereClientsCannotBeToldApart(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		direct, behind := serve(t, httpserver.Config{}), serve(t,
			httpserver.Config{TrustedProxies: []string{"127.0.0.0/8"}})
		for range 3 {
			direct.do(t, "GET", "/ip", "", "X-Forwarded-For", "203.0.113.9")
			behind.do(t, "GET", "/ip", "", "X-Forwarded-For", "203.0.113.9, secret")
			behind.do(t, "GET", "/ip", "", "X-Forwarded-For", "203.0.113.9,")
		}
		if lines := direct.logs.FilterMessage("proxy_not_trusted").All(); len(lines) != 1 ||
			lines[0].ContextMap()["proxy"] != "127.0.0.1" {
			t.Errorf("a proxy that is not trusted: %v", lines)
		}
		if lines := behind.logs.FilterMessage("forwarded_unread").All(); len(lines) != 1 ||
			strings.Contains(fmt.Sprint(lines[0].ContextMap()), "secret") {
			t.Errorf("an entry that is no address: %v", lines)
		}
	})
}

func TestARequestIsOneLineOfTheLogWithoutSecrets(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		s.do(t, "GET", "/me?secret=query", "", "Authorization", "Bearer secret-token", "X-Request-Id", "id-1")
		s.requests(t, 1)
		s.do(t, "GET", "/healthz", "")
		s.requests(t, 2)
		s.do(t, "POST", "/echo", `{"name":"secret-body"}`, "Content-Type", "application/json")
		s.requests(t, 3)
		a, _ := s.raw(t, "GET /nowhere/\xe2\x80\xa8%0a\x80"+strings.Repeat("x",
			1000)+"?secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		a.problem(t, 404, "not_found")
		lines := s.requests(t, 4)
		if len(lines) != 4 {
			t.Fatalf("%d lines", len(lines))
		}
		me := lines[0].ContextMap()
		for key, want := range map[string]any{"method": "GET", "route": "/me", "path": "/me", "status": int64(200),
			"bytes": int64(6), "ip": "127.0.0.1", "request_id": "id-1", "user_id": "user-1"} {
			if me[key] != want {
				t.Errorf("%s: %v, want %v", key, me[key], want)
			}
		}
		if _, found := me["duration_ms"].(float64); !found {
			t.Errorf("duration_ms: %v", me["duration_ms"])
		}
		if lines[0].Level != zapcore.InfoLevel || lines[1].Level != zapcore.DebugLevel {
			t.Errorf("levels %v, %v", lines[0].Level, lines[1].Level)
		}
		path := lines[3].ContextMap()["path"].(string)
		if !strings.HasPrefix(strings.ToLower(path), "/nowhere/%e2%80%a8%0a%80xxx") ||
			!strings.HasSuffix(path, "x...") ||
			len(path) > 300 {
			t.Errorf("path %q", path)
		}
		for _, line := range lines {
			for key, value := range line.ContextMap() {
				if text, _ := value.(string); strings.Contains(text, "secret") {
					t.Errorf("%s shows a secret: %s", key, text)
				}
			}
		}
	})
}
