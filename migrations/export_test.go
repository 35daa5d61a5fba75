package migrations

import (
	"context"

	"github.com/toppira/authctl/platform/database"
)

// Locked runs do while no migration can run, as one keeps others waiting.
func Locked(ctx context.Context, db *database.DB, do func()) error {
	return locked(ctx, db, nil, func(database.Single) error { do(); return nil })
}
