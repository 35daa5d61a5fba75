package sessiontest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Call is one request about a session as its client saw it.
type Call struct {
	Client     int   // who asked; one client asks one thing at a time
	Begin, End int64 // in nanoseconds of one clock for all calls

	Ends    bool            // the session was ended; else this is a refresh
	Lost    bool            // no answer came: it may have happened or not
	Token   string          // of a refresh: what was presented
	Outcome session.Outcome // of a refresh: Gone also says that it was refused because the session was ended
	Next    string          // when Turned or Replayed: the successor
}

func (c Call) String() string {
	switch {
	case c.Ends:
		return "end"
	case c.Lost:
		return "refresh(" + short(c.Token) + ") lost"
	case c.Next != "":
		return "refresh(" + short(c.Token) + ") " + c.Outcome.String() + " " + short(c.Next)
	}
	return "refresh(" + short(c.Token) + ") " + c.Outcome.String()
}

// short names a token in a report: all tokens of a session begin alike.
func short(token string) string { return "…" + token[max(0, len(token)-6):] }

// chain is a session as one register: the token that is current and the one before it.
type chain struct {
	current, previous string
	over              byte // 0 live, 'r' stopped for reuse, 'e' ended
}

// unseen is a current token that no client has been told yet, because the answer was lost.
const unseen = "?"

// step lists the states that a call may lead to; none means that it cannot have happened.
func (s chain) step(c Call) []any {
	stopped := chain{current: s.current, previous: s.previous, over: 'r'}
	switch {
	case s.over == 'e' && !c.Ends:
		return possible(c, session.Gone, s)
	case c.Ends && c.Lost:
		return []any{s, chain{over: 'e'}}
	case c.Ends:
		return []any{chain{over: 'e'}}
	case s.over == 'r':
		return possible(c, session.Reused, s)
	case c.Token == s.current:
		next := chain{current: c.Next, previous: c.Token}
		if c.Lost {
			next.current = unseen
			return []any{s, next}
		}
		if c.Next == s.current || c.Next == "" {
			return nil
		}
		return possible(c, session.Turned, next)
	case c.Token == s.previous:
		if !c.Lost && s.current == unseen {
			s.current = c.Next
		}
		if !c.Lost && c.Next != s.current {
			return nil
		}
		return possible(c, session.Replayed, s)
	case c.Lost:
		return []any{s, stopped}
	}
	return possible(c, session.Reused, stopped)
}

func possible(c Call, want session.Outcome, then chain) []any {
	if !c.Lost && c.Outcome != want {
		return nil
	}
	return []any{then}
}

// Linearizable reports whether the calls about one session can have happened one after the
// other, each between its begin and its end, on a single chain of tokens that starts with
// first. All refreshes must lie within the grace window of the rotation they ask for, so that
// the only reuse there is comes from older tokens. A nil error means yes.
func Linearizable(first string, calls []Call) error {
	if err := oneSuccessorEach(calls); err != nil {
		return err
	}
	calls, err := beforeTheEnd(calls)
	if err != nil {
		return err
	}
	register := porcupine.NondeterministicModel{
		Init: func() []any { return []any{chain{current: first}} },
		Step: func(state, input, _ any) []any { return state.(chain).step(input.(Call)) },
		DescribeOperation: func(input, _ any) string {
			return input.(Call).String()
		},
	}
	model := register.ToModel()
	operations := make([]porcupine.Operation, len(calls))
	for i, c := range calls {
		end := c.End
		if c.Lost {
			end = 1<<63 - 1 // it may still happen
		}
		operations[i] = porcupine.Operation{ClientId: c.Client, Input: c, Call: c.Begin, Return: end}
	}
	switch porcupine.CheckOperationsTimeout(model, operations, time.Minute) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%d calls could not be checked within a minute", len(calls))
	}
	return fmt.Errorf("no order of the %d calls makes one chain:\n%s", len(calls), report(calls))
}

// beforeTheEnd decides about an end that was answered and what was refused because of it, and
// returns the other calls, none of which lasts longer than to the end. It is implied by the
// model, as is [oneSuccessorEach]: but any of the calls refused may come before any other, and
// there are too many such orders to try them all.
//
// The end may be taken to have happened at the first possible moment: when it, and all that was
// not refused, had begun.
func beforeTheEnd(calls []Call) ([]Call, error) {
	var end Call
	ends := 0
	for _, c := range calls {
		if c.Ends {
			end = c
			ends++
		}
	}
	if ends != 1 || end.Lost {
		return calls, nil
	}
	refused := func(c Call) bool { return !c.Lost && c.Outcome == session.Gone }
	moment := end.Begin
	for _, c := range calls {
		if !c.Ends && !c.Lost && !refused(c) {
			moment = max(moment, c.Begin)
		}
	}
	if moment > end.End {
		return nil, fmt.Errorf("the session was refreshed after its end:\n%s", report(calls))
	}
	var before []Call
	for _, c := range calls {
		switch {
		case c.Ends:
		case !refused(c):
			c.End = min(c.End, moment+1) // which still overlaps what began at that moment
			before = append(before, c)
		case c.End < moment:
			return nil, fmt.Errorf("the session was over before its end:\n%s", report(calls))
		}
	}
	return before, nil
}

// oneSuccessorEach is implied by the model, but a fork among many calls has so many orders
// that to try them all takes long.
func oneSuccessorEach(calls []Call) error {
	successor, turned := map[string]string{}, map[string]bool{}
	for _, c := range calls {
		if c.Ends || c.Lost || c.Outcome != session.Turned && c.Outcome != session.Replayed {
			continue
		}
		if known, ok := successor[c.Token]; ok && known != c.Next || c.Outcome == session.Turned && turned[c.Token] {
			return fmt.Errorf("the chain forks at %s:\n%s", short(c.Token), report(calls))
		}
		successor[c.Token] = c.Next
		turned[c.Token] = turned[c.Token] || c.Outcome == session.Turned
	}
	return nil
}

// report shows the calls that differ, in order of their beginning, and counts the repeats.
func report(calls []Call) string {
	calls = slices.Clone(calls)
	slices.SortStableFunc(calls, func(a, b Call) int { return cmp.Compare(a.Begin, b.Begin) })
	count := map[string]int{}
	var order []string
	for _, c := range calls {
		if count[c.String()]++; count[c.String()] == 1 {
			order = append(order, c.String())
		}
	}
	var b strings.Builder
	for _, line := range order[:min(len(order), 40)] {
		fmt.Fprintf(&b, "  %4d × %s\n", count[line], line)
	}
	return b.String()
}
