package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// errReadOnly says that the server answers but takes no writes.
var errReadOnly = errors.New("it is read-only: a standby, or default_transaction_read_only is on")

// tryPostgres writes a temporary file of 70 kB where the tables are. PostgreSQL goes on when a disk is full, as long as
// its log has room: then it reads, changes rows in pages that it has, and fails whenever a table has to grow.
const tryPostgres = `SET LOCAL work_mem = '64kB'; SET LOCAL temp_tablespaces = '';
	SELECT current_setting('transaction_read_only'), count(*) FROM generate_series(1, 5000)`

// TryWrite reports whether the database takes writes, for readiness. It is cheap, and changes
// nothing that is read: PostgreSQL writes a temporary file, and SQLite a page. That another process is writing is proof
// enough for SQLite.
func (db *DB) TryWrite(ctx context.Context) error {
	if db.IsPostgres() {
		return db.Postgres(ctx, func(conn *pgx.Conn) error {
			results, err := conn.PgConn().Exec(ctx, tryPostgres).ReadAll()
			if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "53400" { // temp_file_limit
				return nil
			}
			if err == nil && string(results[len(results)-1].Rows[0][0]) == "on" {
				return errReadOnly
			}
			return err
		})
	}
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, busy)
	defer cancel()
	_, err := db.Write(bounded, "PRAGMA user_version = 0") // nobody else uses it
	if bounded.Err() != nil {
		return ctx.Err()
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok && lite.Code()&0xff == sqlite3.SQLITE_BUSY {
		return nil
	}
	if err != nil {
		return fmt.Errorf("it takes no writes: %w", err)
	}
	return nil
}

// busy is how long TryWrite waits for its turn to write.
const busy = 500 * time.Millisecond
