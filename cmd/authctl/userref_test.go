package main

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/platform/testenv"
)

// twoAccounts is an installation in which another account has alice's id as its username. Older
// releases allowed that.
type twoAccounts struct {
	t              *testing.T
	dir            string
	alice, another string // ids
}

func newTwoAccounts(t *testing.T) *twoAccounts {
	t.Helper()
	two := &twoAccounts{t: t, dir: t.TempDir()}
	testenv.Must(t, os.WriteFile(two.passwordFile(), []byte("correct horse battery staple\n"), 0o600))
	create := func(name string) string {
		code, out, complaint := two.run("user", "create", name, "--password-file", two.passwordFile())
		if code != exitDone {
			t.Fatalf("%d %s", code, complaint)
		}
		return strings.TrimSpace(out)
	}
	two.alice, two.another = create("alice"), create("bob")
	db := two.open()
	defer db.Close()
	if _, err := db.Exec("UPDATE users SET username = ?, username_canonical = ? WHERE id = ?", two.alice, two.alice,
		two.another); err != nil {
		t.Fatal(err)
	}
	return two
}

func (two *twoAccounts) passwordFile() string { return filepath.Join(two.dir, "password") }

func (two *twoAccounts) open() *sql.DB {
	db, err := sql.Open("sqlite", filepath.Join(two.dir, "authctl.db"))
	if err != nil {
		two.t.Fatal(err)
	}
	return db
}

// run runs a command without a terminal.
func (two *twoAccounts) run(args ...string) (code int, stdout, stderr string) {
	var out, complaint bytes.Buffer
	args = append(args, "--set", "app.data_dir="+two.dir, "--set", "auth.password.bcrypt_cost=4")
	code = run(two.t.Context(), args, strings.NewReader(""), &out, &complaint)
	return code, out.String(), complaint.String()
}

// row is everything stored about an account.
func (two *twoAccounts) row(id string) string {
	db := two.open()
	defer db.Close()
	var status, hash string
	var epoch int64
	err := db.QueryRow(
		"SELECT status, password_hash, session_epoch FROM users WHERE id = ?",
		id,
	).Scan(
		&status,
		&hash,
		&epoch,
	)
	return fmt.Sprint(status, hash, epoch, err)
}

// No command guesses which account is meant. Every command that takes USER or --user is found here,
// including new ones.
func TestNoCommandTakesAWordThatFitsTwoAccounts(t *testing.T) {
	t.Parallel()
	found := 0
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		argument, flag := strings.HasSuffix(cmd.Use, " USER"), cmd.Flags().Lookup("user") != nil
		if !argument && !flag {
			return
		}
		found++
		path := strings.Fields(cmd.CommandPath())[1:]
		t.Run(strings.Join(path, "_"), func(t *testing.T) {
			t.Parallel()
			two := newTwoAccounts(t)
			var rest []string
			for flag, value := range map[string]string{"yes": "true", "password-file": two.passwordFile()} {
				if cmd.Flags().Lookup(flag) != nil {
					rest = append(rest, "--"+flag+"="+value)
				}
			}
			said, id, name := []string{two.alice}, "--id", "--name"
			if flag {
				said, id, name = []string{"--user", two.alice}, "--user-id", "--user-name"
			}
			command := func(args ...string) (int, string, string) {
				return two.run(append(append(append([]string{}, path...), args...), rest...)...)
			}
			alice, another := two.row(two.alice), two.row(two.another)

			code, _, complaint := command(said...)
			if code != exitMisused {
				t.Errorf("it ends with %d: %s", code, complaint)
			}
			for _, want := range []string{`"alice"`, two.alice, two.another, id, name} {
				if !strings.Contains(complaint, want) {
					t.Errorf("it does not name %s: %s", want, complaint)
				}
			}
			if two.row(two.alice) != alice || two.row(two.another) != another {
				t.Error("it has changed an account")
			}

			// unlock needs Redis, and says so once it knows the account
			if code, _, complaint := command(name + "=" + two.alice); code != exitDone &&
				!strings.Contains(complaint, "Redis") {
				t.Errorf("by name: %d %s", code, complaint)
			}
			if two.row(two.alice) != alice {
				t.Error("by name, it has changed the account with the id")
			}
			another = two.row(two.another)
			if code, _, complaint := command(id + "=" + two.alice); code != exitDone &&
				!strings.Contains(complaint, "Redis") {
				t.Errorf("by id: %d %s", code, complaint)
			}
			if two.row(two.another) != another {
				t.Error("by id, it has changed the account with the name")
			}

			for _, wrong := range [][]string{{id + "=alice"}, {id + "="},
				append([]string{id + "=" + two.alice}, said...),
				{id + "=" + two.alice, name + "=alice"}} {
				if code, _, complaint := command(wrong...); code != exitMisused {
					t.Errorf("%q: %d %s", wrong, code, complaint)
				}
			}
		})
	})
	if found < 8 {
		t.Errorf("only %d commands take a user", found)
	}
}
