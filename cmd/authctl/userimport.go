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

	"github.com/toppira/authctl/modules/auth"
)

type importOptions struct {
	*global
	from         string
	format       string
	errorsFile   string
	firebaseHash string
	unconfirmed  string
	dryRun       bool
	check        string
	password     passwordFlags
}

func newUserImport(g *global) *cobra.Command {
	o := &importOptions{global: g}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Create accounts from the export of authctl or another system",
		Long: `Create accounts from the export of another system, or of authctl user export. FILE may be - for
standard input. It is read as a stream, so its length does not matter.

Password hashes are imported in the form of their systems: bcrypt, argon2, scrypt, PBKDF2
and salted SHA of the systems below, and of Spring Security, ASP.NET Identity, Werkzeug,
WordPress 6.8, better-auth, passlib and directories. Hashes that would take too long to verify
are refused. The first sign-in of the owner replaces an imported hash by one with the present
settings. An event announces each account, as for registration.

--from names the source of FILE; docs/import.md shows how to get each and what is imported:

  native    objects with username, password_hash and optionally id, status (active or
            disabled), created_at, password_changed_at, email and email_verified; or a CSV with
            such columns
  keycloak  a realm export, whole or its users, of one realm or all: username
  firebase  firebase auth:export as JSON or CSV: the email. Needs --firebase-hash-config
  django    manage.py dumpdata, or the table of users as CSV: username, or else the email
  auth0     the export of password hashes: username, else the email
  supabase  the table auth.users as CSV or JSON: the email, else the phone number
  zitadel   the export of the admin API with its passwords: userName

--check NAME asks for the password of that account and verifies it against its record before
anything is written. Only this check shows whether the parameters of the hashes are right.
--dry-run reports the result of an import and writes nothing.

An account that already exists is left as it is. It is recognized by the id if FILE has one,
otherwise by the password hash or the time of creation. So you can run an interrupted import
again, and a second run changes nothing. If a name belongs to somebody else, the record
is refused.

The report counts the protections that accounts lose, such as second factors and
required actions, by kind. It counts existing accounts that the source has disabled since, or
whose password it has changed, and names the columns or members of a native FILE that are not
read. --unconfirmed decides about accounts with an unconfirmed address as their name.

Each refused record is reported with its line and the reason, to --errors or else
to standard error, and the import goes on. The exit code is 0 when none was refused and 1
when some were, or when the import stopped. On Ctrl-C it finishes the current batch and says how
far it got.`,
		Example: `  authctl user import users.ndjson --dry-run
  authctl user import users.ndjson
  authctl user import users.csv --errors refused.ndjson
  authctl user import --from keycloak realm-export.json
  authctl user import --from firebase --firebase-hash-config hash_config.txt --check me@example.com users.json
  authctl user import --from django auth_user.json
  authctl user import --from auth0 hashes.ndjson
  psql "$SUPABASE" -c 'COPY (SELECT * FROM auth.users) TO STDOUT CSV HEADER' | authctl user import --from supabase -`,
		Args: oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	formats := []string{auth.FormatAuto, auth.FormatNDJSON, auth.FormatJSON, auth.FormatCSV}
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "native", "source of the file: "+strings.Join(auth.ImportSources(), ", "))
	flags.StringVar(&o.format, "format", auth.FormatAuto, "format of the file: "+strings.Join(formats, ", "))
	flags.StringVar(&o.errorsFile, "errors", "", "report each refused record to this file, one JSON object a line")
	flags.StringVar(&o.firebaseHash, "firebase-hash-config", "",
		"file with the hash parameters of the Firebase project")
	flags.StringVar(&o.unconfirmed, "unconfirmed", auth.UnconfirmedTake,
		"what to do with an account that has an unconfirmed address as its name: "+
			strings.Join(unconfirmedChoices(), ", "))
	flags.BoolVar(&o.dryRun, "dry-run", false, "write nothing, only report what would happen")
	flags.StringVar(&o.check, "check", "", "ask for the password of this account, and import only if it is right")
	o.password.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("unconfirmed",
		cobra.FixedCompletions(unconfirmedChoices(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions(auth.ImportSources(),
		cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func unconfirmedChoices() []string {
	return []string{auth.UnconfirmedTake, auth.UnconfirmedDisable, auth.UnconfirmedSkip}
}

// importResult is what is printed of an import.
type importResult struct {
	auth.ImportReport
	DryRun  bool    `json:"dry_run,omitempty"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"per_second"` // records
}

func (o *importOptions) run(cmd *cobra.Command, path string) error {
	opt, err := o.options(path)
	if err != nil {
		return err
	}
	if o.check != "" {
		if err := o.checkPassword(cmd, path, opt); err != nil {
			return err
		}
	}
	return o.read(cmd, path, opt)
}

func (o *importOptions) options(path string) (auth.ImportOptions, error) {
	opt := auth.ImportOptions{From: o.from, Format: o.format, Unconfirmed: o.unconfirmed, DryRun: o.dryRun}
	for _, choice := range []struct {
		flag, value string
		values      []string
	}{
		{"--from", o.from, auth.ImportSources()},
		{"--format", o.format, []string{auth.FormatAuto, auth.FormatNDJSON, auth.FormatJSON, auth.FormatCSV}},
		{"--unconfirmed", o.unconfirmed, unconfirmedChoices()},
	} {
		if !slices.Contains(choice.values, choice.value) {
			return opt, misuse{fmt.Errorf("%s is %q; it takes %s", choice.flag, choice.value,
				strings.Join(choice.values, ", "))}
		}
	}
	if (o.from == "firebase") != (o.firebaseHash != "") {
		return opt, misuse{errors.New("--from firebase and --firebase-hash-config go together")}
	}
	if (o.password.stdin || o.password.file != "") && o.check == "" {
		return opt, misuse{errors.New("the password of --password-stdin and --password-file is that of --check NAME")}
	}
	if o.check != "" && path == "-" {
		return opt, misuse{errors.New("--check reads FILE twice: it cannot be standard input")}
	}
	if o.firebaseHash == "" {
		return opt, nil
	}
	text, err := os.ReadFile(o.firebaseHash)
	if err != nil {
		return opt, fmt.Errorf("read the hash parameters: %w", err)
	}
	if opt.Firebase, err = auth.ParseFirebaseHash(string(text)); err != nil {
		return opt, fmt.Errorf("%s: %w", o.firebaseHash, err)
	}
	return opt, nil
}

// checkPassword asks for one password and verifies it against its record.
func (o *importOptions) checkPassword(cmd *cobra.Command, path string, opt auth.ImportOptions) error {
	in, size, err := openInput(cmd, path)
	if err != nil {
		return err
	}
	defer in.Close()
	if size < 0 {
		return misuse{fmt.Errorf("--check reads FILE twice: %s is not a file", path)}
	}
	password, err := o.password.read(cmd, "Password of "+o.check+": ")
	if err != nil {
		return err
	}
	return o.withSettings(cmd, settings{reads: true}, (*app).openAuthToLook, func(ctx context.Context, a *app) error {
		if err := a.auth.CheckImport(ctx, in, opt, o.check, password); err != nil {
			return fmt.Errorf("nothing was imported: %w", err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "the password of %s is right\n", o.check)
		return nil
	})
}

// read imports, or does a dry run.
func (o *importOptions) read(cmd *cobra.Command, path string, opt auth.ImportOptions) (err error) {
	in, size, err := openInput(cmd, path)
	if err != nil {
		return err
	}
	defer in.Close()

	stderr := cmd.ErrOrStderr()
	bar := newProgress(stderr, size, "importing", progressbar.OptionShowBytes(true),
		progressbar.OptionSetSpinnerChangeInterval(0)) // it moves with the input, not with time
	refused, closeErrors, err := o.reportRefused(stderr, bar, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeErrors()) }()
	said := everyMinute(time.Now)
	opt.Refused, opt.Progress = refused, func(r auth.ImportReport) {
		so := fmt.Sprintf("%d imported, %d there, %d refused", r.Imported, r.Present, r.Refused)
		bar.Describe(so)
		if !isTerminal(stderr) && said() {
			fmt.Fprintf(stderr, "line %d: %s so far\n", r.Line, so)
		}
	}

	open := (*app).openAuthToBegin
	if o.dryRun {
		open = (*app).openAuthToLook
	}
	return o.withSettings(cmd, settings{reads: o.dryRun}, open, func(ctx context.Context, a *app) error {
		start := time.Now()
		reader := progressbar.NewReader(in, bar)
		report, err := a.auth.Import(ctx, &reader, opt)
		_ = bar.Finish()
		result := importResult{ImportReport: report, DryRun: o.dryRun, Seconds: time.Since(start).Seconds()}
		result.Rate = float64(report.Imported+report.Present+report.Refused) / max(result.Seconds, 1e-9)
		if printed := o.print(cmd.OutOrStdout(), result); printed != nil {
			return errors.Join(err, printed)
		}
		switch found := report.Imported + report.Present + report.Refused; {
		case report.Hint != "":
			fmt.Fprintln(stderr, report.Hint)
		case err == nil && found == 0 && o.from == "keycloak":
			fmt.Fprintln(stderr, "there is no account in it; kc.sh export --dir writes them into separate files, "+
				"*-users-*.json")
		case err == nil && found == 0:
			fmt.Fprintln(stderr, "there is no account in it")
		}
		return o.outcome(report, err)
	})
}

func everyMinute(now func() time.Time) func() bool {
	last := now()
	return func() bool {
		if now().Sub(last) < time.Minute {
			return false
		}
		last = now()
		return true
	}
}

// outcome is the error with which the command ends.
func (o *importOptions) outcome(report auth.ImportReport, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("stopped after line %d; run it again to go on: it skips existing accounts quickly",
			report.Line)
	case errors.Is(err, auth.ErrOtherSource), err != nil && report.Line == 0, err != nil && o.dryRun:
		return err
	case err != nil:
		return fmt.Errorf("%w; everything before that is done, and another run skips it", err)
	case report.Refused > 0:
		return silent{errors.New("some records were refused")}
	}
	return nil
}

// openInput opens the file, or standard input for -, and returns its size, -1 if unknown.
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

// reportRefused returns a function that reports a refusal, and one that ends the report.
func (o *importOptions) reportRefused(stderr io.Writer, bar *progressbar.ProgressBar, input string) (
	take func(auth.Refusal) error, end func() error, err error) {
	if o.errorsFile == "" {
		return func(r auth.Refusal) error {
			_ = bar.Clear()
			// Where nobody can read it, the rest is imported all the same: the report counts the refused ones.
			fmt.Fprintf(stderr, "line %d: %s: %s\n", r.Line, r.Code, r.Detail)
			return nil
		}, func() error { return nil }, nil
	}
	if input == "-" {
		input = "/dev/stdin"
	}
	if sameFile(o.errorsFile, input) {
		return nil, nil, misuse{fmt.Errorf("--errors %s is FILE itself, which it would overwrite", o.errorsFile)}
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

// sameFile reports whether two paths lead to one file, also through a link.
func sameFile(a, b string) bool {
	one, errOne := os.Stat(a)
	other, errOther := os.Stat(b)
	return errOne == nil && errOther == nil && os.SameFile(one, other)
}

func (o *importOptions) print(w io.Writer, r importResult) error {
	imported := "imported"
	if o.dryRun {
		imported = "would be imported"
	}
	rows := [][]string{{imported, fmt.Sprint(r.Imported)}, {"already there", fmt.Sprint(r.Present)},
		{"refused", fmt.Sprint(r.Refused)}}
	if o.errorsFile != "" && r.Refused > 0 {
		rows[2][1] += ", see " + o.errorsFile
	}
	if r.Other > 0 {
		rows = append(rows, []string{"no accounts", fmt.Sprintf("%d records of something else", r.Other)})
	}
	if r.Disabled > 0 {
		rows = append(rows, []string{"disabled", fmt.Sprintf("%d of those imported", r.Disabled)})
	}
	for _, scheme := range byCount(r.Schemes) {
		rows = append(rows, []string{"  " + scheme, fmt.Sprint(r.Schemes[scheme])})
	}
	if r.Weak > 0 {
		rows = append(rows,
			[]string{"weak", fmt.Sprintf("%d are salted SHA, which is quickly guessed, until their owners sign in",
				r.Weak)})
	}
	if r.Assumed > 0 && o.check == "" {
		rows = append(rows,
			[]string{"assumed", fmt.Sprintf("%d do not say how they were made, and may match nothing: try --check",
				r.Assumed)})
	}
	for i, kind := range byCount(r.Lost) {
		what := ""
		if i == 0 {
			what = "not carried over"
		}
		rows = append(rows, []string{what, fmt.Sprintf("%d %s", r.Lost[kind], kindInWords(kind))})
	}
	for i, kind := range byCount(r.Differs) {
		what := ""
		if i == 0 {
			what = "left as it is"
		}
		rows = append(rows, []string{what, fmt.Sprintf("%d of those already there: %s", r.Differs[kind],
			differenceInWords(kind))})
	}
	if len(r.Unread) > 0 {
		rows = append(rows, []string{"not read", strings.Join(r.Unread, ", ")})
	}
	if len(r.Lost)+len(r.Differs)+len(r.Unread) > 0 || r.Assumed > 0 && o.check == "" {
		rows = append(rows, []string{"", "see docs/import.md"})
	}
	return o.pairs(w, r, append(rows, []string{"took",
		fmt.Sprintf("%s, %.0f a second", time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond),
			r.Rate)}))
}

func differenceInWords(kind string) string {
	if kind == "disabled" {
		return "disabled in the file, active here"
	}
	return "another " + kind + " in the file"
}

func kindInWords(kind string) string {
	if action, ok := strings.CutPrefix(kind, "required_action:"); ok {
		return "required action " + action
	}
	return strings.ReplaceAll(kind, "_", " ")
}

// byCount returns the names, the most frequent first.
func byCount(counts map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}
