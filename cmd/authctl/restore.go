package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/database"
)

func newRestore(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "restore",
		Short: "Make a database that was restored from a backup safe to serve",
		Long: `Make a database that was restored from a backup safe to serve. A backup is restored with the
tools of the database, as docs/operations.md explains under Backups. Then comes authctl restore
fence, before any server starts.`,
		Example: "  authctl restore fence --dry-run\n  authctl restore fence",
	}, newRestoreFence(g))
}

type fenceOptions struct {
	*global
	sure                        consent
	dryRun, withoutRedis, force bool
}

func newRestoreFence(g *global) *cobra.Command {
	o := &fenceOptions{global: g}
	cmd := &cobra.Command{
		Use:   "fence",
		Short: "End everything that was issued before a backup was restored",
		Long: `End everything that was issued before a backup was restored. A restored database has forgotten
what happened since the backup: sessions that had ended would be live again, and consumers would
ignore new events, whose sequence numbers they have already seen. The fence

  - ends every session and every access token of every account, from before and after the backup,
    and the codes and links that were sent to set a new password or confirm an address,
  - deletes the sessions from the database and from Redis,
  - revokes every signing key and lets a new one sign,
  - raises the generation of events, which consumers see as ce_generation,
  - makes services that follow /oauth2/revocations take a new snapshot and the new keys.

It says how much that is, asks on a terminal and needs --yes elsewhere. It refuses while servers,
relays or others use the database. If it is interrupted, serve and relay refuse to start until you
run it again, which finishes it. Run after it has finished, it makes another fence.

It cannot know which accounts were deleted or disabled, or which passwords were changed, after the
backup: they are as they were then. docs/operations.md shows how the published events tell you.
With HS256, where AUTH_TOKEN_SECRET signs, give every server a new secret as well.

If Redis is away the fence does nothing. Where its data is lost anyway, --without-redis goes on
without it: sessions that it may still hold are refused.`,
		Example: "  authctl restore fence --dry-run\n  authctl restore fence",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.withApp(cmd, (*app).connectExistingDatabase, func(ctx context.Context, a *app) error {
				return o.run(ctx, cmd, a)
			})
		},
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().BoolVar(&o.withoutRedis, "without-redis", false, "leave Redis as it is, because its data is lost")
	cmd.Flags().BoolVar(&o.force, "force", false, "even while others use the database")
	o.sure.add(cmd)
	return cmd
}

func (o *fenceOptions) run(ctx context.Context, cmd *cobra.Command, a *app) error {
	if err := migrations.Check(ctx, a.db); err != nil {
		return sayHowToMigrate(err) // not by serve, which does it too
	}
	if _, err := a.ensureSecret(false); err != nil {
		return err
	}
	// Before anything else is opened: on SQLite the command itself must have one connection only.
	inUse := o.unused(ctx, a)
	if inUse != nil && !o.dryRun {
		return inUse
	}
	f, err := o.open(ctx, a)
	if err != nil {
		return err
	}
	plan, err := f.Plan(ctx)
	if err != nil {
		return err
	}
	report := o.report(a, plan)
	if o.dryRun {
		if inUse != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "it would be refused now: %v\n", inUse)
		}
		if o.output == "json" {
			return printJSON(cmd.OutOrStdout(), report)
		}
		return report.describe(cmd.OutOrStdout(), a)
	}
	if err := report.describe(cmd.ErrOrStderr(), a); err != nil {
		return err
	}
	const loss = "every session and every access token ends, and everybody has to sign in again"
	if err := o.sure.ask(cmd, loss); err != nil {
		return err
	}
	begun := false
	bars := fenceBars{w: cmd.ErrOrStderr(), plan: plan}
	unused := func(ctx context.Context) error { return o.unused(ctx, a) }
	done, err := f.Run(ctx, unused, func(step auth.FenceStep, n int) {
		begun = true
		bars.show(step, n)
	})
	bars.finish()
	if err != nil {
		if begun || !plan.Interrupted.IsZero() {
			fmt.Fprintln(cmd.ErrOrStderr(), "the fence has begun and is not finished, and serve and relay refuse "+
				"to start; run authctl restore fence again")
		}
		return err
	}
	report.Key = done.Key.KID
	words := fmt.Sprintf("the fence is done: events are of generation %d", done.Generation)
	next := "start serve and relay, and decide about accounts that changed after the backup"
	if report.Key != "" {
		words += ", " + report.Key + " signs now"
	} else {
		next = "give every server and every service that verifies tokens a new AUTH_TOKEN_SECRET, without the old " +
			"one in AUTH_TOKEN_PREVIOUS_SECRETS; then start serve and relay"
	}
	if err := o.tell(cmd.OutOrStdout(), report, words); err != nil || o.output == "json" {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "next, "+next)
	return nil
}

// unused returns an error while others use the database.
func (o *fenceOptions) unused(ctx context.Context, a *app) error {
	if o.force {
		return nil
	}
	return a.inUse(migrations.Unused(ctx, a.db), "stop every serve and relay and what else uses it")
}

// inUse adds to an error that says that others use the database what to do. A pooler keeps its connections to the
// server when its clients have gone, and they look like them.
func (a *app) inUse(err error, stop string) error {
	if !errors.Is(err, migrations.ErrInUse) {
		return err
	}
	if a.db.IsPostgres() {
		stop += " (where all have stopped, PgBouncer still has their connections: RECONNECT on its console ends them)"
	}
	return fmt.Errorf("%w: %s, or use --force", err, stop)
}

func (o *fenceOptions) open(ctx context.Context, a *app) (*auth.Fence, error) {
	deps := auth.Deps{DB: a.db, Log: a.log}
	if a.Redis.Enabled() && !o.withoutRedis {
		const advice = "start it, or, if its data is lost, use --without-redis"
		client, err := cache.Open(ctx, a.Redis, cache.Options{Prod: a.App.prod(), AppName: "authctl"})
		if err != nil {
			return nil, fmt.Errorf("the sessions in Redis cannot be deleted: %w; %s", err, advice)
		}
		a.closers = append(a.closers, client.Close)
		if unfit := cache.Unfit(ctx, client); len(unfit) > 0 {
			return nil, fmt.Errorf("the sessions in %s cannot be deleted: %w; %s", a.Redis.Describe(), unfit[0], advice)
		}
		deps.Redis = client
	}
	f, err := auth.OpenFence(ctx, a.Auth, deps)
	if err == nil {
		a.closers = append(a.closers, f.Close)
	}
	return f, err
}

// fenceReport is what a fence will do, or has done.
type fenceReport struct {
	DryRun      bool      `json:"dry_run"`
	Interrupted time.Time `json:"interrupted_at,omitzero"` // the fence that this one finishes began
	LastDone    time.Time `json:"last_done_at,omitzero"`

	Accounts         int      `json:"accounts"`
	DatabaseSessions int      `json:"database_sessions"`
	RedisSessions    *int     `json:"redis_sessions,omitempty"` // absent: there is no Redis, or it is left alone
	RevokedKeys      []string `json:"revoked_keys"`
	Key              string   `json:"signing_key,omitempty"` // absent with HS256 and before it is done
	FromGeneration   int64    `json:"from_generation"`
	Generation       int64    `json:"generation"`
	Verifiers        []string `json:"verifiers"`

	shared bool // the secret signs
}

func (o *fenceOptions) report(a *app, plan auth.FencePlan) fenceReport {
	r := fenceReport{
		DryRun: o.dryRun, Interrupted: plan.Interrupted, LastDone: plan.LastDone, Accounts: plan.Accounts,
		DatabaseSessions: plan.Rows, RevokedKeys: []string{}, Verifiers: []string{},
		FromGeneration: plan.FromGeneration, Generation: plan.ToGeneration, shared: a.Auth.Token.Algorithm == "HS256",
	}
	if a.Redis.Enabled() && !o.withoutRedis {
		r.RedisSessions = &plan.Records
	}
	for _, k := range plan.Keys {
		r.RevokedKeys = append(r.RevokedKeys, k.KID)
	}
	for _, v := range plan.Verifiers {
		r.Verifiers = append(r.Verifiers, v.Name)
	}
	r.Verifiers = slices.Compact(r.Verifiers) // of several processes with one name
	return r
}

// describe says for a person what a fence will do.
func (r fenceReport) describe(w io.Writer, a *app) error {
	lines := []string{"A restore fence on " + a.Database.Describe(a.App.DataDir) + ":"}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf("  - "+format, args...)) }
	if !r.Interrupted.IsZero() {
		add("finishes the one that began at %s and was interrupted", moment(r.Interrupted))
	} else if !r.LastDone.IsZero() {
		add("is another one: the last was done at %s, and what was issued since ends too", moment(r.LastDone))
	}
	add("ends every session and every access token of %s, from before and after the backup",
		count(r.Accounts, "account", "accounts"))
	sessions := count(r.DatabaseSessions, "session", "sessions") + " from the database"
	if r.RedisSessions != nil {
		sessions += fmt.Sprintf(" and %d from %s", *r.RedisSessions, a.Redis.Describe())
	}
	add("deletes %s", sessions)
	if a.Redis.Enabled() && r.RedisSessions == nil {
		add("leaves %s as it is; sessions that it may hold are refused", a.Redis.Describe())
	}
	if len(r.RevokedKeys) > 0 {
		add("revokes %s: %s", count(len(r.RevokedKeys), "signing key", "signing keys"),
			strings.Join(r.RevokedKeys, ", "))
	}
	if r.shared {
		add("cannot replace AUTH_TOKEN_SECRET, which signs: services that verify with it accept old access " +
			"tokens until it is another one")
	} else {
		add("makes a new key that signs")
	}
	add("raises the generation of events from %d to %d", r.FromGeneration, r.Generation)
	followers := "services that follow /oauth2/revocations take a new snapshot"
	if len(r.Verifiers) > 0 {
		followers += "; the backup knows " + strings.Join(r.Verifiers, ", ")
	}
	add("%s", followers)
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// fenceBars shows how far the steps of a fence are, on a terminal.
type fenceBars struct {
	w    io.Writer
	plan auth.FencePlan
	step auth.FenceStep
	bar  *progressbar.ProgressBar
}

func (b *fenceBars) show(step auth.FenceStep, n int) {
	if step != b.step {
		b.finish()
		total := map[auth.FenceStep]int{auth.FenceRecords: b.plan.Records, auth.FenceRows: b.plan.Rows,
			auth.FenceAccounts: b.plan.Accounts}[step]
		what := map[auth.FenceStep]string{auth.FenceRecords: "sessions in Redis",
			auth.FenceRows: "sessions in the database", auth.FenceAccounts: "accounts"}[step]
		if b.step = step; total == 0 || what == "" {
			return
		}
		b.bar = newProgress(b.w, int64(total), what, progressbar.OptionShowCount())
	}
	if b.bar != nil {
		_ = b.bar.Set64(min(int64(n), b.bar.GetMax64()))
	}
}

func (b *fenceBars) finish() {
	if b.bar != nil {
		_ = b.bar.Finish()
		b.bar = nil
	}
}

// checkFence refuses to start while a restore fence is interrupted: what it has to end would be
// accepted again.
func (a *app) checkFence(ctx context.Context) error {
	began, err := auth.FenceInterrupted(ctx, a.db)
	if err == nil && !began.IsZero() {
		err = fmt.Errorf("a backup was restored, and the fence that began at %s is not finished; run: authctl "+
			"restore fence", moment(began))
	}
	return err
}

// fenceFindings is what doctor says of restore fences.
func (d *doctor) fenceFindings(ctx context.Context) []finding {
	err := d.checkFence(ctx)
	switch {
	case err == nil:
		return nil
	case database.IsForbidden(err):
		return []finding{failing(err.Error(), "run: authctl migrate grants")}
	}
	return []finding{failing(err.Error(), "until then serve and relay do not start")}
}
