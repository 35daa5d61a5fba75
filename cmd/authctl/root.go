package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

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

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	out := &output{Writer: stdout}
	root.SetArgs(args)
	root.SetIn(&input{Reader: stdin, ctx: ctx})
	root.SetOut(out)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = unwritten(out.failed)
	}
	if err == nil {
		return exitDone
	}
	if errors.Is(out.failed, syscall.EPIPE) && errors.Is(err, out.failed) {
		return exitFailed // who reads it has seen enough: authctl user list | head
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
	stopped, uncertain := ctx.Err() != nil && errors.Is(err, context.Canceled), database.IsUncertain(err)
	_, told := errors.AsType[advised](err)
	switch {
	case told: // it says how to go on
	case stopped && uncertain:
		words = "stopped"
	case stopped:
		words = "stopped before it was done"
	}
	if remedy := database.Remedy(err, taskOf(cmd)); remedy != "" {
		words += "; " + remedy
	}
	if uncertain && !told {
		words += "; it may or may not have been done: run it again"
	}
	fmt.Fprintf(stderr, "authctl: %s\n", harmless(words))
	if misused {
		fmt.Fprintf(stderr, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
	}
	return code
}

// taskOf says which work in the database a command does. Each role may do a part of it.
func taskOf(cmd *cobra.Command) database.Task {
	group, _, _ := strings.Cut(strings.TrimPrefix(cmd.CommandPath(), "authctl "), " ")
	switch group {
	case "migrate", "restore":
		return database.OwnTables
	case "user", "session", "token", "key", "verifier":
		return database.ServeUsers
	case "outbox":
		return database.RelayEvents
	}
	return database.AnyTask
}

// advised is a failure whose text says what to do about a change that may have been made.
type advised struct{ error }

func (a advised) Unwrap() error { return a.error }

// output is standard output. It remembers that something could not be written, so that a command
// whose result was lost fails, also where nobody looked at the error, as in cobra's help.
type output struct {
	io.Writer
	failed error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if o.failed == nil {
		o.failed = err
	}
	return n, err
}

// input is standard input. Nothing else ends a read for which nothing comes: Ctrl-C and SIGTERM only end ctx.
type input struct {
	io.Reader
	ctx    context.Context // of the process
	buffer []byte          // of the read that may still be under way when ctx ends
}

func (in *input) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	if err := in.ctx.Err(); err != nil {
		return 0, err
	}
	if len(in.buffer) < len(p) {
		in.buffer = make([]byte, len(p))
	}
	buffer, done := in.buffer[:len(p)], make(chan result, 1)
	go func() {
		n, err := in.Reader.Read(buffer)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, buffer[:r.n]), r.err
	case <-in.ctx.Done():
		return 0, in.ctx.Err()
	}
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
	everyFlagOnce(root)
	completeFiles(root)
	return root
}

// completeFiles lets shells complete arguments as files only for commands that take a file or a folder.
func completeFiles(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && cmd.RunE != nil && !takesPath(cmd.Use) {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		completeFiles(sub)
	}
}

func takesPath(use string) bool {
	return slices.ContainsFunc([]string{"FILE", "FOLDER", "DIR"},
		func(word string) bool { return strings.Contains(use, word) })
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

// everyMisuse makes wrong arguments a misuse in every command, any of one that says nothing of its
// arguments, and an unknown or missing subcommand an error rather than a page of help and success.
func everyMisuse(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	if cmd.Args == nil && cmd.RunE != nil {
		cmd.Args = noArguments
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return misuse{err}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return misuse{fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0],
					suggestion(cmd, args[0]))}
			case cmd.HasParent(): // a group without a command lists its commands and fails
				return misuse{fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), names(cmd))}
			}
			return cmd.Help()
		}
		cmd.Args = cobra.ArbitraryArgs
	}
	for _, sub := range cmd.Commands() {
		everyMisuse(sub)
	}
}

// everyFlagOnce makes it a misuse to give a flag of a command two values: the first one would be
// ignored, and it may name what somebody wants to end. The flags of all commands are left out, since
// an alias may give them, and so are those that collect values.
func everyFlagOnce(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if _, collects := f.Value.(pflag.SliceValue); !collects && f.Value.Type() != "bool" {
			f.Value = &once{Value: f.Value}
		}
	})
	for _, sub := range cmd.Commands() {
		everyFlagOnce(sub)
	}
}

// once is the value of a flag that takes one.
type once struct {
	pflag.Value
	given bool
}

func (o *once) Set(text string) error {
	if o.given {
		return errors.New("it was given before, and takes one value")
	}
	o.given = true
	return o.Value.Set(text)
}

// noArguments, oneArgument and oneArgumentOrNone say what a command takes, as its usage line has it;
// cobra's own checks say numbers, and take a superfluous argument for a subcommand.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, and %q is one", cmd.CommandPath(), args[0])
	}
	return nil
}

func oneArgument(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s needs %s", cmd.CommandPath(), argumentOf(cmd))
	}
	return oneArgumentOrNone(cmd, args)
}

func oneArgumentOrNone(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one argument, %s, and got %d", cmd.CommandPath(), argumentOf(cmd), len(args))
	}
	return nil
}

// argumentOf is what the usage line says after the name of the command.
func argumentOf(cmd *cobra.Command) string {
	_, argument, _ := strings.Cut(cmd.Use, " ")
	return argument
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
