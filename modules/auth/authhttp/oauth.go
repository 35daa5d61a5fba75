package authhttp

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// metadataBody is RFC 8414 §2: only what works here.
type metadataBody struct {
	Issuer                 string   `json:"issuer"`
	JWKSURI                string   `json:"jwks_uri"`
	ResponseTypes          []string `json:"response_types_supported"` // required by the RFC; none are
	GrantTypes             []string `json:"grant_types_supported"`
	IntrospectionEndpoint  string   `json:"introspection_endpoint,omitempty"`
	IntrospectionAuthTypes []string `json:"introspection_endpoint_auth_methods_supported,omitempty"`
	RevocationEndpoint     string   `json:"revocation_endpoint,omitempty"`
	RevocationAuthTypes    []string `json:"revocation_endpoint_auth_methods_supported,omitempty"`
	ServiceDocumentation   string   `json:"service_documentation"`
}

// introspectionBody is RFC 7662 §2.2. A token that is not live has active and nothing else.
type introspectionBody struct {
	Active    bool   `json:"active"`
	TokenType string `json:"token_type,omitempty"`
	Subject   string `json:"sub,omitempty"`
	Username  string `json:"username,omitempty"`
	ClientID  string `json:"client_id,omitempty"`
	Issuer    string `json:"iss,omitempty"`
	Audience  any    `json:"aud,omitempty" swaggertype:"string"`
	ID        string `json:"jti,omitempty"`
	SessionID string `json:"sid,omitempty"`
	IssuedAt  int64  `json:"iat,omitempty"`
	ExpiresAt int64  `json:"exp,omitempty"`
	AuthTime  int64  `json:"auth_time,omitempty"`
}

// publicKeys lets everybody keep the keys for as long as a new one waits before it signs.
var publicKeys = fmt.Sprintf("public, max-age=%d", int(auth.JWKSMaxAge.Seconds()))

// jwks godoc
//
//	@Summary	The public signing keys (RFC 7517)
//	@Tags		discovery
//	@Produce	json
//	@Success	200	{object}	map[string][]map[string]string
//	@Success	304	"not changed"
//	@Header		200	{string}	ETag	"changes with the keys"
//	@Router		/.well-known/jwks.json [get]
func (a *api) jwks(c *fiber.Ctx) error {
	body, etag := a.svc.JWKS()
	c.Set(fiber.HeaderCacheControl, publicKeys)
	c.Set(fiber.HeaderETag, etag)
	if matchesETag(c.Get(fiber.HeaderIfNoneMatch), etag) {
		return empty(c, fiber.StatusNotModified)
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	return c.Send(body)
}

// metadata godoc
//
//	@Summary	What this server can do (RFC 8414)
//	@Tags		discovery
//	@Produce	json
//	@Success	200	{object}	metadataBody
//	@Router		/.well-known/oauth-authorization-server [get]
func (a *api) metadata(c *fiber.Ctx) error {
	base := strings.TrimSuffix(cmp.Or(a.opt.BaseURL, a.opt.Issuer), "/")
	body := metadataBody{
		Issuer: a.opt.Issuer, JWKSURI: base + "/.well-known/jwks.json",
		ResponseTypes: []string{}, GrantTypes: []string{},
		ServiceDocumentation: "https://github.com/toppira/authctl",
	}
	if a.svc.HasClients() {
		methods := []string{"client_secret_basic", "client_secret_post"}
		body.IntrospectionEndpoint, body.IntrospectionAuthTypes = base+"/oauth2/introspect", methods
		body.RevocationEndpoint, body.RevocationAuthTypes = base+"/oauth2/revoke", methods
	}
	c.Set(fiber.HeaderCacheControl, publicKeys)
	return c.JSON(body)
}

// introspect godoc
//
//	@Summary		What is a token worth now (RFC 7662)
//	@Description	For clients of `auth.clients`. A token that is not live, for whatever reason, is exactly `{"active":false}`.
//	@Tags			oauth2
//	@Accept			x-www-form-urlencoded
//	@Produce		json
//	@Param			token			formData	string	true	"an access token or a refresh token"
//	@Param			token_type_hint	formData	string	false	"not needed"
//	@Param			client_id		formData	string	false	"with client_secret, in place of HTTP Basic"
//	@Param			client_secret	formData	string	false	"with client_id, in place of HTTP Basic"
//	@Success		200				{object}	introspectionBody
//	@Failure		400				{object}	map[string]string		"invalid_request"
//	@Failure		401				{object}	map[string]string		"invalid_client"
//	@Failure		413				{object}	map[string]string		"invalid_request"
//	@Failure		503				{object}	map[string]string		"temporarily_unavailable"
//	@Security		Client
//	@Router			/oauth2/introspect [post]
func (a *api) introspect(c *fiber.Ctx, form httpserver.Form) error {
	token, err := formToken(c, form)
	if err != nil {
		return err
	}
	in, active, err := a.svc.Introspect(c.UserContext(), token)
	if err != nil {
		return err
	}
	noStore(c)
	if !active {
		return c.JSON(introspectionBody{})
	}
	body := introspectionBody{
		Active: true, TokenType: in.TokenType, Subject: in.Subject.String(), Username: in.Username, ClientID: in.ClientID,
		Issuer: in.Issuer, SessionID: in.SessionID.String(),
		IssuedAt: in.IssuedAt.Unix(), ExpiresAt: in.ExpiresAt.Unix(), AuthTime: in.AuthTime.Unix(),
	}
	if in.ID != uuid.Nil {
		body.ID = in.ID.String()
	}
	switch len(in.Audience) {
	case 0:
	case 1:
		body.Audience = in.Audience[0]
	default:
		body.Audience = in.Audience
	}
	return c.JSON(body)
}

// revoke godoc
//
//	@Summary		End the session of a token (RFC 7009)
//	@Description	For clients of `auth.clients`. Also 200 for a token that means nothing.
//	@Tags			oauth2
//	@Accept			x-www-form-urlencoded
//	@Produce		json
//	@Param			token			formData	string	true	"an access token or a refresh token"
//	@Param			token_type_hint	formData	string	false	"not needed"
//	@Param			client_id		formData	string	false	"with client_secret, in place of HTTP Basic"
//	@Param			client_secret	formData	string	false	"with client_id, in place of HTTP Basic"
//	@Success		200				"the token is worth nothing now"
//	@Failure		400				{object}	map[string]string		"invalid_request"
//	@Failure		401				{object}	map[string]string		"invalid_client"
//	@Failure		413				{object}	map[string]string		"invalid_request"
//	@Failure		503				{object}	map[string]string		"temporarily_unavailable"
//	@Security		Client
//	@Router			/oauth2/revoke [post]
func (a *api) revoke(c *fiber.Ctx, form httpserver.Form) error {
	token, err := formToken(c, form)
	if err != nil {
		return err
	}
	if err := a.svc.Revoke(c.UserContext(), token); err != nil {
		return err
	}
	noStore(c)
	return empty(c, fiber.StatusOK)
}

// authenticateClient lets through who shows to be a client of auth.clients, by HTTP Basic or
// in the form (RFC 6749 §2.3.1), and not by both.
func (a *api) authenticateClient(c *fiber.Ctx, form httpserver.Form) error {
	const how = "HTTP Basic (client_secret_basic), or client_id and client_secret in the form (client_secret_post)"
	refused := func(description string) error {
		return &httpserver.OAuthError{Status: fiber.StatusUnauthorized, Code: "invalid_client", Description: description}
	}
	confused := func(description string) error {
		return &httpserver.OAuthError{Status: fiber.StatusBadRequest, Code: "invalid_request", Description: description}
	}
	header := c.Get(fiber.HeaderAuthorization)
	scheme, encoded, _ := strings.Cut(header, " ")
	id, hasID := form["client_id"]
	secret, hasSecret := form["client_secret"]
	var readings []auth.ClientCredentials
	switch {
	case form["client_assertion"] != "" || form["client_assertion_type"] != "":
		return refused("Client assertions are not supported. Send " + how + ".")
	case header != "" && hasSecret:
		return confused("The client authenticates twice. Send either Authorization or client_secret.")
	case strings.EqualFold(scheme, "Basic"):
		raw, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
		if readings = basicReadings(string(raw)); err != nil || len(readings) == 0 {
			return refused("Basic must be followed by the base64 of id:secret.")
		}
		if hasID && !slices.ContainsFunc(readings, func(r auth.ClientCredentials) bool { return r.ID == id }) {
			return confused("client_id is another client than the one in Authorization.")
		}
	case header != "":
		return refused("This takes the id and secret of a client, and no other scheme than Basic. Send " + how + ".")
	case hasID && hasSecret:
		readings = []auth.ClientCredentials{{ID: id, Secret: secret}}
	case hasID:
		return refused("client_secret is missing.")
	case hasSecret:
		return refused("client_id is missing.")
	default:
		return refused("Client authentication is missing. Send " + how + ".")
	}
	if a.svc.AuthenticateClient(readings, device(c, "")) {
		return nil
	}
	return refused("The client is not known, or its secret is wrong.")
}

// basicReadings is what a client may have meant by the text in HTTP Basic. RFC 6749 §2.3.1
// has id and secret form-encoded first, which not every client does; then the colon that
// parts them need not be the first, and + and % need not be escapes.
func basicReadings(text string) []auth.ClientCredentials {
	const most = 16 // colons
	var readings []auth.ClientCredentials
	for at, n := strings.IndexByte(text, ':'), 0; at >= 0 && n < most; n++ {
		for _, id := range formReadings(text[:at]) {
			for _, secret := range formReadings(text[at+1:]) {
				readings = append(readings, auth.ClientCredentials{ID: id, Secret: secret})
			}
		}
		next := strings.IndexByte(text[at+1:], ':')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return readings
}

// formReadings is a text as it is and, where that is another, decoded.
func formReadings(text string) []string {
	if decoded, err := url.QueryUnescape(text); err == nil && decoded != text {
		return []string{text, decoded}
	}
	return []string{text}
}

// formToken takes the one parameter that matters out of a form. The hint about its type is
// not needed: the two kinds look different.
func formToken(c *fiber.Ctx, form httpserver.Form) (string, error) {
	if token := form["token"]; token != "" {
		return token, nil
	}
	description := "The parameter token is missing."
	if len(c.Request().URI().QueryString()) > 0 {
		description += " It is sent in the body as application/x-www-form-urlencoded, not in the query."
	}
	return "", &httpserver.OAuthError{Status: fiber.StatusBadRequest, Code: "invalid_request", Description: description}
}
