package authhttp

import (
	"net/url"
	"strings"
	"testing"
)

func TestAGatewayIsToldWhoAsks(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		const name = "A.lice+x@example.com"
		tokens := s.do("POST", "/api/v1/auth/register", map[string]string{"username": name, "password": goodPassword})
		s.expect(tokens, 201, "")
		me := s.do("GET", "/api/v1/auth/me", nil, "Authorization", bearerOf(tokens))
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND"} {
			a := s.do(method, "/oauth2/check", "<xml/>", "Authorization", bearerOf(tokens), "Content-Type",
				"application/xml")
			want := [3]string{me.str("id"), tokens.str("session_id"), "A.lice%2Bx%40example.com"}
			got := [3]string{a.Header.Get("Auth-User"), a.Header.Get("Auth-Session"), a.Header.Get("Auth-Username")}
			if a.StatusCode != 200 || a.text != "" || got != want {
				t.Errorf("%s: %d %q %q, want %q", method, a.StatusCode, a.text, got, want)
			}
			if a := s.do(method, "/oauth2/check", nil); a.StatusCode != 401 || a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s without a token: %d %v", method, a.StatusCode, a.Header)
			}
		}
		s.expect(s.do("DELETE", "/api/v1/auth/sessions", nil, "Authorization", bearerOf(tokens)), 204, "")
		if a := s.do("GET", "/oauth2/check", nil, "Authorization", bearerOf(tokens)); a.StatusCode != 401 ||
			a.Header.Values("Auth-User") != nil {
			t.Errorf("after the session has ended: %d %v", a.StatusCode, a.Header)
		}
	})
}

func TestNamesInHeadersAreReadAlikeByEveryDecoder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"alice", "a+b c", "\u00e4\u0438\U0001f600", "100%", "a/b?c#d", "-._~"} {
		text := percentEncode(name)
		asPath, err := url.PathUnescape(text)
		asForm, err2 := url.QueryUnescape(text)
		if err != nil || err2 != nil || asPath != name || asForm != name {
			t.Errorf("%q is sent as %s, and decoded as %q (%v) and %q (%v)", name, text, asPath, err, asForm, err2)
		}
		for _, b := range []byte(text) {
			if b <= ' ' || b > '~' {
				t.Errorf("%q is sent as %q", name, text)
			}
		}
	}
}

// Whatever a client writes, the caller is nobody, or the owner of the one live token that is in its
// proper place.
func TestTheCheckTakesOneTokenInOnePlace(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, mine := s.register()
		_, other := s.register()
		page, _, _ := s.signedInPage(issuer)
		const target = "/oauth2/check"
		bearer, theirs := "Authorization: "+bearerOf(mine), "Authorization: "+bearerOf(other)
		bare := mine.str("access_token")
		cookie := "Cookie: " + page.cookie.Name + "=" + page.cookie.Value
		type request struct {
			line    string
			headers []string
		}
		get := func(headers ...string) request { return request{"GET " + target, headers} }
		for _, good := range []request{
			get(bearer), get("authorization: bearer " + bare), get("Authorization:\tBEARER \t" + bare +
				" \t"), get(bearer, cookie),
			get("Auth-User: x", bearer, "Auth_User: y", "auth-session: z"), get("Proxy-Authorization: Basic eDp4",
				bearer),
			get(bearer, "X-HTTP-Method-Override: OPTIONS", "X-Original-URL: /", "Origin: null",
				"Sec-Fetch-Site: cross-site"),
			{"GET http://evil.example" + target, []string{bearer}}, {"GET " + target + "?access_token=x&%zz",
				[]string{bearer}},
			{"QUERY " + target, []string{bearer}}, {"OPTIONS " + target,
				[]string{bearer, "Access-Control-Request-Method: GET", "Origin: " + listed}},
			{"TRACE " + target, []string{bearer}}, {"GET " + target,
				[]string{"Accept: text/html", "If-None-Match: *", "Range: bytes=0-0", bearer}},
		} {
			res, text := whole(t,
				s.connection(append([]string{good.line + " HTTP/1.1", "Host: auth.test", "Connection: close"},
					good.headers...)...))
			if res.StatusCode != 200 || text != "" || res.Header.Get("Auth-Session") != mine.str("session_id") ||
				len(res.Header.Values("Auth-User")) != 1 {
				t.Errorf("%.80q: %d %v %q", good, res.StatusCode, res.Header, text)
			}
		}
		for _, bad := range []request{
			get(), get(cookie), get("Cookie: access_token=" + bare), get("Authorization: " +
				bare), get("Authorization: Token " + bare),
			get("Authorization: Bearer"), get("Authorization: Bearer " + bare + " x"), get("Authorization: Bearer " +
				bare + "," + bare),
			get("Authorization: Bearer " + bare + ", Bearer " + bare), get(`Authorization: Bearer "` + bare +
				`"`), get("Authorization: Bearer " + bare + "="),
			get("Authorization: Bearer " + mine.str("refresh_token")), get("Authorization: Bearer " +
				page.cookie.Value),
			get(bearer, bearer), get(bearer, theirs), get("Authorization:", bearer), get(bearer,
				"authorization:"), get(theirs, "AUTHORIZATION: Basic eDp4"),
			get("Authorization : Bearer " + bare), get(" Authorization: Bearer " + bare), get("X: y", " "+
				bearer), get("Authorization_: Bearer " + bare),
			get("Proxy-Authorization: Bearer " + bare), get("X-Authorization: Bearer " + bare), get("Auth-User: " +
				mine.str("user_id")),
			get("X-Forwarded-Authorization: Bearer " + bare), {"GET " + target + "?access_token=" + bare, nil},
			{"GET " + target + "/", []string{bearer}}, {"GET /" + target, []string{bearer}}, {"GET /oauth2/./check",
				[]string{bearer}},
			{"GET /oauth2/%63heck", []string{bearer}}, {"GET /OAUTH2/check", []string{bearer}}, {"GET " + target +
				"%00", []string{bearer}},
			{"GET " + target + ";x", []string{bearer}}, {"GET *", []string{bearer}}, {"GET oauth2/check",
				[]string{bearer}},
			get(bearer, "Host: evil.example"),
		} {
			res, text := whole(t,
				s.connection(append([]string{bad.line + " HTTP/1.1", "Host: auth.test", "Connection: close"},
					bad.headers...)...))
			if res.StatusCode/100 != 4 || res.Header.Values("Auth-User") != nil || strings.Contains(text, bare) {
				t.Errorf("%.80q: %d %v %q", bad, res.StatusCode, res.Header, text)
			}
		}
	})
}
