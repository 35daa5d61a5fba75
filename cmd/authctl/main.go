// Command authctl is the authentication service and everything its operators need: one
// binary that serves the API, migrates the database, relays events and manages accounts.
package main

import (
	"context"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Who reads what is written may have seen enough, or be gone. That ends a process where it writes its result, but
	// not in the middle of its work because of a line of the log.
	signal.Ignore(syscall.SIGPIPE)
	// net/http writes there what a receiver of webhooks sends after its answer, in the receiver's own words.
	log.SetOutput(io.Discard)
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
