package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/tuning"
)

func newRelay(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "relay",
		Short: "Run only the relay, which publishes events",
		Long: `Run only the relay: it reads events from the database and publishes them to Kafka, or to
./data/events.ndjson if no Kafka is named, and to the webhooks of authctl outbox target.

Run as many of these processes as you like, on any machines, also together with servers that
relay. They divide the work, and when one dies the others take over its share within seconds.
Events of one user stay in order. When Kafka or the database is away, relays keep running and
events wait.

All of them publish to one target, which the first one records in the database. A relay with
settings for another target is refused: see authctl outbox target.

It needs the database and Kafka, and for webhooks and mails the signing secret, but no Redis. On SIGTERM or Ctrl-C
it finishes the batches in flight, releases its leases and stops.`,
		Example: `  authctl relay
  DATABASE_URL=postgres://auth@localhost/auth KAFKA_BROKERS=localhost:9092 authctl relay`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.relay(cmd.Context(), cmd.ErrOrStderr())
		},
	}
}

func (g *global) relay(ctx context.Context, stderr io.Writer) error {
	load := func() (settings, error) { return g.load(settings{keyless: true}, nil) }
	return untilStopped(ctx, stderr, load, func(a *app) error { return a.relay(ctx, stderr) })
}

// relay runs the relay and the deliverer until ctx ends or one fails.
func (a *app) relay(ctx context.Context, stderr io.Writer) error {
	if err := a.openDatabase(ctx); err != nil {
		return err
	}
	if err := a.checkFence(ctx); err != nil {
		return err
	}
	a.openWaker() // new events wake the relay and the deliverer
	r, err := a.newRelay(ctx)
	if err != nil {
		return err
	}
	deliverer, err := a.newDeliverer(ctx)
	if err != nil {
		return err
	}

	// The operators' listener answers until the relay has finished.
	running, front := errgroup.WithContext(ctx)
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	readiness := telemetry.NewReadiness(a.databaseCheck())
	operator, err := a.startOperator(behind, running, readiness, func() bool { return front.Err() != nil })
	if err != nil {
		return err
	}
	running.Go(func() error {
		defer stopBehind()
		both, until := errgroup.WithContext(front)
		both.Go(func() error { return a.runRelay(front, r) })
		both.Go(func() error { return deliverer.Run(until) })
		return both.Wait()
	})
	a.greetRelay(stderr, operator)
	tuning.ForgetStart()
	running.Go(func() error { a.notifyWhile(front); return nil })
	if err := running.Wait(); err != nil {
		return err
	}
	a.log.Info("stopped")
	return nil
}

func (a *app) greetRelay(w io.Writer, operator string) {
	a.started = true
	a.log.Info("relaying", zap.String("to", a.describeEvents()), zap.String("operator_addr", operator),
		zap.String("version", version()))
	a.logRemarks()
	a.warnLocalEvents()
	if !a.App.prod() {
		printStart(w, "relaying", operator, [][]string{{"  Database", a.Database.Describe(a.App.DataDir)},
			{"  Events", a.describeEvents()}, {"  Mail", a.describeMail()}})
	}
}

// relayInline runs the relay inside serve. What ends it is for a person to resolve, and no
// reason to stop signing people in: events wait in the database meanwhile.
func (a *app) relayInline(ctx context.Context, r *relay.Relay) {
	err := a.runRelay(ctx, r)
	if err == nil {
		return
	}
	a.relayEnd.Store(&err)
	a.log.Error("relay_ended", zap.Error(err),
		zap.String("hint", "sign-in goes on and events wait in the database; do what the error says, then "+
			"restart this process"))
	r.Observe(ctx)
}

// runRelay runs the relay. In dev mode it makes the topic first, so that naming a broker is
// enough; in prod mode that takes rights which a relay need not have.
func (a *app) runRelay(ctx context.Context, r *relay.Relay) error {
	if a.Kafka.UsesKafka() && !a.App.prod() {
		if err := a.makeTopic(ctx); err != nil && ctx.Err() == nil {
			advice := "authctl outbox topic ensure shows more"
			if away, ok := errors.AsType[kafkaAway](err); ok {
				advice, err = away.words()
			}
			a.log.Warn("topic_not_made", zap.Error(err), zap.String("hint", advice))
		}
	}
	return r.Run(ctx)
}

func (a *app) makeTopic(ctx context.Context) (err error) {
	kafka, err := sink.OpenKafka(a.Kafka, sink.KafkaOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	identity, err := kafka.Identity(ctx)
	if err != nil {
		return askedKafka(err)
	}
	if err := outbox.CheckTarget(ctx, a.db, kafka.Name(), &identity); err != nil {
		return err
	}
	st, err := a.ensureTopic(ctx, kafka)
	if err == nil && st.Created {
		a.log.Info("topic_made", zap.String("topic", st.Topic), zap.Int("partitions", st.Partitions))
	}
	return askedKafka(err)
}
