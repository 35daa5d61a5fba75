package migrations

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// Option is how [Up], [Down] and [Preview] behave towards others.
type Option func(*options)

type options struct {
	wait    time.Duration
	waiting func(who string)
	alone   bool
	only    []State // what [Down] may undo; nil: anything
}

// Wait is how long to wait for a process that migrates; a minute without it. meanwhile, if not
// nil, hears once who that is.
func Wait(most time.Duration, meanwhile func(who string)) Option {
	return func(o *options) { o.wait, o.waiting = most, meanwhile }
}

// Alone makes it an [ErrInUse] when others use the database.
func Alone() Option { return func(o *options) { o.alone = true } }

// Only makes it an [ErrChanged] when [Down] would undo anything but what a [Preview] has told.
func Only(undo []State) Option {
	return func(o *options) { o.only = append([]State{}, undo...) }
}

// ErrChanged says that somebody has migrated since a [Preview].
var ErrChanged = errors.New("the schema was changed meanwhile, and nothing was undone")

// ErrLocked says that another process was migrating all the time, and which.
var ErrLocked = errors.New("another process is migrating this database")

// ErrInUse says that others use the database, and which.
var ErrInUse = errors.New("the database is in use")

// leaving is how long the session of a process that has ended may still be seen.
const leaving = 2 * time.Second

// Unused returns [ErrInUse] when others use the database, and waits for one that migrates.
func Unused(ctx context.Context, db *database.DB) error {
	soon, cancel := context.WithTimeout(ctx, leaving)
	defer cancel()
	for {
		err := locked(ctx, db, []Option{Alone()}, func(database.Single) error { return nil })
		if !errors.Is(err, ErrInUse) || !retry.Sleep(soon, 2*retryLock) {
			return err
		}
	}
}

// lockKey is an arbitrary number that no other program should use for an advisory lock.
const lockKey = 0x6175746863746c // "authctl"

// retryLock is how often a lock that somebody has is asked for.
const retryLock = 50 * time.Millisecond

func chosen(list []Option) options {
	o := options{wait: time.Minute}
	for _, option := range list {
		option(&o)
	}
	return o
}

// locked runs fn on one connection, in one transaction, and no other migration at the same time. On
// PostgreSQL the lock is the transaction's and ends with it: a pooler that gives each
// transaction another connection cannot leave it behind, and nor can a killed process. It is
// the number that earlier releases lock for their sessions, so they wait for each other.
func locked(ctx context.Context, db *database.DB, list []Option, fn func(one database.Single) error) error {
	o := chosen(list)
	return db.Single(ctx, func(one database.Single) error {
		if !db.IsPostgres() {
			return o.lockedSQLite(ctx, one, fn)
		}
		return one.Tx(ctx, func() error {
			// A role may be bounded so that no request holds anything up. This takes its time, but
			// must not keep everybody else waiting behind a table that it does not get, nor for a process
			// that has stopped, since its machine was suspended or its network was cut.
			if _, err := one.ExecContext(ctx, settings); err != nil {
				return fmt.Errorf("prepare to migrate: %w", err)
			}
			err := o.await(ctx, func() (got bool, err error) {
				err = one.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock(?)", lockKey).Scan(&got)
				return got, err
			}, func() string { return holder(ctx, one) })
			if err != nil {
				return err
			}
			if o.alone {
				if err := alonePostgres(ctx, one); err != nil {
					return err
				}
			}
			return fn(one)
		})
	})
}

// settings holds for a transaction. PostgreSQL has had transaction_timeout since 17.
const settings = `SELECT set_config(name, CASE WHEN name IN ('statement_timeout', 'transaction_timeout')
	THEN '0' ELSE '10s' END, true) FROM pg_settings
	WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout')`

// await tries until it succeeds or the time is up.
func (o *options) await(ctx context.Context, try func() (bool, error), who func() string) error {
	bounded, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	for first := true; ; first = false {
		got, err := try()
		if err != nil {
			return fmt.Errorf("take the migration lock: %w", err)
		}
		if got {
			return nil
		}
		if first && o.waiting != nil {
			o.waiting(who())
		}
		if !retry.Sleep(bounded, retryLock) {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("wait for the migration lock: %w", err)
			}
			return fmt.Errorf("%w: %s; waited %s", ErrLocked, who(), o.wait)
		}
	}
}

// holder says which session has the lock.
func holder(ctx context.Context, one database.Single) string {
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var pid int64
	var program, user, from, state, since string
	err := one.QueryRowContext(late, `SELECT a.pid, coalesce(a.application_name, ''), coalesce(a.usename, ''), coalesce(host(a.client_addr), 'the same machine'),
			coalesce(a.state, ''), coalesce(to_char(a.xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS'), '')
		FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND l.classid = (?1::bigint >> 32)::oid AND l.objid = (?1::bigint & 4294967295)::oid LIMIT 1`, lockKey).
		Scan(&pid, &program, &user, &from, &state, &since)
	if err != nil {
		return "it cannot be told which"
	}
	text := fmt.Sprintf("process %d of %s, %s of role %s", pid, from, program, user)
	if since != "" {
		text += ", since " + since + " UTC"
	}
	if state == "idle" { // an earlier release's, which a pooler has left behind
		text += fmt.Sprintf(", which does nothing: end it with SELECT pg_terminate_backend(%d)", pid)
	}
	return text
}

// alonePostgres looks for sessions of others that may use the tables: of a role that may, or of
// authctl by name. Those of superusers are only counted by name: monitoring has them open all
// the time. What kind a session of another role is may be hidden from ours; its name is not.
func alonePostgres(ctx context.Context, one database.Single) error {
	others, err := database.Collect(ctx, one, "look who uses the database", func(row database.Row) (string, error) {
		var name string
		var n int
		err := row.Scan(&name, &n)
		return fmt.Sprintf("%s (%d)", name, n), err
	}, `SELECT coalesce(nullif(a.application_name, ''), 'a program without a name') || ' of role ' || coalesce(a.usename, '?')
			|| ' from ' || coalesce(host(a.client_addr), 'the same machine'), count(*)
		FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
		WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND coalesce(a.backend_type, 'client backend') = 'client backend'
			AND (a.application_name LIKE 'authctl%' OR NOT r.rolsuper AND has_table_privilege(r.oid, to_regclass('bun_migrations'), 'SELECT'))
		GROUP BY 1 ORDER BY 1`)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("%w by %s", ErrInUse, strings.Join(others, ", "))
	}
	return nil
}

func (o *options) lockedSQLite(ctx context.Context, one database.Single, fn func(one database.Single) error) error {
	var path string
	if err := one.QueryRowContext(ctx,
		"SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&path); err != nil {
		return fmt.Errorf("take the migration lock: %w", err)
	}
	// Each change is a transaction anyway; this one also keeps earlier releases waiting, and
	// says who has it.
	name := path + ".migrate.lock"
	file := flock.New(name, flock.SetPermissions(0o600))
	err := o.await(ctx, file.TryLock, func() string {
		text, err := os.ReadFile(name)
		if err != nil || len(text) == 0 {
			return "it cannot be told which"
		}
		return "process " + strings.TrimSpace(string(text))
	})
	if err != nil {
		return err
	}
	defer func() { _ = file.Unlock() }()
	_ = os.WriteFile(name, fmt.Appendf(nil, "%d, since %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339)),
		0o600)
	defer func() { _ = os.Truncate(name, 0) }()
	if o.alone {
		if err := aloneSQLite(ctx, one); err != nil {
			return err
		}
	}
	return one.Tx(ctx, func() error { return fn(one) })
}

// aloneSQLite leaves the write-ahead log and comes back to it, which takes that no other
// connection is open, of whichever process and release.
func aloneSQLite(ctx context.Context, one database.Single) error {
	mode := func(pragma string) (string, error) {
		var is string
		err := one.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&is)
		return is, err
	}
	if _, err := mode("busy_timeout = 200"); err != nil {
		return fmt.Errorf("look who uses the database: %w", err)
	}
	is, err := mode("journal_mode = DELETE")
	if err != nil && !database.IsUnavailable(err) {
		return fmt.Errorf("look who uses the database: %w", err)
	}
	if err != nil || is != "delete" {
		return fmt.Errorf("%w by another process, or more", ErrInUse)
	}
	if _, err := mode("journal_mode = WAL"); err != nil {
		return fmt.Errorf("look who uses the database: %w", err)
	}
	if _, err := mode("busy_timeout = 5000"); err != nil {
		return fmt.Errorf("look who uses the database: %w", err)
	}
	return nil
}
