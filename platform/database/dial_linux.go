package database

import (
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialer makes connections that end with an error when the server is gone. What waits for one has no deadline of
// its own in commands. A server that is alive may take as long as it likes for an answer.
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(gone.Milliseconds()))
		})
		if failed != nil {
			return failed
		}
		return err
	}}
}
