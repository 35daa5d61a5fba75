package verify

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
)

type contextKey struct{}

// FromContext returns the claims of the token that a request came with, behind
// [Verifier.Middleware].
func FromContext(ctx context.Context) (Claims, bool) {
	claims, ok := ctx.Value(contextKey{}).(Claims)
	return claims, ok
}

// Middleware lets requests with a good access token through to next, which finds the claims
// with [FromContext]. Others it answers as RFC 6750 asks: 401 with WWW-Authenticate, 400 for a
// request that cannot be understood, and 503 with Retry-After where the token could not be
// judged. It never answers 500.
func (v *Verifier) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, problem := bearer(r.Header)
		if problem != nil {
			problem.write(w)
			return
		}
		claims, err := v.Check(r.Context(), token)
		if err != nil {
			problemOf(err).write(w)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, claims)))
	})
}

// problem is an answer of RFC 6750 §3.
type problem struct {
	status            int
	code, description string
}

var (
	noToken   = &problem{http.StatusUnauthorized, "", "This needs an access token: Authorization: Bearer."}
	badHeader = &problem{http.StatusBadRequest, "invalid_request", "There is more than one Authorization header, or " +
		"it holds no token."}
)

// bearer takes the token out of the one Authorization header (RFC 6750 §2.1).
func bearer(h http.Header) (string, *problem) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", noToken
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	switch {
	case len(values) > 1:
		return "", badHeader
	case !strings.EqualFold(scheme, "Bearer"):
		return "", noToken
	}
	if token = strings.Trim(token, " "); token == "" {
		return "", badHeader
	}
	return token, nil
}

func problemOf(err error) *problem {
	if Unknowable(err) {
		return &problem{http.StatusServiceUnavailable, "temporarily_unavailable",
			"It cannot be known at the moment whether the access token is good. Try again."}
	}
	description := "The access token is not valid."
	switch {
	case errors.Is(err, ErrExpired):
		description = "The access token has expired."
	case errors.Is(err, ErrRevoked):
		description = "The session of the access token has ended."
	case errors.Is(err, ErrAudience):
		description = "The access token is for another service."
	}
	return &problem{http.StatusUnauthorized, "invalid_token", description}
}

func (p *problem) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	switch {
	case p.status == http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case p.code == "":
		h.Set("WWW-Authenticate", "Bearer")
	default:
		h.Set("WWW-Authenticate", `Bearer error="`+p.code+`", error_description="`+p.description+`"`)
	}
	w.WriteHeader(p.status)
	body := map[string]string{"error_description": p.description}
	if p.code != "" {
		body["error"] = p.code
	}
	_ = json.NewEncoder(w).Encode(body) // the client may have left
}
