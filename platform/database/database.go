// Package database opens the one SQL database of the service, PostgreSQL or SQLite, and holds
// what differs between the two: how to connect, how arguments are bound, how to take a write
// transaction, how to recognise an error.
package database

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/tracing"
)

// Config says which database to use. With nothing set it is SQLite in the data folder.
type Config struct {
	URL      config.Secret  `config:"database.url" doc:"The database as one URL: postgres://USER:PASSWORD@HOST:PORT/DB?sslmode=… or sqlite:PATH. Overrides db.postgres.*. If it and db.postgres.host are empty, SQLite in app.data_dir is used."`
	Postgres PostgresConfig `config:"db.postgres"`
	MaxConns int            `config:"database.max_conns" default:"0" min:"0" max:"1000" doc:"Most connections that this process opens, not counting the one on which a relay listens for events. 0 means four for each core, at least eight. A serve that relays keeps a quarter of them, one to eight, for its relay. PostgreSQL's own max_connections applies too."`
}

// PostgresConfig names a PostgreSQL server in parts.
type PostgresConfig struct {
	User     string        `config:"user" default:"postgres" doc:"PostgreSQL user."`
	Password config.Secret `config:"password" doc:"PostgreSQL password."`
	Host     string        `config:"host" doc:"PostgreSQL host. Empty means no PostgreSQL, unless database.url names one."`
	Port     int           `config:"port" default:"5432" min:"1" max:"65535" doc:"PostgreSQL port."`
	DB       string        `config:"db" default:"authctl" doc:"PostgreSQL database."`
	SSLMode  string        `config:"sslmode" default:"" oneof:",disable,prefer,require,verify-ca,verify-full" doc:"TLS to PostgreSQL: disable, prefer, require, verify-ca or verify-full. Empty means prefer in dev mode and verify-full in prod mode."`
}

// UsesPostgres reports whether the settings name a PostgreSQL server.
func (c Config) UsesPostgres() bool {
	if u := c.URL.Reveal(); u != "" {
		return !strings.HasPrefix(u, sqliteScheme)
	}
	return c.Postgres.Host != ""
}

// Validate reports settings that cannot work. It shows nothing of a URL.
func (c Config) Validate(report func(path, problem string)) {
	if err := c.check(); err != nil {
		if fault, ok := errors.AsType[errAddress](err); ok {
			report(fault.path, fault.problem)
		}
	}
}

// CheckFiles reports a file that SQLite cannot use.
func (c Config) CheckFiles(report func(path, problem string)) {
	if !strings.HasPrefix(c.URL.Reveal(), sqliteScheme) {
		return
	}
	path := c.File("")
	if problem := config.FolderProblem(filepath.Dir(path)); problem != "" {
		report("database.url", "cannot be used: "+problem)
	} else if isForeign(path) {
		report("database.url", "names a file that is no SQLite database")
	}
}

// isForeign reports whether a file has content that does not begin like a database.
func isForeign(path string) bool {
	const magic = "SQLite format 3\x00"
	openHere.Lock()
	defer openHere.Unlock()
	if is, err := os.Stat(path); err == nil && openAs(is) != nil {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false // missing: it is created
	}
	defer f.Close()
	head := make([]byte, len(magic))
	n, err := io.ReadFull(f, head)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && string(head[:n]) != magic
}

// check returns an [errAddress] where the settings name no database that can be used.
func (c Config) check() error {
	switch u := c.URL.Reveal(); {
	case u == "" && c.Postgres.Host == "":
		return nil
	case strings.HasPrefix(u, sqliteScheme):
		return checkSQLite(strings.TrimPrefix(u, sqliteScheme))
	case u != "" && !strings.HasPrefix(u, "postgres://") && !strings.HasPrefix(u, "postgresql://"):
		return errAddress{"database.url", "must begin with postgres:// or sqlite:"}
	}
	if problem := c.Postgres.hostProblem(); c.URL == "" && problem != "" {
		return errAddress{"db.postgres.host", problem}
	}
	_, err := c.postgresConfig(false)
	return err
}

// Overridden reports settings without effect.
func (c Config) Overridden(report func(path, by string)) {
	if c.URL == "" {
		return
	}
	for _, name := range []string{"user", "password", "host", "port", "db", "sslmode"} {
		report("db.postgres."+name, "database.url")
	}
}

// DB is an open database. It is safe for concurrent use.
type DB struct {
	statements
	pool *sql.DB

	connecting time.Duration   // what trying every server once may take
	pooler     *atomic.Bool    // something hands connections on to other clients
	standby    *missingStandby // nil on SQLite
	connect    *pgx.ConnConfig // nil on SQLite
	watch      *watch          // of its connections; nil on SQLite

	// SQLite has one writer at a time. Queueing here is in order of arrival and without polling,
	// unlike SQLite's own busy handler. Nil on PostgreSQL.
	writer chan struct{}
	locked *lastingLock // nil on PostgreSQL
}

// Options are what the settings alone do not say.
type Options struct {
	DataDir string // where SQLite lives when nothing is named; made with mode 0700
	Prod    bool   // TLS is verified unless the settings say otherwise
	AppName string // shown in pg_stat_activity

	// AnswerWithin is how long PostgreSQL may take for the answer to a statement. 0 means any time, as long as it
	// answers new connections.
	AnswerWithin time.Duration
}

// Open connects to the database and checks that it answers. The caller closes it.
func Open(ctx context.Context, cfg Config, opt Options) (*DB, error) {
	var db *DB
	var err error
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.UsesPostgres() {
		db, err = openPostgres(ctx, cfg, opt)
	} else {
		db, err = openSQLite(cfg.File(opt.DataDir), cfg.MaxConns)
	}
	if err != nil {
		return nil, &openError{err.Error(), err}
	}
	ctx, cancel := context.WithTimeout(ctx, db.connecting)
	defer cancel()
	if err := db.PingContext(ctx); err != nil {
		_ = db.Close()
		return nil, &openError{"connect to " + cfg.Describe(opt.DataDir) + ": " + plain(err).Error(), err}
	}
	if db.postgres {
		db.bound(ctx)
	}
	return db, nil
}

// bound keeps the pool below the number of connections that the server allows. Each connection
// that the server refused would fail a request, which could have waited for one of the pool.
func (db *DB) bound(ctx context.Context) {
	const query = "SELECT current_setting('max_connections')::integer - " +
		"current_setting('superuser_reserved_connections')::integer"
	var most int
	err := db.QueryRowContext(ctx, query).Scan(&most)
	if err == nil && most > 0 && most < db.pool.Stats().MaxOpenConnections {
		db.pool.SetMaxOpenConns(most)
	}
}

// Exists reports whether there is a database to open: the settings name a server, or the SQLite
// file is there or left a -wal, or it cannot be told, and then opening tells why. Opening would make a missing file.
func (c Config) Exists(dataDir string) bool {
	if c.UsesPostgres() {
		return true
	}
	place, err := placeOf(c.File(dataDir))
	if err == nil {
		_, err = os.Stat(place)
	} else if _, none := os.Lstat(c.File(dataDir)); none == nil { // a link that leads nowhere
		return true
	}
	return !errors.Is(err, fs.ErrNotExist) || place != "" && walLeft(place)
}

// Describe names the database for a person, without credentials.
func (c Config) Describe(dataDir string) string {
	if c.UsesPostgres() {
		return c.describePostgres()
	}
	return "SQLite " + c.File(dataDir)
}

func openPostgres(ctx context.Context, cfg Config, opt Options) (*DB, error) {
	cc, err := cfg.postgresConfig(opt.Prod)
	if err != nil {
		return nil, err
	}
	requireTLS12(cc)
	cc.DialFunc = dialer().DialContext
	var pooler atomic.Bool
	prepareConnections(cc, &pooler)
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = opt.AppName
	}
	wait := patience(ctx, cc)
	watch := watchConnections(cc, opt.AnswerWithin)
	db := newDB(openPool(cc, connections(cfg.MaxConns)), true)
	db.connecting, db.pooler, db.standby, db.connect, db.watch = wait, &pooler, &missingStandby{}, cc, watch
	return db, nil
}

func openPool(cc *pgx.ConnConfig, conns int) *sql.DB {
	pool := stdlib.OpenDB(*cc)
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	pool.SetConnMaxLifetime(30 * time.Minute)
	return pool
}

// Split takes a quarter of the connections that db may open, one to eight, for another DB on the same database.
// Its users never wait for those of db. Where there is only one connection, and with SQLite, it returns db itself.
// Call it before db is used by others. The caller closes both.
func (db *DB) Split() *DB {
	conns := db.pool.Stats().MaxOpenConnections
	if !db.postgres || conns < 2 {
		return db
	}
	part := min(max(conns/4, 1), 8)
	db.pool.SetMaxOpenConns(conns - part)
	db.pool.SetMaxIdleConns(conns - part)
	other := newDB(openPool(db.connect, part), true)
	other.connecting, other.pooler, other.standby = db.connecting, db.pooler, db.standby
	other.connect, other.watch = db.connect, db.watch
	return other
}

// connections is the size of the pool, as set or for this machine.
func connections(set int) int { return cmp.Or(set, max(8, 4*runtime.GOMAXPROCS(0))) }

func openSQLite(path string, conns int) (*DB, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	file, err := newOpenFile(path)
	if err != nil {
		return nil, fmt.Errorf("open the database file: %w", err)
	}
	q := url.Values{
		"mode":    {"rw"},        // a file that was removed is not made again, empty
		"_txlock": {"immediate"}, // a transaction that will write takes the lock at once: no upgrade deadlocks
		"_pragma": {
			"busy_timeout(5000)", // for other processes: commands while a server runs
			"journal_mode(WAL)",
			"synchronous(FULL)", // an answer given survives a power cut
			"foreign_keys(1)",
		},
	}
	address := url.URL{Scheme: "file", Opaque: (&url.URL{Path: file.place}).EscapedPath(), RawQuery: q.Encode()}
	connector, err := sqlite.NewConnector(address.String())
	if err != nil {
		return nil, fmt.Errorf("open the database file: %w", errors.Join(err, file.release(1, 0)))
	}
	sqldb := sql.OpenDB(file.only(connector))
	sqldb.SetMaxOpenConns(connections(conns))
	sqldb.SetMaxIdleConns(connections(conns))
	db := newDB(sqldb, false)
	db.writer, db.connecting, db.locked = make(chan struct{}, 1), shortest, &lastingLock{wal: file.place + "-wal"}
	return db, nil
}

func newDB(pool *sql.DB, postgres bool) *DB {
	return &DB{statements: statements{pool, postgres}, pool: pool}
}

// Close closes the connections.
func (db *DB) Close() error { return db.pool.Close() }

// PingContext checks that the database answers.
func (db *DB) PingContext(ctx context.Context) error { return db.pool.PingContext(ctx) }

// Conn takes one connection of the pool, for what must happen on the same one. The caller
// gives it back with [Conn.Close].
func (db *DB) Conn(ctx context.Context) (Conn, error) {
	conn, err := db.pool.Conn(ctx)
	return Conn{statements{conn, db.postgres}, conn}, err
}

// IsPostgres reports whether the database is PostgreSQL; otherwise it is SQLite.
func (db *DB) IsPostgres() bool { return IsPostgres(db) }

// IsPostgres reports whether a database or a transaction is of PostgreSQL; otherwise it is of SQLite.
func IsPostgres(db IDB) bool { return db.isPostgres() }

// Tx runs fn in a write transaction at READ COMMITTED (PostgreSQL) or BEGIN IMMEDIATE
// (SQLite), and commits when fn returns nil. fn must use tx for every statement: on SQLite
// a statement on db inside a transaction waits for the transaction itself. Nothing slow
// belongs in fn: no hashing, no Redis, no Kafka.
//
// PostgreSQL ends a transaction whose process does nothing for five seconds.
//
// fn runs again when PostgreSQL rolled the transaction back in favour of another, as in a
// deadlock. What it leaves outside the transaction must not depend on an earlier run.
//
// After an error of the commit itself, it may be unknown whether the transaction committed
// ([IsUncertain]); callers must be safe to run again.
func (db *DB) Tx(ctx context.Context, fn func(ctx context.Context, tx Tx) error) error {
	ctx, span := tracing.Start(ctx, "transaction")
	defer span.End()
	done, err := db.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return again(ctx, func() error { return db.transaction(ctx, fn) })
}

func (db *DB) transaction(ctx context.Context, fn func(ctx context.Context, tx Tx) error) error {
	// SQLite has only one level, and its driver has no name for it.
	var opt sql.TxOptions
	if db.postgres {
		opt.Isolation = sql.LevelReadCommitted
	}
	tx, err := db.pool.BeginTx(ctx, &opt)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = tx.Rollback()
		}
	}()
	if db.Pooled() { // what was set on a connection may be set on another one
		if _, err := tx.ExecContext(ctx, "SET LOCAL "+boundIdle); err != nil {
			return stopped(ctx, err)
		}
	}
	if err := fn(ctx, Tx{statements{tx, db.postgres}, tx}); err != nil {
		return stopped(ctx, err)
	}
	if err := ctx.Err(); err != nil {
		return err // nothing is committed, and everybody knows
	}
	returned = true
	if err = tx.Commit(); db.postgres { // the answer of SQLite cannot get lost
		err = db.uncertain(err)
	}
	return err
}

// ExecContext runs a statement that returns no rows, outside of a transaction.
func (db *DB) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	res, err := db.statements.ExecContext(ctx, query, args...)
	if err != nil && db.postgres && !unsent(err) {
		err = db.uncertain(err)
	}
	return res, err
}

// Write runs one writing statement outside a transaction, queued as [DB.Tx] is, and returns how many rows it changed.
func (db *DB) Write(ctx context.Context, query string, args ...any) (changed int64, err error) {
	done, err := db.turn(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	err = again(ctx, func() error {
		res, err := db.ExecContext(ctx, query, args...)
		if err == nil {
			changed, err = res.RowsAffected()
		}
		return err
	})
	return changed, err
}

// turn waits until this caller may write, and returns the function that lets the next one.
func (db *DB) turn(ctx context.Context) (done func(), err error) {
	if db.writer == nil {
		return func() {}, nil
	}
	select {
	case db.writer <- struct{}{}:
		return func() { <-db.writer }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the database's write lock: %w", ctx.Err())
	}
}

// attempts is how often a transaction runs that conflicts with others. Each time, one of the
// others has committed.
const attempts = 6

// again repeats do while it conflicts with other transactions, up to attempts times.
func again(ctx context.Context, do func() error) error {
	return retry.Do(ctx, attempts, 10*time.Millisecond, isConflict, do)
}

// Postgres runs fn with a pgx connection of the pool, for what database/sql cannot do or does at
// twice the cost. fn must leave the connection as it was. As with database/sql, fn is called again
// when the connection turns out to be closed before anything was sent.
func (db *DB) Postgres(ctx context.Context, fn func(*pgx.Conn) error) (err error) {
	_, span := trace(ctx, true, "")
	defer func() { traced(span, err) }()
	err = db.onPostgres(ctx, fn)
	for range 2 {
		if !pgconn.SafeToRetry(err) || ctx.Err() != nil {
			break
		}
		err = db.onPostgres(ctx, fn)
	}
	return err
}

// Pooled reports whether something was noticed that may hand a connection on to another server connection after each
// transaction.
func (db *DB) Pooled() bool { return db.pooler != nil && db.pooler.Load() }

// Prepared is the mode in which pgx runs a statement that every request needs: prepared by name,
// with its plan kept. Through a pooler only its types are kept, since each transaction may get
// another connection, on which the statement is not prepared.
func (db *DB) Prepared() pgx.QueryExecMode {
	if db.Pooled() {
		return pgx.QueryExecModeCacheDescribe
	}
	return pgx.QueryExecModeCacheStatement
}

func (db *DB) onPostgres(ctx context.Context, fn func(*pgx.Conn) error) error {
	pooled, err := db.pool.Conn(ctx)
	if err != nil {
		return err
	}
	err = pooled.Raw(func(raw any) error {
		c, ok := raw.(*stdlib.Conn)
		if !ok {
			return errors.New("not a connection to PostgreSQL")
		}
		return fn(c.Conn())
	})
	return errors.Join(err, pooled.Close())
}

// ForUpdate is the row-locking clause of the dialect: SQLite's transactions hold the whole
// database already.
func ForUpdate(tx IDB) string {
	if IsPostgres(tx) {
		return " FOR UPDATE"
	}
	return ""
}

// attemptsOf says, for each server that was tried, why it cannot be used. If one server alone is named, or all have
// the same reason, it is nil.
func attemptsOf(err error) (tried []string) {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok || !slices.ContainsFunc(failed.Config.Fallbacks, func(f *pgconn.FallbackConfig) bool {
		return f.Host != failed.Config.Host || f.Port != failed.Config.Port
	}) {
		return nil
	}
	all, ok := failed.Unwrap().(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	for _, one := range all.Unwrap() {
		said := strings.Join(strings.Fields(one.Error()), " ") // begins with the server
		if cause, ok := errors.AsType[*net.OpError](one); ok {
			said = cause.Error() // which names the server as well
		} else if cause, ok := errors.AsType[*readOnlyError](one); ok {
			said = cause.Error()
		}
		if !slices.Contains(tried, said) { // with and without TLS
			tried = append(tried, said)
		}
	}
	if len(tried) < 2 {
		return nil
	}
	return tried
}

// openError says in one line why a database cannot be opened, and keeps the whole error.
type openError struct {
	words string
	err   error
}

func (e *openError) Error() string { return e.words }
func (e *openError) Unwrap() error { return e.err }

// plain makes an error of opening a database readable in one line. The error of a connection has
// user and database name and a line for each address and kind of TLS that was tried; the innermost
// cause of each tells a person enough.
func plain(err error) error {
	if tried := attemptsOf(err); len(tried) > 1 {
		return errors.New(strings.Join(tried, "; "))
	}
	if cause, ok := errors.AsType[*readOnlyError](err); ok {
		return cause
	}
	if cause, ok := errors.AsType[unfitError](err); ok {
		return cause
	}
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		return cause
	}
	if cause, ok := errors.AsType[*net.OpError](err); ok {
		return cause
	}
	if cause, ok := errors.AsType[*pgconn.PgError](err); ok {
		return cause
	}
	if strings.Contains(err.Error(), "\n") {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	return err
}
