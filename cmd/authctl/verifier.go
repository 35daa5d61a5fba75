package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

func newVerifier(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "verifier",
		Short: "See which services verify access tokens themselves",
		Long: `See which services verify access tokens themselves and follow what has ended
(GET /oauth2/revocations). Each one names itself and the signing keys that it holds;
authctl key promote waits until all of them hold the new key.`,
		Example: "  authctl verifier list",
	}, newVerifierList(g))
}

// verifierReport is a verifier as an operator sees it.
type verifierReport struct {
	Name     string    `json:"name"`
	Instance string    `json:"instance"` // one process of that name; its address if it did not say
	Version  string    `json:"version"`
	Client   string    `json:"client"`
	LastSeen time.Time `json:"last_seen"`
	LagMS    int64     `json:"lag_ms"` // age of what it was told, at that time
	Keys     []string  `json:"keys"`   // null if it does not tell
}

func newVerifierList(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the verifiers of the last day",
		Long: `List the verifiers that were seen in the last day. LAST SEEN is noted every 20 seconds, and LAG is how
old the knowledge of the verifier was then; one that was not seen for a minute knows nothing newer. Several
processes may have the same name: INSTANCE tells them apart. It is random, or the address of one that sends
none.`,
		Example: "  authctl verifier list",
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := auth.Verifiers(ctx, a.db, 24*time.Hour)
			if err != nil {
				return err
			}
			reports, rows := make([]verifierReport, len(list)), make([][]string, len(list))
			for i, v := range list {
				reports[i] = verifierReport{v.Name, v.Instance, v.Version, v.Client, v.At, v.Lag.Milliseconds(),
					v.Keys}
				keys := "not told"
				if v.Keys != nil {
					keys = cmp.Or(strings.Join(v.Keys, ","), "-")
				}
				seen := v.Ago.Round(time.Second).String() + " ago"
				lag := v.Lag.Round(time.Millisecond).String()
				rows[i] = []string{v.Name, cmp.Or(v.Instance, "-"), cmp.Or(v.Version, "-"), v.Client, seen, lag, keys}
			}
			if len(rows) == 0 && g.output != "json" {
				_, err := fmt.Fprintln(a.cmd.ErrOrStderr(), "no verifier was seen in the last day")
				return err
			}
			heading := []string{"NAME", "INSTANCE", "VERSION", "CLIENT", "LAST SEEN", "LAG", "KEYS"}
			return g.table(a.cmd.OutOrStdout(), reports, heading, rows)
		}),
	}
}
