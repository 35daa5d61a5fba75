package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// follower keeps what /oauth2/revocations tells it. It asks one server, and moves to the next when
// that one does not answer.
type follower struct {
	cursor string
	stop   chan struct{}
	done   sync.WaitGroup

	mu        sync.Mutex
	servers   []*server
	known     map[string]time.Time // when it learnt of each
	snapshots int
	err       error
}

// factOf names a fact. For an account it includes the epoch below which its tokens are void.
func factOf(kind, id string, epoch int64) string {
	if kind == "account" {
		return fmt.Sprintf("account %s %d", id, epoch)
	}
	return kind + " " + id
}

func follow(servers ...*server) *follower {
	f := &follower{servers: servers, stop: make(chan struct{}), known: map[string]time.Time{}}
	f.done.Go(func() {
		for n := 0; ; {
			select {
			case <-f.stop:
				return
			default:
			}
			f.mu.Lock()
			s := f.servers[n%len(f.servers)]
			f.mu.Unlock()
			if err := f.ask(s, 5); err != nil {
				n++
				time.Sleep(10 * time.Millisecond) // as a client does
			}
		}
	})
	return f
}

func (f *follower) end() error {
	close(f.stop)
	f.done.Wait()
	return f.err
}

// ask asks once. It returns an error if the server cannot be used right now.
func (f *follower) ask(s *server, wait int) error {
	a, err := s.call("GET",
		fmt.Sprintf("/oauth2/revocations?verifier=campaign&wait=%d&after=%s", wait, url.QueryEscape(f.cursor)), "", nil)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch a.Status {
	case http.StatusOK:
	case http.StatusGone:
		f.cursor = "" // known facts keep their time
		return nil
	case http.StatusServiceUnavailable:
		return fmt.Errorf("answered %v", a)
	default:
		f.err = fmt.Errorf("the answer of the feed: %v: %s", a, a.Body)
		return f.err
	}
	var page struct {
		Cursor      string
		Revocations []struct {
			Type, Sid, Sub, Kid string
			SessionEpoch        int64 `json:"session_epoch"`
		}
	}
	if err := json.Unmarshal(a.Body, &page); err != nil {
		f.err = fmt.Errorf("the answer of the feed is not JSON: %w", err)
		return f.err
	}
	if f.cursor == "" {
		f.snapshots++
	}
	f.cursor = page.Cursor
	for _, one := range page.Revocations {
		id := map[string]string{"session": one.Sid, "account": one.Sub, "key": one.Kid}[one.Type]
		if fact := factOf(one.Type, id, one.SessionEpoch); f.known[fact].IsZero() {
			f.known[fact] = time.Now()
		}
	}
	return nil
}

// since is when the follower learnt that the session has ended, by itself or with its account.
func (f *follower) since(d *device, user string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at := f.known[factOf("session", d.sid.String(), 0)]; !at.IsZero() {
		return at
	}
	return f.known[factOf("account", user, 1)]
}

// misses lists facts in the service's own tables that the follower does not know.
func (w *installation) misses(f *follower, deleted []string) (missed []string, all int, err error) {
	facts, err := w.column(context.Background(), "SELECT 'session ' || CAST(sid AS text) FROM revoked_session")
	if err != nil {
		return nil, 0, err
	}
	accounts, err := w.column(context.Background(),
		"SELECT 'account ' || CAST(id AS text) || ' ' || CAST(session_epoch AS text) FROM users WHERE session_epoch > 0")
	if err != nil {
		return nil, 0, err
	}
	facts = append(facts, accounts...)
	for _, user := range deleted {
		// the end of its sessions, and the end of its row
		facts = append(facts, factOf("account", user, 1), factOf("account", user, 2))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fact := range facts {
		if f.known[fact].IsZero() {
			missed = append(missed, fact)
		}
	}
	return missed, len(facts), nil
}

// victim is a session that will be ended.
type victim struct {
	ending
	user          string
	victim, other *device
}

// victims makes a session for each way of ending one.
func victims(s *server) (list []victim, err error) {
	for _, e := range endings {
		d := s.register()
		a, err := s.getInTheEnd("/me", d.access)
		if err != nil {
			return nil, err
		}
		var me struct{ ID string }
		if err := json.Unmarshal(a.Body, &me); err != nil {
			return nil, err
		}
		list = append(list, victim{e, me.ID, d, s.login(d.name)})
	}
	return list, nil
}

// followed is a campaign in which sessions end, and a follower and perhaps a verifier learn of it.
type followed struct {
	w         *installation
	servers   []*server
	f         *follower
	p         *probe // nil: none
	deleted   []string
	over      []string // access tokens of ended sessions
	took      []time.Duration
	elsewhere []time.Duration // how long until the verifier refused each
}

// end ends sessions and waits until the follower knows of each. may says that servers may be unable
// to end some of them right now.
func (c *followed) end(list []victim, may bool) error {
	for i, v := range list {
		asked := 0
		a, err := untilAvailable(func() (answer, error) {
			a, err := v.do(c.w, c.servers[i%len(c.servers)], v.victim, v.other)
			if asked++; may && a.Status == http.StatusServiceUnavailable {
				return a, errors.New("not now")
			}
			return a, err
		})
		begun := time.Now()
		if may && err != nil {
			continue
		}
		// The first attempt may have committed without an answer.
		overAlready := asked > 1 && (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden)
		if err != nil || !a.ok() && !overAlready {
			return fmt.Errorf("%s: %v, %w: %s", v.name, a, err, a.Body)
		}
		if v.name == "account deleted" {
			c.deleted = append(c.deleted, v.user)
		}
		for c.f.since(v.victim, v.user).IsZero() {
			if time.Since(begun) > patience {
				return fmt.Errorf("%s: the follower does not learn of it", v.name)
			}
			time.Sleep(time.Millisecond)
		}
		c.took = append(c.took, max(0, c.f.since(v.victim, v.user).Sub(begun)))
		if c.p == nil {
			continue
		}
		if _, err := c.p.until(v.victim.access, "revoked"); err != nil {
			return fmt.Errorf("after %s: %w", v.name, err)
		}
		c.over, c.elsewhere = append(c.over, v.victim.access), append(c.elsewhere, time.Since(begun))
	}
	return nil
}

// nothingMissed compares what the follower knows, and what a new follower is told, with the
// database.
func (c *followed) nothingMissed() error {
	late := &follower{known: map[string]time.Time{}}
	for range 2 { // the first answer may be slightly old
		eventually(c.w.t, "a new follower is answered", func() bool {
			return late.ask(c.servers[len(c.servers)-1], 1) == nil || late.err != nil
		})
	}
	if late.err != nil {
		return late.err
	}
	for name, f := range map[string]*follower{"the follower": c.f, "a new follower": late} {
		missed, all, err := c.w.misses(f, c.deleted)
		if err != nil {
			return err
		}
		if len(missed) > 0 {
			return fmt.Errorf("%s has missed %d of %d: %s", name, len(missed), all,
				strings.Join(missed[:min(3, len(missed))], ", "))
		}
	}
	return nil
}

// report logs how long it took.
func (c *followed) report(t testing.TB) {
	for who, took := range map[string][]time.Duration{"the follower": c.took, "the verifier": c.elsewhere} {
		slices.Sort(took)
		if n := len(took); n > 0 {
			t.Logf("of %d ends 0 were missed; until %s knew: p50 %v, p99 %v, longest %v; %d snapshots", n, who,
				took[n/2].Round(time.Millisecond), took[n*99/100].Round(time.Millisecond),
				took[n-1].Round(time.Millisecond), c.f.snapshots)
			if long() && took[n*99/100] > time.Second {
				t.Errorf("p99 is %v", took[n*99/100])
			}
		}
	}
}

// lateCommit ends a session in a transaction that stays open while others commit and the follower
// is told of them. A cursor that follows a sequence of ids would miss it.
func (c *followed) lateCommit(between func() error) error {
	tx, commit := dbtest.Begin(c.w.t, c.w.db)
	sid := uuid.New()
	if err := endInDatabase(tx, sid); err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	if err := commit(true); err != nil {
		return err
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		c.f.mu.Lock()
		at := c.f.known[factOf("session", sid.String(), 0)]
		c.f.mu.Unlock()
		if !at.IsZero() {
			return nil
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("the late commit was missed")
		}
	}
}

func endInDatabase(tx database.IDB, sid uuid.UUID) error {
	now := time.Now().UTC()
	_, err := tx.ExecContext(context.Background(),
		"INSERT INTO revoked_session (sid, user_id, reason, revoked_at, expires_at) VALUES (?, ?, 'logout', ?, ?)",
		sid, uuid.New(), now, now.Add(time.Hour))
	return err
}

// feedMissesNothing: a follower learns of every end, however the session ends, and so does a
// follower that begins afterwards. Meanwhile a foreign transaction stays open and others commit
// late.
func feedMissesNothing(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	c := &followed{w: w, servers: servers, f: follow(servers...)}
	for range rounds(1, 20) {
		list, err := victims(servers[0])
		if err != nil {
			return err
		}
		if w.db.IsPostgres() {
			foreign, over := dbtest.Begin(w.t, w.db)
			if _, err := foreign.ExecContext(context.Background(),
				"CREATE TEMPORARY TABLE foreign_work (id integer)"); err != nil {
				return err
			}
			err = c.lateCommit(func() error { return c.end(list, false) })
			if err := over(false); err != nil {
				return err
			}
		} else {
			err = c.end(list, false)
		}
		if err != nil {
			return err
		}
	}
	if err := c.nothingMissed(); err != nil {
		return err
	}
	c.report(w.t)
	return c.f.end()
}

func TestTheFeedMissesNothing(t *testing.T) { eachStore(t, feedMissesNothing) }

// The same while 16 clients refresh, Redis is killed, PostgreSQL crashes, the followed server is
// killed, and a foreign transaction stays open (in the long form for minutes, between crashes). A
// verifier in its own process refuses each ended token too, and those of a revoked key.
func TestTheFeedMissesNothingWhateverFails(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "")
	// The follower reaches its servers through wires, so that their addresses stay the same.
	mortals, addresses := []*server{w.serve(), w.serve()}, []*server(nil)
	for _, s := range mortals {
		// Like any follower, it must give up on a silent server: another program of this machine
		// may have got the port of a killed server.
		client := &http.Client{Transport: s.http.Transport, Timeout: patience / 6}
		addresses = append(addresses, &server{t: t, url: w.through(s.url), http: client})
	}
	wires := w.wires[len(w.wires)-len(mortals):]
	c := &followed{w: w.installation, servers: w.servers, f: follow(addresses...),
		p: w.newProbe("orders-1", addresses...)}
	defer c.report(t)
	load := w.churn(16)
	direct := dbtest.Open(t, w.database.URL)
	foreign := func() (end func(commit bool) error) {
		tx, end := dbtest.Begin(t, direct)
		if _, err := tx.ExecContext(t.Context(), "CREATE TEMPORARY TABLE foreign_work (id integer)"); err != nil {
			t.Fatal(err)
		}
		return end
	}
	over, opened, longest := foreign(), time.Now(), time.Duration(0)
	const crashes = 8 // one in so many rounds
	for round := range rounds(1, 40) {
		if deadline, ok := t.Deadline(); ok && time.Until(deadline) < patience {
			t.Logf("no time is left after %d rounds", round)
			break
		}
		var lists [3][]victim
		for i := range lists {
			var err error
			if lists[i], err = victims(w.servers[1]); err != nil {
				t.Fatal(err)
			}
		}
		w.redis.Kill()
		if err := c.end(lists[0], true); err != nil {
			t.Errorf("with Redis away: %v", err)
		}
		w.redis.Restart()
		w.recovers()
		if err := c.end(lists[1][:len(endings)/2], false); err != nil {
			t.Error(err)
		}
		if !long() || round%crashes == crashes-1 {
			longest = max(longest, time.Since(opened))
			w.database.Crash(t)
			w.database.Start(t)
			_ = over(false) // it was lost with its connection
			w.recovers()
			over, opened = foreign(), time.Now()
			if err := c.end(lists[1][len(endings)/2:], false); err != nil {
				t.Errorf("after a restart of PostgreSQL: %v", err)
			}
			if err := c.revokeTheKey(); err != nil {
				t.Errorf("after its key was revoked: %v", err)
			}
			for _, v := range lists[2] { // their access tokens were void with the key
				for _, d := range []*device{v.victim, v.other} {
					d.keep(w.servers[0].must(w.servers[0].refreshInTheEnd(d.refresh)))
				}
			}
		} else if err := c.end(lists[1][len(endings)/2:], false); err != nil {
			t.Error(err)
		}
		one := round % len(mortals) // the followed server
		mortals[one].kill()
		if err := c.end(lists[2], false); err != nil {
			t.Errorf("after the server was killed: %v", err)
		}
		mortals[one] = w.serve()
		wires[one].retarget(strings.TrimPrefix(mortals[one].url, "http://"))
	}
	load.end()
	for _, err := range load.errs {
		t.Errorf("under load: %v", err)
	}
	if err := over(false); err != nil {
		t.Errorf("the foreign transaction: %v", err)
	}
	if err := c.nothingMissed(); err != nil {
		t.Error(err)
	}
	for n, token := range c.over {
		if err := c.p.expect(token, "revoked"); err != nil {
			t.Fatalf("of %d ended tokens, number %d: %v", len(c.over), n, err)
		}
	}
	for _, d := range load.devices {
		d.keep(w.servers[0].must(w.servers[0].refreshInTheEnd(d.refresh)))
		if err := c.p.live(d.access); err != nil {
			t.Errorf("a session that nobody has ended: %v", err)
		}
	}
	t.Logf("%d refreshes, sign-ins since a window had passed: %q; a foreign transaction was open for %v",
		load.rotated, load.late,
		max(longest, time.Since(opened)).Round(time.Second))
	if err := c.f.end(); err != nil {
		t.Error(err)
	}
}

// revokeTheKey replaces the signing key by a new one, revokes it, and waits until the verifier
// refuses its tokens.
func (c *followed) revokeTheKey() error {
	d := c.servers[0].register()
	kid, err := kidOf(d.access)
	if err != nil {
		return err
	}
	next, err := c.w.output("key", "stage")
	if err != nil {
		return err
	}
	if err := c.w.try("", "key", "promote", "--force", next); err != nil {
		return err
	}
	if err := c.w.try("", "key", "revoke", "--force", kid); err != nil {
		return err
	}
	begun := time.Now()
	if _, err := c.p.until(d.access, "revoked"); err != nil {
		return err
	}
	c.elsewhere, c.over = append(c.elsewhere, time.Since(begun)), append(c.over, d.access)
	for newest := kid; newest != next; { // until the servers sign with it
		d.keep(c.servers[0].must(c.servers[0].refreshInTheEnd(d.refresh)))
		if newest, err = kidOf(d.access); err != nil {
			return err
		}
	}
	return nil
}

// A standby is promoted that lacks the last commits, so its transactions reuse the ids of the lost
// ones. No older cursor is valid there.
func TestAPromotedStandbyIsAnotherDatabase(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "")
	f := &follower{known: map[string]time.Time{}}
	eventually(t, "the feed answers", func() bool { return f.ask(w.servers[0], 0) == nil })
	cursor := f.cursor
	standby := w.database.Standby(t)
	standby.Promote(t)
	u, err := url.Parse(standby.URL)
	testenv.Must(t, err)
	w.wires[0].retarget(u.Host)
	w.database.Crash(t)
	w.recovers()
	a, err := untilAvailable(func() (answer, error) {
		return w.servers[1].call("GET", "/oauth2/revocations?after="+url.QueryEscape(cursor), "", nil)
	})
	if err != nil || a.Status != http.StatusGone || a.Code != "cursor_gone" {
		t.Errorf("a cursor of the lost primary: %v, %v: %s", a, err, a.Body)
	}
}

// The previous release writes facts too: it runs on the same database while servers are replaced.
func TestTheFormerReleaseIsFollowedToo(t *testing.T) {
	former, err := formerBinary()
	if err != nil {
		if testenv.Demanded() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	eachStore(t, func(w *installation) error {
		old := *w
		old.binary = former
		servers := []*server{w.serve(), old.serve()}
		c := &followed{w: w, servers: servers[1:], f: follow(servers[0])}
		list, err := victims(servers[1])
		if err != nil {
			return err
		}
		if err := c.end(list, false); err != nil {
			return err
		}
		c.servers = servers[:1]
		if err := c.nothingMissed(); err != nil {
			return err
		}
		return c.f.end()
	})
}
