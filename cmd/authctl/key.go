package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/fault"
)

func newKey(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Rotate the keys that sign access tokens",
		Long: `Rotate the keys that sign access tokens, so that no token is refused on the way:

  1. stage     makes a key and publishes it. It signs nothing yet.
  2. promote   makes it the one that signs, once every verifier can have fetched it.
  3. retire    takes its predecessor away, once no token of it can be live any more.

revoke takes a key away at once, for when it may have leaked: its tokens are refused from
then on. Running servers notice each step within seconds, and none needs a restart. Keys are
kept in the database, sealed under AUTH_TOKEN_SECRET. With HS256 there are none.`,
		Example: `  authctl key list
  authctl key stage`,
	}
	cmd.AddCommand(newKeyList(g), newKeyStage(g), newKeyPromote(g), newKeyRetire(g), newKeyRevoke(g))
	return cmd
}

// withKeys runs a command on the signing keys. It needs no service, which would not start
// when the secret of the active key is lost.
func (g *global) withKeys(cmd *cobra.Command, do func(ctx context.Context, keys *auth.Keys) error) error {
	return g.withApp(cmd, (*app).openExistingDatabase, func(ctx context.Context, a *app) error {
		if _, err := a.ensureSecret(false); err != nil {
			return err
		}
		return do(ctx, auth.OpenKeys(a.db, a.Auth, a.log))
	})
}

// onKey runs a command on one signing key.
func (g *global) onKey(cmd *cobra.Command, kid string, do func(ctx context.Context, keys *auth.Keys) error) error {
	return g.withKeys(cmd, func(ctx context.Context, keys *auth.Keys) error {
		err := do(ctx, keys)
		if errors.Is(err, auth.ErrKeyNotFound) {
			return fmt.Errorf("there is no signing key %q; see: authctl key list", kid)
		}
		return err
	})
}

func newKeyList(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List every key there ever was, and what can be done next",
		Example: "  authctl key list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withKeys(cmd, func(ctx context.Context, keys *auth.Keys) error {
				list, err := keys.List(ctx)
				if err != nil {
					return err
				}
				if g.output == "json" {
					return printJSON(cmd.OutOrStdout(), list)
				}
				rows := make([][]string, 0, len(list))
				for _, k := range list {
					rows = append(
						rows,
						[]string{
							k.KID,
							k.Algorithm,
							string(k.Status),
							moment(k.StagedAt),
							moment(k.ActiveAt),
							moment(k.RetiredAt),
							nextStep(k, time.Now()),
						},
					)
				}
				return printTable(
					cmd.OutOrStdout(),
					[]string{"KID", "ALGORITHM", "STATUS", "STAGED", "ACTIVE", "RETIRED", "NEXT"},
					rows,
				)
			})
		},
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// notBefore is a moment in whole seconds at which it is past t.
func notBefore(t time.Time) string { return moment(t.Add(time.Second - 1).Truncate(time.Second)) }

// nextStep says what can be done with a key, and from when on.
func nextStep(k auth.KeyInfo, now time.Time) string {
	step := func(word string, at time.Time) string {
		if k.ClockWasAhead {
			return word + "; its time is yet to come and counts from now once you try"
		}
		if now.Before(at) {
			return word + " from " + notBefore(at)
		}
		return word
	}
	switch k.Status {
	case auth.KeyStaged:
		return step("promote", k.PromotableAt)
	case auth.KeyRetiring:
		return step("retire", k.RetirableAt)
	}
	return "-"
}

func newKeyStage(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "stage",
		Short: "Make a key and publish it; print its kid",
		Long: `Make a key of the configured algorithm and publish it in the JWK set; print its kid. It signs
nothing before it is promoted.`,
		Example: "  authctl key stage",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withKeys(cmd, func(ctx context.Context, keys *auth.Keys) error {
				k, err := keys.Stage(ctx)
				if err != nil {
					return err
				}
				return g.printKey(
					cmd,
					k,
					k.KID,
					fmt.Sprintf("from %s on: authctl key promote %s", notBefore(k.PromotableAt), k.KID),
				)
			})
		},
	}
}

// printKey reports what a key has become, and what comes next.
func (g *global) printKey(cmd *cobra.Command, k auth.KeyInfo, line, hint string) error {
	if g.output == "json" {
		return printJSON(cmd.OutOrStdout(), k)
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
		return err
	}
	if hint != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "next, "+hint)
	}
	return nil
}

func newKeyPromote(g *global) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "promote KID",
		Short: "Make a staged key the one that signs",
		Long: `Make a staged key the one that signs; the one that did only verifies from then on. It is
refused until every verifier can have fetched a key set with the key in it. --force does not
wait: verifiers that hold an older set then refuse new tokens until they fetch it again.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"staged\").kid' | xargs -n1 authctl key promote",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onKey(cmd, args[0], func(ctx context.Context, keys *auth.Keys) error {
				k, err := keys.Promote(ctx, args[0], force)
				if err != nil {
					return err
				}
				return g.printKey(
					cmd,
					k,
					k.KID+" signs now",
					"retire its predecessor when it can be; see: authctl key list",
				)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for verifiers to learn of the key")
	return cmd
}

func newKeyRetire(g *global) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "retire KID",
		Short: "Take a key away that no longer signs",
		Long: `Take a retiring key out of the JWK set and destroy its private half. It is refused while
access tokens that the key signed can be live: every server keeps with the key how long its
tokens live, so the settings of this command do not matter. --force does not wait: those tokens are
refused from then on, and their clients must refresh.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"retiring\").kid' | xargs -n1 authctl key retire",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onKey(cmd, args[0], func(ctx context.Context, keys *auth.Keys) error {
				k, err := keys.Retire(ctx, args[0], force)
				if err != nil {
					return err
				}
				return g.printKey(cmd, k, k.KID+" is retired", "")
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for its last token to expire")
	return cmd
}

func newKeyRevoke(g *global) *cobra.Command {
	force, sure := false, consent{}
	cmd := &cobra.Command{
		Use:   "revoke KID",
		Short: "Take any key away at once, such as one that has leaked",
		Long: `Take any key out of the JWK set at once and destroy its private half: every access token it
signed is refused from then on, and its clients must refresh. When it is the one that signs,
the staged key that has been published the longest takes its place, else a new one. For a key
whose tokens can be live a terminal is asked; elsewhere it takes --yes, or --force, which is the
same here.

It works also when AUTH_TOKEN_SECRET was lost and servers refuse to start.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"staged\").kid' | xargs -n1 authctl key revoke",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onKey(cmd, args[0], func(ctx context.Context, keys *auth.Keys) error {
				before, err := keys.List(ctx)
				if err != nil {
					return err
				}
				if i := slices.IndexFunc(before, func(k auth.KeyInfo) bool { return k.KID == args[0] && k.Status == auth.KeyRevoked }); i >= 0 {
					return g.printRevoked(
						cmd.OutOrStdout(),
						before[i],
						auth.KeyInfo{},
						"is revoked already; nothing changed",
					)
				}
				k, successor, err := keys.Revoke(ctx, args[0], force || sure.yes)
				if refusal, ok := errors.AsType[*fault.Fault](err); ok && errors.Is(err, auth.ErrKeyInUse) &&
					terminalOf(cmd) != nil {
					if err := sure.ask(cmd, strings.TrimSuffix(refusal.Message, ".")); err != nil {
						return err
					}
					k, successor, err = keys.Revoke(ctx, args[0], true)
				}
				if err != nil {
					return err
				}
				return g.printRevoked(cmd.OutOrStdout(), k, successor, "is revoked")
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when tokens of the key can be live")
	sure.add(cmd)
	return cmd
}

func (g *global) printRevoked(w io.Writer, k, successor auth.KeyInfo, what string) error {
	if g.output == "json" {
		report := map[string]auth.KeyInfo{"revoked": k}
		if successor.KID != "" {
			report["successor"] = successor
		}
		return printJSON(w, report)
	}
	line := k.KID + " " + what
	if successor.KID != "" {
		line += "; " + successor.KID + " signs now"
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
