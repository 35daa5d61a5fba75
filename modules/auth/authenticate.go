package auth

import (
	"context"
)

// Authenticate says who an access token speaks for. It returns [ErrInvalidToken] for a token
// that was never good or is no longer, and [ErrSessionRevoked] when its session has ended,
// which the database is asked each time: ended means ended, on every node, at once.
func (s *Service) Authenticate(ctx context.Context, access string) (Caller, error) {
	caller, err := s.identify(ctx, access)
	if err == nil && !caller.live() {
		return Caller{}, ErrSessionRevoked
	}
	return caller, err
}

// JWKS returns the public signing keys as a JWK set (RFC 7517) and its entity tag.
func (s *Service) JWKS() (body []byte, etag string) { return s.keys.JWKS() }
