package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// A proxy mounts the service at a path, and removes the path before it passes requests on. The
// service knows the path from its issuer alone.
func TestTheServiceWorksBehindAPathPrefix(t *testing.T) {
	t.Parallel()
	f := newPlanting(t)
	var cookies atomic.Value // set by the last request
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookies.Store(r.Header.Get("Cookie"))
		target, err := url.Parse(f.base)
		if err != nil {
			t.Error(err)
		}
		forward := http.Handler(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) }})
		// RFC 8414 puts the metadata outside of the mount.
		if !strings.HasPrefix(r.URL.Path, "/.well-known/") {
			forward = http.StripPrefix("/auth", forward)
		}
		forward.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	issuer := proxy.URL + "/auth"
	f.env = append(f.env, "AUTH_PASSWORD_BCRYPT_COST=4", "AUTH_TOKEN_ISSUER="+issuer)
	f.serve()

	jar, err := cookiejar.New(nil)
	testenv.Must(t, err)
	browser := &http.Client{Jar: jar, Timeout: patience}
	do := func(method, target, body string) (status int, text string, at *url.URL) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
		testenv.Must(t, err)
		req.Header.Set("Content-Type", "application/json")
		res, err := browser.Do(req)
		testenv.Must(t, err)
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		testenv.Must(t, err)
		return res.StatusCode, string(data), res.Request.URL
	}

	// Clients find the metadata at the place of RFC 8414 and at the older one, and then everything
	// that it names.
	for _, place := range []string{proxy.URL + "/.well-known/oauth-authorization-server/auth", issuer +
		"/.well-known/oauth-authorization-server"} {
		status, text, _ := do("GET", place, "")
		var metadata map[string]any
		if err := json.Unmarshal([]byte(text), &metadata); status != 200 || err != nil || metadata["issuer"] != issuer {
			t.Fatalf("%s: %d %s", place, status, text)
		}
		for name, want := range map[string]int{"jwks_uri": 200, "introspection_endpoint": 405,
			"revocation_endpoint": 405} {
			if status, text, _ := do("GET", metadata[name].(string), ""); status != want {
				t.Errorf("%s %s: %d %s", name, metadata[name], status, text)
			}
		}
	}

	// A proxy that forwards the path as it is is told what it misses.
	for path, named := range map[string]bool{"/auth/api/v1/auth/me": true, "/auth/oauth2/introspect": true,
		"/authority": false, "/auth/nothing": false} {
		if status, text, _ := do("GET", f.base+path, ""); status != 404 ||
			strings.Contains(text, "must take /auth off the path") != named {
			t.Errorf("%s without the proxy: %d %s", path, status, text)
		}
	}

	// A browser sends the device's cookie to the routes that need it, and to no others.
	const who = `{"username":"alice","password":"correct horse battery staple"}`
	if status, text, _ := do("POST", issuer+"/api/v1/auth/register", who); status != 201 {
		t.Fatalf("register: %d %s", status, text)
	}
	if status, text, _ := do("POST", issuer+"/api/v1/auth/login", who); status != 200 ||
		!strings.Contains(cookies.Load().(string), "authctl_device=adt_") {
		t.Errorf("login: %d %s with the cookies %q", status, text, cookies.Load())
	}
	if do("GET", issuer+"/healthz", ""); cookies.Load() != "" {
		t.Errorf("elsewhere the cookies are %q", cookies.Load())
	}

	// The page of the API finds its parts and its document.
	status, page, at := do("GET", issuer+"/docs/swagger/", "")
	if status != 200 || at.Path != "/auth/docs/swagger/index.html" {
		t.Fatalf("the page: %d at %s", status, at)
	}
	parts := regexp.MustCompile(`(?:src|href|"url")\s*[=:]\s*"([^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(parts) < 4 || !strings.Contains(page, `"doc.json"`) {
		t.Errorf("the page names the parts %q", parts)
	}
	for _, part := range parts {
		ref, err := at.Parse(part[1])
		testenv.Must(t, err)
		if status, _, _ := do("GET", ref.String(), ""); status != 200 {
			t.Errorf("%s of the page: %d", ref, status)
		}
	}
}
