package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/contact/contacthttp"
	"github.com/toppira/authctl/modules/contact/mail"
	"github.com/toppira/authctl/modules/contact/page"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/tuning"
)

type serveOptions struct {
	*global
	port string
}

func newServe(g *global) *cobra.Command {
	o := &serveOptions{global: g}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the API",
		Long: `Run the API until it is told to stop.

Without configuration it keeps everything in ./data: a SQLite database, which also holds the
sessions, and the events in ./data/events.ndjson. Set DATABASE_URL, REDIS_URL and KAFKA_BROKERS
to use real servers instead. If the database has published to a file before,
authctl outbox target set makes Kafka its target.

On SIGTERM or Ctrl-C it reports that it is not ready, finishes the requests in
progress, releases its share of the relay and exits with 0. A second signal stops it at once.`,
		Example: `  authctl serve
  authctl serve --port 8081
  DATABASE_URL=postgres://auth@localhost/auth REDIS_URL=redis://localhost authctl serve`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&o.port, "port", "", "port of the public listener (default 8080; environment APP_PORT)")
	return cmd
}

func (o *serveOptions) run(ctx context.Context, stderr io.Writer) error {
	load := func() (settings, error) {
		flags := map[string]string{}
		if o.port != "" {
			flags["app.port"] = o.port
		}
		s, err := o.load(settings{}, flags)
		if err == nil {
			err = s.checkServed()
		}
		return s, err
	}
	return untilStopped(ctx, stderr, load, func(a *app) error {
		if err := a.openAuth(ctx); err != nil {
			return err
		}
		return a.serve(ctx, stderr)
	})
}

// serve runs the listeners, the relay and the housekeeping until ctx ends or one fails.
func (a *app) serve(ctx context.Context, stderr io.Writer) error {
	server, err := httpserver.New(a.HTTP, httpserver.Options{Log: a.log, Registry: a.registry, Tracer: a.tracer,
		Unavailable: auth.IsUnavailable, HTTPS: a.https(), Mount: httpserver.MountOf(a.Auth.Token.Issuer)})
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return err
	}
	a.HTTP.Port = server.Addr().(*net.TCPAddr).Port // where it was 0
	var inline *relay.Relay
	var deliverer *delivery.Deliverer
	if a.Outbox.Relay == "inline" {
		if inline, err = a.newRelay(ctx); err != nil {
			return err
		}
		if deliverer, err = a.newDeliverer(ctx); err != nil {
			return err
		}
	}
	readiness := telemetry.NewReadiness(a.checks()...)
	server.Handle(authhttp.Routes(a.auth, authhttp.Options{
		Issuer: a.Auth.Token.Issuer, BaseURL: a.baseURL(), SecureCookies: a.https() || a.servesTLS(),
		PlainCookies: !a.App.prod(),
	})...)
	server.Handle(contacthttp.Routes(a.auth, a.contact)...)
	if a.Mail.HasPages() {
		server.Handle(page.Routes(mail.ServiceName(a.Auth.Token.Issuer))...)
	}
	server.Handle(processRoutes(server.Stopping, readiness)...)

	// The listener stops first; what it needs stops after it.
	running, front := errgroup.WithContext(ctx)
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	if inline != nil {
		running.Go(func() error { a.relayInline(behind, inline); return nil })
		running.Go(func() error { return deliverer.Run(behind) })
	}
	operator, err := a.startOperator(behind, running, readiness, server.Stopping)
	if err != nil {
		stopBehind() // the relay runs already, and uses what the caller closes next
		return errors.Join(err, running.Wait())
	}
	running.Go(func() error { return a.auth.Run(behind) })
	running.Go(func() error { return a.contact.Run(behind) })
	running.Go(func() error { a.giveWay(behind); return nil })
	running.Go(func() error { a.checkHashing(front); return nil })
	if a.db.IsPostgres() {
		running.Go(func() error {
			watchClock(front, a.log, watchClockEvery, func(ctx context.Context) (time.Duration, error) {
				return clockOffset(ctx, a.db)
			})
			return nil
		})
	}
	running.Go(func() error {
		defer stopBehind()
		return server.Run(front)
	})
	a.greet(stderr, server.Addr(), operator)
	tuning.ForgetStart()
	running.Go(func() error { a.notifyWhile(front); return nil })
	if err := running.Wait(); err != nil {
		return err
	}
	a.log.Info("stopped")
	return nil
}

const hashMemoryHint = "lower auth.password.hash_workers or auth.password.argon2_memory_mib, or give it more memory"

// hashMemory compares what hashing takes during a flood of sign-ins with what this process may use.
func hashMemory(cfg auth.Config) (need, memory uint64, tooMuch bool) {
	need = cfg.Password.HashMemory(cfg.Password.Workers)
	memory, known := tuning.Memory()
	return need, memory, known && need > memory
}

// checkHashing logs an error if a hash takes longer than a request may. It only measures when that
// could be, since measuring costs a few hashes. It also warns of too little memory for the workers.
func (a *app) checkHashing(ctx context.Context) {
	set := a.Auth.Password
	if need, memory, tooMuch := hashMemory(a.Auth); tooMuch {
		a.log.Warn("hashing_exceeds_memory", zap.Uint64("needed_bytes", need), zap.Uint64("memory_bytes", memory),
			zap.String("hint", hashMemoryHint))
	}
	const cheap = 5 * time.Second // what bcrypt below a cost of 15 and any argon2id stay below
	if (set.Algorithm != "bcrypt" || set.BcryptCost < 15) && a.HTTP.HTTP.RequestTimeout >= cheap {
		return
	}
	took, err := auth.HashTime(ctx, a.Auth)
	if err == nil && took > a.HTTP.HTTP.RequestTimeout {
		a.log.Error("hashing_too_slow", zap.Duration("took", took), zap.Duration("request_timeout",
			a.HTTP.HTTP.RequestTimeout),
			zap.String("hint", "nobody can sign in: lower the cost of hashing (see: authctl password "+
				"calibrate), or raise app.http.request_timeout"))
	}
}

// giveWay lets PostgreSQL and Redis on the same machine run before this process, until ctx ends.
// The low priority of hashing only counts within this process's autogroup.
func (a *app) giveWay(ctx context.Context) {
	if a.App.AutogroupNice == 0 || !a.Database.UsesPostgres() && !a.Redis.Enabled() {
		return
	}
	restore, err := tuning.Renice(ctx, a.App.AutogroupNice)
	if restore != nil {
		a.log.Info("autogroup_reniced", zap.Int("nice", a.App.AutogroupNice))
		<-ctx.Done()
		err = restore()
	}
	if err != nil {
		a.log.Info("autogroup_not_reniced", zap.Error(err))
	}
}

// startOperator runs the operator listener and returns its address. In dev mode it does without
// one if the port is taken, as by another serve.
func (a *app) startOperator(ctx context.Context, running *errgroup.Group, readiness *telemetry.Readiness,
	stopping func() bool) (string, error) {
	operator, err := telemetry.Listen(a.Operator, telemetry.OperatorOptions{
		Registry: a.registry, Readiness: readiness, Stopping: stopping, Log: a.log, Level: &a.level,
	})
	if taken, ok := errors.AsType[*telemetry.AddrError](err); ok && taken.InUse && !a.App.prod() {
		a.log.Warn("operator_listener_off", zap.Error(err))
		return "", nil
	}
	if err != nil || operator == nil {
		return "", err
	}
	running.Go(func() error { return operator.Run(ctx) })
	return operator.Addr().String(), nil
}

// baseURL is the base of the endpoints in the metadata and of the links in mails: the issuer,
// unless that is the default, whose port may not be the real one.
func (s settings) baseURL() string {
	if s.Auth.Token.Issuer != auth.DefaultIssuer || s.HTTP.Port == 0 {
		return s.Auth.Token.Issuer
	}
	scheme := "http"
	if s.servesTLS() {
		scheme = "https"
	}
	return fmt.Sprintf("%s://localhost:%d", scheme, s.HTTP.Port)
}

// servesTLS reports whether the public listener itself speaks https.
func (s settings) servesTLS() bool { return s.HTTP.TLS.CertFile != "" }

// greet says, in dev mode, what runs where and what to try.
func (a *app) greet(w io.Writer, addr net.Addr, operator string) {
	port := addr.(*net.TCPAddr).Port
	a.started = true
	a.log.Info("serving", zap.Int("port", port), zap.String("operator_addr", operator),
		zap.String("version", version()), zap.String("secret_fingerprint", a.Auth.Token.Secret.Fingerprint()))
	a.logRemarks()
	a.warn()
	if a.App.prod() {
		return
	}
	base := fmt.Sprintf("http://localhost:%d", port)
	printStart(w, "serving", operator, append(a.describe(), []string{"  API", base + "/api/v1/auth"},
		[]string{"  Swagger", base + "/docs/swagger/index.html"}))
	fmt.Fprintf(w, `Try:
  curl -s %s/api/v1/auth/register -H 'Content-Type: application/json' \
    -d '{"username":"alice","password":"correct horse battery staple"}'

`, base)
}

// printStart says for a person what the process does, and with what.
func printStart(w io.Writer, doing, operator string, rows [][]string) {
	if operator != "" {
		rows = append(rows, []string{"  Operators", "http://" + operator + "/metrics"})
	}
	fmt.Fprintf(w, "\nauthctl %s is %s.\n\n", version(), doing)
	_ = printAligned(w, rows)
	fmt.Fprintln(w)
}

// adviceWhiteSpace is for a secret that earlier versions used with the white space around it.
const adviceWhiteSpace = "remove it at the source of the secret; what was made with the white space stays valid on " +
	"servers that still have it"

// warn logs, once at the start, what does not work with these settings.
func (a *app) warn() {
	if !a.Redis.Enabled() && !a.Database.UsesPostgres() {
		a.log.Warn("throttle_kept_in_memory",
			zap.String("hint", "sign-in limits are counted in this process only, and forgotten when it stops; "+
				"PostgreSQL or Redis keeps and shares them"))
	}
	if a.Outbox.Relay == "inline" {
		a.warnLocalEvents()
	}
	if !a.Mail.HasPages() && a.Mail.PagesURL == "" {
		a.log.Warn("mail_pages_left_to_others", zap.String("url", a.Mail.PagesAt(a.baseURL())),
			zap.String("hint", "links in mails lead to this url, where another program must have the pages: "+
				"contact.pages is off and contact.pages_url is empty"))
	}
	if len(a.Auth.Token.Untrimmed) > 0 {
		a.log.Warn("secret_trimmed",
			zap.String("hint", "auth.token.secret has white space around it, which is ignored: "+adviceWhiteSpace))
	}
	if a.ownSecret && (a.Database.UsesPostgres() || a.Redis.Enabled()) {
		a.log.Warn("secret_not_shared",
			zap.String("hint", "the signing secret is this machine's own; other servers on the same database need "+
				"the same AUTH_TOKEN_SECRET"))
	}
}

// warnLocalEvents logs that a relay of this process writes events to a file, while relays elsewhere may have others.
func (a *app) warnLocalEvents() {
	if !a.Kafka.UsesKafka() && a.Database.UsesPostgres() {
		a.log.Warn("events_written_to_file",
			zap.String("hint", "events go to a file of this machine; relays on other machines would write some of "+
				"them to theirs: name a Kafka"))
	}
}

// databaseCheck checks that the database takes writes. Both write something for that, and on SQLite it is a commit,
// which waits for the disk.
func (a *app) databaseCheck() telemetry.Check {
	check := telemetry.Check{Name: "database", Critical: true, Holds: time.Second, Probe: a.db.TryWrite}
	if !a.db.IsPostgres() {
		check.Holds = 3 * time.Second
	}
	return check
}

// checks are the backends that the API needs. Kafka is not one of them, because events can wait.
func (a *app) checks() []telemetry.Check {
	checks := []telemetry.Check{a.databaseCheck()}
	if a.redis != nil {
		checks = append(checks, telemetry.Check{Name: "redis", Critical: true, Holds: time.Second,
			Probe: func(ctx context.Context) error { return cache.Probe(ctx, a.redis) }})
	}
	if a.Outbox.Relay == "inline" {
		checks = append(checks, telemetry.Check{Name: "relay", Probe: func(context.Context) error {
			if end := a.relayEnd.Load(); end != nil {
				return *end
			}
			return nil
		}})
	}
	return checks
}
