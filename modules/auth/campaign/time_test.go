package campaign

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// untilRefused ends sessions on one server while another server is asked about each, again and
// again. It measures how long after the answer the other server still says yes. That must be never:
// the order is asserted, and the times are only logged.
func untilRefused(w *installation, what string, servers []*server, times int) {
	w.t.Helper()
	ways := []struct {
		name string
		end  func(s *server, d *device) (answer, error)
	}{
		{"logout", func(s *server, d *device) (answer, error) {
			return s.call("POST", api+"/logout", "", fields{"refresh_token": d.refresh})
		}},
		{"end all", func(s *server, d *device) (answer, error) {
			return s.call("DELETE", api+"/sessions", d.access, nil)
		}},
	}
	for _, way := range ways {
		var fromCall, fromAnswer []time.Duration
		for range times {
			d := w.signedIn(servers[0])
			started, refused := make(chan struct{}), make(chan time.Time, 1)
			late := make(chan time.Time, 1) // the start of the last accepted request
			go func() {
				close(started)
				var last time.Time
				for {
					begin := time.Now()
					a, err := servers[1].call("GET", api+"/me", d.access, nil)
					if err == nil && a.Status == http.StatusUnauthorized {
						refused <- time.Now()
						late <- last
						return
					}
					last = begin
				}
			}()
			<-started
			called := time.Now()
			servers[0].must(way.end(servers[0], d))
			answered := time.Now()
			at := <-refused
			if last := <-late; last.After(answered) {
				w.t.Errorf("%s, %s: a request that started %v after the answer was accepted", what, way.name,
					last.Sub(answered))
			}
			fromCall, fromAnswer = append(fromCall, at.Sub(called)), append(fromAnswer, max(0, at.Sub(answered)))
		}
		w.t.Logf("%-22s %-8s called → refused elsewhere: median %v, longest %v; answered → refused: median %v, longest %v (%d rounds)",
			what, way.name, median(fromCall), slices.Max(fromCall), median(fromAnswer), slices.Max(fromAnswer),
			len(fromCall))
	}
}

func median(list []time.Duration) time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2].Round(10 * time.Microsecond)
}

// signedIn is a device that signed in before anything broke, or a new one.
func (w *installation) signedIn(s *server) *device {
	if len(w.spare) == 0 {
		return s.register()
	}
	d := w.spare[0]
	w.spare = w.spare[1:]
	return d
}

func TestHowLongAnEndTakesToReachAnotherServer(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newInstallation(t, genuine(t), store)
			untilRefused(w, store, []*server{w.serve(), w.serve()}, rounds(10, 300))
		})
	}
	t.Run("redis_away", func(t *testing.T) {
		t.Parallel()
		redis := cachetest.Start(t)
		w := installationOn(t, genuine(t), dbtest.PostgresURL(t), redis.URL())
		servers := []*server{w.serve(), w.serve()}
		for range 2 * rounds(10, 300) {
			w.spare = append(w.spare, servers[0].register())
		}
		redis.Kill()
		untilRefused(w, "redis killed", servers, rounds(10, 300))
	})
	t.Run("redis_silent", func(t *testing.T) {
		t.Parallel()
		redis := cachetest.Start(t)
		w := installationOn(t, genuine(t), dbtest.PostgresURL(t), redis.URL()+"?"+briefly)
		servers := []*server{w.serve(), w.serve()}
		for range 2 * rounds(4, 60) {
			w.spare = append(w.spare, servers[0].register())
		}
		redis.Pause()
		untilRefused(w, "redis paused", servers, rounds(4, 60))
		redis.Resume()
	})
}

// No token claims to live longer than its session can, whatever the settings.
func tokensEndWithTheSession(w *installation) error {
	servers := []*server{w.serve(), w.serve("AUTH_REFRESH_TOKEN_TTL=3s")}
	d, begun := servers[0].register(), time.Now()
	for i := 0; i < 4; i++ {
		a, err := servers[i%2].refreshInTheEnd(d.refresh)
		if err == nil && a.Code == "session_expired" && time.Since(begun) > time.Second { // a slow machine
			d, begun, i = servers[0].register(), time.Now(), -1
			continue
		}
		d.keep(servers[0].must(a, err))
		if a.AccessTokenExpiresAt.After(a.RefreshTokenExpiresAt) {
			return fmt.Errorf("the access token lives until %v, its session until %v", a.AccessTokenExpiresAt,
				a.RefreshTokenExpiresAt)
		}
	}
	// The absolute end comes however often the session was refreshed.
	d = servers[0].register()
	eventually(w.t, "the session ends", func() bool {
		a, err := servers[0].refresh(d.refresh)
		if err == nil && a.ok() {
			d.keep(a)
		}
		return err == nil && a.Code == "session_expired"
	})
	return nil
}

func TestTokensEndWithTheSession(t *testing.T) {
	eachStore(t, tokensEndWithTheSession, "AUTH_SESSION_MAX_AGE=4s", "AUTH_REFRESH_TOKEN_TTL=1h",
		"AUTH_ACCESS_TOKEN_TTL=5h")
}

// A lower limit on the age of sessions applies to existing ones at once: the database remembers
// ended sessions only for that time.
func aLowerAgeHoldsAtOnce(w *installation) error {
	generous, strict := w.serve(), w.serve("AUTH_SESSION_MAX_AGE=2s")
	d := generous.register()
	w.after(2 * time.Second)
	if err := strict.expectCode(d.refresh, "session_expired"); err != nil {
		return err
	}
	if live, err := strict.active(d.refresh); err != nil || live {
		return fmt.Errorf("introspection of a session that is too old: active %v, %v", live, err)
	}
	return w.audit([]*server{generous}, false, d) // nobody has stopped it
}

func TestALowerAgeHoldsAtOnce(t *testing.T) { eachStore(t, aLowerAgeHoldsAtOnce) }
