package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
)

// begun is the row of a session, written in the transaction that announces its beginning. So exactly
// what was announced has its end announced, whatever the session store has kept or lost.
type begun struct {
	sid, userID uuid.UUID
	epoch       int64 // of the account
	at          time.Time
}

const begunColumns = "sid, user_id, epoch, began_at"

// tentativeFor is longer than any sign-in takes: a session that has not begun by then never does.
const tentativeFor = 15 * time.Minute

// recordBegun returns [errConcurrentChange] for a session that has been revoked: other sign-ins may have found its
// record and evicted it, and it must not be announced after its end. The account is locked.
func (s *Service) recordBegun(ctx context.Context, tx database.IDB, b begun) error {
	res, err := tx.ExecContext(ctx, "INSERT INTO begun_session ("+begunColumns+`, expires_at) SELECT ?1, ?2, ?3, ?4, ?5
		WHERE NOT EXISTS (SELECT 1 FROM revoked_session WHERE sid = ?1)`,
		b.sid, b.userID, b.epoch, b.at, s.sessionTokensEnd(b.at))
	if err != nil {
		return fmt.Errorf("store the session: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errConcurrentChange)
	}
	return nil
}

// begunAmong returns those of the sessions that have begun and were not revoked by their ids.
func begunAmong(ctx context.Context, db database.IDB, sids []uuid.UUID) (map[uuid.UUID]begun, error) {
	found := make(map[uuid.UUID]begun)
	if len(sids) == 0 {
		return found, nil
	}
	list, err := listBegun(ctx, db, "sid IN (?)", database.List(sids))
	for _, b := range list {
		found[b.sid] = b
	}
	return found, err
}

func revokedAmong(ctx context.Context, db database.IDB, sids []uuid.UUID) (map[uuid.UUID]bool, error) {
	found := make(map[uuid.UUID]bool)
	if len(sids) == 0 {
		return found, nil
	}
	list, err := database.Collect(ctx, db, "read the revoked sessions", database.Value[uuid.UUID],
		"SELECT sid FROM revoked_session WHERE sid IN (?)", database.List(sids))
	for _, sid := range list {
		found[sid] = true
	}
	return found, err
}

// begunSession returns [ErrSessionNotFound] for a session that has not begun, was revoked or is of a
// release that did not store it.
func begunSession(ctx context.Context, db database.IDB, sid uuid.UUID) (begun, error) {
	list, err := listBegun(ctx, db, "sid = ?", sid)
	if err == nil && len(list) == 0 {
		err = ErrSessionNotFound
	}
	if err != nil {
		return begun{}, err
	}
	return list[0], nil
}

// begunBetween returns the next sessions that began between two times, ordered by id.
func begunBetween(ctx context.Context, db database.IDB, from, to time.Time, after uuid.UUID,
	limit int) ([]begun, error) {
	return listBegun(ctx, db, "began_at >= ? AND began_at < ? AND sid > ? ORDER BY sid LIMIT ?", from, to, after, limit)
}

func listBegun(ctx context.Context, db database.IDB, where string, args ...any) ([]begun, error) {
	scan := func(row database.Row) (b begun, err error) {
		err = row.Scan(&b.sid, &b.userID, &b.epoch, &b.at)
		return b, err
	}
	const query = "SELECT " + begunColumns + " FROM begun_session WHERE "
	return database.Collect(ctx, db, "read the sessions", scan, query+where, args...)
}

// revokeSessions stores that sessions of an account are revoked and returns those that were not before. The rows are
// kept for the given time, by this server's clock or the database's, whichever is ahead.
func revokeSessions(ctx context.Context, tx database.IDB, userID uuid.UUID, reason Reason, now time.Time,
	kept time.Duration, sids []uuid.UUID) ([]uuid.UUID, error) {
	list, expires := "(?1) AS list", "?5"
	args := []any{database.List(sids), userID, reason, now, now.Add(kept)}
	if database.IsPostgres(tx) {
		list = "unnest(CAST(?1 AS uuid[])) AS list (value)"
		expires = "GREATEST(CAST(?5 AS timestamptz), now() + make_interval(secs => ?6))"
		args = append(args, kept.Seconds())
	}
	news, err := database.Collect(ctx, tx, "revoke sessions", database.Value[uuid.UUID],
		`INSERT INTO revoked_session (sid, user_id, reason, revoked_at, expires_at)
		SELECT value, ?2, ?3, ?4, `+expires+` FROM `+list+` WHERE true ON CONFLICT (sid) DO NOTHING RETURNING sid`, args...)
	if err != nil {
		return nil, err
	}
	return news, database.Exec(ctx, tx, "revoke sessions", "DELETE FROM begun_session WHERE sid IN (?)",
		database.List(sids))
}

// purgeSessions deletes at most limit rows of begun_session or revoked_session whose sessions have no
// token that can live, by this server's clock and by the database's: a clock that is ahead must not
// revive a revoked session.
func purgeSessions(ctx context.Context, db *database.DB, table string, now time.Time, limit int) (int64, error) {
	query := "DELETE FROM %[1]s WHERE sid IN (SELECT sid FROM %[1]s WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2)"
	if db.IsPostgres() { // which would join, and read the whole table for it
		query = "DELETE FROM %[1]s WHERE sid = ANY (ARRAY(SELECT sid FROM %[1]s WHERE expires_at < ?1 " +
			"AND expires_at < now() ORDER BY expires_at LIMIT ?2))"
	}
	return db.Write(ctx, fmt.Sprintf(query, table), now, limit)
}
