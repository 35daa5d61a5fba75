// Package engines starts servers of PostgreSQL and Kafka on loopback, for tests and the benchmark, which fill, stop
// and kill them.
package engines

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
)

// ErrMissing says that what a server needs is not on this machine.
var ErrMissing = errors.New("not on this machine")

// The ports that FreePort chooses from lie below the range from which systems give a port to whoever connects or asks
// for any: one in that range may belong to some connection by the time a program listens on it.
const firstPort, lastPort = 10240, 19999

// FreePort returns a port of 127.0.0.1 that nothing listens on. No other call returns it, in any process, before the
// reservation is closed.
func FreePort() (port int, reservation io.Closer, err error) {
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		reserved, err := net.ListenPacket("udp", addr) // the port of the other protocol
		if err != nil {
			continue
		}
		if listener, err := net.Listen("tcp", addr); err == nil {
			return port, reserved, listener.Close()
		}
		_ = reserved.Close()
	}
	return 0, nil, errors.New("no free port found")
}

// OwnGroup keeps Ctrl-C at the terminal from a program: whoever started it stops it.
func OwnGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
