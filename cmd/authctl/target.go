package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/sink"
)

func newOutboxTarget(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "target",
		Short: "Show and change where events go",
		Long: `Show and change where events go: to the log, which is Kafka or a file, and to further targets
such as webhooks. None of them waits for another.

The first relay of a database records its target there: the Kafka cluster and topic, or the
file. From then on relays with settings for another target are refused, because their events
would be missing in the right place. Other addresses of the same cluster are the same target.`,
		Example: "  authctl outbox target show",
	}, newTargetShow(g), newTargetList(g), newTargetSet(g),
		newTargetPause(g), newTargetResume(g), newTargetRemove(g),
		newTargetAdd(g), newTargetRotateSecret(g), newTargetTest(g))
}

func describeTarget(t *outbox.Target) string {
	if t == nil {
		return "none yet: the first relay records its own"
	}
	text := t.Name
	if t.Partitions > 0 {
		text += ", " + count(t.Partitions, "partition", "partitions")
	} else {
		text += ", not reached yet"
	}
	if t.Identity != "" {
		text += ", " + describeIdentity(*t)
	}
	return text
}

func describeIdentity(t outbox.Target) string {
	if t.OnKafka() {
		return "cluster " + t.Identity
	}
	return t.Identity
}

func newTargetShow(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show the target of the log, or another one",
		Long: `Show the target of the log, which is Kafka or a file, or of the given name a target besides it, with
what waits for it.`,
		Example: `  authctl outbox target show
  authctl outbox target show mail`,
		Args: oneArgumentOrNone,
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, args []string) error {
			if len(args) == 1 && args[0] != logTarget {
				return g.showDelivery(ctx, a, args[0])
			}
			list, err := outbox.Targets(ctx, a.db)
			if err != nil {
				return err
			}
			t := outbox.State{Targets: list}.Target()
			if t == nil {
				return errors.New("the outbox has no target yet: the first relay records its own; " +
					"or name it now with: authctl outbox target set")
			}
			rows := [][]string{{"target", t.Name}, {"partitions", "not reached yet"}, {"since", moment(t.Since)}}
			if t.Partitions > 0 {
				rows[1][1] = fmt.Sprint(t.Partitions)
			}
			if t.Identity != "" {
				rows = append(rows, []string{"identity", describeIdentity(*t)})
			}
			return g.pairs(a.cmd.OutOrStdout(), t, rows)
		}),
	}
}

func newTargetList(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List all targets, including former ones of the log",
		Example: "  authctl outbox target list",
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := outbox.Targets(ctx, a.db)
			if err != nil {
				return err
			}
			others, err := outbox.Subscriptions(ctx, a.db)
			if err != nil {
				return err
			}
			w := a.cmd.OutOrStdout()
			if g.output == "json" {
				all := []any{}
				for _, t := range list {
					kind, _, _ := strings.Cut(t.Name, ":") // kafka or file
					all = append(all, struct {
						Kind string `json:"kind"`
						outbox.Target
					}{kind, t})
				}
				for _, s := range others {
					all = append(all, s)
				}
				return printJSON(w, all)
			}
			if len(list) == 0 {
				fmt.Fprintln(w, "the outbox has no target yet for the log: the first relay records its own")
			}
			var rows [][]string
			for _, t := range list {
				partitions, identity := "-", "-"
				if t.Partitions > 0 {
					partitions = fmt.Sprint(t.Partitions)
				}
				if t.Identity != "" {
					identity = describeIdentity(t)
				}
				rows = append(rows, []string{t.Name, t.State, partitions, moment(t.Since), identity})
			}
			for _, s := range others {
				rows = append(rows, []string{s.Name, s.State, "-", moment(s.Since), describeWants(s)})
			}
			return printTable(w, []string{"TARGET", "STATE", "PARTITIONS", "SINCE", "DETAILS"}, rows)
		}),
	}
}

func newTargetSet(g *global) *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Publish to the target of these settings from now on",
		Long: `Make the outbox publish to the target of these settings (KAFKA_BROKERS and KAFKA_TOPIC, or else the
file in APP_DATA_DIR) from now on. Waiting events go there. Published events are not sent there
again; authctl outbox replay does that.

It is refused while relays run: stop them, change the target, and start them with the new
settings. Without --yes it says what would happen, changes nothing and exits with 2.`,
		Example: `  KAFKA_BROKERS=localhost:9092 authctl outbox target set --yes`,
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			return g.setTarget(ctx, a, yes)
		}),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "publish there")
	return cmd
}

func (g *global) setTarget(ctx context.Context, a *app, yes bool) error {
	to, err := a.askTarget(ctx)
	if err != nil {
		return err
	}
	change, err := outbox.PlanTarget(ctx, a.db, to, a.Outbox.Shards)
	if err == nil && yes && change.Changed {
		if err = a.makeTarget(); err == nil {
			change, err = outbox.SetTarget(ctx, a.db, to, a.Outbox.Shards)
		}
	}
	if err != nil {
		return err
	}
	if err := g.printTargetChange(a.cmd.OutOrStdout(), change, yes); err != nil {
		return err
	}
	if change.Changed && !yes {
		return misuse{errors.New("nothing is changed yet: say --yes if you mean it")}
	}
	return nil
}

// askTarget asks what the settings name for all that the outbox keeps of a target.
func (a *app) askTarget(ctx context.Context) (t outbox.Target, err error) {
	var identity *string
	if t.Name, identity, err = a.target(); err != nil {
		return t, err
	}
	if identity != nil {
		t.Identity, t.Partitions = *identity, 1
		return t, nil
	}
	err = a.withKafka(ctx, func(ctx context.Context, kafka *sink.Kafka) (err error) {
		if t.Identity, err = kafka.Identity(ctx); err == nil {
			t.Partitions, err = kafka.Partitions(ctx)
		}
		return askedKafka(err)
	})
	return t, err
}

// makeTarget makes a file that is to be the target, or says now that it cannot be.
func (a *app) makeTarget() error {
	if a.Kafka.UsesKafka() {
		return nil
	}
	to, err := a.openSink()
	if err != nil {
		return err
	}
	return to.Close()
}

func (g *global) printTargetChange(w io.Writer, c outbox.TargetChange, done bool) error {
	report := struct {
		outbox.TargetChange
		DryRun bool `json:"dry_run"`
	}{c, !done}
	if !c.Changed {
		return g.tell(w, report, fmt.Sprintf("the outbox publishes to %s already", c.To))
	}
	text := ""
	if c.From != nil && !done {
		text += fmt.Sprintf("the outbox publishes to %s\n", c.From)
	}
	verb, goes := "publishes", "goes"
	if c.Waiting != 1 {
		goes = "go"
	}
	if !done {
		verb = "would publish"
	}
	text += fmt.Sprintf("the outbox %s to %s from now on\n", verb, c.To)
	text += fmt.Sprintf("  %s %s there\n", count(int(c.Waiting), "event that waits", "events that wait"), goes)
	text += "  events that were published before are not sent there; authctl outbox replay does that"
	if c.Parked > 0 {
		text += fmt.Sprintf("\n  %s parked; see: authctl outbox parked list",
			count(int(c.Parked), "key stays", "keys stay"))
	}
	if done {
		text += "\nstart the relays with these settings"
	}
	return g.tell(w, report, text)
}
