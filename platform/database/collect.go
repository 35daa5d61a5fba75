package database

import (
	"context"
	"fmt"
)

// Row is a row of a query, read or about to be.
type Row interface{ Scan(into ...any) error }

// Collect runs a query and returns what scan makes of each row. what is said of every error, such
// as "list users". Without rows the list is empty and not nil, which JSON writes as [] and not as null.
func Collect[T any](ctx context.Context, db IDB, what string, scan func(Row) (T, error), query string,
	args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer rows.Close()
	list := []T{}
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		list = append(list, one)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return list, nil
}

// Exec runs a statement. what is said of its error, such as "delete user".
func Exec(ctx context.Context, db IDB, what, query string, args ...any) error {
	if _, err := db.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Value scans a row of one column.
func Value[T any](row Row) (value T, err error) {
	err = row.Scan(&value)
	return value, err
}
