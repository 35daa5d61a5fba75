package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// consent is the flag --yes of a command that destroys something, and the question on a terminal
// without it.
type consent struct{ yes bool }

func (c *consent) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do not ask for confirmation")
}

// terminalOf returns the terminal of standard input, or nil.
func terminalOf(cmd *cobra.Command) *os.File {
	if isTerminal(cmd.InOrStdin()) {
		return fileOf(cmd.InOrStdin())
	}
	return nil
}

// ask says what will be lost, a sentence without its full stop, and returns nil if the operator
// agrees.
func (c *consent) ask(cmd *cobra.Command, loss string) error {
	if c.yes {
		return nil
	}
	if terminalOf(cmd) == nil {
		return misuse{fmt.Errorf("%s: say --yes if you mean it", loss)}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s.\nGo on? [y/N] ", loss)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(cmd.ErrOrStderr())
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was done")
}
