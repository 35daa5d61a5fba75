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

// IsRefreshToken reports whether a text has the form of a refresh token, good or not, rather than
// that of an access token.
func IsRefreshToken(text string) bool { return strings.HasPrefix(text, "art_") }

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
	// DeviceToken is set by a sign-in. Presented as [Device.Token] at the next one, it spares its owner
	// the delays that failures of strangers cause.
	DeviceToken string
}

// issuer issues the tokens of one request.
type issuer struct {
	signer token.Key
	at     time.Time
	s      *Service
}

// issuer is made before the database is asked whether the session is live, or before its beginning commits. The
// longest life of tokens is stored, and counts from here, however long the request takes. So no token outlives
// what whoever ends the session meanwhile announces.
func (s *Service) issuer(ctx context.Context) (issuer, error) {
	at := s.now().UTC().Truncate(time.Second)
	signer, err := s.keys.Signer(ctx)
	if err != nil {
		return issuer{}, fmt.Errorf("prepare to sign an access token: %w", err)
	}
	return issuer{signer, at, s}, nil
}

// issue signs an access token for the session and makes the answer. No token outlives its session.
func (i issuer) issue(sess session.Session, refresh session.Token) (Tokens, error) {
	s := i.s
	issued := i.issuedAt(sess)
	expires := issued.Add(s.cfg.Token.AccessTTL)
	if end := sess.IdleExpiresAt.Truncate(time.Second); end.Before(expires) {
		expires = end
	}
	claims := token.Claims{
		Issuer: s.cfg.Token.Issuer, Audience: s.cfg.Token.Audience, Subject: sess.UserID,
		ID: newID(), SessionID: sess.ID, ClientID: s.cfg.Token.ClientID,
		IssuedAt: issued, ExpiresAt: expires, AuthTime: sess.AuthTime, SessionEpoch: sess.Epoch,
	}
	access, err := i.signer.Sign(claims)
	if err != nil {
		return Tokens{}, fmt.Errorf("sign access token: %w", err)
	}
	return Tokens{
		AccessToken: access, AccessTokenExpiresAt: claims.ExpiresAt, ExpiresIn: max(0, expires.Sub(issued)),
		RefreshToken: refresh.Encode(), RefreshTokenExpiresAt: sess.IdleExpiresAt,
		RefreshExpiresIn: max(0, sess.IdleExpiresAt.Sub(issued)), SessionID: sess.ID,
	}, nil
}

// issuedAt is the time of the issuer. When the second changes between that and the beginning of the session, it
// is the next one: no token may say that it was issued before its owner signed in. What ends is remembered
// for minutes longer than tokens live.
func (i issuer) issuedAt(sess session.Session) time.Time {
	const begun = 10 * time.Second // a request takes no longer, unless the process was stopped
	now, signedIn := i.s.now().UTC().Truncate(time.Second), sess.AuthTime.UTC().Truncate(time.Second)
	if signedIn.After(now) { // by another clock
		signedIn = now
	}
	if signedIn.After(i.at) && signedIn.Sub(i.at) <= begun {
		return signedIn
	}
	return i.at
}
