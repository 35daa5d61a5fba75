package auth

import (
	"context"
	"errors"
	"net/url"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/tracing"
)

// Credentials are what a person types.
type Credentials struct {
	Username string
	Password string
}

// errNotTrusted says that the device or address of an attempt is not known to the account that
// was looked up: it was known to another one of that name, or before the password changed.
var errNotTrusted = errors.New("the device is not known to this account")

// admit asks the limiter whether an attempt may be made. Attempts that are refused together are told to come
// back at different times.
func (s *Service) admit(ctx context.Context, try throttle.Attempt) (*throttle.Ticket, error) {
	ticket, err := s.limiter.Begin(ctx, try)
	if errors.Is(err, throttle.ErrCrowded) {
		return nil, s.passwords.Overloaded()
	}
	return ticket, err
}

// attempt checks the password of an account after it has asked the limiter. When there is no error, the caller ends
// the ticket. find looks the account up and puts it into a; it is called only when a worker is free. Without an
// account the same work is done for nothing. A hash of an older kind is replaced, also in a.
//
// While the workers cannot keep up, most of those who come are refused for want of one. Where the limiter would ask
// for each of them, twice, it is asked only when a worker is about to be free.
func (s *Service) attempt(ctx context.Context, try throttle.Attempt, a *account, password string,
	find func() (found bool, err error)) (ticket *throttle.Ticket, ok bool, err error) {
	try.Hurry = s.limiter.MayHurry() && s.passwords.Behind()
	if !try.Hurry {
		if ticket, err = s.admit(ctx, try); err != nil {
			return nil, false, err
		}
	}
	result, err := s.passwords.Verify(ctx, try.Account, password, func() (encoded string, found bool, err error) {
		if try.Hurry {
			if ticket, err = s.admit(ctx, try); err != nil {
				return "", false, err
			}
		}
		found, err = find()
		if err == nil && !s.limiter.Trusts(ticket, a.owner()) {
			err = errNotTrusted
		}
		return a.passwordHash, found, err
	})
	if err == nil {
		if result.Renewed != "" {
			s.renewHash(ctx, a, result.Renewed)
		}
		return ticket, result.OK, nil
	}
	if ticket != nil {
		s.limiter.Cancel(ctx, ticket)
	}
	if errors.Is(err, errNotTrusted) && !try.Stranger {
		try.Stranger = true
		return s.attempt(ctx, try, a, password, find)
	}
	return nil, false, err
}

// renewHash replaces the stored hash by one under the present settings. When it fails, the next
// sign-in tries again.
func (s *Service) renewHash(ctx context.Context, a *account, hash string) {
	err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		return rehash(ctx, tx, a.ID, a.passwordHash, hash)
	})
	if err != nil {
		s.log.Info("password_hash_not_renewed", tracing.ID(ctx), zap.Stringer("user_id", a.ID), zap.Error(err))
		return
	}
	a.passwordHash = hash
	s.security.Info("password_hash_renewed", tracing.ID(ctx), zap.Stringer("user_id", a.ID))
}

// reauthenticate asks for the caller's password again. To the limiter the session is a known
// device: strangers cannot lock it out, and what is guessed here counts for the account.
func (s *Service) reauthenticate(ctx context.Context, caller Caller, password string, dev Device) (account, error) {
	a, err := accountByID(ctx, s.db, caller.User.ID)
	if errors.Is(err, ErrUserNotFound) {
		return account{}, ErrSessionRevoked
	}
	if err != nil {
		return account{}, err
	}
	try := throttle.Attempt{Account: a.canonical, Address: dev.IP, Session: caller.SessionID.String(), Owner: a.owner()}
	ticket, ok, err := s.attempt(ctx, try, &a, password, func() (found bool, err error) {
		a, err = accountByID(ctx, s.db, caller.User.ID)
		return true, err
	})
	if errors.Is(err, ErrUserNotFound) {
		return account{}, ErrSessionRevoked
	}
	if err != nil {
		return account{}, err
	}
	if !ok {
		s.limiter.Failed(ctx, ticket)
		s.security.Warn("reauthentication_failed", tracing.ID(ctx), zap.Stringer("user_id", a.ID),
			zap.Stringer("sid", caller.SessionID), zap.String("ip", dev.IPText()))
		return account{}, ErrWrongPassword
	}
	s.limiter.Succeeded(ctx, ticket, a.owner())
	return a, nil
}

// stillProved refuses a caller whose session has ended, or whose account has another password, since
// [Service.reauthenticate]: hashing takes time, and the row is locked after it.
func (s *Service) stillProved(ctx context.Context, tx database.IDB, now, checked account, caller Caller) error {
	if err := s.stillLive(ctx, tx, now, caller); err != nil {
		return err
	}
	if !now.samePassword(checked) {
		return ErrWrongPassword
	}
	return nil
}

// lookup returns the canonical form of a name as its owner may type it. Of a text that no account can
// have as its name it returns one that no name has.
func lookup(typed string) (canonical string, possible bool) {
	if canonical, possible = username.Lookup(typed); possible {
		return canonical, true
	}
	typed = username.Trim(typed)
	return "\x00" + typed[:min(len(typed), 1024)], false
}

// checkUsername returns the canonical form, or the fault with one more field.
func (s *Service) checkUsername(invalid *fault.Fault, name string) (string, *fault.Fault) {
	canonical, err := username.Canonical(s.cfg.UsernameProfile, name)
	if r, ok := errors.AsType[*fault.Refusal](err); ok {
		return "", invalid.Field("username", r.Code, r.Detail)
	}
	return canonical, invalid
}

// checkPassword returns the fault, with one more field when the password is not acceptable.
func (s *Service) checkPassword(invalid *fault.Fault, field, typed, username string) (*fault.Fault, error) {
	err := s.passwords.Check(typed, username)
	if r, ok := errors.AsType[*fault.Refusal](err); ok {
		return invalid.Field(field, r.Code, r.Detail), nil
	}
	return invalid, err
}

// refusePassword returns [ErrValidation] when the password is not acceptable.
func (s *Service) refusePassword(field, typed, username string) error {
	invalid, err := s.checkPassword(ErrValidation, field, typed, username)
	if err == nil && len(invalid.Fields) > 0 {
		return invalid
	}
	return err
}

// issuerWords are the parts of the issuer that no password should be made of.
func issuerWords(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil || u.Hostname() == "" {
		return []string{issuer}
	}
	return []string{u.Hostname()}
}
