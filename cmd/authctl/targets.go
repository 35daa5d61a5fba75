package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// logTarget is what --target calls the target of the settings: Kafka or the file.
const logTarget = "log"

// chosenTarget is the flag --target: a target besides the log, or the log.
type chosenTarget struct{ name string }

func (c *chosenTarget) add(cmd *cobra.Command, value, usage string) {
	cmd.Flags().StringVar(&c.name, "target", value, usage)
}

func (c *chosenTarget) isLog() bool { return c.name == logTarget }

// find returns the target, or nil for the log.
func (c *chosenTarget) find(ctx context.Context, a *app) (*outbox.Subscription, error) {
	if c.isLog() {
		return nil, nil
	}
	s, err := outbox.FindSubscription(ctx, a.db, c.name)
	if errors.Is(err, outbox.ErrNoTarget) {
		err = unknownTarget(c.name)
	}
	return &s, err
}

func unknownTarget(name string) error {
	if name == logTarget {
		return errors.New("the log, which is Kafka or the file, cannot be paused, removed or tested like a webhook; " +
			"to publish nothing for a while, stop the relays: events wait")
	}
	return fmt.Errorf("there is no target %q; see: authctl outbox target list", name)
}

// deliveries lists the targets besides the log with what waits for them. Where grants.sql has not been
// run since the tables came, there is nothing to show.
func (a *app) deliveries(ctx context.Context) ([]outbox.DeliveryState, error) {
	list, err := outbox.Deliveries(ctx, a.db)
	if database.IsForbidden(err) {
		return nil, nil
	}
	return list, err
}

// noteWaits says why a target gets nothing yet of what was just put back for it.
func (a *app) noteWaits(ctx context.Context, name string) error {
	w := a.cmd.ErrOrStderr()
	if name == logTarget {
		relays, err := outbox.LivingRelays(ctx, a.db)
		if err == nil && len(relays) == 0 {
			fmt.Fprintln(w, "no relay runs: what waits is sent once authctl relay does, or authctl serve with "+
				"OUTBOX_RELAY=inline")
		}
		return err
	}
	s, err := outbox.FindSubscription(ctx, a.db, name)
	if err != nil {
		return err
	}
	if !s.Active() {
		fmt.Fprintf(w, "%s is paused: its events wait until: authctl outbox target resume %s\n", name, name)
	}
	n, err := outbox.Deliverers(ctx, a.db, s)
	if err == nil && n == 0 {
		fmt.Fprintf(w, "no process delivers to %s: its events wait; %s\n", name, deliverAdvice(s.Kind))
	}
	return err
}

func deliverAdvice(kind string) string {
	has := "AUTH_TOKEN_SECRET"
	if kind == outbox.KindMail {
		has = "MAIL_URL, MAIL_FROM and " + has
	}
	return "it needs a process that relays and has " + has + ": authctl relay, or authctl serve with " +
		"OUTBOX_RELAY=inline"
}

// maybeDone adds to the error of a change that may have been made what to do, where running the command again is
// not enough.
func maybeDone(err error, look string) error {
	if !database.IsUncertain(err) {
		return err
	}
	return advised{fmt.Errorf("%w; it may or may not have been done: %s", err, look)}
}

func waits(n int64) string {
	if n == 0 {
		return "nothing waits"
	}
	return count(int(n), "event waits", "events wait")
}

// startRelay is what to do where nobody relays.
const startRelay = "start authctl relay, or authctl serve with OUTBOX_RELAY=inline"

func describeDelivery(t outbox.DeliveryState) string {
	waiting := waits(t.Waiting)
	if t.Waiting > 0 && t.OldestAge > 0 {
		waiting += " for up to " + t.OldestAge.Round(time.Millisecond).String()
	}
	parts := []string{t.State, waiting}
	if t.HeldKeys > 0 {
		parts = append(parts, count(int(t.HeldKeys), "key is", "keys are")+" tried again: "+t.LastError)
	}
	if t.ParkedKeys > 0 {
		parts = append(parts, count(int(t.ParkedKeys), "key is", "keys are")+
			" parked; see: authctl outbox parked list --target "+t.Name)
	}
	if t.Reason != "" && !t.Active() {
		parts = append(parts, "paused because "+t.Reason)
	}
	if t.Waiting > 0 && t.Active() && t.Deliverers == 0 {
		parts = append(parts, "nobody delivers: "+deliverAdvice(t.Kind))
	}
	return strings.Join(parts, ", ")
}

func describeWants(s outbox.Subscription) string {
	text := "what is for it alone"
	if len(s.Types) > 0 {
		text = strings.Join(s.Types, ", ")
	}
	if s.URL != "" {
		text += " to " + s.URL
	}
	return text
}

func (g *global) showDelivery(ctx context.Context, a *app, name string) error {
	list, err := outbox.Deliveries(ctx, a.db)
	if err != nil {
		return err
	}
	for _, t := range list {
		if t.Name != name {
			continue
		}
		rows := [][]string{
			{"target", t.Name}, {"kind", t.Kind}, {"state", t.State + " since " + moment(t.Since)},
			{"types", cmp.Or(strings.Join(t.Types, ", "), "-")},
		}
		if t.URL != "" {
			rows = append(rows, []string{"url", t.URL})
		}
		return g.pairs(a.cmd.OutOrStdout(), t, append(rows, []string{"waiting", describeDelivery(t)}))
	}
	return unknownTarget(name)
}

// onTarget makes what cobra runs for a command on a target besides the log.
func (g *global) onTarget(do func(ctx context.Context, a *app, name string) error) runE {
	return g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, args []string) error {
		err := do(ctx, a, args[0])
		if errors.Is(err, outbox.ErrNoTarget) {
			return unknownTarget(args[0])
		}
		return err
	})
}

func newTargetPause(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME",
		Short: "Send nothing to a target; its events wait",
		Long: `Send nothing to a target until authctl outbox target resume. Its events wait, and are kept as
long as it is paused, also past OUTBOX_RETENTION. Attempts under way end. Those who deliver
notice within two seconds.`,
		Example: "  authctl outbox target pause mail",
		Args:    oneArgument,
		RunE: g.onTarget(func(ctx context.Context, a *app, name string) error {
			changed, err := outbox.PauseTarget(ctx, a.db, name, "an operator paused it")
			if err != nil {
				return err
			}
			if changed {
				a.security.Info("target_paused", zap.String("target", name))
			}
			return g.tell(a.cmd.OutOrStdout(), map[string]any{"name": name, "state": "paused"},
				"nothing is sent to "+name+" until it is resumed; its events wait")
		}),
	}
}

func newTargetResume(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "Send to a paused target again",
		Long: `Send to a paused target again, in order, beginning with what waits. Keys whose events failed
before are tried at once.`,
		Example: "  authctl outbox target resume mail",
		Args:    oneArgument,
		RunE: g.onTarget(func(ctx context.Context, a *app, name string) error {
			changed, err := outbox.ResumeTarget(ctx, a.db, name)
			if err != nil {
				return err
			}
			if changed {
				a.security.Info("target_resumed", zap.String("target", name))
			}
			if err := g.tell(a.cmd.OutOrStdout(), map[string]any{"name": name, "state": "active"},
				"events are sent to "+name+" again"); err != nil {
				return err
			}
			return a.noteWaits(ctx, name)
		}),
	}
}

func newTargetRemove(g *global) *cobra.Command {
	var agreed consent
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a webhook and what waits for it",
		Long: `Remove a webhook and what waits for it. The events themselves stay: other targets get them, and
authctl outbox replay can send them to a new webhook until OUTBOX_RETENTION is over.`,
		Example: "  authctl outbox target list -o json | jq -r '.[] | select(.kind == \"webhook\").name' | " +
			"xargs -rn1 authctl outbox target remove --yes",
		Args: oneArgument,
		RunE: g.onTarget(func(ctx context.Context, a *app, name string) error {
			s, err := outbox.FindSubscription(ctx, a.db, name)
			if err != nil {
				return err
			}
			if s.Kind != outbox.KindWebhook {
				return fmt.Errorf("%w: authctl outbox target pause %s", outbox.ErrBuiltIn, s.Name)
			}
			if err := agreed.ask(a.cmd, "events that wait for "+name+" will not be sent to it"); err != nil {
				return err
			}
			return g.removeTarget(ctx, a, name)
		}),
	}
	agreed.add(cmd)
	return cmd
}

func (g *global) removeTarget(ctx context.Context, a *app, name string) error {
	res, err := outbox.RemoveTarget(ctx, a.db, name, 10*time.Second)
	if res.State == "removed" {
		a.security.Warn("target_removed", zap.String("target", name), zap.Int64("events", res.Deleted))
	}
	if err != nil && res.State == "removed" {
		return advised{err} // it says who does the rest
	}
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s is removed, and %s that waited for it", name, count(int(res.Deleted), "event", "events"))
	if res.Left {
		text += "; a transaction from before is still open, and relays delete what it adds"
	}
	return g.tell(a.cmd.OutOrStdout(), res, text)
}

// listParked lists the parked keys of the log and of the other targets, or of one.
func (c *chosenTarget) listParked(ctx context.Context, a *app, all bool) ([]outbox.ParkedKey, error) {
	list := []outbox.ParkedKey{} // none is [] and not null
	if c.name == "" || c.isLog() {
		parked, err := outbox.Parked(ctx, a.db)
		if err != nil {
			return nil, err
		}
		list = append(list, parked...)
	}
	if c.isLog() {
		return list, nil
	}
	targets, err := outbox.Subscriptions(ctx, a.db)
	if database.IsForbidden(err) && c.name == "" {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	found := c.name == ""
	for _, s := range targets {
		if c.name != "" && c.name != s.Name {
			continue
		}
		found = true
		held, err := outbox.HeldKeys(ctx, a.db, s, all)
		if err != nil {
			return nil, err
		}
		list = append(list, held...)
	}
	if !found {
		return nil, unknownTarget(c.name)
	}
	return list, nil
}

func whenAgain(k outbox.ParkedKey) string {
	if k.NextAt.IsZero() { // at once, or when its target is resumed
		return "as soon as that is possible"
	}
	return "at " + moment(k.NextAt)
}

// retryAll has the events of all parked keys of a target sent.
func (g *global) retryAll(ctx context.Context, a *app, s outbox.Subscription) error {
	keys, err := outbox.RetryAllHeld(ctx, a.db, s)
	if keys > 0 {
		a.security.Info("parked_events_retried", zap.String("target", s.Name), zap.Int64("keys", keys))
	}
	if err != nil && keys > 0 {
		return advised{fmt.Errorf("the events of %s are sent to %s again, and then: %w; run it again for the others",
			count(int(keys), "parked key", "parked keys"), s.Name, err)}
	}
	if err != nil {
		return err
	}
	line := fmt.Sprintf("the events of %s are sent to %s again", count(int(keys), "parked key", "parked keys"), s.Name)
	if keys == 0 {
		line = "no key is parked for " + s.Name + ", and nothing was done"
	}
	err = g.tell(a.cmd.OutOrStdout(), map[string]any{"target": s.Name, "keys": keys}, line)
	if err != nil || keys == 0 {
		return err
	}
	return a.noteWaits(ctx, s.Name)
}
