package auth

import (
	"context"
	"errors"
)

// LogoutRefresh ends the session of a refresh token. Any token that this service made for
// the session will do, an older one too: who signs out wants to be signed out. It is
// idempotent, and [ErrInvalidRefreshToken] is only for what was never such a token.
func (s *Service) LogoutRefresh(ctx context.Context, text string) error {
	t, err := s.codec.Parse(text)
	if err != nil {
		return ErrInvalidRefreshToken
	}
	return s.endSession(ctx, t.UserID(), t.SessionID(), ReasonLogout)
}

// LogoutAccess ends the session of an access token. It is idempotent: a token whose session
// has ended already is fine, as long as it has not expired.
func (s *Service) LogoutAccess(ctx context.Context, access string) error {
	caller, err := s.identify(ctx, access)
	if errors.Is(err, ErrSessionRevoked) { // the account is gone
		return nil
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, caller.User.ID, caller.SessionID, ReasonLogout)
}
