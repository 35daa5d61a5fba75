package database_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/testenv"
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

// cp keeps the file and replaces what is in it. SQLite would go on with pages of both, and bring the -wal into the copy.
func TestAFileThatIsCopiedOverTheOpenOneStaysAsItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "authctl.db"), filepath.Join(dir, "copy.db")
	cfg := database.Config{URL: config.Secret("sqlite:" + path)}
	db, err := database.Open(t.Context(), cfg, database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"CREATE TABLE a (n integer)", "INSERT INTO a VALUES (1)",
		"VACUUM INTO '" + copied + "'", "INSERT INTO a VALUES (2)"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	backup, err := os.ReadFile(copied)
	if err == nil {
		err = os.WriteFile(path, backup, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it stays so
		var n int
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n)
		if !database.IsUnavailable(err) || !strings.Contains(err.Error(), "was copied over") ||
			!strings.Contains(database.Remedy(err, database.AnyTask), "copy the other file there again") {
			t.Errorf("%d rows, %v; %s", n, err, database.Remedy(err, database.AnyTask))
		}
		if _, err := db.Write(t.Context(), "INSERT INTO a VALUES (3)"); !database.IsUnavailable(err) {
			t.Errorf("a write: %v", err)
		}
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if is, err := os.ReadFile(path); err != nil || !bytes.Equal(is, backup) {
		t.Errorf("the copy was changed, %v", err)
	}
	// SQLite has kept the connections, and would go on with what it knows of the -wal.
	if err := errors.Join(os.Remove(path+"-wal"), os.Remove(path+"-shm")); err != nil {
		t.Error(err)
	}
	if _, err := database.Open(t.Context(), cfg, database.Options{}); !database.IsUnavailable(err) ||
		!strings.Contains(database.Remedy(err, database.AnyTask), "stop what uses it") {
		t.Errorf("in the same process: %v", err)
	}
}

// A host may open its database twice, and change its folder. Closing a file gives up all locks of the process on it: the
// next program would take the database for its own, and its -wal away.
func TestAFileThatIsOpenTwiceStaysLocked(t *testing.T) {
	program := testenv.Program(t, "install the package sqlite3", "sqlite3")
	t.Chdir(t.TempDir())
	open := func() *database.DB {
		t.Helper()
		db, err := database.Open(t.Context(), database.Config{URL: "sqlite:authctl.db"}, database.Options{})
		if err == nil {
			_, err = db.ExecContext(t.Context(), "CREATE TABLE IF NOT EXISTS a (n integer)")
		}
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	first := open()
	for range 2 { // opening it once more and closing that, in either order
		second := open()
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		first = second
		out, err := exec.CommandContext(t.Context(), program, "authctl.db", "PRAGMA journal_mode=DELETE").CombinedOutput()
		if !strings.Contains(string(out), "locked") {
			t.Errorf("another program takes it: %s, %v", out, err)
		}
	}
	t.Chdir(t.TempDir())
	if _, err := first.ExecContext(t.Context(), "INSERT INTO a VALUES (1)"); err != nil {
		t.Errorf("from another folder: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

func TestALinkThatLeadsNowhereIsNamed(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"missing/authctl.db", "authctl.db"} {
		path := filepath.Join(t.TempDir(), "authctl.db")
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		_, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
		if got := database.Remedy(err, database.AnyTask); !strings.HasPrefix(got, "correct the link") {
			t.Errorf("%s: %v; %s", to, err, got)
		}
	}
}

// The other program would also get it when this one looks at the file, to check its settings or to learn who else has
// it open.
func TestAnOpenFileIsNotLookedAt(t *testing.T) {
	t.Parallel()
	program := testenv.Program(t, "install the package sqlite3", "sqlite3")
	path := filepath.Join(t.TempDir(), "data", "authctl.db")
	cfg := database.Config{URL: config.Secret("sqlite:" + path)}
	open := func() *database.DB {
		t.Helper()
		db, err := database.Open(t.Context(), cfg, database.Options{})
		if err == nil {
			_, err = db.ExecContext(t.Context(), "CREATE TABLE IF NOT EXISTS a (n integer)")
		}
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	former := open()
	if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+".away"); err != nil {
		t.Fatal(err)
	}
	db := open()
	for range 10 { // whatever else is remembered
		if err := open().Close(); err != nil {
			t.Error(err)
		}
	}
	cfg.CheckFiles(func(path, problem string) { t.Errorf("%s %s", path, problem) })
	if err := former.Close(); err != nil {
		t.Error(err)
	}
	out, err := exec.CommandContext(t.Context(), program, path, "PRAGMA journal_mode=DELETE").CombinedOutput()
	if !strings.Contains(string(out), "locked") {
		t.Errorf("another program takes it: %s, %v", out, err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// Whoever puts another file in the place of the open one, or moves that away, and then restarts, finds all that was
// written to either. SQLite leaves the -wal of the open one behind: it would be brought into the other file, which is
// damaged then, or be deleted if there is none.
func TestWhatWasWrittenIsInTheFileThatWasOpen(t *testing.T) {
	t.Parallel()
	for _, replaced := range []bool{true, false} {
		dir := t.TempDir()
		path, moved, copied := filepath.Join(dir, "authctl.db"), filepath.Join(dir, "moved.db"), filepath.Join(dir, "copy.db")
		open := func(path string) *database.DB {
			t.Helper()
			db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
		rows := func(name string, want int) {
			t.Helper()
			db := open(name)
			defer func() { _ = db.Close() }()
			var state string
			var n int
			err := db.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&state)
			if err == nil {
				err = db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n)
			}
			if err != nil || state != "ok" || n != want {
				t.Errorf("replaced: %v, %s: %d rows of %d, %s, %v", replaced, filepath.Base(name), n, want, state, err)
			}
		}
		db := open(path)
		const insert = `WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 100)
			INSERT INTO a SELECT n, hex(randomblob(500)) FROM r`
		for _, statement := range []string{"CREATE TABLE a (n integer, t text)", insert, "VACUUM INTO '" + copied + "'",
			"PRAGMA wal_checkpoint(TRUNCATE)", insert} {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(path, moved); err != nil {
			t.Fatal(err)
		}
		if replaced {
			if err := os.Rename(copied, path); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if replaced {
			rows(path, 100)
		} else {
			_ = open(path).Close() // an empty one
		}
		rows(moved, 200)
	}
}

// A process that still has the former file open shares the -wal with one that has opened what is in its place: what
// either commits is in it.
func TestACommitToTheFileInThePlaceIsNotTaken(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("it is not known who has a file open")
	}
	program := testenv.Program(t, "install the package sqlite3", "sqlite3")
	dir := t.TempDir()
	path, moved, copied := filepath.Join(dir, "authctl.db"), filepath.Join(dir, "moved.db"), filepath.Join(dir, "copy.db")
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
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
	held, err := db.Conn(t.Context()) // under way for longer than the others
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(path, moved), os.Rename(copied, path)); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n); !database.IsUnavailable(err) {
		t.Fatalf("replaced: %v", err)
	}
	other := exec.CommandContext(t.Context(), program, path)
	in, errIn := other.StdinPipe()
	out, errOut := other.StdoutPipe()
	if err := errors.Join(errIn, errOut, other.Start()); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	ask := func(line string) string {
		t.Helper()
		if _, err := fmt.Fprintln(in, line); err != nil || !said.Scan() {
			t.Fatalf("%s: %v, %v", line, err, said.Err())
		}
		return said.Text()
	}
	if got := ask("PRAGMA journal_mode=WAL;"); got != "wal" {
		t.Fatal(got)
	}
	if got := ask("INSERT INTO a VALUES (2), (3); SELECT count(*) FROM a;"); got != "2" {
		t.Errorf("the other process has written 2 rows, and sees %s", got)
	}
	if err := errors.Join(held.Close(), db.Close()); err != nil {
		t.Error(err)
	}
	if got := ask("SELECT count(*) FROM a;"); got != "2" {
		t.Errorf("then it sees %s", got)
	}
	if err := errors.Join(in.Close(), other.Wait()); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{path: "2,3", moved: "1"} {
		got, err := exec.CommandContext(t.Context(), program, name, "SELECT group_concat(n) FROM a").CombinedOutput()
		if strings.TrimSpace(string(got)) != want || err != nil {
			t.Errorf("%s has %s, want %s, %v", filepath.Base(name), got, want, err)
		}
	}
}

// A host that opens what is in the place before it closes the former database would lose what it commits there.
func TestTheFileInThePlaceIsOpenedAfterTheFormerIsClosed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "data", "authctl.db"), filepath.Join(dir, "copy.db")
	linked := filepath.Join(dir, "link", "authctl.db")
	if err := os.Symlink("data", filepath.Dir(linked)); err != nil {
		t.Fatal(err)
	}
	open := func(path string) (*database.DB, error) {
		return database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
	}
	former, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"CREATE TABLE a (n integer)", "VACUUM INTO '" + copied + "'",
		"INSERT INTO a VALUES (1)", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if _, err := former.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(copied, path); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, linked} {
		if db, err := open(name); err == nil || database.Remedy(err, database.AnyTask) == "" {
			t.Errorf("opened beside the former: %v, %v", db, err)
		}
	}
	if err := former.Close(); err != nil {
		t.Error(err)
	}
	for want := range 3 {
		db, err := open([]string{path, linked}[want%2])
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n); err != nil || n != want {
			t.Errorf("%d rows of %d, %v", n, want, err)
		}
		if _, err := db.ExecContext(t.Context(), "INSERT INTO a VALUES (2)"); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

// After a crash the -wal has what the file lacks. SQLite would delete it where the file is missing, and bring it into a
// backup that is put in its place.
func TestTheWALOfAnotherFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "authctl.db")
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	copied := filepath.Join(dir, "copy.db")
	for _, statement := range []string{"CREATE TABLE a (n integer)", "VACUUM INTO '" + copied + "'"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	left, own := read(path+"-wal"), read(path)
	for _, test := range []struct {
		name         string
		file         []byte
		says, remedy string
	}{
		{"none", nil, "is missing", "put the file back"}, {"an empty one", []byte{}, "is missing", "put the file back"},
		{"a backup", read(copied), "is not the file", "move the -wal away"}, {"its own", own, "", ""},
	} {
		path := filepath.Join(t.TempDir(), "left.db")
		if err := os.WriteFile(path+"-wal", left, 0o600); err != nil {
			t.Fatal(err)
		}
		if test.file != nil {
			if err := os.WriteFile(path, test.file, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		link := filepath.Join(t.TempDir(), "link.db") // SQLite has the -wal beside the file, not beside a link to it
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		cfg := database.Config{URL: config.Secret("sqlite:" + link)}
		if !cfg.Exists("") {
			t.Errorf("%s: nobody would look", test.name)
		}
		db, err := database.Open(t.Context(), cfg, database.Options{})
		if test.says == "" {
			var n int
			if err == nil {
				err = db.QueryRowContext(t.Context(), "SELECT count(*) FROM a").Scan(&n)
			}
			if err = errors.Join(err, db.Close()); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "left.db "+test.says) ||
			!strings.HasPrefix(database.Remedy(err, database.AnyTask), test.remedy) {
			t.Errorf("%s: %v; %s", test.name, err, database.Remedy(err, database.AnyTask))
		}
		if !bytes.Equal(read(path+"-wal"), left) {
			t.Errorf("%s: the -wal was changed", test.name)
		}
		if is, err := os.ReadFile(path); test.file == nil && err == nil || !bytes.Equal(is, test.file) {
			t.Errorf("%s: the file was changed", test.name)
		}
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
