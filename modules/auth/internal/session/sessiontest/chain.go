package sessiontest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/testenv"
)

// Call is one request about a session, as its client saw it.
type Call struct {
	Client     int   // the client, which sends one request at a time
	Begin, End int64 // in nanoseconds of one clock for all calls

	Ends    bool            // the session was ended; otherwise this is a refresh
	Lost    bool            // no answer came: it may have happened or not
	Token   string          // the presented token of a refresh
	Outcome session.Outcome // of a refresh; Gone also means that it was refused because the session was ended
	Next    string          // when Rotated or Replayed: the successor
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

// short names a token in a report, since all tokens of a session begin alike.
func short(token string) string { return "…" + token[max(0, len(token)-6):] }

// chain is a session as one register: the current token and those before it, oldest first, each
// followed by a space.
type chain struct {
	current, before string
	over            byte // 0 live, 'r' stopped for reuse, 'e' ended
}

// unseen stands for a current token that no client knows yet, because the answer was lost.
const unseen = "?"

// since is how many tokens were rotated since this one was current; 0 if it never was.
func (s chain) since(token string) int {
	_, after, found := strings.Cut(s.before, token+" ")
	if !found {
		return 0
	}
	return 1 + strings.Count(after, " ")
}

// step lists the states that a call may lead to. Without any, the call cannot have happened.
func (s chain) step(c Call) []any {
	stopped := chain{current: s.current, before: s.before, over: 'r'}
	since := s.since(c.Token)
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
		next := chain{current: c.Next, before: s.before + c.Token + " "}
		if c.Lost {
			next.current = unseen
			return []any{s, next}
		}
		if c.Next == s.current || c.Next == "" || s.since(c.Next) > 0 {
			return nil
		}
		return possible(c, session.Rotated, next)
	case since > session.MaxLinks:
		return possible(c, session.Superseded, s)
	case since > 0:
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

// Linearizable reports whether the calls about one session can have happened one after the other,
// each between its begin and its end, on a single chain of tokens that starts with first. All calls
// must lie within one grace window, so that only tokens outside of the chain are reuse. A nil error
// means yes.
func Linearizable(first string, calls []Call) error {
	if err := noForks(calls); err != nil {
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
	switch porcupine.CheckOperationsTimeout(model, operations, testenv.Patience) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%d calls could not be checked within %v", len(calls), testenv.Patience)
	}
	return fmt.Errorf("no order of the %d calls makes one chain:\n%s", len(calls), report(calls))
}

// beforeTheEnd decides about an answered end and what was refused because of it, and returns the
// other calls, none of which lasts beyond the end. The model implies it, as it implies [noForks],
// but any refused call may come before any other, and there are too many such orders to try.
//
// The end may be taken to have happened at the first possible moment: when it, and all calls that
// were not refused, had begun.
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
			c.End = min(c.End, moment+1) // it still overlaps what began at that moment
			before = append(before, c)
		case c.End < moment:
			return nil, fmt.Errorf("the session was over before its end:\n%s", report(calls))
		}
	}
	return before, nil
}

// noForks follows from the model, but a fork among many calls has so many orders that trying them
// all takes long.
func noForks(calls []Call) error {
	made, rotated, lost := map[string]bool{}, map[string]bool{}, 0
	for _, c := range calls {
		switch {
		case c.Ends:
		case c.Lost:
			lost++
		case c.Outcome == session.Rotated:
			if rotated[c.Token] || made[c.Next] {
				return fmt.Errorf("the chain forks at %s:\n%s", short(c.Token), report(calls))
			}
			rotated[c.Token], made[c.Next] = true, true
		}
	}
	for _, c := range calls {
		if c.Ends || c.Lost || c.Outcome != session.Replayed || made[c.Next] {
			continue
		}
		if lost--; lost < 0 {
			return fmt.Errorf("nobody made %s:\n%s", short(c.Next), report(calls))
		}
		made[c.Next] = true // made by a call whose answer was lost
	}
	return nil
}

// report shows the distinct calls in the order of their beginning, and counts repeats.
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
