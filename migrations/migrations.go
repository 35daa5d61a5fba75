// Package migrations holds the schema of the service for both databases, and runs it.
//
// Each migration has the same name in postgres/ and sqlite/ (a test holds that) and comes
// as NAME.tx.up.sql and NAME.tx.down.sql, so that it happens whole or not at all. A schema
// change must let the previous release and the next one work at once: add first, remove one
// release later.
package migrations

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/uptrace/bun/migrate"

	"github.com/toppira/authctl/platform/database"
)

//go:embed postgres/*.sql sqlite/*.sql
var files embed.FS

// ErrBehind is returned by [Check] when migrations are waiting.
var ErrBehind = errors.New("the database schema is behind")

// ErrForeign is returned by [Check], together with [ErrBehind], when no migration has run and there are tables.
var ErrForeign = errors.New("it may be another program's database")

// ErrNewer is returned by [Down] and [Preview] when a newer release has migrated the database.
var ErrNewer = errors.New("a newer release has migrated the database")

// State is one migration and whether it has run.
type State struct {
	Name      string    `json:"name"`
	Comment   string    `json:"comment"`
	Group     int64     `json:"group,omitempty"` // migrations that ran together roll back together
	AppliedAt time.Time `json:"applied_at,omitzero"`
	Newer     bool      `json:"newer,omitempty"` // of a newer release: this binary does not have it
}

// Applied reports whether the migration has run.
func (s State) Applied() bool { return s.Group != 0 }

// Status lists every migration, oldest first, and those that a newer release has run. It changes
// nothing: on a database without a migration table all are pending.
func Status(ctx context.Context, db *database.DB) (list []State, err error) {
	err = db.Single(ctx, func(one database.Single) error {
		m, err := migrator(one)
		if err != nil {
			return err
		}
		exists, err := tableExists(ctx, one, "bun_migrations")
		if err != nil {
			return fmt.Errorf("look for the migration table: %w", err)
		}
		if !exists {
			all, err := discover(one)
			if err != nil {
				return err
			}
			list = states(all.Sorted())
			return nil
		}
		found, err := m.MigrationsWithStatus(ctx)
		if err != nil {
			return fmt.Errorf("read the migration table: %w", err)
		}
		newer, err := newer(ctx, m)
		list = append(states(found), newer...)
		return err
	})
	return list, err
}

// newer lists the migrations that have run and that this binary does not have.
func newer(ctx context.Context, m *migrate.Migrator) ([]State, error) {
	missing, err := m.MissingMigrations(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the migration table: %w", err)
	}
	list := states(missing)
	for i := range list {
		list[i].Newer = true
	}
	slices.SortFunc(list, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Check returns nil when the schema is what this binary expects, else an error that wraps
// [ErrBehind] and says how many migrations are waiting, perhaps [ErrForeign] as well, or [ErrTriggersOff].
func Check(ctx context.Context, db *database.DB) error {
	list, err := Status(ctx, db)
	if err != nil {
		return err
	}
	waiting, ours := 0, 0
	for _, s := range list {
		if !s.Newer { // or of another program whose migrations Bun runs, too
			ours++
		}
		if !s.Applied() {
			waiting++
		}
	}
	if waiting > 0 {
		behind := fmt.Errorf("%w by %d of %d migrations", ErrBehind, waiting, ours)
		if n, err := foreignTables(ctx, db); waiting == ours && err == nil && n > 0 {
			return fmt.Errorf("%w; none has run, and it has tables (%d), so %w", behind, n, ErrForeign)
		}
		return behind
	}
	return checkTriggers(ctx, db)
}

// Up runs what is pending, all of it or nothing, under a lock that any number of processes may
// ask for at once, and returns what it ran.
func Up(ctx context.Context, db *database.DB, options ...Option) ([]State, error) {
	var done []State
	err := locked(ctx, db, options, func(one database.Single) error {
		m, err := migrator(one)
		if err != nil {
			return err
		}
		if err := m.Init(ctx); err != nil {
			return fmt.Errorf("make the migration table: %w", err)
		}
		group, err := m.Migrate(ctx)
		if err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		done = states(group.Migrations)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// Down rolls back the last group, all of it or nothing, under the same lock, and returns what it
// undid. While the last group is of a newer release it returns [ErrNewer]: the group before it is
// not what somebody means who wants to undo the last one.
func Down(ctx context.Context, db *database.DB, options ...Option) ([]State, error) {
	var undone []State
	only := chosen(options).only
	err := locked(ctx, db, options, func(one database.Single) (err error) {
		undone, err = rollBack(ctx, one)
		same := func(a, b State) bool { return a.Name == b.Name }
		if err == nil && only != nil && !slices.EqualFunc(undone, only, same) {
			err = ErrChanged
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return undone, nil
}

func rollBack(ctx context.Context, one database.Single) ([]State, error) {
	m, err := migrator(one)
	if err != nil {
		return nil, err
	}
	exists, err := tableExists(ctx, one, "bun_migrations")
	if err != nil || !exists {
		return nil, err
	}
	unknown, err := newer(ctx, m)
	if err != nil {
		return nil, err
	}
	if applied, err := m.AppliedMigrations(ctx); err != nil || len(applied) == len(unknown) { // none is ours
		return nil, err
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%w (%s, applied %s): undo that first, with the binary of that release", ErrNewer,
			unknown[len(unknown)-1].Name, unknown[len(unknown)-1].AppliedAt.UTC().Format(time.RFC3339))
	}
	group, err := m.Rollback(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return states(group.Migrations), nil
}

// New writes an empty migration named after now and name under dir, for both dialects, and
// returns the four paths.
func New(dir, name string, now time.Time) ([]string, error) {
	if !regexp.MustCompile(`^[a-z0-9_]+$`).MatchString(name) {
		return nil, fmt.Errorf("migration name %q: use lower-case letters, digits and underscores", name)
	}
	var made []string
	for _, sub := range []string{"postgres", "sqlite"} {
		if _, err := os.Stat(filepath.Join(dir, sub)); err != nil {
			return nil, fmt.Errorf("%s is not the migrations folder: %w", dir, err)
		}
		for _, way := range []string{"up", "down"} {
			path := filepath.Join(dir, sub, fmt.Sprintf("%s_%s.tx.%s.sql", now.UTC().Format("20060102150405"), name,
				way))
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err == nil {
				_, err = fmt.Fprintf(f, "-- %s: %s, %s. Old and new code must both work on the result.\n", name, sub,
					way)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				return made, fmt.Errorf("write the migration: %w", err)
			}
			made = append(made, path)
		}
	}
	return made, nil
}

// Fingerprint changes whenever a migration of the dialect does. Test databases are cached
// under it.
func Fingerprint(dialect string) (string, error) {
	sum := crc32.NewIEEE()
	err := fs.WalkDir(files, dialect, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := files.ReadFile(path)
		_, _ = sum.Write(append([]byte(path), text...))
		return err
	})
	return fmt.Sprintf("%08x", sum.Sum32()), err
}

func migrator(one database.Single) (*migrate.Migrator, error) {
	all, err := discover(one)
	if err != nil {
		return nil, err
	}
	// Bun marks a migration applied before it runs unless told otherwise.
	return migrate.NewMigrator(database.Bun(one), all, migrate.WithMarkAppliedOnSuccess(true)), nil
}

func discover(db database.IDB) (*migrate.Migrations, error) {
	dir := "sqlite"
	if database.IsPostgres(db) {
		dir = "postgres"
	}
	sub, err := fs.Sub(files, dir)
	if err != nil {
		return nil, fmt.Errorf("open the migrations: %w", err)
	}
	all := migrate.NewMigrations()
	if err := all.Discover(sub); err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	return all, nil
}

func tableExists(ctx context.Context, db database.IDB, name string) (bool, error) {
	query := "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
	if database.IsPostgres(db) {
		// A table in a schema that the role may not use seems to be none. The cast fails, and says so.
		query = `SELECT count(coalesce(to_regclass(?1), (SELECT format('%I.%I', nspname, relname)::regclass
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE relname = ?1 AND current_schema() IS NULL AND NOT has_schema_privilege(n.oid, 'USAGE')
				AND nspname = ANY (regexp_split_to_array(replace(current_setting('search_path'), '"', ''), ' *, *'))
			LIMIT 1)))`
	}
	var n int
	err := db.QueryRowContext(ctx, query, name).Scan(&n)
	return n > 0, database.NoUsage(err)
}

// foreignTables counts the tables where the first migration would make ours.
func foreignTables(ctx context.Context, db database.IDB) (n int, err error) {
	query := `SELECT count(*) FROM sqlite_master
		WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'bun_%'`
	if database.IsPostgres(db) {
		query = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename NOT LIKE 'bun_%'"
	}
	err = db.QueryRowContext(ctx, query).Scan(&n)
	return n, err
}

func states(list migrate.MigrationSlice) []State {
	out := make([]State, 0, len(list))
	for _, m := range list {
		out = append(out, State{Name: m.Name, Comment: m.Comment, Group: m.GroupID, AppliedAt: m.MigratedAt})
	}
	return out
}
