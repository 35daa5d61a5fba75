package migrations_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestBothDialectsHaveTheSameMigrationsBothWays(t *testing.T) {
	t.Parallel()
	names := map[string][]string{}
	for _, dialect := range []string{"postgres", "sqlite"} {
		entries, err := os.ReadDir(dialect)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names[dialect] = append(names[dialect], e.Name())
			way := ".tx.up.sql"
			if strings.HasSuffix(e.Name(), way) {
				way = ".tx.down.sql"
			}
			stem, _, found := strings.Cut(e.Name(), ".tx.")
			if !found { // only those run in a transaction
				t.Errorf("%s/%s is not named NAME.tx.up.sql or NAME.tx.down.sql", dialect, e.Name())
			}
			if _, err := os.Stat(filepath.Join(dialect, stem+way)); err != nil {
				t.Errorf("%s/%s has no counterpart: %v", dialect, e.Name(), err)
			}
		}
	}
	if !slices.Equal(names["postgres"], names["sqlite"]) {
		t.Errorf("postgres has %v, sqlite has %v", names["postgres"], names["sqlite"])
	}
}

func TestDownUndoesWhatUpDid(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Fatalf("a migrated database: %v", err)
		}
		before := applied(t, db)
		undone, err := migrations.Down(t.Context(), db, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(undone) != len(before) { // they ran together
			t.Errorf("undone %d of %d", len(undone), len(before))
		}
		if err := migrations.Check(t.Context(), db); err == nil || !strings.Contains(err.Error(), "have not run") {
			t.Errorf("a database without a schema: %v", err)
		}
		if left := applied(t, db); len(left) != 0 {
			t.Errorf("still applied: %v", left)
		}
		if again, err := migrations.Up(t.Context(), db, nil); err != nil || len(again) != len(before) {
			t.Errorf("once more: %d, %v", len(again), err)
		}
		if none, err := migrations.Up(t.Context(), db, nil); err != nil || len(none) != 0 {
			t.Errorf("with nothing to do: %d, %v", len(none), err)
		}
	})
}

func TestOfManyWhoMigrateAtOnceOneDoes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db, nil); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		ran := 0
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				did, err := migrations.Up(t.Context(), db, nil)
				if err != nil {
					t.Errorf("up: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				if len(did) > 0 {
					ran++
				}
			})
		}
		all.Wait()
		if ran != 1 {
			t.Errorf("%d of them migrated", ran)
		}
	})
}

func TestAMigrationThatFailsIsNotMarkedApplied(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db, nil); err != nil {
			t.Fatal(err)
		}
		// The second one meets a table that is in its way.
		if _, err := db.Write(t.Context(), "CREATE TABLE users (id text)"); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db, nil); err == nil {
			t.Fatal("it did not fail")
		}
		if got := applied(t, db); slices.ContainsFunc(got, func(name string) bool { return strings.HasSuffix(name, "0200") }) {
			t.Errorf("applied: %v", got)
		}
		if _, err := db.Write(t.Context(), "DROP TABLE users"); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db, nil); err != nil {
			t.Errorf("once the way is free: %v", err)
		}
	})
}

func applied(t *testing.T, db *database.DB) (names []string) {
	t.Helper()
	list, err := migrations.Status(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Applied() {
			names = append(names, s.Name)
		}
	}
	return names
}

func TestNewWritesAllFourFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, dialect := range []string{"postgres", "sqlite"} {
		if err := os.Mkdir(filepath.Join(dir, dialect), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)
	made, err := migrations.New(dir, "add_last_sign_in", at)
	if err != nil || len(made) != 4 {
		t.Fatalf("%v %v", made, err)
	}
	for _, path := range made {
		if !strings.Contains(path, "20261224180000_add_last_sign_in.tx.") {
			t.Errorf("made %s", path)
		}
		if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
			t.Errorf("%s: %q %v", path, text, err)
		}
	}
	if _, err := migrations.New(dir, "add_last_sign_in", at); err == nil {
		t.Error("it writes over what is there")
	}
	for _, name := range []string{"", "Add", "add-it", "../x"} {
		if _, err := migrations.New(dir, name, at); err == nil {
			t.Errorf("takes the name %q", name)
		}
	}
}
