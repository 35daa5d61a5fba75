package sessiontest_test

import (
	"fmt"
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
)

// history gives times to the calls: if together, each overlaps its neighbours; otherwise they
// follow each other.
func history(together bool, calls ...sessiontest.Call) []sessiontest.Call {
	for i := range calls {
		calls[i].Client = i
		calls[i].Begin, calls[i].End = int64(10*i), int64(10*i+5)
		if together {
			calls[i].Begin, calls[i].End = 0, 1000
		}
	}
	return calls
}

func refresh(token string, outcome session.Outcome, next string) sessiontest.Call {
	return sessiontest.Call{Token: token, Outcome: outcome, Next: next}
}

func lost(token string) sessiontest.Call { return sessiontest.Call{Token: token, Lost: true} }

func TestHistoriesOfOneChainPass(t *testing.T) {
	t.Parallel()
	end := sessiontest.Call{Ends: true}
	for name, calls := range map[string][]sessiontest.Call{
		"nothing": nil,
		"a chain": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("c", session.Rotated, "d")),
		"replays": history(false, refresh("a", session.Rotated, "b"),
			refresh("a", session.Replayed, "b"), refresh("b", session.Rotated, "c"), refresh("b", session.Replayed,
				"c")),
		"replays seen before what they replay": history(true, refresh("a", session.Replayed, "b"),
			refresh("a", session.Replayed, "b"), refresh("a", session.Rotated, "b")),
		"an older token yields the newest": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("a", session.Replayed, "c"), refresh("c", session.Rotated,
				"d"), refresh("a", session.Replayed, "d")),
		"an older token, too late to matter": history(true, refresh("a", session.Rotated, "b"),
			refresh("a", session.Replayed, "b"), refresh("b", session.Rotated, "c"), refresh("a", session.Replayed,
				"c")),
		"reuse stops": history(false, refresh("a", session.Rotated, "b"),
			refresh("x", session.Reused, ""), refresh("b", session.Reused, "")),
		"ended": history(false, refresh("a", session.Rotated, "b"), end,
			refresh("b", session.Gone, ""), end),
		"ended while it turns": history(true, refresh("a", session.Rotated, "b"), end,
			refresh("a", session.Gone, "")),
		"lost, and happened": history(false, lost("a"), refresh("a", session.Replayed, "b"),
			refresh("b", session.Rotated, "c")),
		"lost, and did not": history(false, lost("a"), refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c")),
		"lost reuse, happened": history(false, refresh("a", session.Rotated, "b"), lost("x"),
			refresh("b", session.Reused, "")),
		"lost twice": history(false, lost("a"), lost("a"),
			refresh("a", session.Replayed, "b"), lost("b"), refresh("a", session.Replayed, "c"), refresh("b",
				session.Replayed, "c")),
		"lost end, happened": history(false, sessiontest.Call{Ends: true, Lost: true},
			refresh("a", session.Gone, "")),
		"lost end, did not yet": history(false, sessiontest.Call{Ends: true, Lost: true},
			refresh("a", session.Rotated, "b")),
	} {
		if err := sessiontest.Linearizable("a", calls); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHistoriesOfAnythingElseFail(t *testing.T) {
	t.Parallel()
	end := sessiontest.Call{Ends: true}
	for name, calls := range map[string][]sessiontest.Call{
		"two successors": history(true, refresh("a", session.Rotated, "b"),
			refresh("a", session.Rotated, "c")),
		"a replay of another": history(true, refresh("a", session.Rotated, "b"),
			refresh("a", session.Replayed, "c")),
		"a successor that is the same": history(false, refresh("a", session.Rotated, "a")),
		"a successor that is nothing":  history(false, refresh("a", session.Rotated, "")),
		"signed out by a race": history(true, refresh("a", session.Rotated, "b"),
			refresh("a", session.Reused, "")),
		"lost for no reason": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Gone, "")),
		"an older token rotated": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("a", session.Rotated, "d")),
		"an older token is reuse": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("a", session.Reused, "")),
		"an older token yields an old": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("a", session.Replayed, "b")),
		"the way from an old is lost": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "c"), refresh("a", session.Superseded, "")),
		"a token that comes back": history(false, refresh("a", session.Rotated, "b"),
			refresh("b", session.Rotated, "a")),
		"rotated after reuse": history(false, refresh("a", session.Rotated, "b"),
			refresh("x", session.Reused, ""), refresh("b", session.Rotated, "c")),
		"rotated after the end": history(false, end, refresh("a", session.Rotated, "b")),
		"replayed after the end": history(false, refresh("a", session.Rotated, "b"), end,
			refresh("a", session.Replayed, "b")),
		"gone before the end": history(false, refresh("a", session.Gone, ""), end),
		"refused, and rotated again": {
			{Client: 1, Begin: 0, End: 100, Ends: true},
			{Client: 2, Begin: 0, End: 10, Token: "a", Outcome: session.Gone},
			{Client: 3, Begin: 20, End: 30, Token: "a", Outcome: session.Rotated, Next: "b"},
		},
		"lost, then both ways": history(false, lost("a"), refresh("a", session.Replayed, "b"),
			refresh("a", session.Replayed, "c")),
	} {
		if err := sessiontest.Linearizable("a", calls); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

// Beyond the bound the link is lost, but not before.
func TestHistoriesLongerThanTheChain(t *testing.T) {
	t.Parallel()
	token := func(i int) string { return fmt.Sprintf("token-%d", i) }
	var calls []sessiontest.Call
	for i := range session.MaxLinks + 1 {
		calls = append(calls, refresh(token(i), session.Rotated, token(i+1)))
	}
	newest := token(session.MaxLinks + 1)
	good := append(calls, refresh(token(0), session.Superseded, ""), refresh(token(1), session.Replayed, newest))
	if err := sessiontest.Linearizable(token(0), history(false, good...)); err != nil {
		t.Error(err)
	}
	for _, wrong := range []sessiontest.Call{refresh(token(0), session.Replayed, newest),
		refresh(token(0), session.Reused, ""), refresh(token(1), session.Superseded, "")} {
		if err := sessiontest.Linearizable(token(0),
			history(false, append(calls[:len(calls):len(calls)], wrong)...)); err == nil {
			t.Errorf("%v passes", wrong)
		}
	}
}

// The orders to check are as many as the subsets of the refused calls times those of the replayed
// ones. Trying them all would take more than a minute.
func TestALongRaceWithAnEndIsCheckedAtOnce(t *testing.T) {
	t.Parallel()
	calls := []sessiontest.Call{{Ends: true}}
	for range 40 {
		calls = append(calls, refresh("a", session.Gone, ""), refresh("a", session.Replayed, "b"))
	}
	calls = append(calls, refresh("a", session.Rotated, "b"))
	if err := sessiontest.Linearizable("a", history(true, calls...)); err != nil {
		t.Error(err)
	}
}
