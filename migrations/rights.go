package migrations

import (
	"context"
	"regexp"
	"strings"

	"github.com/toppira/authctl/deploy/postgres"
	"github.com/toppira/authctl/platform/database"
)

// grants are the statements of deploy/postgres/grants.sql that give a role rights on objects, or on columns of one.
var grants = regexp.MustCompile(
	`(?m)^GRANT ([A-Z, ]+?)(?: \(([a-z_, ]+)\))? ON (?:(SEQUENCE|FUNCTION) )?([a-z_,\s]+?)\s+TO ([a-z_, ]+);`)

// MissingRights lists what grants.sql gives the role, authctl_serve or authctl_relay, and the role of this
// connection may not do, such as "INSERT on users". It is empty for the owner of the tables, and on SQLite. The schema
// must be up to date.
func MissingRights(ctx context.Context, db *database.DB, role string) ([]string, error) {
	if !db.IsPostgres() {
		return nil, nil
	}
	var kinds, rights, columns, objects []string
	for _, g := range grants.FindAllStringSubmatch(postgres.Grants, -1) {
		if !strings.Contains(g[5], role) {
			continue
		}
		for object := range strings.SplitSeq(g[4], ",") {
			for right := range strings.SplitSeq(g[1], ",") {
				kinds, columns = append(kinds, `"`+g[3]+`"`), append(columns, `"`+g[2]+`"`)
				rights, objects = append(rights, strings.TrimSpace(right)), append(objects, strings.TrimSpace(object))
			}
		}
	}
	list := func(elements []string) string { return "{" + strings.Join(elements, ",") + "}" }
	return database.Collect(ctx, db, "look for rights", func(row database.Row) (missing string, err error) {
		err = row.Scan(&missing)
		return missing, err
	}, `SELECT r || ' on ' || o FROM unnest(?::text[], ?::text[], ?::text[], ?::text[]) WITH ORDINALITY AS wanted (k, r, cs, o, n)
		WHERE NOT CASE WHEN k = 'SEQUENCE' THEN has_sequence_privilege(o, r)
			WHEN k = 'FUNCTION' THEN EXISTS (SELECT FROM pg_proc -- perhaps several: a newer release or others may overload it
				WHERE proname = o AND pg_function_is_visible(oid) AND has_function_privilege(oid, r))
			WHEN cs <> '' THEN (SELECT bool_and(has_column_privilege(o, c, r)) FROM regexp_split_to_table(cs, ', *') c)
			ELSE has_table_privilege(o, r) END
		ORDER BY n`, list(kinds), list(rights), list(columns), list(objects))
}
