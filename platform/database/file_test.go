package database_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

// SQLite itself would go on with the file that nobody finds again, and make an empty one beside it.
func TestAFileThatWasRemovedOrReplacedIsNotUsed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data", "authctl.db")
	open := func() *database.DB {
		db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	db := open()
	if _, err := db.Write(t.Context(), "CREATE TABLE a (n integer)"); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		_, err := db.Write(t.Context(), "INSERT INTO a VALUES (1)")
		if !database.IsUnavailable(err) || !strings.Contains(err.Error(), "removed or replaced") ||
			database.Remedy(err, database.AnyTask) == "" {
			t.Errorf("%s, a write: %v, and the remedy %q", when, err, database.Remedy(err, database.AnyTask))
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n); !database.IsUnavailable(err) {
			t.Errorf("%s, a read: %v", when, err)
		}
		if err := db.TryWrite(t.Context()); err == nil {
			t.Errorf("%s it says that it takes writes", when)
		}
	}
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	refused("removed")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made in its place: %v", err)
	}
	other := open()
	refused("replaced")
	if err := errors.Join(other.Close(), os.RemoveAll(dir), os.Rename(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Write(t.Context(), "INSERT INTO a VALUES (1)"); err != nil {
		t.Errorf("back in its place: %v", err)
	}
}

// A file that was put in the place of the open one is not touched: not even opened, since SQLite would bring the -wal
// of the open one into it. It is another one even if it gets the number of a removed one.
func TestAFileInThePlaceOfTheOpenOneIsAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "authctl.db"), filepath.Join(dir, "copy.db")
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path), MaxConns: 1},
		database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for _, statement := range []string{"CREATE TABLE a (n integer)", "VACUUM INTO '" + copied + "'",
		"INSERT INTO a VALUES (1)"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	backup, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		var n int
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n)
		if !database.IsUnavailable(err) {
			t.Fatalf("%s: %d rows, %v", when, n, err)
		}
	}
	if err := os.Rename(copied, path); err != nil { // the -wal stays
		t.Fatal(err)
	}
	refused("replaced")
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, backup) {
		t.Errorf("the file in its place was changed, %v", err)
	}
	for n := range 100 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, n)); err != nil {
			t.Fatal(err)
		}
		refused("removed")
		if err := os.WriteFile(path, backup, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("another one")
	}
}

// "There is none yet" would be wrong advice to somebody who may not look.
func TestAFileThatCannotBeLookedAtIsNotSaidToBeMissing(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "data") // is a file; permissions do not stop root
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !(database.Config{}).Exists(folder) {
		t.Error("said to be missing")
	}
	if _, err := database.Open(t.Context(), database.Config{}, database.Options{DataDir: folder}); err == nil {
		t.Error("opened")
	}
	if (database.Config{}).Exists(folder + ".none") {
		t.Error("a missing one exists")
	}
}
