package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/toppira/authctl/migrations"
)

func newMigrate(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "migrate",
		Short: "Bring the database schema up to date",
		Long: `Bring the database schema up to date, or undo the last step.

The migrations are part of the binary. They run under a lock, so any number of processes may
try at once: one migrates, and the others wait for it, at most a minute. Each run
is one transaction. If no database is named they apply to SQLite in the data folder, which serve
migrates itself.`,
		Example: `  authctl migrate status
  DATABASE_URL=postgres://auth@localhost/auth authctl migrate up`,
	}, newMigrateUp(g), newMigrateStatus(g), newMigrateGrants(g), newMigrateDown(g), newMigrateNew(g))
}

func newMigrateUp(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "up", Short: "Run all pending migrations", Example: "  authctl migrate up",
		RunE: g.onDatabase((*app).connectDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := migrations.Up(ctx, a.db, a.waiting())
			if len(list) > 0 {
				a.security.Info("schema_migrated", zap.Strings("migrations", migrationNames(list)))
			}
			if err != nil {
				return err
			}
			return g.printMigrated(a, "applied", "the schema is up to date", list)
		}),
	}
}

func newMigrateStatus(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "List the migrations and which have run", Example: "  authctl migrate status",
		RunE: g.onDatabase((*app).connectExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := migrations.Status(ctx, a.db)
			if err != nil {
				return err
			}
			var rows [][]string
			for _, s := range list {
				state := "waiting"
				if s.Applied() {
					state = "applied " + s.AppliedAt.UTC().Format(time.RFC3339)
				}
				if s.Newer {
					s.Comment = "of a newer release"
				}
				rows = append(rows, []string{s.Name, s.Comment, state})
			}
			return g.table(a.cmd.OutOrStdout(), list, []string{"MIGRATION", "NAME", "STATE"}, rows)
		}),
	}
}

func newMigrateGrants(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "grants",
		Short: "Give the database roles of serve and relay their rights",
		Long: `Give the database roles authctl_serve and authctl_relay the rights that this release needs, and
take back all others. Run it after every authctl migrate up, as the same role, before the new
release serves. It does what deploy/postgres/grants.sql does, in one transaction, so running
servers notice nothing. deploy/postgres/roles.sql creates the roles, once. If one role does
everything, there is nothing to grant.`,
		Example: "  authctl migrate grants",
		RunE: g.onDatabase((*app).connectExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			if err := migrations.Grant(ctx, a.db); err != nil {
				return sayHowToMigrate(err)
			}
			a.security.Info("roles_granted")
			return g.tell(a.cmd.OutOrStdout(), map[string]bool{"granted": true},
				"authctl_serve and authctl_relay have their rights")
		}),
	}
}

// waiting says which process a migration waits for.
func (a *app) waiting() migrations.Option {
	return migrations.Wait(time.Minute, func(who string) {
		fmt.Fprintf(a.cmd.ErrOrStderr(), "waiting for another process that is migrating: %s\n", who)
	})
}

func newMigrateDown(g *global) *cobra.Command {
	force, sure := false, consent{}
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Undo the migrations of the last run, and drop what they created",
		Long: `Undo the migrations of the last run. This drops the tables that they created with all the data
in them; the first ones created the accounts. So it says what would be lost, asks on a terminal,
needs --yes elsewhere, and does nothing while servers, relays or others use the database. Make a
backup first. Servers of the release that made the schema cannot run afterwards. If the last run was
that of a newer release, use its binary: this one refuses.`,
		Example: "  authctl migrate status\n  authctl migrate down",
		RunE: g.onDatabase((*app).connectExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			return g.migrateDown(ctx, a, &sure, force)
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "even while others use the database")
	sure.add(cmd)
	return cmd
}

func (g *global) migrateDown(ctx context.Context, a *app, sure *consent, force bool) error {
	options := []migrations.Option{a.waiting()}
	if !force {
		options = append(options, migrations.Alone())
	}
	inUse := func(err error) error { return a.inUse(err, "stop what uses it") }
	undo, lost, err := migrations.Preview(ctx, a.db, options...)
	if err != nil {
		return inUse(err)
	}
	if len(undo) > 0 {
		if err := sure.ask(a.cmd, "this undoes "+count(len(undo), "migration", "migrations")+
			" on "+a.Database.Describe(a.App.DataDir)+" and destroys "+losses(lost)); err != nil {
			return err
		}
	}
	list, err := migrations.Down(ctx, a.db, append(options, migrations.Only(undo))...)
	if len(list) > 0 {
		a.security.Warn("schema_rolled_back", zap.Strings("migrations", migrationNames(list)))
	}
	if err != nil { // done twice, it would undo what was migrated before as well
		return maybeDone(inUse(err), "look at authctl migrate status before you run it again")
	}
	return g.printMigrated(a, "undone", "there is nothing to undo: authctl has no tables in "+
		a.Database.Describe(a.App.DataDir), list)
}

// losses lists what a rollback destroys.
func losses(lost []migrations.Loss) string {
	var words []string
	empty := 0
	for _, l := range lost {
		switch {
		case l.Rows == 0:
			empty++
		case l.Column != "":
			words = append(words, fmt.Sprintf("%s of %s in %s", l.Column, l.Table, count(int(l.Rows), "row", "rows")))
		default:
			words = append(words, fmt.Sprintf("%s of %s", count(int(l.Rows), "row", "rows"), l.Table))
		}
	}
	switch {
	case len(words) == 0 && empty == 0:
		return "no data"
	case empty > 0:
		words = append(words, count(empty, "empty table or column", "empty tables or columns"))
	}
	return strings.Join(words, ", ")
}

func migrationNames(list []migrations.State) []string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.Name
	}
	return names
}

func newMigrateNew(g *global) *cobra.Command {
	dir := "migrations"
	cmd := &cobra.Command{
		Use:     "new NAME",
		Short:   "Write the empty files of a new migration, for both dialects",
		Example: "  authctl migrate new add_last_sign_in",
		Args:    oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			made, err := migrations.New(dir, args[0], time.Now())
			if err != nil {
				return err
			}
			return g.tell(cmd.OutOrStdout(), made, strings.Join(made, "\n"))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", dir, "the migrations folder of the source tree")
	return cmd
}

func (g *global) printMigrated(a *app, done, nothing string, list []migrations.State) error {
	var lines []string
	for _, s := range list {
		lines = append(lines, done+" "+s.Name+" "+s.Comment)
	}
	list = append([]migrations.State{}, list...) // none is [] and not null
	return g.tell(a.cmd.OutOrStdout(), list, cmp.Or(strings.Join(lines, "\n"), nothing))
}
