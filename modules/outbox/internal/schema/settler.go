package schema

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
)

// Settler finds the bound below which no id can appear any more.
//
// A transaction takes a lock on the event table, of a kind nobody else takes, before it draws
// an id, and holds it until its end. So once none of those who held it after the sequence was
// read holds it any longer, every id up to what was read is committed or gone. Readers, dumps
// and writers of other tables do not matter. On SQLite ids appear in order.
type Settler struct {
	DB    *database.DB
	Bound int64

	Server  string // that the bound is of
	next    int64  // becomes the bound
	waitFor []string
}

// Step returns true when the bound is as high as it was going to be. Which server it expects
// may be "".
func (s *Settler) Step(ctx context.Context, expected string) (bool, error) {
	if !s.DB.IsPostgres() {
		last, err := LastID(ctx, s.DB)
		s.Bound = last
		return true, err
	}
	var last int64
	var have []string
	var server string
	err := s.DB.Postgres(ctx, func(conn *pgx.Conn) (err error) {
		if server, err = ServerOf(ctx, conn, expected); err != nil {
			return err
		}
		if err = conn.QueryRow(ctx, lastIDPostgres).Scan(&last); err != nil {
			return err
		}
		have, err = writers(ctx, conn) // after the sequence was read
		return err
	})
	if err != nil {
		return false, err
	}
	if server != s.Server {
		*s = Settler{DB: s.DB, Server: server}
	}
	if last < s.Bound { // a standby that had not heard of everything is the primary now
		s.Bound, s.next = 0, 0
	}
	if last == s.Bound {
		return true, nil
	}
	if s.next == 0 {
		s.next, s.waitFor = last, have
	} else {
		s.waitFor = slices.DeleteFunc(s.waitFor, func(w string) bool { return !slices.Contains(have, w) })
	}
	if len(s.waitFor) > 0 {
		return false, nil
	}
	s.Bound, s.next = max(s.Bound, s.next), 0
	return true, nil
}

// writers are the transactions that may have drawn an id and not committed. One that is
// prepared (two-phase commit) keeps its name.
func writers(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND relation = 'outbox_event'::regclass AND mode = 'RowExclusiveLock'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
