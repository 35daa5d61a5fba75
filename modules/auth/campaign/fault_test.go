package campaign

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// onOwnEngines is an installation whose engines may be killed: two servers, connected through wires
// to a PostgreSQL and a Redis of the test's own.
type onOwnEngines struct {
	*wired
	servers  []*server
	database *outboxtest.Server
	redis    *cachetest.Server
	toRedis  *wire
}

// newOnOwnEngines makes one. options are added to REDIS_URL.
func newOnOwnEngines(t *testing.T, options string) *onOwnEngines {
	t.Helper()
	w := &onOwnEngines{database: outboxtest.StartPostgres(t, "fsync = off"), redis: cachetest.Start(t)}
	w.wired = &wired{installation: &installation{t: t}}
	databaseURL, redisURL := w.through(w.database.URL), w.through(w.redis.URL())+options
	w.toRedis = w.wires[1]
	w.installation = migratedInstallation(t, genuine(t), databaseURL, redisURL, "APP_HTTP_REQUEST_TIMEOUT=3s")
	w.servers = []*server{w.serve(), w.serve()}
	return w
}

// expectUnavailable returns an error unless the request is refused for now, as the contract says.
func (s *server) expectUnavailable(what string, a answer, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if a.Status != http.StatusServiceUnavailable || a.Code != "unavailable" || a.RetryAfter == "" {
		return fmt.Errorf("%s: the answer is %v with Retry-After %q: %s", what, a, a.RetryAfter, a.Body)
	}
	return nil
}

// population has a user for each way in which a session can end, and one whose session is live.
type population struct {
	live *device
	over []*device
}

// populate makes the users, and ends the sessions of all but one.
func (w *onOwnEngines) populate() *population {
	w.t.Helper()
	s := w.servers[0]
	p := &population{live: s.register()}
	for _, e := range endings {
		victim := s.register()
		other := s.login(victim.name)
		tries := 0
		a, err := untilAvailable(func() (answer, error) {
			tries++
			return e.do(w.installation, w.servers[1], victim, other)
		})
		// An earlier attempt may have ended it, or changed the password.
		overAlready := tries > 1 && (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden)
		if err != nil || !overAlready {
			s.must(a, err)
		}
		p.over = append(p.over, victim)
	}
	reused := s.register()
	w.reuse(s, reused)
	p.over = append(p.over, reused)
	return p
}

// holds checks that ended sessions are still ended, and that the live one is live.
func (w *onOwnEngines) holds(p *population, storeLost bool) error {
	for _, d := range p.over {
		if err := w.audit(w.servers, storeLost, d); err != nil {
			return err
		}
		for _, s := range w.servers {
			if err := s.expectOver(d); err != nil {
				return err
			}
		}
	}
	return w.audit(w.servers, storeLost, p.live)
}

// recovers waits until both servers work again by themselves.
func (w *onOwnEngines) recovers() {
	w.t.Helper()
	for _, s := range w.servers {
		eventually(w.t, "the server recovers", func() bool {
			a, err := s.call("POST", api+"/register", "",
				fields{"username": fmt.Sprintf("probe%d", time.Now().UnixNano()), "password": password})
			return err == nil && a.ok()
		})
	}
}

// whileRedisIsAway tries all operations without Redis.
func (w *onOwnEngines) whileRedisIsAway(p *population) error {
	s := w.servers[0]
	a, err := s.refresh(p.live.refresh)
	if err := s.expectUnavailable("refresh", a, err); err != nil {
		return err
	}
	a, err = s.call("POST", api+"/login", "", fields{"username": p.live.name, "password": password})
	if err := s.expectUnavailable("sign-in", a, err); err != nil {
		return err
	}
	// A password change needs new tokens, so it is refused too.
	a, err = s.call("POST", api+"/password", p.live.access,
		fields{"current_password": password, "new_password": newPassword})
	if err := s.expectUnavailable("password change", a, err); err != nil {
		return err
	}
	if err := w.expectEvents(p.live); err != nil {
		return err
	}
	a, err = s.call("GET", "/readyz", "", nil)
	if err != nil || a.Status != http.StatusServiceUnavailable {
		return fmt.Errorf("GET /readyz: %v, %v", a, err)
	}
	a, err = s.getInTheEnd("/me", p.live.access)
	if err != nil || !a.ok() {
		return fmt.Errorf("GET /me, which needs the database alone: %v, %v", a, err)
	}
	// Ended sessions stay ended. After the end of all sessions a refresh cannot tell without the
	// record whether its session is one of them, so it is refused as well.
	for _, d := range p.over {
		if a, err := s.refresh(d.refresh); err != nil || !a.refused() {
			return fmt.Errorf("refresh of an ended session: %v, %v", a, err)
		}
		if a, err := s.getInTheEnd("/me", d.access); err != nil || a.Status != http.StatusUnauthorized {
			return fmt.Errorf("GET /me of an ended session: %v, %v", a, err)
		}
	}
	return nil
}

// endedWhileRedisIsAway ends sessions whose records cannot be removed.
func (w *onOwnEngines) endedWhileRedisIsAway(doomed []*device) error {
	for i, end := range []func(s *server, d *device) (answer, error){
		func(s *server, d *device) (answer, error) {
			return s.call("POST", api+"/logout", "", fields{"refresh_token": d.refresh})
		},
		func(s *server, d *device) (answer, error) { return s.call("DELETE", api+"/sessions", d.access, nil) },
		func(s *server, d *device) (answer, error) {
			return s.call("DELETE", api+"/me", d.access, fields{"password": password})
		},
		func(s *server, d *device) (answer, error) {
			return answer{Status: http.StatusOK}, w.tryOnce("another pass phrase\n", "user", "set-password", d.name,
				"--password-stdin")
		},
	} {
		a, err := end(w.servers[1], doomed[i])
		if i == 3 && err != nil { // a command may refuse before it has done anything
			continue
		}
		if err != nil || !a.ok() {
			return fmt.Errorf("end %d, with Redis away: %v, %v: %s", i, a, err, a.Body)
		}
		for _, s := range w.servers {
			if a, err := s.getInTheEnd("/me", doomed[i].access); err != nil ||
				a.Status != http.StatusUnauthorized {
				return fmt.Errorf("GET /me after end %d: %v, %v", i, a, err)
			}
			if a, err := s.refresh(doomed[i].refresh); err != nil || !a.refused() {
				return fmt.Errorf("refresh after end %d: %v, %v", i, a, err)
			}
		}
	}
	return nil
}

func TestRedisAway(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name  string
		begin func(w *onOwnEngines)
		end   func(w *onOwnEngines)
		lost  bool // whether the sessions' records are gone
	}{
		{"killed and back with its data", func(w *onOwnEngines) {
			w.redis.Kill()
		}, func(w *onOwnEngines) { w.redis.Restart() }, false},
		{"killed and back empty", func(w *onOwnEngines) { w.redis.Kill() }, func(w *onOwnEngines) {
			w.redis = cachetest.Start(w.t)
			w.toRedis.retarget("127.0.0.1:" + w.redis.Port())
		}, true},
		{"paused", func(w *onOwnEngines) { w.redis.Pause() }, func(w *onOwnEngines) { w.redis.Resume() }, false},
		{"silent", func(w *onOwnEngines) {
			w.toRedis.faulty(func(message) verdict { return hold })
		}, func(w *onOwnEngines) { w.toRedis.release() }, false},
	} {
		t.Run(strings.ReplaceAll(fault.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			w := newOnOwnEngines(t, "?"+briefly)
			p := w.populate()
			var doomed []*device
			for range 4 {
				doomed = append(doomed, w.servers[0].register())
			}
			fault.begin(w)
			if err := w.whileRedisIsAway(p); err != nil {
				t.Errorf("while Redis is away: %v", err)
			}
			if err := w.endedWhileRedisIsAway(doomed); err != nil {
				t.Errorf("while Redis is away: %v", err)
			}
			fault.end(w)
			w.recovers()
			p.over = append(p.over, doomed[:3]...)
			if err := w.holds(p, fault.lost); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if fault.lost {
				if err := w.servers[0].expectCode(p.live.refresh, "session_expired"); err != nil {
					t.Errorf("the records are gone: %v", err)
				}
			}
			p.live = w.servers[1].login(p.live.name)
			if err := w.holds(p, false); err != nil {
				t.Errorf("after signing in again: %v", err)
			}
		})
	}
}

func TestRedisFlushed(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "")
	p := w.populate()
	direct := cachetest.Open(t, w.redis.URL())
	testenv.Must(t, direct.FlushAll(t.Context()).Err())
	testenv.Must(t, direct.ScriptFlush(t.Context()).Err())
	if err := w.holds(p, true); err != nil {
		t.Error(err)
	}
	if err := w.servers[0].expectCode(p.live.refresh, "session_expired"); err != nil {
		t.Error(err)
	}
	// Nothing was revoked, so no answer says so.
	if err := w.expectEvents(p.live); err != nil {
		t.Error(err)
	}
	again := w.servers[1].login(p.live.name)
	if err := w.audit(w.servers, false, again); err != nil {
		t.Errorf("after signing in again: %v", err)
	}
}

// A replica takes over that lacks the last writes: rotations, ends, a sign-in, a mark.
func TestRedisFailsOverToAReplicaThatIsBehind(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "")
	s := w.serve(patient(w.env)...) // no answer may be "not now" before the fail-over
	replica := cachetest.Start(t, "--replicaof", "127.0.0.1 "+w.redis.Port())
	follower := cachetest.Open(t, replica.URL())

	rotated, untouched, loggedOut, endedAll, reused := s.register(), s.register(), s.register(), s.register(), s.register()
	robbed, strict := s.register(), w.strict()
	stolen := reused.refresh
	for range 2 {
		reused.keep(s.must(strict.refresh(reused.refresh)))
	}
	eventually(t, "the replica follows", func() bool { return follows(t, follower) })
	if err := follower.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil { // from here on it misses every write
		t.Fatal(err)
	}

	revived, kept := rotated.refresh, robbed.refresh
	for range 3 {
		rotated.keep(s.must(s.refresh(rotated.refresh)))
		robbed.keep(s.must(strict.refresh(robbed.refresh)))
	}
	s.must(s.call("POST", api+"/logout", "", fields{"refresh_token": loggedOut.refresh}))
	s.must(s.call("DELETE", api+"/sessions", endedAll.access, nil))
	testenv.Must(t, s.expectCode(stolen, "refresh_token_reused"))
	late := s.login(rotated.name)
	w.redis.Kill()
	w.toRedis.retarget("127.0.0.1:" + replica.Port())
	w.recovers()

	for _, d := range []*device{loggedOut, endedAll, reused} {
		for _, s := range w.servers {
			if err := s.expectOver(d); err != nil {
				t.Error(err)
			}
		}
		if err := w.audit(w.servers, false, d); err != nil {
			t.Error(err)
		}
	}
	for _, d := range []*device{untouched, rotated} {
		if err := w.audit(w.servers, false, d); err != nil {
			t.Errorf("nobody is signed out: %v", err)
		}
	}
	if err := w.audit(w.servers, true, late); err != nil {
		t.Errorf("a sign-in that the replica has missed: %v", err)
	}
	// A token that the fail-over has revived may be a late duplicate as long as the grace window
	// since the owner's return is open. After that, it counts as reuse.
	if err := s.expectCode(revived, "invalid_refresh_token"); err != nil {
		t.Error(err)
	}
	robbed.keep(s.must(strict.refreshInTheEnd(robbed.refresh)))
	if err := s.expectCode(kept, "refresh_token_reused"); err != nil {
		t.Error(err)
	}
	for _, d := range []*device{rotated, robbed} {
		if err := w.audit(w.servers, false, d); err != nil {
			t.Error(err)
		}
	}
}

// follows reports whether a replica has everything that its primary has written.
func follows(t *testing.T, replica *redis.Client) bool {
	info, err := replica.Info(t.Context(), "replication").Result()
	if err != nil || !strings.Contains(info, "master_link_status:up") {
		return false
	}
	keys, err := replica.Keys(t.Context(), "*").Result()
	return err == nil && len(keys) >= 5*2 && !strings.Contains(info, "master_sync_in_progress:1")
}

// churn refreshes one chain per device, one request after the other, on both servers in turn, until
// it is stopped. Whatever breaks meanwhile, no refresh may say that a session has ended. A request
// without a proper answer is sent again with the same token.
//
// A token that is sent again after the grace window counts as reuse (sessions may have been
// stolen), and its client has to sign in. That is right only if the window has passed since the
// rotation, which cannot be earlier than the first request with the token.
type churn struct {
	devices []*device
	stop    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	rotated int
	late    []string // sign-ins after a token had no answer within the window, and what happened in that time
	errs    []error
}

func (w *onOwnEngines) churn(n int) *churn {
	const window = time.Minute // AUTH_REFRESH_GRACE
	c := &churn{stop: make(chan struct{})}
	var servers []*server
	for _, s := range w.servers { // a client that waits longer than the window loses its session
		client := &http.Client{Transport: s.http.Transport, Timeout: window / 6}
		servers = append(servers, &server{t: w.t, url: s.url, http: client})
	}
	for i := range n {
		d := w.servers[0].register()
		c.devices = append(c.devices, d)
		c.done.Go(func() {
			first, lost, later := time.Time{}, 0, 0 // of the current token
			for round := i; ; round++ {
				select {
				case <-c.stop:
					return
				default:
				}
				if first.IsZero() {
					first = time.Now()
				}
				a, err := servers[round%2].refresh(d.refresh)
				if silence := time.Since(first); err == nil && a.Code == "refresh_token_reused" && silence > window {
					if a, err = w.servers[round%2].signInEventually(d.name); err == nil && a.ok() {
						c.mu.Lock()
						c.late = append(c.late,
							fmt.Sprintf("after %v, %d requests without an answer and %d answered 503",
								silence.Round(time.Second), lost, later))
						c.mu.Unlock()
					}
				}
				c.mu.Lock()
				switch {
				case err != nil:
					lost++
				case a.ok():
					d.keep(a)
					first, lost, later = time.Time{}, 0, 0
					c.rotated++
				case a.Status == http.StatusServiceUnavailable:
					later++
				default:
					c.errs = append(c.errs,
						fmt.Errorf("refresh answered %v: %s; the token was first sent %v ago", a, a.Body,
							time.Since(first)))
					c.mu.Unlock()
					return // another attempt would get the same answer
				}
				c.mu.Unlock()
				if err != nil || !a.ok() {
					time.Sleep(10 * time.Millisecond) // as a client does when told to wait
				}
			}
		})
	}
	return c
}

// progress waits until n more refreshes have succeeded.
func (c *churn) progress(t testing.TB, n int) {
	t.Helper()
	c.mu.Lock()
	goal := c.rotated + n
	c.mu.Unlock()
	eventually(t, "refreshes go on", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.rotated >= goal })
}

func (c *churn) end() {
	close(c.stop)
	c.done.Wait()
}

// Under load, engines crash and come back, freeze and continue, and lose every connection.
func TestEnginesCrashUnderRefreshes(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "?"+briefly)
	p := w.populate()
	c := w.churn(8)
	for range rounds(1, 15) {
		c.progress(t, 100)
		w.database.Crash(t)
		a, err := w.servers[0].call("GET", api+"/me", p.live.access, nil)
		if err := w.servers[0].expectUnavailable("GET /me without a database", a, err); err != nil {
			t.Error(err)
		}
		w.database.Start(t)
		c.progress(t, 100)
		w.redis.Kill()
		w.redis.Restart()
		c.progress(t, 100)
		w.redis.Pause()
		a, err = w.servers[1].refresh(p.live.refresh)
		if err := w.servers[1].expectUnavailable("refresh while Redis is paused", a, err); err != nil {
			t.Error(err)
		}
		w.redis.Resume()
		c.progress(t, 100)
		for _, wire := range w.wires {
			wire.cutAll()
		}
		c.progress(t, 100)
		if err := w.holds(p, false); err != nil {
			t.Error(err)
		}
	}
	c.end()
	for _, err := range c.errs {
		t.Errorf("under load: %v", err)
	}
	for _, d := range c.devices {
		if err := w.audit(w.servers, false, d); err != nil {
			t.Error(err)
		}
		if err := w.expectEvents(d); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d refreshes", c.rotated)
}

// The database crashes at each step of an end, from the commit's first message on. A confirmed end
// holds, and an unconfirmed one has happened completely or not at all.
func TestDatabaseCrashesAtEachStepOfAnEnd(t *testing.T) {
	t.Parallel()
	w := newOnOwnEngines(t, "")
	s := w.servers[0]
	toDatabase := w.wires[0]
	for k := 1; ; k += rounds(4, 1) {
		d := s.register()
		other := s.login(d.name)
		var mu sync.Mutex
		n := 0
		toDatabase.faulty(func(message) verdict {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == k {
				w.database.Crash(t)
				return cut
			}
			return pass
		})
		a, err := s.call("DELETE", api+"/sessions", d.access, nil)
		mu.Lock()
		struck := n >= k
		mu.Unlock()
		toDatabase.release()
		if err != nil || !a.proper() {
			t.Fatalf("message %d: %v, %v", k, a, err)
		}
		if !struck {
			return
		}
		w.database.Start(t)
		w.recovers()
		if a.ok() {
			if err := w.expectEvents(d, "AllSessionsRevoked"); err != nil {
				t.Errorf("message %d: %v", k, err)
			}
		}
		if err := w.audit(w.servers, false, d, other); err != nil {
			t.Errorf("message %d, answered %v: %v", k, a, err)
		}
	}
}
