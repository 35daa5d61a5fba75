// Package authhttp puts modules/auth behind HTTP with Fiber: the whole surface is the table
// in this file. docs/errors.md explains every code that its routes answer with.
package authhttp

import (
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
	client        // a client of auth.clients, by HTTP Basic
)

// endpoint is one line of the surface.
type endpoint struct {
	method, path string
	access       access
	handle       func(*fiber.Ctx) error
	asCaller     func(*fiber.Ctx, auth.Caller) error // for bearer
}

// Options are what the service itself does not know.
type Options struct {
	Issuer        string // the URL by which clients know the service
	BaseURL       string // where its endpoints are; empty: at the issuer
	HasClients    bool   // whether anyone may introspect and revoke
	SecureCookies bool   // browsers reach the service by https
}

// api holds the handlers.
type api struct {
	svc *auth.Service
	opt Options
}

// endpoints is the surface: every route and who may call it.
func (a *api) endpoints() []endpoint {
	return []endpoint{
		{"POST", "/api/v1/auth/register", public, a.register, nil},
		{"POST", "/api/v1/auth/login", public, a.login, nil},
		{"POST", "/api/v1/auth/refresh", public, a.refresh, nil}, // the token in the body is the proof
		{"POST", "/api/v1/auth/logout", public, a.logout, nil},   // either token is the proof
		{"GET", "/api/v1/auth/me", bearer, nil, a.me},
		{"DELETE", "/api/v1/auth/me", bearer, nil, a.deleteMe},
		{"POST", "/api/v1/auth/password", bearer, nil, a.changePassword},
		{"GET", "/api/v1/auth/sessions", bearer, nil, a.listSessions},
		{"DELETE", "/api/v1/auth/sessions", bearer, nil, a.endSessions},
		{"DELETE", "/api/v1/auth/sessions/:id", bearer, nil, a.endSession},
		{"GET", "/.well-known/jwks.json", public, a.jwks, nil},
		{"GET", "/.well-known/oauth-authorization-server", public, a.metadata, nil},
		{"POST", "/oauth2/introspect", client, a.introspect, nil},
		{"POST", "/oauth2/revoke", client, a.revoke, nil},
	}
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
	case e.access == client && e.handle != nil:
		return func(c *fiber.Ctx) error {
			if err := a.authenticateClient(c); err != nil {
				return err
			}
			return e.handle(c)
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
// query or in a form are not taken: they end up in logs.
func bearerToken(c *fiber.Ctx) (string, error) {
	scheme, token, found := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", auth.ErrMissingToken
	}
	return token, nil
}
