package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// ChangePassword sets a new password for the caller, who must know the present one. The
// calling session goes on with new tokens; every other one ends.
//
// When the answer is lost, the session's former refresh token gets the new one within the grace
// window.
func (s *Service) ChangePassword(ctx context.Context, caller Caller, current, replacement string,
	dev Device) (Tokens, error) {
	if err := s.refusePassword("new_password", replacement, caller.User.Username); err != nil {
		return Tokens{}, err
	}
	// Without the store there are no new tokens, and "try again later" would be wrong once the
	// password is changed.
	if _, err := s.sessions.Get(ctx, caller.User.ID, caller.SessionID); err != nil &&
		!errors.Is(err, session.ErrNotFound) {
		return Tokens{}, err
	}
	a, err := s.reauthenticate(ctx, caller, current, dev)
	if err != nil {
		return Tokens{}, err
	}
	hash, err := s.passwords.Hash(ctx, replacement)
	if err != nil {
		return Tokens{}, err
	}
	issuer, err := s.issuer(ctx)
	if err != nil {
		return Tokens{}, err
	}
	kept := uuid.NullUUID{UUID: caller.SessionID, Valid: true}
	check := func(ctx context.Context, tx database.IDB, now account) error {
		return s.stillProved(ctx, tx, now, a, caller)
	}
	changed, err := s.storePassword(ctx, newPassword{userID: a.ID, hash: hash, kept: kept, by: byUser, from: dev},
		check)
	if err != nil {
		return Tokens{}, err
	}
	t, err := s.reissue(ctx, issuer, caller, changed, dev)
	if err != nil {
		return Tokens{}, fmt.Errorf("the password was changed, new tokens were not made: %w", err)
	}
	// The device token that it had was for the former password.
	t.DeviceToken = s.limiter.Remember(ctx, changed.canonical, changed.owner(), dev.IP)
	return t, nil
}

// SetPassword sets a password on an operator's behalf and ends every session.
func (s *Service) SetPassword(ctx context.Context, userID uuid.UUID, replacement string) error {
	a, err := accountByID(ctx, s.db, userID)
	if err != nil {
		return err
	}
	if err := s.refusePassword("password", replacement, a.Username); err != nil {
		return err
	}
	hash, err := s.passwords.Hash(ctx, replacement)
	if err != nil {
		return err
	}
	_, err = s.storePassword(ctx, newPassword{userID: userID, hash: hash, by: byAdmin}, nil)
	return err
}

// CheckNewPassword returns [ErrValidation] when the password may not be set for the username, which
// may be empty where nobody must learn it yet.
func (s *Service) CheckNewPassword(replacement, username string) error {
	return s.refusePassword("new_password", replacement, username)
}

// ResetPassword sets a password for somebody who has shown by other means than the present one to be
// the owner, and ends every session. prove is called in the transaction, with the account locked: it
// uses up what was shown, and its error undoes everything. Nobody resets the password of a disabled
// account.
func (s *Service) ResetPassword(ctx context.Context, userID uuid.UUID, replacement string, dev Device,
	prove func(ctx context.Context, tx database.Tx) error) error {
	hash, err := s.passwords.Hash(ctx, replacement)
	if err != nil {
		return err
	}
	p := newPassword{userID: userID, hash: hash, by: byReset, from: dev, prove: prove}
	_, err = s.storePassword(ctx, p, active)
	return err
}

// ClosePassword ends every session and replaces the password by none: the account opens again when the
// password is reset. It waits for no hashing, so it also works during a flood of sign-ins. prove is as for
// [Service.ResetPassword].
func (s *Service) ClosePassword(ctx context.Context, userID uuid.UUID, dev Device,
	prove func(ctx context.Context, tx database.Tx) error) error {
	p := newPassword{userID: userID, hash: s.passwords.Closed(), by: byUndo, from: dev, prove: prove, quiet: true}
	_, err := s.storePassword(ctx, p, nil)
	return err
}

// active refuses an account that is disabled.
func active(_ context.Context, _ database.IDB, now account) error {
	if now.Status != StatusActive {
		return ErrAccountDisabled
	}
	return nil
}

// newPassword is a password to store.
type newPassword struct {
	userID uuid.UUID
	hash   string
	kept   uuid.NullUUID // the session that goes on
	by     string
	from   Device
	prove  func(ctx context.Context, tx database.Tx) error // nil: there is nothing to use up
	quiet  bool                                            // no hook tells of it
}

// storePassword writes the new hash and ends the sessions, with both events, if check finds
// nothing against it. It returns the changed account.
func (s *Service) storePassword(ctx context.Context, p newPassword, check checkAccount) (changed account, err error) {
	env := s.newEnvelope(p.userID)
	all := allSessions{userID: p.userID, kept: p.kept, reason: ReasonPasswordChange}
	err = s.changeAccount(ctx, all, check, func(ctx context.Context, tx database.Tx, a account, end endSessions) error {
		if p.prove != nil {
			if err := p.prove(ctx, tx); err != nil {
				return err
			}
		}
		if err := updatePassword(ctx, tx, a.ID, p.hash, env.OccurredAt); err != nil {
			return err
		}
		if err := s.announce(ctx, tx, EventPasswordChanged, env, passwordChanged{Envelope: env, By: p.by}); err != nil {
			return err
		}
		changed = a
		changed.passwordHash, changed.PasswordChangedAt = p.hash, env.OccurredAt
		if changed.epoch, err = end(); err != nil {
			return err
		}
		if s.hooks.PasswordChanged == nil || p.quiet {
			return nil
		}
		return s.hooks.PasswordChanged(ctx, tx, changed.User, p.from)
	})
	if err != nil {
		return account{}, err
	}
	fields := []zap.Field{tracing.ID(ctx), zap.Stringer("user_id", p.userID), zap.String("by", p.by)}
	if p.by != byAdmin {
		fields = append(fields, zap.String("ip", p.from.IPText()))
	}
	s.security.Info("password_changed", fields...)
	return changed, nil
}

// reissue gives the caller's session new tokens. When the store has lost its record, a new session
// takes its place, unless the account has changed since: then the session has ended.
func (s *Service) reissue(ctx context.Context, issuer issuer, caller Caller, changed account,
	dev Device) (Tokens, error) {
	for range 3 { // a refresh of the session may be faster
		rec, err := s.sessions.Get(ctx, caller.User.ID, caller.SessionID)
		if errors.Is(err, session.ErrNotFound) {
			break
		}
		if err != nil {
			return Tokens{}, err
		}
		next := s.codec.Mint(rec.UserID, rec.ID, rec.Generation+1)
		sess, err := s.sessions.Reissue(ctx, session.Reissue{
			UserID: rec.UserID, SessionID: rec.ID, Generation: next.Generation(), Hash: next.Hash(),
			Sealed: s.codec.SealReissued(next), Grace: s.cfg.RefreshGrace, IdleTTL: s.cfg.RefreshTokenTTL,
			Reauthenticated: true,
		})
		if errors.Is(err, session.ErrConflict) || errors.Is(err, session.ErrNotFound) {
			continue
		}
		if err != nil {
			return Tokens{}, err
		}
		return issuer.issue(sess, next)
	}
	// Nothing shows that this is the device of the lost session: a stolen access token looks the same.
	sess, refresh, err := s.signIn(ctx, changed, dev, false)
	if errors.Is(err, errConcurrentChange) || errors.Is(err, ErrInvalidCredentials) ||
		errors.Is(err, ErrAccountDisabled) {
		return Tokens{}, ErrSessionRevoked
	}
	if err != nil {
		return Tokens{}, err
	}
	return issuer.issue(sess, refresh)
}
