package authhttp

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// Tokens is the answer to a sign-in or a refresh.
type Tokens struct {
	AccessToken           string    `json:"access_token" example:"eyJhbGciOiJFUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.e30.c2ln" doc:"A JWT (RFC 9068) for the Authorization header."`
	AccessTokenExpiresAt  time.Time `json:"access_token_expires_at" example:"2026-01-02T20:04:05Z"`
	RefreshToken          string    `json:"refresh_token,omitempty" example:"art_AQ" doc:"Opaque. Keep it in one place: each refresh replaces it. Absent if it is kept in the cookie."`
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

// RefreshRequest is the current refresh token, or an empty object where it comes as a cookie.
type RefreshRequest struct {
	RefreshToken *string `json:"refresh_token,omitempty" example:"art_AQ" doc:"Leave it out if it is kept in the cookie."`
}

type refreshInput struct {
	Peer httpserver.Peer
	Page httpserver.Browser
	Body RefreshRequest
}

// refreshed is the answer to a refresh.
type refreshed struct {
	Replayed string       `header:"Auth-Refresh-Replayed" enum:"true" doc:"Present if the token had been replaced a moment ago and these are the newest tokens of its session."`
	Cookie   *http.Cookie `cookie:"__Host-authctl" refused:"401" doc:"The new refresh token, if the old one came in the cookie."`
	Body     Tokens
}

func (a *api) refresh(ctx context.Context, in refreshInput) (refreshed, error) {
	token, fromCookie, err := a.pages.presented(in.Body.RefreshToken, in.Page)
	if err != nil {
		return refreshed{}, err
	}
	refresh := a.svc.Refresh
	if fromCookie {
		refresh = a.svc.RefreshShared
	}
	t, err := refresh(ctx, token, deviceOf(in.Peer))
	if err != nil && fromCookie && auth.IsWorthless(err) {
		return refreshed{Cookie: a.takeBack()}, err
	}
	if err != nil {
		return refreshed{}, err
	}
	answer := refreshed{Body: tokensOf(t)}
	if fromCookie {
		answer.Cookie, answer.Body.RefreshToken = a.keep(t), ""
	}
	if t.Replayed {
		answer.Replayed = "true"
	}
	return answer, nil
}

// LogoutRequest is a refresh token of the session. Without one it is the session of the access token, or
// else of the cookie.
type LogoutRequest struct {
	RefreshToken string `json:"refresh_token,omitempty" example:"art_AQ"`
}

type logoutInput struct {
	Authorization string `header:"Authorization"`
	Page          httpserver.Browser
	Body          LogoutRequest `body:"optional"`
}

// signedOut is the answer to signing out.
type signedOut struct {
	Cookie *http.Cookie `cookie:"__Host-authctl" refused:"401" doc:"Deleted, if it is of the session that ended."`
}

func (a *api) logout(ctx context.Context, in logoutInput) (signedOut, error) {
	switch {
	case in.Body.RefreshToken != "":
		token, _, err := a.pages.presented(&in.Body.RefreshToken, in.Page)
		if err != nil {
			return signedOut{}, err
		}
		return signedOut{}, a.svc.LogoutRefresh(ctx, token)
	case in.Authorization == "" && in.Page.JSON() && len(a.pages.cookies(in.Page)) > 0:
		return a.logoutCookie(ctx, in.Page)
	}
	token, err := bearerToken(in.Authorization)
	if err != nil {
		return signedOut{}, err
	}
	sid, err := a.svc.LogoutAccess(ctx, token)
	if err == nil && a.holds(in.Page, sid) {
		return signedOut{a.takeBack()}, nil
	}
	return signedOut{}, err
}

// logoutCookie ends the session of the cookie.
func (a *api) logoutCookie(ctx context.Context, page httpserver.Browser) (signedOut, error) {
	token, _, err := a.pages.presented(nil, page)
	if err != nil {
		return signedOut{}, err
	}
	if err = a.svc.LogoutRefresh(ctx, token); err != nil && !auth.IsWorthless(err) {
		return signedOut{}, err
	}
	return signedOut{a.takeBack()}, err
}

// holds reports whether the browser keeps this session in the cookie; then it also gets new tokens there. It
// authenticates nobody.
func (a *api) holds(page httpserver.Browser, sid uuid.UUID) bool {
	return slices.ContainsFunc(a.pages.cookies(page), func(token string) bool { return a.svc.IsOfSession(token, sid) })
}

// Sessions lists the signed-in devices.
type Sessions struct {
	Sessions []Session `json:"sessions"`
}

// Session is one signed-in device.
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
