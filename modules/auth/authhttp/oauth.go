package authhttp

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// publicKeys lets everybody keep the keys for as long as a new one waits before it signs.
var publicKeys = fmt.Sprintf("public, max-age=%d", int(auth.JWKSMaxAge.Seconds()))

// KeySet is a JWK set (RFC 7517 §5).
type KeySet struct {
	Keys []Key `json:"keys"`
}

// Key is a public key (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2).
type Key struct {
	KeyType   string `json:"kty" enum:"EC,OKP,RSA" example:"EC"`
	Use       string `json:"use" enum:"sig" example:"sig"`
	Algorithm string `json:"alg" enum:"ES256,EdDSA,RS256" example:"ES256"`
	KeyID     string `json:"kid" pattern:"^[A-Za-z0-9_-]{1,64}$" example:"lpkJk-MlDxWRkDInAlO2WgoKJQllf958DxvrTfim0kM"`
	Curve     string `json:"crv,omitempty" enum:"P-256,Ed25519" example:"P-256" doc:"For EC and OKP."`
	X         string `json:"x,omitempty" example:"wNyplVHA-J0Q8OJGmz3zhVc4M24ABAWEEcqYo6GWPtQ" doc:"For EC and OKP, in base64url."`
	Y         string `json:"y,omitempty" example:"hDQnrdrtBy2W3m-JeprSWUn3s2SaqxKnLvEOrAcevMc" doc:"For EC, in base64url."`
	Modulus   string `json:"n,omitempty" doc:"For RSA, in base64url."`
	Exponent  string `json:"e,omitempty" doc:"For RSA, in base64url."`
}

type jwksInput struct {
	IfNoneMatch string `header:"If-None-Match" example:"\"0123456789abcdef\"" doc:"The ETag of the keys that the client has."`
}

type jwks struct {
	Status int    `status:"304" doc:"The keys have not changed."`
	ETag   string `header:"ETag" example:"\"0123456789abcdef\"" doc:"Changes with the keys."`
	Body   httpserver.Encoded[KeySet]
}

func (a *api) jwks(_ context.Context, in jwksInput) (jwks, error) {
	body, etag := a.svc.JWKS()
	answer := jwks{ETag: etag, Body: body}
	if httpserver.MatchesETag(in.IfNoneMatch, etag) {
		answer.Status = http.StatusNotModified
	}
	return answer, nil
}

// Metadata is RFC 8414 §2: only what works here.
type Metadata struct {
	Issuer                 string   `json:"issuer" format:"uri" example:"https://auth.example.com"`
	JWKSURI                string   `json:"jwks_uri" format:"uri" example:"https://auth.example.com/.well-known/jwks.json"`
	ResponseTypes          []string `json:"response_types_supported" doc:"Required by the RFC; there are none."`
	GrantTypes             []string `json:"grant_types_supported" doc:"There are none."`
	IntrospectionEndpoint  string   `json:"introspection_endpoint,omitempty" format:"uri" example:"https://auth.example.com/oauth2/introspect" doc:"Absent when there are no clients."`
	IntrospectionAuthTypes []string `json:"introspection_endpoint_auth_methods_supported,omitempty" example:"client_secret_basic"`
	RevocationEndpoint     string   `json:"revocation_endpoint,omitempty" format:"uri" example:"https://auth.example.com/oauth2/revoke" doc:"Absent when there are no clients."`
	RevocationAuthTypes    []string `json:"revocation_endpoint_auth_methods_supported,omitempty" example:"client_secret_basic"`
	RevocationFeed         string   `json:"revocation_feed_endpoint,omitempty" format:"uri" example:"https://auth.example.com/oauth2/revocations" doc:"The feed of ended sessions. Absent when there are no clients."`
	ServiceDocumentation   string   `json:"service_documentation" format:"uri" example:"https://github.com/toppira/authctl"`
}

func (a *api) metadata(context.Context, struct{}) (Metadata, error) {
	base := strings.TrimSuffix(cmp.Or(a.opt.BaseURL, a.opt.Issuer), "/")
	answer := Metadata{
		Issuer: a.opt.Issuer, JWKSURI: base + "/.well-known/jwks.json",
		ResponseTypes: []string{}, GrantTypes: []string{},
		ServiceDocumentation: "https://github.com/toppira/authctl",
	}
	if a.svc.HasClients() {
		methods := []string{"client_secret_basic", "client_secret_post"}
		answer.IntrospectionEndpoint, answer.IntrospectionAuthTypes = base+"/oauth2/introspect", methods
		answer.RevocationEndpoint, answer.RevocationAuthTypes = base+"/oauth2/revoke", methods
		answer.RevocationFeed = base + "/oauth2/revocations"
	}
	return answer, nil
}

// tokenInput is what clients of /oauth2/* send. The hint about the token's type is not needed:
// the two kinds look different.
type tokenInput struct {
	Token  string `form:"token" required:"true" minLength:"1" example:"eyJhbGciOiJFUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.e30.c2ln" doc:"An access token or a refresh token."`
	Hint   string `form:"token_type_hint" example:"access_token" doc:"Ignored; the kind of token is recognized without it."`
	ID     string `form:"client_id" example:"gateway" doc:"Together with client_secret, instead of HTTP Basic."`
	Secret string `form:"client_secret" format:"password" example:"s3cret" doc:"Together with client_id, instead of HTTP Basic."`
}

var errNoToken = httpserver.OAuthError{
	Status: http.StatusBadRequest, Code: "invalid_request",
	Description: "The parameter token is missing. It is sent in the body as application/x-www-form-urlencoded.",
}

// Introspection is RFC 7662 §2.2. A token that is not live has active and nothing else.
type Introspection struct {
	Active    bool                 `json:"active" example:"true"`
	TokenType string               `json:"token_type,omitempty" enum:"Bearer" example:"Bearer" doc:"Only for an access token (RFC 6749 §5.1): a resource server takes no others."`
	TokenUse  string               `json:"token_use,omitempty" enum:"access_token,refresh_token" example:"access_token" doc:"Whether it is an access token or a refresh token."`
	Subject   string               `json:"sub,omitempty" format:"uuid" example:"0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10"`
	Username  string               `json:"username,omitempty" example:"alice"`
	ClientID  string               `json:"client_id,omitempty" example:"authctl"`
	Issuer    string               `json:"iss,omitempty" example:"https://auth.example.com"`
	Audience  httpserver.OneOrMany `json:"aud,omitempty" example:"authctl" doc:"A string, or an array of strings if there are several."`
	ID        string               `json:"jti,omitempty" format:"uuid" example:"0199b7f2-6f40-7000-8000-000000000001" doc:"Only for an access token."`
	SessionID string               `json:"sid,omitempty" format:"uuid" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c"`
	IssuedAt  int64                `json:"iat,omitempty" example:"1767366245" doc:"Seconds since 1970."`
	ExpiresAt int64                `json:"exp,omitempty" example:"1767384245" doc:"Seconds since 1970."`
	AuthTime  int64                `json:"auth_time,omitempty" example:"1767366245" doc:"Seconds since 1970: when the person last gave the password."`
}

func (a *api) introspect(ctx context.Context, _ string, in tokenInput) (Introspection, error) {
	if in.Token == "" {
		return Introspection{}, &errNoToken
	}
	t, active, err := a.svc.Introspect(ctx, in.Token)
	if err != nil || !active {
		return Introspection{}, err
	}
	answer := Introspection{
		Active: true, TokenUse: t.Use, Subject: t.Subject.String(), Username: t.Username, ClientID: t.ClientID,
		Issuer: t.Issuer, Audience: t.Audience, SessionID: t.SessionID.String(),
		IssuedAt: t.IssuedAt.Unix(), ExpiresAt: t.ExpiresAt.Unix(), AuthTime: t.AuthTime.Unix(),
	}
	if t.ID != uuid.Nil {
		answer.TokenType, answer.ID = "Bearer", t.ID.String()
	}
	return answer, nil
}

func (a *api) revoke(ctx context.Context, _ string, in tokenInput) error {
	if in.Token == "" {
		return &errNoToken
	}
	return a.svc.Revoke(ctx, in.Token)
}
