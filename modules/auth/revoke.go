package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// Revoke ends the session of a token of either kind on behalf of a client (RFC 7009). A token that
// is not valid is no error.
func (s *Service) Revoke(ctx context.Context, text string) error {
	if IsRefreshToken(text) {
		t, err := s.codec.Parse(text)
		if err != nil {
			return nil
		}
		return s.endSession(ctx, t.UserID(), t.SessionID(), ReasonTokenRevoked)
	}
	caller, err := s.identify(ctx, text)
	if errors.Is(err, ErrInvalidToken) || errors.Is(err, ErrSessionRevoked) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, caller.User.ID, caller.SessionID, ReasonTokenRevoked)
}

// Revoked counts what [Service.RevokeSessions] has ended.
type Revoked struct {
	Accounts int // whose sessions all ended, with an AllSessionsRevoked for each account
	Sessions int // that ended one by one, with a SessionRevoked each
	// LastAccount is the account that was done last: an interrupted revocation of everybody continues
	// after it, with [SessionFilter.AfterAccount].
	LastAccount uuid.UUID
}

// revokeBatch is how many accounts or sessions end in one transaction: so few that a concurrent
// sign-in does not notice.
const revokeBatch = 100

// RevokeSessions ends the sessions that the filter selects on an operator's behalf. Every server
// refuses their tokens from the commit on, which includes the events.
//
// For everybody, and for a user alone, the epoch of the account ends the sessions, whatever the session store has,
// and without it. A session selected by its id ends also when the store has lost it. All others are
// selected from the store; when it has lost sessions that the filter may select, the error is a
// [RecordsLostError].
//
// It works in batches until it is done, ctx ends or an error comes. What it returns has ended, also with
// an error.
func (s *Service) RevokeSessions(ctx context.Context, f SessionFilter) (Revoked, error) {
	if f.Everybody {
		done, err := s.revokeEverybody(ctx, f.AfterAccount)
		if done.Accounts > 0 {
			s.security.Info("all_sessions_ended", zap.Int("accounts", done.Accounts),
				zap.String("reason", string(ReasonEndedByAdmin)))
		}
		if err == nil {
			s.removeEndedRecords(ctx)
		}
		return done, err
	}
	if f.UserID.Valid && f == (SessionFilter{UserID: f.UserID}) {
		if err := s.endAll(ctx, allSessions{userID: f.UserID.UUID, reason: ReasonEndedByAdmin}, nil); err != nil {
			return Revoked{}, err
		}
		return Revoked{Accounts: 1, LastAccount: f.UserID.UUID}, nil
	}
	return s.revokeFound(ctx, f)
}

// revokeEverybody raises the epoch of every account that can have sessions, ordered by id.
func (s *Service) revokeEverybody(ctx context.Context, after uuid.UUID) (Revoked, error) {
	done := Revoked{LastAccount: after}
	for {
		begun := time.Now()
		var list []account
		err := s.transact(ctx, func(ctx context.Context, tx database.Tx) (err error) {
			if list, err = lockAccountsAfter(ctx, tx, done.LastAccount, revokeBatch); err != nil || len(list) == 0 {
				return err
			}
			if err := outbox.Await(ctx, tx); err != nil {
				return err
			}
			events := make([]outbox.Event, len(list))
			for i, a := range list {
				if _, events[i], err = s.raise(ctx, tx, a, uuid.NullUUID{}, ReasonEndedByAdmin); err != nil {
					return err
				}
			}
			return outbox.Add(ctx, tx, events...)
		})
		if err != nil {
			return done, fmt.Errorf("end the sessions of all accounts: %w", err)
		}
		if len(list) == 0 {
			return done, nil
		}
		done.Accounts += len(list)
		done.LastAccount = list[len(list)-1].ID
		if err := s.giveWay(ctx, time.Since(begun)); err != nil {
			return done, err
		}
	}
}

// removeEndedRecords removes the records of ended sessions. They would be refused, and expire.
func (s *Service) removeEndedRecords(ctx context.Context) {
	err := s.inPortions(ctx, session.Filter{}, func(records []session.Session) error {
		begun := time.Now()
		_, ended, err := s.compare(ctx, records)
		if err != nil {
			return err
		}
		for userID, sids := range ended {
			if err := s.sessions.Delete(ctx, userID, sids...); err != nil {
				return err
			}
		}
		return s.giveWay(ctx, time.Since(begun))
	})
	if err != nil {
		s.log.Warn("session_records_left", zap.Error(err))
	}
}

// revokeFound ends the sessions that the filter selects from the store.
func (s *Service) revokeFound(ctx context.Context, f SessionFilter) (done Revoked, err error) {
	f.Expired = true
	err = s.FindSessions(ctx, f, func(found []Session) error {
		for portion := range slices.Chunk(found, revokeBatch) {
			begun := time.Now()
			n, err := s.revokeListed(ctx, portion)
			if err != nil {
				return fmt.Errorf("end sessions: %w", err)
			}
			done.Sessions += n
			if err := s.giveWay(ctx, time.Since(begun)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return done, err
	}
	if f.ID.Valid && done.Sessions == 0 {
		done.Sessions, err = s.revokeLost(ctx, f)
	} else if !f.ID.Valid {
		err = s.checkMemory(ctx, f)
	}
	return done, err
}

// revokeLost ends a session that was selected by its id and has no record in the store.
func (s *Service) revokeLost(ctx context.Context, f SessionFilter) (int, error) {
	b, err := begunSession(ctx, s.db, f.ID.UUID)
	if errors.Is(err, ErrSessionNotFound) || err == nil && f.UserID.Valid && f.UserID.UUID != b.userID {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if f.IP.IsValid() || !f.Before.IsZero() {
		return 0, s.checkMemory(ctx, f)
	}
	n, err := s.revokeListed(ctx, []Session{{ID: b.sid, UserID: b.userID, epoch: b.epoch}})
	if err != nil {
		return 0, fmt.Errorf("end the session: %w", err)
	}
	return n, nil
}

// RecordsLostError says that the session store has lost records of sessions that a filter may select.
type RecordsLostError struct {
	Since time.Time   // the sessions began before
	Until time.Time   // an access token of them can live until then
	IDs   []uuid.UUID // of the sessions, or more than mostLostNamed
}

// mostLostNamed is how many lost sessions are told one by one: those of a fail-over, and not of a Redis that was
// emptied.
const mostLostNamed = 50

func (e *RecordsLostError) Error() string {
	remedy := "To end them too, end every session of the user, or of everybody"
	if len(e.IDs) <= mostLostNamed {
		var ids []string
		for _, id := range e.IDs {
			ids = append(ids, id.String())
		}
		remedy = "They can no longer be refreshed. To end them too, end each by its id: " + strings.Join(ids, " ")
	}
	return fmt.Sprintf("the session store has lost records of sessions that began before %s, which may be among "+
		"those to end; their access tokens can live until %s. %s",
		e.Since.UTC().Format(time.RFC3339), e.Until.UTC().Format(time.RFC3339), remedy)
}

// checkMemory returns a [RecordsLostError] when the store has lost sessions that the filter may
// select and whose access tokens may live. They cannot be refreshed: their last use was before they
// were lost.
func (s *Service) checkMemory(ctx context.Context, f SessionFilter) error {
	m, err := s.sessions.Memory(ctx)
	if err != nil || m.Since.IsZero() {
		return err
	}
	lost := &RecordsLostError{Since: m.Since, Until: s.accessTokensEnd(m.Since)}
	now := s.now()
	if !now.Before(lost.Until) || !f.Before.IsZero() && !now.Before(s.accessTokensEnd(f.Before)) {
		return nil
	}
	// A session that is not there may have been idle for too long, but not one that began after from.
	from, to := time.Time{}, m.Since.Add(time.Minute) // by another clock
	if !m.Emptied {
		from = now.Add(-s.cfg.RefreshTokenTTL)
	}
	if !f.Before.IsZero() && f.Before.Before(to) {
		to = f.Before
	}
	for after := uuid.Nil; ; {
		list, err := begunBetween(ctx, s.db, from, to, after, foundBatch)
		if err != nil {
			return err
		}
		if len(list) == 0 && len(lost.IDs) == 0 {
			return nil
		}
		if len(list) == 0 || len(lost.IDs) > mostLostNamed {
			return lost
		}
		after = list[len(list)-1].sid
		refs, err := s.liveRefs(ctx, list, f)
		if err != nil {
			return err
		}
		missing, err := s.sessions.Missing(ctx, refs)
		if err != nil {
			return err
		}
		for _, ref := range missing {
			lost.IDs = append(lost.IDs, ref.ID)
		}
	}
}

// liveRefs returns those of the sessions that are live by the database and that the filter may
// select.
func (s *Service) liveRefs(ctx context.Context, list []begun, f SessionFilter) ([]session.Ref, error) {
	records := make([]session.Session, 0, len(list))
	for _, b := range list {
		if (!f.UserID.Valid || f.UserID.UUID == b.userID) && (!f.ID.Valid || f.ID.UUID == b.sid) {
			records = append(records, session.Session{ID: b.sid, UserID: b.userID, Epoch: b.epoch})
		}
	}
	live, err := s.live(ctx, records)
	if err != nil {
		return nil, err
	}
	refs := make([]session.Ref, len(live))
	for i, one := range live {
		refs[i] = session.Ref{UserID: one.UserID, ID: one.ID}
	}
	return refs, nil
}

// revokeListed ends sessions in one transaction and returns how many had not ended before.
func (s *Service) revokeListed(ctx context.Context, list []Session) (int, error) {
	// Two that lock several accounts must lock them in the same order.
	slices.SortFunc(list, func(a, b Session) int { return slices.Compare(a.UserID[:], b.UserID[:]) })
	var ended []Session
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		ended = ended[:0]
		var owner account
		for _, one := range list {
			if owner.ID != one.UserID {
				var err error
				if owner, err = lockAccount(ctx, tx, one.UserID); err != nil && !errors.Is(err, ErrUserNotFound) {
					return err
				}
			}
			if owner.ID != one.UserID || !owner.sessionState(false).live(one.ID, one.epoch) {
				continue // ended with the account's others in the meantime
			}
			news, err := s.writeRevocations(ctx, tx, one.UserID, ReasonEndedByAdmin, s.timestamp(), one.ends, one.ID)
			if err != nil {
				return err
			}
			if len(news) > 0 {
				ended = append(ended, one)
			}
		}
		if err := outbox.Await(ctx, tx); err != nil { // with all accounts locked, in the order of others
			return err
		}
		events := make([]outbox.Event, len(ended))
		for i, one := range ended {
			var err error
			if events[i], err = s.revokedEvent(s.newEnvelope(one.UserID), one.ID, ReasonEndedByAdmin); err != nil {
				return err
			}
		}
		return outbox.Add(ctx, tx, events...)
	})
	if err != nil {
		return 0, err
	}
	for _, one := range ended {
		s.logEnd(ctx, one.UserID, one.ID, ReasonEndedByAdmin)
	}
	records := make(map[uuid.UUID][]uuid.UUID)
	for _, one := range list {
		records[one.UserID] = append(records[one.UserID], one.ID)
	}
	for userID, sids := range records {
		s.removeRecords(ctx, userID, sids...)
	}
	return len(ended), nil
}
