package feed

import (
	"strconv"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// A snapshot of a million facts has a thousand pages. What is kept of them is bounded, and not kept for longer than
// somebody can use it.
func TestPagesAreKeptForAWhile(t *testing.T) {
	t.Parallel()
	p := &pages{list: map[string]*shared{}}
	kept := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.list)
	}
	p.mu.Lock()
	for i := range 2 * maxShared {
		p.keep(strconv.Itoa(i), new(shared), time.Hour)
	}
	again := new(shared)
	p.keep("0", again, time.Hour) // in the place of the one that is too old
	if len(p.list) != maxShared || p.list["0"] != again {
		t.Errorf("%d pages are kept", len(p.list))
	}
	clear(p.list)
	newer := new(shared)
	p.keep("a", new(shared), time.Millisecond)
	p.keep("b", new(shared), time.Millisecond)
	p.keep("b", newer, time.Hour)
	p.mu.Unlock()
	testenv.Eventually(t, "what is too old goes", func() bool { return kept() == 1 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list["b"] != newer {
		t.Error("a newer page has gone with the former one")
	}
}
