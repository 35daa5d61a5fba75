package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/mail"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
	"github.com/toppira/authctl/platform/metric"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/tracing"
)

// app is the process: its settings, what it has opened, and in which order to close it. All
// wiring is here.
type app struct {
	settings
	log      *zap.Logger
	security *zap.Logger // only for commands
	logFile  *logging.File
	level    zap.AtomicLevel
	cmd      *cobra.Command     // the command that runs on it; nil in serve, relay and doctor
	registry telemetry.Registry // nil in commands
	tracer   *tracing.Tracer    // of serve and relay; nil when the environment names no collector
	db       *database.DB
	relayDB  *database.DB // db, or in a serve that relays the part of its connections that requests cannot take
	redis    cache.Client
	auth     *auth.Service
	contact  *contact.Service
	waker    *relay.Waker

	answerWithin time.Duration // how long one statement of a command may take; 0 is any time

	looking       bool                  // creates nothing: no folder, database, schema, secret or key
	ownSecret     bool                  // the secret was created here, not configured
	secretUnknown bool                  // the command goes without it
	started       bool                  // serves, or relays
	relayEnd      atomic.Pointer[error] // why the relay inside serve ended too early
	closers       []func() error
}

// newApp opens the log. For commands it is quiet: the terminal and the file only get warnings and
// worse, and the security log.
func newApp(s settings, stderr io.Writer, quiet bool) (*app, error) {
	a := &app{settings: s, level: zap.NewAtomicLevel()}
	cfg := s.Log
	if quiet && cfg.Level == "info" {
		cfg.Level = "warn"
	}
	var err error
	a.log, a.logFile, err = logging.New(cfg, logging.Options{Dev: !s.App.prod(), Console: stderr, Level: a.level,
		Brief: quiet})
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, a.logFile.Close)
	return a, nil
}

// onHangup opens the log file again on each hangup, until the returned function is called, after
// which the log must not be used.
func (a *app) onHangup(hangups <-chan os.Signal) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var listening sync.WaitGroup
	listening.Go(func() { a.reopenLog(ctx, hangups) })
	return func() { cancel(); listening.Wait() }
}

func (a *app) reopenLog(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if a.Log.Path == "" {
			a.log.Info("hangup_ignored")
		} else if err := a.logFile.Reopen(); err != nil {
			a.log.Error("log_not_opened_again", zap.Error(err))
		} else {
			a.log.Info("log_opened_again", zap.String("file", a.Log.Path))
		}
	}
}

// Close closes everything in reverse order.
func (a *app) Close() error {
	var err error
	for i := len(a.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, a.closers[i]())
	}
	a.closers = nil
	return err
}

// openDatabase connects and checks the schema. It migrates SQLite; PostgreSQL must be migrated.
func (a *app) openDatabase(ctx context.Context) error {
	if !a.looking && a.needsDataFolder() {
		if err := a.makeDataFolder(); err != nil {
			return err
		}
	}
	if err := a.connectDatabase(ctx); err != nil {
		return err
	}
	if !a.db.IsPostgres() && !a.looking {
		_, err := migrations.Up(ctx, a.db)
		return err
	}
	err := sayHowToMigrate(migrations.Check(ctx, a.db))
	if errors.Is(err, migrations.ErrBehind) && !errors.Is(err, migrations.ErrForeign) && !a.db.IsPostgres() {
		err = fmt.Errorf("%w, or start authctl serve, which does it", err)
	}
	return err
}

// sayHowToMigrate adds what to do to an error of [migrations.Check].
func sayHowToMigrate(err error) error {
	switch {
	case errors.Is(err, migrations.ErrForeign):
		return fmt.Errorf("%w; %s", err, unlessForeign)
	case errors.Is(err, migrations.ErrBehind):
		return fmt.Errorf("%w; run: authctl migrate up", err)
	}
	return err
}

// unlessForeign is the remedy for migrations.ErrForeign.
const unlessForeign = "if it is, name another database with DATABASE_URL; otherwise run: authctl migrate up"

// existing fails if there is no installation, and makes sure that nothing creates one. All commands
// use it except those that may begin an installation: serve, relay, migrate up, user create and
// user import.
func (a *app) existing() error {
	a.looking = true
	if a.Database.Exists(a.App.DataDir) {
		return nil
	}
	return fmt.Errorf("there is no %s yet: authctl serve creates it, or name another one with DATABASE_URL",
		a.Database.Describe(a.App.DataDir))
}

func (a *app) connectExistingDatabase(ctx context.Context) error {
	if err := a.existing(); err != nil {
		return err
	}
	return a.connectDatabase(ctx)
}

func (a *app) openExistingDatabase(ctx context.Context) error {
	if err := a.existing(); err != nil {
		return err
	}
	return a.openDatabase(ctx)
}

func (a *app) openExistingAuth(ctx context.Context) error {
	if err := a.existing(); err != nil {
		return err
	}
	return a.openAuth(ctx)
}

// openAuthToBegin opens the service for a command that may make the first account. Its event gets the number of shards
// of these settings, which could not change while the event waits. A role that may not set the number leaves that
// to the relays, and so does a command that others get ahead of.
func (a *app) openAuthToBegin(ctx context.Context) error {
	if err := a.openAuth(ctx); err != nil {
		return err
	}
	err := relay.PrepareFirst(ctx, a.db, a.Outbox)
	if err != nil && !database.IsForbidden(err) && !database.IsUnavailable(err) && !errors.Is(err, outbox.ErrShards) {
		return fmt.Errorf("prepare the outbox: %w", err)
	}
	return nil
}

// openAuthToLook opens the service for a command that changes nothing. If there is no installation
// yet, it uses a temporary one.
func (a *app) openAuthToLook(ctx context.Context) error {
	if a.existing() != nil {
		dir, err := os.MkdirTemp("", "authctl-*") // mode 0700
		if err != nil {
			return fmt.Errorf("make a temporary folder: %w", err)
		}
		a.closers = append(a.closers, func() error { return os.RemoveAll(dir) })
		a.App.DataDir, a.Database, a.looking = filepath.Join(dir, "data"), database.Config{}, false
	}
	return a.openAuth(ctx)
}

func (a *app) connectDatabase(ctx context.Context) error {
	db, err := database.Open(ctx, a.Database, database.Options{DataDir: a.App.DataDir, Prod: a.App.prod(),
		AppName: "authctl", AnswerWithin: a.answerWithin})
	if err != nil {
		return err
	}
	a.db, a.relayDB = db, db
	a.closers = append(a.closers, db.Close)
	return nil
}

func (a *app) openAuth(ctx context.Context) error {
	if err := a.openDatabase(ctx); err != nil {
		return err
	}
	if a.registry != nil { // only serve has one
		if err := a.checkFence(ctx); err != nil {
			return err
		}
		// Each request that needs one of them would get 500.
		lacks, remedy, err := missingRights(ctx, a.db, "authctl_serve")
		if lacks != "" {
			err = fmt.Errorf("%s; %s", lacks, remedy)
		}
		if err != nil {
			return err
		}
		raise, err := migrations.LateSequences(ctx, a.db)
		if len(raise) > 0 {
			err = fmt.Errorf("%s; %s", copiedWithoutSequences, raiseSequences(raise))
		}
		if err != nil {
			return err
		}
	}
	var err error
	a.ownSecret, err = a.ensureSecret(!a.looking)
	if a.secretUnknown = a.reads && errors.Is(err, errNoSecret); a.secretUnknown {
		a.Auth.Token.Secret, err = config.Secret(rand.Text()+rand.Text()), nil // the service wants one
	}
	if err != nil {
		return err
	}
	deps := auth.Deps{DB: a.db, Log: a.log, Looking: a.looking, Registry: a.registry, Serving: a.registry != nil}
	if a.Redis.Enabled() {
		a.redis, err = cache.Open(ctx, a.Redis, cache.Options{
			Prod: a.App.prod(), AppName: "authctl",
			Untried: a.registry == nil, // an operator must be able to disable an account while Redis is down
		})
		if err != nil {
			return err
		}
		a.closers = append(a.closers, a.redis.Close)
		deps.Redis = a.redis
		if a.registry != nil {
			if err := a.checkRedis(ctx); err != nil {
				return err
			}
			if err := metric.Register(a.registry, "the metric of Redis", redisAway(a.redis)); err != nil {
				return err
			}
		}
	}
	if a.registry != nil && a.Outbox.Relay == "inline" {
		// Writers hold their connections until the disk answers, and requests until they are done.
		if a.relayDB = a.db.Split(); a.relayDB != a.db {
			a.closers = append(a.closers, a.relayDB.Close)
		}
	}
	a.openWaker()
	deps.Committed = a.waker.Wake
	if a.auth, err = auth.New(ctx, a.settings.Auth, deps); err != nil {
		return err
	}
	a.closers = append(a.closers, a.auth.Close)
	a.contact, err = contact.New(a.Contact, contact.Deps{DB: a.db, Auth: a.auth,
		Secrets: a.settings.Auth.Token.Secrets(), Committed: a.waker.Wake, Log: a.log, Registry: a.registry})
	return err
}

// checkSecret refuses a command that works by the secret of the servers if these settings have another one: it would
// do its work where no server looks, and say that it is done. Where the role may not see the keys, or there are none
// yet, nothing can be told.
func (a *app) checkSecret(ctx context.Context) error { return a.checkOpens(ctx, a.settings.Auth) }

// checkPresentSecret is [app.checkSecret] for what is sealed to stay: a secret that the servers have replaced will be
// taken away. They seal the keys again under the present one.
func (a *app) checkPresentSecret(ctx context.Context) error {
	cfg := a.settings.Auth
	cfg.Token.PreviousSecrets = ""
	return a.checkOpens(ctx, cfg)
}

func (a *app) checkOpens(ctx context.Context, cfg auth.Config) error {
	err := auth.OpenKeys(a.db, cfg, a.log).Check(ctx)
	for _, other := range []error{auth.ErrWrongSecret, auth.ErrOtherSecret} {
		if errors.Is(err, other) {
			return fmt.Errorf("%w; nothing was done: set AUTH_TOKEN_SECRET, or AUTH_TOKEN_SECRET_FILE, to the one "+
				"that the servers have", other)
		}
	}
	return nil
}

// openWaker makes what tells relays of this process, and of others, that events were committed.
func (a *app) openWaker() {
	a.waker = relay.NewWaker(a.relayDB)
	a.closers = append(a.closers, func() error { a.waker.Close(); return nil })
}

// checkRedis refuses a Redis that can never be used, and logs what is wrong with one that may
// recover; readiness continues to report it.
func (a *app) checkRedis(ctx context.Context) error {
	unfit := cache.Unfit(ctx, a.redis)
	for _, problem := range unfit {
		if problem.Setup {
			return fmt.Errorf("%s cannot be used: %w", a.Redis.Describe(), problem)
		}
		a.log.Warn("redis_not_ready", zap.Error(problem))
	}
	if len(unfit) > 0 {
		return nil
	}
	found, err := cache.Check(ctx, a.redis)
	if err != nil {
		a.log.Info("redis_settings_unknown", zap.Error(err))
	}
	for _, problem := range found {
		a.log.Warn("redis_may_forget", zap.String("problem", problem.Found), zap.String("hint", problem.Advice))
	}
	return nil
}

// redisAway counts the servers of Redis that cannot be used, when it is asked: nobody needs to ask for /readyz, which
// says no more than whether there is one that can.
func redisAway(client cache.Client) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "authctl_redis_servers_away",
		Help: "Redis servers that have keys and cannot be used: nodes of a cluster, or the only one.",
	}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return float64(cache.Away(ctx, client))
	})
}

// logRemarks logs, once at the start, which settings are probably mistakes.
func (a *app) logRemarks() {
	for _, r := range a.remarks {
		level := zap.InfoLevel
		if r.Likely {
			level = zap.WarnLevel
		}
		a.log.Log(level, "setting_doubtful", zap.String("name", r.Name), zap.String("problem", r.Text),
			zap.String("source", r.Source))
	}
}

func (a *app) eventsFile() string { return filepath.Join(a.App.DataDir, "events.ndjson") }

// openKafka opens the sink to Kafka. The caller closes it.
func (a *app) openKafka() (*sink.Kafka, error) {
	return sink.OpenKafka(a.Kafka, sink.KafkaOptions{Prod: a.App.prod(), Log: a.log, Registry: a.registry})
}

// target names the target of these settings, and its identity if that is known without asking.
func (a *app) target() (name string, identity *string, err error) {
	if a.Kafka.UsesKafka() {
		return a.Kafka.TargetName(), nil, nil
	}
	name, err = sink.FileName(a.eventsFile())
	return name, new(""), err
}

func (a *app) openSink() (relay.Sink, error) {
	if a.Kafka.UsesKafka() {
		return a.openKafka()
	}
	if err := os.MkdirAll(a.App.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	return sink.OpenFile(a.eventsFile())
}

// newRelay makes a relay to the target of the settings, unless the outbox has another target. The
// caller runs it.
func (a *app) newRelay(ctx context.Context) (*relay.Relay, error) {
	// This comes before anything is created there. The relay meets other errors again, and waits.
	name, identity, err := a.target()
	if err != nil {
		return nil, err
	}
	if _, err := outbox.AdmitTarget(ctx, a.relayDB, name, identity); errors.Is(err, outbox.ErrOtherTarget) {
		return nil, err
	}
	to, err := a.openSink()
	if err != nil {
		return nil, err
	}
	r, err := relay.New(a.relayDB, to, a.Outbox,
		relay.Options{Log: a.log, Waker: a.waker, Tracer: a.tracer, Registry: a.registry})
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	a.closers = append(a.closers, to.Close)
	if err := r.Prepare(ctx); errors.Is(err, outbox.ErrOtherTarget) {
		return nil, err
	}
	return r, nil
}

func (a *app) describeEvents() string {
	if a.Kafka.UsesKafka() {
		return "Kafka " + strings.Join(a.Kafka.Brokers, ",") + " topic " + a.Kafka.Topic
	}
	return a.eventsFile()
}

func (a *app) describeMail() string {
	if name := a.Mail.Server(); name != "" {
		return "SMTP " + name
	}
	return "files in " + mail.Folder(a.App.DataDir)
}

// describe names, for a person, what serve uses.
func (a *app) describe() [][]string {
	sessions := "in the database"
	if a.Redis.Enabled() {
		sessions = a.Redis.Describe()
	}
	events, mails := a.describeEvents(), a.describeMail()
	if a.Outbox.Relay == "off" {
		events = "left to processes of: authctl relay"
		mails = events
	}
	secret := "as configured"
	if a.ownSecret {
		secret = "created here, in " + filepath.Join(a.App.DataDir, "secret")
	}
	return [][]string{
		{"  Database", a.Database.Describe(a.App.DataDir)},
		{"  Sessions", sessions},
		{"  Events", events},
		{"  Mail", mails},
		{"  Secret", secret},
	}
}

// https reports whether clients reach the service by https, by this process or a proxy.
func (a *app) https() bool { return strings.HasPrefix(a.Auth.Token.Issuer, "https:") }
