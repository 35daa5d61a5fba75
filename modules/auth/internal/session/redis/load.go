package redis

import (
	"context"

	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Load begins many sessions in one round trip, by the script that [Store.Create] runs. It is for
// measurements: a limit of the user's sessions is not looked at.
func (s *Store) Load(ctx context.Context, starts []session.Start) error {
	if err := s.create.Load(ctx, s.client).Err(); err != nil {
		return fail("load sessions", err)
	}
	_, err := s.client.Pipelined(ctx, func(p goredis.Pipeliner) error {
		for _, start := range starts {
			s.create.EvalSha(ctx, p, []string{s.record(start.UserID, start.ID), s.index(start.UserID)},
				start.ID.String(), start.Hash[:], start.Epoch, start.DeviceName, start.UserAgent, start.IP,
				start.MaxAge.Milliseconds(), start.IdleTTL.Milliseconds(), 0, false,
				s.user(start.UserID)+"s:", s.skew().Milliseconds())
		}
		return nil
	})
	return fail("load sessions", err)
}
