package campaign

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// operation is a request that a client sends while something breaks. Device a sends it; b belongs
// to the same user.
type operation struct {
	name string
	do   func(s *server, a, b *device) (answer, error)
	// announces are the event types that a success must have announced.
	announces []string
}

var operations = []operation{
	{"refresh", func(s *server, a, _ *device) (answer, error) { return s.refresh(a.refresh) }, nil},
	{"logout", func(s *server, a, _ *device) (answer, error) {
		return s.call("POST", api+"/logout", "", fields{"refresh_token": a.refresh})
	}, []string{"SessionRevoked"}},
	{"end all", func(s *server, a, _ *device) (answer, error) {
		return s.call("DELETE", api+"/sessions", a.access, nil)
	}, []string{"AllSessionsRevoked"}},
	{"change the password", func(s *server, a, _ *device) (answer, error) {
		return s.call("POST", api+"/password", a.access,
			fields{"current_password": password, "new_password": newPassword})
	}, []string{"PasswordChanged", "AllSessionsRevoked"}},
	{"end one", func(s *server, a, b *device) (answer, error) {
		return s.call("DELETE", api+"/sessions/"+b.sid.String(), a.access, nil)
	}, []string{"SessionRevoked"}},
	{"end all but the current one", func(s *server, a, _ *device) (answer, error) {
		return s.call("DELETE", api+"/sessions?except=current", a.access, nil)
	}, []string{"AllSessionsRevoked"}},
	{"sign in at the limit", func(s *server, a, _ *device) (answer, error) {
		return s.call("POST", api+"/login", "", fields{"username": a.name, "password": password})
	}, []string{"SessionRevoked"}},
	{"delete the account", func(s *server, a, _ *device) (answer, error) {
		return s.call("DELETE", api+"/me", a.access, fields{"password": password})
	}, []string{"AllSessionsRevoked", "UserDeleted"}},
}

func operationNamed(name string) operation {
	return operations[slices.IndexFunc(operations, func(op operation) bool { return op.name == name })]
}

// breakage is what happens to the k-th message between a server and its engines.
type breakage struct {
	name   string
	strike func(victim *server) verdict
	dies   bool // whether the server dies
}

var breakages = []breakage{
	{"killed", func(victim *server) verdict { victim.kill(); return cut }, true},
	{"cut", func(*server) verdict { return cut }, false},
	{"frozen", func(*server) verdict { return hold }, false},
}

// wired is an installation whose servers reach the engines through wires.
type wired struct {
	*installation
	store    string
	settings []string // for a server behind the wires
	wires    []*wire
	survivor *server // a server that is not behind the wires
}

// newWired makes one on the shared engines.
func newWired(t *testing.T, binary, store string) *wired {
	t.Helper()
	databaseURL, redisURL := dbtest.PostgresURL(t), ""
	if store == "redis" {
		redisURL = testenv.Redis(t)
	}
	w := &wired{store: store,
		installation: installationOn(t, binary, databaseURL, redisURL, "AUTH_MAX_SESSIONS_PER_USER=2")}
	w.settings = []string{"DATABASE_URL=" + w.through(databaseURL), "APP_HTTP_REQUEST_TIMEOUT=1s"}
	if redisURL != "" {
		w.settings = append(w.settings, "REDIS_URL="+w.through(redisURL)+"?"+briefly)
	}
	w.survivor = w.serve()
	return w
}

// through puts a wire in front of the engine at a URL, and returns the URL of the wire.
func (w *wired) through(engine string) string {
	w.t.Helper()
	u, err := url.Parse(engine)
	if err != nil {
		w.t.Fatal(err)
	}
	wire := newWire(w.t, u.Host)
	w.wires = append(w.wires, wire)
	u.Host = wire.addr()
	return u.String()
}

// strikeAt breaks the k-th message from now on, on any wire. The function that it returns reports
// whether there was one.
func (w *wired) strikeAt(k int, strike func() verdict) (struck func() bool) {
	var mu sync.Mutex
	n := 0
	rule := func(message) verdict {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == k {
			return strike()
		}
		return pass
	}
	for _, wire := range w.wires {
		wire.faulty(rule)
	}
	return func() bool { mu.Lock(); defer mu.Unlock(); return n >= k }
}

func (w *wired) release() {
	for _, wire := range w.wires {
		wire.release()
	}
}

// settle waits until the engines have processed late messages, such as a COMMIT that was held. The
// test is about the outcome, not about its time.
func (w *wired) settle(bystander *device) {
	w.t.Helper()
	// Redis processes what has arrived before any newer request.
	bystander.keep(w.survivor.must(w.survivor.refreshInTheEnd(bystander.refresh)))
	w.quiet()
}

// quiet waits until PostgreSQL has ended every transaction. SQLite's end with the process.
func (w *installation) quiet() {
	w.t.Helper()
	if !w.db.IsPostgres() {
		return
	}
	eventually(w.t, "no transaction is left open", func() bool {
		var open int
		err := w.db.QueryRowContext(w.t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'`).Scan(&open)
		return err == nil && open == 0
	})
}

// everyStep breaks an operation at its first message, at its second, and so on, until the operation
// finishes unbroken. Each time the answer must be a proper one and true, what was announced must
// hold, and everything else must go on, on the broken server too.
func (w *wired) everyStep(op operation, b breakage) (steps int, err error) {
	bystander := w.survivor.register()
	var victim *server
	for k := 1; ; k += rounds(3, 1) {
		if victim == nil || b.dies {
			settings := w.settings
			if b.name != "frozen" { // the other breakages need no timeout
				settings = patient(settings)
			}
			victim = w.serve(settings...)
		}
		asking := w.survivor.register()
		other := w.survivor.login(asking.name)
		// Connections and scripts exist before the operation, so that only its own messages count.
		for range 2 {
			bystander.keep(victim.must(victim.refreshInTheEnd(bystander.refresh)))
			victim.must(victim.getInTheEnd("/sessions", bystander.access))
		}
		before := *asking
		struck := w.strikeAt(k, func() verdict { return b.strike(victim) })
		a, callErr := op.do(victim, asking, other)
		hit := struck()
		w.release()
		w.settle(bystander)
		if callErr != nil && !(b.dies && hit) {
			return steps, fmt.Errorf("message %d: no answer: %w", k, callErr)
		}
		servers := []*server{w.survivor}
		if !b.dies {
			servers = append(servers, victim)
		}
		if err := w.afterStep(op, a, callErr == nil, servers, asking, other, bystander); err != nil {
			return steps, fmt.Errorf("message %d, answer %v: %w (its refresh token belonged to %s)", k, a, err,
				before.sid)
		}
		if b.dies {
			victim.kill()
		}
		if !hit {
			if !a.ok() && a.Status != http.StatusServiceUnavailable { // a busy machine may answer 503
				return steps, fmt.Errorf("the answer without a breakage is %v: %s", a, a.Body)
			}
			return steps, nil
		}
		steps++
	}
}

func (w *wired) afterStep(op operation, a answer, answered bool, servers []*server, asking, other,
	bystander *device) error {
	if answered && !a.proper() {
		return fmt.Errorf("not a proper answer: %s", a.Body)
	}
	list, err := w.events(asking.name)
	if err != nil {
		return err
	}
	announced := func(short string) bool {
		return slices.ContainsFunc(list, func(e event) bool {
			return strings.TrimPrefix(e.Type, "auth.") == short+".v1"
		})
	}
	if answered && a.ok() {
		for _, short := range op.announces {
			if !announced(short) {
				return fmt.Errorf("the announcement is missing: %s", short)
			}
		}
		if a.RefreshToken != "" && a.SessionID == asking.sid {
			asking.keep(a) // otherwise the client continues with its old tokens
		}
	}
	if announced("UserDeleted") {
		for _, d := range []*device{asking, other} {
			if err := servers[0].expectOver(d); err != nil {
				return err
			}
		}
	}
	if err := w.audit(servers, false, asking, other); err != nil {
		return err
	}
	if !announced("UserDeleted") {
		if err := servers[0].expectPassword(asking.name, announced("PasswordChanged")); err != nil {
			return err
		}
	}
	if err := w.audit(servers, false, bystander); err != nil {
		return fmt.Errorf("a bystander: %w", err)
	}
	return nil
}

// expectPassword signs in with the password that must work, and with the one that must not.
func (s *server) expectPassword(name string, changed bool) error {
	for _, p := range []string{password, newPassword} {
		a, err := untilAvailable(func() (answer, error) {
			return s.call("POST", api+"/login", "", fields{"username": name, "password": p})
		})
		if err != nil {
			return err
		}
		want := http.StatusUnauthorized
		if (p == newPassword) == changed {
			want = http.StatusOK
		}
		if a.Status != want {
			return fmt.Errorf("password change announced: %v; sign-in with %q: %v", changed, p, a)
		}
	}
	return nil
}

func TestWhateverBreaksAtWhicheverStep(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "postgres"} {
		for i, op := range operations {
			for _, b := range breakages {
				if !long() && (i >= 4 || store == "postgres" && b.name != "cut" || b.name == "frozen" && i == 3) {
					continue
				}
				t.Run(strings.ReplaceAll(store+"/"+op.name+"/"+b.name, " ", "_"), func(t *testing.T) {
					t.Parallel()
					steps, err := newWired(t, genuine(t), store).everyStep(op, b)
					t.Logf("%d steps", steps)
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// SQLite has no wire to cut. Instead, the server is killed at some moment of the operation.
func killedAtSomeMoment(w *installation) error {
	s := w.serve()
	bystander := s.register()
	for round := range rounds(len(operations), 50*len(operations)) {
		op := operations[round%len(operations)]
		asking := s.register()
		other := s.login(asking.name)
		// Most of the time is hashing, and nothing has changed before it ends.
		moment := time.Duration(rand.Int64N(int64(6 * time.Millisecond)))
		done := make(chan struct{})
		var a answer
		var callErr error
		go func() {
			defer close(done)
			a, callErr = op.do(s, asking, other)
		}()
		select {
		case <-done:
		case <-time.After(moment):
		}
		s.kill()
		<-done
		w.quiet()
		s = w.serve()
		installed := &wired{installation: w}
		if err := installed.afterStep(op, a, callErr == nil, []*server{s}, asking, other, bystander); err != nil {
			return fmt.Errorf("round %d, %s killed after %v, answer %v: %w", round, op.name, moment, a, err)
		}
	}
	return nil
}

func TestKilledAtSomeMoment(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			if err := killedAtSomeMoment(newInstallation(t, genuine(t), store,
				"AUTH_MAX_SESSIONS_PER_USER=2")); err != nil {
				t.Error(err)
			}
		})
	}
}
