package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
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
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// IsForbidden reports that the role in use may not do this.
func IsForbidden(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

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
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return slices.ContainsFunc(unavailable, func(code string) bool { return strings.HasPrefix(pg.Code, code) })
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
			sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM,
			sqlite3.SQLITE_PROTOCOL:
			return true
		}
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || // the server went away in the middle
		errors.Is(err, context.DeadlineExceeded) || pgconn.SafeToRetry(err)
}

// isConflict reports that a transaction was rolled back because of others, and can run again at
// once.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
