package redis_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/redis"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

func engine(client goredis.UniversalClient) sessiontest.Open {
	return func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
		opt := redis.Options{Prefix: "authctl-test:" + uuid.NewString() + ":", Skew: skew}
		t.Cleanup(func() { remove(client, opt.Prefix) })
		return sessiontest.Engine{
			Store: redis.New(client, opt),
			Peer:  redis.New(client, opt),
			Dump:  func(ctx context.Context) ([][]byte, error) { return dump(ctx, client, opt.Prefix) },
		}
	}
}

func TestRedisKeepsTheRules(t *testing.T) {
	t.Parallel()
	sessiontest.Run(t, engine(cachetest.Shared(t)))
}

// A cluster spreads users over its nodes; the rules stay the same.
func TestAClusterKeepsTheRules(t *testing.T) {
	t.Parallel()
	url := cachetest.StartCluster(t).URL() + "&read_timeout=1m" // no node hangs
	sessiontest.Run(t, engine(cachetest.OpenAny(t, url).(goredis.UniversalClient)))
}

// Without Redis, the imitation at least shows that the scripts do what they should.
func TestMiniredisKeepsTheRules(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	open := engine(cachetest.Open(t, "redis://"+server.Addr()))
	sessiontest.Run(t, func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
		e := open(t, skew)
		e.Store, e.Peer = reminded{e.Store, server}, reminded{e.Peer, server}
		return e
	})
}

// reminded moves the imitation's clock, without which nothing expires there.
type reminded struct {
	session.Store
	server *miniredis.Miniredis
}

func (r reminded) Forget(ctx context.Context, limit int) (int64, error) {
	r.server.FastForward(100 * time.Millisecond)
	return r.Store.Forget(ctx, limit)
}

// dump reads every key under a prefix, whatever its type.
func dump(ctx context.Context, client goredis.UniversalClient, prefix string) (kept [][]byte, err error) {
	servers, err := cache.Servers(ctx, client)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, server := range servers {
		some, err := server.Client.Keys(ctx, prefix+"*").Result()
		if err != nil {
			return nil, err
		}
		keys = append(keys, some...)
	}
	for _, key := range keys {
		kept = append(kept, []byte(strings.TrimPrefix(key, prefix)))
		var values []string
		switch kind := client.Type(ctx, key).Val(); kind {
		case "hash":
			var fields map[string]string
			fields, err = client.HGetAll(ctx, key).Result()
			for name, value := range fields {
				values = append(values, name, value)
			}
		case "zset":
			values, err = client.ZRange(ctx, key, 0, -1).Result()
		case "set":
			values, err = client.SMembers(ctx, key).Result()
		default:
			var value string
			value, err = client.Get(ctx, key).Result()
			values = append(values, value)
		}
		if errors.Is(err, goredis.Nil) { // it has just expired
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, value := range values {
			kept = append(kept, []byte(value))
		}
	}
	return kept, nil
}

func remove(client goredis.UniversalClient, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	if cache.IsCluster(client) {
		return // the server ends with the test
	}
	for scan := client.Scan(ctx, 0, prefix+"*", 1000).Iterator(); scan.Next(ctx); {
		client.Unlink(ctx, scan.Val())
	}
}
