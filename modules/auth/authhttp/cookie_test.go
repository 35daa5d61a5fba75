package authhttp

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// page is a page in a browser as the service sees it: the headers that browsers add, and the one
// cookie.
type page struct {
	*site
	origin string
	cookie *http.Cookie // as the last answer set it; nil when it was deleted
}

// post sends an object as JSON with the cookie, and applies what the answer does to the cookie.
func (p *page) post(path string, body any, headers ...string) answer {
	p.t.Helper()
	from := []string{"Origin", p.origin}
	if p.cookie != nil {
		from = append(from, "Cookie", "theme=dark; "+p.cookie.Name+"="+p.cookie.Value)
	}
	a := p.do("POST", "/api/v1/auth"+path, body, append(from, headers...)...)
	if c, set := tokenCookie(a); set {
		p.cookie = c
	}
	if strings.Contains(a.text, "art_") {
		p.t.Errorf("%s: the body has a refresh token: %s", path, a.text)
	}
	return a
}

// tokenCookie is what an answer does to the cookie: set it, delete it (nil), or leave it.
func tokenCookie(a answer) (c *http.Cookie, set bool) {
	for _, c := range a.Cookies() {
		if c.Name == deviceCookie {
			continue
		}
		if c.MaxAge < 0 {
			return nil, true
		}
		return c, true
	}
	return nil, false
}

// signedInPage is a page of an origin whose user has just registered.
func (s *site) signedInPage(origin string) (p *page, name string, a answer) {
	s.t.Helper()
	p, name = &page{site: s, origin: origin}, "user-"+uuid.NewString()
	a = p.post("/register", map[string]string{"username": name, "password": goodPassword, "transport": "cookie"})
	s.expect(a, 201, "")
	if p.cookie == nil {
		s.t.Fatalf("no cookie: %v", a.Header)
	}
	return p, name, a
}

var empty = map[string]string{}

func TestTheRefreshTokenIsInTheCookieAlone(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, name, first := s.signedInPage(listed)
		check := func(what string, a answer) {
			t.Helper()
			c := p.cookie
			if c == nil || c.Name != "__Host-authctl" || !c.HttpOnly || !c.Secure ||
				c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" ||
				!strings.HasPrefix(c.Value, "art_") {
				t.Fatalf("%s: cookie %v", what, c)
			}
			if _, there := a.json["refresh_token"]; there || a.str("access_token") == "" || a.str("session_id") == "" {
				t.Errorf("%s: %s", what, a.text)
			}
			ends, err := time.Parse(time.RFC3339, a.str("refresh_token_expires_at"))
			if life := time.Duration(c.MaxAge) * time.Second; err != nil || life > 120*time.Hour+time.Second ||
				(time.Until(ends)-life).Abs() > time.Hour {
				t.Errorf("%s: the cookie lives %v, the token until %v, %v", what, life, ends, err)
			}
			if a.Header.Get("Access-Control-Allow-Origin") != listed ||
				a.Header.Get("Access-Control-Allow-Credentials") != "true" {
				t.Errorf("%s: the page cannot read the answer: %v", what, a.Header)
			}
		}
		check("register", first)
		login := p.post("/login",
			map[string]string{"username": name, "password": goodPassword,
				"transport": "cookie"}, "Auth-Device", first.Header.Get("Auth-Device"))
		s.expect(login, 200, "")
		check("login", login)
		if login.Header.Get("Auth-Device") == "" || len(login.Cookies()) != 2 {
			t.Errorf("the device is not marked: %v", login.Header)
		}
		before := p.cookie.Value
		refreshed := p.post("/refresh", empty)
		s.expect(refreshed, 200, "")
		check("refresh", refreshed)
		if p.cookie.Value == before || refreshed.str("session_id") != login.str("session_id") {
			t.Error("the token was not replaced")
		}
		changed := p.post("/password",
			map[string]string{"current_password": goodPassword,
				"new_password": "another good password"}, "Authorization", bearerOf(refreshed))
		s.expect(changed, 200, "")
		check("password", changed)
		again := p.post("/refresh", empty)
		s.expect(again, 200, "")
		check("refresh after the change", again)
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(again)), 200, "")
		ended := p.cookie.Value
		s.expect(p.post("/logout", empty), 204, "")
		if p.cookie != nil {
			t.Errorf("signed out, the cookie is %v", p.cookie)
		}
		s.expect(s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(again)), 401, "session_revoked")
		s.expect(p.post("/refresh", empty), 401, "invalid_refresh_token") // as page loads do when signed out
		s.expect(p.post("/logout", empty), 401, "missing_token")
		// The answer was lost, so the browser still has the cookie.
		p.cookie = &http.Cookie{Name: "__Host-authctl", Value: ended}
		if s.expect(p.post("/logout", empty), 204, ""); p.cookie != nil {
			t.Errorf("signed out again, the cookie is %v", p.cookie)
		}
	})
}

// Every way in which a page of another origin can make a browser send a request, and some that
// browsers never send. The cookie comes with each request.
func TestWhichPagesMayUseTheCookie(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		const admitted, foreign = "", "origin_not_allowed"
		for _, test := range []struct {
			origin, site string // - means that the header is absent
			code         string
		}{
			{issuer, "-", admitted}, {issuer, "same-origin", admitted}, {listed, "same-site", admitted}, {listed,
				"cross-site", admitted},
			{nativeApp, "-", admitted}, {"-", "same-origin", admitted},

			{"-", "-", foreign}, {"-", "none", foreign}, {"-", "same-site", foreign}, {"-", "cross-site",
				foreign}, {"-", "", foreign},
			{"-", "Same-Origin", foreign}, {"-", "same-origin, same-origin", foreign}, {"-", "'same-origin'", foreign},

			// The Origin header decides, whatever Sec-Fetch-Site says.
			{"null", "-", foreign}, {"null", "same-origin", foreign}, {"https://evil.example", "same-origin",
				foreign}, {"https://evil.example", "-", foreign},
			{"https://sub.auth.test", "-", foreign}, {"https://test", "-", foreign}, {"https://sub.app.test",
				"same-site", foreign},
			{"https://auth.test:8443", "-", foreign}, {"https://auth.test:443", "-", foreign}, {"http://auth.test",
				"-", foreign},
			{"https://auth.test.", "-", foreign}, {"https://AUTH.test", "-", foreign}, {"HTTPS://auth.test", "-",
				foreign}, {"https://auth.test/", "-", foreign},
			{"https://auth.test@evil.example", "-", foreign}, {"https://evil.example@auth.test", "-",
				foreign}, {"https://user@auth.test", "-", foreign},
			{"https://auth.test.evil.example", "-", foreign}, {"https://evil.example/https://auth.test", "-",
				foreign}, {"auth.test", "-", foreign},
			{"//auth.test", "-", foreign}, {"https://auth.test https://evil.example", "-",
				foreign}, {"https://auth.test, https://evil.example", "-", foreign},
			{"https://auth.test#", "-", foreign}, {"https://auth.test\\evil.example", "-", foreign}, {"*", "-",
				foreign}, {"https://", "-", foreign},
			{"capacitor://localhost:1", "-", foreign}, {"http://localhost", "-", foreign}, {"file://", "-", foreign},
		} {
			p, name, _ := s.signedInPage(issuer)
			var headers []string
			if test.origin != "-" {
				headers = append(headers, "Origin", test.origin)
			}
			if test.site != "-" {
				headers = append(headers, "Sec-Fetch-Site", test.site)
			}
			what := fmt.Sprint(headers)
			send := func(path string, body any, more ...string) answer {
				return s.do("POST", "/api/v1/auth"+path, body, slices.Concat(headers, more)...)
			}
			withCookie := []string{"Cookie", "__Host-authctl=" + p.cookie.Value}

			// Nobody would notice a sign-in to the attacker's account. Programs send neither
			// header.
			login := send("/login",
				map[string]string{"username": name, "password": goodPassword, "transport": "cookie"})
			if refused := test.code != "" && len(headers) > 0; refused != (login.str("code") == foreign) ||
				!refused && login.StatusCode != 200 {
				t.Errorf("login, %s: %d %s", what, login.StatusCode, login.text)
			}
			// Pages that cannot send JSON without a preflight are refused for the content type
			// alone.
			for _, media := range []string{"text/plain", "application/x-www-form-urlencoded",
				"multipart/form-data; boundary=x", "text/plain; application/json"} {
				for _, path := range []string{"/refresh", "/logout"} {
					if a := send(path, "{}", append(withCookie, "Content-Type", media)...); a.StatusCode != 415 ||
						a.Header.Get("Set-Cookie") != "" {
						t.Errorf("%s as %s, %s: %d %s", path, media, what, a.StatusCode, a.text)
					}
				}
			}
			if a := send("/logout", nil, withCookie...); a.StatusCode != 401 { // no body, no type
				t.Errorf("an empty logout, %s: %d %s", what, a.StatusCode, a.text)
			}
			for _, path := range []string{"/refresh", "/logout"} {
				a := send(path, "{}", withCookie...)
				if test.code != "" &&
					(a.StatusCode != 403 || a.str("code") != foreign || a.Header.Get("Set-Cookie") != "") ||
					test.code == "" && a.StatusCode/100 != 2 {
					t.Errorf("%s, %s: %d %s, want %q", path, what, a.StatusCode, a.text, test.code)
				}
				if test.code != "" && strings.Contains(a.text, "evil") {
					t.Errorf("%s, %s: the answer repeats what was sent: %s", path, what, a.text)
				}
			}
			// Refused requests have changed nothing.
			if test.code != "" {
				s.expect(p.post("/refresh", empty), 200, "")
			}
		}
		two := http.Header{"Origin": {issuer, "https://evil.example"}, "Cookie": {"__Host-authctl=x"},
			"Content-Type": {"application/json"}}
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.base+"/api/v1/auth/refresh",
			strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = two
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != 403 {
			t.Errorf("two origins: %d", res.StatusCode)
		}
	})
}

// Tabs share the cookie, which keeps the token of the answer that comes last.
func TestTwoTabsSignNobodyOut(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, _, _ := s.signedInPage(issuer)
		for range 3 {
			tabs, answers := sync.WaitGroup{}, make([]answer, 8)
			for i := range answers {
				tab := &page{site: s, origin: issuer, cookie: p.cookie}
				tabs.Go(func() { answers[i] = tab.post("/refresh", empty) })
			}
			tabs.Wait()
			for _, a := range answers {
				s.expect(a, 200, "")
				c, _ := tokenCookie(a)
				// Each token is good, whether it is used now or after the others.
				tab := &page{site: s, origin: issuer, cookie: c}
				s.expect(tab.post("/refresh", empty), 200, "")
				p.cookie = tab.cookie
			}
		}
		// One tab refreshes twice. The answer to another tab, which had sent the first token, comes
		// last. The token that stays in the cookie is valid.
		p, _, _ = s.signedInPage(issuer)
		slow := &page{site: s, origin: issuer, cookie: p.cookie}
		s.expect(p.post("/refresh", empty), 200, "")
		late := slow.post("/refresh", empty)
		s.expect(late, 200, "")
		s.expect(p.post("/refresh", empty), 200, "")
		if late.Header.Get("Auth-Refresh-Replayed") != "true" || slow.cookie.Value != p.cookie.Value {
			t.Error("the answer that came last has a replaced token")
		}
	})
}

// A refusal deletes a cookie that can never work again, so that pages stop sending it. It leaves
// one that may still be good.
func TestARefusalTakesAWorthlessCookieBack(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, _, a := s.signedInPage(issuer)
		good := p.cookie
		s.expect(s.do("DELETE", "/api/v1/auth/sessions", nil, "Authorization", bearerOf(a)), 204, "")
		if s.expect(p.post("/refresh", empty), 401, "session_revoked"); p.cookie != nil {
			t.Errorf("after the end: %v", p.cookie)
		}
		for _, value := range []string{"art_x", "", `"` + good.Value + `"`, good.Value + "x", "x y"} {
			p.cookie = &http.Cookie{Name: good.Name, Value: value}
			if s.expect(p.post("/refresh", empty), 401, "invalid_refresh_token"); p.cookie != nil {
				t.Errorf("%.10q: %v", value, p.cookie)
			}
			p.cookie = &http.Cookie{Name: good.Name, Value: value}
			if s.expect(p.post("/logout", empty), 401, "invalid_refresh_token"); p.cookie != nil {
				t.Errorf("logout with %.10q: %v", value, p.cookie)
			}
		}
		p, _, _ = s.signedInPage(issuer)
		if err := s.db.Close(); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/refresh", "/logout"} {
			if a := p.post(path, empty); a.StatusCode < 500 || p.cookie == nil {
				t.Errorf("%s while the database is away: %d %s, cookie %v", path, a.StatusCode, a.text, p.cookie)
			}
		}
	})
}

func TestAReusedCookieIsTakenBack(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, _, _ := s.signedInPage(issuer)
		first := p.cookie
		s.expect(p.post("/refresh", empty), 200, "")
		// As if the grace window had passed.
		if _, err := s.db.Write(context.Background(), "UPDATE session SET replay_until_ms = 0"); err != nil {
			t.Fatal(err)
		}
		p.cookie = first
		if s.expect(p.post("/refresh", empty), 401, "refresh_token_reused"); p.cookie != nil {
			t.Errorf("%v", p.cookie)
		}
		p, _, _ = s.signedInPage(issuer)
		if _, err := s.db.Write(context.Background(), "UPDATE session SET idle_expires_ms = 0"); err != nil {
			t.Fatal(err)
		}
		if s.expect(p.post("/refresh", empty), 401, "session_expired"); p.cookie != nil {
			t.Errorf("%v", p.cookie)
		}
	})
}

// The cookie counts only at the routes that ask for it.
func TestACookieIsNoAccessToken(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, _, mine := s.signedInPage(issuer)
		cookie := []string{"Origin", issuer, "Cookie", p.cookie.Name + "=" + p.cookie.Value}
		for _, r := range Routes(s.svc, Options{Issuer: issuer}) {
			if scheme := r.Do.Scheme(); scheme != nil && scheme.Name == "bearer" {
				a := s.do(r.Method, strings.ReplaceAll(r.Path, "{id}", mine.str("session_id")), nil, cookie...)
				if a.StatusCode != 401 || a.json != nil && a.str("code") != "missing_token" { // gateways get no body
					t.Errorf("%s %s: %d %s", r.Method, r.Path, a.StatusCode, a.text)
				}
			}
		}
		// A Bearer token alone decides, whatever else a request has.
		other, _, others := s.signedInPage(issuer)
		for _, value := range []string{"garbage", other.cookie.Value, other.cookie.Value + "; __Host-authctl=" +
			p.cookie.Value} {
			a := s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(mine), "Cookie", "__Host-authctl="+value)
			if s.expect(a, 200, ""); a.str("session_id") != mine.str("session_id") {
				t.Errorf("%.10q: %s", value, a.text)
			}
		}
		// The cookie of another session stays, and the tokens of this one are in the body.
		changed := s.do("POST", "/api/v1/auth/password",
			map[string]string{"current_password": goodPassword, "new_password": "another good password"},
			"Authorization", bearerOf(mine), "Cookie", "__Host-authctl="+other.cookie.Value)
		s.expect(changed, 200, "")
		if _, set := tokenCookie(changed); set || !strings.HasPrefix(changed.str("refresh_token"), "art_") {
			t.Errorf("%v %s", changed.Header, changed.text)
		}
		out := s.do("POST", "/api/v1/auth/logout", empty, "Authorization", bearerOf(changed), "Cookie",
			"__Host-authctl="+other.cookie.Value)
		s.expect(out, 204, "")
		if _, set := tokenCookie(out); set {
			t.Errorf("%v", out.Header)
		}
		s.expect(other.post("/refresh", empty), 200, "")
		// Its own cookie is deleted.
		if s.expect(other.post("/logout", empty, "Authorization", bearerOf(others)), 204, ""); other.cookie != nil {
			t.Errorf("%v", other.cookie)
		}
	})
}

func TestOfTwoRefreshTokensNeitherIsTaken(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		p, _, _ := s.signedInPage(issuer)
		_, tokens := s.register()
		cookie := "__Host-authctl=" + p.cookie.Value
		for what, a := range map[string]func(path string) answer{
			"body and cookie": func(path string) answer {
				return s.do("POST", path, map[string]string{"refresh_token": tokens.str("refresh_token")}, "Origin",
					issuer, "Cookie", cookie)
			},
			"the same in both": func(path string) answer {
				return s.do("POST", path, map[string]string{"refresh_token": p.cookie.Value}, "Origin", issuer,
					"Cookie", cookie)
			},
			"a program with both": func(path string) answer {
				return s.do("POST", path, map[string]string{"refresh_token": tokens.str("refresh_token")}, "Cookie",
					cookie)
			},
			"two cookies": func(path string) answer {
				return s.do("POST", path, "{}", "Origin", issuer, "Cookie", "__Host-authctl=art_x; "+cookie)
			},
			"one cookie twice": func(path string) answer {
				return s.do("POST", path, "{}", "Origin", issuer, "Cookie", cookie+";"+cookie)
			},
		} {
			for _, path := range []string{"/api/v1/auth/refresh", "/api/v1/auth/logout"} {
				refused := a(path)
				if s.expect(refused, 400, "two_refresh_tokens"); refused.Header.Get("Set-Cookie") != "" ||
					strings.Contains(refused.text, "art_") {
					t.Errorf("%s, %s: %v %s", what, path, refused.Header, refused.text)
				}
			}
		}
		s.expect(p.post("/refresh", empty), 200, "")
		s.expect(s.do("POST", "/api/v1/auth/refresh", map[string]string{"refresh_token": tokens.str("refresh_token")},
			"Origin", "https://evil.example"), 200, "")
		// Similar names are other names.
		for _, name := range []string{"__host-authctl", "__Host-Authctl", "authctl", "__Secure-authctl",
			"x__Host-authctl", "__Host-authctl ", "\u00a0__Host-authctl"} {
			a := s.do("POST", "/api/v1/auth/refresh", "{}", "Origin", issuer, "Cookie", name+"="+p.cookie.Value)
			s.expect(a, 401, "invalid_refresh_token")
			s.expect(s.do("POST", "/api/v1/auth/refresh", "{}", "Origin", issuer, "Cookie", name+
				"=art_x; __Host-authctl="+p.cookie.Value), 200, "")
		}
	})
}

// Over plain http the cookie exists in development mode only, under another name.
func TestTheCookieOverPlainHTTP(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		for mount, path := range map[string]string{"": "/", "/realms/one/": "/realms/one"} {
			s.mount(Options{Issuer: "http://localhost:8080" + mount, BaseURL: "http://localhost:21000" + mount,
				PlainCookies: true})
			p, _, _ := s.signedInPage("http://localhost:8080")
			if c := p.cookie; c.Name != "authctl" || c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode ||
				c.Path != path {
				t.Errorf("mounted at %q: %v", mount, c)
			}
			p.origin = "http://localhost:21000" // the real path
			s.expect(p.post("/refresh", empty), 200, "")
			// A cookie that a server with https may have left belongs to that server.
			s.expect(p.post("/refresh", empty, "Cookie", "__Host-authctl=art_x; authctl="+p.cookie.Value), 200, "")
			if s.expect(p.post("/logout", empty), 204, ""); p.cookie != nil {
				t.Errorf("mounted at %q: %v", mount, p.cookie)
			}
			// Over https the __Host- prefix requires the path /.
			s.mount(Options{Issuer: issuer + mount, SecureCookies: true, PlainCookies: true})
			if p, _, _ := s.signedInPage(issuer); p.cookie.Name != "__Host-authctl" || p.cookie.Path != "/" ||
				!p.cookie.Secure {
				t.Errorf("mounted at %q: %v", mount, p.cookie)
			}
		}
		s.mount(Options{Issuer: "http://auth.test"})
		for _, path := range []string{"register", "login"} {
			a := s.do("POST", "/api/v1/auth/"+path,
				map[string]string{"username": "someone", "password": goodPassword, "transport": "cookie"})
			s.expect(a, 400, "validation_failed")
			if field, _ := a.json["errors"].([]any)[0].(map[string]any); field["field"] != "transport" ||
				field["code"] != "needs_https" {
				t.Errorf("%s: %s", path, a.text)
			}
		}
		s.expect(s.do("POST", "/api/v1/auth/refresh", "{}", "Origin", "http://auth.test", "Cookie",
			"authctl=x; __Host-authctl=x; =x"), 401, "invalid_refresh_token")
		s.expect(s.do("POST", "/api/v1/auth/logout", "{}", "Origin", "http://auth.test", "Cookie",
			"authctl=x; __Host-authctl=x; =x"), 401, "missing_token")
	})
}

func TestTheTransportIsOneThatThereIs(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		name, _ := s.register()
		for _, transport := range []string{"", "Cookie", "cookies", "header", " cookie", "body,cookie"} {
			a := s.do("POST", "/api/v1/auth/login",
				map[string]string{"username": name, "password": goodPassword, "transport": transport})
			s.expect(a, 400, "validation_failed")
			if field, _ := a.json["errors"].([]any)[0].(map[string]any); field["field"] != "transport" ||
				field["code"] != "invalid_value" {
				t.Errorf("%q: %s", transport, a.text)
			}
		}
		a := s.do("POST", "/api/v1/auth/login",
			map[string]string{"username": name, "password": goodPassword,
				"transport": "body"}, "Origin", "https://evil.example")
		if _, set := tokenCookie(a); a.StatusCode != 200 || set || a.str("refresh_token") == "" {
			t.Errorf("%d %s %v", a.StatusCode, a.text, a.Header)
		}
	})
}
