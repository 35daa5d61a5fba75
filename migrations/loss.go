package migrations

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/toppira/authctl/platform/database"
)

// Loss is what of a table a rollback destroys.
type Loss struct {
	Table  string `json:"table"`
	Column string `json:"column,omitempty"` // empty: rows, of a table that goes or stays
	Rows   int64  `json:"rows"`             // that are lost, or whose value of the column is
}

// Preview rolls the last group back and undoes that: it returns what [Down] would undo and what
// would be lost.
func Preview(ctx context.Context, db *database.DB, options ...Option) (undone []State, lost []Loss, err error) {
	enough := errors.New("enough")
	err = locked(ctx, db, options, func(one database.Single) error {
		before, err := measure(ctx, one)
		if err != nil {
			return err
		}
		if undone, err = rollBack(ctx, one); err != nil {
			return err
		}
		after, err := measure(ctx, one)
		if err != nil {
			return err
		}
		lost = before.without(after)
		return enough
	})
	if !errors.Is(err, enough) {
		return nil, nil, err
	}
	return undone, lost, nil
}

// extent is what a database has: the rows of each table, and of each column.
type extent map[string]tableExtent

type tableExtent struct {
	rows    int64
	columns map[string]int64 // with a value
}

// measure counts what is in the tables that the migrations could mean: those of the schema that
// new tables go to, but Bun's own.
func measure(ctx context.Context, db database.IDB) (extent, error) {
	columns := `SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'bun\_%' ESCAPE '\' AND m.name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY 1, 2`
	if database.IsPostgres(db) {
		columns = `SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
			WHERE c.relnamespace = to_regnamespace(current_schema()) AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname NOT LIKE 'bun\_%'
				AND pg_has_role(c.relowner, 'USAGE') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2`
	}
	of := map[string][]string{}
	_, err := database.Collect(ctx, db, "list the tables", func(row database.Row) (table string, err error) {
		var column string
		err = row.Scan(&table, &column)
		of[table] = append(of[table], column)
		return table, err
	}, columns)
	if err != nil {
		return nil, err
	}
	found := extent{}
	for table, names := range of {
		// The names are the catalogue's, and quoted.
		query := "SELECT count(*)"
		for _, name := range names {
			query += ", count(" + quote(name) + ")"
		}
		t := tableExtent{columns: map[string]int64{}}
		counts := make([]int64, len(names))
		into := []any{&t.rows}
		for i := range counts {
			into = append(into, &counts[i])
		}
		if err := db.QueryRowContext(ctx, query+" FROM "+quote(table)).Scan(into...); err != nil {
			return nil, fmt.Errorf("count the rows of %s: %w", table, err)
		}
		for i, name := range names {
			t.columns[name] = counts[i]
		}
		found[table] = t
	}
	return found, nil
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// without lists what is here and not there, by table and column.
func (e extent) without(there extent) []Loss {
	var lost []Loss
	for table, was := range e {
		is, stays := there[table]
		if rows := was.rows - is.rows; rows > 0 || !stays {
			lost = append(lost, Loss{Table: table, Rows: rows})
		}
		if !stays {
			continue
		}
		for _, column := range slices.Sorted(maps.Keys(was.columns)) {
			if _, stays := is.columns[column]; !stays {
				lost = append(lost, Loss{Table: table, Column: column, Rows: was.columns[column]})
			}
		}
	}
	slices.SortFunc(lost,
		func(a, b Loss) int { return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Column, b.Column)) })
	return lost
}
