// Package authhttp puts modules/auth behind HTTP with Fiber: the whole surface is the table
// in this file. docs/errors.md explains every code that its routes answer with.
package authhttp

import (
	"net/url"
	"strings"

	"github.com/gofiber/fiber/v2"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// access says who may call a route. There is no default: the zero value lets nobody in.
type access int

const (
	nobody access = iota
	public        // anyone
	bearer        // who has a live access token
	client        // a client of auth.clients, by HTTP Basic or in the form
)

// endpoint is one line of the surface.
type endpoint struct {
	method, path string
	access       access
	handle       func(*fiber.Ctx) error
	asCaller     func(*fiber.Ctx, auth.Caller) error     // for bearer
	asClient     func(*fiber.Ctx, httpserver.Form) error // for client, who sends a form
}

// Options are what the service itself does not know.
type Options struct {
	Issuer        string // the URL by which clients know the service; its path is where a proxy has mounted it
	BaseURL       string // where its endpoints are; empty: at the issuer
	SecureCookies bool   // browsers reach the service by https
}

// api holds the handlers.
type api struct {
	svc *auth.Service
	opt Options
}

// endpoints is the surface: every route and who may call it.
func (a *api) endpoints() []endpoint {
	endpoints := []endpoint{
		{method: "POST", path: "/api/v1/auth/register", access: public, handle: a.register},
		{method: "POST", path: "/api/v1/auth/login", access: public, handle: a.login},
		{method: "POST", path: "/api/v1/auth/refresh", access: public, handle: a.refresh}, // the token in the body is the proof
		{method: "POST", path: "/api/v1/auth/logout", access: public, handle: a.logout},   // either token is the proof
		{method: "GET", path: "/api/v1/auth/me", access: bearer, asCaller: a.me},
		{method: "DELETE", path: "/api/v1/auth/me", access: bearer, asCaller: a.deleteMe},
		{method: "POST", path: "/api/v1/auth/me/delete", access: bearer, asCaller: a.deleteMe}, // some proxies drop the body of a DELETE
		{method: "POST", path: "/api/v1/auth/password", access: bearer, asCaller: a.changePassword},
		{method: "GET", path: "/api/v1/auth/sessions", access: bearer, asCaller: a.listSessions},
		{method: "DELETE", path: "/api/v1/auth/sessions", access: bearer, asCaller: a.endSessions},
		{method: "DELETE", path: "/api/v1/auth/sessions/:id", access: bearer, asCaller: a.endSession},
		{method: "GET", path: "/.well-known/jwks.json", access: public, handle: a.jwks},
		{method: "GET", path: wellKnown, access: public, handle: a.metadata},
		{method: "POST", path: "/oauth2/introspect", access: client, asClient: a.introspect},
		{method: "POST", path: "/oauth2/revoke", access: client, asClient: a.revoke},
	}
	if path := a.opt.mount(); path != "" {
		// RFC 8414 §3.1 puts the issuer's path behind the well-known one, and there no proxy
		// takes it off. Behind it, as others look for it, the proxy does.
		endpoints = append(endpoints, endpoint{method: "GET", path: wellKnown + path, access: public, handle: a.metadata})
	}
	return endpoints
}

const wellKnown = "/.well-known/oauth-authorization-server"

// mount is the path at which a proxy has mounted the service, without a slash at its end:
// that of the issuer.
func (o Options) mount() string {
	u, err := url.Parse(o.Issuer)
	if err != nil {
		return ""
	}
	return strings.TrimRight(u.EscapedPath(), "/")
}

// Routes returns the surface, each route behind the guard of its access.
func Routes(svc *auth.Service, opt Options) []httpserver.Route {
	a := &api{svc: svc, opt: opt}
	var routes []httpserver.Route
	for _, e := range a.endpoints() {
		routes = append(routes, httpserver.Route{
			Method: e.method, Path: e.path, Handler: a.guard(e), OAuth: strings.HasPrefix(e.path, "/oauth2/"),
		})
	}
	return routes
}

// guard lets through who may call the endpoint.
func (a *api) guard(e endpoint) fiber.Handler {
	switch {
	case e.access == public && e.handle != nil:
		return e.handle
	case e.access == client && e.asClient != nil:
		return func(c *fiber.Ctx) error {
			form, err := httpserver.DecodeForm(c)
			if err != nil {
				return err
			}
			if err := a.authenticateClient(c, form); err != nil {
				return err
			}
			return e.asClient(c, form)
		}
	case e.access == bearer && e.asCaller != nil:
		return func(c *fiber.Ctx) error {
			token, err := bearerToken(c)
			if err != nil {
				return err
			}
			caller, err := a.svc.Authenticate(c.UserContext(), token)
			if err != nil {
				return err
			}
			httpserver.SetUser(c, caller.User.ID.String())
			return e.asCaller(c, caller)
		}
	}
	return func(*fiber.Ctx) error { return auth.ErrInvalidToken }
}

// bearerToken takes the token out of the Authorization header (RFC 6750 §2.1). Tokens in the
// query or in a form are not taken: they end up in logs. Whoever sent something else is told
// what it looks like.
func bearerToken(c *fiber.Ctx) (string, error) {
	header := strings.Trim(c.Get(fiber.HeaderAuthorization), " \t")
	scheme, token, found := header, "", false
	if end := strings.IndexAny(header, " \t"); end >= 0 {
		scheme, token, found = header[:end], strings.TrimLeft(header[end:], " \t"), true
	}
	missing := func(detail string) (string, error) { return "", auth.ErrMissingToken.Detail(detail) }
	switch {
	case header == "":
		return "", auth.ErrMissingToken
	case strings.EqualFold(scheme, "Bearer") && !found:
		return missing("Authorization says Bearer, and no token follows.")
	case strings.EqualFold(scheme, "Bearer"):
		return token, plausible(token)
	case strings.EqualFold(strings.TrimRight(scheme, ":="), "Bearer"):
		return missing("Between Bearer and the token there must be a space and nothing else: Authorization: Bearer TOKEN.")
	case strings.EqualFold(scheme, "Basic"):
		return missing("This takes an access token, as Authorization: Bearer TOKEN, and not HTTP Basic.")
	case !found && (strings.Count(header, ".") == 2 || auth.IsRefreshToken(header)):
		return missing("The word Bearer is missing: Authorization: Bearer TOKEN.")
	}
	return missing("Authorization must be: Bearer TOKEN.")
}

// plausible says what was sent in place of an access token, where it can be told by its form.
func plausible(token string) error {
	switch first, _, more := strings.Cut(token, " "); {
	case strings.EqualFold(first, "Bearer"):
		return auth.ErrInvalidToken.Detail("The word Bearer is there twice.")
	case more, strings.Trim(token, `"'<>`) != token:
		return auth.ErrInvalidToken.Detail("The token has blanks, quotes or brackets around it.")
	case auth.IsRefreshToken(token):
		return auth.ErrInvalidToken.Detail("This is a refresh token; an access token is needed.")
	}
	return nil
}
