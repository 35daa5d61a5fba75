package schema

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
)

// StableWatermark finds the highest id up to which every id is committed or will never appear.
//
// A transaction takes a lock on the event table, in a mode that nobody else uses, before it draws
// an id, and holds it until it ends. So when all transactions that held the lock after the sequence
// was read have ended, every id up to the value read is committed or will never appear.
// Readers, dumps and writers of other tables do not matter. On SQLite ids appear in order.
type StableWatermark struct {
	DB *database.DB
	ID int64

	Server  string // the database server that ID is of
	next    int64  // the next ID
	waitFor []string
}

// Advance raises ID where it can. It returns true when ID cannot rise any further for now. The
// expected server may be empty.
func (w *StableWatermark) Advance(ctx context.Context, expected string) (bool, error) {
	if !w.DB.IsPostgres() {
		last, err := LastID(ctx, w.DB)
		if err == nil {
			w.ID = last
		}
		return true, err
	}
	var last int64
	var have []string
	var server string
	err := OnServer(ctx, w.DB, expected, func(conn *pgx.Conn, on string) (err error) {
		server = on
		if err = conn.QueryRow(ctx, lastIDPostgres).Scan(&last); err != nil {
			return err
		}
		have, err = writers(ctx, conn) // after the sequence was read
		return err
	})
	if err != nil {
		return false, err
	}
	if server != w.Server {
		*w = StableWatermark{DB: w.DB, Server: server}
	}
	if last < w.ID { // a standby that had not received everything is the primary now
		w.ID, w.next = 0, 0
	}
	if last == w.ID {
		return true, nil
	}
	if w.next == 0 {
		w.next, w.waitFor = last, have
	} else {
		w.waitFor = slices.DeleteFunc(w.waitFor, func(tx string) bool { return !slices.Contains(have, tx) })
	}
	if len(w.waitFor) > 0 {
		return false, nil
	}
	w.ID, w.next = max(w.ID, w.next), 0
	return true, nil
}

// writers lists the transactions that may have drawn an id and have not ended. A prepared transaction
// (two-phase commit) keeps its name.
func writers(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND relation = 'outbox_event'::regclass AND mode = 'RowExclusiveLock'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
