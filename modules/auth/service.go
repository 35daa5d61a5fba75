package auth

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/feed"
	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/session"
	redisstore "github.com/toppira/authctl/modules/auth/internal/session/redis"
	sqlstore "github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/modules/auth/internal/signingkey"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
	"github.com/toppira/authctl/platform/retry"
)

// Deps are what the service needs. The caller owns them and closes them after [Service.Close].
type Deps struct {
	DB *database.DB
	// Redis keeps sessions and the counters of sign-in limits. Nil keeps both in the database, but with
	// SQLite the counters are in this process.
	Redis cache.Client
	// Committed is called after each transaction that wrote an event, with the keys of its events if they are
	// few, so that a relay need not wait for its next poll: see [relay.Waker.Wake]. It must not block. It may be nil.
	Committed func(keys ...string)
	// Serving says that the process answers requests: GOMAXPROCS is raised by the number of hashing
	// workers, so that they never hold up anything else.
	Serving bool
	// Looking is for commands, which sign nothing: no signing key is made, and none is sealed again.
	Looking  bool
	Log      *zap.Logger
	Registry prometheus.Registerer // nil: no metrics
	Now      func() time.Time      // nil: time.Now
}

// Service is the module: accounts, sign-in, sessions, tokens. It is safe for concurrent use.
type Service struct {
	cfg        Config
	db         *database.DB
	sessions   session.Store
	codec      *session.Codec
	keys       *signingkey.Ring
	verifier   *token.Verifier
	passwords  *password.Passwords
	limiter    *throttle.Limiter
	feed       *feed.Feed
	states     sessionStates
	clients    map[string][]byte
	lockOuts   lockOuts
	hooks      Hooks
	committed  func(keys ...string)
	log        *zap.Logger
	security   *zap.Logger
	now        func() time.Time
	closeStore func() error // nil when there is nothing to close

	untidied retry.Failures // of housekeeping
}

// New prepares the statements, loads the signing keys (on a new database it makes the first one)
// and starts the hashing workers, which [Service.Close] stops. [Service.Run] does the background
// work.
func New(ctx context.Context, cfg Config, deps Deps) (_ *Service, err error) {
	s := &Service{cfg: cfg, db: deps.DB, committed: deps.Committed, log: deps.Log, now: deps.Now,
		clients: make(map[string][]byte)}
	if s.now == nil {
		s.now = time.Now
	}
	s.log = cmp.Or(s.log, zap.NewNop())
	if s.committed == nil {
		s.committed = func(...string) {}
	}
	s.security = logging.Security(s.log)
	for _, text := range cfg.Clients {
		id, hash, err := parseClient(text)
		if err != nil {
			return nil, fmt.Errorf("auth.clients: %w", err)
		}
		s.clients[id] = hash
	}
	if s.states, err = prepareSessionStates(ctx, deps.DB); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if s.passwords != nil {
			err = errors.Join(err, s.passwords.Close())
		}
		err = errors.Join(err, s.closeStatements())
	}()
	openKeys := signingkey.New
	if deps.Looking {
		openKeys = signingkey.Look
	}
	if s.keys, err = openKeys(ctx, deps.DB, cfg.Token, s.log, deps.Now); err != nil {
		return nil, err
	}
	if s.codec, err = session.NewCodec(cfg.Token.Secret, cfg.Token.Secrets()[1:]...); err != nil {
		return nil, err
	}
	s.verifier = cfg.Token.Verifier(s.now, s.keys.Public)
	if err := s.openSessions(ctx, deps); err != nil {
		return nil, err
	}
	if s.limiter, err = throttle.New(cfg.Throttle, throttle.Options{
		Redis: deps.Redis, DB: deps.DB, Secret: cfg.Token.Secret, PreviousSecrets: cfg.Token.Secrets()[1:], Now: s.now,
		Registry: deps.Registry, Log: s.log,
	}); err != nil {
		return nil, err
	}
	missing, err := hkdf.Key(sha256.New, []byte(cfg.Token.Secret.Reveal()), nil, "authctl missing accounts v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	s.passwords, err = password.New(cfg.Password, password.Options{Registry: deps.Registry, Key: missing,
		Context: issuerWords(cfg.Token.Issuer), ReserveProcs: deps.Serving})
	if err != nil {
		return nil, err
	}
	if s.feed, err = feed.New(deps.DB, feed.Options{Log: s.log, Registry: deps.Registry, Now: s.now}); err != nil {
		return nil, err
	}
	s.startLockOuts()
	return s, nil
}

// openSessions opens the store: Redis where there is one, else the database.
func (s *Service) openSessions(ctx context.Context, deps Deps) error {
	if deps.Redis != nil {
		s.sessions = redisstore.New(deps.Redis, redisstore.Options{})
		return nil
	}
	store, err := sqlstore.New(ctx, deps.DB, sqlstore.Options{})
	if err != nil {
		return err
	}
	s.sessions, s.closeStore = store, store.Close
	return nil
}

// Close stops the hashing workers, refuses sign-ins that wait for one, and finishes the work that
// goes on after answers.
func (s *Service) Close() error {
	err := s.passwords.Close()
	s.stopLockOuts()
	s.limiter.Close()
	return errors.Join(err, s.feed.Close(), s.closeStatements())
}

func (s *Service) closeStatements() error {
	err := s.states.close()
	if s.closeStore != nil {
		err = errors.Join(err, s.closeStore())
	}
	return err
}

// transact runs fn in a transaction and tells the relay when it has committed.
func (s *Service) transact(ctx context.Context, fn func(ctx context.Context, tx database.Tx) error) error {
	ctx, keys := outbox.WithKeys(ctx)
	if err := s.db.Tx(ctx, fn); err != nil {
		return err
	}
	s.committed(keys.List()...)
	s.feed.Wake()
	return nil
}

// detachTimeout bounds work that goes on when its request has ended, or that has none.
const detachTimeout = 5 * time.Second

// detached outlives the request but not the timeout.
func detached(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}

// newID makes a UUIDv7: it sorts by time, which keeps indexes compact.
func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) } // crypto/rand does not fail

// timestamp is the present moment as the databases keep it: UTC, whole microseconds.
func (s *Service) timestamp() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// IsUnavailable reports whether the same request may succeed later: a backend is away, too slow or
// read-only, or others have changed the account again and again.
func IsUnavailable(err error) bool {
	return errors.Is(err, session.ErrUnavailable) || errors.Is(err, errConcurrentChange) || database.IsUnavailable(err)
}

// giveWay leaves SQLite to others for as long as it was just kept busy: it has one writer, and those
// who wait for it poll.
func (s *Service) giveWay(ctx context.Context, busy time.Duration) error {
	if s.db.IsPostgres() || !retry.Sleep(ctx, busy) {
		return ctx.Err()
	}
	return nil
}
