package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/webhook"
	"github.com/toppira/authctl/platform/config"
)

// testType is the type of the event of authctl outbox target test. It is in no outbox.
const testType = "auth.Test.v1"

func (a *app) newWebhookSink(seals *webhook.Seals) *webhook.Sink {
	return webhook.New(a.Webhook, webhook.Options{Prod: a.App.prod(), Version: version(), Seals: seals})
}

// webhookSeals needs the secret of the servers. In prod mode they never have the one of a data folder.
func (a *app) webhookSeals() (*webhook.Seals, error) {
	if a.App.prod() && a.Auth.Token.Secret == "" {
		return nil, errNoSecret
	}
	if _, err := a.ensureSecret(false); err != nil {
		return nil, err
	}
	return webhook.NewSeals(a.Auth.Token.Secrets()...)
}

// webhookSink makes the sink for a process that delivers. A process that was not given the secret of the
// service leaves webhooks to others and returns none.
func (a *app) webhookSink(ctx context.Context) delivery.Sink {
	seals, err := a.webhookSeals()
	if err != nil {
		a.noteWebhooksLeft(ctx, err)
		return nil
	}
	if err := a.resealWebhooks(ctx, seals); err != nil {
		a.log.Warn("webhook_secrets_not_sealed_again", zap.Error(err))
	}
	to := a.newWebhookSink(seals)
	a.closers = append(a.closers, to.Close)
	return to
}

func (a *app) noteWebhooksLeft(ctx context.Context, why error) {
	list, err := outbox.Subscriptions(ctx, a.db)
	if err != nil ||
		slices.ContainsFunc(list, func(s outbox.Subscription) bool { return s.Kind == outbox.KindWebhook }) {
		a.log.Warn("webhooks_left_to_others", zap.Error(why), zap.String("hint", "their secrets are sealed under "+
			"AUTH_TOKEN_SECRET: set it here, or run a server with OUTBOX_RELAY=inline"))
	}
}

// resealWebhooks seals the secrets of webhooks under the present secret of the service, so that former
// ones can be taken away.
func (a *app) resealWebhooks(ctx context.Context, seals *webhook.Seals) error {
	list, err := outbox.Subscriptions(ctx, a.db)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.Kind != outbox.KindWebhook {
			continue
		}
		_, changed, failed := seals.Reseal(s, time.Now())
		if failed == nil && changed {
			failed = outbox.ReplaceSecrets(ctx, a.db, s.Name, func(s outbox.Subscription) ([]outbox.Secret, error) {
				secrets, _, err := seals.Reseal(s, time.Now())
				return secrets, err
			})
		}
		if failed == nil && changed {
			a.log.Info("webhook_secret_sealed_again", zap.String("target", s.Name))
		}
		err = errors.Join(err, failed)
	}
	return err
}

func newTargetAdd(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "add",
		Short: "Send events to a further target",
		Long: `Send events to a further target, besides Kafka or the file. Each target gets its events
independently of the others.`,
		Example: "  authctl outbox target add webhook https://example.com/webhooks --types 'auth.Session*'",
	}, newTargetAddWebhook(g))
}

type addWebhookOptions struct {
	*global
	name  string
	types []string
}

func newTargetAddWebhook(g *global) *cobra.Command {
	o := &addWebhookOptions{global: g}
	cmd := &cobra.Command{
		Use:   "webhook URL",
		Short: "Send events to a URL, and print the secret to verify them with",
		Long: `Send events to a URL, and print the secret to verify them with. It is not shown again.

Each event is a POST of a CloudEvent in JSON, signed as Standard Webhooks says. A status from
200 to 299 acknowledges it; 410 pauses the target. Anything else, and no answer in 10 seconds, is
tried again for OUTBOX_WEBHOOK_RETRY_FOR. Events of one user arrive in order.

--types takes patterns of event types, separated by commas; * stands for any text. The webhook gets
the events from now on; authctl outbox replay --target sends earlier ones.

The URL must be https, unless authctl is in dev mode. Requests go to no loopback or private address
unless OUTBOX_WEBHOOK_ALLOW_PRIVATE is set for the servers.`,
		Example: `  authctl outbox target add webhook https://example.com/webhooks --types 'auth.Session*'
  authctl outbox target add webhook https://example.com/all --types '*' --name billing`,
		Args: oneArgument,
		PreRunE: func(*cobra.Command, []string) error {
			for _, pattern := range o.types {
				if err := outbox.CheckPattern(pattern); err != nil {
					return misuse{fmt.Errorf("--types: %w", err)}
				}
			}
			return nil
		},
		RunE: g.onDatabase((*app).openExistingDatabase, o.run),
	}
	cmd.Flags().StringSliceVar(&o.types, "types", nil, "patterns of the event types to send, such as 'auth.Session*'")
	cmd.Flags().StringVar(&o.name, "name", "", "what to call the target (default: the host of the URL)")
	_ = cmd.MarkFlagRequired("types")
	return cmd
}

func (o *addWebhookOptions) run(ctx context.Context, a *app, args []string) error {
	address := args[0]
	if err := webhook.CheckURL(address, a.App.prod(), a.Webhook.AllowPrivate); err != nil {
		return misuse{err}
	}
	seals, err := a.webhookSeals()
	if err == nil {
		err = a.checkPresentSecret(ctx)
	}
	if err != nil {
		return err
	}
	u, err := url.Parse(address) // once more, for its host
	if err != nil {
		return misuse{err}
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	names := []string{o.name}
	if o.name == "" {
		names = suggestNames(host)
	}
	secret := webhook.NewSecret()
	var added outbox.Subscription
	for _, name := range names {
		added, err = outbox.Subscribe(ctx, a.db,
			outbox.Subscription{Name: name, Kind: outbox.KindWebhook, Types: o.types,
				URL: address, Secrets: []outbox.Secret{{Sealed: seals.Seal(name, secret)}}})
		if !errors.Is(err, outbox.ErrTargetExists) {
			break
		}
	}
	if errors.Is(err, outbox.ErrInvalidTarget) {
		return misuse{err}
	}
	if errors.Is(err, outbox.ErrTargetExists) {
		return fmt.Errorf("%w; choose another one with --name", err)
	}
	if err != nil { // done twice, there may be two of the same URL
		return maybeDone(err, "look at authctl outbox target list before you run it again; if it is there, get a "+
			"secret with authctl outbox target rotate-secret")
	}
	a.security.Info("target_added", zap.String("target", added.Name), zap.String("host", host),
		zap.Strings("types", o.types))
	stderr := a.cmd.ErrOrStderr()
	for _, pattern := range o.types {
		if !slices.ContainsFunc(slices.Concat(auth.EventTypes(), contact.EventTypes()), func(one string) bool {
			match, err := path.Match(pattern, one)
			return err == nil && match
		}) {
			fmt.Fprintf(stderr, "no event is of a type like %s: see docs/events.md\n", pattern)
		}
	}
	if all, err := outbox.Subscriptions(ctx, a.db); err == nil {
		for _, other := range all {
			if other.ID != added.ID && other.URL == added.URL {
				fmt.Fprintf(stderr, "%s has the same URL: an event that both get arrives twice\n", other.Name)
			}
		}
	}
	rows := [][]string{{"target", added.Name}, {"url", added.URL}, {"types", strings.Join(added.Types, ", ")},
		{"secret", secret.Reveal()}}
	err = o.pairs(a.cmd.OutOrStdout(), webhookReport{Name: added.Name, ID: added.ID, URL: added.URL,
		Types: added.Types, Secret: secret.Reveal()}, rows)
	fmt.Fprintf(stderr, "keep the secret now, it is not shown again; then try: authctl outbox target test %s\n",
		added.Name)
	return err
}

// webhookReport is a webhook whose secret is new.
type webhookReport struct {
	Name        string     `json:"name"`
	ID          int        `json:"id"`
	URL         string     `json:"url"`
	Types       []string   `json:"types"`
	Secret      string     `json:"secret"`
	FormerUntil *time.Time `json:"former_secret_until,omitempty"`
}

// suggestNames makes names of a host, for a target that was given none.
func suggestNames(host string) []string {
	host = strings.ReplaceAll(host, ":", "-")
	host = strings.Trim(host[:min(len(host), 60)], ".-")
	names := []string{host}
	for n := 2; n <= outbox.MaxWebhooks+1; n++ {
		names = append(names, fmt.Sprintf("%s-%d", host, n))
	}
	return names
}

// onWebhook makes what cobra runs for a command on a webhook.
func (g *global) onWebhook(do func(ctx context.Context, a *app, s outbox.Subscription) error) runE {
	return g.onTarget(func(ctx context.Context, a *app, name string) error {
		s, err := outbox.FindSubscription(ctx, a.db, name)
		if err != nil {
			return err
		}
		if s.Kind != outbox.KindWebhook {
			return fmt.Errorf("the target %s is not a webhook; to send a mail, use: authctl mail test", name)
		}
		return do(ctx, a, s)
	})
}

func newTargetRotateSecret(g *global) *cobra.Command {
	var agreed consent
	dropOld := false
	cmd := &cobra.Command{
		Use:   "rotate-secret NAME",
		Short: "Give a webhook a new secret, and print it",
		Long: `Give a webhook a new secret, and print it. It is not shown again.

For 24 hours requests are signed with the former secret as well, so the receiver can change to the new
one at any time. With --drop-old no secret is made: requests are signed with the newest one alone
from now on.`,
		Example: `  authctl outbox target rotate-secret example.com
  authctl outbox target rotate-secret example.com --drop-old`,
		Args: oneArgument,
		RunE: g.onWebhook(func(ctx context.Context, a *app, s outbox.Subscription) error {
			if dropOld {
				return g.dropOldSecrets(ctx, a, s, agreed)
			}
			return g.rotateSecret(ctx, a, s)
		}),
	}
	cmd.Flags().BoolVar(&dropOld, "drop-old", false, "make no secret, and stop signing with former ones")
	agreed.add(cmd)
	return cmd
}

func (g *global) rotateSecret(ctx context.Context, a *app, s outbox.Subscription) error {
	seals, err := a.webhookSeals()
	if err == nil {
		err = a.checkPresentSecret(ctx)
	}
	if err != nil {
		return err
	}
	var made config.Secret
	var list []outbox.Secret
	err = outbox.ReplaceSecrets(ctx, a.db, s.Name, func(s outbox.Subscription) (_ []outbox.Secret, err error) {
		list, made, err = seals.Rotate(s, time.Now())
		return list, err
	})
	if errors.Is(err, webhook.ErrTooManySecrets) {
		return fmt.Errorf("%w; with: authctl outbox target rotate-secret %s --drop-old", err, s.Name)
	}
	if err != nil {
		return maybeDone(err, "run it again, since nobody has the new secret then")
	}
	a.security.Info("target_secret_rotated", zap.String("target", s.Name))
	report := webhookReport{Name: s.Name, ID: s.ID, URL: s.URL, Types: s.Types, Secret: made.Reveal()}
	rows := [][]string{{"target", s.Name}, {"secret", report.Secret}}
	stderr := a.cmd.ErrOrStderr()
	if len(list) > 1 {
		report.FormerUntil = &list[1].Until
		fmt.Fprintf(stderr, "the former secret signs too until %s\n", moment(list[1].Until))
	}
	err = g.pairs(a.cmd.OutOrStdout(), report, rows)
	fmt.Fprintln(stderr, "keep the secret now, it is not shown again")
	return err
}

func (g *global) dropOldSecrets(ctx context.Context, a *app, s outbox.Subscription, agreed consent) error {
	if len(s.Secrets) < 2 {
		return fmt.Errorf("the webhook %s has no former secret", s.Name)
	}
	loss := fmt.Sprintf("A receiver that does not have the newest secret of %s will refuse its events", s.Name)
	if err := agreed.ask(a.cmd, loss); err != nil {
		return err
	}
	err := outbox.ReplaceSecrets(ctx, a.db, s.Name, func(s outbox.Subscription) ([]outbox.Secret, error) {
		return s.Secrets[:min(1, len(s.Secrets))], nil
	})
	if err != nil {
		return err
	}
	a.security.Warn("target_secret_dropped", zap.String("target", s.Name))
	return g.tell(a.cmd.OutOrStdout(), map[string]any{"name": s.Name, "secrets": 1},
		fmt.Sprintf("requests to %s are signed with its newest secret alone", s.Name))
}

func newTargetTest(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Send a test event to a webhook now, and print what came back",
		Long: `Send an event of the type auth.Test.v1 to a webhook now, from this machine, and print what came
back. It is sent once, whatever types the webhook gets, and also when the target is paused. The exit
code is 1 when the receiver does not acknowledge it.`,
		Example: "  authctl outbox target test example.com",
		Args:    oneArgument,
		RunE: g.onWebhook(func(ctx context.Context, a *app, s outbox.Subscription) error {
			return g.testWebhook(ctx, a, s)
		}),
	}
}

// webhookAnswer is what came of a test.
type webhookAnswer struct {
	Name    string `json:"name"`
	EventID string `json:"event_id"`
	Address string `json:"address,omitempty"` // that was connected to
	Status  int    `json:"status,omitempty"`
	Millis  int64  `json:"ms"`
	OK      bool   `json:"ok"`
	Error   string `json:"error,omitempty"`
}

func (g *global) testWebhook(ctx context.Context, a *app, s outbox.Subscription) (err error) {
	seals, err := a.webhookSeals()
	if err != nil {
		return err
	}
	to := a.newWebhookSink(seals)
	defer func() { err = errors.Join(err, to.Close()) }()
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an event id: %w", err)
	}
	answer, failed := to.Send(ctx, s, outbox.Record{
		Seq: 1, EventID: id.String(), Type: testType, Key: id.String(), Subject: id.String(),
		Source: a.Auth.Token.Issuer,
		Time:   time.Now().UTC().Format(time.RFC3339Nano), Data: []byte(`{"text":"a test by an operator"}`),
	}, nil)
	if failed == nil {
		failed = answer.Err()
	}
	report := webhookAnswer{Name: s.Name, EventID: id.String(), Address: answer.Address, Status: answer.Status,
		Millis: answer.Took.Milliseconds(), OK: failed == nil}
	status := "none"
	if report.Status > 0 {
		status = fmt.Sprint(report.Status)
	}
	rows := [][]string{{"target", s.Name}, {"event", testType + " " + report.EventID},
		{"address", cmp.Or(report.Address, "no connection")}, {"status", status},
		{"time", answer.Took.Round(time.Millisecond).String()}}
	if failed != nil {
		report.Error = failed.Error()
		failed = fmt.Errorf("the event was not acknowledged: %w", failed)
	}
	return errors.Join(g.pairs(a.cmd.OutOrStdout(), report, rows), failed)
}
