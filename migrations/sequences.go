package migrations

import (
	"context"
	"fmt"

	"github.com/toppira/authctl/platform/database"
)

// sequences are those of the schema on PostgreSQL, each with the highest number that it has given, as far as the tables
// tell. Events are removed after a while, and shards then still know how far they got. Messages are no events.
var sequences = []struct{ name, given string }{
	{"outbox_event_id", "greatest((SELECT max(id) FROM outbox_event), (SELECT max(id) FROM outbox_message), " +
		"(SELECT max(low) FROM outbox_shard))"},
	{"revocation_id_seq", "(SELECT max(id) FROM revocation)"},
	{"bun_migrations_id_seq", "(SELECT max(id) FROM bun_migrations)"},
	{"bun_migration_locks_id_seq", "(SELECT max(id) FROM bun_migration_locks)"},
}

// LateSequences lists the statements that raise the sequences whose next numbers were given before. Changes that use
// them fail: the database was copied without its sequences, as logical replication does. Sequences that the
// role of this connection may not read are left out, and SQLite has none. The schema must be up to date.
func LateSequences(ctx context.Context, db *database.DB) (raise []string, err error) {
	if !db.IsPostgres() {
		return nil, nil
	}
	for _, s := range sequences {
		var late bool
		// What the statement sees was given before it began, and so before it reads the sequence.
		err := db.QueryRowContext(ctx, `SELECT coalesce(`+s.given+`, 0) >
			(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM `+s.name+`)`).Scan(&late)
		if err != nil && !database.IsForbidden(err) {
			return nil, fmt.Errorf("read the sequence %s: %w", s.name, err)
		}
		if late {
			raise = append(raise, fmt.Sprintf("SELECT setval('%s', %s)", s.name, s.given))
		}
	}
	return raise, nil
}
