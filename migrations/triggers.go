package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/toppira/authctl/platform/database"
)

// ErrTriggersOff is returned by [Check] when triggers of the schema do not run: the revocation feed
// would miss what ends, and codes would outlive the change that ends them, without a word. An
// interrupted pg_restore --disable-triggers leaves a database like that.
var ErrTriggersOff = errors.New("triggers of the database do not run")

func checkTriggers(ctx context.Context, db *database.DB) error {
	if !db.IsPostgres() {
		return nil
	}
	var role string
	if err := db.QueryRowContext(ctx, "SELECT current_setting('session_replication_role')").Scan(&role); err != nil {
		return fmt.Errorf("read whether triggers run: %w", err)
	}
	if role != "origin" {
		return fmt.Errorf("%w: session_replication_role is %s; ALTER ROLE and ALTER DATABASE … RESET "+
			"session_replication_role undo that", ErrTriggersOff, role)
	}
	off, err := database.Collect(ctx, db, "read whether triggers run", database.Value[string],
		`SELECT format('ALTER TABLE %I ENABLE TRIGGER %I', c.relname, t.tgname) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
		WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'bun_migrations'::regclass)
			AND NOT t.tgisinternal AND t.tgname ~ '^(revocation|contact|outbox)_' AND t.tgenabled NOT IN ('O', 'A')
		ORDER BY c.relname, t.tgname`)
	if err != nil || len(off) == 0 {
		return err
	}
	return fmt.Errorf("%w; the tables' owner turns them on: %s", ErrTriggersOff, strings.Join(off, "; "))
}
