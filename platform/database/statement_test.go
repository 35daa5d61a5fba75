package database_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// hostile are values that change a statement if the server reads them as part of it.
var hostile = []string{
	`\'; DROP TABLE kept; --`, `'; DROP TABLE kept; --`, `x","user_id":"V`, `\`, `\\'`, `\'`, `''`, `'`, `"`, `$1`, `?`,
	`?1`, `?0`, `:x`, `@x`,
	`$$; DROP TABLE kept; $$`, `/*`, `--`, `*/`, "\u2028", "\u02bc", "\uff07", "a\nb", `E'\x27'`, `U&'\0027'`, "%s%d",
	"{}", "NULL", "",
}

func TestNoValueBecomesPartOfAStatement(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, db *database.DB) {
		if _, err := db.Write(t.Context(), "CREATE TABLE kept (n integer PRIMARY KEY, v text NOT NULL)"); err != nil {
			t.Fatal(err)
		}
		for n, v := range hostile {
			if _, err := db.Write(t.Context(), "INSERT INTO kept (n, v) VALUES (?, ?)", n, v); err != nil {
				t.Fatalf("%q: %v", v, err)
			}
			var there string
			if err := db.QueryRowContext(t.Context(), "SELECT v FROM kept WHERE v = ? AND n = ?", v,
				n).Scan(&there); err != nil || there != v {
				t.Errorf("%q came back as %q, %v", v, there, err)
			}
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM kept WHERE v IN (?)",
			database.List(hostile)).Scan(&n); err != nil || n != len(hostile) {
			t.Errorf("%d of %d are in the list, %v", n, len(hostile), err)
		}
	}
	dbtest.Each(t, test)
	t.Run("postgres with other settings", func(t *testing.T) {
		t.Parallel()
		test(t, dbtest.Contrary(t))
	})
}

func TestEachConnectionSetsWhatTheCodeReliesOn(t *testing.T) {
	t.Parallel()
	db := dbtest.Contrary(t)
	for name, want := range map[string]string{
		"standard_conforming_strings": "on", "client_encoding": "UTF8", "bytea_output": "hex", "DateStyle": "ISO, MDY",
		"IntervalStyle": "postgres", "default_transaction_isolation": "read committed", "TimeZone": "Asia/Kathmandu",
		"search_path": `"$user", public`, "jit": "off",
	} {
		var have string
		if err := db.QueryRowContext(t.Context(), "SELECT current_setting(?)", name).Scan(&have); err != nil ||
			have != want {
			t.Errorf("%s is %q, %v; want %q", name, have, err, want)
		}
	}
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		var have string
		if err := tx.QueryRowContext(ctx, "SELECT current_setting('transaction_isolation')").Scan(&have); err != nil {
			return err
		}
		if have != "read committed" {
			t.Errorf("a transaction is %s", have)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestADatabaseThatCannotHoldUTF8IsRefused(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"SQL_ASCII", "LATIN1"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.EmptyURL(t, "ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
			_, err := database.Open(t.Context(), database.Config{URL: dsn}, database.Options{})
			if err == nil || !strings.Contains(err.Error(), encoding) ||
				!strings.Contains(err.Error(), "ENCODING 'UTF8'") {
				t.Errorf("opened with %v", err)
			}
		})
	}
}

// The relay cannot work on PostgreSQL 13. Here a server says that it is one, itself or through PgBouncer.
func TestAServerThatIsTooOldIsRefused(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string]func(*testing.T, string) string{
		"itself":    func(_ *testing.T, dsn string) string { return dsn },
		"pgbouncer": func(t *testing.T, dsn string) string { return dbtest.PgBouncer(t, dsn) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, dsn := freezable(t, behind(t, dbtest.PostgresURL(t)))
			const before = "server_version\x00"
			f.wall.Lock()
			f.change = func(sent []byte) {
				if i := bytes.Index(sent, []byte(before)); i >= 0 {
					copy(sent[i+len(before):], "13")
				}
			}
			f.wall.Unlock()
			_, err := database.Open(t.Context(), database.Config{URL: config.Secret(dsn)}, database.Options{})
			if err == nil || !strings.HasSuffix(err.Error(), " is too old: authctl needs 14 or newer") ||
				!strings.Contains(err.Error(), ": PostgreSQL 13") {
				t.Errorf("opened with %v", err)
			}
			if remedy := database.Remedy(err, database.OwnTables); remedy != "" {
				t.Errorf("which says it itself, and then: %s", remedy)
			}
		})
	}
}

func TestValuesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, db *database.DB) {
		blob, stamp := "blob", "timestamp"
		if db.IsPostgres() {
			blob, stamp = "bytea", "timestamptz"
		}
		_, err := db.Write(t.Context(),
			fmt.Sprintf("CREATE TABLE kinds (id text PRIMARY KEY, b %s, t %s, yes boolean, n bigint, f double precision)",
				blob, stamp))
		if err != nil {
			t.Fatal(err)
		}
		type kinds struct {
			id  uuid.UUID
			b   []byte
			t   *time.Time
			yes bool
			n   int64
			f   float64
		}
		at := time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.FixedZone("x", 3600))
		for _, want := range []kinds{
			{uuid.New(), []byte{0, 1, '\\', '\'', 0xff}, &at, true, 1<<62 + 1, 0.1},
			{uuid.New(), []byte{}, nil, false, -1, -1e300},
			{uuid.New(), nil, nil, false, 0, 0},
		} {
			id := want.id.String()
			if _, err := db.Write(t.Context(), "INSERT INTO kinds (id, b, t, yes, n, f) VALUES (?, ?, ?, ?, ?, ?)", id,
				want.b, want.t, want.yes, want.n, want.f); err != nil {
				t.Fatal(err)
			}
			var got kinds
			var null bool
			row := db.QueryRowContext(t.Context(), "SELECT id, b, b IS NULL, t, yes, n, f FROM kinds WHERE id = ?", id)
			if err := row.Scan(&got.id, &got.b, &null, &got.t, &got.yes, &got.n, &got.f); err != nil {
				t.Fatal(err)
			}
			times := want.t == nil && got.t == nil || want.t != nil && got.t != nil && want.t.Equal(*got.t)
			if got.id != want.id || !slices.Equal(got.b, want.b) || null != (want.b == nil) || !times ||
				got.yes != want.yes || got.n != want.n || got.f != want.f {
				t.Errorf("%+v came back as %+v", want, got)
			}
		}
	}
	dbtest.Each(t, test)
	t.Run("postgres with other settings", func(t *testing.T) {
		t.Parallel()
		test(t, dbtest.Contrary(t))
	})
}

// Statements with bound values must find rows that the previous release wrote with Bun.
func TestTimesOnSQLiteAreWrittenAsBefore(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	if _, err := db.Write(t.Context(), "CREATE TABLE moments (t timestamp)"); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Time]string{
		time.Date(2026, 2, 3, 4, 5, 6, 789012345, time.FixedZone("x", 3600)): "2026-02-03 03:05:06.789012+00:00",
		time.Date(2026, 2, 3, 4, 5, 6, 500000000, time.UTC):                  "2026-02-03 04:05:06.5+00:00",
		time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC):                          "2026-02-03 04:05:06+00:00",
	} {
		if _, err := db.Write(t.Context(), "INSERT INTO moments (t) VALUES (?)", at); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM moments WHERE CAST(t AS text) = ?",
			want).Scan(&n); err != nil || n != 1 {
			t.Errorf("%s is not stored as %s: %d, %v", at, want, n, err)
		}
	}
}

func TestListsStandWhereListsDo(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		kind := "text"
		if db.IsPostgres() {
			kind = "uuid"
		}
		if _, err := db.Write(t.Context(), "CREATE TABLE one (id "+kind+", n integer, name text)"); err != nil {
			t.Fatal(err)
		}
		ids := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
		for n, id := range ids {
			if _, err := db.Write(t.Context(), "INSERT INTO one (id, n, name) VALUES (?, ?, ?)", id, n,
				fmt.Sprintf("n'%d", n)); err != nil {
				t.Fatal(err)
			}
		}
		for where, c := range map[string]struct {
			arg  any
			want int
		}{
			"id IN (?)":       {database.List(ids[1:]), 2},
			"id NOT IN (?)":   {database.List(ids[1:]), 1},
			"n IN (?)":        {database.List([]int{0, 7}), 1},
			"n NOT IN (?)":    {database.List([]int64{0, 7}), 2},
			"name IN (?)":     {database.List([]string{"n'0", "n'1", `"`}), 2},
			"name IN ( ?)":    {"n'0", 1},
			"name IN (?) ":    {database.List([]string{}), 0},
			"name IN (?)  ":   {database.List[string](nil), 0},
			"name NOT IN (?)": {database.List[string](nil), 3},
		} {
			for _, query := range []string{"SELECT count(*) FROM one WHERE " + where,
				"SELECT count(*) FROM one WHERE " +
					strings.Replace(where, "?", "?1", 1)} {
				var n int
				if err := db.QueryRowContext(t.Context(), query, c.arg).Scan(&n); err != nil || n != c.want {
					t.Errorf("%s: %d, %v; want %d", query, n, err, c.want)
				}
			}
		}
	})
}

func TestPlaceholdersAreOnlyWhereTheyAre(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		for query, args := range map[string][]any{
			"SELECT CAST(? AS integer) + CAST(? AS integer) * 10":                             {1, 2},
			"SELECT CAST(?1 AS integer) + CAST(?2 AS integer) * 10 + 0 * CAST(?1 AS integer)": {1, 2},
			"SELECT CASE WHEN '?' = '?' AND '''?' <> ? THEN 21 ELSE 0 END":                    {"x"},
			"SELECT \"?\" + CAST(? AS integer) FROM (SELECT 20 AS \"?\") q":                   {1},
			"SELECT CAST(? AS integer) /* ? '? */ + 1 -- ?":                                   {20},
			"SELECT CAST(? AS integer) -- it's ?\n + 1":                                       {20},
		} {
			var n int
			if err := db.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil || n != 21 {
				t.Errorf("%s: %d, %v", query, n, err)
			}
		}
		for query, args := range map[string][]any{
			"SELECT CAST(? AS integer) + CAST(? AS integer)": {1},
			"SELECT CAST(?0 AS integer)":                     {1},
			"SELECT CAST(?2 AS integer)":                     {1},
		} {
			var n int
			if err := db.QueryRowContext(t.Context(), query, args...).Scan(&n); err == nil {
				t.Errorf("%s with %v was executed", query, args)
			}
		}
	})
}
