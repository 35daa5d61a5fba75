package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// primary is a client of the server that the Sentinels call the primary.
//
// It is not the failover client of go-redis, which stays with one Sentinel: while that one hangs, no
// connection is made, and one that is cut off from the others would lead to a primary that was replaced.
type primary struct {
	*redis.Client
	sentinels *sentinels
}

// Close ends the watch, too.
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
		PoolFIFO: o.PoolFIFO, PoolSize: o.PoolSize, PoolTimeout: o.PoolTimeout, MaxConcurrentDials: o.MaxConcurrentDials,
		MinIdleConns: o.MinIdleConns, MaxIdleConns: o.MaxIdleConns, MaxActiveConns: o.MaxActiveConns,
		ConnMaxIdleTime: o.ConnMaxIdleTime, ConnMaxLifetime: o.ConnMaxLifetime,
		ConnMaxLifetimeJitter: o.ConnMaxLifetimeJitter,
	}
	frugal(opt)
	if appName != "" {
		opt.ClientName, opt.OnConnect = "", named(appName)
	}
	p := &primary{Client: redis.NewClient(opt), sentinels: s}
	p.AddHook(guard{within: 2 * o.ReadTimeout, lookAgain: s.wake})
	go s.watch()
	return p
}

// sentinels knows the primary. It asks all Sentinels twice a second, and at once when the primary fails. When
// they agree on another one, it closes the connections to the former one: that may hang, or answer as a replica.
type sentinels struct {
	name   string
	all    []sentinel
	dialer dialer

	hurry   chan struct{}
	closing context.Context
	cancel  context.CancelFunc
	ended   chan struct{}

	mu    sync.Mutex
	known string // address of the primary; empty before the first answer
	conns map[*primaryConn]struct{}
}

type sentinel struct {
	address string
	client  *redis.SentinelClient
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
		s.all = append(s.all, sentinel{address, redis.NewSentinelClient(opt)})
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
	tick := time.NewTicker(lookWithin)
	defer tick.Stop()
	for {
		if address, err := s.ask(s.closing); err == nil {
			s.follow(address)
		}
		select {
		case <-s.closing.Done():
			return
		case <-tick.C:
		case <-s.hurry:
		}
	}
}

// wake has the Sentinels asked at once.
func (s *sentinels) wake() {
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// follow takes the address for that of the primary, and drops the connections to any other.
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

// ask returns the address that most Sentinels name, of those that answer in time: as soon as more than half of
// all agree, or when each has answered. Their errors are a [Problem].
func (s *sentinels) ask(ctx context.Context) (string, error) {
	type answer struct {
		sentinel, address string
		err               error
	}
	answers := make(chan answer, len(s.all))
	for _, one := range s.all {
		go func() {
			bounded, cancel := context.WithTimeout(ctx, lookWithin)
			defer cancel()
			parts, err := one.client.GetMasterAddrByName(bounded, s.name).Result()
			a := answer{sentinel: one.address, err: err}
			if err == nil && len(parts) == 2 {
				a.address = net.JoinHostPort(parts[0], parts[1])
			}
			answers <- a
		}()
	}
	votes := make(map[string]int)
	var best string
	var problem *Problem
	for range s.all {
		a := <-answers
		if a.address == "" {
			problem = cmp.Or(problem, s.problem(a.sentinel, a.err))
			continue
		}
		votes[a.address]++
		if n := votes[a.address]; 2*n > len(s.all) {
			return a.address, nil
		} else if n > votes[best] || n == votes[best] && a.address == s.primary() {
			best = a.address
		}
	}
	if best == "" {
		return "", problem
	}
	return best, nil
}

func (s *sentinels) problem(sentinel string, err error) *Problem {
	p := &Problem{Found: "the Sentinel " + sentinel + " knows no primary of the name " + s.name, Setup: true,
		Advice: "set master_name in REDIS_URL to the name after SENTINEL MONITOR"}
	var reply redis.Error
	switch {
	case err == nil || errors.Is(err, redis.Nil): // which must not pass for a missing key
	case errors.As(err, &reply):
		p.Found, p.Err = fmt.Sprintf("the Sentinel %s: %v", sentinel, err), err
		p.Advice = "REDIS_URL with a master_name must name Sentinels (their port is 26379 by default), and USER:PASSWORD@ " +
			"is theirs; the user needs +sentinel|get-master-addr-by-name"
	default:
		p = unreachable(context.Background(), &redis.Options{TLSConfig: s.dialer.tls}, err)
		p.Found = "the Sentinel " + sentinel + ": " + p.Found
	}
	return p
}

func (s *sentinels) primary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// dial connects to the primary. While no Sentinel answers it is the one that was known last.
func (s *sentinels) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	ctx, cancel := s.dialer.bound(ctx)
	defer cancel()
	address := s.primary()
	if address == "" {
		var err error
		if address, err = s.ask(ctx); err != nil {
			return nil, err
		}
		s.follow(address)
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
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	replaced := s.known != address
	s.mu.Unlock()
	if replaced {
		_ = conn.Close()
		return nil, io.EOF // so that it is tried again
	}
	return s.dialer.secure(ctx, conn, address)
}

// primaryConn is a connection to what was the primary when it was made.
type primaryConn struct {
	*net.TCPConn
	address   string
	sentinels *sentinels
	dropped   atomic.Bool
}

// Read implements net.Conn. A connection that is dropped meanwhile has ended, which the client takes for a
// reason to try again.
func (c *primaryConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.end(err)
}

// Write implements net.Conn.
func (c *primaryConn) Write(b []byte) (int, error) {
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
			"at least three, and name each with addr=HOST:PORT: while none of those named answers, nobody learns of a new primary"})
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
