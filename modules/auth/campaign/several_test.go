package campaign

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// newOnSeveral is an installation of two servers on several Redis servers.
func newOnSeveral(t *testing.T, redisURL string) *onOwnEngines {
	t.Helper()
	w := &onOwnEngines{wired: &wired{installation: installationOn(t, genuine(t), dbtest.PostgresURL(t), redisURL,
		"AUTH_THROTTLE_ENABLED=true", "AUTH_THROTTLE_REGISTER_PER_MINUTE=1000000")}}
	w.servers = []*server{w.serve(), w.serve()}
	return w
}

// newcomers register one after the other, until they are stopped. Each answer is a success or "not
// now".
type newcomers struct {
	stop chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex
	all  []*device
	errs []error
	away int
	sent []int // requests that each of them has had answered
}

func (w *onOwnEngines) newcomers(n int) *newcomers {
	c := &newcomers{stop: make(chan struct{}), sent: make([]int, n)}
	for i := range n {
		c.done.Go(func() {
			for round := i; ; round++ {
				select {
				case <-c.stop:
					return
				default:
				}
				d := &device{name: "u" + strings.ReplaceAll(uuid.NewString(), "-", "")}
				a, err := w.servers[round%2].call("POST", api+"/register", "",
					fields{"username": d.name, "password": password})
				c.mu.Lock()
				c.sent[i]++
				switch {
				case err != nil:
					c.errs = append(c.errs, err)
				case a.ok():
					d.keep(a)
					c.all = append(c.all, d)
				case a.Status == http.StatusServiceUnavailable && a.RetryAfter != "":
					c.away++
				default:
					c.errs = append(c.errs, fmt.Errorf("the answer to a registration: %v: %s", a, a.Body))
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

func (c *newcomers) so() []*device {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*device(nil), c.all...)
}

// anew waits until all requests that are under way now have been answered.
func (c *newcomers) anew(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	before := append([]int(nil), c.sent...)
	c.mu.Unlock()
	eventually(t, "the newcomers have answers", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, n := range c.sent {
			if n <= before[i] {
				return false
			}
		}
		return true
	})
}

// replicated waits until a replica has everything that its primary has written so far.
func replicated(t *testing.T, primary, replica *cachetest.Server) {
	t.Helper()
	offset := func(server *cachetest.Server, name string) int64 {
		info, err := cachetest.Open(t, server.URL()).Info(t.Context(), "replication").Result()
		testenv.Must(t, err)
		_, rest, _ := strings.Cut(info, name+":")
		text, _, _ := strings.Cut(rest, "\r")
		n, _ := strconv.ParseInt(text, 10, 64)
		return n
	}
	written := offset(primary, "master_repl_offset")
	eventually(t, "the replica has what was written", func() bool {
		return offset(replica, "slave_repl_offset") >= written
	})
}

// shaken is the installation whose Redis loses one server after another.
type shaken struct {
	t    *testing.T
	w    *onOwnEngines
	over *population
	load *churn
	new  *newcomers
}

func shake(t *testing.T, redisURL string) *shaken {
	t.Helper()
	w := newOnSeveral(t, redisURL)
	return &shaken{t: t, w: w, over: w.populate(), load: w.churn(6), new: w.newcomers(2)}
}

// through lets something fail, and checks the result when everything works again. Sessions that the
// replica had before, and sessions that began after it took over, are live. Ended ones stay ended.
// Only sessions that began in between may be lost.
func (s *shaken) through(what string, sure func(), fail func()) {
	s.t.Helper()
	s.load.progress(s.t, 50)
	before := s.new.so()
	sure()
	fail()
	s.new.anew(s.t)
	between := len(s.new.so())
	s.w.recovers()
	s.load.progress(s.t, 200)
	for _, d := range before {
		a, err := s.w.servers[0].refreshInTheEnd(d.refresh)
		if err != nil || !a.ok() {
			s.t.Errorf("%s: a session that the replica had: %v, %v: %s", what, a, err, a.Body)
			continue
		}
		d.keep(a)
	}
	after, lost := s.new.so(), 0
	for i, d := range after[len(before):] {
		a, err := s.w.servers[1].refreshInTheEnd(d.refresh)
		switch {
		case err == nil && a.ok():
			d.keep(a)
		case err == nil && a.Code == "session_expired" && len(before)+i < between:
			lost++
		default:
			s.t.Errorf("%s: session %d of %d that began since: %v, %v: %s", what, i, len(after)-len(before), a, err,
				a.Body)
		}
	}
	s.t.Logf("%s: of %d sessions during the failure %d were lost; of %d before and %d after, none", what,
		between-len(before), lost, len(before), len(after)-between)
	s.new.mu.Lock()
	s.new.all = append([]*device(nil), before[:min(len(before), 50)]...) // the others need no more checks
	s.new.mu.Unlock()
	for _, d := range s.over.over {
		for _, server := range s.w.servers {
			if err := server.expectOver(d); err != nil {
				s.t.Errorf("%s: %v", what, err)
			}
		}
	}
}

func (s *shaken) end() {
	s.t.Helper()
	close(s.new.stop)
	s.new.done.Wait()
	s.load.end()
	for _, err := range append(s.load.errs, s.new.errs...) {
		s.t.Errorf("under load: %v", err)
	}
	for _, d := range s.load.devices {
		if err := s.w.audit(s.w.servers, false, d); err != nil {
			s.t.Error(err)
		}
		if err := s.w.expectEvents(d); err != nil {
			s.t.Error(err)
		}
	}
	if err := s.w.holds(s.over, false); err != nil {
		s.t.Error(err)
	}
	s.t.Logf("%d refreshes; %d registrations were told to come back later", s.load.rotated, s.new.away)
}

// Nodes of a cluster are killed and hang, and slots move, while people sign in and refresh.
func TestNobodyIsSignedOutWhenAClusterLosesNodes(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	s := shake(t, c.URL())
	for range rounds(1, 10) {
		everything := func() {
			for i := range c.Primaries {
				replicated(t, c.Primaries[i], c.Replicas[i])
			}
		}
		s.through("a node is killed", everything, func() {
			c.Primaries[0].Kill()
			eventually(t, "its replica takes over", func() bool { return c.IsPrimary(c.Replicas[0]) })
		})
		c.Primaries[0].Restart()
		c.Primaries[0], c.Replicas[0] = c.Replicas[0], c.Primaries[0]
		c.AwaitWhole()
		s.through("a node hangs", everything, func() {
			c.Primaries[1].Pause()
			eventually(t, "its replica takes over", func() bool { return c.IsPrimary(c.Replicas[1]) })
			c.Primaries[1].Resume()
		})
		c.Primaries[1], c.Replicas[1] = c.Replicas[1], c.Primaries[1]
		c.AwaitWhole()
		s.through("slots move", everything, func() {
			moved := 0
			for _, d := range s.load.devices {
				s.load.mu.Lock() // its client continues
				access := d.access
				s.load.mu.Unlock()
				slot := slotOf(t, c, access)
				for i, from := range c.Primaries {
					if keys, _ := c.Do(from, "cluster", "countkeysinslot", slot).(int64); keys > 0 {
						c.Move(slot, from, c.Primaries[(i+1)%len(c.Primaries)])()
						moved++
						break
					}
				}
			}
			if moved == 0 {
				t.Error("no slot has moved")
			}
		})
	}
	s.end()
}

// slotOf returns the slot of the user who owns the access token.
func slotOf(t *testing.T, c *cachetest.Cluster, access string) int64 {
	t.Helper()
	_, payload, _ := strings.Cut(access, ".")
	payload, _, _ = strings.Cut(payload, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	testenv.Must(t, err)
	var claims struct {
		Subject string `json:"sub"`
	}
	testenv.Must(t, json.Unmarshal(text, &claims))
	slot, _ := c.Do(c.Primaries[2], "cluster", "keyslot", "{"+claims.Subject+"}").(int64)
	return slot
}

// A primary hangs, comes back as a replica, and takes over again when its successor is killed.
func TestNobodyIsSignedOutWhenSentinelsReplaceThePrimary(t *testing.T) {
	t.Parallel()
	r := cachetest.StartWatched(t)
	s := shake(t, r.URL())
	primary, replica := r.Primary, r.Replica
	for range rounds(1, 10) {
		for _, what := range []string{"hangs", "is killed", "hands over"} {
			s.through("the primary "+what, func() { replicated(t, primary, replica) }, func() {
				switch what {
				case "hangs":
					primary.Pause()
					r.AwaitPrimary(replica)
					primary.Resume()
				case "is killed":
					primary.Kill()
					r.AwaitPrimary(replica)
					primary.Restart()
				default: // the setting of docs/operations.md for losing nothing
					old := cachetest.Open(t, primary.URL())
					testenv.Must(t, old.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err())
					defer old.ConfigSet(t.Context(), "min-replicas-to-write", "0")
					eventually(t, "a Sentinel has started the fail-over", func() bool {
						return cachetest.Open(t, r.Sentinels[0].URL()).Do(t.Context(), "sentinel", "failover",
							cachetest.WatchedName).Err() == nil
					})
					r.AwaitPrimary(replica)
				}
				former := cachetest.Open(t, primary.URL())
				eventually(t, "no server is connected to the former primary", func() bool {
					return !strings.Contains(former.ClientList(t.Context()).Val(), " name=authctl ")
				})
			})
			primary, replica = replica, primary
			eventually(t, "the former primary is a replica", func() bool {
				info := cachetest.Open(t, replica.URL()).Info(t.Context(), "replication").Val()
				return strings.Contains(info, "role:slave") && strings.Contains(info, "master_link_status:up")
			})
		}
	}
	s.end()
}
