package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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
		Args: cobra.NoArgs,
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
	if f, ok := stdout.(*os.File); ok && o.file == "" && o.hashes && !o.force && term.IsTerminal(int(f.Fd())) {
		return misuse{errors.New("password hashes do not belong on a screen: use --file, or --force if you mean it")}
	}
	return o.withApp(cmd, (*app).openExistingAuth, func(ctx context.Context, a *app) error {
		write := func(w io.Writer) (int64, error) {
			out := bufio.NewWriter(w)
			n, err := a.auth.Export(ctx, out, auth.ExportOptions{Format: o.format, PasswordHashes: o.hashes})
			return n, errors.Join(err, out.Flush())
		}
		if o.file == "" {
			_, err := write(stdout)
			return err
		}
		n, err := writePrivately(o.file, write)
		if err != nil {
			return err
		}
		if o.output == "json" {
			return printJSON(stdout, map[string]any{"exported": n, "file": o.file})
		}
		_, err = fmt.Fprintf(stdout, "%d accounts are in %s\n", n, o.file)
		return err
	})
}

// writePrivately writes a file that only its owner can read, completely or not at all.
func writePrivately(path string, write func(io.Writer) (int64, error)) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("write the export: %w", err)
	}
	defer os.Remove(f.Name())
	n, err = write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return n, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return n, fmt.Errorf("write the export: %w", err)
	}
	return n, nil
}
