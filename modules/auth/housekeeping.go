package auth

import (
	"context"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/platform/retry"
)

// How often what has expired is deleted, and how much of it at a time: so little that no request
// notices.
const (
	housekeepingEvery = time.Minute
	forgetEvery       = 5 * time.Second
	purgeBatch        = 500
)

// Run does the service's background work until ctx ends: it follows the signing keys, finishes what
// other processes left half done and deletes what has expired. Any number of processes may run it.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keys.Run(ctx) })
	g.Go(func() error { every(ctx, populationEvery, s.learnPopulation); return nil })
	g.Go(func() error { every(ctx, housekeepingEvery, s.retryReuse); return nil })
	g.Go(func() error { every(ctx, housekeepingEvery, s.tidy); return nil })
	g.Go(func() error { every(ctx, forgetEvery, s.forget); return nil })
	return g.Wait()
}

// every calls do at once and then regularly, until ctx ends.
func every(ctx context.Context, interval time.Duration, do func(context.Context)) {
	for {
		do(ctx)
		if !retry.Sleep(ctx, interval) {
			return
		}
	}
}

// tidy deletes what has expired, and looks at what the session store remembers. What fails is logged, and tried
// again the next time.
func (s *Service) tidy(ctx context.Context) {
	s.forget(ctx)
	_, err := s.sessions.Memory(ctx)
	s.tidied("session_memory", err)
	for what, table := range map[string]string{"revoked_sessions": "revoked_session",
		"begun_sessions": "begun_session"} {
		s.drain(ctx, what, func(ctx context.Context, limit int) (int64, error) {
			return purgeSessions(ctx, s.db, table, s.timestamp(), limit)
		})
	}
	s.drain(ctx, "expired_revocations", s.feed.Purge)
	s.drain(ctx, "verifiers", s.feed.PurgeVerifiers)
	s.drain(ctx, "sign_in_counters", func(ctx context.Context, limit int) (int64, error) {
		return throttle.Purge(ctx, s.db, limit)
	})
	s.drain(ctx, "expired_sessions", s.sessions.Purge)
}

// forget deletes the links from replaced refresh tokens to their successors after their windows, in
// stores where they do not expire.
func (s *Service) forget(ctx context.Context) { s.drain(ctx, "replaced_tokens", s.sessions.Forget) }

// drain purges until nothing is left: a fixed amount a minute would not keep up with sign-ins.
func (s *Service) drain(ctx context.Context, what string, purge func(ctx context.Context, limit int) (int64, error)) {
	for {
		begun := time.Now()
		portion, cancel := context.WithTimeout(ctx, detachTimeout)
		n, err := purge(portion, purgeBatch)
		cancel()
		s.tidied(what, err)
		if err != nil {
			return
		}
		if n < purgeBatch || s.giveWay(ctx, time.Since(begun)) != nil {
			return
		}
	}
}

// tidied logs what fails, which may have been tried five seconds ago.
func (s *Service) tidied(what string, err error) {
	if s.untidied.Say(what, err, s.now()) {
		s.log.Warn("housekeeping_failed", zap.String("what", what), zap.Error(err))
	}
}

// retryReuse announces the reuse that a process stopped a session for and died before it could. A
// session that fails does not hold up the others. With millions of sessions in Redis it takes most of a minute.
func (s *Service) retryReuse(ctx context.Context) {
	marked, err := s.sessions.Reused(ctx, purgeBatch)
	s.tidied("reused_sessions", err)
	if err != nil {
		return
	}
	for _, m := range marked {
		if ctx.Err() != nil { // each of them takes its time where the database hangs
			return
		}
		if err := s.announceReuse(ctx, m.Session.UserID, m.Session.ID, m.Generation, m.IP, m.UserAgent); err != nil {
			s.log.Warn("reuse_not_announced_yet", zap.Stringer("sid", m.Session.ID), zap.Error(err))
		}
	}
}
