package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/tracing"
)

// Introspection is what RFC 7662 §2.2 says of a live token.
type Introspection struct {
	Use       string // "access_token" or "refresh_token"
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

// ClientCredentials are one reading of the credentials that a client of /oauth2/* sent.
type ClientCredentials struct{ ID, Secret string }

// AuthenticateClient reports whether one of the readings of a client's credentials is right, and
// whose they are. It takes as long for a client that does not exist. A refusal goes into the
// security log.
func (s *Service) AuthenticateClient(ctx context.Context, readings []ClientCredentials, from Device) (id string,
	ok bool) {
	named := ""
	for _, c := range readings {
		want, known := s.clients[c.ID]
		if !known {
			want = make([]byte, sha256.Size)
		}
		got := sha256.Sum256([]byte(c.Secret))
		if subtle.ConstantTimeCompare(got[:], want) == 1 && known {
			return c.ID, true
		}
		if known || named == "" {
			named = c.ID
		}
	}
	s.security.Warn("client_refused", tracing.ID(ctx), zap.String("client_id", Printable(named, 255)),
		zap.String("ip", from.IPText()))
	return "", false
}

// HasClients reports whether any client may call /oauth2/*.
func (s *Service) HasClients() bool { return len(s.clients) > 0 }

// Introspect describes a live token. For any other one it returns false, and no reason.
func (s *Service) Introspect(ctx context.Context, text string) (Introspection, bool, error) {
	if IsRefreshToken(text) {
		return s.introspectRefresh(ctx, text)
	}
	caller, err := s.identify(ctx, text)
	if errors.Is(err, ErrInvalidToken) || errors.Is(err, ErrSessionRevoked) || err == nil && !caller.live() {
		return Introspection{}, false, nil
	}
	if err != nil {
		return Introspection{}, false, err
	}
	c := caller.claims
	return Introspection{
		Use: "access_token", Subject: c.Subject, Username: caller.User.Username, ClientID: c.ClientID, Issuer: c.Issuer,
		Audience: c.Audience, ID: c.ID, SessionID: c.SessionID, IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt,
		AuthTime: c.AuthTime,
	}, true, nil
}

func (s *Service) introspectRefresh(ctx context.Context, text string) (Introspection, bool, error) {
	t, err := s.codec.Parse(text)
	if err != nil {
		return Introspection{}, false, nil
	}
	st, err := s.states.of(ctx, t.UserID(), t.SessionID())
	var rec session.Session
	if err == nil {
		rec, err = s.sessions.Get(ctx, t.UserID(), t.SessionID())
	}
	if errors.Is(err, ErrUserNotFound) || errors.Is(err, session.ErrNotFound) {
		return Introspection{}, false, nil
	}
	if err != nil {
		return Introspection{}, false, err
	}
	if !rec.Accepts(t) || !st.live(rec.ID, rec.Epoch) || s.mayRefresh(st, rec.ID) != nil {
		return Introspection{}, false, nil
	}
	return Introspection{
		Use: "refresh_token", Subject: rec.UserID, Username: st.user.Username, ClientID: s.cfg.Token.ClientID,
		Issuer: s.cfg.Token.Issuer, SessionID: rec.ID, IssuedAt: rec.LastUsedAt, ExpiresAt: rec.IdleExpiresAt,
		AuthTime: rec.AuthTime,
	}, true, nil
}
