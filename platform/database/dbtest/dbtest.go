// Package dbtest gives each test its own fresh, migrated database.
package dbtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/testenv"
)

// Each runs test once on SQLite and once on PostgreSQL, as subtests in parallel, each with
// an empty migrated database. Without a PostgreSQL server that half is skipped, or fails
// where the real engines are demanded (see testenv).
func Each(t *testing.T, test func(t *testing.T, db *database.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, Postgres(t)) })
}

// SQLite returns an empty migrated SQLite database in the test's folder.
func SQLite(t testing.TB) *database.DB {
	t.Helper()
	migrated, err := migratedSQLite()
	if err != nil {
		t.Fatalf("migrate SQLite: %v", err)
	}
	file := filepath.Join(t.TempDir(), "test.db")
	if err := os.WriteFile(file, migrated, 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(t, "sqlite:"+file)
}

// migratedSQLite migrates one database for each test binary, and returns its file.
var migratedSQLite = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "authctl-sqlite-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "test.db")
	db, err := Connect(context.Background(), "sqlite:"+file, 0)
	if err != nil {
		return nil, err
	}
	_, err = migrations.Up(context.Background(), db)
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, err
	}
	return os.ReadFile(file) // the last connection has merged the log into it
})

// Postgres returns an empty migrated PostgreSQL database, dropped when the test ends.
func Postgres(t testing.TB) *database.DB {
	t.Helper()
	return Open(t, PostgresURL(t))
}

// PostgresURL makes an empty migrated PostgreSQL database, dropped when the test ends, and returns
// its URL for a process of the test's own.
func PostgresURL(t testing.TB) string {
	t.Helper()
	server := testenv.Postgres(t)
	template, err := template(server)
	if err != nil {
		t.Fatalf("make the template database: %v", err)
	}
	return string(EmptyURL(t, "TEMPLATE "+template))
}

// EmptyURL makes a PostgreSQL database with the given options of CREATE DATABASE, dropped when the
// test ends, and returns its URL.
func EmptyURL(t testing.TB, with string) config.Secret {
	t.Helper()
	server := testenv.Postgres(t)
	name := "t_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	admin := Open(t, server)
	if _, err := admin.ExecContext(t.Context(), fmt.Sprintf("CREATE DATABASE %s %s", name, with)); err != nil {
		t.Fatalf("make a database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := admin.ExecContext(ctx, fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", name)); err != nil {
			t.Logf("drop %s: %v", name, err)
		}
	})
	return config.Secret(withDatabase(server, name))
}

// Contrary returns an empty migrated PostgreSQL database whose own settings are the opposite of
// what the code relies on.
func Contrary(t testing.TB) *database.DB {
	t.Helper()
	dsn := PostgresURL(t)
	admin := Open(t, dsn)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{
		"standard_conforming_strings = off", "backslash_quote = on", "client_encoding = 'LATIN1'",
		"bytea_output = 'escape'",
		"DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'",
		"default_transaction_isolation = 'serializable'", "jit = on",
	} {
		if _, err := admin.ExecContext(t.Context(), "ALTER DATABASE "+u.Path[1:]+" SET "+setting); err != nil {
			t.Fatal(err)
		}
	}
	return Open(t, dsn)
}

// AsUser returns the URL of the database for a new user with the given password, who exists until
// the test ends.
func AsUser(t testing.TB, dsn, password string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := Open(t, dsn)
	name := "user_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	create := fmt.Sprintf("CREATE ROLE %s LOGIN SUPERUSER PASSWORD '%s'", name, strings.ReplaceAll(password, "'", "''"))
	if _, err := db.ExecContext(t.Context(), create); err != nil {
		t.Fatalf("make a database user: %v", err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP ROLE "+name); err != nil {
			t.Errorf("drop a database user: %v", err)
		}
	})
	u.User = url.UserPassword(name, password)
	return u.String()
}

// AsReader returns the URL of the database for a new user who may only read one table, and who
// exists until the test ends.
func AsReader(t testing.TB, dsn, table string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := "reader_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	run := func(statements ...string) { // and be gone
		t.Helper()
		db, err := Connect(context.Background(), dsn, 1)
		if err != nil {
			t.Fatalf("open the test database: %v", err)
		}
		defer db.Close()
		for _, statement := range statements {
			if _, err := db.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
				t.Errorf("%s: %v", statement, err)
			}
		}
	}
	run("CREATE ROLE "+name+" LOGIN PASSWORD 'x'", "GRANT SELECT ON "+table+" TO "+name)
	t.Cleanup(func() { run("DROP OWNED BY "+name, "DROP ROLE "+name) })
	u.User = url.UserPassword(name, "x")
	return u.String()
}

// Begin begins a transaction that the test ends when it likes, with a commit or without one.
func Begin(t testing.TB, db *database.DB) (tx database.Tx, end func(commit bool) error) {
	t.Helper()
	begun, commit, ended := make(chan database.Tx), make(chan bool, 1), make(chan error, 1)
	rollback := errors.New("rollback")
	go func() {
		ended <- db.Tx(context.WithoutCancel(t.Context()), func(ctx context.Context, tx database.Tx) error {
			if db.IsPostgres() {
				if _, err := tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
					return err
				}
			}
			begun <- tx
			if !<-commit {
				return rollback
			}
			return nil
		})
	}()
	select {
	case tx = <-begun:
	case err := <-ended:
		t.Fatalf("begin a transaction: %v", err)
	}
	var once sync.Once
	var err error
	end = func(yes bool) error {
		once.Do(func() {
			commit <- yes
			if err = <-ended; errors.Is(err, rollback) {
				err = nil
			}
		})
		return err
	}
	t.Cleanup(func() { _ = end(false) })
	return tx, end
}

// Open opens the database at a URL and closes it when the test ends.
func Open(t testing.TB, dsn string) *database.DB {
	t.Helper()
	return OpenLimited(t, dsn, 0)
}

// OpenLimited is [Open] with a maximum number of connections.
func OpenLimited(t testing.TB, dsn string, conns int) *database.DB {
	t.Helper()
	db, err := Connect(context.Background(), dsn, conns)
	if err != nil {
		t.Fatalf("open the test database: %v", err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Connect is [OpenLimited] for a process of a test. It retries for a while: on a busy machine a server may drop a
// connection before it is open, or open it too late.
func Connect(ctx context.Context, dsn string, conns int) (db *database.DB, err error) {
	ctx, cancel := context.WithTimeout(ctx, testenv.Patience)
	defer cancel()
	for {
		db, err = database.Open(ctx, database.Config{URL: config.Secret(dsn), MaxConns: conns},
			database.Options{AppName: "authctl-test"})
		if err == nil || !database.IsUnavailable(err) || !retry.Sleep(ctx, 100*time.Millisecond) {
			return db, err
		}
	}
}

var templates sync.Map // server URL → func() (string, error)

// template migrates one database per server and schema version. Tests copy it, which is a tenth of
// the work of migrating.
func template(server string) (string, error) {
	once, _ := templates.LoadOrStore(server, sync.OnceValues(func() (string, error) { return makeTemplate(server) }))
	return once.(func() (string, error))()
}

func makeTemplate(server string) (string, error) {
	print, err := migrations.Fingerprint("postgres")
	if err != nil {
		return "", err
	}
	name := "authctl_template_" + print
	admin, err := Connect(context.Background(), server, 0)
	if err != nil {
		return "", err
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	conn, err := admin.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// Test binaries of several packages run at the same time.
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock(7465737)"); err != nil {
		return "", err
	}
	defer func() { _, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock(7465737)") }()
	var n int
	if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM pg_database WHERE datname = ?",
		name).Scan(&n); err != nil {
		return "", err
	}
	if n > 0 {
		return name, nil
	}
	building := name + "_building"
	if _, err := conn.ExecContext(ctx, "DROP DATABASE IF EXISTS "+building+" WITH (FORCE)"); err != nil {
		return "", err
	}
	if _, err := conn.ExecContext(ctx, "CREATE DATABASE "+building); err != nil {
		return "", err
	}
	db, err := Connect(ctx, withDatabase(server, building), 0)
	if err != nil {
		return "", err
	}
	if _, err := migrations.Up(ctx, db); err != nil {
		_ = db.Close()
		return "", err
	}
	if err := db.Close(); err != nil {
		return "", err
	}
	_, err = conn.ExecContext(ctx, "ALTER DATABASE "+building+" RENAME TO "+name)
	return name, err
}

func withDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		return server
	}
	u.Path = "/" + name
	return u.String()
}
