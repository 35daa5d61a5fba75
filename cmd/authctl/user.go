package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/toppira/authctl/modules/auth"
)

func newUser(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "user",
		Short: "Create, find, change, import and export accounts",
		Long: `Create, find, change, import and export accounts, by the same rules and with the same events
as the API. USER is a username or an id; --id and --name say which, and are needed if
it could be either. The commands work directly on the database while servers run; a
change takes effect at once.`,
		Example: `  authctl user create alice
  authctl user list -o json
  authctl user disable alice`,
	},
		newUserCreate(g),
		newUserList(g),
		newUserShow(g),
		newUserSetPassword(g),
		newUserChange(g, "disable", "Disable an account and end its sessions", "disabled", auth.StatusDisabled,
			(*auth.Service).DisableUser),
		newUserChange(g, "enable", "Enable a disabled account again", "enabled", auth.StatusActive,
			(*auth.Service).EnableUser),
		newUserDelete(g),
		newUserUnlock(g),
		newUserContact(g),
		newUserImport(g),
		newUserExport(g),
	)
}

// passwordFlags are ways of giving a password that do not show it in the process list.
type passwordFlags struct {
	stdin bool
	file  string
}

func (p *passwordFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.stdin, "password-stdin", false, "read the password from the first line of standard input")
	cmd.Flags().StringVar(&p.file, "password-file", "", "read the password from the first line of a file")
	cmd.MarkFlagsMutuallyExclusive("password-stdin", "password-file")
}

// readNew reads a new password as the flags say, or asks for it twice.
func (p *passwordFlags) readNew(cmd *cobra.Command) (string, error) {
	return p.read(cmd, "Password: ", "Once more: ")
}

// read reads a password as the flags say, or asks for it with each prompt.
func (p *passwordFlags) read(cmd *cobra.Command, prompts ...string) (string, error) {
	if text, given, err := p.given(cmd); given {
		return text, err
	}
	typed, err := askPasswords(cmd, prompts...)
	if err != nil {
		return "", err
	}
	if typed[0] != typed[len(typed)-1] {
		return "", errors.New("the two passwords differ; nothing was changed")
	}
	return typed[0], nil
}

func (p *passwordFlags) given(cmd *cobra.Command) (text string, given bool, err error) {
	if p.stdin {
		text, err = firstLine(cmd.InOrStdin())
		return text, true, err
	}
	if p.file == "" {
		return "", false, nil
	}
	f, err := os.Open(p.file)
	if err != nil {
		return "", true, fmt.Errorf("read the password: %w", err)
	}
	defer f.Close()
	text, err = firstLine(f)
	return text, true, err
}

func askPasswords(cmd *cobra.Command, prompts ...string) ([]string, error) {
	terminal := terminalOf(cmd)
	if terminal == nil {
		return nil, misuse{errors.New("there is no terminal to ask for the password: use --password-stdin or " +
			"--password-file")}
	}
	// An interrupt does not end the reading, during which the terminal shows nothing. So it restores
	// the terminal and exits; nothing has been opened yet.
	before, err := term.GetState(int(terminal.Fd()))
	if err != nil {
		return nil, fmt.Errorf("read the password: %w", err)
	}
	defer context.AfterFunc(cmd.Context(), func() {
		_ = term.Restore(int(terminal.Fd()), before)
		fmt.Fprintln(cmd.ErrOrStderr())
		os.Exit(exitFailed)
	})()
	typed := make([]string, len(prompts))
	for i, prompt := range prompts {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		text, err := term.ReadPassword(int(terminal.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		typed[i] = string(text)
	}
	return typed, nil
}

// firstLine reads up to a line break, which is not part of the password. Spaces are.
func firstLine(r io.Reader) (string, error) {
	const limit = 4096
	line, err := bufio.NewReaderSize(io.LimitReader(r, limit), limit).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	// The byte order mark that editors and shells put at the beginning can be typed nowhere.
	line = strings.TrimPrefix(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), "\ufeff")
	if line == "" {
		return "", errors.New("read the password: there is none")
	}
	return line, nil
}

func newUserCreate(g *global) *cobra.Command {
	var password passwordFlags
	name := ""
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create an account and print its id",
		Long:  `Create an account and print its id. It asks for the password, or reads it from standard input or a file.`,
		Example: `  authctl user create alice
  printf '%s' "$PASSWORD" | authctl user create alice --password-stdin`,
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == cmd.Flags().Changed("name") || len(args) > 1 {
				return errors.New("say the name of the account, in one way: NAME or --name NAME")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := password.readNew(cmd)
			if err != nil {
				return err
			}
			return g.withApp(cmd, (*app).openAuthToBegin, func(ctx context.Context, a *app) error {
				if len(args) == 1 {
					name = args[0]
				}
				u, err := a.auth.CreateUser(ctx, auth.Credentials{Username: name, Password: text})
				if err != nil {
					return err
				}
				return g.tell(cmd.OutOrStdout(), u, u.ID.String())
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the name of the account, such as one that begins with -")
	password.add(cmd)
	return cmd
}

func newUserList(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List every account, oldest first",
		Long:    `List every account, oldest first. As JSON it is an array with one element a line, written as a stream.`,
		Example: "  authctl user list -o json | head",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.toShow(cmd, func(ctx context.Context, a *app) error {
				heading := []string{"ID", "USERNAME", "STATUS", "CREATED"}
				return g.stream(cmd.OutOrStdout(), heading, func(print func(v any, row []string) error) error {
					return a.auth.Users(ctx, func(u auth.User) error {
						return print(u, []string{u.ID.String(), u.Username, string(u.Status),
							u.CreatedAt.Format(time.RFC3339)})
					})
				})
			})
		},
	}
}

// userReport is what show tells of an account.
type userReport struct {
	auth.User
	Sessions     []auth.Session `json:"sessions"`                  // null: unknown
	Failures     *int           `json:"failed_sign_ins,omitempty"` // nil: only serve knows them, or unknown
	RefusedUntil time.Time      `json:"refused_until,omitzero"`    // sign-in from unknown devices
}

func newUserShow(g *global) *cobra.Command {
	return g.showUser(&cobra.Command{
		Use:   "show USER",
		Short: "Show an account, its sessions and whether sign-in is delayed",
		Long: `Show an account, its sessions and whether sign-in is delayed. The failed sign-ins are those of unknown
devices: a device or an address that has signed in to the account before has a count of its own.`,
		Example: "  authctl user show alice",
	}, func(ctx context.Context, a *app, u auth.User) error {
		report := userReport{User: u}
		// What the database knows is shown even if sessions or counters cannot be read.
		list, errSessions := a.auth.SessionsOf(ctx, u.ID)
		sessions := "unknown"
		if errSessions == nil {
			report.Sessions, sessions = list, fmt.Sprint(len(list))
		}
		failures := "unknown without AUTH_TOKEN_SECRET"
		var errState error
		switch {
		case a.countersInServe():
			failures = "only the serve process knows them, with SQLite and without Redis"
		case !a.secretUnknown:
			var n int
			var until time.Time
			if errState = a.checkSecret(ctx); errState == nil {
				n, until, errState = a.auth.SignInState(ctx, u)
			}
			if failures = fmt.Sprint(n); errState != nil {
				failures = "unknown"
			} else {
				report.Failures, report.RefusedUntil = &n, until
			}
		}
		missing := cmp.Or(errSessions, errState)
		rows := [][]string{
			{"id", u.ID.String()}, {"username", u.Username}, {"status", string(u.Status)},
			{"created", u.CreatedAt.Format(time.RFC3339)},
			{"password changed", u.PasswordChangedAt.Format(time.RFC3339)},
			{"failed sign-ins", failures},
		}
		if !report.RefusedUntil.IsZero() {
			rows = append(rows, []string{"refused until", report.RefusedUntil.Format(time.RFC3339) +
				" from unknown devices; lift it with: authctl user unlock --id " + u.ID.String()})
		}
		rows = append(rows, []string{"sessions", sessions})
		for _, s := range report.Sessions {
			rows = append(rows, []string{"  " + s.ID.String(), fmt.Sprintf("%s, %s, last used %s",
				cmp.Or(s.DeviceName, "-"), cmp.Or(s.IP, "-"), s.LastUsedAt.Format(time.RFC3339))})
		}
		return errors.Join(g.pairs(a.cmd.OutOrStdout(), report, rows), missing)
	})
}

func newUserSetPassword(g *global) *cobra.Command {
	var password passwordFlags
	text := ""
	cmd := g.onUser(&cobra.Command{
		Use:     "set-password USER",
		Short:   "Set a password and end every session of the account",
		Example: "  authctl user set-password alice",
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			text, err = password.readNew(cmd)
			return err
		},
	}, func(ctx context.Context, a *app, u auth.User) error {
		if err := a.checkSecret(ctx); err != nil { // contacts get a notice, which is sealed
			return err
		}
		if err := a.auth.SetPassword(ctx, u.ID, text); err != nil {
			return err
		}
		return g.printDone(a, u, "has a new password; every session has ended")
	})
	password.add(cmd)
	return cmd
}

func newUserChange(g *global, use, short, done string, status auth.Status,
	change func(*auth.Service, context.Context, uuid.UUID) error) *cobra.Command {
	return g.onUser(&cobra.Command{
		Use: use + " USER", Short: short, Example: "  authctl user " + use + " alice",
	}, func(ctx context.Context, a *app, u auth.User) error {
		if err := change(a.auth, ctx, u.ID); err != nil {
			return err
		}
		if u.Status == status {
			return g.printOutcome(a, u, false, "is "+done+" already; nothing changed")
		}
		return g.printDone(a, u, "is "+done)
	})
}

func newUserDelete(g *global) *cobra.Command {
	sure := &consent{}
	cmd := g.onUser(&cobra.Command{
		Use:   "delete USER",
		Short: "Delete an account for good",
		Long: `Delete an account for good. Its sessions end, its id is never given to another account, and its
name becomes free. It asks on a terminal; elsewhere it needs --yes.`,
		Example: "  authctl user delete alice --yes",
	}, func(ctx context.Context, a *app, u auth.User) error {
		loss := fmt.Sprintf("the account %s (%s) and its sessions will be gone for good, and its name "+
			"free for somebody else", u.Username, u.ID)
		if err := sure.ask(a.cmd, loss); err != nil {
			return err
		}
		if err := a.auth.DeleteUser(ctx, u.ID); err != nil {
			return err
		}
		return g.printDone(a, u, "is deleted")
	})
	sure.add(cmd)
	return cmd
}

func newUserUnlock(g *global) *cobra.Command {
	return g.onUser(&cobra.Command{
		Use:   "unlock USER",
		Short: "Clear the failed sign-ins that delay an account",
		Long: `Clear the failed sign-ins that delay an account, on every server. With SQLite and without Redis
the counters are in the serve process and end with it.`,
		Example: "  authctl user unlock alice",
	}, func(ctx context.Context, a *app, u auth.User) error {
		if a.countersInServe() {
			return errors.New("with SQLite and without Redis the counters are in the serve process: " +
				"restart it, or wait until they expire")
		}
		if err := a.checkSecret(ctx); err != nil { // the counters are named by it
			return err
		}
		if err := a.auth.UnlockUser(ctx, u); err != nil {
			return err
		}
		return g.printDone(a, u, "may sign in from anywhere again")
	})
}

// countersInServe tells whether failed sign-ins are counted where no command can see them.
func (a *app) countersInServe() bool {
	return !a.Redis.Enabled() && !a.db.IsPostgres()
}

// onUser makes a command one that takes an account, and says what it does.
func (g *global) onUser(cmd *cobra.Command, do func(context.Context, *app, auth.User) error) *cobra.Command {
	return onUser(cmd, g.onAuth, do)
}

// showUser is onUser for commands that need no secret.
func (g *global) showUser(cmd *cobra.Command, do func(context.Context, *app, auth.User) error) *cobra.Command {
	return onUser(cmd, g.toShow, do)
}

func onUser(cmd *cobra.Command, with appRunner, do func(context.Context, *app, auth.User) error) *cobra.Command {
	ref := &userRef{}
	ref.addArgument(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return with(cmd, func(ctx context.Context, a *app) error {
			u, err := ref.find(ctx, a.auth)
			if err != nil {
				return err
			}
			return do(ctx, a, u)
		})
	}
	return cmd
}

func (g *global) printDone(a *app, u auth.User, what string) error {
	return g.printOutcome(a, u, true, what)
}

// printOutcome reports what was done, or that the account was already as wanted.
func (g *global) printOutcome(a *app, u auth.User, changed bool, what string) error {
	report := map[string]any{"id": u.ID, "username": u.Username, "done": true, "changed": changed}
	return g.tell(a.cmd.OutOrStdout(), report, fmt.Sprintf("%s (%s) %s", u.Username, u.ID, what))
}
