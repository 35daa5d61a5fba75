package auth

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
)

// begun is what the database keeps of a session from the transaction on that announces it, so
// that an end is announced of what was announced, and of nothing else, whatever the session
// store has kept or lost.
type begun struct {
	sid, userID uuid.UUID
	epoch       int64 // of the account
	at          time.Time
}

const begunColumns = "sid, user_id, epoch, began_at"

// tentativeFor is longer than any sign-in takes: a session that has not begun by then never will.
const tentativeFor = 15 * time.Minute

// recordBegun notes that a session begins with this transaction.
func (s *Service) recordBegun(ctx context.Context, tx database.IDB, b begun) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO begun_session ("+begunColumns+", expires_at) VALUES (?, ?, ?, ?, ?)",
		b.sid, b.userID, b.epoch, b.at, s.sessionTokensEnd(b.at))
	if err != nil {
		return fmt.Errorf("note the session: %w", err)
	}
	return nil
}

// begunAmong returns which of the sessions the database says have begun.
func begunAmong(ctx context.Context, db database.IDB, sids []uuid.UUID) (map[uuid.UUID]bool, error) {
	found := make(map[uuid.UUID]bool)
	if len(sids) == 0 {
		return found, nil
	}
	list, err := scanBegun(db.QueryContext(ctx, "SELECT "+begunColumns+" FROM begun_session WHERE sid IN (?)", database.List(sids)))
	for _, b := range list {
		found[b.sid] = true
	}
	return found, err
}

// begunSession returns [ErrSessionNotFound] for a session that has not begun, was revoked or is
// of a release that did not note it.
func begunSession(ctx context.Context, db database.IDB, sid uuid.UUID) (begun, error) {
	list, err := scanBegun(db.QueryContext(ctx, "SELECT "+begunColumns+" FROM begun_session WHERE sid = ?", sid))
	if err == nil && len(list) == 0 {
		err = ErrSessionNotFound
	}
	if err != nil {
		return begun{}, err
	}
	return list[0], nil
}

// begunBetween returns the next sessions that began in a time, in the order of their ids.
func begunBetween(ctx context.Context, db database.IDB, from, to time.Time, after uuid.UUID, limit int) ([]begun, error) {
	return scanBegun(db.QueryContext(ctx, "SELECT "+begunColumns+" FROM begun_session WHERE began_at >= ? AND began_at < ? AND sid > ? ORDER BY sid LIMIT ?",
		from, to, after, limit))
}

func scanBegun(rows *sql.Rows, err error) ([]begun, error) {
	if err != nil {
		return nil, fmt.Errorf("read the sessions: %w", err)
	}
	defer rows.Close()
	var list []begun
	for rows.Next() {
		var b begun
		if err := rows.Scan(&b.sid, &b.userID, &b.epoch, &b.at); err != nil {
			return nil, fmt.Errorf("read the sessions: %w", err)
		}
		list = append(list, b)
	}
	return list, rows.Err()
}
