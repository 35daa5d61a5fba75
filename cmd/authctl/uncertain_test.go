package main

import (
	"bytes"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// between puts a proxy in front of a database. What a connection sends passes as long as the function for it says so;
// after that nothing of the connection passes in either direction, and it is closed if drop says so.
func between(t *testing.T, dsn string, drop bool, passes func(sent []byte) (sending, answers bool)) string {
	t.Helper()
	u, err := url.Parse(dsn)
	testenv.Must(t, err)
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go pass(client, server, drop, passes)
		}
	}()
	u.Host = l.Addr().String()
	return u.String()
}

func pass(client net.Conn, to string, drop bool, passes func(sent []byte) (sending, answers bool)) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	var silent atomic.Bool
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, err := server.Read(buffer)
			if err != nil || silent.Load() {
				if drop || err != nil {
					_ = client.Close()
				}
				return
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 1<<16)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		sending, answers := passes(buffer[:n])
		silent.Store(!answers)
		if !sending {
			continue
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func commits(sent []byte) bool {
	return bytes.Contains(bytes.ToLower(sent), []byte("q\x00\x00\x00\x0bcommit\x00"))
}

// forgetful loses the answer to the first commit that is sent to a database, and the connection with it.
func forgetful(t *testing.T, dsn string) string {
	t.Helper()
	var lost atomic.Bool
	return between(t, dsn, true, func(sent []byte) (sending, answers bool) {
		return true, !commits(sent) || !lost.CompareAndSwap(false, true)
	})
}

// Who interrupts the end of all sessions learns how to go on.
func TestAnInterruptedEndOfAllSessionsSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	dsn, dir := dbtest.PostgresURL(t), t.TempDir()
	program, err := exec.LookPath("authctl")
	testenv.Must(t, err)
	command := func(dsn string, words ...string) (*exec.Cmd, *background) {
		cmd, out := exec.CommandContext(t.Context(), program, words...), &background{}
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, strings.NewReader("correct horse battery staple\n"), out, out
		cmd.Env = append(slices.Clone(os.Environ()), "DATABASE_URL="+dsn, "AUTH_PASSWORD_BCRYPT_COST=4",
			"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD")
		return cmd, out
	}
	if cmd, out := command(dsn, "user", "create", "alice", "--password-stdin"); cmd.Run() != nil {
		t.Fatal(out.String())
	}
	var committed, held atomic.Bool
	slow := between(t, dsn, false, func(sent []byte) (sending, answers bool) {
		if committed.Load() {
			held.Store(true)
			return false, true
		}
		if commits(sent) {
			committed.Store(true)
		}
		return true, true
	})
	cmd, out := command(slow, "session", "revoke", "--all", "--yes")
	testenv.Must(t, cmd.Start())
	testenv.Eventually(t, "the first accounts are done", held.Load)
	testenv.Must(t, cmd.Process.Signal(os.Interrupt))
	code := outcome(cmd.Wait())
	if said := out.String(); code != "1" || !strings.Contains(said, "every session of 1 account has ended, and then") ||
		!strings.Contains(said, "go on with: authctl session revoke --all --yes --after ") {
		t.Errorf("it ends with %s, and says: %s", code, said)
	}
}

// A command that has not heard that its change was committed fails and says so. When it is run again,
// nothing is done twice.
func TestACommandThatMissesTheAnswerToItsCommitSaysSo(t *testing.T) {
	t.Parallel()
	const again = "it may or may not have been done: run it again"
	for _, test := range []struct {
		command string
		says    string
		then    string // how it ends the second time
		once    string // a query that counts what must be there once
	}{
		{"user disable alice", again, "0", "SELECT count(*) FROM outbox_event WHERE type = 'auth.UserDisabled.v1'"},
		{"user delete alice --yes", again, "1", "SELECT count(*) FROM outbox_event WHERE type = 'auth.UserDeleted.v1'"},
		{"user create bob --password-stdin", again, "1", "SELECT count(*) FROM users WHERE username = 'bob'"},
		{"outbox target pause mail", again, "0",
			"SELECT count(*) FROM outbox_subscription WHERE name = 'mail' AND state = 'paused'"},
		{"outbox target add webhook https://example.com/a --types auth.* --name a",
			"it may or may not have been done: look at authctl outbox target list before", "1",
			"SELECT count(*) FROM outbox_subscription WHERE url = 'https://example.com/a'"},
		{"migrate down --yes --force", "it may or may not have been done: look at authctl migrate status before", "",
			"SELECT 1 - count(*) FROM bun_migrations"},
		{"key stage", "it may or may not have been done: look at authctl key list before", "",
			"SELECT count(*) FROM signing_key WHERE status = 'staged'"},
		{"restore fence --yes --force", again, "0", "SELECT count(*) FROM signing_key WHERE status = 'active'"},
	} {
		t.Run(test.command, func(t *testing.T) {
			t.Parallel()
			dsn, dir := dbtest.PostgresURL(t), t.TempDir()
			run := func(dsn, command string) (code, said string) {
				t.Helper()
				program, err := exec.LookPath("authctl")
				testenv.Must(t, err)
				cmd := exec.CommandContext(t.Context(), program, strings.Fields(command)...)
				cmd.Dir, cmd.Stdin = dir, strings.NewReader("correct horse battery staple\n")
				cmd.Env = append(slices.Clone(os.Environ()), "DATABASE_URL="+dsn, "AUTH_PASSWORD_BCRYPT_COST=4",
					"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD")
				out, err := cmd.CombinedOutput()
				return outcome(err), string(out)
			}
			if code, said := run(dsn, "user create alice --password-stdin"); code != "0" {
				t.Fatalf("prepare: %s: %s", code, said)
			}
			if code, said := run(forgetful(t, dsn), test.command); code != "1" ||
				!strings.Contains(said, "the database did not confirm it") || !strings.Contains(said, test.says) {
				t.Errorf("without an answer it ends with %s, and says: %s", code, said)
			}
			if test.then != "" {
				if code, said := run(dsn, test.command); code != test.then {
					t.Errorf("the second time it ends with %s, want %s: %s", code, test.then, said)
				}
			}
			var n int
			if err := dbtest.Open(t, dsn).QueryRowContext(t.Context(), test.once).Scan(&n); err != nil || n != 1 {
				t.Errorf("it is there %d times: %v", n, err)
			}
		})
	}
}

// Who sends the events of all parked keys again, and is stopped in the middle, learns that some are sent.
func TestARetryOfAllThatFailsInTheMiddleSaysSo(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	db := dbtest.Open(t, dsn)
	for _, statement := range []string{
		`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, parked_ms, error)
			SELECT s.id, k, k::integer, 1, 1, 0, 1, 'x' FROM outbox_subscription s, unnest('{1,2,3}'::text[]) k WHERE s.name = 'mail'`,
		`CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more'; END $$`,
		`CREATE TRIGGER fail BEFORE UPDATE ON outbox_held_key FOR EACH ROW WHEN (NEW.shard = 3) EXECUTE FUNCTION fail()`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "authctl", "outbox", "parked", "retry", "--all", "--target", "mail")
	cmd.Dir, cmd.Env = t.TempDir(), append(slices.Clone(os.Environ()), "DATABASE_URL="+dsn)
	out, err := cmd.CombinedOutput()
	if got := outcome(err); got != "1" || !strings.Contains(string(out),
		"the events of 2 parked keys are sent to mail again, and then: ") {
		t.Errorf("%s: %s", got, out)
	}
}
