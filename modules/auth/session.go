package auth

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// errConcurrentChange says that a session ended between its record and its transaction: all
// sessions of the account were ended, or newer ones evicted this one.
var errConcurrentChange = errors.New("the session ended before it began")

// maxAttempts bounds how often a sign-in is tried. Each failure is the success of another one.
const maxAttempts = 8

// begin is [Service.signIn] for a caller who has just shown the password, which stays right: after
// a concurrent change the sign-in is tried again.
func (s *Service) begin(ctx context.Context, a account, dev Device) (session.Session, session.Token, error) {
	for range maxAttempts {
		sess, refresh, err := s.signIn(ctx, a, dev)
		if !errors.Is(err, errConcurrentChange) {
			return sess, refresh, err
		}
		now, err := accountByID(ctx, s.db, a.ID)
		if errors.Is(err, ErrUserNotFound) {
			return session.Session{}, session.Token{}, ErrInvalidCredentials
		}
		if err != nil {
			return session.Session{}, session.Token{}, err
		}
		a.epoch = now.epoch // and nothing else: signIn compares the password with the one that was shown
	}
	return session.Session{}, session.Token{}, errConcurrentChange
}

// signIn begins a session of an account whose owner has shown the password. It returns
// [errConcurrentChange] when the account's sessions, or this one, were ended meanwhile.
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
			return errConcurrentChange
		}
		// Other sign-ins may have found this one's record and evicted it: it must not be
		// announced after its end.
		revoked, err := revokedAmong(ctx, tx, []uuid.UUID{sess.ID})
		if err != nil {
			return err
		}
		if revoked[sess.ID] {
			return errConcurrentChange
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
	sid := newID()
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

// endSession revokes one session unless it is over already. The revocation commits first;
// the record in the store goes afterwards, and may stay if the store is away.
func (s *Service) endSession(ctx context.Context, userID, sid uuid.UUID, reason Reason) error {
	st, err := s.states.of(ctx, userID, sid)
	if errors.Is(err, ErrUserNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	over := st.revoked
	if !over {
		// A record from before "end all" is over by its epoch: nothing more to announce.
		look, cancel := withShortTimeout(ctx)
		rec, err := s.sessions.Get(look, userID, sid)
		cancel()
		switch {
		case err == nil:
			over = !st.live(sid, rec.Epoch)
		case !errors.Is(err, session.ErrNotFound):
			s.log.Warn("session_record_not_read", zap.Stringer("sid", sid), zap.Error(err))
		}
	}
	if !over {
		if err := s.commitRevocation(ctx, userID, sid, reason); err != nil {
			return err
		}
		s.security.Info("session_ended", zap.Stringer("user_id", userID), zap.Stringer("sid", sid), zap.String("reason", string(reason)))
	}
	s.dropRecord(ctx, userID, sid)
	return nil
}

// commitRevocation ends a session for good, in a transaction of its own.
func (s *Service) commitRevocation(ctx context.Context, userID, sid uuid.UUID, reason Reason) error {
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := lockAccount(ctx, tx, userID); err != nil {
			return err
		}
		_, err := s.revoke(ctx, tx, userID, sid, reason)
		return err
	})
	if errors.Is(err, ErrUserNotFound) {
		return nil
	}
	return err
}

// announceReuse commits the end of a session whose token was presented twice, then lets go
// of the marked record.
func (s *Service) announceReuse(ctx context.Context, userID, sid uuid.UUID, generation uint32, ip, userAgent string) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	head := s.head(userID)
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := lockAccount(ctx, tx, userID); err != nil {
			return err
		}
		news, err := s.writeRevocation(ctx, tx, userID, sid, ReasonReuse, head.OccurredAt)
		if err != nil || !news {
			return err
		}
		// Detected first, revoked second: a reader learns the cause before the effect.
		if err := s.announce(ctx, tx, EventRefreshTokenReuseDetected, head, refreshTokenReuseDetected{
			eventHead: head, SessionID: sid, Generation: generation, IP: ip, UserAgent: userAgent,
		}); err != nil {
			return err
		}
		return s.announceRevoked(ctx, tx, head, sid, ReasonReuse)
	})
	if err != nil && !errors.Is(err, ErrUserNotFound) {
		return err
	}
	s.dropRecord(ctx, userID, sid)
	return nil
}

// revoke writes that a session is over, with its event, and reports whether that is news.
func (s *Service) revoke(ctx context.Context, tx database.IDB, userID, sid uuid.UUID, reason Reason) (bool, error) {
	head := s.head(userID)
	news, err := s.writeRevocation(ctx, tx, userID, sid, reason, head.OccurredAt)
	if err != nil || !news {
		return false, err
	}
	return true, s.announceRevoked(ctx, tx, head, sid, reason)
}

// writeRevocation keeps the row until no token of the session can be presented any more.
func (s *Service) writeRevocation(ctx context.Context, tx database.IDB, userID, sid uuid.UUID, reason Reason, now time.Time) (bool, error) {
	return revokeSession(ctx, tx, userID, sid, reason, now, s.sessionTokensEnd(now).Sub(now))
}

func (s *Service) announceRevoked(ctx context.Context, tx database.IDB, head eventHead, sid uuid.UUID, reason Reason) error {
	e, err := s.revokedEvent(head, sid, reason)
	if err != nil {
		return err
	}
	return outbox.Add(ctx, tx, e)
}

func (s *Service) revokedEvent(head eventHead, sid uuid.UUID, reason Reason) (outbox.Event, error) {
	return s.event(EventSessionRevoked, head, sessionRevoked{
		eventHead: head, SessionID: sid, Reason: reason, ExpiresAt: s.accessTokensEnd(head.OccurredAt),
	})
}

// allSessions are the sessions of an account that end together.
type allSessions struct {
	userID uuid.UUID
	kept   uuid.NullUUID // the one that goes on
	reason Reason
}

// endAll ends sessions, if check, which may be nil, lets it.
func (s *Service) endAll(ctx context.Context, all allSessions, check func(context.Context, database.IDB, account) error) error {
	err := s.changeAccount(ctx, all, check, func(_ context.Context, _ database.Tx, _ account, end func() (int64, error)) error {
		_, err := end()
		return err
	})
	if err == nil {
		s.security.Info("sessions_ended", zap.Stringer("user_id", all.userID), zap.String("reason", string(all.reason)))
	}
	return err
}

// changeAccount runs fn in one transaction with the lock on the account, once check, which may be
// nil, has found nothing against it. fn calls end where the sessions end among its events; end
// raises the epoch and returns it. Their records go after the commit.
func (s *Service) changeAccount(ctx context.Context, all allSessions, check func(context.Context, database.IDB, account) error,
	fn func(ctx context.Context, tx database.Tx, a account, end func() (epoch int64, err error)) error) error {
	var epoch int64
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		epoch = 0
		a, err := lockAccount(ctx, tx, all.userID)
		if err == nil && check != nil {
			err = check(ctx, tx, a)
		}
		if err != nil {
			return err
		}
		return fn(ctx, tx, a, func() (int64, error) {
			raised, event, err := s.raise(ctx, tx, a, all.kept, all.reason)
			if err != nil {
				return 0, err
			}
			epoch = raised
			return raised, outbox.Add(ctx, tx, event)
		})
	})
	if err == nil && epoch > 0 {
		s.clearStore(ctx, all.userID, epoch, all.kept)
	}
	return err
}

// raise ends every session of the account but the kept one, and returns the epoch from which
// sessions live and the event, which it does not add.
func (s *Service) raise(ctx context.Context, tx database.IDB, a account, kept uuid.NullUUID, reason Reason) (int64, outbox.Event, error) {
	head := s.head(a.ID)
	epoch, err := raiseEpoch(ctx, tx, a, kept, head.OccurredAt)
	if err != nil {
		return 0, outbox.Event{}, err
	}
	e, err := s.event(EventAllSessionsRevoked, head, allSessionsRevoked{
		eventHead: head, Reason: reason, SessionEpoch: epoch, KeptSessionID: kept, ExpiresAt: s.accessTokensEnd(head.OccurredAt),
	})
	return epoch, e, err
}

// sessionTokensEnd is when the last token of a session that begins now has expired everywhere.
func (s *Service) sessionTokensEnd(now time.Time) time.Time {
	return s.accessTokensEnd(now.Add(s.cfg.SessionMaxAge))
}

// accessTokensEnd is when the last access token issued up to now has expired everywhere,
// clocks that differ a little and servers with another lifetime included.
func (s *Service) accessTokensEnd(now time.Time) time.Time {
	return now.Add(s.keys.LongestTTL() + time.Minute)
}

// shortTimeout is the longest that an end waits for the store, before and after its commit: the
// database decides, and what the store says or keeps changes nothing about it.
const shortTimeout = 500 * time.Millisecond

// withShortTimeout outlives the request but not [shortTimeout].
func withShortTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), shortTimeout)
}

// dropRecord removes what the store holds of sessions. The database has already decided;
// a record that stays is refused by it and expires.
func (s *Service) dropRecord(ctx context.Context, userID uuid.UUID, sids ...uuid.UUID) {
	ctx, cancel := withShortTimeout(ctx)
	defer cancel()
	if err := s.sessions.Delete(ctx, userID, sids...); err != nil {
		s.log.Warn("session_record_left", zap.Stringer("user_id", userID), zap.Int("sessions", len(sids)), zap.Error(err))
	}
}

// clearStore removes the records of sessions that ended when the epoch was raised. As with
// [Service.dropRecord], what stays is refused all the same.
func (s *Service) clearStore(ctx context.Context, userID uuid.UUID, epoch int64, kept uuid.NullUUID) {
	ctx, cancel := withShortTimeout(ctx)
	defer cancel()
	if err := s.sessions.DeleteAll(ctx, userID, epoch, kept); err != nil {
		s.log.Warn("session_records_left", zap.Stringer("user_id", userID), zap.Error(err))
	}
}
