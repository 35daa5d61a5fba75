package authhttp

import (
	"cmp"
	"encoding/base64"
	"net/url"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

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
	c.Set(fiber.HeaderCacheControl, "public, max-age=300")
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
	if a.opt.HasClients {
		basic := []string{"client_secret_basic"}
		body.IntrospectionEndpoint, body.IntrospectionAuthTypes = base+"/oauth2/introspect", basic
		body.RevocationEndpoint, body.RevocationAuthTypes = base+"/oauth2/revoke", basic
	}
	c.Set(fiber.HeaderCacheControl, "public, max-age=300")
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
//	@Success		200				{object}	introspectionBody
//	@Failure		400				{object}	map[string]string		"invalid_request"
//	@Failure		401				{object}	map[string]string		"invalid_client"
//	@Failure		413				{object}	map[string]string		"invalid_request"
//	@Failure		503				{object}	map[string]string		"temporarily_unavailable"
//	@Security		Client
//	@Router			/oauth2/introspect [post]
func (a *api) introspect(c *fiber.Ctx) error {
	token, err := formToken(c)
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
//	@Success		200				"the token is worth nothing now"
//	@Failure		400				{object}	map[string]string		"invalid_request"
//	@Failure		401				{object}	map[string]string		"invalid_client"
//	@Failure		413				{object}	map[string]string		"invalid_request"
//	@Failure		503				{object}	map[string]string		"temporarily_unavailable"
//	@Security		Client
//	@Router			/oauth2/revoke [post]
func (a *api) revoke(c *fiber.Ctx) error {
	token, err := formToken(c)
	if err != nil {
		return err
	}
	if err := a.svc.Revoke(c.UserContext(), token); err != nil {
		return err
	}
	noStore(c)
	return empty(c, fiber.StatusOK)
}

// authenticateClient takes the client's id and secret from HTTP Basic (RFC 6749 §2.3.1),
// where both are form-encoded first.
func (a *api) authenticateClient(c *fiber.Ctx) error {
	refused := &httpserver.OAuthError{Status: fiber.StatusUnauthorized, Code: "invalid_client", Description: "Client authentication failed."}
	scheme, encoded, _ := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || !strings.EqualFold(scheme, "Basic") {
		return refused
	}
	id, secret, _ := strings.Cut(string(raw), ":")
	id, err = url.QueryUnescape(id)
	if err != nil {
		return refused
	}
	// A secret of base64 has + and /, which not every client encodes: both readings count.
	if a.svc.CheckClient(id, secret) {
		return nil
	}
	if decoded, err := url.QueryUnescape(secret); err == nil && decoded != secret && a.svc.CheckClient(id, decoded) {
		return nil
	}
	a.svc.RefusedClient(id, device(c, ""))
	return refused
}

// formToken reads the one parameter that matters from a form. The hint about its type is not
// needed: the two kinds look different.
func formToken(c *fiber.Ctx) (string, error) {
	form, err := httpserver.DecodeForm(c)
	if err != nil {
		return "", err
	}
	if form["token"] == "" {
		return "", &httpserver.OAuthError{Status: fiber.StatusBadRequest, Code: "invalid_request", Description: "The parameter token is missing."}
	}
	return form["token"], nil
}
