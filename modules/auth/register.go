package auth

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// Register makes an account and signs its owner in. It returns [ErrValidation] with every faulty
// field, or [ErrUsernameTaken]. Where registration is closed it returns [ErrRegistrationClosed]
// before it looks at the name, so that the answer says nothing about it. with is the contact that
// came with it, if any. Where sign-in waits until a contact is verified the account is made, and the
// error is [ErrContactUnverified] with the challenge that was sent.
func (s *Service) Register(ctx context.Context, cred Credentials, dev Device, with ...NewContact) (Tokens, error) {
	if s.cfg.Registration == registrationClosed {
		s.security.Info("registration_refused", tracing.ID(ctx), zap.String("reason", "registration_closed"),
			zap.String("ip", dev.IPText()))
		return Tokens{}, ErrRegistrationClosed
	}
	if err := s.limiter.Register(ctx, dev.IP); err != nil {
		s.security.Warn("registration_throttled", tracing.ID(ctx), zap.String("ip", dev.IPText()))
		return Tokens{}, err
	}
	contact := NewContact{}
	if len(with) > 0 {
		contact = with[0]
	}
	contact.From = dev.IP
	a, err := s.newAccount(ctx, cred, dev.Name, contact)
	if err != nil {
		return Tokens{}, err
	}
	if s.hooks.Waits {
		if err := s.addAccount(ctx, a, uuid.NullUUID{}, contact); err != nil {
			return Tokens{}, err
		}
		s.security.Info("user_registered", tracing.ID(ctx), zap.Stringer("user_id", a.ID),
			zap.String("ip", dev.IPText()))
		return Tokens{}, s.hooks.Admit(ctx, a.User, dev)
	}
	issuer, err := s.issuer(ctx)
	if err != nil {
		return Tokens{}, err
	}
	sess, refresh, _, err := s.createRecord(ctx, a, dev) // the first session is never above the limit
	if err != nil {
		return Tokens{}, err
	}
	if err := s.addAccount(ctx, a, uuid.NullUUID{UUID: sess.ID, Valid: true}, contact); err != nil {
		s.removeRecords(ctx, a.ID, sess.ID)
		return Tokens{}, err
	}
	s.security.Info("user_registered", tracing.ID(ctx), zap.Stringer("user_id", a.ID), zap.Stringer("sid", sess.ID),
		zap.String("ip", dev.IPText()))
	t, err := issuer.issue(sess, refresh)
	if err == nil {
		t.DeviceToken = s.limiter.Remember(ctx, a.canonical, a.owner(), dev.IP)
	}
	return t, err
}

// CreateUser makes an account on an operator's behalf, by the rules of [Service.Register], and
// signs nobody in.
func (s *Service) CreateUser(ctx context.Context, cred Credentials) (User, error) {
	contact := NewContact{ByAdmin: true}
	a, err := s.newAccount(ctx, cred, "", contact)
	if err != nil {
		return User{}, err
	}
	if err := s.addAccount(ctx, a, uuid.NullUUID{}, contact); err != nil {
		return User{}, err
	}
	s.security.Info("user_registered", tracing.ID(ctx), zap.Stringer("user_id", a.ID), zap.String("by", byAdmin))
	return a.User, nil
}

// newAccount validates and hashes; nothing is written yet.
func (s *Service) newAccount(ctx context.Context, cred Credentials, deviceName string,
	contact NewContact) (account, error) {
	canonical, invalid := s.checkUsername(ErrValidation, cred.Username)
	invalid, err := s.checkPassword(invalid, "password", cred.Password, cred.Username)
	if err != nil {
		return account{}, err
	}
	if r := checkDeviceName(deviceName); r != nil {
		invalid = invalid.Field("device_name", r.Code, r.Detail)
	}
	if s.hooks.CheckNew != nil {
		invalid = s.hooks.CheckNew(invalid, cred.Username, contact)
	} else if contact.Email != "" {
		invalid = invalid.Field("email", "not_supported", "is not kept here; leave it out")
	}
	if len(invalid.Fields) > 0 {
		return account{}, invalid
	}
	// A name that is taken should not cost a hash. The unique index decides in the end.
	switch _, err := accountByName(ctx, s.db, canonical); {
	case err == nil:
		return account{}, ErrUsernameTaken
	case !errors.Is(err, ErrUserNotFound):
		return account{}, err
	}
	hash, err := s.passwords.HashForRegistration(ctx, cred.Password)
	if err != nil {
		return account{}, err
	}
	now := s.timestamp()
	return account{
		User: User{ID: newID(), Username: cred.Username, Status: StatusActive, CreatedAt: now, UpdatedAt: now,
			PasswordChangedAt: now},
		canonical: canonical, passwordHash: hash,
	}, nil
}

func (s *Service) addAccount(ctx context.Context, a account, sid uuid.NullUUID, contact NewContact) error {
	env := Envelope{UserID: a.ID, OccurredAt: a.CreatedAt}
	return s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := insertAccount(ctx, tx, a); err != nil {
			return err
		}
		if sid.Valid {
			if err := s.recordBegun(ctx, tx, begun{sid.UUID, a.ID, a.epoch, env.OccurredAt}); err != nil {
				return err
			}
		}
		err := s.announce(ctx, tx, EventUserRegistered, env, userRegistered{Envelope: env, Username: a.Username,
			SessionID: sid})
		if err == nil && s.hooks.Added != nil {
			err = s.hooks.Added(ctx, tx, a.User, contact)
		}
		return err
	})
}
