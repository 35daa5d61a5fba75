package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

func newSession(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "List and end device sessions",
		Long: `List and end device sessions. A session is one sign-in on one device. Once it is ended, its
refresh token and its access tokens are refused by every server within a second; services
that verify access tokens by themselves learn of it from the events.`,
		Example: `  authctl session list --user alice
  authctl session revoke --ip 203.0.113.0/24 --dry-run`,
	}
	cmd.AddCommand(newSessionList(g), newSessionRevoke(g))
	return cmd
}

// sessionFlags choose sessions. Those that are given must all be true of a session.
type sessionFlags struct {
	user           userRef
	id, ip, before string
	given          func(flag string) bool
}

func (f *sessionFlags) add(cmd *cobra.Command) {
	f.given = cmd.Flags().Changed
	cmd.Flags().StringVar(&f.user.word, "user", "", "of this user: a username or an id")
	f.user.addFlags(cmd, "user-id", "user-name")
	cmd.MarkFlagsMutuallyExclusive("user", "user-id", "user-name")
	cmd.Flags().StringVar(&f.id, "id", "", "the one with this id")
	cmd.Flags().StringVar(&f.ip, "ip", "", "last used from this address or network (203.0.113.7, 2001:db8::/32)")
	cmd.Flags().StringVar(&f.before, "before", "", "last used before this time (RFC 3339), or longer ago than this (72h)")
}

// ofUser reports whether the flags name a user.
func (f *sessionFlags) ofUser() bool { return f.given("user") || f.user.flagsGiven() > 0 }

// some reports whether one of the other flags is given.
func (f *sessionFlags) some() bool { return f.given("id") || f.given("ip") || f.given("before") }

// parse reads the flags but --user, which takes the database.
func (f *sessionFlags) parse(now time.Time) (auth.SessionFilter, error) {
	var filter auth.SessionFilter
	// An empty value, such as of a variable that is not set, must not choose everything.
	for _, flag := range []struct{ name, value string }{{"user", f.user.word}, {"id", f.id}, {"ip", f.ip}, {"before", f.before}} {
		if f.given(flag.name) && flag.value == "" {
			return filter, misuse{fmt.Errorf("--%s is empty", flag.name)}
		}
	}
	if err := f.user.check(); err != nil {
		return filter, misuse{err}
	}
	if f.id != "" {
		id, ok := auth.ParseID(f.id)
		if !ok {
			return filter, misuse{fmt.Errorf("--id is %q, which is no session id", f.id)}
		}
		filter.ID = uuid.NullUUID{UUID: id, Valid: true}
	}
	if f.ip != "" {
		network, err := parseNetwork(f.ip)
		if err != nil {
			return filter, misuse{fmt.Errorf("--ip is %q; it takes an address or a network such as 203.0.113.0/24", f.ip)}
		}
		filter.IP = network
	}
	var err error
	filter.Before, err = parseMoment("before", f.before, now)
	return filter, err
}

func parseNetwork(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		network, err := netip.ParsePrefix(text)
		if addr := network.Addr(); addr.Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(addr.Unmap(), network.Bits()-96)
		}
		return network.Masked(), err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr = addr.Unmap()
	return addr.Prefix(addr.BitLen())
}

// parseMoment reads the time that a flag names: as such, or as how long ago it was. The
// empty text is the zero time.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	ago, err := time.ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, misuse{fmt.Errorf("--%s is %q; it takes a time such as %s, or how long ago that is, such as 72h",
			flag, text, now.UTC().Format(time.RFC3339))}
	}
	return now.Add(-ago), nil
}

// withSessions runs do with the filter that the flags describe.
func (g *global) withSessions(cmd *cobra.Command, f *sessionFlags, do func(context.Context, *app, auth.SessionFilter) error) error {
	filter, err := f.parse(time.Now())
	if err != nil {
		return err
	}
	return g.withApp(cmd, (*app).openExistingAuth, func(ctx context.Context, a *app) error {
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

var sessionHeading = []string{"ID", "USER", "DEVICE", "IP", "LAST USED", "EXPIRES"}

func describeSession(s auth.Session) (sessionReport, []string) {
	return sessionReport{
			ID: s.ID, UserID: s.UserID, Username: s.Username, DeviceName: s.DeviceName, UserAgent: s.UserAgent, IP: s.IP,
			CreatedAt: s.CreatedAt, LastUsedAt: s.LastUsedAt, ExpiresAt: s.ExpiresAt,
		}, []string{
			s.ID.String(), s.Username, orDash(s.DeviceName), orDash(s.IP),
			s.LastUsedAt.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339),
		}
}

func newSessionList(g *global) *cobra.Command {
	f := &sessionFlags{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List live sessions",
		Long: `List live sessions: all of them, or those of which everything that the flags say is true.
As JSON it is an array with an element a line, written as it comes.`,
		Example: `  authctl session list --user alice
  authctl session list --before 720h -o json | head`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withSessions(cmd, f, func(ctx context.Context, a *app, filter auth.SessionFilter) error {
				return g.stream(cmd.OutOrStdout(), sessionHeading, func(print func(v any, row []string) error) error {
					return a.auth.FindSessions(ctx, filter, func(s auth.Session) error { return print(describeSession(s)) })
				})
			})
		},
	}
	f.add(cmd)
	return cmd
}

func newSessionRevoke(g *global) *cobra.Command {
	f := &sessionFlags{}
	dryRun := false
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "End sessions for good",
		Long: `End the live sessions of which everything that the flags say is true. --user alone ends every
session of the account in one step, and also those that are just being begun.

Each session that ends is announced as an event, or the account's all together. With
--dry-run the sessions are only listed.`,
		Example: `  authctl session revoke --user alice
  authctl session revoke --ip 203.0.113.0/24 --dry-run
  authctl session revoke --before 2160h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !f.ofUser() && !f.some() {
				return misuse{errors.New("say whose sessions: --user, --id, --ip, --before")}
			}
			return g.withSessions(cmd, f, func(ctx context.Context, a *app, filter auth.SessionFilter) error {
				if dryRun {
					return g.stream(cmd.OutOrStdout(), sessionHeading, func(print func(v any, row []string) error) error {
						return a.auth.FindSessions(ctx, filter, func(s auth.Session) error { return print(describeSession(s)) })
					})
				}
				n, err := revokeSessions(ctx, a.auth, filter, !f.some())
				if err != nil {
					return fmt.Errorf("%s revoked, and then: %w", count(n, "session was", "sessions were"), err)
				}
				if g.output == "json" {
					return printJSON(cmd.OutOrStdout(), map[string]int{"revoked": n})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s revoked\n", count(n, "session", "sessions"))
				return err
			})
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only list what would be revoked")
	return cmd
}

// revokeSessions ends what the filter chooses and returns how many. whole says that this is
// everything of the filter's user.
func revokeSessions(ctx context.Context, svc *auth.Service, filter auth.SessionFilter, whole bool) (n int, err error) {
	if whole {
		list, err := svc.SessionsOf(ctx, filter.UserID.UUID)
		if err != nil {
			return 0, err
		}
		if err := svc.RevokeUserSessions(ctx, filter.UserID.UUID); err != nil {
			return 0, err
		}
		return len(list), nil
	}
	err = svc.FindSessions(ctx, filter, func(s auth.Session) error {
		if err := svc.RevokeSession(ctx, s); err != nil {
			return err
		}
		n++
		return nil
	})
	return n, err
}

// count says how many of something there are.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
