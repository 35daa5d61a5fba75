package auth

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/session"
	redisstore "github.com/toppira/authctl/modules/auth/internal/session/redis"
	sqlstore "github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/modules/auth/internal/signingkey"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
)

// Fence makes a database that was restored from a backup safe to serve: once it has run, nothing that was
// issued earlier is accepted, whether before or after the backup was made (docs/decisions/023). It is for a
// command while no server runs.
//
// Its steps can be repeated without harm, and the last one, a transaction, makes it count. The database
// knows from the first step on that a fence has begun; running an interrupted one again finishes it.
type Fence struct {
	db       *database.DB
	keys     *signingkey.Ring
	rows     *sqlstore.Store
	records  session.Store // Redis; nil when there is none
	log      *zap.Logger
	security *zap.Logger
}

// OpenFence needs the database, and Redis if it holds the sessions. The caller closes the fence.
func OpenFence(ctx context.Context, cfg Config, deps Deps) (*Fence, error) {
	f := &Fence{db: deps.DB, log: deps.Log}
	f.log = cmp.Or(f.log, zap.NewNop())
	f.security = logging.Security(f.log)
	f.keys = signingkey.Open(deps.DB, cfg.Token, f.log, nil)
	if deps.Redis != nil {
		f.records = redisstore.New(deps.Redis, redisstore.Options{})
	}
	var err error
	f.rows, err = sqlstore.New(ctx, deps.DB, sqlstore.Options{})
	return f, err
}

// Close releases what [OpenFence] prepared.
func (f *Fence) Close() error { return f.rows.Close() }

// FencePlan says what a fence is about to do.
type FencePlan struct {
	Interrupted    time.Time // when the interrupted fence began that this one finishes; zero: none
	LastDone       time.Time // when the last one finished; zero: never
	Accounts       int
	Rows           int       // sessions in the database
	Records        int       // sessions in Redis
	Keys           []KeyInfo // the published ones
	Verifiers      []Verifier
	FromGeneration int64
	ToGeneration   int64
}

// Plan counts. It changes nothing.
func (f *Fence) Plan(ctx context.Context) (plan FencePlan, err error) {
	mark, err := f.next(ctx, f.db)
	if err != nil {
		return plan, err
	}
	if mark.interrupted {
		plan.Interrupted = mark.began
	}
	plan.ToGeneration = mark.generation
	var last sql.NullInt64
	const query = "SELECT (SELECT count(*) FROM users), (SELECT max(done_ms) FROM restore_fence)"
	if err := f.db.QueryRowContext(ctx, query).Scan(&plan.Accounts, &last); err != nil {
		return plan, fmt.Errorf("count the accounts: %w", err)
	}
	if last.Valid {
		plan.LastDone = time.UnixMilli(last.Int64).UTC()
	}
	if plan.Rows, err = f.rows.Count(ctx); err != nil {
		return plan, err
	}
	if f.records != nil {
		if plan.Records, err = f.records.Count(ctx); err != nil {
			return plan, err
		}
	}
	if plan.FromGeneration, err = outbox.Generation(ctx, f.db); err != nil {
		return plan, err
	}
	if plan.Verifiers, err = Verifiers(ctx, f.db, 100*365*24*time.Hour); err != nil {
		return plan, err
	}
	plan.Keys, err = f.keys.Published(ctx)
	return plan, err
}

// FenceStep is what a fence is doing.
type FenceStep string

// The steps in their order.
const (
	FenceBegun    FenceStep = "begun"
	FenceRecords  FenceStep = "records"  // sessions deleted from Redis
	FenceRows     FenceStep = "rows"     // sessions deleted from the database
	FenceAccounts FenceStep = "accounts" // accounts whose epoch was raised
)

// Fenced is what a fence has done.
type Fenced struct {
	Generation int64
	Revoked    []KeyInfo
	Key        KeyInfo // the one that signs now; none with HS256
}

// Run fences, or finishes the interrupted fence. unused returns an error while others use the
// database: it is called when new servers already refuse to start, and again before the last step.
// progress is called when a step begins and after each portion of it, with the amount done.
func (f *Fence) Run(ctx context.Context, unused func(context.Context) error, progress func(FenceStep, int)) (Fenced,
	error) {
	mark, err := f.begin(ctx)
	if err != nil {
		return Fenced{}, err
	}
	if err := unused(ctx); err != nil {
		if !mark.interrupted {
			err = errors.Join(err, f.withdraw(ctx, mark))
		}
		return Fenced{}, err
	}
	f.security.Warn("restore_fence_begun", zap.Int64("generation", mark.generation),
		zap.Bool("again", mark.interrupted))
	progress(FenceBegun, 0)
	if f.records != nil {
		if err := f.clear(ctx, f.records, FenceRecords, progress); err != nil {
			return Fenced{}, err
		}
	}
	if err := f.clear(ctx, f.rows, FenceRows, progress); err != nil {
		return Fenced{}, err
	}
	if err := f.raiseEpochs(ctx, mark, func(n int) { progress(FenceAccounts, n) }); err != nil {
		return Fenced{}, err
	}
	if err := unused(ctx); err != nil {
		return Fenced{}, err
	}
	done := Fenced{Generation: mark.generation}
	done.Revoked, done.Key, err = f.keys.Replace(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := outbox.RaiseGeneration(ctx, tx, mark.generation); err != nil {
			return err
		}
		return f.finish(ctx, tx, mark)
	})
	if err != nil {
		return Fenced{}, fmt.Errorf("finish the fence: %w", err)
	}
	f.security.Warn("restore_fence_finished", zap.Int64("generation", mark.generation), zap.String("kid", done.Key.KID))
	return done, nil
}

func (f *Fence) clear(ctx context.Context, store session.Store, step FenceStep, progress func(FenceStep, int)) error {
	progress(step, 0)
	return store.Clear(ctx, func(gone int) { progress(step, gone) })
}

type fenceMark struct {
	generation  int64
	epoch       int64 // no account has a lower one afterwards
	began       time.Time
	interrupted bool // the row was there before
}

// next returns the interrupted fence, or the one that may begin now.
//
// Epoch and generation are times, in milliseconds (like the epochs of imported accounts) and in seconds. A
// counter would repeat numbers, since the database has forgotten the fences, ends and
// events after the backup. Both are also above all that the database knows, whatever its clock says.
func (f *Fence) next(ctx context.Context, db database.IDB) (fenceMark, error) {
	mark, err := interruptedFence(ctx, db)
	if err != nil || mark.interrupted {
		return mark, err
	}
	now := "CAST(unixepoch('subsec') * 1000 AS integer)"
	if database.IsPostgres(db) {
		now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
	}
	var ms, epoch, last int64
	err = db.QueryRowContext(ctx, "SELECT "+now+`, (SELECT coalesce(max(session_epoch), 0) FROM users),
		(SELECT coalesce(max(generation), 0) FROM restore_fence)`).Scan(&ms, &epoch, &last)
	if err != nil {
		return fenceMark{}, fmt.Errorf("prepare the fence: %w", err)
	}
	generation, err := outbox.Generation(ctx, db)
	if err != nil {
		return fenceMark{}, err
	}
	return fenceMark{
		generation: max(ms/1000, generation+1, last+1), epoch: max(ms, epoch+1), began: time.UnixMilli(ms).UTC(),
	}, nil
}

// begin stores that a fence has begun.
func (f *Fence) begin(ctx context.Context) (mark fenceMark, err error) {
	err = f.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if mark, err = f.next(ctx, tx); err != nil || mark.interrupted {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO restore_fence (generation, epoch, began_ms) VALUES (?, ?, ?)",
			mark.generation, mark.epoch, mark.began.UnixMilli())
		return err
	})
	if err != nil {
		return fenceMark{}, fmt.Errorf("begin the fence: %w", err)
	}
	return mark, nil
}

// withdraw deletes the row of a fence that has begun and done nothing yet.
func (f *Fence) withdraw(ctx context.Context, mark fenceMark) error {
	ctx, cancel := detached(ctx, detachTimeout)
	defer cancel()
	if _, err := f.db.Write(ctx, "DELETE FROM restore_fence WHERE generation = ?", mark.generation); err != nil {
		return fmt.Errorf("take back that a fence has begun: %w", err)
	}
	return nil
}

func (f *Fence) finish(ctx context.Context, tx database.IDB, mark fenceMark) error {
	res, err := tx.ExecContext(ctx, "UPDATE restore_fence SET done_ms = ? WHERE generation <= ? AND done_ms IS NULL",
		time.Now().UnixMilli(), mark.generation)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return cmp.Or(err, errors.New("another process has finished it"))
	}
	return nil
}

// fenceBatch is how many accounts change in one transaction.
const fenceBatch = 2000

// raiseEpochs raises the epoch of every account, even disabled ones, in the order of their ids.
func (f *Fence) raiseEpochs(ctx context.Context, mark fenceMark, progress func(done int)) error {
	progress(0)
	for after, done := uuid.Nil, 0; ; {
		page, err := database.Collect(ctx, f.db, "list users", database.Value[uuid.UUID],
			"SELECT id FROM users WHERE id > ? ORDER BY id LIMIT ?", after, fenceBatch)
		if err != nil || len(page) == 0 {
			return err
		}
		last := page[len(page)-1]
		err = f.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
			return raiseEpochsBetween(ctx, tx, after, last, mark.epoch, time.Now().UTC().Truncate(time.Microsecond))
		})
		if err != nil {
			return fmt.Errorf("end the sessions of all accounts: %w", err)
		}
		after, done = last, done+len(page)
		progress(done)
	}
}

// raiseEpochsBetween raises the epochs of accounts that have a lower one. Triggers end the codes and links
// that were sent to set a new password. They also add a fact for the followers of /oauth2/revocations for
// each account; these are deleted again, since the end of all keys says the same, and a million facts would
// fill the memory of followers.
func raiseEpochsBetween(ctx context.Context, tx database.IDB, after, last uuid.UUID, epoch int64, now time.Time) error {
	var before int64
	told := "xid = pg_current_xact_id() AND id > ?"
	if !database.IsPostgres(tx) {
		told = "id > ?"
		if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM revocation").Scan(&before); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `UPDATE users SET session_epoch = ?1, kept_sid = NULL, sessions_ended_at = ?2, updated_at = ?2
		WHERE id > ?3 AND id <= ?4 AND session_epoch < ?1`, epoch, now, after, last)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "DELETE FROM revocation WHERE type = 'account' AND "+told, before)
	return err
}

// FenceInterrupted returns when a fence began that has not finished, or the zero time. Servers must not
// start meanwhile.
func FenceInterrupted(ctx context.Context, db database.IDB) (time.Time, error) {
	mark, err := interruptedFence(ctx, db)
	return mark.began, err
}

func interruptedFence(ctx context.Context, db database.IDB) (mark fenceMark, err error) {
	var began int64
	err = db.QueryRowContext(ctx, `SELECT generation, epoch, began_ms FROM restore_fence WHERE done_ms IS NULL
		ORDER BY generation DESC LIMIT 1`).Scan(&mark.generation, &mark.epoch, &began)
	if database.IsNotFound(err) {
		return fenceMark{}, nil
	}
	if err != nil {
		return fenceMark{}, fmt.Errorf("look for an interrupted fence: %w", err)
	}
	mark.began, mark.interrupted = time.UnixMilli(began).UTC(), true
	return mark, nil
}
