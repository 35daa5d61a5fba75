package database_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// Everything works through a pooler that gives each transaction another connection: prepared
// statements, the settings of a transaction and its isolation.
func TestAPoolerMayHandConnectionsOn(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	if got := dbtest.Open(t, dsn).Prepared(); got != pgx.QueryExecModeCacheStatement {
		t.Errorf("without one, statements are in mode %v", got)
	}
	db := dbtest.Open(t, dbtest.PgBouncer(t, dsn))
	stmt, err := db.PrepareContext(t.Context(), "SELECT $1::integer + 1")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	// Two queries at once take two connections, which the pooler then hands out in turn.
	var ends []func(bool) error
	for range 2 {
		tx, end := dbtest.Begin(t, db)
		if _, err := tx.ExecContext(t.Context(), "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	for _, end := range ends {
		if err := end(true); err != nil {
			t.Fatal(err)
		}
	}
	backends := map[int]bool{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			for range 20 {
				var n int
				if err := stmt.QueryRowContext(t.Context(), i).Scan(&n); err != nil || n != i+1 {
					t.Errorf("prepared: %d, %v", n, err)
				}
				err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
					if err := tx.StmtContext(ctx, stmt).QueryRowContext(ctx, i).Scan(&n); err != nil || n != i+1 {
						t.Errorf("prepared, in a transaction: %d, %v", n, err)
					}
					var pid int
					var isolation, strings, encoding string
					err := tx.QueryRowContext(ctx,
						`SELECT pg_backend_pid(), current_setting('transaction_isolation'), current_setting('standard_conforming_strings'),
						current_setting('client_encoding') WHERE ?::integer = ?`, i, i).Scan(&pid, &isolation, &strings, &encoding)
					if err != nil || isolation != "read committed" || strings != "on" || encoding != "UTF8" {
						t.Errorf("%s, %s, %s, %v", isolation, strings, encoding, err)
					}
					mu.Lock()
					defer mu.Unlock()
					backends[pid] = true
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				err = db.Postgres(t.Context(), func(conn *pgx.Conn) error {
					return conn.QueryRow(t.Context(), "SELECT $1::bigint[] IS NOT NULL", db.Prepared(),
						[]int64{1}).Scan(new(bool))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if len(backends) < 2 {
		t.Errorf("only %d connections were handed out", len(backends))
	}
}

// A process may stop in the middle of a transaction: its machine is suspended, or its network is cut.
func TestNoTransactionIsOpenForLongWithoutAStatement(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	for name, db := range map[string]*database.DB{
		"direct": dbtest.Open(t, dsn), "pooled": dbtest.Open(t, dbtest.PgBouncer(t, dsn)),
	} {
		for range 3 { // connections change
			var bound string
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
				return tx.QueryRowContext(ctx, "SHOW idle_in_transaction_session_timeout").Scan(&bound)
			})
			if err != nil || bound != "5s" {
				t.Errorf("%s: it is open for %q, %v", name, bound, err)
			}
		}
	}
}
