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
	"github.com/toppira/authctl/platform/testenv"
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
				s := mutantStore(t, client, skew)
				s.rotate = mutant
				return sessiontest.Engine{Store: s, Peer: s}
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
	sessiontest.FindsReadThenWrite(t, func(t testing.TB, skew func() time.Duration) sessiontest.ReadThenWrite {
		s := mutantStore(t, client, skew)
		return sessiontest.ReadThenWrite{
			Store: s,
			Write: func(ctx context.Context, one session.Session, r session.Rotation) error {
				_, err := client.Pipelined(ctx, func(p goredis.Pipeliner) error {
					p.HSet(ctx, s.record(one.UserID, one.ID), "gen", one.Generation, "hash", one.Hash[:], "agent", one.UserAgent, "ip", one.IP,
						"used", one.LastUsedAt.UnixMilli(), "idle", one.IdleExpiresAt.UnixMilli())
					p.Set(ctx, s.successor(one.UserID, one.ID), r.SealedNext, r.Grace)
					return nil
				})
				return err
			},
			Sealed: func(ctx context.Context, one session.Session) ([]byte, error) {
				return client.Get(ctx, s.successor(one.UserID, one.ID)).Bytes()
			},
		}
	})
}

// mutantStore is a store under a prefix of its own, to be broken.
func mutantStore(t testing.TB, client *goredis.Client, skew func() time.Duration) *Store {
	opt := Options{Prefix: "authctl-test:" + uuid.NewString() + ":", Skew: skew}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		for scan := client.Scan(ctx, 0, opt.Prefix+"*", 1000).Iterator(); scan.Next(ctx); {
			client.Unlink(ctx, scan.Val())
		}
	})
	return New(client, opt)
}
