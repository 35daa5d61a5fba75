package database_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// As a migrate whose terminal was suspended for longer than the server waits.
func TestWhoeverWasSuspendedIsToldThatNothingWasDone(t *testing.T) {
	t.Parallel()
	err := dbtest.Postgres(t).Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		_, err := tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = '1ms'")
		testenv.Eventually(t, "the server does not wait for the next statement", func() bool {
			if err == nil {
				_, err = tx.ExecContext(ctx, "SELECT 1")
			}
			return err != nil
		})
		return err
	})
	if got := database.Remedy(err, database.AnyTask); !strings.HasPrefix(got, "run it again") {
		t.Errorf("%v; %s", err, got)
	}
}

// Every error of reaching the server or of missing rights has a fitting remedy.
func TestEachKindOfErrorHasItsRemedy(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	admin := dbtest.Open(t, dsn)
	role := "t_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	statement := func(text string) {
		t.Helper()
		if _, err := admin.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	statement("CREATE ROLE " + role + " LOGIN PASSWORD 'right'")
	t.Cleanup(func() {
		if _, err := admin.ExecContext(context.WithoutCancel(t.Context()), "DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	change := func(fn func(u *url.URL, q url.Values)) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		fn(u, q)
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
		return u.String()
	}
	as := func(user, password string) string {
		return change(func(u *url.URL, _ url.Values) { u.User = url.UserPassword(user, password) })
	}
	query := func(name, value string) string {
		return change(func(_ *url.URL, q url.Values) { q.Set(name, value) })
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text.db"), []byte(strings.Repeat("no database", 100)),
		0o600); err != nil {
		t.Fatal(err)
	}

	open := func(dsn string) error {
		db, err := database.Open(t.Context(), database.Config{URL: config.Secret(dsn)}, database.Options{})
		if err == nil {
			_, err = db.ExecContext(t.Context(), "SELECT 1")
			err = errors.Join(err, db.Close())
		}
		return err
	}
	within := func(dsn, statement string) error {
		db := dbtest.Open(t, dsn)
		_, err := db.ExecContext(t.Context(), statement)
		return err
	}
	for name, test := range map[string]struct {
		err    error
		remedy string
	}{
		"wrong password": {open(as(role, "wrong")), `\password`},
		"no such role":   {open(as("t_nobody", "x")), "roles.sql"},
		"no such database": {open(change(func(u *url.URL, _ url.Values) { u.Path = "/t_not_there" })),
			"CREATE DATABASE … ENCODING 'UTF8'"},
		"no grants":            {within(as(role, "right"), "SELECT id FROM users"), "migrate grants"},
		"no grants to relay":   {within(as(role, "right"), "SELECT shard FROM outbox_shard"), "OUTBOX_RELAY=off"},
		"no function granted":  {within(as(role, "right"), "SELECT shards FROM outbox_setting"), "migrate grants"},
		"schema behind":        {within(dsn, "SELECT id FROM table_of_a_later_release"), "migrate up"},
		"column of later":      {within(dsn, "SELECT later FROM users"), "migrate up"},
		"other search_path":    {within(query("search_path", "pg_temp"), "SELECT id FROM users"), "search_path"},
		"read-only":            {open(query("default_transaction_read_only", "on")), "name the primary"},
		"unknown parameter":    {open(query("pool_max_conns", "3")), "not a parameter of PostgreSQL"},
		"bad parameter":        {open(query("statement_timeout", "soon")), "correct the parameter"},
		"port closed":          {open("postgres://u@" + closed.Addr().String() + "/d"), "start it"},
		"no such host":         {open("postgres://u@nowhere.invalid/d"), "cannot be resolved"},
		"silent":               {open("postgres://u@" + silent(t) + "/d?connect_timeout=1"), "reachable"},
		"no TLS":               {open(query("sslmode", "verify-full")), "ssl = on"},
		"no folder":            {open("sqlite:" + filepath.Join(dir, "text.db", "x.db")), "in a folder"},
		"no SQLite database":   {open("sqlite:" + filepath.Join(dir, "text.db")), "no SQLite database"},
		"too many connections": {&pgconn.PgError{Code: "53300"}, "max_connections"},
		"server's disk full":   {&pgconn.PgError{Code: "53100"}, "make room"},
		"starting":             {&pgconn.PgError{Code: "57P03"}, "wait"},
		"pg_hba.conf":          {&pgconn.PgError{Code: "28000"}, "pg_hba.conf"},
		"PgBouncer is full": {&pgconn.PgError{Code: "08P01",
			Message: "no more connections allowed (max_client_conn)"}, "raise max_client_conn"},
		"PgBouncer and a parameter": {&pgconn.PgError{Code: "08P01",
			Message: "unsupported startup parameter: search_path"}, "ignore_startup_parameters"},
		"PgBouncer and its server": {&pgconn.PgError{Code: "08P01",
			Message: "pgbouncer cannot connect to server"}, "reaches the server"},
		"no schema granted": {database.NoUsage(&pgconn.PgError{Code: "42501",
			Message: "keine Berechtigung für Schema x"}), "GRANT USAGE ON SCHEMA"},
		"nothing":       {nil, ""},
		"stopped":       {context.Canceled, ""},
		"another error": {errors.New("x"), ""},
		"a taken key":   {&pgconn.PgError{Code: "23505"}, ""},
	} {
		if name != "nothing" && test.err == nil {
			t.Errorf("%s: there is no error", name)
		}
		if got := database.Remedy(test.err, database.AnyTask); test.remedy == "" && got != "" ||
			!strings.Contains(got, test.remedy) {
			t.Errorf("%s: %v: the remedy is %q, want %q", name, test.err, got, test.remedy)
		}
	}
	// A migration needs another remedy.
	for name, test := range map[string]struct {
		err    error
		remedy string
	}{
		"another's tables":  {within(as(role, "right"), "DROP TABLE users"), "owns the tables"},
		"no roles":          {within(dsn, "GRANT SELECT ON users TO t_no_such_role"), "roles.sql"},
		"another's table":   {within(dsn, "CREATE TABLE users (id int)"), "empty database"},
		"another's column":  {within(dsn, "ALTER TABLE users ADD COLUMN id int"), "empty database"},
		"unknown parameter": {open(query("pool_max_conns", "3")), "not a parameter of PostgreSQL"},
	} {
		if got := database.Remedy(test.err, database.OwnTables); !strings.Contains(got, test.remedy) {
			t.Errorf("to migrate, %s: %v: the remedy is %q, want %q", name, test.err, got, test.remedy)
		}
	}
}
