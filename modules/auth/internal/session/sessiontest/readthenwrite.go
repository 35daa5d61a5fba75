package sessiontest

import (
	"context"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// ReadThenWrite is a store whose Rotate decides in the client by what it has just read. That is the
// first idea of many: right for callers that come one after the other, and wrong for all others.
type ReadThenWrite struct {
	session.Store
	Skew   func() time.Duration
	Write  func(ctx context.Context, one session.Session, r session.Rotation) error // unconditionally
	Sealed func(ctx context.Context, one session.Session) ([]byte, error)

	meet chan struct{}
}

// FindsReadThenWrite fails the test unless the suite finds the fault of the stores that open makes,
// in which each store is a [ReadThenWrite], and no other fault.
func FindsReadThenWrite(t *testing.T, open func(t testing.TB, skew func() time.Duration) ReadThenWrite) {
	meet := make(chan struct{})
	engine := func(t testing.TB, skew func() time.Duration) Engine {
		mutant := open(t, skew)
		mutant.Skew, mutant.meet = skew, meet
		return Engine{Store: mutant, Peer: mutant}
	}
	if err := Named("the current token turns").Run(t, engine); err != nil {
		t.Errorf("the mutant is broken in another way: %v", err)
	}
	err := Named("parallel refreshes make one chain").Run(t, engine)
	if err == nil {
		t.Error("not found")
	}
	t.Log(err) // shows with -v that the check fails for the right reason
}

// Rotate implements [session.Store], wrongly.
func (s ReadThenWrite) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	one, err := s.Get(ctx, r.UserID, r.SessionID)
	if err != nil {
		return session.RotateResult{Outcome: session.Gone}, nil
	}
	// Two calls that have read wait for each other, if there are two.
	select {
	case s.meet <- struct{}{}:
	case <-s.meet:
	case <-time.After(50 * time.Millisecond):
	}
	switch {
	case r.Generation == one.Generation && r.PresentedHash == one.Hash:
		one.Generation, one.Hash, one.UserAgent, one.IP = r.Generation+1, r.NextHash, r.UserAgent, r.IP
		one.LastUsedAt = time.Now().Add(s.Skew()).UTC().Truncate(time.Millisecond)
		one.IdleExpiresAt = one.LastUsedAt.Add(r.IdleTTL)
		return session.RotateResult{Outcome: session.Rotated, Session: one}, s.Write(ctx, one, r)
	case r.Generation+1 == one.Generation:
		sealed, err := s.Sealed(ctx, one)
		return session.RotateResult{Outcome: session.Replayed, Session: one, Links: [][]byte{sealed}}, err
	}
	return session.RotateResult{Outcome: session.Reused, Session: one}, nil
}
