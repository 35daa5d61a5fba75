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

// Each mutant is an easily made mistake, and the named check has to find it.
func TestTheSuiteFindsBrokenScripts(t *testing.T) {
	t.Parallel()
	client := cachetest.Shared(t)
	for _, m := range []struct{ name, old, new, check string }{
		{"replay without a window", "or now >= l.ends then return nil end", "then return nil end",
			"the previous token after the window is reuse"},
		{"a sliding window", "local newest = redis.call('GET', KEYS[3])",
			"redis.call('HSET', KEYS[1], 'replay', now + grace) local newest = redis.call('GET', KEYS[3])",
			"the window does not slide"},
		{"a window that slides with each rotation", "    l = getLink(base, g)",
			"    l = getLink(base, g) if l then l.ends = tonumber(r[REPLAY]) end",
			"each window ends by its own rotation"},
		{"only the previous token", "    l = getLink(base, g)", "    l = nil",
			"every replaced token yields the newest in its window"},
		{"an old successor instead of the newest", "for i = g, gen - 2 do",
			"for i = g, g do if i == gen - 1 then break end",
			"every replaced token yields the newest in its window"},
		{"links that stay", "presented .. sealed, 'PX', ttl)", "presented .. sealed, 'PX', 10 * 60 * 1000)",
			"the way to the newest is forgotten with the window"},
		{"a newest token that stays", "successor, sealed, 'PX', ttl)", "successor, sealed, 'PX', 10 * 60 * 1000)",
			"the way to the newest is forgotten with the window"},
		{"reuse beyond the bound", "    if first then mark(first, last, ends) end", "",
			"too many rotations in a window end nothing"},
		{"an amnesty beyond the bound", "if from - 1 > last then", "if false then",
			"too many rotations in a window end nothing"},
		{"a window from the future", "if l.at - now > l.ends - l.at then", "if false then",
			"a window from a clock that was ahead is void"},
		{"a replay that forks", "presented == r[HASH]) then",
			"presented == r[HASH]) or (g == gen - 1 and presented == r[PREV]) then",
			"parallel refreshes make one chain"},
		{"a replay of whatever token", "if l.hash ~= presented or now", "if now",
			"two tokens of one generation are reuse"},
		{"the previous token refused", "local newest = redis.call('GET', KEYS[3])", "local newest",
			"parallel refreshes make one chain"},
		{"the absolute expiry ignored", "math.min(now + idleTTL, tonumber(r[EXPIRES]))", "now + idleTTL",
			"absolute expiry never moves"},
		{"the idle expiry ignored", "if now >= tonumber(r[IDLE]) then return gone(KEYS[2]) end", "",
			"an expired session is gone"},
		{"a token ahead refused", "if g > gen or (g == gen", "if (g == gen",
			"a token ahead of the record is current"},
		{"what was missed is reuse", "    mark(gen, g - 1, now + grace)", "",
			"a token ahead of the record is current"},
		{"a fork accepted", "(g == gen and presented == r[HASH])", "g == gen",
			"two tokens of one generation are reuse"},
		{"reuse that stops nothing", "redis.call('HSET', KEYS[1], 'stopped', now,", "redis.call('HSET', KEYS[1],",
			"an older token after its window is reuse"},
		{"a stopped session that starts again", "if r[STOPPED] then return {'reused', r} end", "",
			"a stopped session stays stopped until it is deleted"},
		{"a stopped session that is listed as live", "'stopped', now", "'halted', now",
			"a stopped session stays stopped until it is deleted"},
		{"no mark for the committer", "redis.call('SADD', KEYS[4], sid)", "",
			"a stopped session stays stopped until it is deleted"},
		{"a repeated call taken for reuse",
			"if presented == r[PREV] and r[HASH] == successor then return {'rotated', r} end", "",
			"the same call sent again changes nothing"},
	} {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			good := libSource + rotateSource
			if strings.Count(good, m.old) != 1 {
				t.Fatalf("the script does not contain %q exactly once", m.old)
			}
			mutant := goredis.NewScript(strings.Replace(good, m.old, m.new, 1))
			open := func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
				s := mutantStore(t, client, skew)
				s.rotate = mutant
				return sessiontest.Engine{Store: s, Peer: s, Dump: func(ctx context.Context) ([][]byte, error) {
					return keptUnder(ctx, client, s.prefix)
				}}
			}
			err := sessiontest.Named(m.check).Run(t, open)
			if err == nil {
				t.Errorf("%q does not find it", m.check)
			}
			t.Log(err) // shows with -v that the check fails for the right reason
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
					p.HSet(ctx, s.record(one.UserID, one.ID), "gen", one.Generation, "hash", one.Hash[:], "agent",
						one.UserAgent, "ip", one.IP,
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

// keptUnder reads the strings under a prefix.
func keptUnder(ctx context.Context, client *goredis.Client, prefix string) (kept [][]byte, err error) {
	for scan := client.Scan(ctx, 0, prefix+"*", 1000).Iterator(); scan.Next(ctx); {
		if value, err := client.Get(ctx, scan.Val()).Bytes(); err == nil { // a key of another type
			kept = append(kept, value)
		}
	}
	return kept, nil
}

// mutantStore is a store under its own prefix, to be broken.
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
