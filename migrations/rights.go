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
	`(?m)^GRANT ([A-Z, ]+?)( \([a-z, ]+\))? ON (?:(SEQUENCE|FUNCTION) )?([a-z_,\s]+?)\s+TO ([a-z_, ]+);`)

// MissingRights lists what grants.sql gives the role, authctl_serve or authctl_relay, and the role of this
// connection may not do, such as "INSERT on users". It is empty for the owner of the tables, and on SQLite. The schema
// must be up to date.
func MissingRights(ctx context.Context, db *database.DB, role string) ([]string, error) {
	if !db.IsPostgres() {
		return nil, nil
	}
	var kinds, rights, objects []string
	for _, g := range grants.FindAllStringSubmatch(postgres.Grants, -1) {
		if !strings.Contains(g[5], role) {
			continue
		}
		kind := "k" + g[3]
		if g[2] != "" {
			kind = "kCOLUMNS"
		}
		for object := range strings.SplitSeq(g[4], ",") {
			for right := range strings.SplitSeq(g[1], ",") {
				kinds = append(kinds, kind)
				rights, objects = append(rights, strings.TrimSpace(right)), append(objects, strings.TrimSpace(object))
			}
		}
	}
	list := func(elements []string) string { return "{" + strings.Join(elements, ",") + "}" }
	return database.Collect(ctx, db, "look for rights", func(row database.Row) (missing string, err error) {
		err = row.Scan(&missing)
		return missing, err
	}, `SELECT r || ' on ' || o FROM unnest(?::text[], ?::text[], ?::text[]) WITH ORDINALITY AS wanted (k, r, o, n)
		WHERE NOT CASE k WHEN 'kSEQUENCE' THEN has_sequence_privilege(o, r)
			WHEN 'kFUNCTION' THEN EXISTS (SELECT FROM pg_proc -- perhaps several: a newer release or others may overload it
				WHERE proname = o AND pg_function_is_visible(oid) AND has_function_privilege(oid, r))
			WHEN 'kCOLUMNS' THEN has_any_column_privilege(o, r)
			ELSE has_table_privilege(o, r) END
		ORDER BY n`, list(kinds), list(rights), list(objects))
}
