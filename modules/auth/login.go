package auth

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/platform/tracing"
)

// Login signs a person in on a device. An unknown name, a wrong password and a disabled account
// have one answer in content and time, [ErrInvalidCredentials]; only the right password gets
// [ErrAccountDisabled].
func (s *Service) Login(ctx context.Context, cred Credentials, dev Device) (Tokens, error) {
	if r := checkDeviceName(dev.Name); r != nil {
		return Tokens{}, ErrValidation.Field("device_name", r.Code, r.Detail)
	}
	// A name that cannot exist is treated like one that does not.
	canonical, possible := lookup(cred.Username)
	var a account
	try := throttle.Attempt{Account: canonical, Address: dev.IP, DeviceToken: dev.Token}
	ticket, ok, err := s.attempt(ctx, try, &a, cred.Password, func() (found bool, err error) {
		if possible {
			a, err = accountByName(ctx, s.db, canonical)
		}
		if errors.Is(err, ErrUserNotFound) {
			err = nil
		}
		return a.ID != uuid.Nil, err
	})
	if errors.Is(err, ErrTooManyAttempts) {
		s.security.Warn("sign_in_throttled", tracing.ID(ctx), zap.String("username", Printable(cred.Username, 255)),
			zap.String("ip", dev.IPText()))
	}
	if err != nil {
		return Tokens{}, err
	}
	if !ok {
		s.failed(ctx, ticket, a, cred.Username, dev)
		return Tokens{}, ErrInvalidCredentials
	}
	if a.Status != StatusActive {
		s.limiter.Cancel(ctx, ticket)
		s.security.Warn("sign_in_refused", tracing.ID(ctx), zap.String("reason", "account_disabled"),
			zap.Stringer("user_id", a.ID), zap.String("ip", dev.IPText()))
		return Tokens{}, ErrAccountDisabled
	}
	if s.hooks.Admit != nil {
		if err := s.hooks.Admit(ctx, a.User, dev); err != nil {
			s.limiter.Cancel(ctx, ticket)
			s.security.Warn("sign_in_refused", tracing.ID(ctx), zap.String("reason", "contact_unverified"),
				zap.Stringer("user_id", a.ID), zap.String("ip", dev.IPText()))
			return Tokens{}, err
		}
	}
	issuer, err := s.issuer(ctx)
	if err != nil {
		s.limiter.Cancel(ctx, ticket)
		return Tokens{}, err
	}
	sess, refresh, err := s.begin(ctx, a, dev, s.limiter.Known(try, a.owner()))
	if err != nil {
		s.limiter.Cancel(ctx, ticket)
		return Tokens{}, err
	}
	device := s.limiter.Succeeded(ctx, ticket, a.owner())
	s.security.Info("signed_in", tracing.ID(ctx), zap.Stringer("user_id", a.ID), zap.Stringer("sid", sess.ID),
		zap.String("ip", dev.IPText()))
	t, err := issuer.issue(sess, refresh)
	t.DeviceToken = device
	return t, err
}

// failed counts a wrong password, and announces it when unknown devices are now locked out.
func (s *Service) failed(ctx context.Context, ticket *throttle.Ticket, a account, typed string, dev Device) {
	locked, until := s.limiter.Failed(ctx, ticket)
	fields := []zap.Field{tracing.ID(ctx), zap.String("username", Printable(typed, 255)),
		zap.String("ip", dev.IPText())}
	if a.ID != uuid.Nil {
		fields = append(fields, zap.Stringer("user_id", a.ID))
	}
	s.security.Warn("sign_in_failed", fields...)
	if !locked {
		return
	}
	s.security.Warn("account_locked_out", append(fields, zap.Time("until", until))...)
	if a.ID != uuid.Nil {
		s.queueLockOut(ctx, lockOut{user: a.ID, ip: dev.IPText(), until: until})
	}
}
