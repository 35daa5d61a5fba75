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
	// The first signal asks for an orderly stop, the second one gets an immediate one.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// hangups catches SIGHUP, by which who has renamed a log file asks for it to be opened again, and
// which is also what a server gets when the terminal goes that it was started from: neither is a
// reason to stop. It is asked for first of all, so that no hangup finds the default, which ends
// the process.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// ignoreBrokenPipes keeps a server alive whose log nobody reads any more. Commands are
// better ended by it: authctl user list | head.
func ignoreBrokenPipes() { signal.Ignore(syscall.SIGPIPE) }
