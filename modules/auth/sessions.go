package auth

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// Session is a device session as its owner sees it.
type Session struct {
	ID         uuid.UUID `json:"id"`
	UserID     uuid.UUID `json:"-"`
	Username   string    `json:"-"`
	DeviceName string    `json:"device_name"`
	UserAgent  string    `json:"user_agent"`
	IP         string    `json:"ip"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	ExpiresAt  time.Time `json:"expires_at"` // unless it is refreshed before
	Current    bool      `json:"current"`    // the one that asks

	epoch int64 // of the account when it began
}

// Sessions lists the live sessions of the caller, the last used first.
func (s *Service) Sessions(ctx context.Context, caller Caller) ([]Session, error) {
	list, err := s.SessionsOf(ctx, caller.User.ID)
	for i := range list {
		list[i].Current = list[i].ID == caller.SessionID
	}
	return list, err
}

// SessionsOf lists the live sessions of an account, the last used first. What the store
// still holds of sessions that ended while it was away is left out.
func (s *Service) SessionsOf(ctx context.Context, userID uuid.UUID) ([]Session, error) {
	records, err := s.sessions.List(ctx, userID)
	if err != nil {
		return nil, err
	}
	return s.live(ctx, records)
}

// live leaves out the records that the database says are over.
func (s *Service) live(ctx context.Context, records []session.Session) ([]Session, error) {
	live, _, err := s.compare(ctx, records)
	return live, err
}

// compare asks the database which of the records are of sessions that live. It also returns
// the ids of those that are over, by user. A user who is not in the database may be in another
// one that shares the store: their records are neither.
func (s *Service) compare(ctx context.Context, records []session.Session) (live []Session, ended map[uuid.UUID][]uuid.UUID, err error) {
	var users, ids, tentative []uuid.UUID
	known := make(map[uuid.UUID]bool)
	for _, r := range records {
		ids = append(ids, r.ID)
		if r.Tentative() {
			tentative = append(tentative, r.ID)
		}
		if !known[r.UserID] {
			known[r.UserID] = true
			users = append(users, r.UserID)
		}
	}
	accounts, err := accountsByID(ctx, s.db, users)
	if err != nil {
		return nil, nil, err
	}
	revoked, err := revokedAmong(ctx, s.db, ids)
	if err != nil {
		return nil, nil, err
	}
	begun, err := begunAmong(ctx, s.db, tentative)
	if err != nil {
		return nil, nil, err
	}
	live, ended = make([]Session, 0, len(records)), make(map[uuid.UUID][]uuid.UUID)
	for _, r := range records {
		a, found := accounts[r.UserID]
		st := standing{user: a.User, epoch: a.epoch, keptSID: a.keptSID, revoked: revoked[r.ID]}
		switch {
		case !found:
		case r.Tentative() && !begun[r.ID]: // its sign-in is under way, or has died
			if s.now().Sub(began(r.ID)) > tentativeFor {
				ended[r.UserID] = append(ended[r.UserID], r.ID)
			}
		case !st.live(r.ID, r.Epoch) || s.tooOld(r.ID):
			ended[r.UserID] = append(ended[r.UserID], r.ID)
		default:
			live = append(live, Session{
				ID: r.ID, UserID: r.UserID, Username: a.Username, DeviceName: r.DeviceName, UserAgent: r.UserAgent, IP: r.IP,
				CreatedAt: r.CreatedAt, LastUsedAt: r.LastUsedAt, ExpiresAt: r.IdleExpiresAt, epoch: r.Epoch,
			})
		}
	}
	return live, ended, nil
}

// EndSession ends one session of the caller. Another user's session is [ErrSessionNotFound],
// as one that does not exist.
func (s *Service) EndSession(ctx context.Context, caller Caller, sid uuid.UUID) error {
	if sid == caller.SessionID {
		return s.endSession(ctx, caller.User.ID, sid, ReasonLogout)
	}
	owner, err := s.ownerOf(ctx, caller.User.ID, sid)
	if err != nil {
		return err
	}
	if owner != caller.User.ID {
		return ErrSessionNotFound
	}
	return s.endSession(ctx, owner, sid, ReasonEndedByUser)
}

// ownerOf returns whose session this is if it lives, or [ErrSessionNotFound]. The database knows
// it, also when the store has lost its record; of sessions that began under the release before,
// the store does, if it is the suspected user's.
func (s *Service) ownerOf(ctx context.Context, suspected, sid uuid.UUID) (uuid.UUID, error) {
	b, err := begunSession(ctx, s.db, sid)
	if errors.Is(err, ErrSessionNotFound) {
		list, err := s.SessionsOf(ctx, suspected)
		if err != nil {
			return uuid.Nil, err
		}
		if !slices.ContainsFunc(list, func(one Session) bool { return one.ID == sid }) {
			return uuid.Nil, ErrSessionNotFound
		}
		return suspected, nil
	}
	if err != nil {
		return uuid.Nil, err
	}
	a, err := accountByID(ctx, s.db, b.userID)
	if errors.Is(err, ErrUserNotFound) {
		return uuid.Nil, ErrSessionNotFound
	}
	if st := (standing{user: a.User, epoch: a.epoch, keptSID: a.keptSID}); err == nil && (!st.live(sid, b.epoch) || s.tooOld(sid)) {
		return uuid.Nil, ErrSessionNotFound
	}
	return b.userID, err
}

// EndSessions ends every session of the caller, or every one but the calling one.
func (s *Service) EndSessions(ctx context.Context, caller Caller, exceptCurrent bool) error {
	if !exceptCurrent {
		return s.endAll(ctx, caller.User.ID, ReasonEndedByUser)
	}
	kept := uuid.NullUUID{UUID: caller.SessionID, Valid: true}
	return s.endAllBut(ctx, caller.User.ID, kept, ReasonEndedByUser, func(ctx context.Context, tx database.IDB, now account) error {
		return s.stillLive(ctx, tx, now, caller)
	})
}

// SessionEnded reports whether the session is known to have been ended by itself, as long as a
// token of it could live otherwise. Of one that ended with all of its account it knows nothing.
func (s *Service) SessionEnded(ctx context.Context, sid uuid.UUID) (bool, error) {
	revoked, err := revokedAmong(ctx, s.db, []uuid.UUID{sid})
	return revoked[sid], err
}

// RevokeUserSessions ends every session of an account on an operator's behalf.
func (s *Service) RevokeUserSessions(ctx context.Context, userID uuid.UUID) error {
	return s.endAll(ctx, userID, ReasonEndedByAdmin)
}

// RevokeSession ends a session on an operator's behalf.
func (s *Service) RevokeSession(ctx context.Context, one Session) error {
	return s.endSession(ctx, one.UserID, one.ID, ReasonEndedByAdmin)
}

// SessionFilter chooses among the sessions that the store has. Zero fields choose everything.
type SessionFilter struct {
	// Everybody is for [Service.RevokeSessions] alone: every session of every account, also of
	// those that the store does not know of. AfterAccount goes on with what was broken off.
	// The other fields are not looked at.
	Everybody    bool
	AfterAccount uuid.UUID

	UserID uuid.NullUUID
	ID     uuid.NullUUID
	IP     netip.Prefix // of the latest use
	Before time.Time    // last used before
}

// foundBatch is how many records are compared with the database at a time.
const foundBatch = 200

// FindSessions passes the live sessions that the filter chooses to fn, in no particular
// order and in bounded memory, until fn returns an error.
func (s *Service) FindSessions(ctx context.Context, f SessionFilter, fn func(Session) error) error {
	filter := session.Filter{ID: f.ID, IP: f.IP, Before: f.Before}
	portion := make([]session.Session, 0, foundBatch)
	flush := func() error {
		live, err := s.live(ctx, portion)
		if err != nil {
			return err
		}
		portion = portion[:0]
		for _, one := range live {
			if err := fn(one); err != nil {
				return err
			}
		}
		return nil
	}
	if f.UserID.Valid {
		records, err := s.sessions.List(ctx, f.UserID.UUID)
		if err != nil {
			return err
		}
		for _, r := range records {
			if filter.Match(r) {
				portion = append(portion, r)
			}
		}
		return flush()
	}
	for r, err := range s.sessions.Walk(ctx, filter) {
		if err != nil {
			return err
		}
		if portion = append(portion, r); len(portion) == cap(portion) {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// endAll raises the account's epoch, which ends every session begun before it, and then
// clears the store.
func (s *Service) endAll(ctx context.Context, userID uuid.UUID, reason Reason) error {
	return s.endAllBut(ctx, userID, uuid.NullUUID{}, reason, func(context.Context, database.IDB, account) error { return nil })
}

// endAllBut is endAll with a session that goes on, if check finds that it still may.
func (s *Service) endAllBut(ctx context.Context, userID uuid.UUID, kept uuid.NullUUID, reason Reason, check func(context.Context, database.IDB, account) error) error {
	var epoch int64
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		a, err := lockAccount(ctx, tx, userID)
		if err != nil {
			return err
		}
		if err := check(ctx, tx, a); err != nil {
			return err
		}
		epoch, err = s.raiseAndAnnounce(ctx, tx, a, kept, reason)
		return err
	})
	if err != nil {
		return err
	}
	s.clearStore(ctx, userID, epoch, kept)
	s.security.Info("sessions_ended", zap.Stringer("user_id", userID), zap.String("reason", string(reason)))
	return nil
}

// stillLive refuses a caller whose session has ended since it was authenticated. Who keeps a
// session alive past the end of all others asks this under the lock on the account: an ended
// session must not keep itself, which would bring it back.
func (s *Service) stillLive(ctx context.Context, tx database.IDB, now account, caller Caller) error {
	revoked, err := revokedAmong(ctx, tx, []uuid.UUID{caller.SessionID})
	if err != nil {
		return err
	}
	st := standing{user: now.User, epoch: now.epoch, keptSID: now.keptSID, revoked: revoked[caller.SessionID]}
	if !st.live(caller.SessionID, caller.claims.SessionEpoch) {
		return ErrSessionRevoked
	}
	return nil
}

// raiseAndAnnounce ends every session of the account but the kept one, with the event, and
// returns the epoch from which sessions live.
func (s *Service) raiseAndAnnounce(ctx context.Context, tx database.IDB, a account, kept uuid.NullUUID, reason Reason) (int64, error) {
	epoch, e, err := s.raise(ctx, tx, a, kept, reason)
	if err != nil {
		return 0, err
	}
	return epoch, outbox.Add(ctx, tx, e)
}

// raise is [Service.raiseAndAnnounce] but for adding the event, which it returns.
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

// clearStore removes the records of sessions that ended when the epoch was raised. As with
// [Service.dropRecord], what stays is refused all the same.
func (s *Service) clearStore(ctx context.Context, userID uuid.UUID, epoch int64, kept uuid.NullUUID) {
	ctx, cancel := atAGlance(ctx)
	defer cancel()
	if err := s.sessions.DeleteAll(ctx, userID, epoch, kept); err != nil {
		s.log.Warn("session_records_left", zap.Stringer("user_id", userID), zap.Error(err))
	}
}
