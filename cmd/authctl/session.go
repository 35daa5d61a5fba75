package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

func newSession(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "session",
		Short: "List and end device sessions",
		Long: `List and end device sessions. A session is one sign-in on one device. Once it has ended, every
server refuses its refresh token and its access tokens; services that verify access tokens
themselves learn of it from /oauth2/revocations or the events.`,
		Example: `  authctl session list --user alice
  authctl session revoke --ip 203.0.113.0/24 --dry-run`,
	}, newSessionList(g), newSessionRevoke(g))
}

// sessionFlags choose sessions. A session must match all the given flags.
type sessionFlags struct {
	user           userRef
	id, ip, before string
	given          func(flag string) bool
}

func (f *sessionFlags) add(cmd *cobra.Command) {
	f.given = cmd.Flags().Changed
	cmd.Flags().StringVar(&f.user.word, "user", "", "of this user (a username or an id)")
	f.user.addFlags(cmd, "user-id", "user-name")
	cmd.MarkFlagsMutuallyExclusive("user", "user-id", "user-name")
	cmd.Flags().StringVar(&f.id, "id", "", "the session with this id")
	cmd.Flags().StringVar(&f.ip, "ip", "", "last used from this address or network (203.0.113.7, 2001:db8::/32)")
	cmd.Flags().StringVar(&f.before, "before", "",
		"last used before this time (RFC 3339), or longer ago than this duration (72h)")
}

func (f *sessionFlags) ofUser() bool { return f.given("user") || f.user.flagsGiven() > 0 }

func (f *sessionFlags) some() bool { return f.given("id") || f.given("ip") || f.given("before") }

// parse reads the flags except --user, which needs the database.
func (f *sessionFlags) parse(now time.Time) (auth.SessionFilter, error) {
	var filter auth.SessionFilter
	if err := f.user.check(); err != nil {
		return filter, misuse{err}
	}
	if f.id != "" {
		id, ok := auth.ParseID(f.id)
		if !ok {
			return filter, misuse{fmt.Errorf("--id is %q, which is not a session id", f.id)}
		}
		filter.ID = uuid.NullUUID{UUID: id, Valid: true}
	}
	if f.ip != "" {
		network, err := httpserver.ParseNetwork(f.ip)
		if err != nil {
			return filter, misuse{fmt.Errorf("--ip is %q; it takes an address or a network such as 203.0.113.0/24",
				f.ip)}
		}
		filter.IP = network
	}
	var err error
	if filter.Before, err = parseMoment("before", f.before, now); err != nil {
		return filter, err
	}
	// A time that is not in the past means every session, also those that the session store has lost.
	filter.Everybody = f.before != "" && !filter.Before.Before(now) && f.id == "" && f.ip == "" && !f.ofUser()
	return filter, nil
}

// parseMoment parses a flag that is a time or a duration before now. An empty text is the zero
// time, which chooses everything. So the text of that time is refused: programs write it for none.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil && !at.IsZero() {
		return at, nil
	}
	ago, err := time.ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, misuse{
			fmt.Errorf("--%s is %q; it takes a time such as %s, or how long ago that is, such as 72h",
				flag, text, now.UTC().Format(time.RFC3339)),
		}
	}
	return now.Add(-ago), nil
}

// withSessions runs do with the filter that the flags describe.
func withSessions(cmd *cobra.Command, f *sessionFlags, with appRunner,
	do func(context.Context, *app, auth.SessionFilter) error) error {
	filter, err := f.parse(time.Now())
	if err != nil {
		return err
	}
	return with(cmd, func(ctx context.Context, a *app) error {
		if f.ofUser() {
			u, err := f.user.find(ctx, a.auth)
			if err != nil {
				return err
			}
			filter.UserID = uuid.NullUUID{UUID: u.ID, Valid: true}
		}
		return do(ctx, a, filter)
	})
}

// sessionReport is a session as an operator sees it.
type sessionReport struct {
	ID         uuid.UUID `json:"id"`
	UserID     uuid.UUID `json:"user_id"`
	Username   string    `json:"username"`
	DeviceName string    `json:"device_name"`
	UserAgent  string    `json:"user_agent"`
	IP         string    `json:"ip"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	ExpiresAt  time.Time `json:"expires_at"`
}

func describeSession(s auth.Session) (sessionReport, []string) {
	return sessionReport{
			ID: s.ID, UserID: s.UserID, Username: s.Username, DeviceName: s.DeviceName, UserAgent: s.UserAgent,
			IP: s.IP, CreatedAt: s.CreatedAt, LastUsedAt: s.LastUsedAt, ExpiresAt: s.ExpiresAt,
		}, []string{
			s.ID.String(), s.Username, cmp.Or(s.DeviceName, "-"), cmp.Or(s.IP, "-"),
			s.LastUsedAt.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339),
		}
}

func newSessionList(g *global) *cobra.Command {
	f := &sessionFlags{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List live sessions",
		Long: `List live sessions: all of them, or those that match all the flags.
As JSON it is an array with one element a line, written as a stream.`,
		Example: `  authctl session list --user alice
  authctl session list --before 720h -o json | head`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withSessions(cmd, f, g.toShow, func(_ context.Context, a *app, filter auth.SessionFilter) error {
				filter.Everybody = false // only sessions in the store can be listed
				return g.listSessions(cmd, a.auth, filter)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (g *global) listSessions(cmd *cobra.Command, svc *auth.Service, filter auth.SessionFilter) error {
	heading := []string{"ID", "USER", "DEVICE", "IP", "LAST USED", "EXPIRES"}
	return g.stream(cmd.OutOrStdout(), heading, func(print func(v any, row []string) error) error {
		return svc.FindSessions(cmd.Context(), filter, func(found []auth.Session) error {
			for _, s := range found {
				if err := print(describeSession(s)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

type revokeOptions struct {
	*global
	chosen sessionFlags
	all    bool
	after  string // an account's id
	dryRun bool
	sure   consent
}

func newSessionRevoke(g *global) *cobra.Command {
	o := &revokeOptions{global: g}
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "End sessions for good",
		Long: `End the live sessions that match all the flags. An event announces each session that ends, or
all those of an account together. With --dry-run the sessions are only
listed.

--user alone ends every session of the account, and --all (like --before 0s) every session of every
account. Both work in the database, so they also end sessions that are just beginning or that the
session store has lost, and they work while it is away. All other choices depend on what the session
store knows.

Without --user or --id it says what will end and asks on a terminal; elsewhere it needs --yes.`,
		Example: `  authctl session revoke --user alice
  authctl session revoke --ip 203.0.113.0/24 --dry-run
  authctl session revoke --before 2160h --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.chosen.add(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "every session of every account")
	cmd.Flags().StringVar(&o.after, "after", "",
		"with --all: continue after the account with this id, which an interrupted run prints")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only list the sessions that would end")
	o.sure.add(cmd)
	return cmd
}

func (o *revokeOptions) run(cmd *cobra.Command) error {
	f := &o.chosen
	if !o.all && !f.ofUser() && !f.some() {
		return misuse{errors.New("choose sessions with --user, --id, --ip, --before, or --all")}
	}
	if o.all && (f.ofUser() || f.some()) {
		return misuse{errors.New("--all means every session: it cannot be combined with another choice")}
	}
	after, isID := auth.ParseID(o.after)
	if o.after != "" && (!o.all || !isID) {
		return misuse{errors.New("--after goes with --all and takes the id of an account")}
	}
	return withSessions(cmd, f, o.onAuth, func(_ context.Context, a *app, filter auth.SessionFilter) error {
		everybody := o.all || filter.Everybody
		if o.dryRun {
			if everybody {
				fmt.Fprintln(cmd.ErrOrStderr(), "every session that the store does not know of would end too")
			}
			filter.Everybody, filter.Expired = false, true
			return o.listSessions(cmd, a.auth, filter)
		}
		if everybody {
			filter = auth.SessionFilter{Everybody: true, AfterAccount: after}
		}
		if err := o.ask(cmd, filter); err != nil {
			return err
		}
		return o.revoke(cmd, a.auth, filter)
	})
}

func (o *revokeOptions) ask(cmd *cobra.Command, filter auth.SessionFilter) error {
	switch {
	case filter.Everybody:
		return o.sure.ask(cmd, "every session of every account ends, and everybody has to sign in again")
	case !filter.UserID.Valid && !filter.ID.Valid:
		return o.sure.ask(cmd, "these sessions end, of any account (list them with --dry-run)")
	}
	return nil
}

// revokeReport is the result of a revocation.
type revokeReport struct {
	// Revoked counts sessions; if all of a user ended, those that the session store knew. It is
	// missing if they were not counted.
	Revoked *int `json:"revoked,omitempty"`
	// Accounts counts accounts whose sessions all ended.
	Accounts int `json:"accounts"`
}

func (o *revokeOptions) revoke(cmd *cobra.Command, svc *auth.Service, filter auth.SessionFilter) error {
	ctx := cmd.Context()
	whole := filter.UserID.Valid && !o.chosen.some()
	var known *int
	if whole { // if the store can tell; they end in any case
		if list, err := svc.SessionsOf(ctx, filter.UserID.UUID); err == nil {
			known = new(len(list))
		}
	}
	done, err := svc.RevokeSessions(ctx, filter)
	report := revokeReport{Revoked: known, Accounts: done.Accounts}
	if !whole && !filter.Everybody {
		report.Revoked = &done.Sessions
	}
	switch {
	case err != nil && filter.Everybody && done.Accounts > 0:
		return advised{fmt.Errorf("every session of %s has ended, and then: %w; go on with: authctl session revoke "+
			"--all --yes --after %s", count(done.Accounts, "account", "accounts"), err, done.LastAccount)}
	case err != nil && done.Sessions == 0:
		return err
	case err != nil:
		return fmt.Errorf("%s revoked, and then: %w", count(done.Sessions, "session was", "sessions were"), err)
	case filter.ID.Valid && done.Sessions == 0:
		ended, err := svc.SessionEnded(ctx, filter.ID.UUID)
		if err != nil {
			return err
		}
		if !ended {
			return fmt.Errorf("there is no live session %s", filter.ID.UUID)
		}
	}
	w := cmd.OutOrStdout()
	switch {
	case o.output == "json":
		return printJSON(w, report)
	case filter.Everybody:
		_, err = fmt.Fprintf(w, "every session of %s has ended\n", count(done.Accounts, "account", "accounts"))
	case report.Revoked == nil:
		_, err = fmt.Fprintln(w, "every session of the account has ended; the session store cannot say how many")
	case whole && *report.Revoked == 0:
		_, err = fmt.Fprintln(w, "every session of the account has ended; the session store knew of none")
	case filter.ID.Valid && done.Sessions == 0:
		_, err = fmt.Fprintln(w, "0 sessions revoked: it had ended before")
	default:
		_, err = fmt.Fprintf(w, "%s revoked\n", count(*report.Revoked, "session", "sessions"))
	}
	return err
}
