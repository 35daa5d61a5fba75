package httpserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

func TestABrowserSaysWhichPageSends(t *testing.T) {
	t.Parallel()
	type said struct {
		Sends, From, JSON bool
		Cookies           []string
	}
	route := httpserver.Route{Method: "POST", Path: "/page", Do: httpserver.Public(func(_ context.Context, in struct {
		Page httpserver.Browser
	}) (struct{ Body said }, error) {
		return struct{ Body said }{said{in.Page.Sends(), in.Page.From("https://auth.example.com", ""), in.Page.JSON(),
			in.Page.Cookies("token")}}, nil
	})}
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{Origins: []string{"https://app.example.com"}}, route)
		for _, test := range []struct {
			headers []string
			want    said
		}{
			{nil, said{}},
			{[]string{"Origin", "https://auth.example.com"}, said{Sends: true, From: true}},
			{[]string{"Origin", "https://app.example.com", "Sec-Fetch-Site", "cross-site"},
				said{Sends: true, From: true}},
			{[]string{"Origin", "https://evil.example", "Sec-Fetch-Site", "same-origin"}, said{Sends: true}},
			{[]string{"Origin", ""}, said{Sends: true}},
			{[]string{"Origin", "", "Sec-Fetch-Site", "same-origin"}, said{Sends: true}},
			{[]string{"Origin", "https://app.example.com", "Origin", "https://app.example.com"}, said{Sends: true}},
			{[]string{"Sec-Fetch-Site", "same-origin"}, said{Sends: true, From: true}},
			{[]string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "same-origin"}, said{Sends: true}},
			{[]string{"Sec-Fetch-Site", "same-site"}, said{Sends: true}},
			{[]string{"Content-Type", "application/json; charset=utf-8"}, said{JSON: true}},
			{[]string{"Content-Type", "text/plain; a=application/json"}, said{}},
			{[]string{"Cookie", "a=b;token=one; tokens=x;\ttoken=t=w=o ; Token=x; token; =token; x token=y"},
				said{Cookies: []string{"one", "t=w=o"}}},
			{[]string{"Cookie", "token=one", "Cookie", "token="}, said{Cookies: []string{"one", ""}}},
			{[]string{"Cookie", `token="quoted"`}, said{Cookies: []string{`"quoted"`}}},
		} {
			var got said
			if a := s.do(t, "POST", "/page", "", test.headers...); json.Unmarshal([]byte(a.body), &got) != nil {
				t.Fatalf("%q: %d %s", test.headers, a.StatusCode, a.body)
			}
			if got.Sends != test.want.Sends || got.From != test.want.From || got.JSON != test.want.JSON ||
				!slices.Equal(got.Cookies, test.want.Cookies) {
				t.Errorf("%q: %+v, want %+v", test.headers, got, test.want)
			}
		}
	})
}

func TestTheOriginOfAURLIsWhatBrowsersSend(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://auth.example.com": "https://auth.example.com", "https://auth.example.com/": "https://auth.example.com",
		"https://Auth.Example.com:443/auth?x#y": "https://auth.example.com",
		"http://localhost:8080":                 "http://localhost:8080",
		"http://[::1]:80/":                      "http://[::1]",
		"https://user@auth.example.com":         "https://auth.example.com",
		"":                                      "", "auth.example.com": "", "https://": "", "mailto:a@b": "",
		"https://%zz": "",
	} {
		if got := httpserver.OriginOf(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// A refusal may delete a cookie, but has nothing else of the function's answer.
func TestCookiesGoOutWithARefusalAsWell(t *testing.T) {
	t.Parallel()
	type answer struct {
		Header string       `header:"X-Answer"`
		One    *http.Cookie `cookie:"one" refused:"401"`
		Two    *http.Cookie `cookie:"two"`
	}
	cookies := func(err error) func(context.Context, struct{}) (answer, error) {
		return func(context.Context, struct{}) (answer, error) {
			return answer{"x", &http.Cookie{Name: "one", MaxAge: -1}, &http.Cookie{Name: "two", Value: "2"}}, err
		}
	}
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{},
			httpserver.Route{Method: "POST", Path: "/fine", Status: 204, Do: httpserver.Public(cookies(nil))},
			httpserver.Route{Method: "POST", Path: "/refused",
				Do: httpserver.Public(cookies(fault.New(fault.Unauthenticated,
					"invalid_token", "No")))},
			httpserver.Route{Method: "POST", Path: "/failed", Do: httpserver.Public(cookies(errors.New("broken")))})
		for path, status := range map[string]int{"/fine": 204, "/refused": 401, "/failed": 500} {
			a := s.do(t, "POST", path, "")
			if a.StatusCode != status ||
				!slices.Equal(a.Header.Values("Set-Cookie"), []string{"one=; Max-Age=0", "two=2"}) {
				t.Errorf("%s: %d %v", path, a.StatusCode, a.Header)
			}
			if got := a.Header.Get("X-Answer"); (got == "x") != (status == 204) {
				t.Errorf("%s: X-Answer %q", path, got)
			}
		}
	})
}
