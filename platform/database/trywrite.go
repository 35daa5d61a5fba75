package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// errReadOnly says that the server answers but takes no writes.
var errReadOnly = errors.New("it is read-only: a standby, or default_transaction_read_only is on")

// TryWrite reports whether the database takes writes, for readiness. It is cheap, and changes
// nothing that is read. It only asks PostgreSQL, which stops when its disk is full. On SQLite it
// writes and commits a page, which fails on a full disk; that another process is writing is proof
// enough.
func (db *DB) TryWrite(ctx context.Context) error {
	if db.IsPostgres() {
		var readOnly string
		if err := db.QueryRowContext(ctx,
			"SELECT current_setting('transaction_read_only')").Scan(&readOnly); err != nil {
			return err
		}
		if readOnly == "on" {
			return errReadOnly
		}
		return nil
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
