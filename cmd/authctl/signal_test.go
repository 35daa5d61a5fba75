package main

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// stopping is a program that never comes to an end of its stop. It says when it runs and when it stops.
func stopping() {
	ctx := untilSignal()
	fmt.Println("runs")
	<-ctx.Done()
	fmt.Println("stops")
	select {}
}

// TestTheSecondSignalIsNeverLost sends it as soon as the program shows that the first one came.
func TestTheSecondSignalIsNeverLost(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("stopping")
	testenv.Must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	for range 50 {
		cmd := exec.CommandContext(ctx, program)
		said, err := cmd.StdoutPipe()
		testenv.Must(t, err)
		testenv.Must(t, cmd.Start())
		for lines := bufio.NewScanner(said); lines.Scan(); {
			testenv.Must(t, cmd.Process.Signal(syscall.SIGTERM))
		}
		if got := outcome(cmd.Wait()); got != "TERM" {
			t.Fatalf("it ends with %s, want TERM", got)
		}
	}
}
