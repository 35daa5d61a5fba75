package redis

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/cache/cachetest"
)

// Each mutant is a mistake that would be easy to make; the named check has to find it.
func TestTheSuiteFindsBrokenScripts(t *testing.T) {
	t.Parallel()
	client := cachetest.Shared(t)
	for _, m := range []struct{ name, old, new, check string }{
		{"replay without a window", "if now < tonumber(r[REPLAY]) then", "if true then",
			"the previous token after the window is reuse"},
		{"a sliding window", "return {'replayed', r, kept}", "redis.call('HSET', KEYS[1], 'replay', now + grace) return {'replayed', r, kept}",
			"the window does not slide"},
		{"a replay that forks", "presented == r[HASH]) then", "presented == r[HASH]) or (g == gen - 1 and presented == r[PREV]) then",
			"parallel refreshes make one chain"},
		{"a replay of whatever token", "if g == gen - 1 and presented == r[PREV] then", "if g < gen then",
			"an older token is reuse even in the window"},
		{"the previous token refused", "local kept = redis.call('GET', KEYS[3])", "local kept",
			"parallel refreshes make one chain"},
		{"the absolute expiry ignored", "math.min(now + idleTTL, tonumber(r[EXPIRES]))", "now + idleTTL",
			"absolute expiry never moves"},
		{"the idle expiry ignored", "if now >= tonumber(r[IDLE]) then return {'gone'} end", "",
			"an expired session is gone"},
		{"a token ahead refused", "if g > gen or (g == gen", "if (g == gen",
			"a token ahead of the record is current"},
		{"a fork accepted", "(g == gen and presented == r[HASH])", "g == gen",
			"two tokens of one generation are reuse"},
		{"reuse that stops nothing", "redis.call('HSET', KEYS[1], 'stopped', now,", "redis.call('HSET', KEYS[1],",
			"an older token is reuse even in the window"},
		{"a stopped session that starts again", "if r[STOPPED] then return {'reused', r} end", "",
			"a stopped session stays stopped until it is deleted"},
		{"a stopped session that is listed as live", "'stopped', now", "'halted', now",
			"a stopped session stays stopped until it is deleted"},
		{"no mark for the committer", "redis.call('SADD', KEYS[4], sid)", "",
			"a stopped session stays stopped until it is deleted"},
		{"a repeated call taken for reuse", "if r[HASH] == successor then return {'turned', r} end", "",
			"the same call sent again changes nothing"},
	} {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if strings.Count(rotateSource, m.old) != 1 {
				t.Fatalf("the script does not have %q once", m.old)
			}
			mutant := goredis.NewScript(libSource + strings.Replace(rotateSource, m.old, m.new, 1))
			open := func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
				return mutantEngine(t, client, skew, func(s *Store) session.Store { s.rotate = mutant; return s })
			}
			err := sessiontest.Named(m.check).Run(t, open)
			if err == nil {
				t.Errorf("%q does not find it", m.check)
			}
			t.Log(err) // for the reader of -v: it is found for its own sake
		})
	}
}

func TestTheSuiteFindsARotationThatReadsAndThenWrites(t *testing.T) {
	t.Parallel()
	client := cachetest.Shared(t)
	meet := make(chan struct{})
	open := func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
		return mutantEngine(t, client, skew, func(s *Store) session.Store { return readThenWrite{s, meet} })
	}
	// One after the other it does nothing wrong.
	if err := sessiontest.Named("the current token turns").Run(t, open); err != nil {
		t.Errorf("the mutant is broken in another way: %v", err)
	}
	err := sessiontest.Named("parallel refreshes make one chain").Run(t, open)
	if err == nil {
		t.Error("not found")
	}
	t.Log(err)
}

// readThenWrite decides in the client by what it read a moment ago.
type readThenWrite struct {
	*Store
	meet chan struct{}
}

func (s readThenWrite) Rotate(ctx context.Context, r session.Rotation) (session.Rotated, error) {
	one, err := s.Get(ctx, r.UserID, r.SessionID)
	if err != nil {
		return session.Rotated{Outcome: session.Gone}, nil
	}
	// Two that have read wait for each other, if there are two.
	select {
	case s.meet <- struct{}{}:
	case <-s.meet:
	case <-time.After(50 * time.Millisecond):
	}
	switch {
	case r.Generation == one.Generation && r.PresentedHash == one.Hash:
		one.Generation, one.Hash, one.UserAgent, one.IP = r.Generation+1, r.NextHash, r.UserAgent, r.IP
		one.LastUsedAt = time.Now().Add(s.skew()).UTC().Truncate(time.Millisecond)
		one.IdleExpiresAt = one.LastUsedAt.Add(r.IdleTTL)
		_, err := s.client.Pipelined(ctx, func(p goredis.Pipeliner) error {
			p.HSet(ctx, s.record(r.UserID, r.SessionID), "gen", one.Generation, "hash", one.Hash[:], "agent", one.UserAgent, "ip", one.IP,
				"used", one.LastUsedAt.UnixMilli(), "idle", one.IdleExpiresAt.UnixMilli())
			p.Set(ctx, s.successor(r.UserID, r.SessionID), r.SealedNext, r.Grace)
			return nil
		})
		return session.Rotated{Outcome: session.Turned, Session: one}, err
	case r.Generation+1 == one.Generation:
		sealed, err := s.client.Get(ctx, s.successor(r.UserID, r.SessionID)).Bytes()
		return session.Rotated{Outcome: session.Replayed, Session: one, Sealed: sealed}, err
	}
	return session.Rotated{Outcome: session.Reused, Session: one}, nil
}

func mutantEngine(t testing.TB, client *goredis.Client, skew func() time.Duration, change func(*Store) session.Store) sessiontest.Engine {
	opt := Options{Prefix: "authctl-test:" + uuid.NewString() + ":", Skew: skew}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for scan := client.Scan(ctx, 0, opt.Prefix+"*", 1000).Iterator(); scan.Next(ctx); {
			client.Unlink(ctx, scan.Val())
		}
	})
	return sessiontest.Engine{Store: change(New(client, opt)), Peer: change(New(client, opt))}
}
