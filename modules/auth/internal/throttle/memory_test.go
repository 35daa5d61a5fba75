package throttle

import (
	"testing"
	"time"
)

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := defaults(t)
	cfg.MemoryEntries = 1000
	cfg.GlobalBurst = 1_000_000
	l := w.node(cfg)
	for n := range 20_000 {
		guess(t, l, Attempt{Account: name(n), Address: address(n)})
		if entries, _ := l.local.stats(); entries > 1000 {
			t.Fatalf("%d entries, want at most 1000", entries)
		}
	}
	entries, evicted := l.local.stats()
	ranked := 0
	for n := range l.local.ranks {
		ranked += l.local.ranks[n].Len()
	}
	if entries != ranked || evicted == 0 {
		t.Fatalf("%d entries, %d ranked, %d evicted", entries, ranked, evicted)
	}
}

func TestSprayingCannotFlushWhatMatters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := defaults(t)
	cfg.MemoryEntries = 1000
	cfg.GlobalBurst = 1_000_000
	l := w.node(cfg)
	remember(t, l, "alice", address(100_001))
	for n := range 20 {
		guess(t, l, Attempt{Account: "alice", Address: address(100_100 + n)})
	}
	stolen := remember(t, l, "bob", address(100_002))
	for range 5 {
		guess(t, l, Attempt{Account: "bob", Address: address(100_003), DeviceToken: stolen})
	}
	for n := range 20_000 {
		guess(t, l, Attempt{Account: name(n), Address: address(n)})
	}
	if s, _ := l.State(t.Context(), "alice"); s.Failures != 20 {
		t.Errorf("%d failures of an account under attack remain, want 20", s.Failures)
	}
	if ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(100_001)}); err != nil ||
		!known(ticket) {
		t.Errorf("the owner's address is forgotten (%v)", err)
	}
	if ticket, err := l.Begin(t.Context(),
		Attempt{Account: "bob", Address: address(100_003), DeviceToken: stolen}); err == nil && known(ticket) {
		t.Error("a used-up device token counts as new")
	}
}

func TestWhatHasExpiredGoesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := defaults(t)
	cfg.MemoryEntries = 1000
	l := w.node(cfg)
	for n := range 300 { // three entries for each
		guess(t, l, Attempt{Account: name(n), Address: address(n)})
	}
	w.clock.advance(25 * time.Hour) // one failure is remembered for a day
	guess(t, l, Attempt{Account: "alice", Address: address(1000)})
	if entries, evicted := l.local.stats(); entries > 10 || evicted != 0 {
		t.Fatalf("%d entries and %d evicted, want the expired ones gone", entries, evicted)
	}
}

func TestAnOwnerLeavesNothingButWhatIsKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.node(defaults(t))
	for n := range 100 {
		signIn(t, l, Attempt{Account: name(n), Address: address(1)})
	}
	if entries, _ := l.local.stats(); entries != 100 {
		t.Fatalf("%d entries after 100 sign-ins, want the 100 known pairs", entries)
	}
}
