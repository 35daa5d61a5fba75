package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/token"
)

// Caller is who an access token speaks for.
type Caller struct {
	User      User
	SessionID uuid.UUID
	ExpiresAt time.Time // of the access token
	claims    token.Claims
	standing  standing
}

// Authenticate says who an access token speaks for. It returns [ErrInvalidToken] for a token
// that was never good or is no longer, and [ErrSessionRevoked] when its session has ended,
// which the database is asked each time: ended means ended, on every node, at once.
func (s *Service) Authenticate(ctx context.Context, access string) (Caller, error) {
	caller, err := s.identify(ctx, access)
	if err == nil && !caller.standing.live(caller.SessionID, caller.claims.SessionEpoch) {
		return Caller{}, ErrSessionRevoked
	}
	return caller, err
}

// identify is [Service.Authenticate] without the question whether the session goes on.
func (s *Service) identify(ctx context.Context, access string) (Caller, error) {
	claims, err := s.verifier.Verify(access)
	if errors.Is(err, token.ErrExpired) {
		return Caller{}, ErrInvalidToken.Detail("The access token has expired.")
	}
	if err != nil {
		return Caller{}, ErrInvalidToken
	}
	st, err := s.standings.of(ctx, claims.Subject, claims.SessionID)
	if errors.Is(err, ErrUserNotFound) {
		return Caller{}, ErrSessionRevoked
	}
	if err != nil {
		return Caller{}, fmt.Errorf("authenticate: %w", err)
	}
	return Caller{User: st.user, SessionID: claims.SessionID, ExpiresAt: claims.ExpiresAt, claims: claims, standing: st}, nil
}

// JWKS returns the public signing keys as a JWK set (RFC 7517) and its entity tag.
func (s *Service) JWKS() (body []byte, etag string) { return s.keys.JWKS() }
