package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// errReadOnly says that the server answers but takes no writes.
var errReadOnly = errors.New("it is read-only: a standby, or default_transaction_read_only is on")

// errNoStandby says that commits wait for a synchronous standby.
var errNoStandby = errors.New("commits wait for a synchronous standby: too few of synchronous_standby_names " +
	"follow or answer")

// tryStatements write a temporary file of 70 kB where the tables are. PostgreSQL goes on when a disk is full, as long
// as its log has room: then it reads, changes rows in pages that it has, and fails whenever a table has to grow.
const tryStatements = `SELECT current_setting('transaction_read_only');
	SET LOCAL work_mem = '64kB'; SET LOCAL temp_tablespaces = ''; SELECT count(*) FROM generate_series(1, 5000)`

// seemsToWait reports whether commits seem to wait for a synchronous standby: one of this role has waited for a
// second, or too few servers follow that may be in synchronous_standby_names. Most roles see no more of them than
// their names.
const seemsToWait = `WITH named AS (SELECT current_setting('synchronous_standby_names') AS list)
	SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE wait_event = 'SyncRep' AND query_start < clock_timestamp() - interval '1 second')
		OR (SELECT count(*) FROM pg_stat_replication WHERE coalesce(sync_state IN ('sync', 'quorum'),
				strpos(list, '*') > 0 OR strpos(lower(list), lower(application_name)) > 0))
			< coalesce(substring(list FROM '^\s*(?:[[:alpha:]]+\s+)?(\d+)\s*\(')::bigint, 1)
	FROM named WHERE list <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local')`

// TryWrite reports whether the database takes writes, for readiness. It is cheap, and changes
// nothing that is read: PostgreSQL writes a temporary file, and commits an empty message if commits seem to wait for a
// standby; SQLite writes a page. That another process is writing is proof enough for SQLite, as long as it goes on.
func (db *DB) TryWrite(ctx context.Context) error {
	if db.IsPostgres() {
		return db.tryPostgres(ctx)
	}
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, busy)
	defer cancel()
	_, err := db.Write(bounded, "PRAGMA user_version = 0") // nobody else uses it
	lite, ok := errors.AsType[*sqlite.Error](err)
	if bounded.Err() != nil || ok && lite.Code()&0xff == sqlite3.SQLITE_BUSY {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return db.locked.lasts()
	}
	if err != nil {
		return fmt.Errorf("it takes no writes: %w", err)
	}
	return nil
}

// lastingLock notices that the write lock of SQLite is held by somebody who writes nothing, such as a command that was
// suspended.
type lastingLock struct {
	wal   string // the file that every commit changes
	mu    sync.Mutex
	wrote time.Time // when that was
	since time.Time // when the lock was first found held after that
}

// lasts is called when the lock is held.
func (l *lastingLock) lasts() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrote time.Time
	if is, err := os.Stat(l.wal); err == nil {
		wrote = is.ModTime()
	}
	if l.since.IsZero() || !wrote.Equal(l.wrote) {
		l.wrote, l.since = wrote, time.Now()
	}
	held := time.Since(l.since)
	if held < longLock {
		return nil
	}
	return fmt.Errorf("it takes no writes: somebody has held its write lock for %s and written nothing; a command "+
		"that is suspended or hangs must go on or be ended", held.Round(time.Second))
}

// longLock is longer than writers wait for the lock.
const longLock = 10 * time.Second

func (db *DB) tryPostgres(ctx context.Context) error {
	trying, end := context.WithCancelCause(ctx)
	defer end(nil)
	timer := time.AfterFunc(busy, func() {
		if db.noneFollows(trying) {
			end(errNoStandby)
		}
	})
	defer timer.Stop()
	err := db.Postgres(trying, func(conn *pgx.Conn) error {
		results, err := conn.PgConn().Exec(trying, tryStatements).ReadAll()
		if len(results) > 0 && len(results[0].Rows) > 0 && string(results[0].Rows[0][0]) == "on" {
			return errReadOnly
		}
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "53400" { // temp_file_limit
			err = nil
		}
		if err != nil || !commitsWait(trying, conn) {
			return err
		}
		_, err = conn.PgConn().Exec(trying, "SELECT pg_logical_emit_message(true, 'authctl', '')").ReadAll()
		return err
	})
	if err != nil && errors.Is(context.Cause(trying), errNoStandby) {
		return errNoStandby
	}
	return err
}

// missingStandby is what was found when a commit was not confirmed.
type missingStandby struct {
	mu    sync.Mutex
	asked time.Time
	found bool
}

// lacksStandby reports whether commits seem to wait. It asks once a second at most: there may be many errors.
func (db *DB) lacksStandby() bool {
	db.standby.mu.Lock()
	defer db.standby.mu.Unlock()
	if time.Since(db.standby.asked) > time.Second {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		db.standby.found, db.standby.asked = db.noneFollows(ctx), time.Now()
	}
	return db.standby.found
}

// noneFollows asks by a connection of its own whether commits seem to wait: those that do may have all of the pool.
func (db *DB) noneFollows(ctx context.Context) bool {
	conn, err := pgx.ConnectConfig(ctx, db.connect.Copy())
	if err != nil {
		return false
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return commitsWait(ctx, conn)
}

// commitsWait is what seemsToWait says.
func commitsWait(ctx context.Context, conn *pgx.Conn) bool {
	results, err := conn.PgConn().Exec(ctx, seemsToWait).ReadAll()
	return err == nil && len(results[0].Rows) > 0 && string(results[0].Rows[0][0]) == "t"
}

// busy is how long TryWrite waits for its turn to write, and before it looks whether commits wait for a standby.
const busy = 500 * time.Millisecond
