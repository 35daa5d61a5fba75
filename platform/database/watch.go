package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// gone is after how long without a sign of its machine a server counts as gone. A machine that has lost its
// power refuses nothing, and Linux alone would send a statement to it again for a quarter of an hour.
const gone = 30 * time.Second

// A server whose processes are frozen keeps its connections, and its system confirms what it gets. So a statement
// without a deadline would wait until it goes on. Every connection is therefore watched: when a server has said
// nothing for [silence], a new connection asks whether it still answers. If it does, a statement may take as long as
// it likes, as that of a migration. If it does not, the connection is closed, and the statement fails.
//
// statement_timeout could not tell the two apart, and PgBouncer refuses it.
const (
	silence = 10 * time.Second
	trial   = gone - silence // how long the new connection may take
	seldom  = 5 * time.Minute
)

// errSilent is the failure of a statement that a server did not answer.
type errSilent struct {
	server string
	after  time.Duration
	alive  bool // others are answered
}

func (e *errSilent) Error() string {
	if e.alive {
		return fmt.Sprintf("%s has not answered a statement for %s", e.server, e.after)
	}
	return fmt.Sprintf("%s has answered nothing for %s, not even a new connection", e.server, e.after)
}

// Timeout is true, since the driver hides other errors of a connection behind one that says that it is closed.
func (e *errSilent) Timeout() bool   { return true }
func (e *errSilent) Temporary() bool { return false }

// watch watches the connections of a pool.
type watch struct {
	server  *pgx.ConnConfig
	silence time.Duration
	trial   time.Duration
	within  time.Duration // how long a living server may take for an answer; 0 is any time
}

// watchConnections has all connections of a configuration watched.
func watchConnections(cc *pgx.ConnConfig, within time.Duration) *watch {
	w := &watch{server: cc.Copy(), silence: silence, trial: trial, within: within}
	dial := cc.DialFunc
	cc.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &watched{Conn: conn, watch: w, network: network, address: address}
		c.reading.conn, c.writing.conn = c, c
		return c, nil
	}
	return w
}

// answers reports whether the server at an address answers a new connection, whatever it says.
func (w *watch) answers(network, address string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), w.trial)
	defer cancel()
	cc := w.server.Copy()
	dial, own := cc.DialFunc, cc.Fallbacks
	cc.ConnectTimeout, cc.Fallbacks = 0, nil
	for _, f := range own { // the same server with TLS and without
		if f.Host == cc.Host && f.Port == cc.Port {
			cc.Fallbacks = append(cc.Fallbacks, f)
		}
	}
	cc.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"server"}, nil }
	cc.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, network, address) }
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err == nil {
		_ = conn.Close(ctx)
		return true
	}
	var dialled *net.OpError
	return ctx.Err() == nil && (!errors.As(err, &dialled) || dialled.Op != "dial")
}

// watched is a connection that is closed when its server does not answer.
type watched struct {
	net.Conn
	watch            *watch
	network, address string
	reading, writing wait
	failed           atomic.Pointer[errSilent]
}

func (c *watched) Read(p []byte) (int, error) {
	c.reading.begin()
	n, err := c.Conn.Read(p)
	c.reading.end()
	return n, c.because(err)
}

func (c *watched) Write(p []byte) (int, error) {
	c.writing.begin()
	n, err := c.Conn.Write(p)
	c.writing.end()
	return n, c.because(err)
}

func (c *watched) Close() error {
	c.reading.end()
	c.writing.end()
	return c.Conn.Close()
}

// because puts the cause in place of the error that the closed connection gives.
func (c *watched) because(err error) error {
	if failed := c.failed.Load(); err != nil && failed != nil {
		return failed
	}
	return err
}

// wait is a reading or a writing of a connection, one at a time.
type wait struct {
	conn *watched

	mu    sync.Mutex
	timer *time.Timer
	since time.Time     // zero between two
	next  time.Duration // after which the server is tried
}

func (w *wait) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since, w.next = time.Now(), w.conn.watch.silence
	if w.timer == nil {
		w.timer = time.AfterFunc(w.next, w.doubt)
	} else {
		w.timer.Reset(w.next)
	}
}

func (w *wait) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Time{}
	if w.timer != nil {
		w.timer.Stop()
	}
}

// doubt tries the server, and closes the connection if it does not answer, or has not answered for too long.
func (w *wait) doubt() {
	w.mu.Lock()
	since := w.since
	w.mu.Unlock()
	if since.IsZero() {
		return
	}
	alive := w.conn.watch.answers(w.conn.network, w.conn.address)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since != since { // answered meanwhile
		return
	}
	waited, within := time.Since(since), w.conn.watch.within
	if !alive || within > 0 && waited >= within {
		w.conn.failed.Store(&errSilent{w.conn.address, waited.Round(time.Second), alive})
		_ = w.conn.Conn.Close()
		return
	}
	w.next = min(2*w.next, seldom)
	if within > 0 {
		w.next = min(w.next, max(within-waited, time.Millisecond))
	}
	w.timer.Reset(w.next)
}
