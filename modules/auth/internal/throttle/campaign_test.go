package throttle

import (
	"net/netip"
	"testing"
	"time"
)

// Each campaign is what an attacker would do, while the owner goes on signing in.

func TestManyAddressesGuessingAtOneAccount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := l.Remember(t.Context(), "alice", address(100_001))
		l.Remember(t.Context(), "alice", address(100_002))
		guesses := 0
		// A guess from a fresh address every 15 s for two days and more: 12,000 addresses.
		for n := range 12_000 {
			if guess(t, l, Attempt{Account: "alice", Address: address(n)}) {
				guesses++
			}
			if n%500 == 0 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(200_000 + n), Device: phone})
				signIn(t, l, Attempt{Account: "alice", Address: address(100_002)}) // no token, but the address is known
			}
			w.clock.advance(15 * time.Second)
		}
		// 100 in the first day; then one a day.
		if guesses < 20 || guesses > 102 {
			t.Fatalf("%d guesses in 50 hours, want at most 102", guesses)
		}
		s, err := l.State(t.Context(), "alice")
		if err != nil || s.Failures != guesses {
			t.Fatalf("state %+v, %v: the owner's sign-ins from known devices gave the attacker new guesses", s, err)
		}
	})
}

func TestPausingDoesNotBuyMoreThanOneGuessADay(t *testing.T) {
	t.Parallel()
	for _, streak := range []int{1, 4, 19, 50, 99, 1000} { // guesses between two pauses
		w := newWorld(t, nil)
		l, start := w.node(defaults(t)), w.clock.now()
		days := func() int { return int(w.clock.now().Sub(start) / (24 * time.Hour)) }
		guesses := 0
		for n := 0; days() < 365; n++ {
			ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(n)})
			if err != nil {
				w.clock.advance(refusal(t, err))
				continue
			}
			l.Failed(t.Context(), ticket)
			if guesses++; guesses > 100+days() {
				t.Fatalf("%d guesses in %d days, %d at a stretch, want at most 100 and one a day", guesses, days(), streak)
			}
			if guesses%streak == 0 {
				w.clock.advance(time.Duration(streak)*24*time.Hour + time.Second)
			}
		}
	}
}

func TestOneAddressSprayingManyAccounts(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		// Alice shares the address with the attacker: one NAT.
		phone := l.Remember(t.Context(), "alice", address(1))
		l.Remember(t.Context(), "bob", address(1))
		guesses := 0
		for n := range 10_000 { // 100 a second
			if guess(t, l, Attempt{Account: name(n), Address: address(1)}) {
				guesses++
			}
			if n%500 == 499 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(1), Device: phone})
				signIn(t, l, Attempt{Account: "bob", Address: address(1)})
			}
			w.clock.advance(10 * time.Millisecond)
		}
		if want := 200 + 100*10/60; guesses < 200 || guesses > want {
			t.Fatalf("%d of 10,000 accounts tried in 100 s, want 200 to %d", guesses, want)
		}
	})
}

func TestManyAddressesSprayingOnePassword(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := l.Remember(t.Context(), "alice", address(100_001))
		l.Remember(t.Context(), "bob", address(100_002))
		guesses := 0
		for n := range 10_000 { // 1,000 a second, no address and no account twice
			if guess(t, l, Attempt{Account: name(n), Address: address(n)}) {
				guesses++
			}
			if n%500 == 499 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(100_003), Device: phone})
				signIn(t, l, Attempt{Account: "bob", Address: address(100_002)})
			}
			w.clock.advance(time.Millisecond)
		}
		if want := 2000 + 10*600/60; guesses < 2000 || guesses > want {
			t.Fatalf("%d guesses in 10 s, want 2000 to %d", guesses, want)
		}
		// Strangers wait for moments, not for good.
		for n := 20_000; guess(t, l, Attempt{Account: name(n), Address: address(n)}); n++ {
		}
		_, err := l.Begin(t.Context(), Attempt{Account: "carol", Address: address(100_004)})
		w.clock.advance(refusal(t, err))
		signIn(t, l, Attempt{Account: "carol", Address: address(100_004)})
	})
}

func TestRotatingIPv6AddressesInsideA64IsOneAddress(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l, guesses := w.node(defaults(t)), 0
		for n := range 2000 {
			if guess(t, l, Attempt{Account: name(n), Address: v6(0, n)}) {
				guesses++
			}
		}
		if guesses != 200 {
			t.Fatalf("%d guesses, want 200", guesses)
		}
		if !guess(t, l, Attempt{Account: "alice", Address: v6(1, 0)}) {
			t.Fatal("the next /64 pays for its neighbour")
		}
	})
}

func TestRotatingThe64sOfA48IsLimitedTogether(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l, guesses := w.node(defaults(t)), 0
		for n := range 2000 {
			if guess(t, l, Attempt{Account: name(n), Address: v6(n, 0)}) {
				guesses++
			}
		}
		if guesses != 800 {
			t.Fatalf("%d guesses, want 800", guesses)
		}
		if !guess(t, l, Attempt{Account: "alice", Address: netip.MustParseAddr("2001:db8:ffff::1")}) {
			t.Fatal("another /48 pays for its neighbour")
		}
	})
}

// v6 returns a host in one of the 65,536 networks of 2001:db8::/48.
func v6(network, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 6: byte(network >> 8), 7: byte(network), 14: byte(host >> 8), 15: byte(host)})
}

func TestOneAddressCannotSlowStrangersElsewhere(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		for range 3600 { // an hour, a guess a second
			guess(t, l, Attempt{Account: "alice", Address: address(1)})
			w.clock.advance(time.Second)
		}
		// A device that has never been seen, at an address that has never been seen.
		signIn(t, l, Attempt{Account: "alice", Address: address(2)})
	})
}

func TestNodesThatShareARedisShareEveryLimit(t *testing.T) {
	t.Parallel()
	w := onRedis(t)
	nodes, guesses := []*Limiter{w.node(defaults(t)), w.node(defaults(t)), w.node(defaults(t))}, 0
	for n := range 100 {
		if guess(t, nodes[n%3], Attempt{Account: "alice", Address: address(n)}) {
			guesses++
		}
	}
	if guesses != 20 {
		t.Fatalf("%d guesses over three nodes, want 20", guesses)
	}
	// What one node learns of a device holds on the others.
	phone := nodes[0].Remember(t.Context(), "alice", address(1000))
	signIn(t, nodes[1], Attempt{Account: "alice", Address: address(2000), Device: phone})
	signIn(t, nodes[2], Attempt{Account: "alice", Address: address(1000)})
}

func TestAnAddressSharedWithTheOwnerGivesAFewGuesses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := l.Remember(t.Context(), "alice", address(1))
		guesses := 0
		for range 2000 { // in one moment
			if guess(t, l, Attempt{Account: "alice", Address: address(1)}) {
				guesses++
			}
		}
		if guesses != 5 {
			t.Fatalf("%d guesses from the owner's address, want 5", guesses)
		}
		signIn(t, l, Attempt{Account: "alice", Address: address(1), Device: phone})
		if guess(t, l, Attempt{Account: "alice", Address: address(1)}) {
			t.Fatal("the owner's sign-in with a device token gave the neighbour new guesses")
		}
	})
}

func TestAStolenDeviceTokenGivesAFewGuesses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		stolen := l.Remember(t.Context(), "alice", address(1))
		for n := range 20 { // strangers have used up what strangers have
			guess(t, l, Attempt{Account: "alice", Address: address(1000 + n)})
		}
		guesses := 0
		for n := range 1000 {
			if guess(t, l, Attempt{Account: "alice", Address: address(2000 + n), Device: stolen}) {
				guesses++
			}
			w.clock.advance(time.Millisecond)
		}
		if guesses != 5 {
			t.Fatalf("%d guesses with a stolen token, want 5", guesses)
		}
		w.clock.advance(100 * 24 * time.Hour)
		guess(t, l, Attempt{Account: "alice", Address: address(5000)})
		ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(5001), Device: stolen})
		if err == nil && ticket.Known() {
			t.Fatal("time alone gave the thief new guesses")
		}
	})
}

func TestADeviceTokenIsWorthNothingElsewhere(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := l.Remember(t.Context(), "alice", address(1))
		for account, known := range map[string]bool{"alice": true, "bob": false} {
			ticket, err := l.Begin(t.Context(), Attempt{Account: account, Address: address(2), Device: phone})
			if err != nil {
				t.Fatal(err)
			}
			if ticket.Known() != known {
				t.Errorf("known to %s: %t, want %t", account, ticket.Known(), known)
			}
			l.Cancel(t.Context(), ticket)
		}
	})
}

func TestAKnownAddressIsForgottenAfterThirtyDays(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		l.Remember(t.Context(), "alice", address(1))
		for _, known := range []bool{true, false} {
			ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(1)})
			if err != nil {
				t.Fatal(err)
			}
			if ticket.Known() != known {
				t.Errorf("known: %t, want %t", ticket.Known(), known)
			}
			l.Cancel(t.Context(), ticket)
			w.clock.advance(30 * 24 * time.Hour)
		}
	})
}

func TestWhetherThereIsSuchAnAccountChangesNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, w *world) {
		// The package is never told; here the same campaign at two names must meet the same.
		l := w.node(defaults(t))
		for n := range 200 {
			var answers [2]time.Duration
			for i, account := range []string{"alice", "nobody"} {
				ticket, err := l.Begin(t.Context(), Attempt{Account: account, Address: address(1000*i + n/7)})
				if err != nil {
					answers[i] = refusal(t, err)
					continue
				}
				_, until := l.Failed(t.Context(), ticket)
				answers[i] = until.Sub(w.clock.now())
			}
			if answers[0] != answers[1] {
				t.Fatalf("attempt %d: %v for one account and %v for the other", n, answers[0], answers[1])
			}
			w.clock.advance(700 * time.Millisecond)
		}
	})
}
