// Package authhttp puts modules/auth behind HTTP. The whole surface is the table in this file;
// what an endpoint takes and gives are the types of its plain function. The OpenAPI document
// is made of both, and docs/errors.md explains every code that they answer with.
package authhttp

import (
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

// Options are what the service itself does not know.
type Options struct {
	Issuer        string // the URL by which clients know the service; its path is where a proxy has mounted it
	BaseURL       string // where its endpoints are; empty: at the issuer
	SecureCookies bool   // browsers reach the service by https
	PlainCookies  bool   // or else may keep a refresh token in a cookie all the same: for development
}

// api holds the functions of the endpoints.
type api struct {
	svc   *auth.Service
	opt   Options
	pages pages
}

// Groups are the tags of the routes, with what they group.
var Groups = [][2]string{
	{"account", "Registration, sign-in and the account itself"},
	{"session", "Signed-in devices and their tokens"},
	{"oauth2", "For the resource servers and gateways of `auth.clients`: RFC 7662 and RFC 7009"},
	{"discovery", "Server metadata, public keys and the schemas of events"},
}

// Routes returns the surface.
func Routes(svc *auth.Service, opt Options) []httpserver.Route {
	a := &api{svc: svc, opt: opt, pages: pagesOf(opt)}
	bearer, client := Bearer(svc), a.client()
	const (
		account, session, oauth2, discovery = "account", "session", "oauth2", "discovery"
		noStore                             = "no-store"
	)
	// What any request that signs in or proves a password may meet.
	hashing := faults(auth.ErrTooManyAttempts, auth.ErrOverloaded)
	deleteMe := httpserver.Route{
		Group: account, Summary: "Delete my account for good", Success: "The account is deleted.",
		Description: "Requires the password again. The account cannot be restored; its id is never given to another " +
			"account.",
		Do: httpserver.AsDo(bearer, a.deleteMe), Faults: append(faults(auth.ErrWrongPassword, auth.ErrUserNotFound),
			hashing...),
		Instead: "POST " + deleteByPost,
	}
	metadata := httpserver.Route{
		Method: "GET", Path: wellKnown, ID: "metadata", Group: discovery, Summary: "Server metadata (RFC 8414)",
		Success: "The metadata, limited to what works.", Do: httpserver.Public(a.metadata), Cache: publicKeys,
	}
	routes := []httpserver.Route{
		{
			Method: "POST", Path: "/api/v1/auth/register", ID: "register", Group: account,
			Summary: "Create an account and sign in", Success: "The account is created and this device is signed in.",
			Status: 201, Cache: noStore,
			Description: "Usernames have 3 to 255 characters, by default ASCII letters, digits and `. _ - @ +`; they " +
				"are compared without case and kept as typed: " +
				"[docs/usernames.md](https://github.com/toppira/authctl/blob/main/docs/usernames.md). Passwords have " +
				"no composition rules; common ones and those that contain the username are refused with the reason. " +
				"Where `contact.required` is `verified`, the answer is 202 and has no tokens: send the code to " +
				"`/api/v1/auth/verify`, then sign in.",
			Do: httpserver.Public(a.register),
			Faults: append(faults(auth.ErrUsernameTaken, auth.ErrRegistrationClosed, auth.ErrOriginNotAllowed),
				hashing...),
		}, {
			Method: "POST", Path: "/api/v1/auth/login", ID: "login", Group: account,
			Summary: "Sign in", Success: "This device is signed in.", Cache: noStore,
			Description: "A wrong password and an unknown name get the same answer. After too many failures, sign-in " +
				"from unknown devices is delayed; a device that signed in before and sends its `Auth-Device` is not " +
				"affected. The answer `contact_unverified` has the `challenge_id` of the code that was sent: send " +
				"both to `/api/v1/auth/verify`, then sign in again.",
			Do: httpserver.Public(a.login),
			Faults: append(faults(auth.ErrInvalidCredentials, auth.ErrAccountDisabled, auth.ErrContactUnverified,
				auth.ErrTooManySessions, auth.ErrOriginNotAllowed), hashing...),
		}, {
			Method: "POST", Path: "/api/v1/auth/refresh", ID: "refresh", Group: session,
			Summary: "Get new tokens for a refresh token", Success: "New tokens of the same session.", Cache: noStore,
			Description: "The refresh token is replaced. For a short while (`auth.refresh_grace`, counted from its " +
				"own replacement) each replaced one yields the newest token of the session, marked " +
				"`Auth-Refresh-Replayed: true`; after that, using it again ends the session. If the body is an empty " +
				"object, the refresh token is read from the cookie, and the new one is set there; a cookie that was " +
				"set within `auth.refresh_grace` is kept.",
			Do: httpserver.Public(a.refresh), Accepts: []*httpserver.Scheme{cookieScheme}, // the token is the proof
			Faults: faults(auth.ErrInvalidRefreshToken, auth.ErrSessionExpired, auth.ErrSessionRevoked,
				auth.ErrRefreshTokenReused, auth.ErrOriginNotAllowed, auth.ErrTwoRefreshTokens),
		}, {
			Method: "POST", Path: "/api/v1/auth/logout", ID: "logout", Group: session,
			Summary: "Sign out", Success: "The session has ended.",
			Description: "Ends the session of the refresh token in the body, or else of the access token in the " +
				"Authorization header, or else (if the body is an empty object) of the refresh token in the cookie. " +
				"It can be repeated.",
			Do: httpserver.Public(a.logout), Status: 204,
			Accepts: []*httpserver.Scheme{bearer.Scheme, cookieScheme}, // each is the proof
			Faults: faults(auth.ErrMissingToken, auth.ErrInvalidToken, auth.ErrInvalidRefreshToken,
				auth.ErrOriginNotAllowed, auth.ErrTwoRefreshTokens),
		}, {
			Method: "GET", Path: "/api/v1/auth/me", ID: "me", Group: account,
			Summary: "Show my account", Success: "The account of the access token.", Cache: noStore,
			Do: httpserver.As(bearer, a.me),
		},
		with(deleteMe, "DELETE", "/api/v1/auth/me", "deleteMe"),
		with(deleteMe, "POST", deleteByPost, "deleteMeByPost"), // some proxies drop the body of a DELETE
		{
			Method: "POST", Path: "/api/v1/auth/password", ID: "changePassword", Group: account,
			Summary: "Change my password", Success: "The password is changed; these are new tokens for the calling " +
				"session.", Cache: noStore,
			Description: "The calling session continues with the tokens in the answer; every other session ends.",
			Do:          httpserver.As(bearer, a.changePassword),
			Faults:      append(faults(auth.ErrWrongPassword), hashing...),
		}, {
			Method: "GET", Path: "/api/v1/auth/sessions", ID: "listSessions", Group: session,
			Summary: "List my sessions", Success: "The signed-in devices, the last used first.", Cache: noStore,
			Do: httpserver.As(bearer, a.listSessions),
		}, {
			Method: "DELETE", Path: "/api/v1/auth/sessions", ID: "endSessions", Group: session,
			Summary: "Sign out everywhere", Success: "The sessions have ended.",
			Do: httpserver.AsDo(bearer, a.endSessions),
		}, {
			Method: "DELETE", Path: "/api/v1/auth/sessions/{id}", ID: "endSession", Group: session,
			Summary: "Sign one device out", Success: "The session has ended.",
			Do: httpserver.AsDo(bearer, a.endSession), Faults: faults(auth.ErrSessionNotFound),
		}, {
			Method: "GET", Path: "/.well-known/jwks.json", ID: "jwks", Group: discovery,
			Summary: "The public signing keys (RFC 7517)", Success: "The keys.", Do: httpserver.Public(a.jwks),
			Cache: publicKeys,
		},
		metadata,
		{
			Method: "GET", Path: auth.SchemaPath + "{file}", ID: "getEventSchema", Group: discovery,
			Summary: "The JSON Schema of the data of an event", Success: "The schema (2020-12).", Cache: schemaCache,
			Description: "`ce_dataschema` of an event is the URL of its schema here, below the issuer.",
			Do:          httpserver.Public(a.schema), Faults: faults(httpserver.ErrNotFound),
		}, {
			Method: "POST", Path: "/oauth2/introspect", ID: "introspect", Group: oauth2, OAuth: true,
			Summary: "Check a token (RFC 7662)", Success: "The state of the token, and its claims if it is active.",
			Cache: noStore,
			Description: "For a token that is not live, for whatever reason, the answer is exactly " +
				"`{\"active\":false}`.",
			Do: httpserver.As(client, a.introspect), OAuthFaults: []httpserver.OAuthError{errNoToken},
		}, {
			Method: "POST", Path: "/oauth2/revoke", ID: "revoke", Group: oauth2, OAuth: true,
			Summary: "End the session of a token (RFC 7009)", Success: "The token is not valid any more.", Status: 200,
			Cache:       noStore,
			Description: "The answer is the same for a token that was never valid.",
			Do:          httpserver.AsDo(client, a.revoke), OAuthFaults: []httpserver.OAuthError{errNoToken},
		},
		{
			Method: "GET", Path: "/oauth2/check", ID: "check", Group: oauth2, OAuth: true, Gateway: true,
			Summary: "Check the access token of a request, for gateways (any method)",
			Success: "The access token is live.", Cache: noStore,
			Description: "For the `auth_request` of nginx, the `forward_auth` of Caddy and the like, which ask with " +
				"the headers of the request in question: " +
				"[docs/gateway.md](https://github.com/toppira/authctl/blob/main/docs/gateway.md) has tested " +
				"configurations. Every method gets the same answer, and the body is ignored. Each check asks the " +
				"database, so a token of an ended session does not pass. Answers have no body.",
			Do: httpserver.As(bearer, a.check),
		},
		{
			Method: "GET", Path: "/oauth2/revocations", ID: "revocations", Group: oauth2, OAuth: true, Waits: true,
			Summary: "List what has ended, for services that verify access tokens themselves",
			Success: "What has ended.", Cache: noStore, Quiet: true,
			Description: "Without `after` it begins with everything that has ended and could still be accepted " +
				"somewhere. With `after` it continues: at once if something has ended since, otherwise after `wait` " +
				"seconds with no entries and a newer `as_of`. With `Accept: text/event-stream` each page comes as " +
				"an event `revocations` whose id is its cursor; an event `error` ends the stream. Entries may repeat " +
				"and come in any order. Report entries of an unknown type.",
			Do: httpserver.As(client, a.revocations), OAuthFaults: []httpserver.OAuthError{errCursorGone},
		},
	}
	if path := opt.mount(); path != "" {
		// RFC 8414 §3.1 puts the issuer's path behind the well-known one, and there no proxy
		// takes it off. Behind it, as others look for it, the proxy does.
		routes = append(routes, with(metadata, "GET", wellKnown+path, "metadataOfIssuer"))
	}
	return routes
}

const deleteByPost = "/api/v1/auth/me/delete"

const wellKnown = "/.well-known/oauth-authorization-server"

func faults(list ...*fault.Fault) []*fault.Fault { return list }

// with is a route at another place.
func with(r httpserver.Route, method, path, id string) httpserver.Route {
	r.Method, r.Path, r.ID = method, path, id
	if method != "DELETE" {
		r.Instead = ""
	}
	return r
}

// mount is the path at which a proxy has mounted the service, without a slash at its end:
// that of the issuer.
func (o Options) mount() string { return httpserver.MountOf(o.Issuer) }
