package contact

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/database"
)

// byUser is the owner of an account, in the security log.
const byUser = "user"

// KindEmail is the one kind of contact so far.
const KindEmail = "email"

// How a contact was verified.
const (
	byChallenge = "challenge"
	byAdmin     = "admin"
	byImport    = "import"
	byUndo      = "undo"
)

// Contact is an address of an account.
type Contact struct {
	ID         uuid.UUID `json:"id"`
	Kind       string    `json:"kind"`
	Address    string    `json:"address"`
	VerifiedAt time.Time `json:"verified_at,omitzero"` // zero: it is not verified
	CreatedAt  time.Time `json:"created_at"`
}

// Verified reports whether the address is known to be its owner's.
func (c Contact) Verified() bool { return !c.VerifiedAt.IsZero() }

// contactRow is the whole row.
type contactRow struct {
	Contact
	userID     uuid.UUID
	canonical  string
	language   string
	verifiedBy string
}

// maxContacts is how many an account may have.
const maxContacts = 10

const contactColumns = "id, user_id, kind, address, canonical, language, verified_at, verified_by, created_at"

func scanContact(row database.Row) (contactRow, error) {
	var c contactRow
	var verified sql.NullTime
	var by sql.NullString
	err := row.Scan(&c.ID, &c.userID, &c.Kind, &c.Address, &c.canonical, &c.language, &verified, &by, &c.CreatedAt)
	if database.IsNotFound(err) {
		return contactRow{}, ErrContactNotFound
	}
	if err != nil {
		return contactRow{}, fmt.Errorf("read contact: %w", err)
	}
	c.CreatedAt, c.verifiedBy = c.CreatedAt.UTC(), by.String
	if verified.Valid {
		c.VerifiedAt = verified.Time.UTC()
	}
	return c, nil
}

// contactsOf lists the contacts of an account, the oldest first.
func contactsOf(ctx context.Context, db database.IDB, userID uuid.UUID) ([]contactRow, error) {
	return database.Collect(ctx, db, "list contacts", scanContact,
		"SELECT "+contactColumns+" FROM contact WHERE user_id = ? ORDER BY created_at, id", userID)
}

func verifiedOnly(list []contactRow) []contactRow {
	return slices.DeleteFunc(slices.Clone(list), func(c contactRow) bool { return !c.Verified() })
}

// contactPortion is how many contacts one statement inserts. Their values have to be fewer than the 32,766 that
// SQLite takes in one, and a batch of an import may have thousands of contacts.
const contactPortion = 500

// insertContacts inserts contacts, except those that their account has already and verified ones that
// another account has. It returns the ids of those inserted.
func insertContacts(ctx context.Context, tx database.IDB, list []contactRow) (map[uuid.UUID]bool, error) {
	inserted := make(map[uuid.UUID]bool, len(list))
	for portion := range slices.Chunk(list, contactPortion) {
		args := make([]any, 0, len(portion)*9)
		for _, c := range portion {
			args = append(args, c.ID, c.userID, c.Kind, c.Address, c.canonical, c.language,
				sql.NullTime{Time: c.VerifiedAt, Valid: c.Verified()},
				sql.NullString{String: c.verifiedBy, Valid: c.Verified()}, c.CreatedAt)
		}
		ids, err := database.Collect(ctx, tx, "insert contacts", database.Value[uuid.UUID],
			"INSERT INTO contact ("+contactColumns+") VALUES "+
				strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?)", len(portion))[2:]+
				" ON CONFLICT DO NOTHING RETURNING id", args...)
		if err != nil {
			return inserted, err
		}
		for _, id := range ids {
			inserted[id] = true
		}
	}
	return inserted, nil
}

// setVerified marks an address as its owner's. It returns [ErrContactTaken] if the address is
// another account's; the transaction can go on.
func setVerified(ctx context.Context, tx database.IDB, c contactRow, by string, at time.Time) error {
	const savepoint = "contact_verified"
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
		return fmt.Errorf("verify contact: %w", err)
	}
	_, err := tx.ExecContext(ctx, "UPDATE contact SET verified_at = ?, verified_by = ? WHERE id = ?", at, by, c.ID)
	taken := database.IsUnique(err)
	if err != nil && !taken {
		return fmt.Errorf("verify contact: %w", err)
	}
	end := "RELEASE SAVEPOINT "
	if taken { // by one that may have committed just now, so only the index can tell
		end = "ROLLBACK TO SAVEPOINT "
	}
	if _, err := tx.ExecContext(ctx, end+savepoint); err != nil {
		return fmt.Errorf("verify contact: %w", err)
	}
	if taken {
		return ErrContactTaken
	}
	return nil
}

// lockUser locks an account. If its owner has deleted it meanwhile, the error is that of an ended session.
func lockUser(ctx context.Context, tx database.Tx, id uuid.UUID) (auth.User, error) {
	u, err := auth.LockUser(ctx, tx, id)
	if errors.Is(err, auth.ErrUserNotFound) {
		err = auth.ErrSessionRevoked
	}
	return u, err
}
