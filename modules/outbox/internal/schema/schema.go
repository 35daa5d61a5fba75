// Package schema is what the operators of the outbox and its relays both know of its tables.
package schema

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
)

// The database's clock, in milliseconds since 1970.
const (
	PostgresNow = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`
	SQLiteNow   = `CAST(unixepoch('subsec') * 1000 AS integer)`
)

// Now is the expression for it.
func Now(db database.IDB) string {
	if database.IsPostgres(db) {
		return PostgresNow
	}
	return SQLiteNow
}

// ThisServer is the expression that tells one start of one database server from another. A
// server that has lost a process to kill -9 goes on without a new start; it has lost its
// statistics then, as it has lost what was not on disk.
func ThisServer(db database.IDB) string {
	if database.IsPostgres(db) {
		return thisPostgres
	}
	return "''"
}

const thisPostgres = "extract(epoch FROM pg_postmaster_start_time())::text || ' ' || coalesce(inet_server_addr()::text, '') || ' ' || " +
	"coalesce((SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal), '')"

// ServerOf tells which server a connection is to. It asks once for each connection, and again
// when that is not the one expected, if one is: statistics can be reset.
func ServerOf(ctx context.Context, conn *pgx.Conn, expected string) (string, error) {
	const mark = "outbox.server"
	known := conn.PgConn().CustomData()
	if server, ok := known[mark].(string); ok && (expected == "" || server == expected) {
		return server, nil
	}
	var server string
	if err := conn.QueryRow(ctx, "SELECT "+thisPostgres).Scan(&server); err != nil {
		return "", err
	}
	known[mark] = server
	return server, nil
}

// Bounded keeps a transaction of a relay from holding its locks when the relay stops in the
// middle, as a suspended machine or a cut network does: nobody could take over from it.
// Its server ends it when nothing is heard for so long.
func Bounded(ctx context.Context, tx database.Tx, d time.Duration) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', ?1, true), set_config('lock_timeout', ?1, true)`,
		strconv.FormatInt(d.Milliseconds(), 10))
	return err
}

const lastIDPostgres = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_event_id`

// LastID is the highest id that was drawn.
func LastID(ctx context.Context, db *database.DB) (last int64, err error) {
	query := `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox_event'`
	if db.IsPostgres() {
		query = lastIDPostgres
	}
	err = db.QueryRowContext(ctx, query).Scan(&last)
	return last, err
}

// Channel is the PostgreSQL notification channel. Its payload is empty for new events, or
// the word lease when shards have become free.
const Channel = "authctl_outbox"

// LongestLease is what outbox.lease may be at most. It stands for the lease of a relay that
// does not say its own.
const LongestLease = time.Minute

// TroubleHolds is how long what a relay has told holds without being said again.
const TroubleHolds = 30 * time.Second

// Segments is how many the ring has.
const Segments = 16
