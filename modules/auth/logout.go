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

// LogoutRefresh ends the session of a refresh token. Any token that this service made for
// the session will do, an older one too: who signs out wants to be signed out. It is
// idempotent, and [ErrInvalidRefreshToken] is only for what was never such a token.
func (s *Service) LogoutRefresh(ctx context.Context, text string) error {
	t, err := s.codec.Parse(text)
	if err != nil {
		return ErrInvalidRefreshToken
	}
	return s.endSession(ctx, t.UserID(), t.SessionID(), ReasonLogout)
}

// LogoutAccess ends the session of an access token. It is idempotent: a token whose session
// has ended already is fine, as long as it has not expired.
func (s *Service) LogoutAccess(ctx context.Context, access string) error {
	caller, err := s.identify(ctx, access)
	if errors.Is(err, ErrSessionRevoked) { // the account is gone
		return nil
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, caller.User.ID, caller.SessionID, ReasonLogout)
}

// glance is the longest that an end waits for the store, before and after its commit: the
// database decides, and what the store says or keeps changes nothing about it.
const glance = 500 * time.Millisecond

// atAGlance outlives the request but not [glance].
func atAGlance(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), glance)
}

// endSession revokes one session unless it is over already. The revocation commits first;
// the record in the store goes afterwards, and may stay if the store is away.
func (s *Service) endSession(ctx context.Context, userID, sid uuid.UUID, reason Reason) error {
	st, err := s.standings.of(ctx, userID, sid)
	if errors.Is(err, ErrUserNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	over := st.revoked
	if !over {
		// A record from before "end all" is over by its epoch: nothing more to announce.
		look, cancel := atAGlance(ctx)
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

// sessionTokensEnd is when the last token of a session that begins now has expired everywhere.
func (s *Service) sessionTokensEnd(now time.Time) time.Time {
	return s.accessTokensEnd(now.Add(s.cfg.SessionMaxAge))
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
