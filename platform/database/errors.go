package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// IsNotFound reports that a query of one row found none.
func IsNotFound(err error) bool { return errors.Is(err, sql.ErrNoRows) }

// IsUnique reports that a row was refused because its key exists.
func IsUnique(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == "23505"
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// IsForbidden reports that the role in use may not do this.
func IsForbidden(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

// NoUsage marks a refusal as that of a role that may not use a schema. Only the text of PostgreSQL's error says so, in
// the server's language.
func NoUsage(err error) error {
	if IsForbidden(err) {
		return &noUsageError{err}
	}
	return err
}

type noUsageError struct{ error }

func (e *noUsageError) Unwrap() error { return e.error }

// Classes and single codes of SQLSTATE that are not the statement's fault: it may succeed later,
// unchanged.
var unavailable = []string{
	"08",    // connection exception
	"53",    // insufficient resources: disk, memory, connections
	"57",    // operator intervention: shutdown, cancelled, a time-out
	"58",    // an error outside of PostgreSQL: input and output
	"25006", // read-only transaction: a standby
	"25P03", // idle in transaction for too long
	"25P04", // in transaction for too long
	"26000", // a prepared statement of another connection of a pooler
	"40001", // serialisation failure
	"40003", // it is unknown whether the statement completed
	"40P01", // deadlock
	"55006", // object in use
	"55P03", // lock not available in time
	"72000", // snapshot too old
}

// IsUnavailable reports that the database is down, overloaded, read-only, too slow or refuses
// connections: the statement may succeed later, unchanged.
func IsUnavailable(err error) bool {
	// Any refusal of a new connection, such as after the password was changed.
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return slices.ContainsFunc(unavailable, func(code string) bool { return strings.HasPrefix(pg.Code, code) })
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
			sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM,
			sqlite3.SQLITE_PROTOCOL:
			return true
		}
		return false
	}
	if _, ok := errors.AsType[errReplaced](err); ok {
		return true
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, errLost) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || // the server went away in the middle
		errors.Is(err, context.DeadlineExceeded) || pgconn.SafeToRetry(err)
}

// isConflict reports that a transaction was rolled back because of others, and can run again at
// once.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// stopped adds the end of the context to an error that only says that the transaction is over: it is rolled
// back as soon as the context ends, also between two statements.
func stopped(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil && errors.Is(err, sql.ErrTxDone) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// errUncertain is the failure of a change that the database may have made.
type errUncertain struct{ error }

func (e errUncertain) Error() string { return "the database did not confirm it: " + e.error.Error() }
func (e errUncertain) Unwrap() error { return e.error }

// IsUncertain reports that a change failed although the database may have made it: the answer to a commit is missing.
func IsUncertain(err error) bool {
	_, uncertain := errors.AsType[errUncertain](err)
	return uncertain
}

// uncertain marks the error of a commit, or of a statement outside of a transaction, if nobody knows whether it
// was done.
func uncertain(err error) error {
	if err == nil {
		return nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// A server that is stopped may say so after the commit, while it waits for a standby.
		if !strings.HasPrefix(pg.Code, "57P0") && !strings.HasPrefix(pg.Code, "08") && pg.Code != "40003" {
			return err
		}
	} else if !IsUnavailable(err) && !errors.Is(err, context.Canceled) {
		return err
	}
	return errUncertain{err}
}

// uncertain is the function of that name, and says so if it is for a missing standby that commits are not confirmed.
func (db *DB) uncertain(err error) error {
	err = uncertain(err)
	if IsUncertain(err) && db.lacksStandby() {
		err = fmt.Errorf("%w: %w", errNoStandby, err)
	}
	return err
}

// unsent reports that a statement outside of a transaction failed before it was sent. For a commit this tells
// nothing: where the connection breaks after it was sent, the driver may say only that the connection is closed.
func unsent(err error) bool {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting || errors.Is(err, sql.ErrConnDone) || errors.Is(err, driver.ErrBadConn) ||
		pgconn.SafeToRetry(err)
}
