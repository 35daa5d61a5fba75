package main

import (
	"context"
	"net"
	"os"

	"go.uber.org/zap"
)

// notify tells the service manager the state of the process, as sd_notify(3) does: with one
// datagram to the socket in NOTIFY_SOCKET, if that is set. A name that begins with @ is in the
// abstract namespace, as for [net.UnixAddr].
func (a *app) notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		_ = conn.Close()
	}
	if err != nil {
		a.log.Warn("service_manager_not_notified", zap.Error(err))
	}
}

// notifyWhile tells the service manager that the process is ready and, when ctx ends, that it is
// stopping.
func (a *app) notifyWhile(ctx context.Context) {
	a.notify("READY=1")
	<-ctx.Done()
	a.notify("STOPPING=1")
}
