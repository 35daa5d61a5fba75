package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/toppira/authctl/deploy/postgres"
	"github.com/toppira/authctl/platform/database"
)

// Grant gives the roles authctl_serve and authctl_relay the rights that this binary's schema asks
// for, and takes back any others, in one transaction. The schema must be up to date, and the
// connection that of the tables' owner.
func Grant(ctx context.Context, db *database.DB) error {
	if !db.IsPostgres() {
		return errors.New("SQLite has no roles: only PostgreSQL has rights to grant")
	}
	if err := Check(ctx, db); err != nil {
		return err
	}
	return db.Single(ctx, func(one database.Single) error {
		_, err := one.ExecContext(ctx, postgres.Grants)
		if err == nil {
			return nil
		}
		// The statements begin a transaction, and a failed one would stay open.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = one.ExecContext(late, "ROLLBACK")
		return fmt.Errorf("grant the roles their rights: %w", err)
	})
}
