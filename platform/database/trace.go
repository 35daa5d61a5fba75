package database

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/toppira/authctl/platform/tracing"
)

// trace begins the span of a statement, or of several where there is no one text. The text holds no
// values: they are bound.
func trace(ctx context.Context, postgres bool, query string) (context.Context, tracing.Span) {
	ctx, span := tracing.Client(ctx, "database")
	if span.Recorded() {
		if verb := strings.Fields(query); len(verb) > 0 {
			span.Rename(strings.ToUpper(verb[0]))
			span.Set("db.query.text", query)
		}
		system := "sqlite"
		if postgres {
			system = "postgresql"
		}
		span.Set("db.system.name", system)
	}
	return ctx, span
}

// traced ends the span of a statement.
func traced(span tracing.Span, err error) {
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		span.Fail("the statement failed") // the error may hold a value
	}
	span.End()
}
