package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

type exportOptions struct {
	*global
	format string
	file   string
	hashes bool
	force  bool
}

func newUserExport(g *global) *cobra.Command {
	o := &exportOptions{global: g}
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write every account in the form that import reads",
		Long: `Write every account, ordered by id, in the form that authctl user import reads: one JSON object
a line, or CSV. Accounts are streamed, so their number does not matter.

Password hashes are left out unless --with-password-hashes is given; an import needs them.
Anybody who has them can try passwords without limit: --file creates a file that only its
owner can read, and a terminal gets them only with --force. Every export is recorded in the
security log.`,
		Example: `  authctl user export --format csv > users.csv
  authctl user export --with-password-hashes --file users.ndjson`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.format, "format", auth.FormatNDJSON, "output format: ndjson or csv")
	flags.StringVar(&o.file, "file", "", "write to this file, readable only by its owner, instead of standard output")
	flags.BoolVar(&o.hashes, "with-password-hashes", false, "write the password hashes too")
	flags.BoolVar(&o.force, "force", false, "write password hashes to a terminal")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{auth.FormatNDJSON, auth.FormatCSV},
		cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o *exportOptions) run(cmd *cobra.Command) error {
	if o.format != auth.FormatNDJSON && o.format != auth.FormatCSV {
		return misuse{fmt.Errorf("--format is %q; it takes ndjson or csv", o.format)}
	}
	stdout := cmd.OutOrStdout()
	if o.file == "" && o.hashes && !o.force && isTerminal(stdout) {
		return misuse{errors.New("password hashes do not belong on a screen: use --file, or --force if you mean it")}
	}
	file, err := replaceable(o.file)
	if err != nil {
		return err
	}
	return o.toShow(cmd, func(ctx context.Context, a *app) error {
		var n int64
		write := func(w io.Writer) (err error) {
			out := bufio.NewWriter(w)
			n, err = a.auth.Export(ctx, out, auth.ExportOptions{Format: o.format, PasswordHashes: o.hashes})
			if err != nil {
				return err
			}
			return out.Flush()
		}
		if o.file == "" {
			return write(stdout)
		}
		if err := writePrivately(file, os.Rename, write); err != nil {
			return fmt.Errorf("write the export: %w", err)
		}
		return o.tell(stdout, map[string]any{"exported": n, "file": o.file},
			fmt.Sprintf("%d accounts are in %s", n, o.file))
	})
}

// replaceable returns the file that a path leads to. A device or a folder is refused: what replaces
// it would be gone, or in its place for every program.
func replaceable(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case path == "" || errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", fmt.Errorf("write the export: %w", err)
	case !info.Mode().IsRegular():
		return "", misuse{fmt.Errorf("--file %s is not a file; without --file the export goes to standard output",
			path)}
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("write the export: %w", err)
	}
	return path, nil
}
