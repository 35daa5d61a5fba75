package campaign

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
)

// ending is one of the ways in which a session ends. victim is the session that ends; other belongs
// to the same user.
type ending struct {
	name string
	do   func(w *installation, s *server, victim, other *device) (answer, error)
	all  bool // whether it ends the other one too
}

const newPassword = "another horse, another battery"

var endings = []ending{
	{"logout by refresh token", func(_ *installation, s *server, victim, _ *device) (answer, error) {
		return s.call("POST", api+"/logout", "", fields{"refresh_token": victim.refresh})
	}, false},
	{"logout by access token", func(_ *installation, s *server, victim, _ *device) (answer, error) {
		return s.call("POST", api+"/logout", victim.access, nil)
	}, false},
	{"ended from another session", func(_ *installation, s *server, victim, other *device) (answer, error) {
		return s.call("DELETE", api+"/sessions/"+victim.sid.String(), other.access, nil)
	}, false},
	{"all but the current one ended", func(_ *installation, s *server, _, other *device) (answer, error) {
		return s.call("DELETE", api+"/sessions?except=current", other.access, nil)
	}, false},
	{"all ended", func(_ *installation, s *server, _, other *device) (answer, error) {
		return s.call("DELETE", api+"/sessions", other.access, nil)
	}, true},
	{"password changed in another session", func(_ *installation, s *server, _, other *device) (answer, error) {
		a, err := s.call("POST", api+"/password", other.access,
			fields{"current_password": password, "new_password": newPassword})
		if err == nil && a.ok() {
			other.keep(a)
		}
		return a, err
	}, false},
	{"revoked by a client", func(_ *installation, s *server, victim, _ *device) (answer, error) {
		return s.call("POST", "/oauth2/revoke", "", url.Values{"token": {victim.access}})
	}, false},
	{"account disabled", func(w *installation, _ *server, victim, _ *device) (answer, error) {
		return answer{Status: http.StatusOK}, w.try("", "user", "disable", victim.name)
	}, true},
	{"account deleted", func(_ *installation, s *server, victim, _ *device) (answer, error) {
		return s.call("DELETE", api+"/me", victim.access, fields{"password": password})
	}, true},
}

// endsHold: refreshes race with the end of their session. Once the end is answered, no refresh that
// starts later succeeds on either server, and no access token of the session is accepted, not even
// one that a racing refresh has just returned.
func endsHold(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(len(endings), 30*len(endings)) {
		e := endings[round%len(endings)]
		if err := endHolds(w, servers, e); err != nil {
			return fmt.Errorf("round %d, %s: %w", round, e.name, err)
		}
	}
	return nil
}

func endHolds(w *installation, servers []*server, e ending) error {
	const racing = 24
	victim := servers[0].register()
	other, bystander := servers[1].login(victim.name), servers[1].register()
	h, first := newHistory(), victim.refresh

	var mu sync.Mutex
	before := &device{name: victim.name, access: victim.access, refresh: victim.refresh, sid: victim.sid}
	handedOut := []*device{before}
	err := atOnce(racing+1, func(i int) error {
		if i == racing/2 {
			return h.end(i, func() error {
				a, err := e.do(w, servers[i%2], before, other)
				if err == nil && !a.ok() {
					err = fmt.Errorf("the answer to the end: %v: %s", a, a.Body)
				}
				return err
			})
		}
		a, err := h.refresh(servers[i%2], i, first)
		if err == nil && a.ok() {
			mu.Lock()
			defer mu.Unlock()
			d := &device{name: victim.name}
			d.keep(a)
			handedOut = append(handedOut, d)
		}
		return err
	})
	if err != nil {
		return err
	}
	// The following requests start after the answer.
	for _, d := range handedOut {
		for n, s := range servers {
			if err := s.expectOver(d); err != nil {
				return fmt.Errorf("server %d: %w", n, err)
			}
			if _, err := h.refresh(s, racing+1, d.refresh); err != nil {
				return err
			}
		}
	}
	if err := sessiontest.Linearizable(first, h.calls); err != nil {
		return err
	}
	for n, s := range servers {
		var err error
		if e.all {
			err = s.expectOver(other)
		} else {
			err = s.expectLive(other, false)
		}
		if err != nil {
			return fmt.Errorf("the user's other session on server %d: %w", n, err)
		}
	}
	if err := w.audit(servers, false, victim, other); err != nil {
		return err
	}
	if err := w.audit(servers, false, bystander); err != nil {
		return fmt.Errorf("another user: %w", err)
	}
	return nil
}

func TestAnEndHoldsAgainstRefreshesThatRaceWithIt(t *testing.T) { eachStore(t, endsHold) }
