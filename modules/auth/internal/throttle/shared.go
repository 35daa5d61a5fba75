package throttle

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/toppira/authctl/platform/cache"
)

//go:embed limits.lua
var limitsLua string

const (
	// redisTimeout bounds what a slow Redis may add to a sign-in.
	redisTimeout = 250 * time.Millisecond
	// commandTimeout bounds an operator's command, which can wait longer than a sign-in.
	commandTimeout = 5 * time.Second

	// turnPatience is how long a sign-in waits for others to be told their limits. In a flood it would wait
	// longer for a worker.
	turnPatience = time.Second
)

// turns is how many sign-ins of one process ask Redis at a time. Each asks twice: when hundreds arrive
// at once, or are refused at once, they would take every connection, and a refresh would wait for all of
// them. Two for each core are enough for what can be hashed, even if Redis takes tens of milliseconds to
// answer. The client has at least eight connections for each. Known devices do not wait for a turn.
func turns() int64 { return int64(max(4, 2*runtime.NumCPU())) }

// shared keeps the counters of all processes in Redis.
type shared struct {
	client   cache.Client
	turns    *semaphore.Weighted // of the sign-ins that ask
	patience time.Duration       // for a turn
	script   string
	digest   string // by which Redis remembers the script
	timeout  time.Duration
	clock    func() time.Time // instead of Redis' own; nil but in tests
	reach
}

func newShared(client cache.Client, r rules, timeout time.Duration, now func() time.Time, log *zap.Logger) *shared {
	script := r.lua() + limitsLua
	return &shared{client: client, turns: semaphore.NewWeighted(turns()), patience: max(turnPatience, timeout),
		script: script, digest: redis.NewScript(script).Hash(), timeout: timeout,
		reach: reach{engine: "redis", now: now, log: log}}
}

// lua writes the settings as the table R that limits.lua reads. They are part of the script
// rather than of each call, since they only change with the configuration.
func (r rules) lua() string {
	var b strings.Builder
	b.WriteString("local R = {\n")
	streak := func(name string, l streakRule) {
		fmt.Fprintf(&b, "%s = {free = %d, base = %d, longest = %d, max = %d, lock = %d, forget = %d, memory = %d, "+
			"cleared = %d},\n",
			name, l.free, l.base, l.longest, l.max, l.lock, l.forget, l.memory, l.cleared)
	}
	bucket := func(name string, l bucketRule) {
		fmt.Fprintf(&b, "%s = {burst = %d, per_minute = %d, drain = %d},\n", name, l.burst, l.perMinute, l.drain())
	}
	streak("device", r.device)
	streak("pair", r.pair)
	streak("account", r.account)
	streak("known", r.known)
	bucket("address", r.address)
	bucket("prefix", r.prefix)
	bucket("global", r.global)
	bucket("register", r.register)
	fmt.Fprintf(&b, "remember = %d, known_prefix = %q}\n", r.remember, redisPrefix(classKnown))
	return b.String()
}

func (s *shared) begin(ctx context.Context, k keys) (verdict, error) {
	if k.device == (id{}) && s.up() {
		switch {
		case s.turn(ctx, s.patience):
			defer s.turns.Release(1)
		case s.up():
			return verdict{}, cmp.Or(ctx.Err(), ErrCrowded)
		} // else those whose turn it was have found that Redis is away
	}
	stranger := 0
	if k.stranger {
		stranger = 1
	}
	var known string
	n, err := s.run(ctx, 3, k.redis(k.known), "begin", &known, stranger)
	if err != nil {
		return verdict{}, err
	}
	v := verdict{tier: tier(n[0]), limit: limit(n[1]), wait: milliseconds(n[2])}
	if v.tier == tierDevice || v.tier == tierPair {
		if v.known, err = parseID(known); err != nil {
			return verdict{}, err
		}
	}
	return v, nil
}

func (s *shared) finish(ctx context.Context, k keys, in tier, how outcome, known, owner id) (result, error) {
	if k.device == (id{}) && s.up() {
		if !s.turn(ctx, commandTimeout) { // longer than any flood: a failure that is not shared is a guess for free
			return result{}, errAway
		}
		defer s.turns.Release(1)
	}
	n, err := s.run(ctx, 2, k.redis(known), "finish", nil, int64(in), int64(how), owner.String())
	if err != nil {
		return result{}, err
	}
	return result{crossed: n[0] == 1, wait: milliseconds(n[1])}, nil
}

func (s *shared) take(ctx context.Context, i id) (time.Duration, error) {
	n, err := s.run(ctx, 1, []string{redisKey(classRegister, i)}, "take", nil)
	if err != nil {
		return 0, err
	}
	return milliseconds(n[0]), nil
}

func (s *shared) clear(ctx context.Context, k keys) error {
	_, err := s.run(ctx, 0, k.redis(k.known), "clear", nil)
	return err
}

func (s *shared) state(ctx context.Context, k keys) (failures int64, wait time.Duration, err error) {
	n, err := s.run(ctx, 2, k.redis(k.known), "state", nil)
	if err != nil {
		return 0, 0, err
	}
	return n[0], milliseconds(n[1]), nil
}

// redis names the keys in the order that limits.lua expects, the counter of the owner last.
func (k keys) redis(known id) []string {
	return []string{
		redisKey(classAccount, k.account), redisKey(classPair, k.pair), redisKey(classDevice, k.device),
		redisKey(classAddress, k.address), redisKey(classPrefix, k.prefix), redisKey(classGlobal, k.global),
		redisKey(classKnown, known),
	}
}

// keyPrefix begins every key: the prefix that all keys of the service share, so that one rule of
// an ACL covers them, and the hash tag that puts them into one slot.
const keyPrefix = cache.Prefix + "{throttle}:"

func redisPrefix(c class) string { return keyPrefix + string(c) + ":" }

func redisKey(c class, i id) string {
	if i == (id{}) {
		return redisPrefix(c) + "none"
	}
	return redisPrefix(c) + i.String()
}

// once keeps the client from sending a command again that may have been carried out: that
// would reserve or count twice.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// run does one operation and returns its answer: n numbers, and then a text if one is asked for. The
// error is [errAway] when the caller must go on without Redis, and that of ctx when the caller has left.
func (s *shared) run(ctx context.Context, n int, keys []string, operation string, text *string,
	args ...any) ([]int64, error) {
	if !s.usable() {
		return nil, errAway
	}
	timeout := s.timeout
	if operation == "clear" || operation == "state" { // of commands
		timeout = commandTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := s.eval(bounded, "evalsha", s.digest, keys, operation, args)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // the first call, or Redis was restarted
		answer, err = s.eval(bounded, "eval", s.script, keys, operation, args)
	}
	var numbers []int64
	if err == nil {
		numbers, err = read(answer, n, text)
	}
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err() // says nothing about Redis
	}
	s.note(err)
	if err != nil {
		return nil, errAway
	}
	return numbers, nil
}

// turn waits until few enough ask Redis, no longer than patience. When it reports true, the caller must end
// its turn.
func (s *shared) turn(ctx context.Context, patience time.Duration) bool {
	if s.turns.TryAcquire(1) { // mostly
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.turns.Acquire(ctx, 1) == nil
}

func read(answer []any, n int, text *string) ([]int64, error) {
	numbers := make([]int64, n)
	for i := range numbers {
		if i >= len(answer) {
			return nil, fmt.Errorf("answer of %d parts, want %d numbers", len(answer), n)
		}
		number, ok := answer[i].(int64)
		if !ok {
			return nil, fmt.Errorf("answer with %T where a number should be", answer[i])
		}
		numbers[i] = number
	}
	if text != nil && len(answer) > n {
		*text, _ = answer[n].(string)
	}
	return numbers, nil
}

func (s *shared) eval(ctx context.Context, verb, script string, keys []string, operation string,
	args []any) ([]any, error) {
	words := []any{verb, script, len(keys)}
	for _, key := range keys {
		words = append(words, key)
	}
	var clock int64
	if s.clock != nil {
		clock = s.clock().UnixMilli()
	}
	words = append(words, operation, clock)
	cmd := redis.NewCmd(ctx, append(words, args...)...)
	if err := s.client.Process(ctx, once{cmd}); err != nil {
		return nil, err
	}
	return cmd.Slice()
}

func (s *shared) gauge() prometheus.GaugeOpts {
	return prometheus.GaugeOpts{
		Name: "authctl_throttle_redis_up", Help: "1 while limits are shared through Redis, 0 while each process " +
			"limits by itself.",
	}
}

func (s *shared) close() {}
