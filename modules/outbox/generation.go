package outbox

import (
	"context"
	"fmt"

	"github.com/toppira/authctl/platform/database"
)

// Generation is the one that new events carry.
func Generation(ctx context.Context, db database.IDB) (int64, error) {
	var generation int64
	if err := db.QueryRowContext(ctx, "SELECT generation FROM outbox_setting").Scan(&generation); err != nil {
		return 0, fmt.Errorf("read the generation of events: %w", err)
	}
	return generation, nil
}

// RaiseGeneration gives the events that are written from now on a higher generation: the database was
// set back to an older state, and gives out sequence numbers again that consumers have already seen.
// Events that wait keep theirs. A generation that is not higher changes nothing.
func RaiseGeneration(ctx context.Context, tx database.IDB, to int64) error {
	return database.Exec(ctx, tx, "raise the generation of events",
		"UPDATE outbox_setting SET generation = ? WHERE generation < ?", to, to)
}
