package database

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// remedies say what a person can do about an error of PostgreSQL, by SQLSTATE or the beginning of
// one. The first match counts.
var remedies = []struct{ code, remedy string }{
	{"28P01", "correct the role or its password: DATABASE_URL, or DB_POSTGRES_USER and DB_POSTGRES_PASSWORD; " +
		"deploy/postgres/roles.sql makes the roles, and \\password gives each its password"},
	{"28", "let the role in from here with a line in pg_hba.conf, or name another one; " +
		"deploy/postgres/roles.sql makes the roles"},
	{"3D000", "make it as a role that may: CREATE DATABASE … ENCODING 'UTF8'; or name another one with " +
		"DATABASE_URL or DB_POSTGRES_DB"},
	{"42501", "run authctl migrate grants as authctl_migrate, after each authctl migrate up; roles.sql grants " +
		"connecting; " +
		"a serve that relays needs GRANT authctl_relay TO authctl_serve, or OUTBOX_RELAY=off"},
	{"42P01", "run: authctl migrate up; if that was done, the tables are in a schema that the role's " +
		"search_path does not name, or another program has changed that of a connection of PgBouncer (RECONNECT on " +
		"its console ends it)"},
	{"42703", "run: authctl migrate up"},
	{"42883", "run: authctl migrate up"},
	{"3F000", "correct the search_path of the role or of DATABASE_URL: it names no schema that is there"},
	{"25P03", "run it again: it was suspended, or its network was cut, and the server has undone what it had begun"},
	{"25P04", "raise transaction_timeout of the role"},
	{"25006", "name the primary, or all hosts (postgres://h1,h2/…): the first that takes writes is used"},
	{"53300", "raise max_connections of the server, or lower DATABASE_MAX_CONNS of each process"},
	{"53100", "make room on the server's disk"},
	{"53", "read the server's log: it has run out of something"},
	{"57P03", "wait: the server is starting, stopping or recovering"},
	{"57014", "look for what blocks it, or raise statement_timeout of the role"},
	{"57", "try again: the server was stopped, or somebody cancelled this"},
	{"55P03", "try again: another program holds the table"},
	{"42704", "remove from DATABASE_URL what is not a parameter of PostgreSQL; through PgBouncer, name it in " +
		"ignore_startup_parameters"},
	{"22023", "correct the parameter of DATABASE_URL that PostgreSQL does not accept"},
	{"26000", "let the pooler keep sessions (pool_mode = session), or prepared statements (max_prepared_statements)"},
}

// pooler are the remedies for errors of PgBouncer, by a part of their text: they share the code 08P01.
var pooler = []struct{ text, remedy string }{
	{"startup parameter", "name the parameter in ignore_startup_parameters of PgBouncer, or remove it from " +
		"DATABASE_URL"},
	{"max_client_conn", "raise max_client_conn of PgBouncer, or lower DATABASE_MAX_CONNS of each process"},
	{"no such database", "name it under [databases] of PgBouncer, or another one with DATABASE_URL"},
	{"no such user", "correct the role or its password in DATABASE_URL, or in the auth_file of PgBouncer"},
	{"authentication failed", "correct the role or its password in DATABASE_URL, or in the auth_file of PgBouncer"},
	{"", "read the log of PgBouncer, and check that it reaches the server"},
}

// Task is what was tried. It decides which role may do it.
type Task int

const (
	AnyTask     Task = iota
	OwnTables        // authctl migrate, restore
	ServeUsers       // commands about accounts, sessions and keys
	RelayEvents      // commands about the outbox
)

// forbidden are the remedies of a role without a right, where the task says which role has it.
var forbidden = map[Task]string{
	OwnTables: "run it as the role that owns the tables, which is authctl_migrate if deploy/postgres/roles.sql was run",
	ServeUsers: "run it as authctl_serve, or as the role that owns the tables; if that one may not, run " +
		"authctl migrate grants as authctl_migrate, after each authctl migrate up",
	RelayEvents: "run it as authctl_relay, or as the role that owns the tables; if that one may not, run " +
		"authctl migrate grants as authctl_migrate, after each authctl migrate up",
}

// migrating are the remedies for statements of authctl migrate where they are not the usual ones.
var migrating = map[string]string{
	"42704": "create the roles first, with deploy/postgres/roles.sql; " +
		"if one role does everything, grant nothing",
	"42P07": notOurs,
	"42701": notOurs,
	"42710": notOurs,
	"42723": notOurs,
	"42P01": notOurs,
	"42703": notOurs,
	"42883": notOurs,
}

const notOurs = "the table bun_migrations does not say that authctl made what is there: name an empty database, " +
	"or put that table back from the backup that the others are from"

// Remedy says what a person can do about an error of the database. It is empty if there is no
// error, or if the error says so itself.
func Remedy(err error, task Task) string {
	if _, unfit := errors.AsType[unfitError](err); unfit || err == nil || errors.Is(err, context.Canceled) {
		return ""
	}
	var pg *pgconn.PgError
	var lite *sqlite.Error
	_, opening := errors.AsType[*openError](err)
	silent, _ := errors.AsType[*errSilent](err)
	noUsage, _ := errors.AsType[*noUsageError](err)
	switch {
	case errors.Is(err, errNoStandby):
		return "start a standby again, or set synchronous_standby_names to those that follow (pg_stat_replication)"
	case silent != nil && silent.alive:
		return "look in pg_stat_activity for what blocks it, such as a transaction that was left open"
	case silent != nil:
		return "look at the server and its machine: it hangs, or was paused"
	case noUsage != nil && task != OwnTables:
		return "let the role use the schema (GRANT USAGE ON SCHEMA), as deploy/postgres/roles.sql does for its roles"
	case errors.As(err, &pg) && pg.Code == "42501" && !opening && forbidden[task] != "":
		return forbidden[task]
	case pg != nil && task == OwnTables && !opening && migrating[pg.Code] != "":
		return migrating[pg.Code]
	case pg != nil && pg.Code == "08P01":
		for _, r := range pooler {
			if strings.Contains(pg.Message, r.text) {
				return r.remedy
			}
		}
		return ""
	case pg != nil:
		for _, r := range remedies {
			if strings.HasPrefix(pg.Code, r.code) {
				return r.remedy
			}
		}
		return ""
	case errors.Is(err, pgconn.ErrReadOnlyConnection) && len(attemptsOf(err)) > 1:
		return "wait for the fail-over, or promote a standby: none of these servers takes writes"
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return Remedy(&pgconn.PgError{Code: "25006"}, task)
	case errors.As(err, &lite) && !opening && lite.Code() == sqlite3.SQLITE_ERROR: // embedded, each command migrates
		return notOurs
	case errors.As(err, &lite):
		return remedySQLite(lite.Code())
	}
	if gone, ok := errors.AsType[errReplaced](err); ok {
		if gone.overwritten {
			return "stop what uses it, move its -wal and -shm away, copy the other file there again, and start"
		}
		return "put it back, or restart to use what is there now"
	}
	if stray, ok := errors.AsType[*strayWAL](err); ok {
		return stray.remedy
	}
	if !opening {
		return ""
	}
	return remedyToOpen(err)
}

func remedySQLite(code int) string {
	if code == sqlite3.SQLITE_IOERR_SHMSIZE { // a full disk where no other process has the database open
		return remedySQLite(sqlite3.SQLITE_FULL)
	}
	switch code & 0xff {
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return "let authctl's user write to the file and its folder"
	case sqlite3.SQLITE_NOTADB:
		return "name another file with DATABASE_URL: this one is no SQLite database"
	case sqlite3.SQLITE_CORRUPT:
		return "put a backup in its place: the file is damaged"
	case sqlite3.SQLITE_FULL:
		return "make room on the disk"
	case sqlite3.SQLITE_IOERR:
		return "look at the disk and its file system: SQLite needs a local one"
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "try again when the other process has finished writing; one that is suspended must go on or be ended"
	}
	return ""
}

// remedyToOpen is for errors that no server has reported.
func remedyToOpen(err error) string {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var certificate *tls.CertificateVerificationError
	var network net.Error
	var file *fs.PathError
	switch {
	case errors.As(err, &file) && errors.Is(err, syscall.EROFS):
		return "name one on a file system that can be written to, with DATABASE_URL or APP_DATA_DIR"
	case errors.As(err, &file) && errors.Is(err, syscall.ENOTDIR):
		return "name a file in a folder with DATABASE_URL: what is named as one is a file"
	case errors.As(err, &file) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) ||
		errors.Is(err, syscall.EEXIST)): // the folder was made if it was missing
		return "correct the link, which leads nowhere, or name another file with DATABASE_URL"
	case errors.As(err, &file): // before the network's: an errno is both
		return "let authctl's user write to it, or name another file with DATABASE_URL"
	case errors.As(err, &dns):
		return "correct the host in DATABASE_URL or DB_POSTGRES_HOST: its name cannot be resolved"
	case errors.As(err, &name):
		return "name the server as its certificate does"
	case errors.As(err, &unknown), errors.As(err, &certificate):
		return "name the authority of its certificate with sslrootcert in DATABASE_URL, or choose another sslmode"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &network) && network.Timeout():
		return "check that it is reachable from here: nothing answered in time"
	case errors.As(err, &network):
		return "start it, or name another one with DATABASE_URL"
	}
	return "check that a PostgreSQL server answers there, and offers TLS (ssl = on); if it does not, set " +
		"sslmode=disable"
}
