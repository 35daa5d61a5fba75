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
	"github.com/toppira/authctl/platform/tracing"
)

// errConcurrentChange says that a session ended between its record and its transaction: all
// sessions of the account were ended, or newer ones evicted this one.
var errConcurrentChange = errors.New("the session ended before it began")

// maxAttempts bounds how often a sign-in is tried. Each failure is the success of another one.
const maxAttempts = 8

// begin is [Service.signIn] for a caller who has just shown the password, which stays right: after
// a concurrent change the sign-in is tried again.
func (s *Service) begin(ctx context.Context, a account, dev Device,
	known bool) (session.Session, session.Token, error) {
	for range maxAttempts {
		sess, refresh, err := s.signIn(ctx, a, dev, known)
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
func (s *Service) signIn(ctx context.Context, a account, dev Device,
	known bool) (session.Session, session.Token, error) {
	sess, refresh, excess, err := s.createRecord(ctx, a, dev)
	if err != nil {
		return session.Session{}, session.Token{}, err
	}
	env := s.newEnvelope(a.ID)
	var evicted []uuid.UUID
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		// The account may have changed while the password was being hashed.
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
		if evicted, err = s.evict(ctx, tx, now, excess); err != nil {
			return err
		}
		if err := s.recordBegun(ctx, tx, begun{sess.ID, a.ID, sess.Epoch, env.OccurredAt}); err != nil {
			return err
		}
		err = s.announce(ctx, tx, EventUserLoggedIn, env, userLoggedIn{
			Envelope: env, SessionID: sess.ID, DeviceName: sess.DeviceName, IP: sess.IP, UserAgent: sess.UserAgent,
			KnownDevice: known,
		})
		if err == nil && s.hooks.SignedIn != nil {
			err = s.hooks.SignedIn(ctx, tx, now.User, dev, known)
		}
		return err
	})
	if err != nil {
		s.removeRecords(ctx, a.ID, sess.ID)
		return session.Session{}, session.Token{}, err
	}
	for _, sid := range evicted {
		s.logEnd(ctx, a.ID, sid, ReasonEvicted)
	}
	if len(excess) > 0 {
		s.removeRecords(ctx, a.ID, idsOf(excess)...)
	}
	return sess, refresh, nil
}

// evict revokes sessions above the limit, and returns those whose end was announced. The sign-in
// of a tentative one may still be running, or have died: it is kept from beginning, and since its
// beginning was never announced, its end is not either. One that ended with all others of the account,
// which is locked, since it was found does not end again.
func (s *Service) evict(ctx context.Context, tx database.IDB, a account,
	excess []session.Excess) (announced []uuid.UUID, err error) {
	begun, err := begunAmong(ctx, tx, idsOf(excess))
	if err != nil {
		return nil, err
	}
	var unbegun []uuid.UUID
	for _, one := range excess {
		b, known := begun[one.ID]
		switch {
		case known && a.hasEnded(b):
		case one.Tentative && !known:
			unbegun = append(unbegun, one.ID)
		default:
			announced = append(announced, one.ID)
		}
	}
	// The limit may have been lowered by a lot, so all of them end together.
	if len(unbegun) > 0 {
		_, err = s.writeRevocations(ctx, tx, a.ID, ReasonEvicted, s.timestamp(), time.Time{}, unbegun...)
	}
	if err == nil && len(announced) > 0 {
		err = s.revoke(ctx, tx, a.ID, ReasonEvicted, announced...)
	}
	return announced, err
}

func idsOf(excess []session.Excess) []uuid.UUID {
	sids := make([]uuid.UUID, len(excess))
	for i, one := range excess {
		sids[i] = one.ID
	}
	return sids
}

// createRecord writes the record of a session that has not begun yet, and returns the sessions
// that it puts above the limit.
func (s *Service) createRecord(ctx context.Context, a account,
	dev Device) (session.Session, session.Token, []session.Excess, error) {
	sid := newID()
	dev = dev.clean()
	refresh := s.codec.Mint(a.ID, sid, 1)
	start := session.Start{
		ID: sid, UserID: a.ID, Epoch: a.epoch, Hash: refresh.Hash(),
		DeviceName: dev.Name, UserAgent: dev.UserAgent, IP: dev.IPText(),
		MaxAge: s.cfg.SessionMaxAge, IdleTTL: s.cfg.RefreshTokenTTL,
		Max: s.cfg.MaxSessions, RejectNew: s.cfg.SessionLimit == "reject-new",
	}
	started, err := s.sessions.Create(ctx, start)
	if errors.Is(err, session.ErrTooMany) || len(started.Excess) > 0 {
		removed, removeErr := s.removeEnded(ctx, a.ID)
		if removeErr != nil {
			s.removeRecords(ctx, a.ID, sid)
			return session.Session{}, session.Token{}, nil, removeErr
		}
		if removed {
			started, err = s.sessions.Create(ctx, start)
		}
	}
	if errors.Is(err, session.ErrTooMany) {
		err = ErrTooManySessions
	}
	return started.Session, refresh, started.Excess, err
}

// removeEnded removes records that could not be removed when their sessions ended: they must not
// count for the limit. It reports whether there were any.
func (s *Service) removeEnded(ctx context.Context, userID uuid.UUID) (bool, error) {
	records, err := s.sessions.List(ctx, userID)
	if err != nil {
		return false, err
	}
	live, ended, err := s.compare(ctx, records)
	if err != nil {
		return false, err
	}
	for _, one := range live {
		if one.expired {
			ended[userID] = append(ended[userID], one.ID)
		}
	}
	if len(ended[userID]) == 0 {
		return false, nil
	}
	return true, s.sessions.Delete(ctx, userID, ended[userID]...)
}

// endSession revokes one session unless it has ended already. The revocation commits first; the
// record is removed afterwards, and may stay when the store is away.
func (s *Service) endSession(ctx context.Context, userID, sid uuid.UUID, reason Reason) error {
	st, err := s.states.of(ctx, userID, sid)
	if errors.Is(err, ErrUserNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ended := st.revoked
	if !ended {
		// A record from before all sessions ended has ended by its epoch: nothing is left to announce.
		look, cancel := detached(ctx, shortTimeout)
		rec, err := s.sessions.Get(look, userID, sid)
		cancel()
		switch {
		case err == nil:
			ended = !st.live(sid, rec.Epoch)
		case !errors.Is(err, session.ErrNotFound):
			s.log.Warn("session_record_not_read", tracing.ID(ctx), zap.Stringer("sid", sid), zap.Error(err))
		}
	}
	if !ended {
		if err := s.commitRevocation(ctx, userID, sid, reason); err != nil {
			return err
		}
		s.logEnd(ctx, userID, sid, reason)
	}
	s.removeRecords(ctx, userID, sid)
	return nil
}

func (s *Service) logEnd(ctx context.Context, userID, sid uuid.UUID, reason Reason) {
	s.security.Info("session_ended", tracing.ID(ctx), zap.Stringer("user_id", userID), zap.Stringer("sid", sid),
		zap.String("reason", string(reason)))
}

// commitRevocation revokes a session in a transaction of its own.
func (s *Service) commitRevocation(ctx context.Context, userID, sid uuid.UUID, reason Reason) error {
	return s.endOnce(ctx, userID, sid, func(ctx context.Context, tx database.Tx) error {
		return s.revoke(ctx, tx, userID, reason, sid)
	})
}

// endOnce runs fn in a transaction that has locked the account, unless the session ended with all others of it: that
// was announced.
func (s *Service) endOnce(ctx context.Context, userID, sid uuid.UUID,
	fn func(ctx context.Context, tx database.Tx) error) error {
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		a, err := lockAccount(ctx, tx, userID)
		if err != nil {
			return err
		}
		b, err := begunSession(ctx, tx, sid)
		if err != nil && !errors.Is(err, ErrSessionNotFound) {
			return err
		}
		if err == nil && a.hasEnded(b) {
			return nil
		}
		return fn(ctx, tx)
	})
	if errors.Is(err, ErrUserNotFound) {
		return nil
	}
	return err
}

// hasEnded reports whether a session ended when the epoch of its account was raised.
func (a account) hasEnded(b begun) bool {
	return b.epoch < a.epoch && !(a.keptSID.Valid && a.keptSID.UUID == b.sid)
}

// announceReuse revokes a session whose token was used twice, unless it ended with all others, and then
// removes the marked record.
func (s *Service) announceReuse(ctx context.Context, userID, sid uuid.UUID, generation uint32, ip,
	userAgent string) error {
	ctx, cancel := detached(ctx, detachTimeout)
	defer cancel()
	env := s.newEnvelope(userID)
	err := s.endOnce(ctx, userID, sid, func(ctx context.Context, tx database.Tx) error {
		news, err := s.writeRevocations(ctx, tx, userID, ReasonReuse, env.OccurredAt, time.Time{}, sid)
		if err != nil || len(news) == 0 {
			return err
		}
		// A reader learns the cause before the effect.
		if err := s.announce(ctx, tx, EventRefreshTokenReuseDetected, env, refreshTokenReuseDetected{
			Envelope: env, SessionID: sid, Generation: generation, IP: ip, UserAgent: userAgent,
		}); err != nil {
			return err
		}
		return s.announceRevoked(ctx, tx, env, ReasonReuse, sid)
	})
	if err == nil {
		s.removeRecords(ctx, userID, sid)
	}
	return err
}

// revoke writes the revocations of sessions, with an event for each that is a new one.
func (s *Service) revoke(ctx context.Context, tx database.IDB, userID uuid.UUID, reason Reason,
	sids ...uuid.UUID) error {
	if err := outbox.Await(ctx, tx); err != nil {
		return err
	}
	env := s.newEnvelope(userID)
	news, err := s.writeRevocations(ctx, tx, userID, reason, env.OccurredAt, time.Time{}, sids...)
	if err != nil {
		return err
	}
	return s.announceRevoked(ctx, tx, env, reason, news...)
}

// longestMaxAge is the most that auth.session_max_age can be.
const longestMaxAge = 17520 * time.Hour

// writeRevocations writes a row for each session that is kept until no token of it can be presented any more.
// An operator's command may have another auth.session_max_age than the server that began the session:
// there ends counts, which is when the session ends whatever is done, or the most that can be set
// where that is not known (zero). It returns the sessions that were not revoked before.
func (s *Service) writeRevocations(ctx context.Context, tx database.IDB, userID uuid.UUID, reason Reason,
	now, ends time.Time, sids ...uuid.UUID) ([]uuid.UUID, error) {
	maxAge := s.cfg.SessionMaxAge
	if reason == ReasonEndedByAdmin {
		if maxAge = longestMaxAge; !ends.IsZero() {
			maxAge = ends.Sub(now)
		}
	}
	return revokeSessions(ctx, tx, userID, reason, now, s.accessTokensEnd(now.Add(maxAge)).Sub(now), sids)
}

func (s *Service) announceRevoked(ctx context.Context, tx database.IDB, env Envelope, reason Reason,
	sids ...uuid.UUID) error {
	events := make([]outbox.Event, len(sids))
	for i, sid := range sids {
		var err error
		if events[i], err = s.revokedEvent(env, sid, reason); err != nil {
			return err
		}
	}
	return outbox.Add(ctx, tx, events...)
}

func (s *Service) revokedEvent(env Envelope, sid uuid.UUID, reason Reason) (outbox.Event, error) {
	return env.Event(s.Issuer(), EventSessionRevoked, sessionRevoked{
		Envelope: env, SessionID: sid, Reason: reason, ExpiresAt: s.accessTokensEnd(env.OccurredAt),
	})
}

// allSessions are the sessions of an account that end together.
type allSessions struct {
	userID uuid.UUID
	kept   uuid.NullUUID // the one that goes on
	reason Reason
}

// checkAccount returns why an account, which is locked, must not be changed. It may be nil.
type checkAccount func(ctx context.Context, tx database.IDB, now account) error

// endSessions ends the sessions and returns the new epoch.
type endSessions func() (epoch int64, err error)

func (s *Service) endAll(ctx context.Context, all allSessions, check checkAccount) error {
	err := s.changeAccount(ctx, all, check, func(_ context.Context, _ database.Tx, _ account, end endSessions) error {
		_, err := end()
		return err
	})
	if err == nil {
		s.security.Info("sessions_ended", tracing.ID(ctx), zap.Stringer("user_id", all.userID),
			zap.String("reason", string(all.reason)))
	}
	return err
}

// changeAccount locks an account, asks check and runs fn, all in one transaction. fn calls end where
// the end of the sessions belongs among its events. Their records are removed after the commit.
func (s *Service) changeAccount(ctx context.Context, all allSessions, check checkAccount,
	fn func(ctx context.Context, tx database.Tx, a account, end endSessions) error) error {
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
			if err := outbox.Await(ctx, tx); err != nil {
				return 0, err
			}
			raised, event, err := s.raise(ctx, tx, a, all.kept, all.reason)
			if err != nil {
				return 0, err
			}
			epoch = raised
			return raised, outbox.Add(ctx, tx, event)
		})
	})
	if err == nil && epoch > 0 {
		s.removeAllRecords(ctx, all.userID, epoch, all.kept)
	}
	return err
}

// raise ends every session of the account but the kept one, and returns the epoch from which
// sessions live and the event, which it does not add. The event says how long access tokens can live that are
// issued up to the commit, so the caller has called [outbox.Await]: the commit must not be long after.
func (s *Service) raise(ctx context.Context, tx database.IDB, a account, kept uuid.NullUUID,
	reason Reason) (int64, outbox.Event, error) {
	env := s.newEnvelope(a.ID)
	epoch, err := raiseEpoch(ctx, tx, a, kept, env.OccurredAt)
	if err != nil {
		return 0, outbox.Event{}, err
	}
	e, err := env.Event(s.Issuer(), EventAllSessionsRevoked, allSessionsRevoked{
		Envelope: env, Reason: reason, SessionEpoch: epoch, KeptSessionID: kept,
		ExpiresAt: s.accessTokensEnd(env.OccurredAt),
	})
	return epoch, e, err
}

// sessionTokensEnd is when the last token of a session that begins now will have expired everywhere.
func (s *Service) sessionTokensEnd(now time.Time) time.Time {
	return s.accessTokensEnd(now.Add(s.cfg.SessionMaxAge))
}

// accessTokensEnd is when the last access token issued up to now will have expired everywhere, also
// on servers whose clock differs a little or whose tokens live longer.
func (s *Service) accessTokensEnd(now time.Time) time.Time {
	return now.Add(s.keys.LongestTTL() + time.Minute)
}

// shortTimeout is the longest that the end of a session waits for the store, before and after its
// commit: the database decides, whatever the store says or keeps.
const shortTimeout = 500 * time.Millisecond

// removeRecords removes sessions from the store. The database has already decided: a record that
// stays is refused, and expires.
func (s *Service) removeRecords(ctx context.Context, userID uuid.UUID, sids ...uuid.UUID) {
	ctx, cancel := detached(ctx, shortTimeout)
	defer cancel()
	if err := s.sessions.Delete(ctx, userID, sids...); err != nil {
		s.log.Warn("session_records_left", tracing.ID(ctx), zap.Stringer("user_id", userID),
			zap.Int("sessions", len(sids)), zap.Error(err))
	}
}

// removeAllRecords is [Service.removeRecords] for the sessions that ended when the epoch was raised.
func (s *Service) removeAllRecords(ctx context.Context, userID uuid.UUID, epoch int64, kept uuid.NullUUID) {
	ctx, cancel := detached(ctx, shortTimeout)
	defer cancel()
	if err := s.sessions.DeleteAll(ctx, userID, epoch, kept); err != nil {
		s.log.Warn("session_records_left", tracing.ID(ctx), zap.Stringer("user_id", userID), zap.Error(err))
	}
}
