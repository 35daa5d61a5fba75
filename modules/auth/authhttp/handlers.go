package authhttp

import (
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// credentialsBody is what register and login take.
type credentialsBody struct {
	Username   *string `json:"username" example:"alice" minLength:"3" maxLength:"255" validate:"required"`
	Password   *string `json:"password" example:"correct horse battery staple" minLength:"8" maxLength:"256" validate:"required"`
	DeviceName string  `json:"device_name" example:"Alice's phone" maxLength:"100"` // shown among the sessions; made from the user agent when left out
}

type refreshBody struct {
	RefreshToken string `json:"refresh_token" example:"art_AQ…" validate:"required"`
}

// logoutBody may be left out: then the access token says which session.
type logoutBody struct {
	RefreshToken string `json:"refresh_token" example:"art_AQ…"`
}

type passwordBody struct {
	Password *string `json:"password" validate:"required"`
}

type passwordChangeBody struct {
	CurrentPassword *string `json:"current_password" validate:"required"`
	NewPassword     *string `json:"new_password" minLength:"8" maxLength:"256" validate:"required"`
}

// member is one that a body must have. An empty one is there: what it is worth is another
// question.
type member struct {
	name  string
	value *string
}

// require refuses a body without the members it must have, all of them named.
func require(members ...member) error {
	refused := auth.ErrValidation
	for _, m := range members {
		if m.value == nil {
			refused = refused.Field(m.name, "required", "is required")
		}
	}
	if len(refused.Fields) > 0 {
		return refused
	}
	return nil
}

// credentials reads what register and login take.
func credentials(c *fiber.Ctx) (cred auth.Credentials, deviceName string, err error) {
	var body credentialsBody
	if err := httpserver.DecodeJSON(c, &body); err != nil {
		return auth.Credentials{}, "", err
	}
	if err := require(member{"username", body.Username}, member{"password", body.Password}); err != nil {
		return auth.Credentials{}, "", err
	}
	return auth.Credentials{Username: *body.Username, Password: *body.Password}, body.DeviceName, nil
}

// tokensBody is the answer to a sign-in or a refresh.
type tokensBody struct {
	AccessToken           string    `json:"access_token"`
	AccessTokenExpiresAt  time.Time `json:"access_token_expires_at" format:"date-time"`
	RefreshToken          string    `json:"refresh_token" example:"art_AQ…"`
	RefreshTokenExpiresAt time.Time `json:"refresh_token_expires_at" format:"date-time"` // each refresh moves it, up to the session's end
	TokenType             string    `json:"token_type" example:"Bearer" enums:"Bearer"`
	ExpiresIn             int64     `json:"expires_in" example:"18000"` // seconds, of the access token
	SessionID             uuid.UUID `json:"session_id" swaggertype:"string" format:"uuid"`
}

// meBody is the account as its owner sees it.
type meBody struct {
	ID                uuid.UUID   `json:"id" swaggertype:"string" format:"uuid"` // never used for another account
	Username          string      `json:"username"`                              // as it was typed
	Status            auth.Status `json:"status" swaggertype:"string" enums:"active,disabled"`
	CreatedAt         time.Time   `json:"created_at" format:"date-time"`
	UpdatedAt         time.Time   `json:"updated_at" format:"date-time"`
	PasswordChangedAt time.Time   `json:"password_changed_at" format:"date-time"`
	SessionID         uuid.UUID   `json:"session_id" swaggertype:"string" format:"uuid"` // the session that asks
}

type sessionsBody struct {
	Sessions []sessionBody `json:"sessions"`
}

// sessionBody is one device that is signed in.
type sessionBody struct {
	ID         uuid.UUID `json:"id" swaggertype:"string" format:"uuid"`
	DeviceName string    `json:"device_name"`
	UserAgent  string    `json:"user_agent"`
	IP         string    `json:"ip"`
	CreatedAt  time.Time `json:"created_at" format:"date-time"`
	LastUsedAt time.Time `json:"last_used_at" format:"date-time"`
	ExpiresAt  time.Time `json:"expires_at" format:"date-time"` // unless it is refreshed before
	Current    bool      `json:"current"`                       // the session that asks
}

// Where a sign-in leaves, and the next one finds, what marks the device as known.
const (
	deviceHeader = httpserver.HeaderDevice
	deviceCookie = "authctl_device"
)

// register godoc
//
//	@Summary		Make an account and sign in
//	@Description	Usernames are 3 to 255 ASCII letters, digits and `. _ - @ +` (more before the `@` of an address, and with `auth.username_profile` `unicode`), compared without case and kept as typed. Passwords have no composition rules; common ones and those that contain the username are refused with the reason.
//	@Tags			account
//	@Accept			json
//	@Produce		json,application/problem+json
//	@Param			body	body		credentialsBody		true	"who"
//	@Success		201		{object}	tokensBody			"signed in"
//	@Header			201		{string}	Auth-Device			"present it with the next sign-in from this device"
//	@Failure		400		{object}	httpserver.problem	"validation_failed, malformed_request"
//	@Failure		403		{object}	httpserver.problem	"registration_closed"
//	@Failure		409		{object}	httpserver.problem	"username_taken"
//	@Failure		413		{object}	httpserver.problem	"body_too_large"
//	@Failure		415		{object}	httpserver.problem	"unsupported_media_type"
//	@Failure		429		{object}	httpserver.problem	"too_many_attempts"
//	@Failure		503		{object}	httpserver.problem	"overloaded, unavailable"
//	@Router			/api/v1/auth/register [post]
func (a *api) register(c *fiber.Ctx) error {
	cred, name, err := credentials(c)
	if err != nil {
		return err
	}
	t, err := a.svc.Register(c.UserContext(), cred, device(c, name))
	if err != nil {
		return err
	}
	a.leaveDevice(c, t.Device)
	return tokens(c, fiber.StatusCreated, t)
}

// login godoc
//
//	@Summary		Sign in
//	@Description	A wrong password and a name that does not exist are one answer. After too many failures, sign-in from devices that are not known is delayed; a device that signed in before and presents its `Auth-Device` is not affected.
//	@Tags			account
//	@Accept			json
//	@Produce		json,application/problem+json
//	@Param			body		body		credentialsBody		true	"who"
//	@Param			Auth-Device	header		string				false	"what an earlier sign-in on this device was given"
//	@Success		200			{object}	tokensBody			"signed in"
//	@Header			200			{string}	Auth-Device			"present it with the next sign-in from this device"
//	@Failure		400			{object}	httpserver.problem	"validation_failed, malformed_request"
//	@Failure		401			{object}	httpserver.problem	"invalid_credentials"
//	@Failure		403			{object}	httpserver.problem	"account_disabled, too_many_sessions"
//	@Failure		413			{object}	httpserver.problem	"body_too_large"
//	@Failure		415			{object}	httpserver.problem	"unsupported_media_type"
//	@Failure		429			{object}	httpserver.problem	"too_many_attempts"
//	@Failure		503			{object}	httpserver.problem	"overloaded, unavailable"
//	@Router			/api/v1/auth/login [post]
func (a *api) login(c *fiber.Ctx) error {
	cred, name, err := credentials(c)
	if err != nil {
		return err
	}
	t, err := a.svc.Login(c.UserContext(), cred, device(c, name))
	if err != nil {
		return err
	}
	a.leaveDevice(c, t.Device)
	return tokens(c, fiber.StatusOK, t)
}

// refresh godoc
//
//	@Summary		Get new tokens for a refresh token
//	@Description	The refresh token is replaced. For a short while (`auth.refresh_grace`, counted from its own replacement) each replaced one gets the newest token of the session, marked `Auth-Refresh-Replayed: true`; after that, presenting it again ends the session.
//	@Tags			session
//	@Accept			json
//	@Produce		json,application/problem+json
//	@Param			body	body		refreshBody			true	"the current refresh token"
//	@Success		200		{object}	tokensBody			"new tokens"
//	@Header			200		{string}	Auth-Refresh-Replayed	"true when the token was already replaced a moment ago"
//	@Failure		400		{object}	httpserver.problem	"validation_failed, malformed_request"
//	@Failure		401		{object}	httpserver.problem	"invalid_refresh_token, session_expired, session_revoked, refresh_token_reused"
//	@Failure		413		{object}	httpserver.problem	"body_too_large"
//	@Failure		415		{object}	httpserver.problem	"unsupported_media_type"
//	@Failure		503		{object}	httpserver.problem	"unavailable"
//	@Router			/api/v1/auth/refresh [post]
func (a *api) refresh(c *fiber.Ctx) error {
	var body refreshBody
	if err := httpserver.DecodeJSON(c, &body); err != nil {
		return err
	}
	if body.RefreshToken == "" {
		return auth.ErrValidation.Field("refresh_token", "required", "is required")
	}
	t, err := a.svc.Refresh(c.UserContext(), body.RefreshToken, device(c, ""))
	if err != nil {
		return err
	}
	if t.Replayed {
		c.Set(httpserver.HeaderRefreshReplayed, "true")
	}
	return tokens(c, fiber.StatusOK, t)
}

// logout godoc
//
//	@Summary		Sign out
//	@Description	Ends the session of the refresh token in the body, or else of the access token in the Authorization header. Doing it again is fine.
//	@Tags			session
//	@Accept			json
//	@Produce		json,application/problem+json
//	@Param			body	body	logoutBody	false	"a refresh token of the session"
//	@Success		204		"signed out"
//	@Failure		400		{object}	httpserver.problem	"malformed_request, validation_failed"
//	@Failure		401		{object}	httpserver.problem	"missing_token, invalid_refresh_token, invalid_token"
//	@Failure		413		{object}	httpserver.problem	"body_too_large"
//	@Failure		415		{object}	httpserver.problem	"unsupported_media_type"
//	@Failure		503		{object}	httpserver.problem	"unavailable"
//	@Security		Bearer
//	@Router			/api/v1/auth/logout [post]
func (a *api) logout(c *fiber.Ctx) error {
	var body logoutBody
	if len(c.Body()) > 0 {
		if err := httpserver.DecodeJSON(c, &body); err != nil {
			return err
		}
	}
	var err error
	if body.RefreshToken != "" {
		err = a.svc.LogoutRefresh(c.UserContext(), body.RefreshToken)
	} else {
		var token string
		if token, err = bearerToken(c); err == nil {
			err = a.svc.LogoutAccess(c.UserContext(), token)
		}
	}
	if err != nil {
		return err
	}
	return empty(c, fiber.StatusNoContent)
}

// me godoc
//
//	@Summary	Who am I
//	@Tags		account
//	@Produce	json,application/problem+json
//	@Success	200	{object}	meBody
//	@Failure	401	{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure	503	{object}	httpserver.problem	"unavailable"
//	@Security	Bearer
//	@Router		/api/v1/auth/me [get]
func (a *api) me(c *fiber.Ctx, caller auth.Caller) error {
	u := caller.User
	noStore(c)
	return c.JSON(meBody{
		ID: u.ID, Username: u.Username, Status: u.Status, CreatedAt: u.CreatedAt, UpdatedAt: u.UpdatedAt,
		PasswordChangedAt: u.PasswordChangedAt, SessionID: caller.SessionID,
	})
}

// deleteMe godoc
//
//	@Summary	Delete my account for good
//	@Tags		account
//	@Accept		json
//	@Produce	json,application/problem+json
//	@Param		body	body	passwordBody	true	"the password, once more"
//	@Success	204		"deleted"
//	@Failure	400		{object}	httpserver.problem	"validation_failed, malformed_request"
//	@Failure	401		{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure	403		{object}	httpserver.problem	"invalid_credentials"
//	@Failure	413		{object}	httpserver.problem	"body_too_large"
//	@Failure	415		{object}	httpserver.problem	"unsupported_media_type"
//	@Failure	429		{object}	httpserver.problem	"too_many_attempts"
//	@Failure	503		{object}	httpserver.problem	"overloaded, unavailable"
//	@Security	Bearer
//	@Router		/api/v1/auth/me [delete]
//	@Router		/api/v1/auth/me/delete [post]
func (a *api) deleteMe(c *fiber.Ctx, caller auth.Caller) error {
	if c.Method() == fiber.MethodDelete && len(c.Body()) == 0 {
		return httpserver.ErrMalformed.Detail("The body is empty; a JSON object with the password is expected. " +
			"Where something on the way drops the body of a DELETE, POST /api/v1/auth/me/delete does the same.")
	}
	var body passwordBody
	if err := httpserver.DecodeJSON(c, &body); err != nil {
		return err
	}
	if err := require(member{"password", body.Password}); err != nil {
		return err
	}
	if err := a.svc.DeleteOwn(c.UserContext(), caller, *body.Password, device(c, "")); err != nil {
		return err
	}
	return empty(c, fiber.StatusNoContent)
}

// changePassword godoc
//
//	@Summary		Change my password
//	@Description	The calling session goes on with the tokens in the answer; every other session ends.
//	@Tags			account
//	@Accept			json
//	@Produce		json,application/problem+json
//	@Param			body	body		passwordChangeBody	true	"both passwords"
//	@Success		200		{object}	tokensBody			"new tokens of the calling session"
//	@Failure		400		{object}	httpserver.problem	"validation_failed, malformed_request"
//	@Failure		401		{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure		403		{object}	httpserver.problem	"invalid_credentials: the current password is wrong"
//	@Failure		413		{object}	httpserver.problem	"body_too_large"
//	@Failure		415		{object}	httpserver.problem	"unsupported_media_type"
//	@Failure		429		{object}	httpserver.problem	"too_many_attempts"
//	@Failure		503		{object}	httpserver.problem	"overloaded, unavailable"
//	@Security		Bearer
//	@Router			/api/v1/auth/password [post]
func (a *api) changePassword(c *fiber.Ctx, caller auth.Caller) error {
	var body passwordChangeBody
	if err := httpserver.DecodeJSON(c, &body); err != nil {
		return err
	}
	if err := require(member{"current_password", body.CurrentPassword}, member{"new_password", body.NewPassword}); err != nil {
		return err
	}
	t, err := a.svc.ChangePassword(c.UserContext(), caller, *body.CurrentPassword, *body.NewPassword, device(c, ""))
	if err != nil {
		return err
	}
	return tokens(c, fiber.StatusOK, t)
}

// listSessions godoc
//
//	@Summary	Where am I signed in
//	@Tags		session
//	@Produce	json,application/problem+json
//	@Success	200	{object}	sessionsBody		"the last used first"
//	@Failure	401	{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure	503	{object}	httpserver.problem	"unavailable"
//	@Security	Bearer
//	@Router		/api/v1/auth/sessions [get]
func (a *api) listSessions(c *fiber.Ctx, caller auth.Caller) error {
	list, err := a.svc.Sessions(c.UserContext(), caller)
	if err != nil {
		return err
	}
	body := sessionsBody{Sessions: make([]sessionBody, len(list))}
	for i, s := range list {
		body.Sessions[i] = sessionBody{
			ID: s.ID, DeviceName: s.DeviceName, UserAgent: s.UserAgent, IP: s.IP,
			CreatedAt: s.CreatedAt, LastUsedAt: s.LastUsedAt, ExpiresAt: s.ExpiresAt, Current: s.Current,
		}
	}
	noStore(c)
	return c.JSON(body)
}

// endSessions godoc
//
//	@Summary	Sign out everywhere
//	@Tags		session
//	@Produce	json,application/problem+json
//	@Param		except	query	string	false	"current: but for the session that asks"	Enums(current)
//	@Success	204		"ended"
//	@Failure	400		{object}	httpserver.problem	"validation_failed"
//	@Failure	401		{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure	503		{object}	httpserver.problem	"unavailable"
//	@Security	Bearer
//	@Router		/api/v1/auth/sessions [delete]
func (a *api) endSessions(c *fiber.Ctx, caller auth.Caller) error {
	// Exactly so: a misspelt exception must not end the session that was to be kept.
	query := string(c.Request().URI().QueryString())
	if query != "" && query != "except=current" {
		return auth.ErrValidation.Field("except", "invalid_value", "the query is except=current, or empty")
	}
	if err := a.svc.EndSessions(c.UserContext(), caller, query != ""); err != nil {
		return err
	}
	return empty(c, fiber.StatusNoContent)
}

// endSession godoc
//
//	@Summary	Sign one device out
//	@Tags		session
//	@Produce	json,application/problem+json
//	@Param		id	path	string	true	"the session's id"	format(uuid)
//	@Success	204	"ended"
//	@Failure	401	{object}	httpserver.problem	"missing_token, invalid_token, session_revoked"
//	@Failure	404	{object}	httpserver.problem	"session_not_found, also for another user's session"
//	@Failure	503	{object}	httpserver.problem	"unavailable"
//	@Security	Bearer
//	@Router		/api/v1/auth/sessions/{id} [delete]
func (a *api) endSession(c *fiber.Ctx, caller auth.Caller) error {
	sid, err := uuid.Parse(c.Params("id"))
	if err != nil || c.Params("id") != sid.String() {
		return auth.ErrSessionNotFound
	}
	if err := a.svc.EndSession(c.UserContext(), caller, sid); err != nil {
		return err
	}
	return empty(c, fiber.StatusNoContent)
}

// tokens answers with tokens, which nobody may keep a copy of.
func tokens(c *fiber.Ctx, status int, t auth.Tokens) error {
	noStore(c)
	return c.Status(status).JSON(tokensBody{
		AccessToken: t.AccessToken, AccessTokenExpiresAt: t.AccessTokenExpiresAt,
		RefreshToken: t.RefreshToken, RefreshTokenExpiresAt: t.RefreshTokenExpiresAt,
		TokenType: "Bearer", ExpiresIn: int64(t.ExpiresIn / time.Second), SessionID: t.SessionID,
	})
}

// empty answers with nothing but a status. Fiber's SendStatus would add the status' words as
// a body.
func empty(c *fiber.Ctx, status int) error {
	c.Status(status)
	return nil
}

func noStore(c *fiber.Ctx) { c.Set(fiber.HeaderCacheControl, "no-store") }

// device is what the request tells of where it comes from. Fiber runs with Immutable, so
// the strings outlive the request.
func device(c *fiber.Ctx, name string) auth.Device {
	d := auth.Device{Name: name, UserAgent: c.Get(fiber.HeaderUserAgent), IP: httpserver.ClientIP(c), Token: c.Get(deviceHeader)}
	if d.Token == "" {
		d.Token = c.Cookies(deviceCookie)
	}
	return d
}

// leaveDevice leaves the mark of a known device, as a header for programs and as a cookie
// for browsers on the same site.
func (a *api) leaveDevice(c *fiber.Ctx, token string) {
	if token == "" {
		return
	}
	c.Set(deviceHeader, token)
	c.Cookie(&fiber.Cookie{
		Name: deviceCookie, Value: token, Path: a.opt.mount() + "/api/v1/auth/", MaxAge: int(a.svc.DeviceTTL() / time.Second),
		HTTPOnly: true, Secure: a.opt.SecureCookies, SameSite: fiber.CookieSameSiteStrictMode,
	})
}

// matchesETag reports whether If-None-Match (RFC 9110 §13.1.2) names the entity tag.
func matchesETag(header, etag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimPrefix(strings.TrimSpace(one), "W/"); one == etag || one == "*" {
			return true
		}
	}
	return false
}
