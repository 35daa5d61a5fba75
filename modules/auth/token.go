package auth

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/token"
)

// refreshPrefix begins every refresh token, and no access token.
const refreshPrefix = "art_"

// IsRefreshToken reports whether a text has the form of a refresh token, good or not, rather than
// that of an access token.
func IsRefreshToken(text string) bool { return strings.HasPrefix(text, refreshPrefix) }

// Tokens are the answer to a sign-in or a refresh.
type Tokens struct {
	AccessToken           string
	AccessTokenExpiresAt  time.Time
	ExpiresIn             time.Duration // of the access token, from now
	RefreshToken          string
	RefreshTokenExpiresAt time.Time // moves with each refresh, up to the session's end
	RefreshExpiresIn      time.Duration
	SessionID             uuid.UUID

	// Replayed says that the refresh token was replaced a moment ago, and this is its successor again.
	Replayed bool
	// Device is set by a sign-in. Presented as [Device.Token] at the next one, it spares its owner
	// the delays that failures of strangers cause.
	Device string
}

// issue signs an access token for the session and makes the answer. No token outlives its session.
func (s *Service) issue(ctx context.Context, sess session.Session, refresh session.Token) (Tokens, error) {
	now := s.now().UTC().Truncate(time.Second)
	expires := now.Add(s.cfg.Token.AccessTTL)
	if end := sess.IdleExpiresAt.Truncate(time.Second); end.Before(expires) {
		expires = end
	}
	claims := token.Claims{
		Issuer: s.cfg.Token.Issuer, Audience: s.cfg.Token.Audience, Subject: sess.UserID,
		ID: newID(), SessionID: sess.ID, ClientID: s.cfg.Token.ClientID,
		IssuedAt: now, ExpiresAt: expires, AuthTime: sess.AuthTime, SessionEpoch: sess.Epoch,
	}
	access, err := s.keys.Sign(ctx, claims)
	if err != nil {
		return Tokens{}, fmt.Errorf("sign access token: %w", err)
	}
	return Tokens{
		AccessToken: access, AccessTokenExpiresAt: claims.ExpiresAt, ExpiresIn: max(0, expires.Sub(now)),
		RefreshToken: refresh.Encode(), RefreshTokenExpiresAt: sess.IdleExpiresAt,
		RefreshExpiresIn: max(0, sess.IdleExpiresAt.Sub(now)), SessionID: sess.ID,
	}, nil
}
