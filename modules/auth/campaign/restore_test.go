package campaign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// rehearsal is an installation whose backup is restored by the lines of docs/operations.md.
type rehearsal struct {
	*installation
	folder string // where the lines are pasted, with the installation's data folder
	lines  func(heading string, n int) string

	server *outboxtest.Server // the server that recovers to a point in time; nil if a dump is restored
	point  string             // that point in time
	lost   bool               // everything is lost except what was copied elsewhere
}

// sections finds the shell blocks of a page.
func sections(t *testing.T, page string) func(heading string, n int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(module, page))
	testenv.Must(t, err)
	return func(heading string, n int) string {
		t.Helper()
		_, section, found := strings.Cut(string(text), "\n### "+heading+"\n")
		if end := regexp.MustCompile(`(?m)^##`).FindStringIndex(section); end != nil {
			section = section[:end[0]]
		}
		blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(section, -1)
		if !found || n >= len(blocks) {
			t.Fatalf("%s has no block %d under %s", page, n, heading)
		}
		return blocks[n][1]
	}
}

// paste runs lines in a shell next to the installation, after replacing some words.
func (r *rehearsal) paste(lines string, words ...string) string {
	r.t.Helper()
	out, err := r.tryPasting(lines, words...)
	if err != nil {
		r.t.Fatalf("%v\n%s\n%s", err, lines, out)
	}
	return out
}

func (r *rehearsal) tryPasting(lines string, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", strings.NewReplacer(words...).Replace(lines))
	cmd.Dir = r.folder
	bin := filepath.Join(r.folder, "bin")
	cmd.Env = append([]string{"PATH=" + bin + ":/usr/lib/postgresql/15/bin:" + os.Getenv("PATH"), "HOME=" + r.folder},
		r.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// newRehearsal makes an installation on a database that may be renamed and a Redis that may be
// emptied. It relays to a file.
func newRehearsal(t *testing.T, binary, store string) *rehearsal {
	t.Helper()
	folder := t.TempDir()
	databaseURL, redisURL := "sqlite:"+filepath.Join(folder, "data", "authctl.db"), ""
	if store == "sqlite" {
		testenv.Program(t, "install the package sqlite3", "sqlite3")
	} else {
		databaseURL = dbtest.PostgresURL(t)
		requireDump(t, databaseURL)
	}
	if store == "redis" {
		redisURL = cachetest.Start(t).URL()
	}
	return rehearsalOn(t, binary, databaseURL, redisURL, folder)
}

func rehearsalOn(t *testing.T, binary, databaseURL, redisURL, folder string) *rehearsal {
	t.Helper()
	testenv.Program(t, "install the package jq", "jq")
	for _, sub := range []string{"bin", "data"} {
		testenv.Must(t, os.Mkdir(filepath.Join(folder, sub), 0o700))
	}
	testenv.Must(t, os.Symlink(binary, filepath.Join(folder, "bin", "authctl")))
	w := installationOn(t, binary, databaseURL, redisURL, "APP_DATA_DIR="+filepath.Join(folder, "data"),
		"OUTBOX_RELAY=inline",
		"APP_PORT="+strconv.Itoa(testenv.FreePort(t)))
	_ = w.db.Close() // an open connection would count as a user of the database
	return &rehearsal{installation: w, folder: folder, lines: sections(t, "docs/operations.md")}
}

// requireDump needs a pg_dump that is no older than the server.
func requireDump(t *testing.T, databaseURL string) {
	t.Helper()
	pgDump := testenv.Program(t, "install the package postgresql-client", "pg_dump",
		"/usr/lib/postgresql/15/bin/pg_dump")
	out, err := exec.CommandContext(t.Context(), pgDump, "--version").Output()
	testenv.Must(t, err)
	var client, server int
	if m := regexp.MustCompile(`\d+`).Find(out); m != nil {
		client, _ = strconv.Atoi(string(m))
	}
	db := dbtest.Open(t, databaseURL)
	testenv.Must(t, db.QueryRowContext(t.Context(),
		"SELECT current_setting('server_version_num')::integer / 10000").Scan(&server))
	_ = db.Close()
	if client < server {
		testenv.Lacking(t, "pg_dump has version %d, the server version %d", client, server)
	}
}

// stop ends a server as an operator does.
func (s *server) stop() {
	s.t.Helper()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatal(err)
	}
	<-s.ended
}

// backUp makes a backup by the lines of the page.
func (r *rehearsal) backUp(store string) {
	r.t.Helper()
	if r.server != nil && r.lost {
		r.archived()
		return
	}
	if r.server != nil {
		r.point = r.databaseTime()
		return
	}
	n := 0
	if store == "sqlite" {
		n = 1
	}
	r.paste(r.lines("Making a backup", n))
	if r.lost {
		r.paste("cp data/secret secret-copy")
	}
}

// restore restores the backup by the lines of the page.
func (r *rehearsal) restore(store string) {
	r.t.Helper()
	if r.server != nil && r.lost {
		r.lose()
		return
	}
	if r.server != nil {
		r.recover()
		return
	}
	if r.lost {
		r.paste("mv data/events.ndjson . && rm -r data") // the events are those of a consumer that has read them
		r.paste(r.lines("When the data folder is lost", 1))
		r.paste("mv events.ndjson data")
		return
	}
	if store == "sqlite" {
		r.paste(r.lines("Restoring a backup", 2))
		return
	}
	u, err := url.Parse(r.setting("DATABASE_URL"))
	if err != nil {
		r.t.Fatal(err)
	}
	name := u.Path[1:]
	u.Path = "/postgres"
	owner := "--owner=" + u.User.Username()
	if u.User.Username() == "" {
		owner = "--owner=postgres"
	}
	r.t.Cleanup(func() {
		r.paste(`psql "$ADMIN_URL" --command='DROP DATABASE IF EXISTS authctl_before WITH (FORCE)'`, "$ADMIN_URL",
			u.String(),
			"authctl_before", name+"_before")
	})
	r.paste(r.lines("Restoring a backup", 0), "$ADMIN_URL", u.String(), "--owner=authctl_migrate", owner,
		"template0 authctl", "template0 "+name, "DATABASE authctl RENAME TO authctl_before",
		"DATABASE "+name+" RENAME TO "+name+"_before")
}

// fence runs the page's last lines, with --yes where they would ask.
func (r *rehearsal) fence() {
	r.t.Helper()
	r.paste(r.lines("Restoring a backup", 3), "authctl restore fence", "authctl restore fence --yes")
}

// published is what a consumer knows about a user.
type published struct {
	Type       string
	Subject    string
	Sequence   int64 `json:",string"`
	Generation json.RawMessage
	Time       time.Time
}

func (e published) generation() int64 {
	n, _ := strconv.ParseInt(strings.Trim(string(e.Generation), `"`), 10, 64)
	return n
}

// last waits for a user's newest event to have the given type and a time after the given one, and
// returns it.
func (r *rehearsal) last(user, kind string, after time.Time) published {
	r.t.Helper()
	var found published
	testenv.Eventually(r.t, "the event "+kind, func() bool {
		found = published{}
		text, err := os.ReadFile(filepath.Join(r.folder, "data", "events.ndjson"))
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text)) {
			var e published
			if err := json.Unmarshal([]byte(line), &e); err == nil && e.Subject == user {
				found = e
			}
		}
		return found.Type == kind && found.Time.After(after)
	})
	return found
}

// An old backup is restored by the lines of the page. Everything issued before or after it is
// refused everywhere, and consumers can tell the new events from those with the same sequence.
func TestABackupIsRestoredByTheLinesOfThePage(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			r := newRehearsal(t, genuine(t), store)
			if err := r.rehearse(store, r.fence); err != nil {
				t.Error(err)
			}
		})
	}
}

// The data folder is lost with everything in it. The copies of the database and of the secret bring it back.
func TestALostDataFolderIsReplacedByTheLinesOfThePage(t *testing.T) {
	t.Parallel()
	r := newRehearsal(t, genuine(t), "sqlite")
	r.lost = true
	r.env = slices.DeleteFunc(r.env, func(one string) bool { return strings.HasPrefix(one, "AUTH_TOKEN_SECRET=") })
	if err := r.rehearse("sqlite", r.fence); err != nil {
		t.Error(err)
	}
}

func (r *rehearsal) rehearse(store string, fence func()) error {
	s := r.serve()
	p := r.newProbe("orders-1", s)
	follower := &follower{known: map[string]time.Time{}}
	alice, bob, carol := s.register(), s.register(), s.register()
	before := map[string]*device{"alice's first": alice, "alice's second": s.login(alice.name), "bob's": bob,
		"carol's": carol}
	aliceID := s.userID(alice)
	r.last(aliceID, "auth.UserLoggedIn.v1", time.Time{})
	r.backUp(store)
	began := time.Now().UTC().Format(time.RFC3339Nano)

	// What the backup lacks: ended sessions, a deleted account, another password, another key.
	do := func(method, path, access string, body any) answer {
		return s.must(untilAvailable(func() (answer, error) { return s.call(method, api+path, access, body) }))
	}
	do("POST", "/logout", alice.access, nil)
	do("POST", "/me/delete", bob.access, fields{"password": password})
	do("DELETE", "/sessions", before["alice's second"].access, nil)
	changed := &device{name: carol.name}
	changed.keep(do("POST", "/password", carol.access,
		fields{"current_password": password, "new_password": "another good password"}))
	kid, err := kidOf(alice.access)
	if err != nil {
		return err
	}
	next, err := r.output("key", "stage")
	if err != nil {
		return err
	}
	r.command("key", "promote", "--force", next)
	dave := s.register()
	after := map[string]*device{"carol's new": changed, "dave's": dave, "alice's new": s.login(alice.name)}
	for newest := kid; newest != next; {
		after["alice's new"].keep(s.must(s.refreshInTheEnd(after["alice's new"].refresh)))
		if newest, err = kidOf(after["alice's new"].access); err != nil {
			return err
		}
	}
	for range 3 {
		after["alice's newest"] = s.login(alice.name)
	}
	if _, err := p.until(after["alice's newest"].access, ""); err != nil {
		return err
	}
	testenv.Eventually(r.t, "a snapshot", func() bool { return follower.ask(s, 0) == nil })
	seen := r.last(aliceID, "auth.UserLoggedIn.v1", time.Time{})
	s.stop()
	// The event of this change waits when the database is replaced.
	r.command("user", "disable", carol.name)

	r.restore(store)
	fence()
	restored := time.Now() // a server that was stopped may have published more than the test saw

	s = r.serve()
	if err := r.nothingOldIsAccepted(s, p, before, after); err != nil {
		return err
	}
	a, err := untilAvailable(func() (answer, error) {
		return s.call("GET", "/oauth2/revocations?after="+url.QueryEscape(follower.cursor), "", nil)
	})
	if err != nil || a.Status != http.StatusGone {
		return fmt.Errorf("a cursor of before: %v, %v", a, err)
	}
	// Afterwards the deleted account is back, as the page says, and new events have old sequence
	// numbers in a higher generation.
	again := s.login(alice.name)
	now := r.last(aliceID, "auth.UserLoggedIn.v1", restored)
	if now.generation() <= seen.generation() || now.Sequence > seen.Sequence {
		return fmt.Errorf("alice's event %d of generation %s follows event %d of generation %s", now.Sequence,
			now.Generation, seen.Sequence, seen.Generation)
	}
	s.login(bob.name)
	s.login(carol.name)
	for what, credentials := range map[string]fields{
		"the password of after the backup": {"username": carol.name, "password": "another good password"},
		"an account of after the backup":   {"username": dave.name, "password": password},
	} {
		a, err = untilAvailable(func() (answer, error) { return s.call("POST", api+"/login", "", credentials) })
		if err != nil || a.Status != http.StatusUnauthorized {
			return fmt.Errorf("%s: %v, %v", what, a, err)
		}
	}
	if _, err := p.until(again.access, ""); err != nil {
		return err
	}

	// The page's lines find what happened after the backup: in the database that was kept, or, where there is none,
	// in what was published.
	kept := "sqlite:before/authctl.db"
	if store != "sqlite" && r.server == nil {
		kept = r.setting("DATABASE_URL")
		u, err := url.Parse(kept)
		if err != nil {
			return err
		}
		u.Path += "_before"
		kept = u.String()
	}
	lines, wanted := 1, []string{"auth.UserDeleted.v1", "auth.PasswordChanged.v1", "auth.UserRegistered.v1"}
	if r.server == nil && !r.lost {
		lines, wanted = 0, append(wanted, "auth.UserDisabled.v1")
	}
	told := r.paste(r.lines("What the backup does not know", lines), "2026-11-29T02:00:00", began,
		"sqlite:before/authctl.db", "'"+kept+"'")
	for _, want := range wanted {
		if !strings.Contains(told, want) {
			return fmt.Errorf("the page's lines do not find %s:\n%s", want, told)
		}
	}
	return nil
}

// nothingOldIsAccepted tries every old token at the server, and its access token at a verifier that
// follows the server.
func (r *rehearsal) nothingOldIsAccepted(s *server, p *probe, groups ...map[string]*device) error {
	// The verifier has caught up once it knows the key of a new token.
	fresh := s.register()
	if _, err := p.until(fresh.access, ""); err != nil {
		return fmt.Errorf("the verifier does not follow: %w", err)
	}
	for _, group := range groups {
		for whose, d := range group {
			if a, err := s.getInTheEnd("/me", d.access); err != nil || a.Status != http.StatusUnauthorized {
				return fmt.Errorf("%s access token: %v, %v", whose, a, err)
			}
			if a, err := s.refreshInTheEnd(d.refresh); err != nil || a.Status != http.StatusUnauthorized {
				return fmt.Errorf("%s refresh token: %v, %v", whose, a, err)
			}
			for _, token := range []string{d.access, d.refresh} {
				if live, err := s.active(token); err != nil || live {
					return fmt.Errorf("introspection of a token of %s: %v, %v", whose, live, err)
				}
			}
			said, err := p.ask(map[string]any{"token": d.access})
			if err != nil || said.Reason != "revoked" && said.Reason != "unknown_key" {
				return fmt.Errorf("the verifier says %q of %s access token: %w", said.Reason, whose, err)
			}
		}
	}
	return nil
}

// userID asks for the id of a device's user.
func (s *server) userID(d *device) string {
	s.t.Helper()
	var me struct{ ID string }
	if err := json.Unmarshal(s.must(s.getInTheEnd("/me", d.access)).Body, &me); err != nil {
		s.t.Fatal(err)
	}
	return me.ID
}

// A fence that is killed at any moment is noticed, or has done nothing. Running it again finishes
// it.
func TestAKilledFenceIsFinished(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "sqlite"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			r := newRehearsal(t, genuine(t), store)
			s := r.serve()
			devices := map[string]*device{}
			for n := range 20 {
				devices["device "+strconv.Itoa(n)] = s.register()
			}
			s.stop()
			killed := 0
			for n := range rounds(8, 60) {
				finished, err := r.killedFence(time.Duration(n+1) * 25 * time.Millisecond)
				testenv.Must(t, err)
				if finished {
					break
				}
				killed++
			}
			t.Logf("killed %d times", killed)
			r.command("restore", "fence", "--yes")
			s = r.serve()
			for whose, d := range devices {
				if a, err := s.getInTheEnd("/me", d.access); err != nil || a.Status != http.StatusUnauthorized {
					t.Errorf("%s access token: %v, %v", whose, a, err)
				}
				if a, err := s.refreshInTheEnd(d.refresh); err != nil || a.Status != http.StatusUnauthorized {
					t.Errorf("%s refresh token: %v, %v", whose, a, err)
				}
			}
			s.login(devices["device 0"].name)
		})
	}
}

// killedFence kills a fence after some time, unless it finishes before.
func (r *rehearsal) killedFence(after time.Duration) (finished bool, err error) {
	cmd := exec.Command(r.binary, "restore", "fence", "--yes")
	cmd.Dir, cmd.Env = r.folder, r.env
	if err := cmd.Start(); err != nil {
		return false, err
	}
	kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	err = cmd.Wait()
	if exit, is := errors.AsType[*exec.ExitError](err); is && exit.ExitCode() == -1 {
		return false, nil
	}
	return err == nil, err
}
