package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Introspection is what RFC 7662 §2.2 says of a live token.
type Introspection struct {
	TokenType string // "access_token" or "refresh_token"
	Subject   uuid.UUID
	Username  string
	ClientID  string
	Issuer    string
	Audience  []string
	ID        uuid.UUID // jti; zero for a refresh token
	SessionID uuid.UUID
	IssuedAt  time.Time
	ExpiresAt time.Time
	AuthTime  time.Time
}

// CheckClient reports whether a client of /oauth2/* is who it says, in the same time for
// every wrong answer.
func (s *Service) CheckClient(id, secret string) bool {
	want, known := s.clients[id]
	if !known {
		want = make([]byte, sha256.Size)
	}
	got := sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(got[:], want) == 1 && known
}

// RefusedClient notes that somebody did not show to be a client of /oauth2/*.
func (s *Service) RefusedClient(id string, dev Device) {
	s.security.Warn("client_refused", zap.String("client_id", printable(id, 255)), zap.String("ip", dev.ip()))
}

// Introspect says what a token is worth now. False is all that is said of one that is not
// live, for whatever reason.
func (s *Service) Introspect(ctx context.Context, text string) (Introspection, bool, error) {
	if strings.HasPrefix(text, refreshPrefix) {
		return s.introspectRefresh(ctx, text)
	}
	caller, err := s.Authenticate(ctx, text)
	if errors.Is(err, ErrInvalidToken) || errors.Is(err, ErrSessionRevoked) {
		return Introspection{}, false, nil
	}
	if err != nil {
		return Introspection{}, false, err
	}
	c := caller.claims
	return Introspection{
		TokenType: "access_token", Subject: c.Subject, Username: caller.User.Username, ClientID: c.ClientID, Issuer: c.Issuer,
		Audience: c.Audience, ID: c.ID, SessionID: c.SessionID, IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt, AuthTime: c.AuthTime,
	}, true, nil
}

func (s *Service) introspectRefresh(ctx context.Context, text string) (Introspection, bool, error) {
	t, err := s.codec.Parse(text)
	if err != nil {
		return Introspection{}, false, nil
	}
	st, err := s.standings.of(ctx, t.UserID(), t.SessionID())
	if errors.Is(err, ErrUserNotFound) {
		return Introspection{}, false, nil
	}
	if err != nil {
		return Introspection{}, false, err
	}
	rec, err := s.sessions.Get(ctx, t.UserID(), t.SessionID())
	if errors.Is(err, session.ErrNotFound) {
		return Introspection{}, false, nil
	}
	if err != nil {
		return Introspection{}, false, err
	}
	if !rec.Accepts(t) || !st.live(rec.ID, rec.Epoch) || s.tooOld(rec.ID) {
		return Introspection{}, false, nil
	}
	return Introspection{
		TokenType: "refresh_token", Subject: rec.UserID, Username: st.user.Username, ClientID: s.cfg.Token.ClientID,
		Issuer: s.cfg.Token.Issuer, SessionID: rec.ID, IssuedAt: rec.LastUsedAt, ExpiresAt: rec.IdleExpiresAt, AuthTime: rec.AuthTime,
	}, true, nil
}

// Revoke ends the session that a token of either kind belongs to, on behalf of a client
// (RFC 7009). A token that means nothing is fine: the client wants it to mean nothing.
func (s *Service) Revoke(ctx context.Context, text string) error {
	if strings.HasPrefix(text, refreshPrefix) {
		t, err := s.codec.Parse(text)
		if err != nil {
			return nil
		}
		return s.endSession(ctx, t.UserID(), t.SessionID(), ReasonTokenRevoked)
	}
	caller, err := s.identify(ctx, text)
	if errors.Is(err, ErrInvalidToken) || errors.Is(err, ErrSessionRevoked) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, caller.User.ID, caller.SessionID, ReasonTokenRevoked)
}
