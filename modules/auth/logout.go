package auth

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

// LogoutRefresh ends the session of a refresh token. Any that this service made will do, also an
// older one. It is idempotent; [ErrInvalidRefreshToken] is for what never was such a token.
func (s *Service) LogoutRefresh(ctx context.Context, text string) error {
	t, err := s.codec.Parse(text)
	if err != nil {
		return ErrInvalidRefreshToken
	}
	return s.endSession(ctx, t.UserID(), t.SessionID(), ReasonLogout)
}

// LogoutAccess ends the session of an access token that has not expired, and returns its id; a nil
// one if the account is gone. It is idempotent.
func (s *Service) LogoutAccess(ctx context.Context, access string) (uuid.UUID, error) {
	caller, err := s.identify(ctx, access)
	if errors.Is(err, ErrSessionRevoked) { // the account is gone
		return uuid.Nil, nil
	}
	if err != nil {
		return uuid.Nil, err
	}
	return caller.SessionID, s.endSession(ctx, caller.User.ID, caller.SessionID, ReasonLogout)
}
