package campaign

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// withStandby is an installation without Redis on a PostgreSQL with a streaming standby. Its
// settings name both servers. Events go to a file.
type withStandby struct {
	*onOwnEngines
	standby *outboxtest.Server
	log     string
}

// newWithStandby makes one. parameters are appended to the database's URL.
func newWithStandby(t *testing.T, parameters string) *withStandby {
	t.Helper()
	return withStandbyOf(t, outboxtest.StartPostgres(t, "fsync = off", "wal_level = replica"), "sslmode=disable"+
		parameters)
}

func withStandbyOf(t *testing.T, primary *outboxtest.Server, parameters string) *withStandby {
	t.Helper()
	w := &withStandby{onOwnEngines: &onOwnEngines{database: primary}}
	w.standby = w.database.Standby(t)
	host := func(s *outboxtest.Server) string {
		u, err := url.Parse(s.URL)
		testenv.Must(t, err)
		return u.Host
	}
	both := fmt.Sprintf("postgres://postgres@%s,%s/postgres?%s", host(w.database), host(w.standby), parameters)
	data := t.TempDir()
	w.log = filepath.Join(data, "events.ndjson")
	w.wired = &wired{installation: migratedInstallation(t, genuine(t), both, "",
		"APP_HTTP_REQUEST_TIMEOUT=3s", "OUTBOX_RELAY=inline", "APP_DATA_DIR="+data)}
	w.servers = []*server{w.serve(), w.serve()}
	return w
}

// synchronous makes the primary wait for the standby before it confirms a commit.
func (w *withStandby) synchronous() {
	w.t.Helper()
	admin := dbtest.Open(w.t, w.database.URL)
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if _, err := admin.ExecContext(w.t.Context(), statement); err != nil {
			w.t.Fatal(err)
		}
	}
	eventually(w.t, "the standby to be synchronous", func() bool {
		var n int
		err := admin.QueryRowContext(w.t.Context(),
			"SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").Scan(&n)
		return err == nil && n == 1
	})
}

// behind waits until the standby has received everything, and then cuts it off from the primary.
func (w *withStandby) behind() {
	w.t.Helper()
	primary := dbtest.Open(w.t, w.database.URL)
	var position string
	if err := primary.QueryRowContext(w.t.Context(), "SELECT pg_current_wal_lsn()::text").Scan(&position); err != nil {
		w.t.Fatal(err)
	}
	count := func(condition string, args ...any) (n int) {
		err := primary.QueryRowContext(w.t.Context(), "SELECT count(*) FROM pg_stat_replication WHERE "+condition,
			args...).Scan(&n)
		if err != nil {
			w.t.Fatal(err)
		}
		return n
	}
	eventually(w.t, "the standby has all commits", func() bool {
		return count("flush_lsn >= ?::pg_lsn", position) == 1
	})
	standby, err := pgx.Connect(w.t.Context(), w.standby.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer standby.Close(context.WithoutCancel(w.t.Context()))
	for _, statement := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if _, err := standby.Exec(w.t.Context(), statement); err != nil {
			w.t.Fatal(err)
		}
	}
	eventually(w.t, "the standby is cut off", func() bool { return count("true") == 0 })
}

// failOver kills the primary and promotes the standby. No server is restarted and no setting changed.
func (w *withStandby) failOver() {
	w.t.Helper()
	w.database.Crash(w.t)
	w.standby.Promote(w.t)
	w.recovers()
	eventually(w.t, "the database is found", func() bool { return w.db.PingContext(w.t.Context()) == nil })
}

// published waits until all events are published, and returns what is in the file.
func (w *withStandby) published() []outboxtest.Seen {
	w.t.Helper()
	eventually(w.t, "every event is published", func() bool {
		var n int
		return w.db.QueryRowContext(w.t.Context(), "SELECT count(*) FROM outbox_pending").Scan(&n) == nil && n == 0
	})
	list, err := outboxtest.ReadFile(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// stored returns the identity of each event in the outbox, keyed by user and sequence.
func (w *withStandby) stored() map[string]string {
	w.t.Helper()
	rows, err := w.db.QueryContext(w.t.Context(), "SELECT key, key_seq, event_id::text FROM outbox_event")
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]string{}
	for rows.Next() {
		var key, id string
		var seq int64
		if err := rows.Scan(&key, &seq, &id); err != nil {
			w.t.Fatal(err)
		}
		all[fmt.Sprint(key, " ", seq)] = id
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// people register, sign in on a second device and end the session on the first, one after the
// other, until they are stopped. They record the answers.
type people struct {
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	live  []*device // with sessions that nobody has ended
	ended []*device // with sessions whose end was confirmed
	later int       // requests that were told to come back later
	errs  []error
}

func (w *withStandby) people(n int) *people {
	p := &people{stop: make(chan struct{})}
	for i := range n {
		p.done.Go(func() {
			for round := i; ; round++ {
				select {
				case <-p.stop:
					return
				default:
				}
				if !p.visit(w.servers[round%2], w.servers[(round+1)%2]) {
					time.Sleep(10 * time.Millisecond) // as a client does when told to wait
				}
			}
		})
	}
	return p
}

// visit is what one person does. It stops at the first refusal.
func (p *people) visit(here, there *server) bool {
	name := "u" + strings.ReplaceAll(uuid.NewString(), "-", "")
	who := fields{"username": name, "password": password}
	a, ok := p.told(here.call("POST", api+"/register", "", who))
	if !ok {
		return false
	}
	first, second := &device{name: name}, &device{name: name}
	first.keep(a)
	if a, ok = p.told(there.call("POST", api+"/login", "", who)); !ok {
		p.keep(&p.live, first)
		return false
	}
	second.keep(a)
	p.keep(&p.live, second)
	if _, ok = p.told(there.call("DELETE", api+"/sessions/"+first.sid.String(), second.access, nil)); ok {
		p.keep(&p.ended, first)
	}
	return ok
}

// told reports whether a request succeeded. The only other allowed answer is "not now".
func (p *people) told(a answer, err error) (answer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil && a.ok():
		return a, true
	case err == nil && a.Status == http.StatusServiceUnavailable && a.RetryAfter != "":
		p.later++
	case err == nil:
		p.errs = append(p.errs, fmt.Errorf("answered %v: %s", a, a.Body))
	default:
		p.errs = append(p.errs, err)
	}
	return a, false
}

func (p *people) keep(list *[]*device, d *device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*list = append(*list, d)
}

// progress waits until n more people have ended a session.
func (p *people) progress(t testing.TB, n int) {
	t.Helper()
	count := func() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.ended) }
	goal := count() + n
	eventually(t, "people come and go", func() bool { return count() >= goal })
}

func (p *people) end() {
	close(p.stop)
	p.done.Wait()
}

// The primary is killed under load and a synchronous standby promoted. The servers find it by
// themselves and answer nothing worse than "not now" meanwhile. Nothing that was confirmed is lost:
// no account, no session, no end of a session, no event.
func TestAFailOverToASynchronousStandbyLosesNothing(t *testing.T) {
	t.Parallel()
	for round := range rounds(1, 10) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newWithStandby(t, "")
			w.synchronous()
			c, p := w.churn(4), w.people(4)
			c.progress(t, 50)
			p.progress(t, 15)
			w.failOver()
			c.progress(t, 50)
			p.progress(t, 15)
			c.end()
			p.end()
			t.Logf("%d sessions live, %d ended, %d refreshes, %d times told to wait", len(p.live), len(p.ended),
				c.rotated, p.later)
			for _, err := range slices.Concat(c.errs, p.errs) {
				t.Error(err)
			}
			for _, d := range slices.Concat(c.devices, p.live, p.ended) {
				if err := w.audit(w.servers, false, d); err != nil {
					t.Errorf("%s: %v", d.name, err)
				}
			}
			w.everythingIsInTheLog(p)
		})
	}
}

// Both servers speak TLS, and their certificate is verified. Every connection to the new primary is encrypted.
func TestAFailOverOverTLS(t *testing.T) {
	t.Parallel()
	primary := outboxtest.StartPostgres(t, "fsync = off", "wal_level = replica")
	primary.Shell(t, `openssl req -new -x509 -days 1 -nodes -subj /CN=db -addext subjectAltName=IP:127.0.0.1 \
		-out "$PGDATA/server.crt" -keyout "$PGDATA/server.key"
		chmod 600 "$PGDATA/server.key"
		psql "$ADMIN_URL" --command="ALTER SYSTEM SET ssl = on" --command='SELECT pg_reload_conf()'`)
	text, err := os.ReadFile(filepath.Join(primary.Dir, "data", "server.crt"))
	testenv.Must(t, err)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	testenv.Must(t, os.WriteFile(authority, text, 0o600))
	w := withStandbyOf(t, primary, "sslmode=verify-full&target_session_attrs=read-write&sslrootcert="+authority)
	w.synchronous()
	c := w.churn(4)
	c.progress(t, 50)
	w.failOver()
	c.progress(t, 50)
	c.end()
	for _, err := range c.errs {
		t.Error(err)
	}
	for _, d := range c.devices {
		if err := w.audit(w.servers, false, d); err != nil {
			t.Error(err)
		}
	}
	var all, secure int
	err = dbtest.Open(t, w.standby.URL).QueryRowContext(t.Context(), `SELECT count(*), count(*) FILTER (WHERE ssl)
		FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'authctl'`).Scan(&all, &secure)
	if err != nil || all == 0 || secure != all {
		t.Errorf("%d of %d connections are encrypted: %v", secure, all, err)
	}
}

// everythingIsInTheLog checks the file against the outbox: it has the same events with the same
// ids, and the events of each user in order and without a gap.
func (w *withStandby) everythingIsInTheLog(p *people) {
	w.t.Helper()
	seen := map[string]string{}
	last := map[string]int64{}
	text := ""
	for _, e := range w.published() {
		place := fmt.Sprint(e.Key, " ", e.Seq)
		if id, again := seen[place]; again {
			if id != e.ID { // delivered at least once, but always the same event
				w.t.Errorf("two events have the id %s: %s and %s", place, id, e.ID)
			}
			continue
		}
		if e.Seq != last[e.Key]+1 {
			w.t.Errorf("event %s follows number %d", place, last[e.Key])
		}
		seen[place], last[e.Key] = e.ID, e.Seq
		text += e.Body
	}
	stored := w.stored()
	for place, id := range stored {
		if seen[place] != id {
			w.t.Errorf("event %s is %s in the outbox and %q in the log", place, id, seen[place])
		}
	}
	if len(seen) != len(stored) {
		w.t.Errorf("%d events in the log, %d in the outbox", len(seen), len(stored))
	}
	for _, d := range p.ended {
		if !strings.Contains(text, d.name) || !strings.Contains(text, d.sid.String()) {
			w.t.Errorf("the log lacks %s", d.name)
		}
	}
}

// The primary is killed, and a standby is promoted that lacks the last commits, which can happen
// without synchronous replication. What operations.md says is lost is lost, and what it tells the
// operator to do repairs that.
func TestAFailOverToAStandbyThatIsBehind(t *testing.T) {
	t.Parallel()
	w := newWithStandby(t, "&target_session_attrs=read-write")
	c := w.churn(4)
	c.progress(t, 50)
	victim, bystander := w.servers[0].register(), w.servers[1].register()
	w.published()
	w.behind()

	// All of this is confirmed and published.
	late := w.servers[0].register()
	w.servers[0].must(w.servers[0].call("POST", api+"/logout", victim.access, nil))
	testenv.Must(t, w.servers[1].expectOver(victim))
	ahead := w.published()
	w.failOver()
	c.progress(t, 50)
	c.end()
	for _, err := range c.errs {
		t.Error(err)
	}

	// An account is lost with its session.
	for _, s := range w.servers {
		a, err := s.getInTheEnd("/me", late.access)
		if err != nil || a.Status != http.StatusUnauthorized {
			t.Errorf("a token of an account that was lost: %v, %v", a, err)
		}
	}
	if a, err := w.servers[0].signInEventually(late.name); err != nil || a.Status != http.StatusUnauthorized {
		t.Errorf("an account that was lost: %v, %v", a, err)
	}
	// An ended session is live again.
	if a, err := w.servers[0].getInTheEnd("/me", victim.access); err != nil || !a.ok() {
		t.Errorf("a session whose end was lost: %v, %v", a, err)
	}
	// Nobody else is signed out: a refresh token from just before the fail-over is newer than its
	// record.
	for _, d := range append(c.devices, bystander) {
		if err := w.audit(w.servers, false, d); err != nil {
			t.Error(err)
		}
	}
	// The log has events that the database lacks.
	stored, unknown := w.stored(), map[string]string{}
	for _, e := range ahead {
		if place := fmt.Sprint(e.Key, " ", e.Seq); stored[place] != e.ID {
			unknown[place] = e.ID
		}
	}
	if len(unknown) != 2 {
		t.Errorf("the new primary lacks %v, want a registration and an end", unknown)
	}
	// The operator ends every session. The victim's next event has the sequence of the lost one.
	w.command("session", "revoke", "--all", "--yes")
	for _, s := range w.servers {
		if err := s.expectOver(victim); err != nil {
			t.Errorf("after all sessions were revoked: %v", err)
		}
	}
	again := 0
	for _, e := range w.published() {
		if id, was := unknown[fmt.Sprint(e.Key, " ", e.Seq)]; was && id != e.ID {
			again++
		}
	}
	if again != 1 {
		t.Errorf("%d events have the sequence of a lost one, want 1", again)
	}
}
