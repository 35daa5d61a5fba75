package campaign

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
)

// parallel is how many clients send at once.
const parallel = 100

// history records the calls about one session.
type history struct {
	begun time.Time
	mu    sync.Mutex
	calls []sessiontest.Call
}

func newHistory() *history { return &history{begun: time.Now()} }

// refresh presents a token and records the outcome. An answer that is neither yes nor no is an
// error, because a healthy server has no reason for it.
func (h *history) refresh(s *server, client int, token string) (answer, error) {
	call := sessiontest.Call{Client: client, Token: token, Begin: int64(time.Since(h.begun))}
	a, err := s.refresh(token)
	call.End = int64(time.Since(h.begun))
	switch {
	case err != nil, a.Status == http.StatusRequestTimeout: // the last: a connection opened long before its first use
		call.Lost = true
	case a.ok() && a.Replayed:
		call.Outcome, call.Next = session.Replayed, a.RefreshToken
	case a.ok():
		call.Outcome, call.Next = session.Rotated, a.RefreshToken
	case a.Code == "refresh_token_reused":
		call.Outcome = session.Reused
	case a.Code == "session_revoked", a.Code == "session_expired":
		call.Outcome = session.Gone
	default:
		return a, fmt.Errorf("the answer to a refresh: %v: %s", a, a.Body)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
	return a, err
}

// end records that do has ended the session.
func (h *history) end(client int, do func() error) error {
	call := sessiontest.Call{Client: client, Ends: true, Begin: int64(time.Since(h.begun))}
	err := do()
	call.End = int64(time.Since(h.begun))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
	return err
}

// atOnce starts n calls together and returns the first error.
func atOnce(n int, do func(i int) error) error {
	start, errs := make(chan struct{}), make(chan error, n)
	for i := range n {
		go func() {
			<-start
			errs <- do(i)
		}()
	}
	close(start)
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// oneChain: any number of clients present the same token at once, on any server. All get the same
// next token, and nobody is signed out.
func oneChain(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	d := servers[0].register()
	for round := range rounds(6, 500) {
		h, first := newHistory(), d.refresh
		var mu sync.Mutex
		successors, rotated := map[string]int{}, 0
		err := atOnce(parallel, func(i int) error {
			a, err := h.refresh(servers[i%2], i, first)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if successors[a.RefreshToken]++; !a.Replayed {
				rotated++
			}
			if a.ok() {
				d.keep(a)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := sessiontest.Linearizable(first, h.calls); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if len(successors) != 1 || rotated != 1 || successors[""] > 0 {
			return fmt.Errorf("round %d: %d successors, %d of them not marked as replayed", round, len(successors),
				rotated)
		}
	}
	// There is one session, and only its beginning was announced.
	ids, err := servers[1].sessions(d)
	if err != nil {
		return err
	}
	if len(ids) != 1 || ids[0] != d.sid {
		return fmt.Errorf("the user has sessions %v, want %v alone", ids, d.sid)
	}
	list, err := w.events(d.name)
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("%d events, want the registration alone: %v", len(list), list)
	}
	return w.audit(servers, false, d)
}

func TestParallelRefreshesOnTwoServersMakeOneChain(t *testing.T) { eachStore(t, oneChain) }

// duplicatesMakeOneChain has clients that share a session follow its chain, each at its own pace
// and on both servers, and repeat recent requests at random.
func duplicatesMakeOneChain(w *installation) error {
	const clients, steps = 16, 12
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(3, 150) {
		d := servers[0].register()
		h, first := newHistory(), d.refresh
		var mu sync.Mutex
		seen := []string{first}
		err := atOnce(clients, func(i int) error {
			held, rng := first, rand.New(rand.NewPCG(uint64(round), uint64(i)))
			for range steps {
				mu.Lock()
				presented := held
				if rng.IntN(2) == 0 {
					presented = seen[max(0, len(seen)-1-rng.IntN(8))]
				}
				mu.Unlock()
				a, err := h.refresh(servers[rng.IntN(2)], i, presented)
				if err != nil {
					return err
				}
				if !a.ok() {
					return fmt.Errorf("the answer to a client of a live session: %v: %s", a, a.Body)
				}
				held = a.RefreshToken
				mu.Lock()
				if !slices.Contains(seen, held) {
					seen = append(seen, held)
					d.keep(a)
				}
				mu.Unlock()
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := sessiontest.Linearizable(first, h.calls); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := w.expectEvents(d); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := w.audit(servers, false, d); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func TestDuplicatesOnTwoServersMakeOneChain(t *testing.T) { eachStore(t, duplicatesMakeOneChain) }
