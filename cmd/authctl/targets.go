package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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

// find returns the target, which is not the log.
func (c *chosenTarget) find(ctx context.Context, a *app) (outbox.Subscription, error) {
	s, err := outbox.FindSubscription(ctx, a.db, c.name)
	if errors.Is(err, outbox.ErrNoTarget) {
		return s, unknownTarget(c.name)
	}
	return s, err
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
func (a *app) noteWaits(ctx context.Context, w io.Writer, name string) error {
	if name == logTarget {
		return a.noteNoRelay(ctx, w)
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

// deliverAdvice says what to do when no process delivers to targets of a kind.
func deliverAdvice(kind string) string {
	if kind == outbox.KindMail {
		return "set MAIL_URL and MAIL_FROM, and AUTH_TOKEN_SECRET, for a process that relays: authctl relay, or " +
			"authctl serve with OUTBOX_RELAY=inline"
	}
	return "give AUTH_TOKEN_SECRET to a process that relays: authctl relay, or authctl serve with OUTBOX_RELAY=inline"
}

// maybeDone adds to the error of a change that may have been made what to do, where running the command again is
// not enough.
func maybeDone(err error, look string) error {
	if !database.IsUncertain(err) {
		return err
	}
	return advised{fmt.Errorf("%w; it may or may not have been done: %s", err, look)}
}

// describeDelivery says on one line what waits for a target.
func describeDelivery(t outbox.DeliveryState) string {
	parts := []string{t.State}
	if t.Waiting == 0 {
		parts = append(parts, "nothing waits")
	} else {
		text := count(int(t.Waiting), "event waits", "events wait")
		if t.OldestAge > 0 {
			text += " for up to " + t.OldestAge.Round(time.Millisecond).String()
		}
		parts = append(parts, text)
	}
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
		parts = append(parts, "nobody delivers: start authctl relay, or authctl serve with OUTBOX_RELAY=inline, with "+
			"the signing secret")
	}
	return strings.Join(parts, ", ")
}

// describeWants says which events go where.
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

// logReport is the log's target in a list of all.
type logReport struct {
	Kind string `json:"kind"` // kafka or file
	outbox.Target
}

func reportLog(t outbox.Target) logReport {
	kind, _, _ := strings.Cut(t.Name, ":")
	return logReport{Kind: kind, Target: t}
}

func (g *global) showDelivery(ctx context.Context, a *app, w io.Writer, name string) error {
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
			{"types", orDash(strings.Join(t.Types, ", "))},
		}
		if t.URL != "" {
			rows = append(rows, []string{"url", t.URL})
		}
		return g.pairs(w, t, append(rows, []string{"waiting", describeDelivery(t)}))
	}
	return unknownTarget(name)
}

// onTarget runs a command on a target besides the log.
func (g *global) onTarget(cmd *cobra.Command, name string, do func(ctx context.Context, a *app) error) error {
	return g.withDatabase(cmd, (*app).openExistingDatabase, func(ctx context.Context, a *app) error {
		err := do(ctx, a)
		if errors.Is(err, outbox.ErrNoTarget) {
			return unknownTarget(name)
		}
		return err
	})
}

func (g *global) printTarget(w io.Writer, name, state, text string) error {
	return g.tell(w, map[string]any{"name": name, "state": state}, text)
}

func newTargetPause(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME",
		Short: "Send nothing to a target; its events wait",
		Long: `Send nothing to a target until authctl outbox target resume. Its events wait, and are kept as
long as it is paused, also past OUTBOX_RETENTION. Attempts under way end.`,
		Example: "  authctl outbox target pause mail",
		Args:    oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onTarget(cmd, args[0], func(ctx context.Context, a *app) error {
				if err := outbox.PauseTarget(ctx, a.db, args[0], "an operator paused it"); err != nil {
					return err
				}
				a.security.Info("target_paused", zap.String("target", args[0]))
				return g.printTarget(cmd.OutOrStdout(), args[0], "paused", "nothing is sent to "+args[0]+
					" until it is resumed; its events wait")
			})
		},
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
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onTarget(cmd, args[0], func(ctx context.Context, a *app) error {
				if err := outbox.ResumeTarget(ctx, a.db, args[0]); err != nil {
					return err
				}
				a.security.Info("target_resumed", zap.String("target", args[0]))
				err := g.printTarget(cmd.OutOrStdout(), args[0], "active", "events are sent to "+args[0]+" again")
				if err != nil {
					return err
				}
				return a.noteWaits(ctx, cmd.ErrOrStderr(), args[0])
			})
		},
	}
}

func newTargetRemove(g *global) *cobra.Command {
	var agreed consent
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a webhook and what waits for it",
		Long: `Remove a webhook and what waits for it. The events themselves stay: other targets get them, and
authctl outbox replay can send them to a new webhook until OUTBOX_RETENTION is over.`,
		Example: "  authctl outbox target list -o json | jq -r '.[] | select(.kind == \"webhook\").name' | xargs -n1 " +
			"authctl outbox target remove --yes",
		Args: oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.onTarget(cmd, args[0], func(ctx context.Context, a *app) error {
				s, err := outbox.FindSubscription(ctx, a.db, args[0])
				if err != nil {
					return err
				}
				if s.Kind != outbox.KindWebhook {
					return fmt.Errorf("%w: authctl outbox target pause %s", outbox.ErrBuiltIn, s.Name)
				}
				if err := agreed.ask(cmd, fmt.Sprintf("events that wait for %s will not be sent to it",
					s.Name)); err != nil {
					return err
				}
				return g.removeTarget(ctx, a, cmd.OutOrStdout(), s.Name)
			})
		},
	}
	agreed.add(cmd)
	return cmd
}

func (g *global) removeTarget(ctx context.Context, a *app, w io.Writer, name string) error {
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
	return g.tell(w, res, text)
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

// parkedRow is a parked key in a table.
func parkedRow(k outbox.ParkedKey) []string {
	since := moment(k.ParkedAt)
	if k.ParkedAt.IsZero() {
		since = "tried again " + whenAgain(k)
	}
	return []string{k.Key, cmp.Or(k.Target, logTarget), fmt.Sprint(k.Events), fmt.Sprint(k.ID), k.Type, since, k.Error}
}

// whenAgain says when a held key is tried again.
func whenAgain(k outbox.ParkedKey) string {
	if k.NextAt.IsZero() { // at once, or when its target is resumed
		return "as soon as that is possible"
	}
	return "at " + moment(k.NextAt)
}

// events returns what waits with a parked key.
func (c *chosenTarget) events(ctx context.Context, a *app, key string) ([]outbox.Record, error) {
	if c.isLog() {
		return outbox.ParkedEvents(ctx, a.db, key)
	}
	s, err := c.find(ctx, a)
	if err != nil {
		return nil, err
	}
	return outbox.HeldEvents(ctx, a.db, s, key)
}

// retry has the events of a parked key sent.
func (c *chosenTarget) retry(ctx context.Context, a *app, key string) (int64, error) {
	if c.isLog() {
		return outbox.RetryParked(ctx, a.db, key)
	}
	s, err := c.find(ctx, a)
	if err != nil {
		return 0, err
	}
	return outbox.RetryHeld(ctx, a.db, s, key)
}

// discard gives up the refused event of a parked key, or only the one of that id, and has the others sent.
func (c *chosenTarget) discard(ctx context.Context, a *app, key string, event int64) (int64, error) {
	if c.isLog() {
		return outbox.DiscardParked(ctx, a.db, key, event)
	}
	s, err := c.find(ctx, a)
	if err != nil {
		return 0, err
	}
	return outbox.DiscardHeld(ctx, a.db, s, key, event)
}

// retryAll has the events of all parked keys of a target sent.
func (c *chosenTarget) retryAll(ctx context.Context, g *global, a *app, w, stderr io.Writer) error {
	s, err := c.find(ctx, a)
	if err != nil {
		return err
	}
	keys, err := outbox.RetryAllHeld(ctx, a.db, s)
	if keys > 0 {
		a.security.Info("parked_events_retried", zap.String("target", s.Name), zap.Int64("keys", keys))
	}
	if err != nil {
		return err
	}
	line := fmt.Sprintf("the events of %s are sent to %s again", count(int(keys), "parked key", "parked keys"), s.Name)
	if err := g.tell(w, map[string]any{"target": s.Name, "keys": keys}, line); err != nil || keys == 0 {
		return err
	}
	return a.noteWaits(ctx, stderr, s.Name)
}
