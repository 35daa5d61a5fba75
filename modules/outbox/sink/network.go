package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// network makes the connections to brokers, and can close all of them at once. Sarama itself waits
// for every answer, up to its time limit, before it closes.
type network struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	ctx  context.Context // ends when the sink is closed
	end  context.CancelFunc

	mu    sync.Mutex
	open  []net.Conn
	count map[string]int       // of connections so far, by address
	hangs map[string]time.Time // addresses that are not connected to before a time
}

func newNetwork(timeout time.Duration, dial func(network, address string) (net.Conn, error)) *network {
	n := &network{
		count: map[string]int{}, hangs: map[string]time.Time{},
		dial: (&net.Dialer{Timeout: timeout}).DialContext,
	}
	if dial != nil {
		n.dial = func(_ context.Context, network, address string) (net.Conn, error) { return dial(network, address) }
	}
	n.ctx, n.end = context.WithCancel(context.Background())
	return n
}

// Dial implements the dialer that Sarama asks for.
func (n *network) Dial(network, address string) (net.Conn, error) {
	c, err := n.connect(network, address)
	if err == nil {
		n.mu.Lock()
		n.count[address]++
		n.mu.Unlock()
	}
	return c, err
}

// uncounted makes connections that [network.made] does not count.
type uncounted struct{ *network }

// Dial implements the dialer that Sarama asks for.
func (u uncounted) Dial(network, address string) (net.Conn, error) {
	return u.connect(network, address)
}

// connect returns a plain connection, because Sarama inspects its socket to see whether it is broken.
func (n *network) connect(network, address string) (net.Conn, error) {
	n.mu.Lock()
	hangs := time.Now().Before(n.hangs[address])
	n.mu.Unlock()
	if hangs {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s has not answered", address)}
	}
	c, err := n.dial(n.ctx, network, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, errors.Join(errClosed, c.Close())
	}
	still := n.open[:0]
	for _, c := range n.open {
		if !isClosed(c) {
			still = append(still, c)
		}
	}
	clear(n.open[len(still):])
	n.open = append(still, c)
	return c, nil
}

// made is how many connections have been made to an address.
func (n *network) made(address string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count[address]
}

// avoid lets attempts to connect to an address fail at once, for a while.
func (n *network) avoid(address string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hangs[address] = time.Now().Add(d)
}

func isClosed(c net.Conn) bool {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	control, err := raw.SyscallConn()
	return err != nil || errors.Is(control.Control(func(uintptr) {}), net.ErrClosed)
}

// close closes every connection, and ends every attempt to connect.
func (n *network) close() {
	n.end()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.open {
		_ = c.Close()
	}
	n.open = nil
}
