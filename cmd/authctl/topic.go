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

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
)

func newOutboxTopic(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "topic",
		Short: "Create and check the Kafka topic of the events",
		Long: `Create and check the Kafka topic in KAFKA_TOPIC. The order of a user's events depends on the number
of its partitions, so choose it once.`,
		Example: "  KAFKA_BROKERS=localhost:9092 authctl outbox topic ensure",
	}, newTopicEnsure(g), newTopicCheck(g))
}

// onTopic makes what cobra runs for a command on the topic. It opens no database.
func (g *global) onTopic(do func(ctx context.Context, a *app, kafka *sink.Kafka) error) runE {
	nothing := func(*app, context.Context) error { return nil }
	return g.onDatabase(nothing, func(ctx context.Context, a *app, _ []string) error {
		if !a.Kafka.UsesKafka() {
			return fmt.Errorf("no Kafka is named, so events go to %s: set KAFKA_BROKERS", a.eventsFile())
		}
		return a.withKafka(ctx, func(ctx context.Context, kafka *sink.Kafka) error { return do(ctx, a, kafka) })
	})
}

// withKafka opens Kafka for half a minute. It adds to an error of reaching Kafka what was asked, and what to do.
func (a *app) withKafka(ctx context.Context, do func(ctx context.Context, kafka *sink.Kafka) error) (err error) {
	kafka, err := a.openKafka()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = do(ctx, kafka)
	if away, ok := errors.AsType[kafkaAway](err); ok {
		advice, found := away.words()
		return fmt.Errorf("ask Kafka at %s about the topic %q: %w; %s", strings.Join(a.Kafka.Brokers, ","),
			a.Kafka.Topic, found, advice)
	}
	return err
}

// kafkaAway is an error of reaching Kafka that does not say what to do.
type kafkaAway struct{ error }

func (e kafkaAway) Unwrap() error { return e.error }

// words are what to do, and the error.
func (e kafkaAway) words() (advice string, found error) {
	if errors.Is(e.error, context.DeadlineExceeded) {
		return "check whether they hang, and whether a firewall drops the packets, or name other brokers with " +
			"KAFKA_BROKERS", errors.New("no broker has answered in time")
	}
	return "start it, or name other brokers with KAFKA_BROKERS", e.error
}

func askedKafka(err error) error {
	if _, says := errors.AsType[*relay.Stalled](err); err == nil || says {
		return err
	}
	return kafkaAway{err}
}

func newTopicEnsure(g *global) *cobra.Command {
	accept := 0
	cmd := &cobra.Command{
		Use:   "ensure",
		Short: "Create the topic if it does not exist, and check it",
		Long: `Create the topic if it does not exist, with KAFKA_PARTITIONS partitions, and check it. An
existing topic is never changed.

A relay stops when the number of partitions has changed, since the keys of events would move
between them and new events could overtake old ones. Once consumers have read everything
that was published so far, --accept-partitions N makes relays use the new number.

The exit code is 1 when nothing can be published to the topic; other problems are
only listed.`,
		Example: "  KAFKA_BROKERS=localhost:9092 authctl outbox topic ensure",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("accept-partitions") && accept < 1 {
				return misuse{errors.New("--accept-partitions takes how many partitions the topic has now")}
			}
			return nil
		},
		RunE: g.onTopic(func(ctx context.Context, a *app, kafka *sink.Kafka) error {
			if accept > 0 {
				if err := a.openExistingDatabase(ctx); err != nil {
					return err
				}
			}
			st, err := a.ensureTopic(ctx, kafka)
			if err != nil {
				return askedKafka(err)
			}
			st.Problems = a.topicProblems(st)
			if accept > 0 {
				if st.Partitions != accept {
					return fmt.Errorf("the topic %s has %s and not %d: nothing is accepted",
						st.Topic, count(st.Partitions, "partition", "partitions"), accept)
				}
				identity, err := kafka.Identity(ctx)
				if err != nil {
					return askedKafka(err)
				}
				if err := outbox.AcceptPartitions(ctx, a.db, kafka.Name(), &identity, accept); err != nil {
					return err
				}
			}
			if err := g.printTopic(a.cmd.OutOrStdout(), st); err != nil {
				return err
			}
			if accept > 0 {
				fmt.Fprintf(a.cmd.ErrOrStderr(), "the order of users' events goes by %s from now on\n",
					count(accept, "partition", "partitions"))
			}
			if slices.ContainsFunc(st.Problems, func(p sink.Problem) bool { return p.Blocks }) {
				return silent{errors.New("nothing can be published to the topic")}
			}
			return nil
		}),
	}
	cmd.Flags().IntVar(&accept, "accept-partitions", 0, "use this number of partitions from now on")
	return cmd
}

func newTopicCheck(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		Short:   "Report what is wrong with the topic; the exit code is 1 if anything is",
		Example: "  KAFKA_BROKERS=localhost:9092 authctl outbox topic check",
		RunE: g.onTopic(func(ctx context.Context, a *app, kafka *sink.Kafka) error {
			st, err := kafka.CheckTopic(ctx)
			if err != nil {
				return askedKafka(err)
			}
			st.Problems = a.topicProblems(st)
			if err := g.printTopic(a.cmd.OutOrStdout(), st); err != nil {
				return err
			}
			if len(st.Problems) > 0 {
				return silent{errors.New("the topic does not fit")}
			}
			return nil
		}),
	}
}

// ensureTopic creates the topic if it does not exist, but not one that the number of shards would not fit:
// Kafka never lowers a number of partitions.
func (a *app) ensureTopic(ctx context.Context, kafka *sink.Kafka) (sink.TopicState, error) {
	st, err := kafka.CheckTopic(ctx)
	if stalled, ok := errors.AsType[*relay.Stalled](err); !ok || stalled.Kind != "topic" {
		return st, err
	}
	if shards, partitions := a.Outbox.Shards, a.Kafka.Partitions; shards%partitions != 0 {
		return st, &relay.Stalled{Kind: "shards",
			Err: fmt.Errorf("the topic %q does not exist, and is not created with the %d partitions of "+
				"kafka.partitions: outbox.shards is %d, which is not a multiple of that. Set OUTBOX_SHARDS=%d, or "+
				"KAFKA_PARTITIONS to a divisor of %d", a.Kafka.Topic, partitions, shards,
				(shards/partitions+1)*partitions, shards)}
	}
	return kafka.EnsureTopic(ctx)
}

// topicProblems are the problems of the topic and of settings that do not fit it.
func (a *app) topicProblems(st sink.TopicState) []sink.Problem {
	list := st.Problems
	if st.Partitions > 0 && a.Outbox.Shards%st.Partitions != 0 {
		list = append(list, sink.Problem{
			Found: fmt.Sprintf("it has %d partitions, and outbox.shards (%d) is not a multiple of that",
				st.Partitions, a.Outbox.Shards),
			Advice: fmt.Sprintf("set OUTBOX_SHARDS=%d", (a.Outbox.Shards/st.Partitions+1)*st.Partitions),
			Blocks: true,
		})
	}
	if st.MaxMessageBytes > 0 && st.MaxMessageBytes < relay.MaxBatchBytes {
		list = append(list, sink.Problem{
			Found: fmt.Sprintf("max.message.bytes is %d, less than a full batch (%d): "+
				"such batches are refused and sent in halves", st.MaxMessageBytes, relay.MaxBatchBytes),
			Advice: fmt.Sprintf("raise it to %d or more", relay.MaxBatchBytes),
		})
	}
	return list
}

func (g *global) printTopic(w io.Writer, st sink.TopicState) error {
	kept := "forever"
	if st.RetentionMS >= 0 {
		kept = (time.Duration(st.RetentionMS) * time.Millisecond).String()
	}
	state := "there"
	if st.Created {
		state = "made"
	}
	rows := [][]string{
		{"topic", st.Topic + " (" + state + ")"}, {"partitions", fmt.Sprint(st.Partitions)},
		{"replicas", fmt.Sprintf("%d, %d in sync to write", st.ReplicationFactor, st.MinInSync)},
		{"largest batch", fmt.Sprintf("%d bytes", st.MaxMessageBytes)}, {"cleanup", st.CleanupPolicy}, {"kept", kept},
	}
	for _, problem := range st.Problems {
		rows = append(rows, []string{"problem", problem.String()})
	}
	return g.pairs(w, st, rows)
}
