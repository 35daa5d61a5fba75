package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan writes the manual pages that a release carries. SOURCE_DATE_EPOCH dates them, so that the
// same commit gives the same bytes.
func newMan(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "man FOLDER",
		Short:   "Write the manual pages of all commands into a folder",
		Example: "  authctl man /usr/local/share/man/man1",
		Hidden:  true,
		Args:    oneArgument,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // for everybody to read
				return fmt.Errorf("make the folder: %w", err)
			}
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "authctl " + version(), Manual: "authctl"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	}
}
