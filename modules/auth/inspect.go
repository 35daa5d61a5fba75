package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/token"
)

// TokenReport describes a token to a person: what is in it, and whether it is valid.
type TokenReport struct {
	Header  map[string]any `json:"header,omitempty"`
	Claims  map[string]any `json:"claims,omitempty"`
	Payload []byte         `json:"payload,omitempty"` // of a bare JWS whose payload is not a JSON object
	Valid   bool           `json:"valid"`
	Verdict string         `json:"verdict"`
}

// KeySet is public keys from a JWK set, to verify with.
type KeySet = token.Set

// ParseKeySet reads a JWK set (RFC 7517), leaving out keys of kinds not used here.
func ParseKeySet(data []byte) (KeySet, error) { return token.ParseJWKS(data) }

// Expectation is what a token inspected offline must say. Empty fields accept anything.
type Expectation struct{ Issuer, Audience string }

// DecodeToken takes a token apart without verifying anything.
func DecodeToken(text string) TokenReport {
	r, err := decode(text)
	if err == nil {
		r.Verdict = "not verified: give the keys with --jwks FILE or URL"
	}
	return r
}

// InspectToken verifies an access token with the keys of a JWK set. Whether its session is live
// cannot be known offline.
func InspectToken(text string, keys KeySet, want Expectation, now time.Time) TokenReport {
	r, err := decode(text)
	if err != nil {
		return r
	}
	if want.Issuer == "" {
		want.Issuer, _ = r.Claims["iss"].(string)
	}
	if want.Audience == "" {
		want.Audience = firstAudience(r.Claims["aud"])
	}
	v := token.Verifier{Issuer: want.Issuer, Audiences: []string{want.Audience},
		Now: func() time.Time { return now }, Key: keys.Key}
	claims, err := v.Verify(text)
	r.describe(claims, err, now)
	if errors.Is(err, token.ErrUnknownKey) && keys.Empty() {
		r.Verdict += "; the JWK set has no key, as with HS256, whose tokens can only be verified with the secret"
	}
	return r
}

// InspectJWS verifies the signature of a bare JWS (RFC 7515), with no rules about claims.
func InspectJWS(text string, keys KeySet) TokenReport {
	r, err := decode(text)
	if err != nil {
		return r
	}
	if _, err := token.VerifyJWS(text, keys); err != nil {
		r.Verdict = err.Error()
		return r
	}
	r.Valid, r.Verdict = true, "valid signature"
	return r
}

// InspectToken verifies a token of either kind with the keys and the sessions of this
// service.
func (s *Service) InspectToken(ctx context.Context, text string) (TokenReport, error) {
	if IsRefreshToken(text) {
		return s.inspectRefresh(ctx, text)
	}
	r, err := decode(text)
	if err != nil {
		return r, nil
	}
	claims, err := s.verifier.Verify(text)
	r.describe(claims, err, s.now())
	if err != nil {
		return r, nil
	}
	switch caller, err := s.identify(ctx, text); {
	case errors.Is(err, ErrSessionRevoked), err == nil && !caller.live():
		r.Valid, r.Verdict = false, "session revoked"
	case err != nil:
		return r, err
	}
	return r, nil
}

func (s *Service) inspectRefresh(ctx context.Context, text string) (TokenReport, error) {
	t, err := s.codec.Parse(text)
	if err != nil {
		return TokenReport{Verdict: "not a refresh token of this service, or made under another secret"}, nil
	}
	r := TokenReport{Claims: map[string]any{"sub": t.UserID(), "sid": t.SessionID(), "generation": t.Generation()}}
	st, err := s.states.of(ctx, t.UserID(), t.SessionID())
	if errors.Is(err, ErrUserNotFound) {
		r.Verdict = "the account is gone"
		return r, nil
	}
	if err != nil {
		return r, err
	}
	refused := s.mayRefresh(st, t.SessionID())
	rec, err := s.sessions.Get(ctx, t.UserID(), t.SessionID())
	switch {
	case errors.Is(refused, ErrSessionRevoked), err == nil && !st.live(rec.ID, rec.Epoch),
		errors.Is(err, session.ErrNotFound) && st.endedWithAll(t.SessionID()):
		r.Verdict = "session revoked"
	case errors.Is(err, session.ErrNotFound):
		r.Verdict = "session expired, or ended because a refresh token was used twice"
	case err != nil:
		return r, err
	case refused != nil:
		r.Verdict = "session expired"
	case !rec.Accepts(t):
		r.Verdict = fmt.Sprintf("replaced: the session is at generation %d", rec.Generation)
	default:
		r.Valid, r.Verdict = true, "valid until "+rec.IdleExpiresAt.Format(time.RFC3339)+
			", unless it is refreshed before"
	}
	return r, nil
}

func (r *TokenReport) describe(claims token.Claims, err error, now time.Time) {
	refusal, refused := errors.AsType[*token.Refusal](err)
	switch {
	case err == nil:
		r.Valid, r.Verdict = true, "valid, expires in "+claims.ExpiresAt.Sub(now).Round(time.Second).String()
	case refused && errors.Is(err, token.ErrExpired):
		r.Verdict = "expired " + now.Sub(refusal.At).Round(time.Second).String() + " ago"
	case refused && !refusal.At.IsZero():
		r.Verdict = refusal.Reason.Error() + ": only in " + refusal.At.Sub(now).Round(time.Second).String()
	default:
		r.Verdict = err.Error()
	}
}

func decode(text string) (TokenReport, error) {
	d, err := token.Inspect(text)
	if err != nil {
		return TokenReport{Verdict: err.Error()}, err
	}
	r := TokenReport{Header: d.Header, Claims: d.Claims}
	if d.Claims == nil {
		r.Payload = d.Payload
	}
	return r, nil
}

func firstAudience(aud any) string {
	switch aud := aud.(type) {
	case string:
		return aud
	case []any:
		if i := slices.IndexFunc(aud, func(v any) bool { _, ok := v.(string); return ok }); i >= 0 {
			return aud[i].(string)
		}
	}
	return ""
}

// Time returns the moment that a claim holds in seconds since 1970 (RFC 7519 §2 NumericDate).
func (r TokenReport) Time(claim string) (time.Time, bool) {
	n, ok := r.Claims[claim].(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 || seconds > 253402300799 { // the end of year 9999
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}
