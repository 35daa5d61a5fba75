package authhttp

import (
	"cmp"
	"net/http"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// The cookie for the refresh token, which no script can read. Browsers accept the first name only over
// https, from exactly this host and for all paths, so nobody else on the domain can set it. They never
// accept it over plain http; the second name is for development. A server reads only its own name: anybody
// on the network may have set the other one.
const (
	secureCookie = "__Host-authctl"
	plainCookie  = "authctl"
)

// The values of transport: where a sign-in puts the refresh token.
const (
	inBody   = "body"
	inCookie = "cookie"
)

var cookieScheme = &httpserver.Scheme{
	Name: "cookie", Cookie: secureCookie,
	Description: "The refresh token of a sign-in with `\"transport\": \"cookie\"`. The request must have an empty " +
		"object as its body, of the type `application/json`, and an `Origin` that is the issuer's or one of " +
		"`app.origins`. Over plain http, in dev mode, the cookie is named `authctl`.",
}

// pages decides which pages may use the cookie.
type pages struct {
	name string   // of the cookie; empty: there are none here
	own  []string // origins of the service itself
}

func pagesOf(opt Options) pages {
	p := pages{own: []string{httpserver.OriginOf(opt.Issuer), httpserver.OriginOf(opt.BaseURL)}}
	switch {
	case opt.SecureCookies:
		p.name = secureCookie
	case opt.PlainCookies:
		p.name = plainCookie
	}
	return p
}

// cookies are the refresh tokens that a browser sends along.
func (p pages) cookies(b httpserver.Browser) []string {
	if p.name == "" {
		return nil
	}
	return b.Cookies(p.name)
}

// admit refuses a page that may not use the cookie.
func (p pages) admit(b httpserver.Browser) error {
	if b.From(p.own...) {
		return nil
	}
	return auth.ErrOriginNotAllowed.Detail("The cookie is for pages of the service's own origin and those of " +
		"app.origins, and the request does not come from one, as far as Origin and Sec-Fetch-Site tell.")
}

// wanted reports whether a sign-in asks for the cookie, and refuses one that cannot have it.
func (p pages) wanted(transport *string, b httpserver.Browser) (bool, error) {
	switch {
	case transport == nil || *transport == inBody:
		return false, nil
	case *transport != inCookie:
		return false, auth.ErrValidation.Field("transport", "invalid_value", "must be body or cookie, or left out")
	case p.name == "":
		return false, auth.ErrValidation.Field("transport", "needs_https",
			"can be cookie only where browsers come by https")
	case b.Sends(): // a program cannot be tricked by a page
		return true, p.admit(b)
	}
	return true, nil
}

// presented is the one refresh token of a request: in the body, or else in the cookie if the page may use it.
func (p pages) presented(body *string, b httpserver.Browser) (token string, fromCookie bool, err error) {
	cookies := p.cookies(b)
	switch {
	case body != nil && len(cookies) > 0:
		return "", false, auth.ErrTwoRefreshTokens.Detail("There is one in the body and one in a cookie. Send an " +
			"empty object to use the cookie.")
	case len(cookies) > 1:
		return "", false, auth.ErrTwoRefreshTokens.Detail("There are several cookies of the name " + p.name + ".")
	case body != nil:
		return *body, false, nil
	case len(cookies) == 0 && !b.Sends():
		return "", false, auth.ErrValidation.Field("refresh_token", "required", "is required")
	}
	if err := p.admit(b); err != nil {
		return "", false, err
	}
	if len(cookies) == 0 {
		return "", false, auth.ErrInvalidRefreshToken.Detail("There is no refresh token in the body, and no cookie " +
			"came along.")
	}
	return cookies[0], true, nil
}

// refreshCookie is the cookie with a value and its life in seconds; a life below zero takes the
// cookie back.
func (a *api) refreshCookie(value string, seconds int) *http.Cookie {
	c := &http.Cookie{ //nolint:gosec // Secure but in development
		Name: a.pages.name, Value: value, Path: "/", MaxAge: seconds,
		HttpOnly: true, Secure: a.opt.SecureCookies, SameSite: http.SameSiteLaxMode,
	}
	if !strings.HasPrefix(c.Name, "__Host-") { // which has to be for all paths
		c.Path = cmp.Or(a.opt.mount(), "/")
	}
	return c
}

// keep puts the refresh token into the cookie, for as long as it lives.
func (a *api) keep(t auth.Tokens) *http.Cookie {
	return a.refreshCookie(t.RefreshToken, max(1, int(t.RefreshExpiresIn/time.Second)))
}

// takeBack removes the cookie.
func (a *api) takeBack() *http.Cookie { return a.refreshCookie("", -1) }
