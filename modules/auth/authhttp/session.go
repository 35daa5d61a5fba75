package authhttp

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// Tokens is the answer to a sign-in or a refresh.
type Tokens struct {
	AccessToken           string    `json:"access_token" example:"eyJhbGciOiJFUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.e30.c2ln" doc:"A JWT (RFC 9068) for the Authorization header."`
	AccessTokenExpiresAt  time.Time `json:"access_token_expires_at" example:"2026-01-02T20:04:05Z"`
	RefreshToken          string    `json:"refresh_token" example:"art_AQ" doc:"Opaque. Keep it in one place: each refresh replaces it."`
	RefreshTokenExpiresAt time.Time `json:"refresh_token_expires_at" example:"2026-01-07T15:04:05Z" doc:"Each refresh extends it, up to the session's end."`
	TokenType             string    `json:"token_type" example:"Bearer" enum:"Bearer"`
	ExpiresIn             int64     `json:"expires_in" example:"18000" minimum:"0" doc:"Lifetime of the access token in seconds."`
	SessionID             uuid.UUID `json:"session_id" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c" doc:"It stays the same as long as this device is signed in."`
}

func tokensOf(t auth.Tokens) Tokens {
	return Tokens{
		AccessToken: t.AccessToken, AccessTokenExpiresAt: t.AccessTokenExpiresAt,
		RefreshToken: t.RefreshToken, RefreshTokenExpiresAt: t.RefreshTokenExpiresAt,
		TokenType: "Bearer", ExpiresIn: int64(t.ExpiresIn / time.Second), SessionID: t.SessionID,
	}
}

// RefreshRequest is the current refresh token.
type RefreshRequest struct {
	RefreshToken *string `json:"refresh_token" example:"art_AQ"`
}

type refreshInput struct {
	Peer httpserver.Peer
	Body RefreshRequest
}

// refreshed is the answer to a refresh.
type refreshed struct {
	Replayed string `header:"Auth-Refresh-Replayed" enum:"true" doc:"Present if the token had been replaced a moment ago and these are the newest tokens of its session."`
	Body     Tokens
}

func (a *api) refresh(ctx context.Context, in refreshInput) (refreshed, error) {
	t, err := a.svc.Refresh(ctx, *in.Body.RefreshToken, deviceOf(in.Peer))
	if err != nil {
		return refreshed{}, err
	}
	answer := refreshed{Body: tokensOf(t)}
	if t.Replayed {
		answer.Replayed = "true"
	}
	return answer, nil
}

// LogoutRequest is a refresh token of the session. Without one the access token says which.
type LogoutRequest struct {
	RefreshToken string `json:"refresh_token,omitempty" example:"art_AQ"`
}

type logoutInput struct {
	Authorization string        `header:"Authorization"`
	Body          LogoutRequest `body:"optional"`
}

func (a *api) logout(ctx context.Context, in logoutInput) error {
	if in.Body.RefreshToken != "" {
		return a.svc.LogoutRefresh(ctx, in.Body.RefreshToken)
	}
	token, err := bearerToken(in.Authorization)
	if err != nil {
		return err
	}
	return a.svc.LogoutAccess(ctx, token)
}

// Sessions are the devices that are signed in.
type Sessions struct {
	Sessions []Session `json:"sessions"`
}

// Session is one device that is signed in.
type Session struct {
	ID         uuid.UUID `json:"id" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c"`
	DeviceName string    `json:"device_name" example:"Alice's phone"`
	UserAgent  string    `json:"user_agent" example:"Mozilla/5.0"`
	IP         string    `json:"ip" example:"192.0.2.7" doc:"The address that last used the session, IPv4 or IPv6."`
	CreatedAt  time.Time `json:"created_at" example:"2026-01-02T15:04:05Z"`
	LastUsedAt time.Time `json:"last_used_at" example:"2026-01-02T15:04:05Z"`
	ExpiresAt  time.Time `json:"expires_at" example:"2026-01-07T15:04:05Z" doc:"When the session ends unless it is refreshed first."`
	Current    bool      `json:"current" example:"true" doc:"The session of this request."`
}

func (a *api) listSessions(ctx context.Context, who auth.Caller, _ struct{}) (Sessions, error) {
	list, err := a.svc.Sessions(ctx, who)
	if err != nil {
		return Sessions{}, err
	}
	answer := Sessions{Sessions: make([]Session, len(list))}
	for i, s := range list {
		answer.Sessions[i] = Session{
			ID: s.ID, DeviceName: s.DeviceName, UserAgent: s.UserAgent, IP: s.IP,
			CreatedAt: s.CreatedAt, LastUsedAt: s.LastUsedAt, ExpiresAt: s.ExpiresAt, Current: s.Current,
		}
	}
	return answer, nil
}

type endSessionsInput struct {
	Except string `query:"except" enum:"current" doc:"Keeps the session of this request."`
}

func (a *api) endSessions(ctx context.Context, who auth.Caller, in endSessionsInput) error {
	return a.svc.EndSessions(ctx, who, in.Except == "current")
}

type endSessionInput struct {
	ID string `path:"id" format:"uuid" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c" doc:"The session's id, from the list of sessions."`
}

func (a *api) endSession(ctx context.Context, who auth.Caller, in endSessionInput) error {
	sid, err := uuid.Parse(in.ID)
	if err != nil || in.ID != sid.String() {
		return auth.ErrSessionNotFound
	}
	return a.svc.EndSession(ctx, who, sid)
}
