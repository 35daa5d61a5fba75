package verify

import (
	"errors"
	"time"
)

// Why a token is not accepted. Every error of [Verifier.Check] is a [*Refusal] that wraps one
// of them, or the error of its context.
var (
	ErrMalformed   = errors.New("malformed token")
	ErrType        = errors.New("not an access token")
	ErrUnknownKey  = errors.New("unknown key")
	ErrAlgorithm   = errors.New("wrong algorithm")
	ErrSignature   = errors.New("bad signature")
	ErrClaims      = errors.New("bad claims")
	ErrIssuer      = errors.New("wrong issuer")
	ErrAudience    = errors.New("wrong audience")
	ErrNotYetValid = errors.New("not yet valid")
	ErrExpired     = errors.New("expired")

	// ErrRevoked: the session has ended, all sessions of the account have, or the key was revoked.
	ErrRevoked = errors.New("revoked")

	// ErrStale: the signature and the claims are good, and whether the session has ended is not
	// known well enough. The same token may be good in a moment.
	ErrStale = errors.New("revocations are not known well enough")

	// ErrNoKeys: the keys of the issuer have not been had since the start. The same token may be
	// good in a moment.
	ErrNoKeys = errors.New("no keys of the issuer yet")
)

// Unknowable reports whether an error of [Verifier.Check] says that the token could not be
// judged, and not that it is bad: answer 503, and not 401.
func Unknowable(err error) bool {
	_, refused := errors.AsType[*Refusal](err)
	return err != nil && (!refused || errors.Is(err, ErrStale) || errors.Is(err, ErrNoKeys))
}

// Refusal says why a token is not accepted. Its text is for operators and logs, and never
// quotes the token.
type Refusal struct {
	Reason error     // one of the sentinels
	Detail string    // what exactly; may be empty
	At     time.Time // of ErrExpired and ErrNotYetValid: the moment in question
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Reason.Error()
	}
	return r.Reason.Error() + ": " + r.Detail
}

func (r *Refusal) Unwrap() error { return r.Reason }

func refuse(reason error, detail string) *Refusal { return &Refusal{Reason: reason, Detail: detail} }
