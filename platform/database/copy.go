package database

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// CopyInto fills a table of PostgreSQL by COPY, with rows until next returns nil.
func (db *DB) CopyInto(ctx context.Context, table string, columns []string, next func() []any) error {
	err := db.Postgres(ctx, func(conn *pgx.Conn) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{table}, columns,
			pgx.CopyFromFunc(func() ([]any, error) { return next(), nil }))
		return err
	})
	if err != nil {
		return fmt.Errorf("fill %s: %w", table, err)
	}
	return nil
}
