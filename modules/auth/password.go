package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/uptrace/bun"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
)

// ChangePassword sets a new password for the caller, who must know the present one. The
// calling session goes on with new tokens; every other one ends.
//
// An answer that is lost costs nothing: within the grace window, the session's former
// refresh token is taken for the new one.
func (s *Service) ChangePassword(ctx context.Context, caller Caller, current, replacement string, dev Device) (Tokens, error) {
	invalid, err := s.checkPassword(ErrValidation, "new_password", replacement, caller.User.Username)
	if err != nil {
		return Tokens{}, err
	}
	if len(invalid.Fields) > 0 {
		return Tokens{}, invalid
	}
	a, err := s.reauthenticate(ctx, caller, current, dev)
	if err != nil {
		return Tokens{}, err
	}
	hash, err := s.passwords.Hash(ctx, replacement)
	if err != nil {
		return Tokens{}, err
	}
	err = s.storePassword(ctx, a, hash, uuid.NullUUID{UUID: caller.SessionID, Valid: true}, "user")
	if err != nil {
		return Tokens{}, err
	}
	s.clearStore(ctx, a.ID, uuid.NullUUID{UUID: caller.SessionID, Valid: true})
	s.security.Info("password_changed", zap.Stringer("user_id", a.ID), zap.String("by", "user"), zap.String("ip", dev.ip()))
	t, err := s.reissue(ctx, caller, dev)
	if err != nil {
		return Tokens{}, fmt.Errorf("the password was changed, new tokens were not made: %w", err)
	}
	return t, nil
}

// SetPassword sets a password on an operator's behalf and ends every session.
func (s *Service) SetPassword(ctx context.Context, userID uuid.UUID, replacement string) error {
	a, err := accountByID(ctx, s.db, userID)
	if err != nil {
		return err
	}
	invalid, err := s.checkPassword(ErrValidation, "password", replacement, a.Username)
	if err != nil {
		return err
	}
	if len(invalid.Fields) > 0 {
		return invalid
	}
	hash, err := s.passwords.Hash(ctx, replacement)
	if err != nil {
		return err
	}
	if err := s.storePassword(ctx, account{User: a.User}, hash, uuid.NullUUID{}, "admin"); err != nil {
		return err
	}
	s.clearStore(ctx, userID, uuid.NullUUID{})
	s.security.Info("password_changed", zap.Stringer("user_id", userID), zap.String("by", "admin"))
	return nil
}

// storePassword writes the new hash and ends the sessions, with both events. When the caller
// proved the present password, a.passwordHash is what was proved, and must still be there.
func (s *Service) storePassword(ctx context.Context, a account, hash string, kept uuid.NullUUID, by string) error {
	head := s.head(a.ID)
	return s.transact(ctx, func(ctx context.Context, tx bun.Tx) error {
		now, err := lockAccount(ctx, tx, a.ID)
		if err != nil {
			return err
		}
		if kept.Valid {
			if err := s.stillLive(ctx, tx, now, a, kept.UUID); err != nil {
				return err
			}
		}
		if err := updatePassword(ctx, tx, a.ID, hash, head.OccurredAt); err != nil {
			return err
		}
		if err := s.announce(ctx, tx, EventPasswordChanged, head, passwordChanged{eventHead: head, By: by}); err != nil {
			return err
		}
		return s.raiseAndAnnounce(ctx, tx, now, kept, ReasonPasswordChange)
	})
}

// stillLive refuses what was decided on an account that has changed since: between the check
// of the password and the lock on the row lies a hash.
func (s *Service) stillLive(ctx context.Context, tx bun.IDB, now, checked account, sid uuid.UUID) error {
	revoked, err := revokedAmong(ctx, tx, []uuid.UUID{sid})
	switch {
	case err != nil:
		return err
	case revoked[sid], now.epoch != checked.epoch, now.Status != StatusActive:
		return ErrSessionRevoked
	case now.passwordHash != checked.passwordHash:
		return ErrWrongPassword
	}
	return nil
}

// reauthenticate asks the caller's password again. The session has a limit of its own for
// wrong ones, so that strangers at the front door cannot close this one.
func (s *Service) reauthenticate(ctx context.Context, caller Caller, password string, dev Device) (account, error) {
	ticket, err := s.limiter.Begin(ctx, throttle.Attempt{Account: "session:" + caller.SessionID.String(), Address: dev.IP})
	if err != nil {
		return account{}, err
	}
	a, err := accountByID(ctx, s.db, caller.User.ID)
	if err != nil {
		s.limiter.Cancel(ctx, ticket)
		if errors.Is(err, ErrUserNotFound) {
			return account{}, ErrSessionRevoked
		}
		return account{}, err
	}
	ok, err := s.verify(ctx, &a, a.canonical, password)
	if err != nil {
		s.limiter.Cancel(ctx, ticket)
		return account{}, err
	}
	if !ok {
		s.limiter.Failed(ctx, ticket)
		s.security.Warn("reauthentication_failed", zap.Stringer("user_id", a.ID), zap.Stringer("sid", caller.SessionID), zap.String("ip", dev.ip()))
		return account{}, ErrWrongPassword
	}
	s.limiter.Succeeded(ctx, ticket)
	return a, nil
}

// reissue gives the caller's session new tokens. A session whose record the store has lost
// cannot go on, so a new one begins in its place.
func (s *Service) reissue(ctx context.Context, caller Caller, dev Device) (Tokens, error) {
	for range 3 { // a refresh of the session may come in between
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
			Sealed: s.codec.SealReissued(next), Grace: s.cfg.RefreshGrace, IdleTTL: s.cfg.RefreshTokenTTL, Reauthenticated: true,
		})
		if errors.Is(err, session.ErrConflict) || errors.Is(err, session.ErrNotFound) {
			continue
		}
		if err != nil {
			return Tokens{}, err
		}
		return s.issue(sess, next)
	}
	a, err := accountByID(ctx, s.db, caller.User.ID)
	if err != nil {
		return Tokens{}, err
	}
	sess, refresh, err := s.signIn(ctx, a, dev)
	if err != nil {
		return Tokens{}, err
	}
	return s.issue(sess, refresh)
}
