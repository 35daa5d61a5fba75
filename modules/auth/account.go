package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// DeleteOwn deletes the caller's account for good. The caller must give the password again.
func (s *Service) DeleteOwn(ctx context.Context, caller Caller, password string, dev Device) error {
	a, err := s.reauthenticate(ctx, caller, password, dev)
	if err != nil {
		return err
	}
	return s.remove(ctx, a.ID, byUser, func(ctx context.Context, tx database.IDB, now account) error {
		return s.stillProved(ctx, tx, now, a, caller)
	})
}

// DeleteUser deletes an account on an operator's behalf.
func (s *Service) DeleteUser(ctx context.Context, userID uuid.UUID) error {
	return s.remove(ctx, userID, byAdmin, nil)
}

func (s *Service) remove(ctx context.Context, userID uuid.UUID, by string, check checkAccount) error {
	env := s.newEnvelope(userID)
	all := allSessions{userID: userID, reason: ReasonDeleted}
	err := s.changeAccount(ctx, all, check, func(
		ctx context.Context, tx database.Tx, _ account, end endSessions,
	) error {
		if _, err := end(); err != nil {
			return err
		}
		if err := deleteAccount(ctx, tx, userID); err != nil {
			return err
		}
		if err := s.announce(ctx, tx, EventUserDeleted, env, userChanged{Envelope: env, By: by}); err != nil {
			return err
		}
		if s.hooks.Deleted != nil {
			if err := s.hooks.Deleted(ctx, tx, userID); err != nil {
				return err
			}
		}
		// No event follows: every other one is announced under the lock on the account.
		return outbox.Finish(ctx, tx, userID.String())
	})
	if err != nil {
		return err
	}
	s.security.Info("user_deleted", tracing.ID(ctx), zap.Stringer("user_id", userID), zap.String("by", by))
	return nil
}

// DisableUser closes an account and ends its sessions. Doing it again changes nothing.
func (s *Service) DisableUser(ctx context.Context, userID uuid.UUID) error {
	return s.setStatus(ctx, userID, StatusDisabled, EventUserDisabled, "user_disabled")
}

// EnableUser opens an account again; sessions that ended stay ended.
func (s *Service) EnableUser(ctx context.Context, userID uuid.UUID) error {
	return s.setStatus(ctx, userID, StatusActive, EventUserEnabled, "user_enabled")
}

func (s *Service) setStatus(ctx context.Context, userID uuid.UUID, status Status, eventType, record string) error {
	env := s.newEnvelope(userID)
	changed := false
	all := allSessions{userID: userID, reason: ReasonDisabled}
	err := s.changeAccount(ctx, all, nil, func(ctx context.Context, tx database.Tx, a account, end endSessions) error {
		if changed = a.Status != status; !changed {
			return nil
		}
		if err := updateStatus(ctx, tx, userID, status, env.OccurredAt); err != nil {
			return err
		}
		err := s.announce(ctx, tx, eventType, env, userChanged{Envelope: env, By: byAdmin})
		if err == nil && status == StatusDisabled {
			_, err = end()
		}
		return err
	})
	if err == nil && changed {
		s.security.Info(record, tracing.ID(ctx), zap.Stringer("user_id", userID), zap.String("by", byAdmin))
	}
	return err
}

// FindUser returns the account with a username or an id. A username may have the form of an id when
// it is older than the rule against it: when the word fits two accounts the error is an
// [*AmbiguousUser].
func (s *Service) FindUser(ctx context.Context, word string) (User, error) {
	word = username.Trim(word)
	named, err := s.FindUserByName(ctx, word)
	unnamed := errors.Is(err, ErrUserNotFound)
	if err != nil && !unnamed {
		return User{}, err
	}
	id, isID := ParseID(word)
	if !isID {
		return named, err
	}
	identified, err := s.FindUserByID(ctx, id)
	switch {
	case errors.Is(err, ErrUserNotFound) && !unnamed:
		return named, nil
	case err != nil:
		return User{}, err
	case !unnamed && named.ID != identified.ID:
		return User{}, &AmbiguousUser{Word: word, ByID: identified, ByName: named}
	}
	return identified, nil
}

// FindUserByID returns the account with the id.
func (s *Service) FindUserByID(ctx context.Context, id uuid.UUID) (User, error) {
	a, err := accountByID(ctx, s.db, id)
	return a.User, err
}

// FindUserByName returns the account with the username, as its owner may type it to sign in.
func (s *Service) FindUserByName(ctx context.Context, name string) (User, error) {
	canonical, known := username.Lookup(name)
	if !known {
		return User{}, ErrUserNotFound
	}
	a, err := accountByName(ctx, s.db, canonical)
	return a.User, err
}

// LookupName is the form in which usernames are compared, of one as its owner may type it. Of a text
// that is no username it is one that no username has.
func LookupName(typed string) string {
	canonical, _ := lookup(typed)
	return canonical
}

// ParseID reads an id of an account or a session in any of its usual spellings: with hyphens
// or without, in braces, or as a URN.
func ParseID(text string) (uuid.UUID, bool) {
	// Validate looks at the braces, which Parse skips.
	if uuid.Validate(text) != nil {
		return uuid.Nil, false
	}
	id, err := uuid.Parse(text)
	return id, err == nil
}

// AmbiguousUser says that a word is the id of one account and the username of another one.
type AmbiguousUser struct {
	Word         string
	ByID, ByName User
}

func (e *AmbiguousUser) Error() string {
	return fmt.Sprintf("%q is the id of the account %q and the username of the account %s", e.Word, e.ByID.Username,
		e.ByName.ID)
}

// Users passes every account to fn, ordered by id, in bounded memory.
func (s *Service) Users(ctx context.Context, fn func(User) error) error {
	return s.accountPages(ctx, func(page []account) error {
		for _, a := range page {
			if err := fn(a.User); err != nil {
				return err
			}
		}
		return nil
	})
}

// UnlockUser forgets the failed sign-ins of an account, so that no device is locked out.
func (s *Service) UnlockUser(ctx context.Context, u User) error {
	canonical, known := username.Lookup(u.Username)
	if !known {
		return ErrUserNotFound
	}
	if err := s.limiter.Unlock(ctx, canonical); err != nil {
		return fmt.Errorf("unlock the account: %w", err)
	}
	s.security.Info("user_unlocked", tracing.ID(ctx), zap.Stringer("user_id", u.ID), zap.String("by", byAdmin))
	return nil
}

// SignInState returns how many sign-ins to an account have failed in a row, and until when unknown
// devices are refused; the zero time when they are not.
func (s *Service) SignInState(ctx context.Context, u User) (failures int, refusedUntil time.Time, err error) {
	canonical, known := username.Lookup(u.Username)
	if !known {
		return 0, time.Time{}, ErrUserNotFound
	}
	state, err := s.limiter.State(ctx, canonical)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("read the sign-in limits: %w", err)
	}
	return state.Failures, state.RefusedUntil, nil
}
