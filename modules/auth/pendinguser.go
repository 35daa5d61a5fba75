package auth

import (
	"context"
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
	addresses    []Address // see ImportedUser
	lost         []string
	differs      []string // in what the record differs from its account, which stays as it is
	other        bool     // it is no account
	scheme       password.Scheme
	assumed      bool
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
		owners.check(n)
		if n.refused == nil && owners.byName[n.canonical] == nil {
			n.refused = fault.Refuse("conflict",
				"an account with this name was deleted during the import; run it again")
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
	type row struct {
		id        uuid.UUID
		canonical string
	}
	scan := func(one database.Row) (r row, err error) {
		err = one.Scan(&r.id, &r.canonical)
		return r, err
	}
	list, err := database.Collect(ctx, tx, "insert users", scan, `INSERT INTO users (id, username, username_canonical, password_hash,
		status, session_epoch, created_at, updated_at, password_changed_at) VALUES `+values+`
		ON CONFLICT DO NOTHING RETURNING id, username_canonical`, args...)
	inserted := make(map[uuid.UUID]string, len(list))
	for _, r := range list {
		inserted[r.id] = r.canonical
	}
	return inserted, err
}

func (n *pendingUser) asImported() ImportedUser {
	return ImportedUser{User: n.User, Address: n.origin.address, Confirmed: n.origin.confirmed, Addresses: n.addresses}
}
