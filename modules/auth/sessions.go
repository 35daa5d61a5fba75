package auth

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
)

// Sessions lists the live sessions of the caller, the last used first.
func (s *Service) Sessions(ctx context.Context, caller Caller) ([]Session, error) {
	list, err := s.SessionsOf(ctx, caller.User.ID)
	for i := range list {
		list[i].Current = list[i].ID == caller.SessionID
	}
	return list, err
}

// SessionsOf lists the live sessions of an account, the last used first, without those that ended
// while the store was away.
func (s *Service) SessionsOf(ctx context.Context, userID uuid.UUID) ([]Session, error) {
	records, err := s.sessions.List(ctx, userID)
	if err != nil {
		return nil, err
	}
	live, err := s.live(ctx, records)
	return slices.DeleteFunc(live, func(one Session) bool { return one.expired }), err
}

// EndSession ends one session of the caller. For another user's session it returns
// [ErrSessionNotFound], as for one that does not exist.
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

// ownerOf returns the owner of a live session, or [ErrSessionNotFound]. The database knows it, also
// when the store has lost the record. Sessions that began under the previous release are looked for
// among the suspected user's in the store.
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
	if st := a.sessionState(false); err == nil && (!st.live(sid, b.epoch) || s.mayRefresh(st, sid) != nil) {
		return uuid.Nil, ErrSessionNotFound
	}
	return b.userID, err
}

// EndSessions ends every session of the caller, or every one except the calling one.
func (s *Service) EndSessions(ctx context.Context, caller Caller, exceptCurrent bool) error {
	all := allSessions{userID: caller.User.ID, reason: ReasonEndedByUser}
	if !exceptCurrent {
		return s.endAll(ctx, all, nil)
	}
	all.kept = uuid.NullUUID{UUID: caller.SessionID, Valid: true}
	return s.endAll(ctx, all, func(ctx context.Context, tx database.IDB, now account) error {
		return s.stillLive(ctx, tx, now, caller)
	})
}

// SessionEnded reports whether the session was revoked by id. It remembers that for as long as a
// token could have lived, and knows nothing of sessions that ended with all of their account.
func (s *Service) SessionEnded(ctx context.Context, sid uuid.UUID) (bool, error) {
	revoked, err := revokedAmong(ctx, s.db, []uuid.UUID{sid})
	return revoked[sid], err
}
