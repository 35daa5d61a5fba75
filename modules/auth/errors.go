package auth

import (
	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/platform/fault"
)

// What a caller may be told. The codes are stable; docs/errors.md explains each.
var (
	ErrValidation         = fault.New(fault.Invalid, "validation_failed", "Some fields are not acceptable")
	ErrUsernameTaken      = fault.New(fault.Conflict, "username_taken", "The username is taken")
	ErrRegistrationClosed = fault.New(fault.Forbidden, "registration_closed", "Nobody can register here")
	ErrInvalidCredentials = fault.New(fault.Unauthenticated, "invalid_credentials", "Username or password is wrong")
	ErrWrongPassword      = fault.New(fault.Forbidden, "invalid_credentials", "The password is wrong")
	ErrAccountDisabled    = fault.New(fault.Forbidden, "account_disabled", "The account is disabled")
	ErrContactUnverified  = fault.New(fault.Forbidden, "contact_unverified", "No contact of the account is verified")
	ErrTooManyAttempts    = throttle.ErrTooManyAttempts
	ErrTooManySessions    = fault.New(fault.Forbidden, "too_many_sessions",
		"The account has as many sessions as it may")
	ErrOverloaded          = password.ErrOverloaded
	ErrMissingToken        = fault.New(fault.Unauthenticated, "missing_token", "An access token is needed")
	ErrInvalidToken        = fault.New(fault.Unauthenticated, "invalid_token", "The access token is not valid")
	ErrInvalidRefreshToken = fault.New(fault.Unauthenticated, "invalid_refresh_token", "The refresh token is not valid")
	ErrSessionExpired      = fault.New(fault.Unauthenticated, "session_expired", "The session has expired")
	ErrSessionRevoked      = fault.New(fault.Unauthenticated, "session_revoked", "The session was ended")
	ErrRefreshTokenReused  = fault.New(fault.Unauthenticated, "refresh_token_reused",
		"The refresh token was used before; the session was ended")
	ErrTwoRefreshTokens = fault.New(fault.Malformed, "two_refresh_tokens",
		"The request has more than one refresh token")
	ErrOriginNotAllowed = fault.New(fault.Forbidden, "origin_not_allowed",
		"Pages of this origin may not use the cookie")
	ErrSessionNotFound = fault.New(fault.NotFound, "session_not_found", "There is no such session")
	ErrUserNotFound    = fault.New(fault.NotFound, "user_not_found", "There is no such user")
)

// Faults lists every fault of this module, for the documentation and the tests that hold it
// complete.
func Faults() []*fault.Fault {
	return []*fault.Fault{
		ErrValidation, ErrUsernameTaken, ErrRegistrationClosed, ErrInvalidCredentials, ErrWrongPassword,
		ErrAccountDisabled, ErrContactUnverified, ErrTooManyAttempts, ErrTooManySessions, ErrOverloaded,
		ErrMissingToken, ErrInvalidToken, ErrInvalidRefreshToken, ErrSessionExpired, ErrSessionRevoked,
		ErrRefreshTokenReused, ErrTwoRefreshTokens, ErrOriginNotAllowed, ErrSessionNotFound, ErrUserNotFound,
		ErrKeyNotFound, ErrKeyStatus, ErrKeyTooNew, ErrKeyInUse, ErrKeysUnused,
	}
}
