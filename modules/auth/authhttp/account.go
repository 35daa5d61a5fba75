package authhttp

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

// RegisterRequest is the body of a registration.
type RegisterRequest struct {
	Username   *string `json:"username" example:"alice" minLength:"3" maxLength:"255" doc:"Kept as typed, compared without case."`
	Password   *string `json:"password" example:"correct horse battery staple" format:"password" minLength:"8" maxLength:"256" doc:"Length counts Unicode code points after NFC. The minimum is a setting; 8 is its default."`
	Email      string  `json:"email,omitempty" example:"alice@example.com" maxLength:"254" doc:"Becomes a contact, and gets a code that verifies it. If absent, a username that is an address may take its place."`
	DeviceName string  `json:"device_name,omitempty" example:"Alice's phone" maxLength:"100" doc:"Shown in the list of sessions; derived from the user agent if absent."`
	Transport  *string `json:"transport,omitempty" enum:"body,cookie" doc:"Where the refresh token goes: body (the default), or cookie for pages in a browser, which no script can read."`
}

type registerInput struct {
	fromDevice
	Language string `header:"Accept-Language" example:"de-AT,de;q=0.9" doc:"Messages to the email are in the first of these languages that there are templates for."`
	Page     httpserver.Browser
	Body     RegisterRequest
}

// Verification is a code that was sent to an address.
type Verification struct {
	ChallengeID string `json:"challenge_id" format:"uuid" example:"7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1" doc:"Send it with the code to /api/v1/auth/verify."`
}

// registered is the answer to a registration.
type registered struct {
	DeviceToken string        `header:"Auth-Device" example:"adt_AQ" doc:"Send it with the next sign-in from this device."`
	Cookie      *http.Cookie  `cookie:"authctl_device" doc:"The same token for browsers on the same site."`
	Refresh     *http.Cookie  `cookie:"__Host-authctl" doc:"The refresh token, if it is kept in the cookie."`
	Waits       *Verification `status:"202" doc:"The account is created, and nobody is signed in: where contact.required is verified, sign-in waits until the address is verified. A code and a link were sent to it."`
	Body        Tokens
}

func (a *api) register(ctx context.Context, in registerInput) (registered, error) {
	cookie, err := a.pages.wanted(in.Body.Transport, in.Page)
	if err != nil {
		return registered{}, err
	}
	who := auth.Credentials{Username: *in.Body.Username, Password: *in.Body.Password}
	t, err := a.svc.Register(ctx, who, in.device(in.Body.DeviceName),
		auth.NewContact{Email: in.Body.Email, Language: in.Language})
	if waits, ok := errors.AsType[*fault.Fault](err); ok && waits.ChallengeID != "" {
		return registered{Waits: &Verification{ChallengeID: waits.ChallengeID}}, nil
	}
	if err != nil {
		return registered{}, err
	}
	answer := a.signedIn(t, cookie)
	return registered{
		DeviceToken: answer.DeviceToken, Cookie: answer.Cookie, Refresh: answer.Refresh, Body: answer.Body,
	}, nil
}

// LoginRequest is the body of a sign-in. Its values may have any form: those of imported accounts do.
type LoginRequest struct {
	Username   *string `json:"username" example:"alice" doc:"White space at both ends is ignored."`
	Password   *string `json:"password" example:"correct horse battery staple" format:"password"`
	DeviceName string  `json:"device_name,omitempty" example:"Alice's phone" maxLength:"100" doc:"Shown in the list of sessions; derived from the user agent if absent."`
	Transport  *string `json:"transport,omitempty" enum:"body,cookie" doc:"Where the refresh token goes: body (the default), or cookie for pages in a browser, which no script can read."`
}

type loginInput struct {
	fromDevice
	Page httpserver.Browser
	Body LoginRequest
}

func (a *api) login(ctx context.Context, in loginInput) (signedIn, error) {
	cookie, err := a.pages.wanted(in.Body.Transport, in.Page)
	if err != nil {
		return signedIn{}, err
	}
	who := auth.Credentials{Username: *in.Body.Username, Password: *in.Body.Password}
	t, err := a.svc.Login(ctx, who, in.device(in.Body.DeviceName))
	if err != nil {
		return signedIn{}, err
	}
	return a.signedIn(t, cookie), nil
}

// Me is the account as its owner sees it.
type Me struct {
	ID                uuid.UUID   `json:"id" example:"0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10" doc:"Never used for another account."`
	Username          string      `json:"username" example:"alice" doc:"As it was typed."`
	Status            auth.Status `json:"status" example:"active" enum:"active,disabled"`
	CreatedAt         time.Time   `json:"created_at" example:"2026-01-02T15:04:05Z"`
	UpdatedAt         time.Time   `json:"updated_at" example:"2026-01-02T15:04:05Z"`
	PasswordChangedAt time.Time   `json:"password_changed_at" example:"2026-01-02T15:04:05Z"`
	SessionID         uuid.UUID   `json:"session_id" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c" doc:"The session of this request."`
}

func (a *api) me(_ context.Context, who auth.Caller, _ struct{}) (Me, error) {
	u := who.User
	return Me{
		ID: u.ID, Username: u.Username, Status: u.Status, CreatedAt: u.CreatedAt, UpdatedAt: u.UpdatedAt,
		PasswordChangedAt: u.PasswordChangedAt, SessionID: who.SessionID,
	}, nil
}

// PasswordProof is the password, typed again.
type PasswordProof struct {
	Password *string `json:"password" example:"correct horse battery staple" format:"password"`
}

type deleteMeInput struct {
	fromDevice
	Body PasswordProof
}

func (a *api) deleteMe(ctx context.Context, who auth.Caller, in deleteMeInput) error {
	return a.svc.DeleteOwn(ctx, who, *in.Body.Password, in.device(""))
}

// PasswordChange is the current password and the new one.
type PasswordChange struct {
	CurrentPassword *string `json:"current_password" example:"correct horse battery staple" format:"password"`
	NewPassword     *string `json:"new_password" example:"staple battery horse correct" format:"password" minLength:"8" maxLength:"256" doc:"The rules of registration apply."`
}

type changePasswordInput struct {
	fromDevice
	Page httpserver.Browser
	Body PasswordChange
}

func (a *api) changePassword(ctx context.Context, who auth.Caller, in changePasswordInput) (signedIn, error) {
	t, err := a.svc.ChangePassword(ctx, who, *in.Body.CurrentPassword, *in.Body.NewPassword, in.device(""))
	if err != nil {
		return signedIn{}, err
	}
	return a.signedIn(t, a.holds(in.Page, who.SessionID)), nil
}
