package auth

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/database"
)

// Status says whether an account may be used.
type Status string

const (
	StatusActive   Status = "active"
	StatusDisabled Status = "disabled"
)

// User is an account as its owner and the operators see it.
type User struct {
	ID                uuid.UUID `json:"id"`
	Username          string    `json:"username"` // as it was typed
	Status            Status    `json:"status"`
	CreatedAt         time.Time `json:"created_at"`
	UpdatedAt         time.Time `json:"updated_at"`
	PasswordChangedAt time.Time `json:"password_changed_at"`
}

// account is the whole row: the user and what only this package may know.
type account struct {
	User
	canonical    string
	passwordHash string
	// Sessions that began under a lower epoch have ended, except keptSID.
	epoch   int64
	keptSID uuid.NullUUID
}

// samePassword reports whether the password is still the one that was read. A renewed hash is of the
// same password.
func (a account) samePassword(read account) bool {
	return a.PasswordChangedAt.Equal(read.PasswordChangedAt)
}

// owner names the account with its present password, for what belongs to the two of them.
func (a account) owner() string {
	if a.ID == uuid.Nil {
		return ""
	}
	return a.ID.String() + " " + strconv.FormatInt(a.PasswordChangedAt.UnixMicro(), 10)
}

const accountColumns = `id, username, status, created_at, updated_at, password_changed_at,
	username_canonical, password_hash, session_epoch, kept_sid`

func scanAccount(row database.Row) (account, error) {
	var a account
	err := row.Scan(&a.ID, &a.Username, &a.Status, &a.CreatedAt, &a.UpdatedAt, &a.PasswordChangedAt,
		&a.canonical, &a.passwordHash, &a.epoch, &a.keptSID)
	if database.IsNotFound(err) {
		return account{}, ErrUserNotFound
	}
	if err != nil {
		return account{}, fmt.Errorf("read user: %w", err)
	}
	a.CreatedAt, a.UpdatedAt, a.PasswordChangedAt = a.CreatedAt.UTC(), a.UpdatedAt.UTC(), a.PasswordChangedAt.UTC()
	return a, nil
}

// accountByName begins every sign-in. On PostgreSQL it always reads a row, another account's when
// the name is unknown: a row takes some 20 µs to send and to decode, which two thousand attempts
// would show. It is planned each time: a plan made for a small table would read all of it after an
// import.
func accountByName(ctx context.Context, db *database.DB, canonical string) (a account, err error) {
	const query = "SELECT " + accountColumns + " FROM users WHERE username_canonical = "
	if !db.IsPostgres() {
		return scanAccount(db.QueryRowContext(ctx, query+"?", canonical))
	}
	const always = "SELECT * FROM ((" + query + "$1) UNION ALL (SELECT " + accountColumns +
		" FROM users ORDER BY id LIMIT 1)) q ORDER BY username_canonical = $1 DESC LIMIT 1"
	err = db.Postgres(ctx, func(conn *pgx.Conn) error {
		a, err = scanAccount(conn.QueryRow(ctx, always, pgx.QueryExecModeCacheDescribe, canonical))
		if errors.Is(err, ErrUserNotFound) { // there is no account at all, which is no failure of the statement
			return nil
		}
		return err
	})
	if err == nil && a.canonical != canonical {
		return account{}, ErrUserNotFound
	}
	return a, err
}

func accountByID(ctx context.Context, db database.IDB, id uuid.UUID) (account, error) {
	return scanAccount(db.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM users WHERE id = ?", id))
}

// accountsByID returns those of the accounts that exist.
func accountsByID(ctx context.Context, db database.IDB, ids []uuid.UUID) (map[uuid.UUID]account, error) {
	found := make(map[uuid.UUID]account, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	list, err := listAccounts(ctx, db, "id IN (?)", database.List(ids))
	for _, a := range list {
		found[a.ID] = a
	}
	return found, err
}

func listAccounts(ctx context.Context, db database.IDB, where string, args ...any) ([]account, error) {
	const query = "SELECT " + accountColumns + " FROM users WHERE "
	return database.Collect(ctx, db, "list users", scanAccount, query+where, args...)
}

// lockAccount reads the account and locks its row until the transaction ends, so that the caller's
// decision still holds at the commit.
func lockAccount(ctx context.Context, tx database.IDB, id uuid.UUID) (account, error) {
	return scanAccount(tx.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM users WHERE id = ?"+
		database.ForUpdate(tx), id))
}

func insertAccount(ctx context.Context, tx database.IDB, a account) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO users (id, username, username_canonical, password_hash, status, session_epoch,
		created_at, updated_at, password_changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		a.ID, a.Username, a.canonical, a.passwordHash, a.Status, a.epoch, a.CreatedAt, a.UpdatedAt, a.PasswordChangedAt)
	if database.IsUnique(err) {
		return ErrUsernameTaken
	}
	if err != nil {
		return fmt.Errorf("insert user: %w", err)
	}
	return nil
}

// raiseEpoch ends every session of the account except the kept one, if valid, and returns the new
// epoch.
func raiseEpoch(ctx context.Context, tx database.IDB, a account, kept uuid.NullUUID, now time.Time) (int64, error) {
	epoch := a.epoch + 1
	return epoch, database.Exec(ctx, tx, "end the sessions of the user",
		"UPDATE users SET session_epoch = ?, kept_sid = ?, sessions_ended_at = ?, updated_at = ? WHERE id = ?", epoch,
		kept, now, now, a.ID)
}

func updatePassword(ctx context.Context, tx database.IDB, id uuid.UUID, hash string, now time.Time) error {
	return database.Exec(ctx, tx, "update password",
		"UPDATE users SET password_hash = ?, password_changed_at = ?, updated_at = ? WHERE id = ?", hash, now, now, id)
}

// rehash stores the same password under the present settings, unless it changed meanwhile.
func rehash(ctx context.Context, tx database.IDB, id uuid.UUID, old, hash string) error {
	return database.Exec(ctx, tx, "store the renewed hash",
		"UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?", hash, id, old)
}

func updateStatus(ctx context.Context, tx database.IDB, id uuid.UUID, status Status, now time.Time) error {
	return database.Exec(ctx, tx, "update status", "UPDATE users SET status = ?, updated_at = ? WHERE id = ?", status,
		now, id)
}

func deleteAccount(ctx context.Context, tx database.IDB, id uuid.UUID) error {
	return database.Exec(ctx, tx, "delete user", "DELETE FROM users WHERE id = ?", id)
}

// accountPages passes every account to fn, ordered by id, some hundred at a time.
func (s *Service) accountPages(ctx context.Context, fn func([]account) error) error {
	const page = 500
	for after := uuid.Nil; ; {
		list, err := listAccounts(ctx, s.db, "id > ? ORDER BY id LIMIT ?", after, page)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		if err := fn(list); err != nil {
			return err
		}
		if len(list) < page {
			return nil
		}
		after = list[len(list)-1].ID
	}
}

// lockAccountsAfter is [lockAccount] for the next active accounts in the order of their ids.
// Disabled ones have no sessions.
func lockAccountsAfter(ctx context.Context, tx database.IDB, after uuid.UUID, limit int) ([]account, error) {
	const where = "id > ? AND status = ? ORDER BY id LIMIT ?"
	return listAccounts(ctx, tx, where+database.ForUpdate(tx), after, StatusActive, limit)
}
