package main

import (
	"bytes"
	"context"
	"database/sql"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// founders are the commands that may begin an installation, or whose purpose is to write files. No
// other command may create anything where there is nothing.
var founders = []string{
	"authctl serve", "authctl relay", "authctl migrate up", "authctl migrate new", "authctl user create",
	"authctl user import", "authctl man", "authctl mail templates",
}

// lookers are the command lines of all other commands, found in the tree, so that new commands are
// included.
func lookers(t *testing.T) [][]string {
	t.Helper()
	const id = "01890a5d-ac96-774b-bcce-b302099a8057"
	arguments := map[string][]string{
		"user show": {"alice"}, "user disable": {"alice"}, "user enable": {"alice"}, "user unlock": {"alice"},
		"user delete": {"alice", "--yes"}, "user set-password": {"alice", "--password-stdin"},
		"user contact list": {"alice"}, "user contact add": {"alice", "--email", "alice@example.com"},
		"user contact verify": {"alice", "--email", "alice@example.com"},
		"user contact remove": {"alice", "--email", "alice@example.com", "--yes"},
		"session list":        {"--user", "alice"}, "session revoke": {"--user", "alice", "--yes"},
		"key promote": {"k"}, "key retire": {"k"}, "key revoke": {"k", "--force"},
		"outbox replay": {"--key", id}, "outbox parked show": {id}, "outbox parked retry": {id},
		"outbox parked discard": {id, "--yes"},
		"migrate down":          {"--yes"}, "restore fence": {"--yes"},
		"mail preview": {"reset"}, "mail test": {"alice@example.com"},
		"outbox target add webhook":   {"https://example.com/", "--types", "*"},
		"outbox target rotate-secret": {"hook"}, "outbox target test": {"hook"},
		"outbox target pause": {"hook"}, "outbox target resume": {"hook"}, "outbox target remove": {"hook", "--yes"},
		"token inspect": {"eyJhbGciOiJFUzI1NiJ9.e30.AAAA"},
	}
	var lines [][]string
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		path := cmd.CommandPath()
		if cmd.HasSubCommands() || slices.Contains(founders, path) || strings.HasPrefix(path, "authctl completion") ||
			cmd.Name() == "help" {
			return
		}
		words := strings.Fields(path)[1:]
		var args []string
		for _, argument := range arguments[strings.Join(words, " ")] {
			// An unknown flag would end the command before it does anything.
			if name, isFlag := strings.CutPrefix(argument, "--"); isFlag && cmd.Flags().Lookup(name) == nil {
				continue
			}
			args = append(args, argument)
		}
		lines = append(lines, append(words, args...))
	}
	walk(newRoot())
	return lines
}

// look runs a command line in a folder and returns what it said.
func look(t *testing.T, line []string) (code int, words string) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code = run(ctx, line, strings.NewReader("correct horse battery staple\n"), &out, &out)
	return code, out.String()
}

// below lists what is in a folder, without SQLite's -wal and -shm files.
func below(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir && !strings.HasSuffix(path, "-wal") && !strings.HasSuffix(path, "-shm") {
			names = append(names, strings.TrimPrefix(path, dir))
		}
		return err
	})
	testenv.Must(t, err)
	return names
}

// wantAnswer checks that a command without an installation says what is missing.
func wantAnswer(t *testing.T, line []string, code int, words, want string) {
	t.Helper()
	name := strings.Join(line, " ")
	if code == exitMisused {
		t.Errorf("%s: the test calls it wrongly: %s", name, words)
	}
	needsNone := []string{"config", "version", "doctor", "password", "token", "health", "mail"}
	if slices.Contains(needsNone, line[0]) || strings.HasPrefix(name, "outbox topic") {
		return
	}
	if code != exitFailed || !strings.Contains(words, want) {
		t.Errorf("%s: exit %d, %q; want 1 and a text with %q", name, code, words, want)
	}
}

func TestWhoLooksMakesNothing(t *testing.T) {
	for _, line := range lookers(t) {
		dir := t.TempDir()
		t.Chdir(dir)
		code, words := look(t, line)
		if made := below(t, dir); len(made) > 0 {
			t.Errorf("%s made %v", strings.Join(line, " "), made)
		}
		wantAnswer(t, line, code, words, "there is no SQLite data/authctl.db yet")
	}
}

func TestWhoLooksIntoADatabaseMakesNeitherSecretNorKey(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if code, words := look(t, []string{"migrate", "up"}); code != exitDone {
		t.Fatal(words)
	}
	before := below(t, dir)
	for _, line := range lookers(t) {
		if line[0] == "migrate" && line[1] == "down" {
			continue // it would remove the tables
		}
		code, words := look(t, line)
		if after := below(t, dir); !slices.Equal(after, before) {
			t.Fatalf("%s made %v of %v", strings.Join(line, " "), after, before)
		}
		if keys := countKeys(t, "sqlite", filepath.Join(dir, "data", "authctl.db")); keys > 0 {
			t.Fatalf("%s made a signing key", strings.Join(line, " "))
		}
		if line[0] != "user" && line[0] != "session" && line[0] != "key" {
			continue
		}
		if shows := line[1] == "show" || line[1] == "export" || slices.Contains(line, "list"); !shows {
			wantAnswer(t, line, code, words, "there is no signing secret: set AUTH_TOKEN_SECRET")
		} else if strings.Contains(words, "secret") {
			t.Errorf("%s needs no secret: %s", strings.Join(line, " "), words)
		}
	}
}

func TestWhoLooksIntoPostgreSQLMakesNothingHere(t *testing.T) {
	testenv.Postgres(t)
	url := dbtest.PostgresURL(t)
	t.Setenv("DATABASE_URL", url)
	dir := t.TempDir()
	t.Chdir(dir)
	for _, line := range lookers(t) {
		if line[0] == "migrate" && line[1] == "down" {
			continue
		}
		look(t, line)
		if made := below(t, dir); len(made) > 0 {
			t.Fatalf("%s made %v", strings.Join(line, " "), made)
		}
		if keys := countKeys(t, "pgx", url); keys > 0 {
			t.Fatalf("%s made a signing key", strings.Join(line, " "))
		}
	}
}

func countKeys(t *testing.T, driver, source string) (n int) {
	t.Helper()
	db, err := sql.Open(driver, source)
	testenv.Must(t, err)
	defer db.Close()
	testenv.Must(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM signing_key").Scan(&n))
	return n
}

// With the secret these commands work on what is there, even before a server has made a key.
func TestWhoLooksWithTheSecretSeesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("AUTH_TOKEN_SECRET", "0123456789abcdef0123456789abcdef")
	if code, words := look(t, []string{"migrate", "up"}); code != exitDone {
		t.Fatal(words)
	}
	for name, want := range map[string]int{"user list": exitDone, "session list": exitDone, "key list": exitDone,
		"outbox status": exitDone, "user show alice": exitFailed} {
		if code, words := look(t, strings.Fields(name)); code != want {
			t.Errorf("%s: exit %d: %s", name, code, words)
		}
	}
	if keys := countKeys(t, "sqlite", filepath.Join("data", "authctl.db")); keys > 0 {
		t.Error("looking made a signing key")
	}
	if _, err := os.Stat(filepath.Join("data", "secret")); !os.IsNotExist(err) {
		t.Errorf("looking made a secret: %v", err)
	}
}
