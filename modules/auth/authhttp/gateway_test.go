package authhttp

import (
	"net/url"
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
			a := s.do(method, "/oauth2/check", "<xml/>", "Authorization", bearerOf(tokens), "Content-Type", "application/xml")
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
		if a := s.do("GET", "/oauth2/check", nil, "Authorization", bearerOf(tokens)); a.StatusCode != 401 || a.Header.Values("Auth-User") != nil {
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
			t.Errorf("%q is sent as %s and read as %q (%v) and %q (%v)", name, text, asPath, err, asForm, err2)
		}
		for _, b := range []byte(text) {
			if b <= ' ' || b > '~' {
				t.Errorf("%q is sent as %q", name, text)
			}
		}
	}
}
