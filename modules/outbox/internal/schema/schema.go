// Package schema is what packages outbox, relay and delivery share about the outbox's tables.
package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
)

const (
	// Segments is how many segments the ring has.
	Segments = 16

	// MessageSegment is the segment of a row in outbox_delivery whose event is in outbox_message.
	MessageSegment = -1

	// LongestLease is the maximum of outbox.lease. It is used for a relay whose own lease is not known.
	LongestLease = time.Minute

	// OutageHolds is how long a reported outage is believed unless the relay repeats it.
	OutageHolds = 30 * time.Second

	// countEvery is how often what waits is counted, where that is quick.
	countEvery = 5 * time.Second

	// Channel is the PostgreSQL notification channel. The payload is empty for new events, and the
	// word lease for shards that have become free or changed.
	Channel = "authctl_outbox"
)

// The database's clock, in milliseconds since 1970.
const (
	PostgresNow = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`
	SQLiteNow   = `CAST(unixepoch('subsec') * 1000 AS integer)`
)

// Now is the expression for the database's clock.
func Now(db database.IDB) string {
	if database.IsPostgres(db) {
		return PostgresNow
	}
	return SQLiteNow
}

// ThisServer is the expression that tells one start of one database server from another. A server with
// a process that was killed by SIGKILL recovers without a new start, and loses what was not on disk. It
// also loses its statistics then, so they are part of the expression.
func ThisServer(db database.IDB) string {
	if database.IsPostgres(db) {
		return ThisPostgres
	}
	return "''"
}

// ThisPostgres is [ThisServer] on PostgreSQL.
const ThisPostgres = "extract(epoch FROM pg_postmaster_start_time())::text || ' ' || " +
	"coalesce(inet_server_addr()::text, '') || ' ' || " +
	"coalesce((SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal), '')"

// OnServer is [database.DB.Postgres], and tells fn which server is at the other end. expected may be empty. Behind a
// pooler a connection stays when that server is another one: there fn runs in a transaction, and nothing is known from
// the one before.
func OnServer(
	ctx context.Context, db *database.DB, expected string, fn func(conn *pgx.Conn, server string) error,
) error {
	return db.Postgres(ctx, func(conn *pgx.Conn) error {
		if !db.Pooled() {
			server, err := serverOf(ctx, conn, expected)
			if err != nil {
				return err
			}
			return fn(conn, server)
		}
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
			var server, most string // as [Bounded]: between two statements of fn its process may stop
			err := tx.QueryRow(ctx, "SELECT "+ThisPostgres+
				", set_config('idle_in_transaction_session_timeout', '2s', true)").Scan(&server, &most)
			if err != nil {
				return err
			}
			return fn(conn, server)
		})
	})
}

// serverOf returns the server of a connection. It asks once for each connection, and again if
// the answer is not the expected one, since statistics can be reset.
func serverOf(ctx context.Context, conn *pgx.Conn, expected string) (string, error) {
	const mark = "outbox.server"
	known := conn.PgConn().CustomData()
	if server, ok := known[mark].(string); ok && (expected == "" || server == expected) {
		return server, nil
	}
	var server string
	if err := conn.QueryRow(ctx, "SELECT "+ThisPostgres).Scan(&server); err != nil {
		return "", err
	}
	known[mark] = server
	return server, nil
}

// Bounded limits how long a transaction holds its locks if its process stops in the middle,
// because its machine was suspended or its network was cut: the server ends the transaction after
// that time without a statement. It also limits how long the transaction waits for a lock.
func Bounded(ctx context.Context, tx database.Tx, d time.Duration) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', ?1, true),
		set_config('lock_timeout', ?1, true)`, strconv.FormatInt(d.Milliseconds(), 10))
	return err
}

const lastIDPostgres = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_event_id`

// LastID is the highest id drawn so far.
func LastID(ctx context.Context, db *database.DB) (last int64, err error) {
	query := `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox_event'`
	if db.IsPostgres() {
		query = lastIDPostgres
	}
	err = db.QueryRowContext(ctx, query).Scan(&last)
	return last, err
}

// CountAgain is how long to wait before counting again what waits: the longer the count took, the longer. How long
// one took that failed says little: a server that is frozen or away took most of it.
func CountAgain(took time.Duration, err error) time.Duration {
	if err != nil {
		return max(countEvery, 2*took)
	}
	return max(countEvery, 50*took)
}

// NotifyLeases tells relays, once the transaction commits, to look at the leases of shards.
func NotifyLeases(ctx context.Context, tx database.Tx) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT pg_notify(?, 'lease')`, Channel)
	return err
}

// DeliveryShards is how many shards a target besides the log has. A writer on PostgreSQL computes the
// shard in the function outbox_deliver. On SQLite all processes use one file.
func DeliveryShards(db database.IDB) int {
	if database.IsPostgres(db) {
		return 16
	}
	return 1
}

// Rows is an expression for a table of numbers with named columns, which takes the returned
// argument in place of one ?.
func Rows(db database.IDB, rows [][]int64, columns ...string) (table string, arg any) {
	value, source := "value->>%d AS %s", "json_each(?)"
	if database.IsPostgres(db) {
		value, source = "(value->>%d)::bigint AS %s", "jsonb_array_elements(?::jsonb)"
	}
	list := make([]string, len(columns))
	for i, name := range columns {
		list[i] = fmt.Sprintf(value, i, name)
	}
	return "(SELECT " + strings.Join(list, ", ") + " FROM " + source + ")", JSON(rows)
}

// JSON is numbers as the text of an argument.
func JSON[T []int | []int32 | [][]int64 | [][3]int64](numbers T) string {
	text, err := json.Marshal(numbers)
	if err != nil { // numbers have a form in JSON
		panic(err)
	}
	return string(text)
}

// LacksRights adds the remedy to an error of a database role that may not do something for want of rights. A serve that
// also relays needs the role of relays; another one the rights that a migration asks for.
func LacksRights(ctx context.Context, db *database.DB, what string, err error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	remedy := "run authctl migrate grants after each migration"
	stranger, bad := database.Value[bool](db.QueryRowContext(ctx, `SELECT EXISTS (
		SELECT FROM pg_roles WHERE rolname = 'authctl_relay' AND NOT pg_has_role(oid, 'USAGE'))`))
	if bad == nil && stranger {
		remedy = "GRANT authctl_relay TO the role, or set OUTBOX_RELAY=off for a serve where relays run elsewhere"
	}
	return fmt.Errorf("this database role may not %s: %s: %w", what, remedy, err)
}
