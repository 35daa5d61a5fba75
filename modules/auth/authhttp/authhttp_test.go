package authhttp

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/openapi"
	"github.com/toppira/authctl/platform/openapi/openapitest"
)

const (
	issuer       = "https://auth.test"
	listed       = "https://app.test" // in app.origins
	nativeApp    = "capacitor://localhost"
	goodPassword = "a quite good password"
	clientSecret = "s3cret/with+signs"
)

// site is all routes on a fresh database.
type site struct {
	t     *testing.T
	start httpservertest.Start
	base  string
	svc   *auth.Service
	db    *database.DB
	doc   openapitest.Document // every answer is checked against it
}

// eachWay runs a test in each way of serving the routes.
func eachWay(t *testing.T, test func(t *testing.T, newSite func(*testing.T) *site)) {
	t.Helper()
	httpservertest.EachWith(t, httpserver.Config{Origins: []string{listed, nativeApp}},
		func(t *testing.T, start httpservertest.Start) {
			test(t, func(t *testing.T) *site { return newSite(t, start) })
		})
}

func newSite(t *testing.T, start httpservertest.Start) *site {
	t.Helper()
	digest := sha256.Sum256([]byte(clientSecret))
	cfg := config.WithDefaults(auth.Config{
		RefreshGrace: time.Minute,
		Clients: []string{"gateway:" + hex.EncodeToString(digest[:]), "https://api.example:8443/x:" +
			hex.EncodeToString(digest[:]), "100%+:" + hex.EncodeToString(digest[:])},
		Token: token.Config{
			Secret: "a secret of the tests that is long enough for everything", Issuer: issuer,
			Audience: []string{"test"}, ClientID: "test", AccessTTL: time.Hour,
		},
		Throttle: throttle.Config{Limits: throttle.Limits{DeviceTTL: 2 * time.Hour}},
		Password: password.Config{BcryptCost: 4, Workers: 2, QueueWait: time.Minute},
	})
	db := dbtest.SQLite(t)
	svc, err := auth.New(t.Context(), cfg, auth.Deps{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{t: t, start: start, svc: svc, db: db}
	s.mount(Options{Issuer: issuer, SecureCookies: true})
	return s
}

// mount serves the routes with these options from now on.
func (s *site) mount(opt Options) {
	s.t.Helper()
	routes := Routes(s.svc, opt)
	s.base = s.start(s.t, httpserver.Options{Unavailable: auth.IsUnavailable}, routes...)
	s.doc = documentOf(s.t, opt, routes)
}

// documents caches the documents by their options.
var documents sync.Map

func documentOf(t *testing.T, opt Options, routes []httpserver.Route) openapitest.Document {
	t.Helper()
	if known, ok := documents.Load(opt); ok {
		return known.(openapitest.Document)
	}
	text, err := openapi.Document(openapi.Info{Title: "test", Version: "1", ContactURL: issuer, License: "Apache-2.0",
		Server: "/", Groups: Groups}, routes)
	if err != nil {
		t.Fatal(err)
	}
	document := openapitest.Load(t, text)
	documents.Store(opt, document)
	return document
}

// answer is an answer, with its body parsed if it is JSON.
type answer struct {
	*http.Response
	text string
	json map[string]any
}

func (a answer) str(name string) string { s, _ := a.json[name].(string); return s }

// do sends a request; body is JSON unless it is a string. headers are names and values.
func (s *site) do(method, path string, body any, headers ...string) answer {
	s.t.Helper()
	var in io.Reader
	contentType := ""
	switch body := body.(type) {
	case nil:
	case string:
		in, contentType = strings.NewReader(body), "application/json"
	default:
		data, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		in, contentType = bytes.NewReader(data), "application/json"
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, in)
	if err != nil {
		s.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if op := s.doc.Operation(method, req.URL.EscapedPath()); op != nil {
		for _, problem := range s.doc.Check(op, method, res, text) {
			s.t.Errorf("%s %s: %s", method, path, problem)
		}
	}
	a := answer{Response: res, text: string(text)}
	if strings.Contains(res.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(text, &a.json); err != nil {
			s.t.Fatalf("%s %s: not JSON: %s", method, path, text)
		}
	}
	return a
}

func (s *site) expect(a answer, status int, code string) {
	s.t.Helper()
	if a.StatusCode != status || a.str("code") != code {
		s.t.Errorf("%s %s: %d %s, want %d %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.text, status, code)
	}
}

func (s *site) register() (name string, a answer) {
	s.t.Helper()
	name = "user-" + uuid.NewString()
	a = s.do("POST", "/api/v1/auth/register", map[string]string{"username": name, "password": goodPassword})
	s.expect(a, 201, "")
	return name, a
}

func bearerOf(a answer) string { return "Bearer " + a.str("access_token") }

func TestTokensAreAnsweredAsTheContractSays(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, a := s.register()
		var names []string
		for name := range a.json {
			names = append(names, name)
		}
		slices.Sort(names)
		want := []string{"access_token", "access_token_expires_at", "expires_in", "refresh_token",
			"refresh_token_expires_at", "session_id", "token_type"}
		if !slices.Equal(names, want) {
			t.Errorf("members %v, want %v", names, want)
		}
		if a.Header.Get("Cache-Control") != "no-store" || a.str("token_type") != "Bearer" ||
			a.json["expires_in"] != 3600.0 {
			t.Errorf("%v %s", a.Header, a.text)
		}
		for _, name := range []string{"access_token_expires_at", "refresh_token_expires_at"} {
			if at, err := time.Parse(time.RFC3339, a.str(name)); err != nil || at.Location() != time.UTC {
				t.Errorf("%s is %q", name, a.str(name))
			}
		}
		if !strings.HasPrefix(a.str("refresh_token"), "art_") {
			t.Errorf("refresh token %.6s", a.str("refresh_token"))
		}
	})
}

func TestTheWholeLifeOfASession(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, first := s.register()
		login := s.do("POST", "/api/v1/auth/login",
			map[string]string{"username": name, "password": goodPassword, "device_name": "Alice's phone"})
		s.expect(login, 200, "")
		me := s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(login))
		s.expect(me, 200, "")
		if me.str("username") != name || me.str("session_id") != login.str("session_id") ||
			me.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("me: %s", me.text)
		}

		refreshed := s.do("POST", "/api/v1/auth/refresh",
			map[string]string{"refresh_token": login.str("refresh_token")})
		s.expect(refreshed, 200, "")
		replayed := s.do("POST", "/api/v1/auth/refresh", map[string]string{"refresh_token": login.str("refresh_token")})
		s.expect(replayed, 200, "")
		if refreshed.Header.Get("Auth-Refresh-Replayed") != "" ||
			replayed.Header.Get("Auth-Refresh-Replayed") != "true" ||
			replayed.str("refresh_token") != refreshed.str("refresh_token") {
			t.Errorf("replay: %v", replayed.Header)
		}

		list := s.do("GET", "/api/v1/auth/sessions", nil, "Authorization", bearerOf(refreshed))
		s.expect(list, 200, "")
		sessions := list.json["sessions"].([]any)
		if len(sessions) != 2 {
			t.Fatalf("sessions: %s", list.text)
		}
		for _, one := range sessions {
			one := one.(map[string]any)
			current := one["id"] == login.str("session_id")
			if one["current"] != current || current && one["device_name"] != "Alice's phone" {
				t.Errorf("session %v", one)
			}
		}
		s.expect(s.do("DELETE", "/api/v1/auth/sessions/"+first.str("session_id"), nil, "Authorization",
			bearerOf(refreshed)), 204, "")
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(first)), 401, "session_revoked")
		s.expect(s.do("DELETE", "/api/v1/auth/sessions/"+first.str("session_id"), nil, "Authorization",
			bearerOf(refreshed)), 404, "session_not_found")
		s.expect(s.do("DELETE", "/api/v1/auth/sessions/not-an-id", nil, "Authorization", bearerOf(refreshed)), 404,
			"session_not_found")
		for _, query := range []string{"except=nobody", "expect=current", "except=", "except=current&except=current",
			"current"} {
			s.expect(s.do("DELETE", "/api/v1/auth/sessions?"+query, nil, "Authorization", bearerOf(refreshed)), 400,
				"validation_failed")
		}
		s.expect(s.do("DELETE", "/api/v1/auth/sessions?except=current", nil, "Authorization", bearerOf(refreshed)),
			204, "")
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(refreshed)), 200, "")

		changed := s.do("POST", "/api/v1/auth/password",
			map[string]string{"current_password": goodPassword,
				"new_password": "another good password"}, "Authorization", bearerOf(refreshed))
		s.expect(changed, 200, "")
		if changed.str("session_id") != login.str("session_id") {
			t.Error("the session did not go on")
		}
		s.expect(s.do("POST", "/api/v1/auth/password",
			map[string]string{"current_password": goodPassword,
				"new_password": "yet another good password"}, "Authorization", bearerOf(changed)), 403, "invalid_credentials")

		for range 2 {
			s.expect(s.do("POST", "/api/v1/auth/logout",
				map[string]string{"refresh_token": changed.str("refresh_token")}), 204, "")
			s.expect(s.do("POST", "/api/v1/auth/logout", nil, "Authorization", bearerOf(changed)), 204, "")
		}
		s.expect(s.do("POST", "/api/v1/auth/refresh",
			map[string]string{"refresh_token": changed.str("refresh_token")}), 401, "session_revoked")
		s.expect(s.do("POST", "/api/v1/auth/logout", nil), 401, "missing_token")
		s.expect(s.do("POST", "/api/v1/auth/logout", map[string]string{"refresh_token": "art_x"}), 401,
			"invalid_refresh_token")

		again := s.do("POST", "/api/v1/auth/login",
			map[string]string{"username": name, "password": "another good password"})
		s.expect(s.do("DELETE", "/api/v1/auth/me", map[string]string{"password": goodPassword}, "Authorization",
			bearerOf(again)), 403, "invalid_credentials")
		s.expect(s.do("DELETE", "/api/v1/auth/me", map[string]string{"password": "another good password"},
			"Authorization", bearerOf(again)), 204, "")
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(again)), 401, "session_revoked")
		s.expect(s.do("POST", "/api/v1/auth/login",
			map[string]string{"username": name, "password": "another good password"}), 401, "invalid_credentials")
	})
}

// TestEveryRouteIsClosedToWhomTheTableDoesNotName goes through the table of routes: a route for
// some callers is closed to all others.
func TestEveryRouteIsClosedToWhomTheTableDoesNotName(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, tokens := s.register()
		open := map[string]bool{}
		for _, r := range Routes(s.svc, Options{Issuer: issuer}) {
			path := strings.ReplaceAll(r.Path, "{id}", uuid.NewString())
			scheme := r.Do.Scheme()
			refused := func(a answer, code string) {
				t.Helper()
				if r.Gateway { // answers without a body
					code = ""
				}
				s.expect(a, 401, code)
			}
			switch {
			case scheme == nil:
				open[r.Method+" "+r.Path] = true
			case scheme.Name == "bearer":
				a := s.do(r.Method, path, nil)
				refused(a, "missing_token")
				if got := a.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, "Bearer") {
					t.Errorf("%s %s: WWW-Authenticate %q", r.Method, path, got)
				}
				a = s.do(r.Method, path, nil, "Authorization", "Bearer "+tokens.str("refresh_token"))
				refused(a, "invalid_token")
				if got := a.Header.Get("WWW-Authenticate"); !strings.Contains(got, `error="invalid_token"`) {
					t.Errorf("%s %s: WWW-Authenticate %q", r.Method, path, got)
				}
				refused(s.do(r.Method, path, nil, "Authorization", "Basic "+tokens.str("access_token")),
					"missing_token")
				refused(s.do(r.Method, path+"?access_token="+tokens.str("access_token"), nil), "missing_token")
			case scheme.Name == "basic":
				// Wrong credentials. A test below covers missing and misplaced ones.
				for _, credentials := range []string{"", "gateway:wrong", "nobody:" + clientSecret} {
					headers := []string{"Content-Type", "application/x-www-form-urlencoded"}
					if credentials != "" {
						headers = append(headers, "Authorization", "Basic "+
							base64.StdEncoding.EncodeToString([]byte(credentials)))
					}
					a := s.do(r.Method, path, "token=x", headers...)
					if a.StatusCode != 401 || a.str("error") != "invalid_client" ||
						!strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Basic") {
						t.Errorf("%s %s as %q: %d %s %s", r.Method, path, credentials, a.StatusCode, a.text,
							a.Header.Get("WWW-Authenticate"))
					}
				}
			default:
				t.Errorf("%s %s is for %s, which this test does not know", r.Method, path, scheme.Name)
			}
			if r.Gateway { // has every method
				continue
			}
			wrong := s.do("PATCH", path, nil)
			if wrong.StatusCode != 405 || !strings.Contains(wrong.Header.Get("Allow"), r.Method) {
				t.Errorf("PATCH %s: %d, Allow %q", path, wrong.StatusCode, wrong.Header.Get("Allow"))
			}
		}
		// An entry here opens a route to everybody.
		for _, name := range []string{
			"POST /api/v1/auth/register", "POST /api/v1/auth/login", "POST /api/v1/auth/refresh",
			"POST /api/v1/auth/logout",
			"GET /.well-known/jwks.json", "GET /.well-known/oauth-authorization-server",
			"GET /.well-known/schemas/{file}",
		} {
			if !open[name] {
				t.Errorf("%s is not open to everybody", name)
			}
			delete(open, name)
		}
		for name := range open {
			t.Errorf("%s is open to everybody", name)
		}
	})
}

func TestFaultsAreProblems(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, _ := s.register()
		for _, c := range []struct {
			body   string
			status int
			code   string
		}{
			{`{"username":"` + name + `","password":"` + goodPassword + `"}`, 409, "username_taken"},
			{`{"username":"ab","password":"short"}`, 400, "validation_failed"},
			{`{"username":"someone","password":"` + goodPassword + `","admin":true}`, 400, ""},
			{`{"Username":"someone","password":"` + goodPassword + `"}`, 400, ""},
			{`{"username":"someone","username":"other","password":"` + goodPassword + `"}`, 400, ""},
			{`{"username":"someone","password":"` + goodPassword + `"} {}`, 400, ""},
			{`[]`, 400, ""}, {``, 400, ""}, {`null`, 400, ""},
		} {
			a := s.do("POST", "/api/v1/auth/register", c.body)
			if a.StatusCode != c.status || c.code != "" && a.str("code") != c.code {
				t.Errorf("%s: %d %s", c.body, a.StatusCode, a.text)
			}
			if a.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: %s", c.body, a.Header.Get("Content-Type"))
			}
			for _, member := range []string{"type", "title", "detail", "instance", "code", "request_id"} {
				if a.str(member) == "" {
					t.Errorf("%s: no %s in %s", c.body, member, a.text)
				}
			}
			if a.json["status"] != float64(c.status) || a.str("request_id") != a.Header.Get("X-Request-Id") {
				t.Errorf("%s: %s", c.body, a.text)
			}
		}
		a := s.do("POST", "/api/v1/auth/register", `{"username":"ab","password":"short"}`)
		if fields, _ := a.json["errors"].([]any); len(fields) != 2 {
			t.Errorf("fields: %s", a.text)
		}
	})
}

// A missing member is the client's mistake, and the answer names it. An empty password is just a
// wrong password.
func TestAMissingMemberIsNamed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, a := s.register()
		for _, c := range []struct {
			method, path, body string
			fields             []string
		}{
			{"POST", "/register", `{}`, []string{"username", "password"}},
			{"POST", "/login", `{}`, []string{"username", "password"}},
			{"POST", "/login", `{"username":"` + name + `"}`, []string{"password"}},
			{"POST", "/refresh", `{}`, []string{"refresh_token"}},
			{"POST", "/password", `{"new_password":"another good password"}`, []string{"current_password"}},
			{"POST", "/password", `{"current_password":"` + goodPassword + `"}`, []string{"new_password"}},
			{"DELETE", "/me", `{}`, []string{"password"}},
		} {
			got := s.do(c.method, "/api/v1/auth"+c.path, c.body, "Authorization", bearerOf(a))
			s.expect(got, 400, "validation_failed")
			var fields []string
			list, _ := got.json["errors"].([]any)
			for _, one := range list {
				field, _ := one.(map[string]any)
				if fields = append(fields, fmt.Sprint(field["field"])); field["code"] != "required" {
					t.Errorf("%s %s: %v", c.path, c.body, field)
				}
			}
			if !slices.Equal(fields, c.fields) {
				t.Errorf("%s %s: %v, want %v", c.path, c.body, fields, c.fields)
			}
		}
		s.expect(s.do("POST", "/api/v1/auth/login", `{"username":"`+name+`","password":""}`), 401,
			"invalid_credentials")
		s.expect(s.do("POST", "/api/v1/auth/login", `{"username":"","password":""}`), 401, "invalid_credentials")
		s.expect(s.do("DELETE", "/api/v1/auth/me", `{"password":""}`, "Authorization", bearerOf(a)), 403,
			"invalid_credentials")
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(a)), 200, "")
	})
}

func TestWhoKnowsTheDeviceIsTold(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, a := s.register()
		mark := a.Header.Get("Auth-Device")
		if mark == "" {
			t.Fatal("no Auth-Device")
		}
		cookies := a.Cookies()
		if len(cookies) != 1 || cookies[0].Value != mark || !cookies[0].HttpOnly || !cookies[0].Secure ||
			cookies[0].SameSite != http.SameSiteStrictMode {
			t.Errorf("cookie %v", cookies)
		}
	})
}

func TestJWKSCanBeRevalidated(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		a := s.do("GET", "/.well-known/jwks.json", nil)
		etag := a.Header.Get("ETag")
		if a.StatusCode != 200 || etag == "" || a.Header.Get("Cache-Control") != "public, max-age=300" {
			t.Fatalf("%d %v", a.StatusCode, a.Header)
		}
		keys := a.json["keys"].([]any)
		if len(keys) != 1 {
			t.Fatalf("keys %s", a.text)
		}
		if _, private := keys[0].(map[string]any)["d"]; private {
			t.Error("the private key is published")
		}
		for _, header := range []string{etag, "W/" + etag, `"other", ` + etag, "*"} {
			if again := s.do("GET", "/.well-known/jwks.json", nil, "If-None-Match",
				header); again.StatusCode != 304 || again.text != "" {
				t.Errorf("If-None-Match %s: %d %s", header, again.StatusCode, again.text)
			}
		}
		if again := s.do("GET", "/.well-known/jwks.json", nil, "If-None-Match", `"other"`); again.StatusCode != 200 {
			t.Errorf("another tag: %d", again.StatusCode)
		}
	})
}

func TestMetadataNamesWhatWorks(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		a := s.do("GET", "/.well-known/oauth-authorization-server", nil)
		if a.str("issuer") != issuer {
			t.Errorf("%s", a.text)
		}
		for _, name := range []string{"jwks_uri", "introspection_endpoint", "revocation_endpoint"} {
			path := strings.TrimPrefix(a.str(name), issuer)
			if got := s.do("GET", path, nil); got.StatusCode == 404 {
				t.Errorf("%s %s is not there", name, path)
			}
		}
	})
}

func TestMetadataNamesTheEndpointsWhereTheyAre(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		s.mount(Options{Issuer: issuer, BaseURL: "http://localhost:21000"})
		a := s.do("GET", "/.well-known/oauth-authorization-server", nil)
		for name, want := range map[string]string{
			"issuer": issuer, "jwks_uri": "http://localhost:21000/.well-known/jwks.json",
			"introspection_endpoint": "http://localhost:21000/oauth2/introspect",
			"revocation_endpoint":    "http://localhost:21000/oauth2/revoke",
		} {
			if a.str(name) != want {
				t.Errorf("%s: %s, want %s", name, a.str(name), want)
			}
		}
	})
}

func TestIntrospectionAndRevocation(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, tokens := s.register()
		call := func(path, body string) answer {
			basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("gateway:"+clientSecret))
			return s.do("POST", path, body, "Content-Type", "application/x-www-form-urlencoded", "Authorization", basic)
		}
		for _, kind := range []string{"access_token", "refresh_token"} {
			a := call("/oauth2/introspect", "token="+tokens.str(kind))
			if a.json["active"] != true || a.str("username") != name || a.str("sid") != tokens.str("session_id") ||
				a.str("token_use") != kind || (a.str("token_type") == "Bearer") != (kind == "access_token") ||
				a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s", kind, a.text)
			}
		}
		for _, body := range []string{"", "token=", "token=a&token=b", "token=%zz"} {
			if a := call("/oauth2/introspect", body); a.StatusCode != 400 || a.str("error") != "invalid_request" {
				t.Errorf("%q: %d %s", body, a.StatusCode, a.text)
			}
		}
		if a := call("/oauth2/introspect", "token=nonsense"); a.text != `{"active":false}` {
			t.Errorf("nonsense: %s", a.text)
		}
		for range 2 {
			if a := call("/oauth2/revoke", "token="+tokens.str("refresh_token")+
				"&token_type_hint=refresh_token"); a.StatusCode != 200 || a.text != "" {
				t.Errorf("revoke: %d %s", a.StatusCode, a.text)
			}
		}
		if a := call("/oauth2/revoke", "token=nonsense"); a.StatusCode != 200 {
			t.Errorf("revoke nonsense: %d", a.StatusCode)
		}
		for _, kind := range []string{"access_token", "refresh_token"} {
			if a := call("/oauth2/introspect", "token="+tokens.str(kind)); a.text != `{"active":false}` {
				t.Errorf("%s of an ended session: %s", kind, a.text)
			}
		}
	})
}

// Clients send their credentials in the two ways of RFC 6749 §2.3.1, and the first of them
// with and without the form-encoding that it asks for.
func TestClientsAuthenticateInEitherWay(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, tokens := s.register()
		basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
		const uri, odd = "https://api.example:8443/x", "100%+"
		form := func(pairs ...string) string {
			values := url.Values{}
			for i := 0; i < len(pairs); i += 2 {
				values.Set(pairs[i], pairs[i+1])
			}
			return values.Encode()
		}
		for name, test := range map[string]struct {
			authorization, body string
			status              int
			words               string // of the refusal
		}{
			"basic":                 {basic("gateway:" + clientSecret), "", 200, ""},
			"basic, encoded":        {basic("gateway:" + url.QueryEscape(clientSecret)), "", 200, ""},
			"basic in another case": {"bAsIc  " + basic("gateway:" + clientSecret)[6:], "", 200, ""},
			"a URI, raw":            {basic(uri + ":" + clientSecret), "", 200, ""},
			"a URI, encoded":        {basic(url.QueryEscape(uri) + ":" + url.QueryEscape(clientSecret)), "", 200, ""},
			"a URI, half encoded":   {basic(url.QueryEscape(uri) + ":" + clientSecret), "", 200, ""},
			"an id like an escape":  {basic(odd + ":" + clientSecret), "", 200, ""},
			"the same, encoded":     {basic(url.QueryEscape(odd) + ":" + clientSecret), "", 200, ""},
			"in the form":           {"", form("client_id", "gateway", "client_secret", clientSecret), 200, ""},
			"a URI in the form":     {"", form("client_id", uri, "client_secret", clientSecret), 200, ""},
			"basic, and the id":     {basic("gateway:" + clientSecret), form("client_id", "gateway"), 200, ""},
			"a URI, and the id": {basic(url.QueryEscape(uri) + ":" + clientSecret), form("client_id", uri), 200,
				""},
			"both": {basic("gateway:" + clientSecret),
				form("client_id", "gateway", "client_secret", clientSecret), 400, "authenticates twice"},
			"both, bearer": {"Bearer " + tokens.str("access_token"),
				form("client_id", "gateway", "client_secret", clientSecret), 400, "authenticates twice"},
			"basic, and another id": {basic("gateway:" + clientSecret), form("client_id", uri), 400,
				"another client"},
			"nothing":   {"", "", 401, "authentication is missing"},
			"bearer":    {"Bearer " + tokens.str("access_token"), "", 401, "no other scheme than Basic"},
			"no base64": {"Basic gateway:" + clientSecret, "", 401, "base64 of id:secret"},
			"no colon":  {basic("gateway"), "", 401, "base64 of id:secret"},
			"an assertion": {"",
				form("client_id", "gateway", "client_assertion_type", "urn:x", "client_assertion",
					"a.b.c"), 401, "assertions are not supported"},
			"no secret":    {"", form("client_id", "gateway"), 401, "client_secret is missing"},
			"no id":        {"", form("client_secret", clientSecret), 401, "client_id is missing"},
			"wrong secret": {basic("gateway:wrong"), "", 401, "not known, or its secret is wrong"},
			"wrong secret in form": {"", form("client_id", "gateway", "client_secret", "wrong"), 401,
				"not known, or its secret is wrong"},
			"unknown client": {basic("nobody:" + clientSecret), "", 401, "not known, or its secret is wrong"},
			"empty secret":   {basic("gateway:"), "", 401, "not known, or its secret is wrong"},
			"the hash for the secret": {basic("gateway:" +
				hex.EncodeToString(sha256.New().Sum([]byte(clientSecret)))), "", 401, "not known, or its secret is wrong"},
			"part of an id": {basic("https:" + clientSecret), "", 401, "not known, or its secret is wrong"},
			"colons alone":  {basic(strings.Repeat(":", 5000)), "", 401, "not known, or its secret is wrong"},
		} {
			for _, path := range []string{"/oauth2/introspect", "/oauth2/revoke"} {
				// An unknown token, so that the session stays.
				headers := []string{"Content-Type", "application/x-www-form-urlencoded"}
				if test.authorization != "" {
					headers = append(headers, "Authorization", test.authorization)
				}
				a := s.do("POST", path, strings.Trim(test.body+"&token=nonsense", "&"), headers...)
				switch {
				case a.StatusCode != test.status:
					t.Errorf("%s at %s: %d %s", name, path, a.StatusCode, a.text)
				case test.status != 200 && !strings.Contains(a.str("error_description"), test.words):
					t.Errorf("%s at %s: %s, want %q", name, path, a.text, test.words)
				case test.status == 401 &&
					(a.str("error") != "invalid_client" ||
						!strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Basic ")),
					test.status == 400 && a.str("error") != "invalid_request":
					t.Errorf("%s at %s: %s %v", name, path, a.text, a.Header)
				}
			}
		}
		a := s.do("POST", "/oauth2/introspect?token=x", "", "Authorization", basic("gateway:"+clientSecret))
		if a.StatusCode != 400 || !strings.Contains(a.str("error_description"), "sent in the body") {
			t.Errorf("a token in the query: %d %s", a.StatusCode, a.text)
		}
	})
}

// The answer to a malformed token says what the client seems to have sent.
func TestAnUnfitAuthorizationIsNamed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, tokens := s.register()
		access, refresh := tokens.str("access_token"), tokens.str("refresh_token")
		for header, want := range map[string][2]string{
			"":                        {"missing_token", "An access token is needed"},
			access:                    {"missing_token", "The word Bearer is missing"},
			refresh:                   {"missing_token", "The word Bearer is missing"},
			"Bearer":                  {"missing_token", "no token follows"},
			"Bearer ":                 {"missing_token", "no token follows"},
			"Bearer: " + access:       {"missing_token", "a space and nothing else"},
			"Basic dTpw":              {"missing_token", "and not HTTP Basic"},
			"Token " + access:         {"missing_token", "Authorization must be: Bearer TOKEN"},
			"nonsense":                {"missing_token", "Authorization must be: Bearer TOKEN"},
			"Bearer Bearer " + access: {"invalid_token", "twice"},
			`Bearer "` + access + `"`: {"invalid_token", "quotes"},
			"Bearer <" + access + ">": {"invalid_token", "brackets"},
			"Bearer " + access + " x": {"invalid_token", "blanks"},
			"Bearer " + refresh:       {"invalid_token", "This is a refresh token"},
			"Bearer " + access + "x":  {"invalid_token", "not valid"},
		} {
			a := s.do("GET", "/api/v1/auth/me", nil, "Authorization", header)
			s.expect(a, 401, want[0])
			if !strings.Contains(a.str("detail"), want[1]) || strings.Contains(a.text, access) ||
				strings.Contains(a.text, refresh) {
				t.Errorf("%.20q: %s, want %q", header, a.text, want[1])
			}
		}
		for _, header := range []string{"Bearer " + access, "bearer  " + access, "BEARER\t" + access, " Bearer " +
			access + " "} {
			if a := s.do("GET", "/api/v1/auth/me", nil, "Authorization", header); a.StatusCode != 200 {
				t.Errorf("%.10q: %d %s", header, a.StatusCode, a.text)
			}
		}
	})
}

// Some proxies and clients drop the body of a DELETE. The answer then points to the POST.
func TestAnAccountIsDeletedByPostAsWell(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, tokens := s.register()
		lost := s.do("DELETE", "/api/v1/auth/me", nil, "Authorization", bearerOf(tokens))
		s.expect(lost, 400, "malformed_request")
		if !strings.Contains(lost.str("detail"), "POST /api/v1/auth/me/delete") {
			t.Errorf("%s", lost.text)
		}
		s.expect(s.do("POST", "/api/v1/auth/me/delete", nil, "Authorization", bearerOf(tokens)), 400,
			"malformed_request")
		s.expect(s.do("POST", "/api/v1/auth/me/delete", map[string]string{"password": "wrong"}, "Authorization",
			bearerOf(tokens)), 403, "invalid_credentials")
		s.expect(s.do("POST", "/api/v1/auth/me/delete", map[string]string{"password": goodPassword}), 401,
			"missing_token")
		s.expect(s.do("POST", "/api/v1/auth/me/delete", map[string]string{"password": goodPassword}, "Authorization",
			bearerOf(tokens)), 204, "")
		s.expect(s.do("POST", "/api/v1/auth/login", map[string]string{"username": name, "password": goodPassword}),
			401, "invalid_credentials")
	})
}

// With a path in the issuer, a proxy has mounted the service at that path.
func TestTheIssuersPathIsWhereBrowsersAndClientsLook(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		for suffix, mount := range map[string]string{"": "", "/": "", "/auth": "/auth", "/auth/": "/auth",
			"/realms/one": "/realms/one"} {
			s.mount(Options{Issuer: issuer + suffix})
			_, a := s.register()
			if cookies := a.Cookies(); len(cookies) != 1 || cookies[0].Path != mount+"/api/v1/auth/" ||
				cookies[0].MaxAge != 7200 {
				t.Errorf("issuer %s: cookies %v", suffix, cookies)
			}
			for _, place := range []string{"/.well-known/oauth-authorization-server",
				"/.well-known/oauth-authorization-server" + mount} {
				if a := s.do("GET", place, nil); a.str("issuer") != issuer+suffix ||
					a.str("jwks_uri") != issuer+mount+"/.well-known/jwks.json" {
					t.Errorf("%s of issuer %s: %d %s", place, suffix, a.StatusCode, a.text)
				}
			}
			if a := s.do("GET", "/.well-known/oauth-authorization-server/elsewhere", nil); a.StatusCode != 404 {
				t.Errorf("another issuer's metadata: %d", a.StatusCode)
			}
		}
	})
}

// TestWhatRequestsLeftBehindIsTheirOwn fails if a string that is a view of Fiber's buffers is kept,
// because later requests overwrite it.
func TestWhatRequestsLeftBehindIsTheirOwn(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		const n = 24
		var all sync.WaitGroup
		tokens := make([]answer, n)
		for i := range n {
			all.Go(func() {
				tokens[i] = s.do("POST", "/api/v1/auth/register", map[string]string{
					"username": fmt.Sprintf("owner-%02d-%s", i,
						uuid.NewString()), "password": goodPassword, "device_name": fmt.Sprintf("device %02d", i),
				}, "User-Agent", fmt.Sprintf("agent-%02d/1.0", i))
			})
		}
		all.Wait()
		for i, a := range tokens {
			s.expect(a, 201, "")
			list := s.do("GET", "/api/v1/auth/sessions", nil, "Authorization", bearerOf(a))
			one := list.json["sessions"].([]any)[0].(map[string]any)
			if one["device_name"] != fmt.Sprintf("device %02d", i) ||
				one["user_agent"] != fmt.Sprintf("agent-%02d/1.0", i) {
				t.Errorf("session %d has the description %v", i, one)
			}
			if me := s.do("GET", "/api/v1/auth/me", nil, "Authorization",
				bearerOf(a)); !strings.HasPrefix(me.str("username"), fmt.Sprintf("owner-%02d-", i)) {
				t.Errorf("account %d has the name %s", i, me.str("username"))
			}
		}
	})
}
