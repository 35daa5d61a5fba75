package authhttp

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// Bearer admits requests with a live access token. A host can use it for routes of its own.
func Bearer(svc *auth.Service) httpserver.Identity[auth.Caller] {
	return httpserver.Identity[auth.Caller]{
		Scheme: &httpserver.Scheme{
			Name: "bearer", HTTP: "bearer", Format: "at+jwt (RFC 9068)",
			Description: "The access token of a sign-in or a refresh.",
		},
		Faults: faults(auth.ErrMissingToken, auth.ErrInvalidToken, auth.ErrSessionRevoked),
		Of: func(ctx context.Context, c httpserver.Credentials) (auth.Caller, error) {
			token, err := bearerToken(c.Authorization())
			if err != nil {
				return auth.Caller{}, err
			}
			return svc.Authenticate(ctx, token)
		},
		User: func(caller auth.Caller) string { return caller.User.ID.String() },
	}
}

// client admits the clients of auth.clients, by HTTP Basic or in the form.
func (a *api) client() httpserver.Identity[string] {
	return httpserver.Identity[string]{
		Scheme: &httpserver.Scheme{
			Name: "basic", HTTP: "basic", InForm: true,
			Description: "The id and secret of a client of `auth.clients` (`client_secret_basic`), form-encoded " +
				"or not. They may be sent as `client_id` and `client_secret` in the form instead " +
				"(`client_secret_post`), but not both ways at once.",
		},
		Of: a.authenticateClient,
	}
}

// bearerToken takes the token out of the Authorization header (RFC 6750 §2.1). Tokens in the
// query or in a form are not accepted, since they end up in logs. A refusal says what the header looks like.
func bearerToken(header string) (string, error) {
	header = strings.Trim(header, " \t")
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
		return missing("Between Bearer and the token there must be a space and nothing else: Authorization: " +
			"Bearer TOKEN.")
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

// authenticateClient returns the id of the client of auth.clients that the request authenticates as: by HTTP Basic
// or in the form (RFC 6749 §2.3.1), but not both.
func (a *api) authenticateClient(ctx context.Context, c httpserver.Credentials) (id string, err error) {
	form, err := c.Form()
	if err != nil {
		return "", err
	}
	const how = "HTTP Basic (client_secret_basic), or client_id and client_secret in the form (client_secret_post)"
	refused := func(description string) (string, error) {
		return "", &httpserver.OAuthError{Status: http.StatusUnauthorized, Code: "invalid_client",
			Description: description}
	}
	confused := func(description string) (string, error) {
		return "", &httpserver.OAuthError{Status: http.StatusBadRequest, Code: "invalid_request",
			Description: description}
	}
	header := c.Authorization()
	scheme, encoded, _ := strings.Cut(header, " ")
	inForm, hasID := form["client_id"]
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
		if hasID && !slices.ContainsFunc(readings, func(r auth.ClientCredentials) bool { return r.ID == inForm }) {
			return confused("client_id is another client than the one in Authorization.")
		}
	case header != "":
		return refused("This takes the id and secret of a client, and no other scheme than Basic. Send " + how + ".")
	case hasID && hasSecret:
		readings = []auth.ClientCredentials{{ID: inForm, Secret: secret}}
	case hasID:
		return refused("client_secret is missing.")
	case hasSecret:
		return refused("client_id is missing.")
	default:
		return refused("Client authentication is missing. Send " + how + ".")
	}
	if id, ok := a.svc.AuthenticateClient(ctx, readings, deviceOf(c.Peer())); ok {
		return id, nil
	}
	return refused("The client is not known, or its secret is wrong.")
}

// basicReadings lists what a client may have meant by the text in HTTP Basic. By RFC 6749 §2.3.1
// it form-encodes id and secret first. Not every client does; then any colon may be the one between them,
// and + and % may stand for themselves.
func basicReadings(text string) []auth.ClientCredentials {
	const most = 16 // colons
	var readings []auth.ClientCredentials
	colons := 0
	for at := range len(text) {
		if text[at] != ':' {
			continue
		}
		if colons++; colons > most {
			break
		}
		for _, id := range formReadings(text[:at]) {
			for _, secret := range formReadings(text[at+1:]) {
				readings = append(readings, auth.ClientCredentials{ID: id, Secret: secret})
			}
		}
	}
	return readings
}

// formReadings is a text as it is and, if that differs, decoded.
func formReadings(text string) []string {
	if decoded, err := url.QueryUnescape(text); err == nil && decoded != text {
		return []string{text, decoded}
	}
	return []string{text}
}
