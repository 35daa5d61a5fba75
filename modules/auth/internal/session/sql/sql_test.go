package sql_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestSQLiteKeepsTheRules(t *testing.T) {
	t.Parallel()
	sessiontest.Run(t, openSQLite)
}

func TestPostgresKeepsTheRules(t *testing.T) {
	t.Parallel()
	sessiontest.Run(t, openPostgres)
}

func openSQLite(t testing.TB, skew func() time.Duration) sessiontest.Engine {
	url := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	db := dbtest.Open(t, url)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return engine(t, db, dbtest.Open(t, url), skew)
}

func openPostgres(t testing.TB, skew func() time.Duration) sessiontest.Engine {
	url := dbtest.PostgresURL(t)
	return engine(t, dbtest.Open(t, url), dbtest.Open(t, url), skew)
}

func engine(t testing.TB, db, peer *database.DB, skew func() time.Duration) sessiontest.Engine {
	return sessiontest.Engine{
		Store:  newStore(t, db, skew),
		Peer:   newStore(t, peer, skew),
		Dump:   func(ctx context.Context) ([][]byte, error) { return dump(ctx, db) },
		Purges: true,
	}
}

func newStore(t testing.TB, db *database.DB, skew func() time.Duration) *sql.Store {
	store, err := sql.New(t.Context(), db, sql.Options{Skew: skew})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// dump reads every column of every row.
func dump(ctx context.Context, db *database.DB) (kept [][]byte, err error) {
	rows, err := db.QueryContext(ctx, "SELECT * FROM session")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		values, into := make([][]byte, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		kept = append(kept, values...)
	}
	return kept, rows.Err()
}
