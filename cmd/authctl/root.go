package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// Exit codes, the same for every command. Wrong settings in the file or the environment are a
// failure; as flags they are a misuse.
const (
	exitDone    = 0
	exitFailed  = 1
	exitMisused = 2
)

// misuse is an error in the command line.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

// silent is a failure that has already been reported.
type silent struct{ error }

func (s silent) Unwrap() error { return s.error }

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	code := exitFailed
	_, misused := errors.AsType[misuse](err)
	if misused {
		code = exitMisused
	}
	if _, said := errors.AsType[silent](err); said {
		return code
	}
	words := inWords(err)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		words = "stopped before it was done"
	}
	if remedy := database.Remedy(err, strings.HasPrefix(cmd.CommandPath(), "authctl migrate")); remedy != "" {
		words += "; " + remedy
	}
	fmt.Fprintf(stderr, "authctl: %s\n", harmless(words))
	if misused {
		fmt.Fprintf(stderr, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
	}
	return code
}

// harmless replaces what would control a terminal: an error may quote what somebody else wrote.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// inWords is the text of an error for a person. For a fault it leaves out the code, which is for
// programs, and names the faulty fields.
func inWords(err error) string {
	refusal, ok := errors.AsType[*fault.Fault](err)
	if !ok {
		return err.Error()
	}
	words := cmp.Or(refusal.Message, refusal.Title)
	for _, f := range refusal.Fields {
		words += "\n  " + f.Field + " " + f.Detail
	}
	return strings.Replace(err.Error(), refusal.Error(), words, 1)
}

// global holds the flags that every command has.
type global struct {
	configFile string
	output     string
	set        []string // key=value
}

func newRoot() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:   "authctl",
		Short: "Accounts, sessions and signed tokens for your own platform",
		Long: `authctl is an authentication service in one binary: people register and sign in,
get short-lived signed access tokens and a refresh token for each device, and every
change of an account reaches the rest of the platform as an event.

You need nothing else to begin: without a database, Redis and Kafka it keeps everything
in ./data. Settings come from config.yaml, then the environment, then flags.

Results go to standard output, everything else to standard error. The exit code is 0 when the
command succeeded, 1 when it failed (also because of wrong settings in the file or the
environment), and 2 when the command line is wrong.`,
		Example: `  authctl serve
  authctl user create alice
  authctl token inspect --help`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"table", "json"}, g.output) {
				return misuse{fmt.Errorf("--output is %q; it takes table or json", g.output)}
			}
			// An empty value, such as that of an unset variable, would choose everything.
			var empty error
			cmd.Flags().Visit(func(f *pflag.Flag) {
				if f.Value.Type() == "string" && f.Value.String() == "" {
					empty = errors.Join(empty, misuse{fmt.Errorf("--%s is empty", f.Name)})
				}
			})
			if empty != nil {
				return empty
			}
			// Cobra would check the flags later, and report a failure instead of a misuse.
			if err := errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
				return misuse{err}
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if _, unknown := errors.AsType[*pflag.NotExistError](err); unknown && strings.Contains(cmd.Use, " ") {
			err = fmt.Errorf("%w; an argument that begins with - goes after --", err)
		}
		return misuse{err}
	})
	root.PersistentFlags().StringVar(&g.configFile, "config", "", "settings file (default ./config.yaml if it exists)")
	root.PersistentFlags().StringArrayVar(&g.set, "set", nil,
		"a setting as key=value; overrides file and environment; may be repeated; not for secrets")
	root.PersistentFlags().StringVarP(&g.output, "output", "o", "table", "format of results: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"},
		cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(
		newServe(g),
		newRelay(g),
		newMigrate(g),
		newRestore(g),
		newUser(g),
		newSession(g),
		newToken(g),
		newKey(g),
		newVerifier(g),
		newPassword(g),
		newOutbox(g),
		newMail(g),
		newConfig(g),
		newDoctor(g),
		newHealth(g),
		newVersion(g),
		newMan(root),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	finishDefaults(root)
	everyMisuse(root)
	return root
}

// finishDefaults gives cobra's own commands examples that work when pasted, and makes help refuse a
// command that does not exist.
func finishDefaults(root *cobra.Command) {
	for path, example := range map[string]string{
		"help":                  "  authctl help user create",
		"completion":            "  source <(authctl completion bash)",
		"completion bash":       "  source <(authctl completion bash)",
		"completion zsh":        "  source <(authctl completion zsh)",
		"completion fish":       "  authctl completion fish | source",
		"completion powershell": "  authctl completion powershell | Out-String | Invoke-Expression",
	} {
		if cmd, _, err := root.Find(strings.Fields(path)); err == nil {
			cmd.Example = example
		}
	}
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error {
			if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
				return fmt.Errorf("there is no command %q", strings.Join(args, " "))
			}
			return nil
		}
	}
}

// everyMisuse makes wrong arguments a misuse in every command, and an unknown or missing
// subcommand an error rather than a page of help and success.
func everyMisuse(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return misuse{err}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.Args = nil
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse{fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], suggestion(cmd, args[0]))}
			}
			if err := cmd.Help(); err != nil {
				return err
			}
			return nil
		}
		if cmd.HasParent() { // a group without a command lists its commands and fails
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return misuse{fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), names(cmd))}
				}
				return misuse{fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], suggestion(cmd, args[0]))}
			}
		}
		cmd.Args = cobra.ArbitraryArgs
	}
	for _, sub := range cmd.Commands() {
		everyMisuse(sub)
	}
}

func names(cmd *cobra.Command) string {
	var list []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			list = append(list, sub.Name())
		}
	}
	return strings.Join(list, ", ")
}

func suggestion(cmd *cobra.Command, word string) string {
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}
