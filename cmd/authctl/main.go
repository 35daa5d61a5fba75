// Command authctl is the authentication service and everything its operators need: one
// binary that serves the API, migrates the database, relays events and manages accounts.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal asks for an orderly stop; the second one stops the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// hangups catches SIGHUP, which log rotation sends to have the log file opened again, and which a
// server also gets when its terminal closes. Neither is a reason to stop. It is called first, since
// by default a hangup ends the process.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// ignoreBrokenPipes keeps a server alive when nobody reads its log any more. Commands should end
// instead: authctl user list | head.
func ignoreBrokenPipes() { signal.Ignore(syscall.SIGPIPE) }
