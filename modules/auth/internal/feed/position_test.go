package feed

import (
	"errors"
	"slices"
	"testing"
)

func TestAPositionContainsWhatHadCommitted(t *testing.T) {
	t.Parallel()
	p, err := parseSnapshot("90:100:90,95")
	if err != nil {
		t.Fatal(err)
	}
	for xid, want := range map[uint64]bool{1: true, 89: true, 90: false, 91: true, 95: false, 99: true, 100: false,
		200: false} {
		if got := p.contains(xid); got != want {
			t.Errorf("contains(%d) = %v", xid, got)
		}
	}
	if got := p.snapshot(); got != "90:100:90,95" {
		t.Errorf("written as %s", got)
	}
	earlier, later := position{next: 92, open: []uint64{90}}, position{next: 101, open: []uint64{95}}
	for _, c := range []struct {
		a, b position
		want bool
	}{{earlier, p, true}, {p, later, true}, {later, p, false}, {p, earlier, false}, {p, p, true}, {position{}, p,
		true}} {
		if got := c.a.within(c.b); got != c.want {
			t.Errorf("%v within %v = %v", c.a, c.b, got)
		}
	}
}

func TestACursorComesBackAsItWas(t *testing.T) {
	t.Parallel()
	many := position{next: 5000}
	for xid := uint64(1); xid <= 2*mostOpen; xid++ {
		many.open = append(many.open, xid*2)
	}
	for _, c := range []cursor{
		{incarnation: 7, seen: position{next: 1}},
		{incarnation: 1<<64 - 1, seen: position{next: 1<<62 + 7, open: []uint64{1, 5, 1<<62 + 6}}},
		{incarnation: 7, seen: position{next: 9}, paging: true, after: 1000, asOf: 1,
			since: position{next: 3, open: []uint64{2}}},
		{incarnation: 7, seen: position{next: 9}, paging: true},
	} {
		text := c.encode()
		got, err := decodeCursor(text)
		if err != nil || got.encode() != text || !slices.Equal(got.seen.open, c.seen.open) ||
			got.seen.next != c.seen.next || got.paging != c.paging || got.after != c.after {
			t.Errorf("%+v became %+v, %v", c, got, err)
		}
	}
	// A cursor that would be too long says less, never more.
	got, err := decodeCursor(cursor{incarnation: 7, seen: many}.encode())
	if err != nil || !got.seen.within(many) || got.seen.contains(2) || !got.seen.contains(1) {
		t.Errorf("of many open transactions: %+v, %v", got.seen, err)
	}
	if _, err := decodeCursor("AgAA"); !errors.Is(err, ErrGone) {
		t.Errorf("of another version: %v", err)
	}
}

func FuzzCursor(f *testing.F) {
	f.Add(cursor{incarnation: 7, seen: position{next: 9, open: []uint64{3, 5}}}.encode())
	f.Add(cursor{incarnation: 7, seen: position{next: 9}, paging: true, after: 4, asOf: 5,
		since: position{next: 3}}.encode())
	f.Fuzz(func(t *testing.T, text string) {
		c, err := decodeCursor(text)
		if err != nil {
			return
		}
		again, err := decodeCursor(c.encode())
		if err != nil || again.encode() != c.encode() {
			t.Errorf("%q: %+v became %+v, %v", text, c, again, err)
		}
		if !slices.IsSorted(c.seen.open) || len(c.seen.open) > 0 && c.seen.open[len(c.seen.open)-1] >= c.seen.next {
			t.Errorf("%q: %+v is no position", text, c.seen)
		}
	})
}
