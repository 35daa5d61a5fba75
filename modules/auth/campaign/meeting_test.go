package campaign

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// Two requests meet at the worst moment, where a wire holds one of them.

// A device signs in just after all sessions were ended, while the server that ended them has yet to
// clear the store. The new session must stay.
func newSessionsStay(w *wired) error {
	ending := w.serve(patient(w.settings)...)
	// The end does not wait for the store for ever: on a busy machine the new session may be too
	// late to meet it.
	for range 30 {
		if met, err := newSessionMeetsTheSweep(w, ending); met || err != nil {
			return err
		}
	}
	w.t.Log("the two requests never met: this machine is too busy")
	return nil
}

// Options of REDIS_URL: how long a server waits for an answer, where Redis hangs and where it does not.
const briefly, atLength = "read_timeout=500ms", "read_timeout=30s"

// patient makes settings for a server that is held up for long and must not give up.
func patient(settings []string) []string {
	var all []string
	for _, setting := range settings {
		all = append(all, strings.Replace(setting, briefly, atLength, 1))
	}
	return append(all, "APP_HTTP_REQUEST_TIMEOUT=60s")
}

func newSessionMeetsTheSweep(w *wired, ending *server) (met bool, err error) {
	d := w.survivor.register()
	sweeps := func(m message) bool { return m.toTarget } // on Redis, an end sends nothing else
	if w.store == "postgres" {
		sweeps = func(m message) bool { return m.toTarget && bytes.Contains(m.data, []byte("DELETE FROM session ")) }
	}
	w.wires[len(w.wires)-1].faulty(func(m message) verdict {
		if sweeps(m) {
			return hold
		}
		return pass
	})
	answered := make(chan answer, 1)
	go func() {
		a, _ := ending.call("DELETE", api+"/sessions", d.access, nil)
		answered <- a
	}()
	eventually(w.t, "the end is announced", func() bool { return w.expectEvents(d, "AllSessionsRevoked") == nil })
	newDevice := w.survivor.login(d.name)
	met = len(answered) == 0
	w.release()
	if a := <-answered; !a.ok() {
		return met, fmt.Errorf("the answer to the end is %v", a)
	}
	w.settle(w.survivor.register())
	return met, w.audit([]*server{ending, w.survivor}, false, d, newDevice)
}

func TestASignInAfterTheEndIsNotSweptAway(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "postgres"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			if err := newSessionsStay(newWired(t, genuine(t), store)); err != nil {
				t.Error(err)
			}
		})
	}
}

// One session changes the password several times at once. One change succeeds. The session stays,
// and no answer says that it has ended.
func onePasswordChangeWins(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(6, 200) {
		d := servers[0].register()
		const many = 6
		answers := make([]answer, many)
		err := atOnce(many, func(i int) (err error) {
			answers[i], err = servers[i%2].call("POST", api+"/password", d.access,
				fields{"current_password": password, "new_password": newPassword})
			return err
		})
		if err != nil {
			return err
		}
		changed := 0
		for _, a := range answers {
			switch {
			case a.ok():
				changed++
				d.keep(a)
			case a.Status != http.StatusForbidden: // the current password is already wrong
				return fmt.Errorf("round %d: the answer to a late change is %v", round, a)
			}
		}
		if changed != 1 {
			return fmt.Errorf("round %d: %d changes succeeded", round, changed)
		}
		if err := w.audit(servers, false, d); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func TestOfPasswordChangesAtOnceOneWinsAndTheSessionGoesOn(t *testing.T) {
	eachStore(t, onePasswordChangeWins)
}

// Several devices sign in at once while the hash is renewed. The right password must be accepted
// each time.
func parallelSignInsRenewTheHash(w *installation) error {
	before := w.serve()
	var users []*device
	for range rounds(4, 60) {
		users = append(users, before.register())
	}
	servers := []*server{w.serve("AUTH_PASSWORD_BCRYPT_COST=5"), w.serve("AUTH_PASSWORD_BCRYPT_COST=5")}
	for _, d := range users {
		err := atOnce(8, func(i int) error {
			a, err := servers[i%2].signInEventually(d.name)
			if err == nil && !a.ok() {
				err = fmt.Errorf("a sign-in with the right password, among several: %v", a)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func TestParallelSignInsWithAnOldHash(t *testing.T) { eachStore(t, parallelSignInsRenewTheHash) }

// A sign-in meets "end all". Whatever happens, the answer must not say that the right password is
// wrong.
func signInMeetsTheEnd(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(8, 200) {
		d := servers[0].register()
		const many = 6
		var newDevices []*device
		answers := make([]answer, many)
		err := atOnce(many+1, func(i int) (err error) {
			if i == many {
				a, err := servers[round%2].call("DELETE", api+"/sessions", d.access, nil)
				if err == nil && !a.ok() {
					err = fmt.Errorf("the answer to the end is %v", a)
				}
				return err
			}
			answers[i], err = servers[i%2].signInEventually(d.name)
			return err
		})
		if err != nil {
			return err
		}
		for _, a := range answers {
			if !a.ok() {
				return fmt.Errorf("round %d: a sign-in that met the end of all sessions: %v", round, a)
			}
			n := &device{name: d.name}
			n.keep(a)
			newDevices = append(newDevices, n)
		}
		if err := w.audit(servers, false, slices.Concat([]*device{d}, newDevices)...); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func TestASignInThatMeetsTheEndOfAllSessions(t *testing.T) { eachStore(t, signInMeetsTheEnd) }

// Parallel sign-ins at the limit of sessions: the oldest are evicted and announced, and the list
// agrees with the announcements.
func theLimitHolds(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(3, 60) {
		d := servers[0].register()
		devices := []*device{d}
		answers := make([]answer, 12)
		err := atOnce(len(answers), func(i int) (err error) {
			answers[i], err = servers[i%2].signInEventually(d.name)
			return err
		})
		if err != nil {
			return err
		}
		for _, a := range answers {
			if !a.ok() {
				return fmt.Errorf("round %d: a sign-in at the limit: %v", round, a)
			}
			n := &device{name: d.name}
			n.keep(a)
			devices = append(devices, n)
		}
		l, err := w.ledger(d.name)
		if err != nil {
			return err
		}
		var live []string
		for _, d := range devices {
			if l[d.sid] == "" {
				live = append(live, d.sid.String())
			}
		}
		if len(live) == 0 || len(live) > 3 {
			return fmt.Errorf("round %d: %d live sessions, but 3 are allowed", round, len(live))
		}
		if err := w.audit(servers, false, devices...); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func TestSignInsAtOnceKeepTheLimit(t *testing.T) {
	eachStore(t, theLimitHolds, "AUTH_MAX_SESSIONS_PER_USER=3")
}

// beginning recognises the start of a transaction on its way to PostgreSQL.
func beginning(m message) bool {
	return m.toTarget && bytes.Contains(bytes.ToLower(m.data), []byte("begin"))
}

// A session asks to end all others, or to change the password. While the request waits for the
// database, the owner ends this session by changing the password. The request must neither keep its
// own session nor end the owner's.
func nobodyKeepsThemselves(w *wired, op operation) error {
	owner := w.survivor.register()
	thief := w.survivor.login(owner.name)
	slow := w.serve(patient(w.settings)...)
	waiting := make(chan struct{}, 100)
	w.wires[0].faulty(func(m message) verdict {
		if beginning(m) {
			waiting <- struct{}{}
			return hold
		}
		return pass
	})
	answered := make(chan answer, 1)
	go func() {
		a, _ := op.do(slow, thief, nil)
		answered <- a
	}()
	<-waiting
	owner.keep(w.survivor.must(w.survivor.call("POST", api+"/password", owner.access,
		fields{"current_password": password, "new_password": newPassword})))
	w.release()
	if a := <-answered; a.ok() || !a.proper() {
		return fmt.Errorf("the answer to an ended session is %v", a)
	}
	w.settle(w.survivor.register())
	if err := w.expectEvents(owner, "PasswordChanged", "AllSessionsRevoked"); err != nil {
		return err
	}
	if err := w.survivor.expectOver(thief); err != nil {
		return fmt.Errorf("the session that had ended: %w", err)
	}
	return w.audit([]*server{w.survivor, slow}, false, owner, thief)
}

func TestAnEndedSessionCannotKeepItself(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"end all but the current one", "change the password"} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if err := nobodyKeepsThemselves(newWired(t, genuine(t), "redis"), operationNamed(name)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A session changes the password, and an operator sets another one before the new tokens were made.
// The session that knew the old password must not get new tokens.
func overtakenBeginsNothing(w *wired) error {
	d := w.survivor.register()
	slow := w.serve(patient(w.settings)...)
	var changed, committed atomic.Bool
	w.wires[0].faulty(func(m message) verdict {
		// Housekeeping commits too.
		if m.toTarget && bytes.Contains(m.data, []byte("UPDATE users SET password_hash")) {
			changed.Store(true)
		}
		if m.toTarget && changed.Load() && bytes.Contains(bytes.ToLower(m.data), []byte("commit")) {
			committed.Store(true)
		}
		return pass
	})
	w.wires[1].faulty(func(message) verdict {
		if committed.Load() {
			return hold
		}
		return pass
	})
	answered := make(chan answer, 1)
	go func() {
		a, _ := slow.call("POST", api+"/password", d.access,
			fields{"current_password": password, "new_password": newPassword})
		answered <- a
	}()
	eventually(w.t, "the change is announced", func() bool {
		return w.expectEvents(d, "PasswordChanged", "AllSessionsRevoked") == nil
	})
	if err := w.try("a third horse, a third battery\n", "user", "set-password", d.name,
		"--password-stdin"); err != nil {
		return err
	}
	w.release()
	if a := <-answered; a.ok() {
		d.keep(a)
	}
	w.settle(w.survivor.register())
	if err := w.survivor.expectOver(d); err != nil {
		return err
	}
	return w.audit([]*server{w.survivor, slow}, false, d)
}

func TestAPasswordChangeThatWasOvertakenBeginsNoSession(t *testing.T) {
	t.Parallel()
	if err := overtakenBeginsNothing(newWired(t, genuine(t), "redis")); err != nil {
		t.Error(err)
	}
}

// Sessions end while the store cannot be reached, so their records stay. They do not count: a
// sign-in neither evicts a live session nor is refused because of them.
func TestRecordsThatWereLeftTakeNoPlace(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"evict-oldest", "reject-new"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			w := newWired(t, genuine(t), "redis")
			settings := append(w.settings[:len(w.settings):len(w.settings)], "AUTH_MAX_SESSIONS_PER_USER=3",
				"AUTH_SESSION_LIMIT="+limit)
			s := w.serve(patient(settings)...)
			oldest := s.register()
			left := []*device{s.login(oldest.name), s.login(oldest.name)}
			w.wires[1].faulty(func(message) verdict { return cut })
			s.must(s.call("DELETE", api+"/sessions?except=current", oldest.access, nil))
			w.release()
			newest := s.login(oldest.name)
			if err := w.audit([]*server{s, w.survivor}, false, oldest, newest); err != nil {
				t.Error(err)
			}
			if err := w.expectEvents(oldest, "AllSessionsRevoked"); err != nil {
				t.Error(err)
			}
			if err := w.audit([]*server{s, w.survivor}, false, left...); err != nil {
				t.Error(err)
			}
		})
	}
}
