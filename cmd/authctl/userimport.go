package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/toppira/authctl/modules/auth"
)

type importOptions struct {
	*global
	from         string
	format       string
	errorsFile   string
	firebaseHash string
}

func newUserImport(g *global) *cobra.Command {
	o := &importOptions{global: g}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make accounts of what another system, or export, has written",
		Long: `Make accounts of what another system, or authctl user export, has written. FILE may be - for
standard input. It is read as a stream, however long it is.

Passwords come as they are hashed: bcrypt ($2a$, $2b$, $2y$), argon2id, argon2i, scrypt, PBKDF2
with SHA-1, SHA-256 and SHA-512, and salted SHA, each as its makers write it. Hashes that would
take too long to verify are refused. The first sign-in of its owner replaces an imported hash by
one of the present settings. Each account is announced like one that registers.

--from names where FILE comes from; docs/import.md shows how to get each and what of it is taken:

  native    objects with username, password_hash and, where wanted, id, status (active or
            disabled), created_at and password_changed_at; or a CSV with such columns
  keycloak  a realm export, whole or its users: username
  firebase  firebase auth:export as JSON or CSV: the email. Needs --firebase-hash-config
  django    manage.py dumpdata auth.user, or the table auth_user as CSV: username
  auth0     the export of password hashes: username, else the email
  supabase  the table auth.users as CSV or JSON: the email, else the phone number

An id that is a UUID is kept. An account that is there already, by the same name and, where
FILE gives one, the same id, is left as it is. So an import that stopped halfway is simply run
again, and running it twice does nothing the second time.

A record that cannot be taken is reported with its line and the reason, to --errors or else
to standard error, and the next one is read. The exit code is 0 when none was refused and 1
when some were, or when the import stopped. Ctrl-C finishes the portion in hand and says how
far it came.`,
		Example: `  authctl user import users.ndjson
  authctl user import users.csv --errors refused.ndjson
  authctl user import --from keycloak realm-export.json
  authctl user import --from firebase --firebase-hash-config hash_config.txt users.json
  authctl user import --from django auth_user.json
  authctl user import --from auth0 hashes.ndjson
  psql "$SUPABASE" -c 'COPY (SELECT * FROM auth.users) TO STDOUT CSV HEADER' | authctl user import --from supabase -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	formats := []string{auth.FormatAuto, auth.FormatNDJSON, auth.FormatJSON, auth.FormatCSV}
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "native", "where the file comes from: "+strings.Join(auth.ImportSources(), ", "))
	flags.StringVar(&o.format, "format", auth.FormatAuto, "what the file is: "+strings.Join(formats, ", "))
	flags.StringVar(&o.errorsFile, "errors", "", "write each refused record to this file, a JSON object a line")
	flags.StringVar(&o.firebaseHash, "firebase-hash-config", "", "file with the hash parameters of the Firebase project")
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions(auth.ImportSources(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// importResult is what is printed of an import.
type importResult struct {
	auth.ImportReport
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"per_second"` // records
}

func (o *importOptions) run(cmd *cobra.Command, path string) (err error) {
	opt := auth.ImportOptions{From: o.from, Format: o.format}
	for _, choice := range []struct {
		flag, value string
		values      []string
	}{{"--from", o.from, auth.ImportSources()}, {"--format", o.format, []string{auth.FormatAuto, auth.FormatNDJSON, auth.FormatJSON, auth.FormatCSV}}} {
		if !slices.Contains(choice.values, choice.value) {
			return misuse{fmt.Errorf("%s is %q; it takes %s", choice.flag, choice.value, strings.Join(choice.values, ", "))}
		}
	}
	if (o.from == "firebase") != (o.firebaseHash != "") {
		return misuse{errors.New("--from firebase and --firebase-hash-config go together")}
	}
	if o.firebaseHash != "" {
		text, err := os.ReadFile(o.firebaseHash)
		if err != nil {
			return fmt.Errorf("read the hash parameters: %w", err)
		}
		if opt.Firebase, err = auth.ParseFirebaseHash(string(text)); err != nil {
			return fmt.Errorf("%s: %w", o.firebaseHash, err)
		}
	}
	in, size, err := openInput(cmd, path)
	if err != nil {
		return err
	}
	defer in.Close()

	stderr := cmd.ErrOrStderr()
	bar := newProgress(stderr, size)
	defer bar.Finish()
	refused, closeErrors, err := o.reportRefused(stderr, bar)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeErrors()) }()
	opt.Refused, opt.Progress = refused, bar.show

	return o.withApp(cmd, (*app).openAuth, func(ctx context.Context, a *app) error {
		start := time.Now()
		report, err := a.auth.Import(ctx, bar.reader(in), opt)
		bar.Finish()
		result := importResult{ImportReport: report, Seconds: time.Since(start).Seconds()}
		result.Rate = float64(report.Imported+report.Present+report.Refused) / max(result.Seconds, 1e-9)
		if printed := o.print(cmd.OutOrStdout(), result); printed != nil {
			return errors.Join(err, printed)
		}
		switch {
		case errors.Is(err, context.Canceled):
			return fmt.Errorf("stopped after line %d; run it again to go on: what is there is passed over quickly", report.Line)
		case err != nil:
			return fmt.Errorf("%w; what comes before is done: run it again to go on", err)
		case report.Refused > 0:
			return silent{errors.New("some records were refused")}
		}
		return nil
	})
}

// openInput opens the file, or standard input for -, and tells its size, -1 when that is not
// known.
func openInput(cmd *cobra.Command, path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read the accounts: %w", err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return f, -1, err
	}
	return f, info.Size(), nil
}

// reportRefused returns what takes each refusal, and what ends it.
func (o *importOptions) reportRefused(stderr io.Writer, bar *progress) (take func(auth.Refusal) error, end func() error, err error) {
	if o.errorsFile == "" {
		return func(r auth.Refusal) error {
			bar.clear()
			_, err := fmt.Fprintf(stderr, "line %d: %s: %s\n", r.Line, r.Code, r.Detail)
			return err
		}, func() error { return nil }, nil
	}
	f, err := os.OpenFile(o.errorsFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("write the refused records: %w", err)
	}
	out := bufio.NewWriter(f)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return func(r auth.Refusal) error { return enc.Encode(r) }, func() error {
		if err := errors.Join(out.Flush(), f.Close()); err != nil {
			return fmt.Errorf("write the refused records: %w", err)
		}
		return nil
	}, nil
}

func (o *importOptions) print(w io.Writer, r importResult) error {
	if o.output == "json" {
		return printJSON(w, r)
	}
	rows := [][]string{{"imported", fmt.Sprint(r.Imported)}, {"already there", fmt.Sprint(r.Present)}, {"refused", fmt.Sprint(r.Refused)}}
	if o.errorsFile != "" && r.Refused > 0 {
		rows[2][1] += ", see " + o.errorsFile
	}
	for _, scheme := range slices.SortedFunc(maps.Keys(r.Schemes), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Schemes[b], r.Schemes[a]), cmp.Compare(a, b))
	}) {
		rows = append(rows, []string{"  " + scheme, fmt.Sprint(r.Schemes[scheme])})
	}
	if r.Weak > 0 {
		rows = append(rows, []string{"weak", fmt.Sprintf("%d are salted SHA, which hardly slows a thief, until their owners sign in", r.Weak)})
	}
	return printPairs(w, append(rows, []string{"took", fmt.Sprintf("%s, %.0f a second", time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), r.Rate)}))
}

// progress is a bar on a terminal, and nothing elsewhere.
type progress struct{ bar *progressbar.ProgressBar }

func newProgress(w io.Writer, size int64) *progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(f), progressbar.OptionShowBytes(true), progressbar.OptionSetDescription("importing"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(24),
		progressbar.OptionSetSpinnerChangeInterval(0), // it moves with what is read, by no clock of its own
		progressbar.OptionClearOnFinish())}
}

func (p *progress) reader(r io.Reader) io.Reader {
	if p.bar == nil {
		return r
	}
	reader := progressbar.NewReader(r, p.bar)
	return &reader
}

func (p *progress) show(r auth.ImportReport) {
	if p.bar != nil {
		p.bar.Describe(fmt.Sprintf("%d imported, %d there, %d refused", r.Imported, r.Present, r.Refused))
	}
}

// The bar is decoration: that it cannot be drawn is no failure of the import.
func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

// Finish takes the bar off the screen. It may be called again.
func (p *progress) Finish() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}
