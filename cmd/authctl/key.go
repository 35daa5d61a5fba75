package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/fault"
)

func newKey(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "key",
		Short: "Rotate the keys that sign access tokens",
		Long: `Rotate the keys that sign access tokens, without refusing any token:

  1. stage     creates a key and publishes it. It does not sign yet.
  2. promote   lets it sign, once every verifier has had time to fetch it.
  3. retire    removes the old key, once all its tokens have expired.

revoke removes a key at once, because it may have leaked: its tokens are refused from
then on. Running servers notice each step within seconds and need no restart. Keys are
in the database, sealed under AUTH_TOKEN_SECRET. With HS256 there are none.`,
		Example: `  authctl key list
  authctl key stage`,
	}, newKeyList(g), newKeyStage(g), newKeyPromote(g), newKeyRetire(g), newKeyRevoke(g))
}

// onKeys makes what cobra runs for a command on the signing keys. It opens no service, which does not start if the
// secret of the active key is lost.
func (g *global) onKeys(do func(ctx context.Context, a *app, keys *auth.Keys, args []string) error) runE {
	return func(cmd *cobra.Command, args []string) error {
		return g.withApp(cmd, (*app).openExistingDatabase, func(ctx context.Context, a *app) error {
			if _, err := a.ensureSecret(false); err != nil {
				return err
			}
			err := do(ctx, a, auth.OpenKeys(a.db, a.Auth, a.log), args)
			if errors.Is(err, auth.ErrKeyNotFound) {
				return fmt.Errorf("there is no signing key %q; see: authctl key list", strings.Join(args, " "))
			}
			return err
		})
	}
}

func newKeyList(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List every key, past and present, and the possible next steps",
		Example: "  authctl key list",
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := auth.OpenKeys(a.db, a.Auth, a.log).List(ctx)
			if err != nil {
				return err
			}
			rows := make([][]string, 0, len(list))
			for _, k := range list {
				rows = append(rows, []string{k.KID, k.Algorithm, string(k.Status), moment(k.StagedAt),
					moment(k.ActiveAt), moment(k.RetiredAt), nextStep(k, time.Now())})
			}
			heading := []string{"KID", "ALGORITHM", "STATUS", "STAGED", "ACTIVE", "RETIRED", "NEXT"}
			return g.table(a.cmd.OutOrStdout(), list, heading, rows)
		}),
	}
}

// notBefore is the first whole second that is not before t.
func notBefore(t time.Time) string { return moment(t.Add(time.Second - 1).Truncate(time.Second)) }

func nextStep(k auth.KeyInfo, now time.Time) string {
	step := func(word string, at time.Time) string {
		if k.ClockWasAhead {
			return word + "; its time is in the future, and counts from now once you try"
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
		Short: "Create a key and publish it; print its kid",
		Long: `Create a key of the configured algorithm, publish it in the JWK set and print its kid. It does
not sign before it is promoted.`,
		Example: "  authctl key stage",
		RunE: g.onKeys(func(ctx context.Context, a *app, keys *auth.Keys, _ []string) error {
			if err := a.checkPresentSecret(ctx); err != nil { // the key is sealed for the servers
				return err
			}
			k, err := keys.Stage(ctx)
			if err != nil { // done twice, there would be two
				return maybeDone(err, "look at authctl key list before you run it again")
			}
			next := fmt.Sprintf("from %s on: authctl key promote %s", notBefore(k.PromotableAt), k.KID)
			return g.printKey(a, k, k.KID, next)
		}),
	}
}

func (g *global) printKey(a *app, k auth.KeyInfo, line, hint string) error {
	err := g.tell(a.cmd.OutOrStdout(), k, line)
	if err == nil && hint != "" && g.output != "json" {
		fmt.Fprintln(a.cmd.ErrOrStderr(), "next, "+hint)
	}
	return err
}

func newKeyPromote(g *global) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "promote KID",
		Short: "Let a staged key sign",
		Long: `Let a staged key sign; the present key only verifies from then on. This is refused until every
verifier has had time to fetch a key set with the new key, and until each one that
follows /oauth2/revocations (authctl verifier list) says that it holds the key. --force does not
wait: verifiers with an older set then refuse new tokens until they fetch it again.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"staged\").kid' | xargs -rn1 authctl " +
			"key promote",
		Args: oneArgument,
		RunE: g.onKeys(func(ctx context.Context, a *app, keys *auth.Keys, args []string) error {
			k, err := auth.PromoteKey(ctx, a.db, keys, args[0], force)
			if err != nil {
				return err
			}
			return g.printKey(a, k, k.KID+" signs now",
				"retire its predecessor when possible; see: authctl key list")
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not wait until verifiers have fetched the key")
	return cmd
}

func newKeyRetire(g *global) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "retire KID",
		Short: "Remove a key that no longer signs",
		Long: `Remove a retiring key from the JWK set and destroy its private half. This is refused while
access tokens that the key signed can be live: servers record with the key how long its
tokens live, so the settings of this command do not matter. --force does not wait: those tokens are
refused from then on, and their clients must refresh.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"retiring\").kid' | xargs -rn1 authctl " +
			"key retire",
		Args: oneArgument,
		RunE: g.onKeys(func(ctx context.Context, a *app, keys *auth.Keys, args []string) error {
			k, err := keys.Retire(ctx, args[0], force)
			if err != nil {
				return err
			}
			return g.printKey(a, k, k.KID+" is retired", "")
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not wait until its last token has expired")
	return cmd
}

func newKeyRevoke(g *global) *cobra.Command {
	force, sure := false, consent{}
	cmd := &cobra.Command{
		Use:   "revoke KID",
		Short: "Remove any key at once, such as a leaked one",
		Long: `Remove any key from the JWK set at once and destroy its private half: every access token it
signed is refused from then on, and clients must refresh. If it is the key that signs,
the staged key that was published first replaces it, or else a new key. If its
tokens can be live, the command asks on a terminal and needs --yes or --force elsewhere.

It also works when AUTH_TOKEN_SECRET was lost and servers refuse to start.`,
		Example: "  authctl key list -o json | jq -r '.[] | select(.status==\"staged\").kid' | xargs -rn1 authctl " +
			"key revoke",
		Args: oneArgument,
		RunE: g.onKeys(func(ctx context.Context, a *app, keys *auth.Keys, args []string) error {
			before, err := keys.List(ctx)
			if err != nil {
				return err
			}
			for _, k := range before {
				if k.KID == args[0] && k.Status == auth.KeyRevoked {
					return g.printRevoked(a, k, auth.KeyInfo{}, "is revoked already; nothing changed")
				}
			}
			other := a.checkPresentSecret(ctx) != nil // the present key does not open
			k, successor, err := keys.Revoke(ctx, args[0], force || sure.yes)
			if refusal, ok := errors.AsType[*fault.Fault](err); ok && errors.Is(err, auth.ErrKeyInUse) {
				if err := sure.ask(a.cmd, strings.TrimSuffix(refusal.Message, ".")); err != nil {
					return err
				}
				k, successor, err = keys.Revoke(ctx, args[0], true)
			}
			if err != nil {
				return err
			}
			if other && successor.KID != "" { // meant where the secret was lost; elsewhere a mistake
				fmt.Fprintln(a.cmd.ErrOrStderr(), "the former key was sealed under another AUTH_TOKEN_SECRET "+
					"than the new one: servers that do not have that of these settings sign no tokens now; "+
					"give it to them, or revoke the new key with theirs")
			}
			return g.printRevoked(a, k, successor, "is revoked")
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if tokens of the key can be live")
	sure.add(cmd)
	return cmd
}

func (g *global) printRevoked(a *app, k, successor auth.KeyInfo, what string) error {
	report, line := map[string]auth.KeyInfo{"revoked": k}, k.KID+" "+what
	if successor.KID != "" {
		report["successor"] = successor
		line += "; " + successor.KID + " signs now"
	}
	return g.tell(a.cmd.OutOrStdout(), report, line)
}
