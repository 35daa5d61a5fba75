package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// pendingUser is a record that may become an account.
type pendingUser struct {
	account
	line, number int64
	keepID       bool // the record has the id
	numbered     bool // see record
	origin       origin
	lost         []string
	other        bool // it is no account
	scheme       password.Scheme
	imported     bool
	refused      *fault.Refusal
}

// insertAbsent inserts the accounts whose id and name are free, with their origins, and sets for each
// of the others whether it is present or refused.
func insertAbsent(ctx context.Context, tx database.IDB, batch []*pendingUser) error {
	// In the order of their names: two imports at once do not wait in a circle.
	ordered := slices.SortedStableFunc(slices.Values(batch),
		func(a, b *pendingUser) int { return strings.Compare(a.canonical, b.canonical) })
	inserted, err := insertUsers(ctx, tx, ordered)
	if err != nil {
		return err
	}
	var added, others []*pendingUser
	for _, n := range batch {
		n.imported, n.refused = inserted[n.ID] == n.canonical, nil
		if n.imported {
			delete(inserted, n.ID) // a second record of the same account finds it there
			added = append(added, n)
		} else {
			others = append(others, n)
		}
	}
	if err := insertOrigins(ctx, tx, added); err != nil {
		return err
	}
	owners, err := ownersOf(ctx, tx, others)
	if err != nil {
		return err
	}
	for _, n := range others {
		n.refused = owners.refusal(n)
		if n.refused == nil && owners.byName[n.canonical] == nil {
			n.refused = fault.Refuse("conflict", "an account with this name was deleted during the import; run it again")
		}
	}
	return nil
}

// insertUsers returns the names of those inserted by their ids.
func insertUsers(ctx context.Context, tx database.IDB, batch []*pendingUser) (map[uuid.UUID]string, error) {
	args := make([]any, 0, len(batch)*9)
	for _, n := range batch {
		args = append(args, n.ID, n.Username, n.canonical, n.passwordHash, n.Status, n.epoch, n.CreatedAt, n.UpdatedAt,
			n.PasswordChangedAt)
	}
	values := strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?)", len(batch))[2:]
	rows, err := tx.QueryContext(ctx, `INSERT INTO users (id, username, username_canonical, password_hash, status, session_epoch,
		created_at, updated_at, password_changed_at) VALUES `+values+` ON CONFLICT DO NOTHING RETURNING id, username_canonical`, args...)
	if err != nil {
		return nil, fmt.Errorf("insert users: %w", err)
	}
	defer rows.Close()
	inserted := make(map[uuid.UUID]string, len(batch))
	for rows.Next() {
		var id uuid.UUID
		var canonical string
		if err := rows.Scan(&id, &canonical); err != nil {
			return nil, fmt.Errorf("insert users: %w", err)
		}
		inserted[id] = canonical
	}
	return inserted, rows.Err()
}
