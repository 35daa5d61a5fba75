package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Probe does what a sign-in does to Redis: it writes, and runs a script that writes, in one round
// trip. It fails on a server that takes no writes (a replica, or one that lacks memory, disk or
// replicas), and on a node of a cluster that was configured as a single server, which has only some of the
// keys. In a cluster it fails only when no node can be used: any usable node serves the users whose
// sessions it has. The error is a [Problem].
func Probe(ctx context.Context, client Client) error {
	servers, problems, _, err := probe(ctx, client)
	if err != nil {
		return explain(ctx, &redis.Options{}, err)
	}
	if len(problems) == servers {
		return problems[0]
	}
	return nil
}

// Unfit returns a problem for each server that cannot be used now, and one if slots of a cluster have no server.
func Unfit(ctx context.Context, client Client) []*Problem {
	_, problems, gap, err := probe(ctx, client)
	if err != nil {
		return []*Problem{explain(ctx, &redis.Options{}, err)}
	}
	if gap != nil {
		problems = append(problems, refusal(gap))
	}
	return problems
}

// Away returns how many servers that have keys are of no use now, and one more if slots have none. If not even their
// list can be had, that is one.
func Away(ctx context.Context, client Client) int { return len(Unfit(ctx, client)) }

// probe tries every server. gap says that slots have none.
func probe(ctx context.Context, client Client) (servers int, problems []*Problem, gap, err error) {
	all, err := Servers(ctx, client)
	if err != nil {
		return 0, nil, nil, err
	}
	found, gaps := make([]*Problem, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, server := range all {
		wg.Go(func() {
			if found[i], gaps[i] = try(ctx, client, server); found[i] != nil {
				found[i].Found = server.named(found[i].Found)
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(gaps, func(err error) bool { return err != nil }); i >= 0 {
		gap = gaps[i]
	}
	return len(all), slices.DeleteFunc(found, func(p *Problem) bool { return p == nil }), gap, nil
}

// try returns why a server cannot be used. Keys whose slots have no server go to any, which refuses them: that is a
// gap, and says nothing about the server.
func try(ctx context.Context, client Client, server Server) (problem *Problem, gap error) {
	tags := server.tags // in a cluster, of slots that it has
	if !IsCluster(client) {
		tags = nil
		for i := 0; i < len(Tags()); i += 8 { // in so many slots that no node of a cluster has them all
			tags = append(tags, Tags()[i])
		}
	}
	const script = "redis.call('TIME') return redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])"
	replies, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, tag := range tags {
			p.Set(ctx, Prefix+"ready:"+tag, 1, tried)
		}
		for _, tag := range tags[:min(1, len(tags))] {
			p.Eval(ctx, script, []string{Prefix + "ready:" + tag + ":script"}, tried.Milliseconds())
		}
		return nil
	})
	if len(replies) > 0 {
		err = nil
	}
	taken := false
	for _, reply := range replies {
		switch failed := reply.Err(); {
		case failed == nil:
			taken = true
		case IsCluster(client) && code(failed) == "CLUSTERDOWN" && strings.Contains(failed.Error(), "not served"):
			gap = failed
		case err == nil:
			err = failed
		}
	}
	switch {
	case err == nil && (gap == nil || taken):
		return nil, gap
	case err == nil:
		err, gap = gap, nil
	}
	return why(ctx, client, server, err), gap
}

// why explains the error of a server.
func why(ctx context.Context, client Client, server Server, err error) *Problem {
	_, watched := client.(*primary)
	found := func(p *Problem) *Problem {
		if watched || IsCluster(client) {
			return p.replaced(err)
		}
		return p
	}
	if _, ok := errors.AsType[redis.Error](err); !ok {
		return found(explain(ctx, options(server), err))
	}
	// A Sentinel knows few commands, and clusters and replicas have several codes for one problem.
	if p := role(ctx, server.Client, IsCluster(client)); p != nil {
		p.Err = err
		return found(p)
	}
	// A script that lacks a right gets no code of its own.
	if c := code(err); c == "NOPERM" || c == "ERR" {
		if p, _ := server.rights(ctx, IsCluster(client)); p != nil {
			p.Err = err
			return p
		}
	}
	return refusal(err)
}

// named puts the name of the node of a cluster before a text.
func (s Server) named(text string) string {
	if s.Name == "" {
		return text
	}
	return s.Name + ": " + text
}

// ClusterCommands lists what the Redis user of a cluster must be able to run as well.
func ClusterCommands() []string { return []string{"asking", "cluster|nodes", "cluster|slots"} }

// attempts try each command on keys that begin with k and expire.
var attempts = []struct {
	name string
	args func(k string) []any
}{
	{"set", func(k string) []any { return []any{"set", k + "string", "1", "px", "60000"} }},
	{"get", func(k string) []any { return []any{"get", k + "string"} }},
	{"hset", func(k string) []any { return []any{"hset", k + "hash", "f", "1"} }},
	{"hmget", func(k string) []any { return []any{"hmget", k + "hash", "f"} }},
	{"pexpire", func(k string) []any { return []any{"pexpire", k + "hash", "60000"} }},
	{"pttl", func(k string) []any { return []any{"pttl", k + "hash"} }},
	{"zadd", func(k string) []any { return []any{"zadd", k + "zset", "1", "m"} }},
	{"zcard", func(k string) []any { return []any{"zcard", k + "zset"} }},
	{"zrange", func(k string) []any { return []any{"zrange", k + "zset", "0", "-1"} }},
	{"zrangebyscore", func(k string) []any { return []any{"zrangebyscore", k + "zset", "0", "1"} }},
	{"zrevrange", func(k string) []any { return []any{"zrevrange", k + "zset", "0", "-1"} }},
	{"zremrangebyscore", func(k string) []any { return []any{"zremrangebyscore", k + "zset", "2", "3"} }},
	{"zremrangebyrank", func(k string) []any { return []any{"zremrangebyrank", k + "zset", "5", "6"} }},
	{"zrem", func(k string) []any { return []any{"zrem", k + "zset", "m"} }},
	{"sadd", func(k string) []any { return []any{"sadd", k + "set", "m"} }},
	{"smembers", func(k string) []any { return []any{"smembers", k + "set"} }},
	{"srem", func(k string) []any { return []any{"srem", k + "set", "m"} }},
	{"del", func(k string) []any { return []any{"del", k + "string", k + "hash", k + "zset", k + "set"} }},
	{"scan", func(string) []any { return []any{"scan", "0", "match", Prefix + "none", "count", "1"} }},
	{"time", func(string) []any { return []any{"time"} }},
	{"eval", func(k string) []any { return []any{"eval", "return 1", "1", k + "string"} }},
	{"evalsha", func(k string) []any { return []any{"evalsha", strings.Repeat("0", 40), "1", k + "string"} }},
	{"multi", nil}, // with exec
	{"exec", nil},
}

// Rights tries each command that is needed, on keys that expire. It returns what the Redis user
// lacks, or nil; an error means that a server does not answer.
func Rights(ctx context.Context, client Client) (*Problem, error) {
	servers, err := Servers(ctx, client)
	if err != nil {
		return nil, err
	}
	for _, server := range servers {
		p, err := server.rights(ctx, IsCluster(client))
		if err != nil {
			return nil, err
		}
		if p != nil {
			p.Found = server.named(p.Found)
			return p, nil
		}
	}
	return nil, nil
}

func (s Server) rights(ctx context.Context, cluster bool) (*Problem, error) {
	client := s.Client.(*redis.Client)
	if len(s.tags) == 0 {
		return nil, nil // too few slots to have one of a known tag
	}
	k := Prefix + "doctor:" + s.tags[0] + ":" + rand.Text() + ":"
	denied := func(err error) (bool, error) {
		var reply redis.Error
		if err != nil && !errors.As(err, &reply) {
			return false, err
		}
		return code(err) == "NOPERM", nil
	}
	// A denied command and a denied key have the same code. A script without keys tells them apart.
	command, err := denied(client.Eval(ctx, "return 1", nil).Err())
	if err != nil {
		return nil, fmt.Errorf("try eval: %w", err)
	}
	if key, err := denied(client.Eval(ctx, "return 1", []string{k + "string"}).Err()); err == nil && key && !command {
		return &Problem{Found: "the Redis user may not use the keys " + Prefix + "*", Setup: true,
			Advice: "let it: ACL SETUSER USER ~" + Prefix + "*"}, nil
	}
	var missing []string
	for _, a := range attempts {
		var err error
		switch a.name {
		case "multi", "exec": // on a separate connection, which is unusable between the two
			conn := client.EphemeralConn()
			if err = conn.Do(ctx, "multi").Err(); a.name == "exec" {
				err = conn.Do(ctx, "exec").Err()
			}
			_ = conn.Close()
		default:
			err = client.Do(ctx, a.args(k)...).Err()
		}
		no, err := denied(err)
		if err != nil {
			return nil, fmt.Errorf("try %s: %w", a.name, err)
		}
		if no {
			missing = append(missing, a.name)
		}
	}
	for _, name := range ClusterCommands() {
		if !cluster {
			break
		}
		var words []any
		for word := range strings.SplitSeq(name, "|") {
			words = append(words, word)
		}
		no, err := denied(client.Do(ctx, words...).Err())
		if err != nil {
			return nil, fmt.Errorf("try %s: %w", name, err)
		}
		if no {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	return &Problem{Found: "the Redis user may not run " + strings.ToUpper(strings.Join(missing, ", ")), Setup: true,
		Advice: "let it: ACL SETUSER USER +" + strings.Join(missing, " +")}, nil
}

// Check looks for servers that are too old, and for settings that make them lose data, or not recover, and returns a
// problem for each. An error means that this cannot be read.
func Check(ctx context.Context, client Client) ([]*Problem, error) {
	servers, err := Servers(ctx, client)
	if err != nil {
		return nil, err
	}
	p, watched := client.(*primary)
	var found []*Problem
	for _, server := range servers {
		text, err := server.Client.Info(ctx).Result() // managed servers forbid CONFIG GET
		if err != nil {
			return nil, fmt.Errorf("%s: %w", server.named("ask Redis for its settings"), err)
		}
		info := parseInfo(text)
		for _, problem := range append(outdated(info), forgetful(info, watched || IsCluster(client))...) {
			problem.Found = server.named(problem.Found)
			found = append(found, problem)
		}
	}
	if watched {
		found = append(found, p.sentinels.check(ctx)...)
	}
	return found, nil
}

// outdated checks the version in the INFO of a server. Those that only speak like Redis give one, too.
func outdated(info map[string]string) []*Problem {
	const oldestMajor, oldestMinor = 6, 2 // that passed the tests: see docs/operations.md
	var major, minor int
	version := info["redis_version"]
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n < 2 || major > oldestMajor ||
		major == oldestMajor && minor >= oldestMinor {
		return nil
	}
	return []*Problem{{Found: "Redis " + version + " is older than all that authctl was tried with",
		Advice: "upgrade it to Redis 7 or newer, or Valkey 7.2 or newer"}}
}

// forgetful checks the INFO of a server; replaced says that another server replaces it when it fails.
func forgetful(info map[string]string, replaced bool) (found []*Problem) {
	if policy := info["maxmemory_policy"]; policy != "" && policy != "noeviction" {
		found = append(found, &Problem{Found: "maxmemory-policy is " + policy,
			Advice: "set it to noeviction: otherwise Redis under memory pressure drops sessions, which signs people " +
				"out, and counters of failed sign-ins"})
	}
	if info["aof_enabled"] == "0" {
		found = append(found, &Problem{Found: "the append-only file is off",
			Advice: "set appendonly yes: otherwise a restart of Redis signs out everybody who signed in since " +
				"its last snapshot"})
	}
	if !replaced {
		return found
	}
	if info["connected_slaves"] == "0" {
		return append(found, &Problem{Found: "no replica is connected",
			Advice: "run one: without it, nothing takes the place of this server when it fails"})
	}
	_, set := info["min_slaves_good_slaves"]
	if n, _ := strconv.Atoi(info["connected_slaves"]); n > 1 && !set { // with one, its failure would stop all writes
		found = append(found, &Problem{Found: "min-replicas-to-write is 0",
			Advice: "set it to 1: otherwise a primary that is cut off from its replicas goes on taking writes, and a " +
				"fail-over drops them, which signs people out"})
	}
	return found
}
