package main

import (
	"context"
	"errors"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/logging"
)

// group makes a command that has others.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	return cmd
}

// runE is what cobra runs for a command.
type runE = func(cmd *cobra.Command, args []string) error

// opening opens what a command needs.
type opening = func(a *app, ctx context.Context) error

// onDatabase makes what cobra runs for a command that opens the database first.
func (g *global) onDatabase(open opening, do func(ctx context.Context, a *app, args []string) error) runE {
	return func(cmd *cobra.Command, args []string) error {
		return g.withDatabase(cmd, open, func(ctx context.Context, a *app) error { return do(ctx, a, args) })
	}
}

// withApp runs a command on an app after open, and closes it.
func (g *global) withApp(cmd *cobra.Command, open opening, do func(context.Context, *app) error) error {
	return g.withSettings(cmd, settings{}, open, do)
}

// appRunner runs a command on an app.
type appRunner = func(cmd *cobra.Command, do func(context.Context, *app) error) error

// onAuth runs a command on the service of an existing installation.
func (g *global) onAuth(cmd *cobra.Command, do func(context.Context, *app) error) error {
	return g.withApp(cmd, (*app).openExistingAuth, do)
}

// toShow is onAuth for commands that only show what does not depend on the secret, and therefore do not need it.
func (g *global) toShow(cmd *cobra.Command, do func(context.Context, *app) error) error {
	return g.withSettings(cmd, settings{reads: true}, (*app).openExistingAuth, do)
}

// withDatabase is withApp for commands that do not need the secret.
func (g *global) withDatabase(cmd *cobra.Command, open opening, do func(context.Context, *app) error) error {
	return g.withSettings(cmd, settings{keyless: true}, open, do)
}

func (g *global) withSettings(
	cmd *cobra.Command, s settings, open opening, do func(context.Context, *app) error,
) (err error) {
	if s, err = g.load(s, nil); err != nil {
		return err
	}
	a, err := newApp(s, cmd.ErrOrStderr(), true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	a.cmd = cmd
	// Each log record of the command says who ran it.
	command := strings.TrimPrefix(cmd.CommandPath(), "authctl ")
	a.log = a.log.With(zap.String("operator", operator()), zap.String("command", command))
	if !slices.Contains(longRunning, command) {
		a.answerWithin = statementTimeout
	}
	a.security = logging.Security(a.log)
	if err := open(a, cmd.Context()); err != nil {
		return err
	}
	return do(cmd.Context(), a)
}

// statementTimeout is how long a command waits for the answer to one statement. Such a statement takes
// milliseconds, unless somebody holds a lock that it needs, or the process that runs it hangs.
const statementTimeout = time.Minute

// longRunning are commands with statements that take long on a large database. They wait as long as the server answers
// anybody.
var longRunning = []string{"migrate up", "migrate down", "migrate grants", "restore fence", "user import",
	"user export", "outbox replay", "outbox tail", "outbox status"}

// operator names the user who runs the process, and the one who used sudo.
func operator() string {
	name := strconv.Itoa(os.Getuid()) // in containers, users may have no name
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if by := os.Getenv("SUDO_USER"); by != "" {
		name += " for " + by
	}
	return name
}
