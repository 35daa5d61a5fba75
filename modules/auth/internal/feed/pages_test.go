package feed

import (
	"strconv"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// A snapshot of a million facts has a thousand pages. The number of kept pages is bounded, and none
// is kept longer than followers can use it.
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
	// Followers move forward, so the newest pages are the useful ones.
	if len(p.list) != maxShared || p.list["0"] != nil || p.list[strconv.Itoa(maxShared)] == nil {
		t.Errorf("%d pages are kept, including the first one: %v", len(p.list), p.list["0"] != nil)
	}
	again := new(shared)
	last := strconv.Itoa(2*maxShared - 1)
	p.keep(last, again, time.Hour) // replaces the outdated page
	if len(p.list) != maxShared || len(p.order) != maxShared || p.list[last] != again {
		t.Errorf("%d pages are kept", len(p.list))
	}
	clear(p.list)
	p.order = nil
	older, newer := new(shared), new(shared)
	p.keep("a", new(shared), time.Millisecond)
	p.keep("b", older, time.Hour)
	p.keep("b", newer, time.Hour)
	p.mu.Unlock()
	p.drop("b", older) // as its timer does if it has fired already
	testenv.Eventually(t, "outdated pages are dropped", func() bool { return kept() == 1 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list["b"] != newer {
		t.Error("a newer page was dropped with the older one")
	}
}
