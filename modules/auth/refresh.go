package auth

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Refresh takes a refresh token for its successor and a fresh access token. Of any number
// of parallel calls with one token, all get the same successor, and one that comes late gets
// the newest.
//
// It returns [ErrInvalidRefreshToken], [ErrSessionExpired], [ErrSessionRevoked] or, when the
// token was replaced longer than the grace window ago, [ErrRefreshTokenReused]: then two
// parties hold tokens of one session, which of them is the thief cannot be told, and the
// session has ended.
func (s *Service) Refresh(ctx context.Context, text string, dev Device) (Tokens, error) {
	presented, err := s.codec.Parse(text)
	if err != nil {
		return Tokens{}, ErrInvalidRefreshToken
	}
	userID, sid := presented.UserID(), presented.SessionID()
	st, err := s.states.of(ctx, userID, sid)
	switch {
	case errors.Is(err, ErrUserNotFound):
		return Tokens{}, ErrSessionRevoked
	case err != nil:
		return Tokens{}, err
	case st.user.Status != StatusActive || st.revoked:
		return Tokens{}, ErrSessionRevoked
	case s.tooOld(sid):
		return Tokens{}, ErrSessionExpired
	}
	dev = dev.clean()
	next, rotation := s.codec.Next(presented)
	rotation.Grace, rotation.IdleTTL = s.cfg.RefreshGrace, s.cfg.RefreshTokenTTL
	rotation.IP, rotation.UserAgent = dev.ip(), dev.UserAgent
	got, err := s.sessions.Rotate(ctx, rotation)
	if err != nil {
		return Tokens{}, err
	}
	switch got.Outcome {
	case session.Gone:
		if st.endedWithAll(sid) {
			return Tokens{}, ErrSessionRevoked
		}
		return Tokens{}, ErrSessionExpired
	case session.Reused:
		s.security.Warn("refresh_token_reused", zap.Stringer("user_id", userID), zap.Stringer("sid", sid),
			zap.Uint32("generation", presented.Generation()), zap.String("ip", dev.ip()))
		// The record is stopped already, and stays so until this has committed: what fails
		// now is done by the next presentation of the token or by housekeeping.
		if err := s.announceReuse(ctx, userID, sid, presented.Generation(), dev.ip(), dev.UserAgent); err != nil {
			s.log.Error("reuse_not_announced_yet", zap.Stringer("sid", sid), zap.Error(err))
		}
		return Tokens{}, ErrRefreshTokenReused
	}
	// The store may still hold a session that ended while it was away: the database decides.
	if !st.live(sid, got.Session.Epoch) {
		s.dropRecord(ctx, userID, sid)
		return Tokens{}, ErrSessionRevoked
	}
	switch got.Outcome {
	case session.Superseded:
		return Tokens{}, errSuperseded
	case session.Replayed:
		if next, err = s.codec.OpenChain(presented, got.Links); err != nil {
			return Tokens{}, fmt.Errorf("open the successor: %w", err)
		}
	}
	t, err := s.issue(ctx, got.Session, next)
	t.Replayed = got.Outcome == session.Replayed
	return t, err
}

// errSuperseded ends nothing, and does not ask to try again: then it would be reuse.
var errSuperseded = ErrInvalidRefreshToken.Detail("This refresh token was replaced a moment ago, and the way from it to the newest one of its session is not kept. The session goes on with that one.")
