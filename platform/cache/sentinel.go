package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// primary is a client of the server that the Sentinels call the primary.
//
// It is not the failover client of go-redis, which stays with one Sentinel: while that one hangs, it makes
// no connection, and a Sentinel that is cut off from the others would lead it to a replaced primary.
type primary struct {
	Client
	sentinels *sentinels
}

// Close also ends the watch.
func (p *primary) Close() error {
	err := p.Client.Close()
	p.sentinels.close()
	return err
}

func openPrimary(o *redis.FailoverOptions, appName string, d dialer) *primary {
	s := newSentinels(o, d)
	opt := &redis.Options{
		Addr: o.MasterName, ClientName: o.ClientName, Dialer: s.dial, Protocol: o.Protocol,
		Username: o.Username, Password: o.Password, DB: o.DB,
		MaxRetries: o.MaxRetries, MinRetryBackoff: o.MinRetryBackoff, MaxRetryBackoff: o.MaxRetryBackoff,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		PoolFIFO: o.PoolFIFO, PoolSize: o.PoolSize, PoolTimeout: o.PoolTimeout,
		MaxConcurrentDials: o.MaxConcurrentDials, MinIdleConns: o.MinIdleConns, MaxIdleConns: o.MaxIdleConns,
		MaxActiveConns:  o.MaxActiveConns,
		ConnMaxIdleTime: o.ConnMaxIdleTime, ConnMaxLifetime: o.ConnMaxLifetime,
		ConnMaxLifetimeJitter: o.ConnMaxLifetimeJitter,
	}
	frugal(opt)
	if appName != "" {
		opt.ClientName, opt.OnConnect = "", named(appName)
	}
	client := redis.NewClient(opt)
	client.AddHook(guard{within: 2 * o.ReadTimeout, of: target{sentinel: o}.String(), lookAgain: s.doubt})
	go s.watch()
	return &primary{Client: client, sentinels: s}
}

// sentinels knows the primary. It asks all Sentinels four times a second, when a connection is made, and when
// the primary is doubted. When there is a new primary, it closes the connections to the former one, which may
// hang, or answer as a replica, or wake up and take writes that will be lost.
type sentinels struct {
	name   string
	all    []*sentinel
	dialer dialer

	hurry   chan struct{}
	closing context.Context
	cancel  context.CancelFunc
	ended   chan struct{}

	doubted atomic.Int64 // when a command last failed, in nanoseconds

	asking  sync.Mutex // held while the Sentinels are asked
	asked   time.Time  // when they were asked last
	unknown error      // why they did not answer then

	mu    sync.Mutex
	known string // address of the primary; empty before the first answer
	conns map[*primaryConn]struct{}
}

type sentinel struct {
	address string
	client  *redis.SentinelClient
	late    atomic.Bool // it did not answer the last time, so the next answer does not wait for it
}

func newSentinels(o *redis.FailoverOptions, d dialer) *sentinels {
	s := &sentinels{name: o.MasterName, dialer: d, hurry: make(chan struct{}, 1), ended: make(chan struct{}),
		conns: make(map[*primaryConn]struct{})}
	s.closing, s.cancel = context.WithCancel(context.Background())
	for _, address := range o.SentinelAddrs {
		opt := &redis.Options{Addr: address, Username: o.SentinelUsername, Password: o.SentinelPassword,
			ClientName: o.ClientName, Protocol: o.Protocol, Dialer: d.dial, PoolSize: 4, MaxRetries: -1,
			DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout}
		frugal(opt)
		s.all = append(s.all, &sentinel{address: address, client: redis.NewSentinelClient(opt)})
	}
	return s
}

func (s *sentinels) close() {
	s.cancel()
	<-s.ended
	for _, one := range s.all {
		_ = one.client.Close()
	}
}

func (s *sentinels) watch() {
	defer close(s.ended)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		_, _ = s.now(s.closing)
		select {
		case <-s.closing.Done():
			return
		case <-tick.C:
		case <-s.hurry:
		}
	}
}

const (
	// lookEvery is how long a replaced primary that still works may be used.
	lookEvery = 250 * time.Millisecond
	// slow is how late an answer must be to be checked: the server may have been suspended and replaced meanwhile.
	slow = 200 * time.Millisecond
)

// doubt makes the watch ask the Sentinels at once. No answer of the primary is trusted before they answer.
func (s *sentinels) doubt() {
	s.doubted.Store(time.Now().UnixNano())
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// now asks for the primary, follows it, and returns its address. Concurrent callers share an answer, if the
// Sentinels were asked after each of them called.
func (s *sentinels) now(ctx context.Context) (string, error) {
	came := time.Now()
	s.asking.Lock()
	defer s.asking.Unlock()
	if s.asked.After(came) {
		return s.primary(), s.unknown
	}
	s.asked = time.Now()
	var address string
	if address, s.unknown = s.ask(ctx); s.unknown == nil {
		s.follow(address)
	}
	return address, s.unknown
}

// follow uses the address as that of the primary, and drops the connections to any other.
func (s *sentinels) follow(address string) {
	var former []*primaryConn
	s.mu.Lock()
	if s.known != address {
		s.known = address
		for c := range s.conns {
			if c.address != address {
				former = append(former, c)
			}
		}
	}
	s.mu.Unlock()
	for _, c := range former {
		c.dropped.Store(true)
		_ = c.Close()
	}
}

// answer is the answer of one Sentinel.
type answer struct {
	sentinel string
	address  string // of the primary; empty: not known
	epoch    int64  // grows with each fail-over
	err      error
}

// ask returns the address that the Sentinels name, of those that answer in time. After a fail-over they learn of
// it one by one: the newest epoch counts, and if several have it, or none tells it, what most of them say. Their
// errors are a [Problem].
func (s *sentinels) ask(ctx context.Context) (string, error) {
	answers := make(chan answer, len(s.all))
	awaited := make(map[string]bool)
	for _, one := range s.all {
		awaited[one.address] = !one.late.Load()
		go func() {
			a := s.askOne(ctx, one)
			one.late.Store(a.address == "")
			answers <- a
		}()
	}
	votes := make(map[string]int)
	epochs := make(map[string]int64)
	var problem *Problem
	for range s.all {
		a := <-answers
		delete(awaited, a.sentinel)
		if a.address == "" {
			problem = cmp.Or(problem, s.problem(a.sentinel, a.err))
		} else {
			votes[a.address]++
			epochs[a.address] = max(epochs[a.address], a.epoch)
		}
		if len(votes) > 0 && !slices.Contains(slices.Collect(maps.Values(awaited)), true) {
			break // the rest did not answer the last time
		}
	}
	best, known := "", s.primary()
	for address := range votes {
		if best == "" ||
			cmp.Or(cmp.Compare(epochs[address], epochs[best]), cmp.Compare(votes[address], votes[best])) > 0 ||
			epochs[address] == epochs[best] && votes[address] == votes[best] && address == known {
			best = address
		}
	}
	if best == "" {
		return "", problem
	}
	return best, nil
}

func (s *sentinels) askOne(ctx context.Context, one *sentinel) answer {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	a := answer{sentinel: one.address}
	// The epoch comes first: that of an older answer does no harm. A user need not have the right to ask for it.
	state, err := one.client.Master(ctx, s.name).Result()
	if err == nil {
		a.epoch, _ = strconv.ParseInt(state["config-epoch"], 10, 64)
	}
	var parts []string
	if parts, a.err = one.client.GetMasterAddrByName(ctx, s.name).Result(); a.err == nil && len(parts) == 2 {
		a.address = net.JoinHostPort(parts[0], parts[1])
	}
	return a
}

func (s *sentinels) problem(sentinel string, err error) *Problem {
	p := &Problem{Found: "the Sentinel " + sentinel + " knows no primary of the name " + s.name, Setup: true,
		Advice: "set master_name in REDIS_URL to the name after SENTINEL MONITOR"}
	var reply redis.Error
	switch {
	case err == nil || errors.Is(err, redis.Nil): // which must not pass for a missing key
	case errors.As(err, &reply):
		p.Found, p.Err = fmt.Sprintf("the Sentinel %s: %v", sentinel, err), err
		p.Advice = "REDIS_URL with a master_name must name Sentinels (their port is 26379 by default), and " +
			"USER:PASSWORD@ is theirs; the user needs " +
			"+sentinel|get-master-addr-by-name"
	default:
		p = unreachable(context.Background(), &redis.Options{TLSConfig: s.dialer.tls}, err)
		p.Found = "the Sentinel " + sentinel + ": " + p.Found
		if errors.Is(err, syscall.ECONNREFUSED) { // it is no Redis that is to be started
			p.Advice = "nothing listens there: start the Sentinel, or name others in REDIS_URL"
		}
	}
	return p
}

func (s *sentinels) primary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// dial connects to the primary. While no Sentinel answers, it uses the last known one.
func (s *sentinels) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	ctx, cancel := within(ctx, s.dialer.within)
	defer cancel()
	verified := time.Now()
	address, err := s.now(ctx)
	if err != nil {
		if address = s.primary(); address == "" {
			return nil, err
		}
	}
	raw, err := s.dialer.connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("connected to %s by %T", address, raw)
	}
	conn := &primaryConn{TCPConn: tcp, address: address, sentinels: s}
	conn.verified.Store(verified.UnixNano())
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	replaced := s.known != address
	s.mu.Unlock()
	if replaced {
		_ = conn.Close()
		return nil, io.EOF // so that the client tries again
	}
	secured, err := s.dialer.secure(ctx, conn, address)
	if err != nil {
		return nil, fmt.Errorf("the primary %s: %w", address, err)
	}
	return secured, nil
}

// primaryConn is a connection to the server that was the primary when it was made.
type primaryConn struct {
	*net.TCPConn
	address   string
	sentinels *sentinels
	dropped   atomic.Bool
	wrote     atomic.Int64 // in nanoseconds, like the next
	verified  atomic.Int64 // when the Sentinels last said that this is the primary
}

// Read implements net.Conn. If the connection was dropped meanwhile it returns io.EOF, so that the client tries
// again. An answer that may come from a former primary is returned only if the Sentinels confirm the primary.
func (c *primaryConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	now, verified := time.Now(), c.verified.Load()
	if n > 0 && (now.UnixNano()-max(c.wrote.Load(), verified) > int64(slow) || verified < c.sentinels.doubted.Load()) {
		ctx, cancel := context.WithTimeout(c.sentinels.closing, lookWithin)
		address, unknown := c.sentinels.now(ctx)
		cancel()
		if unknown == nil && address != c.address {
			return 0, io.EOF
		}
		c.verified.Store(now.UnixNano())
	}
	return n, c.end(err)
}

// Write implements net.Conn.
func (c *primaryConn) Write(b []byte) (int, error) {
	c.wrote.Store(time.Now().UnixNano())
	n, err := c.TCPConn.Write(b)
	return n, c.end(err)
}

// Close implements net.Conn.
func (c *primaryConn) Close() error {
	c.sentinels.mu.Lock()
	delete(c.sentinels.conns, c)
	c.sentinels.mu.Unlock()
	return c.TCPConn.Close()
}

func (c *primaryConn) end(err error) error {
	if err != nil && c.dropped.Load() {
		return io.EOF
	}
	return err
}

// check returns what keeps the Sentinels from replacing a primary that fails.
func (s *sentinels) check(ctx context.Context) (found []*Problem) {
	if len(s.all) < 3 {
		found = append(found, &Problem{Found: fmt.Sprintf("REDIS_URL names %d Sentinels", len(s.all)), Advice: "run " +
			"at least three, and name each with addr=HOST:PORT: while none of those named answers, nobody learns of " +
			"a new primary"})
	}
	for _, one := range s.all {
		bounded, cancel := context.WithTimeout(ctx, attempt)
		err := one.client.CkQuorum(bounded, s.name).Err()
		cancel()
		var reply redis.Error
		switch {
		case err == nil, code(err) == "NOPERM": // it is useful, but not needed
		case errors.As(err, &reply):
			found = append(found, &Problem{Found: "the Sentinel " + one.address + ": " + err.Error(), Err: err,
				Advice: "bring the other Sentinels back, or none of them replaces a primary that fails"})
		default:
			p := unreachable(ctx, &redis.Options{Addr: one.address, TLSConfig: s.dialer.tls}, err)
			p.Found = "the Sentinel " + one.address + ": " + p.Found
			found = append(found, p)
		}
	}
	return found
}
