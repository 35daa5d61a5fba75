package campaign

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// archiving is a rehearsal on a PostgreSQL of its own, which archives its log as the page says and
// has a base backup from before the first account.
func archiving(t *testing.T) *rehearsal {
	t.Helper()
	server := outboxtest.StartPostgres(t, "fsync = off")
	r := rehearsalOn(t, genuine(t), server.URL, cachetest.Start(t).URL(), t.TempDir())
	r.server = server
	r.command("migrate", "up")
	r.shell("Archiving the write-ahead log", 0)
	r.shell("Archiving the write-ahead log", 1)
	return r
}

// shell runs a block of the page as the server's user.
func (r *rehearsal) shell(heading string, n int) {
	r.t.Helper()
	r.server.Shell(r.t, strings.NewReplacer("/var/backups/authctl", filepath.Join(r.server.Dir, "backups"),
		"2026-11-29 02:00:00+00", r.point, "sleep 1", "sleep 0.1").Replace(r.lines(heading, n)))
}

// query returns the rows of a query with one text column.
func (r *rehearsal) query(statement string) []string {
	r.t.Helper()
	db := dbtest.Open(r.t, r.server.URL)
	defer func() { _ = db.Close() }() // an open connection would count as a user of the database
	rows, err := database.Collect(r.t.Context(), db, statement, database.Value[string], statement)
	if err != nil {
		r.t.Fatal(err)
	}
	return rows
}

func (r *rehearsal) databaseTime() string {
	r.t.Helper()
	return r.query("SELECT clock_timestamp()::text")[0]
}

// recover recovers to a time that turns out to be the wrong one, and then to the right one.
func (r *rehearsal) recover() {
	r.t.Helper()
	const heading = "Recovering to a point in time"
	right := r.point
	r.shell(heading, 0)
	made := r.server.Shell(r.t, "TZ=UTC date -r backups/base/backup_manifest '+%F %T.%N+00'")
	r.point = strings.TrimSpace(made)
	r.shell(heading, 1)
	if all := r.query("SELECT username FROM users"); len(all) > 0 {
		r.t.Errorf("the base backup has the accounts %v", all)
	}
	r.server.Shell(r.t, `pg_ctl stop; rm -r "$PGDATA"`)
	r.point = right
	r.shell(heading, 1)
}

// A server recovers to a point in time by the lines of the page, after a first try at the wrong
// time. It has everything that was committed before that time and nothing later, and after the
// fence everybody notices.
func TestTheServerGoesBackToAPointInTimeByTheLinesOfThePage(t *testing.T) {
	t.Parallel()
	r := archiving(t)
	var kept []string
	fence := func() {
		if n := len(r.query("SELECT id::text FROM users")); n != 3 {
			t.Errorf("%d accounts after the recovery, want 3", n)
		}
		// Sessions that ended later are live again, until the fence.
		if ended := r.query("SELECT sid::text FROM revoked_session"); len(ended) > 0 {
			t.Errorf("the sessions %v ended after that time", ended)
		}
		kept = r.query("SELECT event_id::text FROM outbox_event")
		if n := len(kept); n < 4 { // three registrations and a sign-in
			t.Errorf("%d events after the recovery", n)
		}
		r.fence()
	}
	testenv.Must(t, r.rehearse("", fence))
	testenv.Eventually(t, "the relay has published everything", func() bool {
		return len(r.query("SELECT 'waits' FROM outbox_pending")) == 0
	})
	seen, err := outboxtest.ReadFile(filepath.Join(r.folder, "data", "events.ndjson"))
	testenv.Must(t, err)
	for _, id := range kept {
		if !slices.ContainsFunc(seen, func(e outboxtest.Seen) bool { return e.ID == id }) {
			t.Errorf("the event %s was not published", id)
		}
	}
	// A standby made from this server must not stop at that time.
	left := r.query("SELECT name FROM pg_file_settings WHERE name LIKE 'recovery%' OR name = 'restore_command'")
	if len(left) > 0 {
		t.Errorf("%v are still set", left)
	}
}

// The data folder of the server is lost, and comes back by the lines of the page from the base backup and what was
// archived. What was not is forgotten, and the fence makes everybody see it.
func TestTheServerComesBackByTheLinesOfThePageWhenItsDataFolderIsLost(t *testing.T) {
	t.Parallel()
	r := archiving(t)
	r.lost = true
	fence := func() {
		if n := len(r.query("SELECT id::text FROM users")); n != 3 {
			t.Errorf("%d accounts were archived, not 3", n)
		}
		r.fence()
	}
	testenv.Must(t, r.rehearse("", fence))
	if left := r.query("SELECT name FROM pg_file_settings WHERE name LIKE 'recovery%' OR name = 'restore_command'"); len(left) > 0 {
		t.Errorf("%v are still set", left)
	}
	// It archives again, on a timeline of its own, and can be lost again.
	r.archived()
}

// archived closes the file of the log that is written, waits until the archive has it, and lets no time close
// another one.
func (r *rehearsal) archived() {
	r.t.Helper()
	r.server.Shell(r.t, `psql "$ADMIN_URL" --command="ALTER SYSTEM SET archive_timeout = 0" --command='SELECT pg_reload_conf()'`)
	testenv.Eventually(r.t, "no time limit of the archive", func() bool {
		return r.query("SELECT current_setting('archive_timeout')")[0] == "0"
	})
	file := r.query("SELECT pg_walfile_name(pg_switch_wal())")[0]
	testenv.Eventually(r.t, "the log is archived", func() bool {
		return r.query("SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver")[0] >= file
	})
}

// lose removes the folder of a server that has crashed, and brings it back.
func (r *rehearsal) lose() {
	r.t.Helper()
	r.server.Crash(r.t)
	r.server.Shell(r.t, `rm -r "$PGDATA"`)
	r.shell("When the data folder is lost", 0)
}
