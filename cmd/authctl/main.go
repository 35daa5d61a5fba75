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
	os.Exit(run(untilSignal(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// untilSignal is a context that ends with the first SIGINT or SIGTERM, which asks for an orderly stop. The second one
// stops the process at once, however soon it comes: nothing can know of the first one before that holds.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals)
		select {
		case second := <-signals:
			if self, err := os.FindProcess(os.Getpid()); err != nil || self.Signal(second) != nil {
				os.Exit(1)
			}
		default:
		}
		cancel()
	}()
	return ctx
}

// hangups catches SIGHUP, which log rotation sends to have the log file opened again, and which a
// server also gets when its terminal closes. Neither is a reason to stop. It is called first, since
// by default a hangup ends the process.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}
