package sql

import (
	"context"
	"errors"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Load begins many sessions by COPY, as [Store.Create] does one by one, on PostgreSQL. Next returns
// them until there are no more. It is for measurements: a limit of the user's sessions is not looked
// at, and the clock is this process's.
func (s *Store) Load(ctx context.Context, next func() (session.Start, bool)) error {
	if !s.db.IsPostgres() {
		return errors.New("load sessions: only PostgreSQL has COPY")
	}
	now := time.Now().Add(s.skew()).UnixMilli()
	columns := []string{
		"id", "user_id", "epoch", "generation", "linked", "recorded", "hash", "previous", "replay_until_ms",
		"device_name", "user_agent", "ip", "auth_ms", "created_ms", "last_used_ms", "expires_ms", "idle_expires_ms",
	}
	err := s.db.CopyInto(ctx, "session", columns, func() []any {
		start, more := next()
		if !more {
			return nil
		}
		maxAge, idle := start.MaxAge.Milliseconds(), min(start.IdleTTL, start.MaxAge).Milliseconds()
		return []any{
			[16]byte(start.ID), [16]byte(start.UserID), start.Epoch, int64(1), int64(1), true, start.Hash[:], []byte{},
			int64(0), start.DeviceName, start.UserAgent, start.IP, now, now, now, now + maxAge, now + idle,
		}
	})
	return fail("load sessions", err)
}
