package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/tracing"
)

// Refresh exchanges a refresh token for its successor and a new access token. Parallel calls with
// one token all get the same successor, and a late one gets the newest.
//
// It returns [ErrInvalidRefreshToken], [ErrSessionExpired], [ErrSessionRevoked] or, when the token
// was replaced longer than the grace window ago, [ErrRefreshTokenReused]: then two parties hold
// tokens of one session, nobody can tell which one stole them, and the session ends.
func (s *Service) Refresh(ctx context.Context, text string, dev Device) (Tokens, error) {
	return s.refresh(ctx, text, dev, false)
}

// RefreshShared is [Service.Refresh] for a token that several windows of a browser share. Each
// answer replaces it for all of them, and a late answer may carry an older token than the one it
// replaces, which the next refresh would report as reuse. So a token that was issued by a refresh
// less than the grace window ago is returned unchanged.
func (s *Service) RefreshShared(ctx context.Context, text string, dev Device) (Tokens, error) {
	return s.refresh(ctx, text, dev, true)
}

// IsWorthless reports whether an error of a refresh or a logout means that no later request with
// the same token can succeed.
func IsWorthless(err error) bool {
	f, ok := errors.AsType[*fault.Fault](err)
	return ok && f != errSuperseded && slices.ContainsFunc([]*fault.Fault{
		ErrInvalidRefreshToken, ErrSessionExpired, ErrSessionRevoked, ErrRefreshTokenReused,
	}, func(one *fault.Fault) bool { return f.Is(one) })
}

// IsOfSession reports whether the text is a refresh token that this service issued for the session,
// current or not.
func (s *Service) IsOfSession(refresh string, sid uuid.UUID) bool {
	t, err := s.codec.Parse(refresh)
	return err == nil && t.SessionID() == sid
}

func (s *Service) refresh(ctx context.Context, text string, dev Device, shared bool) (Tokens, error) {
	presented, err := s.codec.Parse(text)
	if err != nil {
		return Tokens{}, ErrInvalidRefreshToken
	}
	userID, sid := presented.UserID(), presented.SessionID()
	issuer, err := s.issuer(ctx)
	if err != nil {
		return Tokens{}, err
	}
	st, err := s.states.of(ctx, userID, sid)
	switch {
	case errors.Is(err, ErrUserNotFound):
		return Tokens{}, ErrSessionRevoked
	case err != nil:
		return Tokens{}, err
	}
	if err := s.mayRefresh(st, sid); err != nil {
		return Tokens{}, err
	}
	if shared {
		if rec, err := s.sessions.Get(ctx, userID, sid); err == nil && s.isFresh(rec, presented) &&
			st.live(sid, rec.Epoch) {
			return issuer.issue(rec, presented)
		} else if err != nil && !errors.Is(err, session.ErrNotFound) {
			return Tokens{}, err
		}
	}
	dev = dev.clean()
	next, rotation := s.codec.Next(presented)
	rotation.Grace, rotation.IdleTTL = s.cfg.RefreshGrace, s.cfg.RefreshTokenTTL
	rotation.IP, rotation.UserAgent = dev.IPText(), dev.UserAgent
	got, err := s.sessions.Rotate(ctx, rotation)
	if err != nil {
		return Tokens{}, err
	}
	switch got.Outcome {
	case session.Gone:
		// It may have ended after it was looked up, and its record was then removed.
		switch st, err := s.states.of(ctx, userID, sid); {
		case err != nil && !errors.Is(err, ErrUserNotFound):
			return Tokens{}, err
		case err != nil || st.endedWithAll(sid) || errors.Is(s.mayRefresh(st, sid), ErrSessionRevoked):
			return Tokens{}, ErrSessionRevoked
		}
		return Tokens{}, ErrSessionExpired
	case session.Reused:
		s.security.Warn("refresh_token_reused", tracing.ID(ctx), zap.Stringer("user_id", userID),
			zap.Stringer("sid", sid), zap.Uint32("generation", presented.Generation()), zap.String("ip", dev.IPText()))
		// The record is already stopped, and stays so until this has committed. What fails now is
		// done at the token's next use or by housekeeping.
		if err := s.announceReuse(ctx, userID, sid, presented.Generation(), dev.IPText(), dev.UserAgent); err != nil {
			s.log.Error("reuse_not_announced_yet", tracing.ID(ctx), zap.Stringer("sid", sid), zap.Error(err))
		}
		return Tokens{}, ErrRefreshTokenReused
	}
	// The store may still hold a session that ended while it was away: the database decides.
	if !st.live(sid, got.Session.Epoch) {
		s.removeRecords(ctx, userID, sid)
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
	t, err := issuer.issue(got.Session, next)
	t.Replayed = got.Outcome == session.Replayed
	return t, err
}

// isFresh reports whether the token is the session's current one and replaced the one before less
// than the grace window ago. The store's clock is not this server's, so the age may be negative.
func (s *Service) isFresh(rec session.Session, presented session.Token) bool {
	age := s.now().Sub(rec.LastUsedAt).Abs()
	return rec.Generation > 1 && rec.Generation == presented.Generation() && rec.Accepts(presented) &&
		age < s.cfg.RefreshGrace
}

// errSuperseded ends nothing, and does not ask to try again: that would be reuse.
var errSuperseded = ErrInvalidRefreshToken.Detail("This refresh token was replaced a moment ago, " +
	"and the newest one of its session can no longer be reached from it. The session goes on with the newest one.")
