package database_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestWritersTakeTurnsAndLoseNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := db.Write(t.Context(), "CREATE TABLE counter (n integer)"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Write(t.Context(), "INSERT INTO counter VALUES (0)"); err != nil {
			t.Fatal(err)
		}
		const writers, each = 8, 20
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range each {
					err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
						var n int
						if err := tx.QueryRowContext(ctx, "SELECT n FROM counter"+
							database.ForUpdate(tx)).Scan(&n); err != nil {
							return err
						}
						_, err := tx.ExecContext(ctx, "UPDATE counter SET n = ?", n+1)
						return err
					})
					if err != nil {
						t.Errorf("count: %v", err)
						return
					}
				}
			})
		}
		all.Wait()
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM counter").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n != writers*each {
			t.Errorf("counted %d of %d", n, writers*each)
		}
	})
}

func TestATransactionThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := db.Write(t.Context(), "CREATE TABLE kept (n integer PRIMARY KEY)"); err != nil {
			t.Fatal(err)
		}
		stop := errors.New("stop")
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			if _, err := tx.ExecContext(ctx, "INSERT INTO kept VALUES (1)"); err != nil {
				return err
			}
			return stop
		})
		if !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows, %v", n, err)
		}
	})
}

func TestATransactionWhoseContextHasEndedSaysSo(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Tx(ctx, func(_ context.Context, tx database.Tx) error {
			cancel()
			for { // it is rolled back by itself
				if _, err := tx.ExecContext(t.Context(), "SELECT 1"); err != nil {
					return err
				}
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestErrorsAreToldApart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := db.Write(t.Context(), "CREATE TABLE one (n integer PRIMARY KEY)"); err != nil {
			t.Fatal(err)
		}
		insert := func() error { _, err := db.Write(t.Context(), "INSERT INTO one VALUES (1)"); return err }
		if err := insert(); err != nil {
			t.Fatal(err)
		}
		if err := insert(); !database.IsUnique(err) || database.IsUnavailable(err) || database.IsNotFound(err) {
			t.Errorf("a duplicate key: %v", err)
		}
		var n int
		if err := db.QueryRowContext(t.Context(),
			"SELECT n FROM one WHERE n = 2").Scan(&n); !database.IsNotFound(err) ||
			database.IsUnavailable(err) {
			t.Errorf("a missing row: %v", err)
		}
		_, err := db.Write(t.Context(), "SELECT nonsense FROM nowhere")
		if err == nil || database.IsUnavailable(err) || database.IsUnique(err) || database.IsForbidden(err) {
			t.Errorf("nonsense: %v", err)
		}
		ended, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		if err := db.QueryRowContext(ended, "SELECT n FROM one").Scan(&n); !database.IsUnavailable(err) {
			t.Errorf("too late: %v", err)
		}
	})
	for _, err := range []error{sql.ErrConnDone, fmt.Errorf("wrapped: %w", context.DeadlineExceeded)} {
		if !database.IsUnavailable(err) {
			t.Errorf("%v is not unavailable", err)
		}
	}
}

func TestAServerThatIsNotThereIsUnavailable(t *testing.T) {
	t.Parallel()
	_, err := database.Open(t.Context(), database.Config{URL: "postgres://someone:s3cret@127.0.0.1:1/nowhere"},
		database.Options{})
	if err == nil || !database.IsUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	if text := err.Error(); strings.Contains(text, "s3cret") || strings.Contains(text, "\n") ||
		!strings.Contains(text, "127.0.0.1:1/nowhere") {
		t.Errorf("it says %q", text)
	}
}

func TestSQLiteFilesAreTheOwnersAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	db, err := database.Open(t.Context(), database.Config{}, database.Options{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.Write(t.Context(), "CREATE TABLE one (n integer)"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "authctl.db"): 0o600,
		filepath.Join(dir, "authctl.db-wal"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode().Perm(), err)
		}
	}
}

func TestURLsThatCannotBeUsedAreNamed(t *testing.T) {
	t.Parallel()
	for text, fine := range map[config.Secret]bool{
		"": true, "sqlite:x.db": true, "postgres://u:p@h/d": true, "postgresql://h/d?sslmode=require": true,
		"sqlite:": false, "mysql://h/d": false, "postgres://h:notaport/d": false,
	} {
		told := false
		database.Config{URL: text}.Validate(func(path, problem string) {
			told = true
			if path != "database.url" || strings.Contains(problem, "//h") {
				t.Errorf("%s: got %q for %q", text.Reveal(), problem, path)
			}
		})
		if told == fine {
			t.Errorf("%s: refused %v", text.Reveal(), told)
		}
	}
}

func TestDescribeShowsNoCredentials(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]database.Config{
		"SQLite data/authctl.db": {},
		"SQLite other.db":        {URL: "sqlite:other.db"},
		"PostgreSQL h:5433/d":    {URL: "postgres://u:s3cret@h:5433/d?sslmode=disable"},
		"PostgreSQL db.internal:5432/a": {Postgres: database.PostgresConfig{Host: "db.internal", Port: 5432, DB: "a",
			Password: "s3cret"}},
	} {
		if got := cfg.Describe("data"); got != want {
			t.Errorf("described as %q, want %q", got, want)
		}
	}
}

func TestAConnectionFoundClosedIsReplaced(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	calls := 0
	err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
		if calls++; calls == 1 {
			if err := conn.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := conn.Exec(t.Context(), "SELECT 1")
		return err
	})
	if err != nil || calls != 2 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	calls = 0
	err = db.Postgres(t.Context(), func(conn *pgx.Conn) error {
		calls++
		_, err := conn.Exec(t.Context(), "SELECT 1/0")
		return err
	})
	if err == nil || calls != 1 {
		t.Errorf("the refused statement was sent %d times: %v", calls, err)
	}
}

// A server allows only so many connections. Opening more would fail a request.
func TestThePoolAsksForNoMoreThanTheServerHas(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	var most int
	err := dbtest.Open(t, dsn).QueryRowContext(t.Context(), "SELECT current_setting('max_connections')").Scan(&most)
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]int{1: 1, 2: 2, most + 1000: most} {
		if got := dbtest.OpenLimited(t, dsn, limit).MaxConns(); got > want || got < want-10 {
			t.Errorf("with %d allowed there are %d, want %d", limit, got, want)
		}
	}
}

// However few connections may be opened, those of both parts together are not more, and neither has none.
func TestAPartOfTheConnectionsIsNotAddedToThem(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	for conns, want := range map[int]int{1: 1, 2: 1, 3: 1, 8: 2, 40: 8} {
		db := dbtest.OpenLimited(t, dsn, conns)
		allowed := db.MaxConns()
		part := db.Split()
		if conns == 1 {
			if part != db {
				t.Error("one connection was divided")
			}
			continue
		}
		t.Cleanup(func() { _ = part.Close() })
		if part.MaxConns() != want || db.MaxConns() != allowed-want {
			t.Errorf("of %d connections %d are apart and %d are left, want %d apart", allowed, part.MaxConns(),
				db.MaxConns(), want)
		}
		if _, err := part.ExecContext(t.Context(), "SELECT 1"); err != nil {
			t.Error(err)
		}
	}
	sqlite := dbtest.Open(t, "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	if sqlite.Split() != sqlite {
		t.Error("SQLite has one writer, whose turn all must share")
	}
}
