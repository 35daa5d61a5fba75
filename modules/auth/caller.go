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
	state     sessionState
}

func (c Caller) live() bool { return c.state.live(c.SessionID, c.claims.SessionEpoch) }

// identify is [Service.Authenticate] without the check that the session is live.
func (s *Service) identify(ctx context.Context, access string) (Caller, error) {
	claims, err := s.verifier.Verify(access)
	if errors.Is(err, token.ErrExpired) {
		return Caller{}, ErrInvalidToken.Detail("The access token has expired.")
	}
	if err != nil {
		return Caller{}, ErrInvalidToken
	}
	st, err := s.states.of(ctx, claims.Subject, claims.SessionID)
	if errors.Is(err, ErrUserNotFound) {
		return Caller{}, ErrSessionRevoked
	}
	if err != nil {
		return Caller{}, fmt.Errorf("authenticate: %w", err)
	}
	return Caller{User: st.user, SessionID: claims.SessionID, ExpiresAt: claims.ExpiresAt, claims: claims,
		state: st}, nil
}
