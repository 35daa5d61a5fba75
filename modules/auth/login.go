package auth

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/platform/database"
)

// Login signs a person in on a device. A name that does not exist, a wrong password and an
// account that is disabled are one answer in content and time, [ErrInvalidCredentials]; only
// who knows the password learns [ErrAccountDisabled].
func (s *Service) Login(ctx context.Context, cred Credentials, dev Device) (Tokens, error) {
	if code, detail := checkDeviceName(dev.Name); code != "" {
		return Tokens{}, ErrValidation.Field("device_name", code, detail)
	}
	// A name that cannot exist goes the same way as one that does not.
	canonical, known := username.Lookup(cred.Username)
	if !known {
		typed := username.Trim(cred.Username)
		canonical = "\x00" + typed[:min(len(typed), 1024)]
	}
	var a account
	try := throttle.Attempt{Account: canonical, Address: dev.IP, Device: dev.Token}
	ticket, ok, err := s.attempt(ctx, try, &a, cred.Password, func() (found bool, err error) {
		if known {
			a, err = accountByName(ctx, s.db, canonical)
		}
		if errors.Is(err, ErrUserNotFound) {
			err = nil
		}
		return a.ID != uuid.Nil, err
	})
	if errors.Is(err, ErrTooManyAttempts) {
		s.security.Warn("sign_in_throttled", zap.String("username", printable(cred.Username, 255)), zap.String("ip", dev.ip()))
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
		s.security.Warn("sign_in_refused", zap.String("reason", "account_disabled"), zap.Stringer("user_id", a.ID), zap.String("ip", dev.ip()))
		return Tokens{}, ErrAccountDisabled
	}
	sess, refresh, err := s.begin(ctx, a, dev)
	if err != nil {
		s.limiter.Cancel(ctx, ticket)
		return Tokens{}, err
	}
	device := s.limiter.Succeeded(ctx, ticket, a.owner())
	s.security.Info("signed_in", zap.Stringer("user_id", a.ID), zap.Stringer("sid", sess.ID), zap.String("ip", dev.ip()))
	t, err := s.issue(ctx, sess, refresh)
	t.Device = device
	return t, err
}

// errNotTrusted says that the device or address of an attempt is not known to the account that
// was looked up: it was known to another one of that name, or before the password changed.
var errNotTrusted = errors.New("the device is not known to this account")

// attempt checks a password as [Service.verify] does, with the limiter's leave, which is asked
// before anything is spent on it. The ticket is the caller's to settle when there is no error.
func (s *Service) attempt(ctx context.Context, try throttle.Attempt, a *account, password string,
	find func() (found bool, err error)) (*throttle.Ticket, bool, error) {
	ticket, err := s.limiter.Begin(ctx, try)
	if errors.Is(err, throttle.ErrCrowded) {
		err = ErrOverloaded.After(time.Second)
	}
	if err != nil {
		return nil, false, err
	}
	ok, err := s.verify(ctx, a, try.Account, password, func() (found bool, err error) {
		found, err = find()
		if err == nil && !s.limiter.Trusts(ticket, a.owner()) {
			err = errNotTrusted
		}
		return found, err
	})
	if err == nil {
		return ticket, ok, nil
	}
	s.limiter.Cancel(ctx, ticket)
	if errors.Is(err, errNotTrusted) && !try.Stranger {
		try.Stranger = true
		return s.attempt(ctx, try, a, password, find)
	}
	return nil, false, err
}

// verify checks the password of an account, which find puts into a when it is about to be
// checked: nobody is looked up who will be turned away. Where there is no account, as much
// work is done for nothing. When the stored hash is of an older kind, a replacement is stored
// and put into a.
func (s *Service) verify(ctx context.Context, a *account, canonical, password string, find func() (found bool, err error)) (bool, error) {
	result, err := s.passwords.Verify(ctx, canonical, password, func() (string, bool, error) {
		found, err := find()
		return a.passwordHash, found, err
	})
	if err != nil || !result.OK {
		return false, err
	}
	if result.Rehash {
		s.renewHash(ctx, a, password)
	}
	return true, nil
}

// renewHash brings the stored hash up to the present settings. It is a favour of a sign-in
// that has succeeded: when it fails, the next one tries again.
func (s *Service) renewHash(ctx context.Context, a *account, password string) {
	hash, err := s.passwords.Hash(ctx, password)
	if err == nil {
		err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return rehash(ctx, tx, a.ID, a.passwordHash, hash) })
	}
	if err != nil {
		s.log.Info("password_hash_not_renewed", zap.Stringer("user_id", a.ID), zap.Error(err))
		return
	}
	a.passwordHash = hash
	s.security.Info("password_hash_renewed", zap.Stringer("user_id", a.ID))
}

// failed counts a wrong password, and announces it when the account is now closed to
// strangers for a while.
func (s *Service) failed(ctx context.Context, ticket *throttle.Ticket, a account, typed string, dev Device) {
	locked, until := s.limiter.Failed(ctx, ticket)
	fields := []zap.Field{zap.String("username", printable(typed, 255)), zap.String("ip", dev.ip())}
	if a.ID != uuid.Nil {
		fields = append(fields, zap.Stringer("user_id", a.ID))
	}
	s.security.Warn("sign_in_failed", fields...)
	if !locked {
		return
	}
	s.security.Warn("account_locked_out", append(fields, zap.Time("until", until))...)
	if a.ID != uuid.Nil {
		s.queueLockOut(ctx, lockOut{user: a.ID, ip: dev.ip(), until: until})
	}
}

// errOvertaken says that a session was over before it had begun: all sessions were ended, or
// this one was pushed out by newer ones, between its record and its transaction.
var errOvertaken = errors.New("the session ended before it began")

// mostOvertaken is how often a sign-in begins anew. Each time, others have got ahead of it.
const mostOvertaken = 8

// begin is [Service.signIn] for who has just shown the password: a session that was overtaken
// begins once more, behind what has overtaken it. The right password stays right.
func (s *Service) begin(ctx context.Context, a account, dev Device) (session.Session, session.Token, error) {
	for range mostOvertaken {
		sess, refresh, err := s.signIn(ctx, a, dev)
		if !errors.Is(err, errOvertaken) {
			return sess, refresh, err
		}
		now, err := accountByID(ctx, s.db, a.ID)
		if errors.Is(err, ErrUserNotFound) {
			return session.Session{}, session.Token{}, ErrInvalidCredentials
		}
		if err != nil {
			return session.Session{}, session.Token{}, err
		}
		a.epoch = now.epoch // and nothing else: the password is still the one that was shown, or refused
	}
	return session.Session{}, session.Token{}, ErrUnavailable
}

// signIn begins a session of an account whose owner has shown the password. It returns
// [errOvertaken] when the account's sessions, or this one, were ended meanwhile.
func (s *Service) signIn(ctx context.Context, a account, dev Device) (session.Session, session.Token, error) {
	sess, refresh, evict, err := s.createRecord(ctx, a, dev)
	if err != nil {
		return session.Session{}, session.Token{}, err
	}
	head := s.head(a.ID)
	var evicted []uuid.UUID
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		// What was checked may have changed while the password was being hashed.
		now, err := lockAccount(ctx, tx, a.ID)
		switch {
		case errors.Is(err, ErrUserNotFound):
			return ErrInvalidCredentials
		case err != nil:
			return err
		case now.Status != StatusActive:
			return ErrAccountDisabled
		case !now.samePassword(a):
			return ErrInvalidCredentials
		case now.epoch != a.epoch:
			return errOvertaken
		}
		// Sign-ins that found this one's record may have evicted it already. It is not
		// announced after its end.
		if revoked, err := revokedAmong(ctx, tx, []uuid.UUID{sess.ID}); err != nil || revoked[sess.ID] {
			return cmp.Or(err, errOvertaken)
		}
		if evicted, err = s.evict(ctx, tx, a.ID, evict); err != nil {
			return err
		}
		if err := s.recordBegun(ctx, tx, begun{sess.ID, a.ID, sess.Epoch, head.OccurredAt}); err != nil {
			return err
		}
		return s.announce(ctx, tx, EventUserLoggedIn, head, userLoggedIn{
			eventHead: head, SessionID: sess.ID, DeviceName: sess.DeviceName, IP: sess.IP, UserAgent: sess.UserAgent,
		})
	})
	if err != nil {
		s.dropRecord(ctx, a.ID, sess.ID)
		return session.Session{}, session.Token{}, err
	}
	for _, sid := range evicted {
		s.security.Info("session_ended", zap.Stringer("user_id", a.ID), zap.Stringer("sid", sid), zap.String("reason", string(ReasonEvicted)))
	}
	if len(evict) > 0 {
		over := make([]uuid.UUID, len(evict))
		for i, one := range evict {
			over[i] = one.ID
		}
		s.dropRecord(ctx, a.ID, over...)
	}
	return sess, refresh, nil
}

// evict revokes the sessions that have to go for another one, and returns those that were
// announced. The sign-in of a tentative one may be under way still, or have died: it is kept
// from beginning, and nobody is told of the end of what they were never told of.
func (s *Service) evict(ctx context.Context, tx database.IDB, userID uuid.UUID, over []session.Over) (announced []uuid.UUID, err error) {
	var tentative []uuid.UUID
	for _, one := range over {
		if one.Tentative {
			tentative = append(tentative, one.ID)
		}
	}
	begun, err := begunAmong(ctx, tx, tentative)
	if err != nil {
		return nil, err
	}
	for _, one := range over {
		if one.Tentative && !begun[one.ID] {
			_, err = s.writeRevocation(ctx, tx, userID, one.ID, ReasonEvicted, s.timestamp())
		} else {
			announced = append(announced, one.ID)
			_, err = s.revoke(ctx, tx, userID, one.ID, ReasonEvicted)
		}
		if err != nil {
			return nil, err
		}
	}
	return announced, nil
}

// createRecord writes a session record that nobody knows of yet, and returns which sessions
// have to go for it.
func (s *Service) createRecord(ctx context.Context, a account, dev Device) (session.Session, session.Token, []session.Over, error) {
	sid, err := newID()
	if err != nil {
		return session.Session{}, session.Token{}, nil, err
	}
	dev = dev.clean()
	refresh := s.codec.Mint(a.ID, sid, 1)
	start := session.Start{
		ID: sid, UserID: a.ID, Epoch: a.epoch, Hash: refresh.Hash(),
		DeviceName: dev.Name, UserAgent: dev.UserAgent, IP: dev.ip(),
		MaxAge: s.cfg.SessionMaxAge, IdleTTL: s.cfg.RefreshTokenTTL,
		Max: s.cfg.MaxSessions, RejectNew: s.cfg.SessionLimit == "reject-new",
	}
	started, err := s.sessions.Create(ctx, start)
	if errors.Is(err, session.ErrTooMany) || len(started.Over) > 0 {
		swept, sweepErr := s.sweep(ctx, a.ID)
		if sweepErr != nil {
			s.dropRecord(ctx, a.ID, sid)
			return session.Session{}, session.Token{}, nil, sweepErr
		}
		if swept {
			started, err = s.sessions.Create(ctx, start)
		}
	}
	if errors.Is(err, session.ErrTooMany) {
		err = ErrTooManySessions
	}
	return started.Session, refresh, started.Over, err
}

// sweep removes the records of sessions that are over, which could not be removed when they
// ended: they take nobody's place. It reports whether there were any.
func (s *Service) sweep(ctx context.Context, userID uuid.UUID) (bool, error) {
	records, err := s.sessions.List(ctx, userID)
	if err != nil {
		return false, err
	}
	_, ended, err := s.compare(ctx, records)
	if err != nil || len(ended) == 0 {
		return false, err
	}
	return true, s.sessions.Delete(ctx, userID, ended[userID]...)
}

// dropRecord removes what the store holds of sessions. The database has already decided;
// a record that stays is refused by it and expires.
func (s *Service) dropRecord(ctx context.Context, userID uuid.UUID, sids ...uuid.UUID) {
	ctx, cancel := atAGlance(ctx)
	defer cancel()
	if err := s.sessions.Delete(ctx, userID, sids...); err != nil {
		s.log.Warn("session_record_left", zap.Stringer("user_id", userID), zap.Int("sessions", len(sids)), zap.Error(err))
	}
}
