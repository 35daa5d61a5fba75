package contact

import (
	"cmp"
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
	"github.com/toppira/authctl/platform/retry"
)

// Deps are what the service needs. The caller owns them.
type Deps struct {
	DB      *database.DB
	Auth    *auth.Service   // whose hooks are set
	Secrets []config.Secret // of the service, the current one first
	// Committed is called after each transaction that wrote an event. It must not block. It may be
	// nil.
	Committed func(keys ...string)
	Registry  prometheus.Registerer // nil: no metrics
	Log       *zap.Logger
	Now       func() time.Time // nil: time.Now
}

// Service is the module: contacts, challenges, messages. It is safe for concurrent use.
type Service struct {
	cfg       Config
	db        *database.DB
	auth      *auth.Service
	sealer    *Sealer
	digests   digests
	met       *metrics
	committed func(keys ...string)
	log       *zap.Logger
	security  *zap.Logger
	now       func() time.Time
	untidied  retry.Failures // of housekeeping
}

// New makes the service and sets its hooks in deps.Auth.
func New(cfg Config, deps Deps) (*Service, error) {
	s := &Service{cfg: cfg, db: deps.DB, auth: deps.Auth, committed: deps.Committed, log: deps.Log, now: deps.Now}
	if s.now == nil {
		s.now = time.Now
	}
	s.log = cmp.Or(s.log, zap.NewNop())
	if s.committed == nil {
		s.committed = func(...string) {}
	}
	s.security = logging.Security(s.log)
	var err error
	if s.sealer, err = NewSealer(deps.Secrets...); err != nil {
		return nil, err
	}
	if s.digests, err = newDigests(deps.Secrets); err != nil {
		return nil, err
	}
	if s.met, err = newMetrics(deps.Registry); err != nil {
		return nil, err
	}
	s.auth.Use(s.hooks())
	return s, nil
}

// transact runs fn in a transaction and tells the relay when it has committed.
func (s *Service) transact(ctx context.Context, fn func(ctx context.Context, tx database.Tx) error) error {
	ctx, keys := outbox.WithKeys(ctx)
	if err := s.db.Tx(ctx, fn); err != nil {
		return err
	}
	s.committed(keys.List()...)
	return nil
}

// timestamp is the present moment as the databases keep it: UTC, whole microseconds.
func (s *Service) timestamp() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

const (
	housekeepingEvery = time.Minute
	purgeBatch        = 500
)

// Run deletes what has expired, until ctx ends. Any number of processes may run it.
func (s *Service) Run(ctx context.Context) error {
	for {
		s.Housekeep(ctx)
		if !retry.Sleep(ctx, housekeepingEvery) {
			return nil
		}
	}
}

// Housekeep does once what [Service.Run] does every minute. Failures are logged, and tried again the
// next time.
func (s *Service) Housekeep(ctx context.Context) {
	s.tidied("expired_challenges", s.endExpired(ctx))
	for table, keep := range map[string]time.Duration{"contact_challenge": 2 * countedFor, "contact_undo": undoTTL} {
		for {
			n, err := s.purge(ctx, table, keep)
			s.tidied(table, err)
			if err != nil || n < purgeBatch {
				break
			}
		}
	}
}

func (s *Service) tidied(what string, err error) {
	if s.untidied.Say(what, err, s.now()) {
		s.log.Warn("housekeeping_failed", zap.String("what", what), zap.Error(err))
	}
}

// endExpired marks challenges that have expired, so that all processes together count each once. They
// stop working when they expire, not only when they are marked.
func (s *Service) endExpired(ctx context.Context) error {
	for {
		var list []string
		err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
			list, err = database.Collect(ctx, tx, "end expired challenges", database.Value[string],
				`UPDATE contact_challenge SET state = 'ended' WHERE state = 'live' AND id IN (SELECT id FROM contact_challenge
				WHERE state = 'live' AND expires_ms <= ? LIMIT ?) RETURNING CASE WHEN contact_id IS NULL THEN '' ELSE purpose END`,
				s.now().UnixMilli(), purgeBatch)
			return err
		})
		if err != nil {
			return err
		}
		for _, purpose := range list {
			if purpose != "" { // not nobody's
				s.met.expired.WithLabelValues(purpose).Inc()
			}
		}
		if len(list) < purgeBatch {
			return nil
		}
	}
}

// purge deletes what is too old by this server's clock and by the database's: a server whose clock is ahead
// must not take the links that undo changes from their owners.
func (s *Service) purge(ctx context.Context, table string, keep time.Duration) (int64, error) {
	old, args := "created_ms < ?", []any{s.now().Add(-keep).UnixMilli()}
	if s.db.IsPostgres() {
		old, args = old+" AND created_ms < (extract(epoch FROM now()) * 1000)::bigint - ?",
			append(args, keep.Milliseconds())
	}
	return s.db.Write(ctx, "DELETE FROM "+table+" WHERE id IN (SELECT id FROM "+table+
		" WHERE "+old+" ORDER BY created_ms LIMIT ?)", append(args, purgeBatch)...)
}
