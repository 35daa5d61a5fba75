package throttle

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Each campaign does what an attacker would do, while the owner goes on signing in.

func TestManyAddressesGuessingAtOneAccount(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := remember(t, l, "alice", address(100_001))
		remember(t, l, "alice", address(100_002))
		guesses := 0
		// For more than two days, a guess from a new address every 15 s: 12,000 addresses.
		for n := range w.fewer(12_000, 12) {
			if guess(t, l, Attempt{Account: "alice", Address: address(n)}) {
				guesses++
			}
			if n%500 == 0 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(200_000 + n), DeviceToken: phone})
				// without a token, but from a known address
				signIn(t, l, Attempt{Account: "alice", Address: address(100_002)})
			}
			w.clock.advance(15 * time.Second)
		}
		// 80 in the first day, then one a day.
		if guesses < 20 || guesses > 82 {
			t.Fatalf("%d guesses in 50 hours, want at most 82", guesses)
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
		w := newWorld(t)
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
			if guesses++; guesses > 80+days() {
				t.Fatalf("%d guesses in %d days, %d at a stretch, want at most 80 and one a day", guesses, days(),
					streak)
			}
			if guesses%streak == 0 {
				w.clock.advance(time.Duration(streak)*24*time.Hour + time.Second)
			}
		}
	}
}

func TestOneAddressSprayingManyAccounts(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		// Alice shares her address with the attacker behind a NAT.
		phone := remember(t, l, "alice", address(1))
		remember(t, l, "bob", address(1))
		guesses := 0
		for n := range w.fewer(10_000, 10) { // 100 a second
			if guess(t, l, Attempt{Account: name(n), Address: address(1)}) {
				guesses++
			}
			if n%500 == 499 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(1), DeviceToken: phone})
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
	onEach(t, func(t *testing.T, w *world) {
		cfg := defaults(t)
		cfg.GlobalBurst = w.fewer(2000, 10)
		l := w.node(cfg)
		phone := remember(t, l, "alice", address(100_001))
		remember(t, l, "bob", address(100_002))
		guesses := 0
		for n := range w.fewer(10_000, 10) { // 1,000 a second, each from a new address at a new account
			if guess(t, l, Attempt{Account: name(n), Address: address(n)}) {
				guesses++
			}
			if n%500 == 499 {
				phone = signIn(t, l, Attempt{Account: "alice", Address: address(100_003), DeviceToken: phone})
				signIn(t, l, Attempt{Account: "bob", Address: address(100_002)})
			}
			w.clock.advance(time.Millisecond)
		}
		if want := cfg.GlobalBurst + 10*600/60; guesses < cfg.GlobalBurst || guesses > want {
			t.Fatalf("%d guesses in 10 s, want %d to %d", guesses, cfg.GlobalBurst, want)
		}
		// Strangers wait for moments, not for ever.
		for n := 20_000; guess(t, l, Attempt{Account: name(n), Address: address(n)}); n++ {
		}
		_, err := l.Begin(t.Context(), Attempt{Account: "carol", Address: address(100_004)})
		w.clock.advance(refusal(t, err))
		signIn(t, l, Attempt{Account: "carol", Address: address(100_004)})
	})
}

func TestRotatingIPv6AddressesInsideA64IsOneAddress(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l, guesses := w.node(defaults(t)), 0
		for n := range w.fewer(2000, 5) {
			if guess(t, l, Attempt{Account: name(n), Address: v6(0, n)}) {
				guesses++
			}
		}
		if guesses != 200 {
			t.Fatalf("%d guesses, want 200", guesses)
		}
		if !guess(t, l, Attempt{Account: "alice", Address: v6(1, 0)}) {
			t.Fatal("the next /64 is limited too")
		}
	})
}

func TestRotatingThe64sOfA48IsLimitedTogether(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		cfg := defaults(t)
		cfg.PrefixBurst = w.fewer(800, 8)
		l, guesses := w.node(cfg), 0
		for n := range w.fewer(2000, 8) {
			if guess(t, l, Attempt{Account: name(n), Address: v6(n, 0)}) {
				guesses++
			}
		}
		if guesses != cfg.PrefixBurst {
			t.Fatalf("%d guesses, want %d", guesses, cfg.PrefixBurst)
		}
		if !guess(t, l, Attempt{Account: "alice", Address: netip.MustParseAddr("2001:db8:ffff::1")}) {
			t.Fatal("another /48 is limited too")
		}
	})
}

// v6 returns a host in one of the 65,536 networks of 2001:db8::/48.
func v6(network, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 6: byte(network >> 8), 7: byte(network),
		14: byte(host >> 8), 15: byte(host)})
}

func TestOneAddressCannotSlowStrangersElsewhere(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		for range w.fewer(3600, 6) { // one guess a second, for an hour
			guess(t, l, Attempt{Account: "alice", Address: address(1)})
			w.clock.advance(time.Second)
		}
		// A new device at a new address.
		signIn(t, l, Attempt{Account: "alice", Address: address(2)})
	})
}

func TestNodesThatShareARedisShareEveryLimit(t *testing.T) {
	t.Parallel()
	nodesShareEveryLimit(t, onRedis(t))
}

func TestNodesThatShareAPostgresShareEveryLimit(t *testing.T) {
	t.Parallel()
	nodesShareEveryLimit(t, onPostgres(t))
}

func nodesShareEveryLimit(t *testing.T, w *world) {
	t.Helper()
	nodes, guesses := []*Limiter{w.node(defaults(t)), w.node(defaults(t)), w.node(defaults(t))}, 0
	for n := range 100 {
		if guess(t, nodes[n%3], Attempt{Account: "alice", Address: address(n)}) {
			guesses++
		}
	}
	if guesses != 20 {
		t.Fatalf("%d guesses over three nodes, want 20", guesses)
	}
	// What one node learns about a device holds on the other nodes.
	phone := remember(t, nodes[0], "alice", address(1000))
	signIn(t, nodes[1], Attempt{Account: "alice", Address: address(2000), DeviceToken: phone})
	signIn(t, nodes[2], Attempt{Account: "alice", Address: address(1000)})
}

func TestAnAddressSharedWithTheOwnerGivesAFewGuesses(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := remember(t, l, "alice", address(1))
		guesses := 0
		for range 2000 { // all at one moment
			if guess(t, l, Attempt{Account: "alice", Address: address(1)}) {
				guesses++
			}
		}
		if guesses != 5 {
			t.Fatalf("%d guesses from the owner's address, want 5", guesses)
		}
		signIn(t, l, Attempt{Account: "alice", Address: address(1), DeviceToken: phone})
		if guess(t, l, Attempt{Account: "alice", Address: address(1)}) {
			t.Fatal("the owner's sign-in with a device token gave the neighbour new guesses")
		}
	})
}

func TestAStolenDeviceTokenGivesAFewGuesses(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		stolen := remember(t, l, "alice", address(1))
		for n := range 20 { // strangers have used up their guesses
			guess(t, l, Attempt{Account: "alice", Address: address(1000 + n)})
		}
		guesses := 0
		for n := range 1000 {
			if guess(t, l, Attempt{Account: "alice", Address: address(2000 + n), DeviceToken: stolen}) {
				guesses++
			}
			w.clock.advance(time.Millisecond)
		}
		if guesses != 5 {
			t.Fatalf("%d guesses with a stolen token, want 5", guesses)
		}
		w.clock.advance(100 * 24 * time.Hour)
		guess(t, l, Attempt{Account: "alice", Address: address(5000)})
		ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(5001), DeviceToken: stolen})
		if err == nil && known(ticket) {
			t.Fatal("time alone gave the thief new guesses")
		}
	})
}

// An attacker has collected tokens of the account, uses addresses that the account has signed in
// from, and has any number of other addresses. The owner goes on signing in from their own devices,
// which gives the attacker nothing.
func TestAnyHoardOfKnownDevicesHasTheGuessesOfOneAccount(t *testing.T) {
	t.Parallel()
	for _, tokens := range []int{8, 200} {
		onEach(t, func(t *testing.T, w *world) {
			days := w.fewer(40, 20)
			l := w.node(defaults(t))
			hoard := make([]Attempt, tokens+tokens/4)
			for n := range hoard {
				hoard[n] = Attempt{Account: "alice", Address: address(n % (tokens / 2))}
				hoard[n].DeviceToken = remember(t, l, "alice", hoard[n].Address)
				if n >= tokens {
					hoard[n].DeviceToken = ""
				}
			}
			phone, home := remember(t, l, "alice", address(100_001)), Attempt{Account: "alice",
				Address: address(100_002)}
			remember(t, l, "alice", home.Address)
			guesses, fresh := 0, 1000
			for day := range days {
				for range 4 {
					for _, a := range hoard {
						if guess(t, l, a) {
							guesses++
						}
					}
					for range 30 {
						fresh++
						if guess(t, l, Attempt{Account: "alice", Address: address(fresh)}) {
							guesses++
						}
					}
					if tokens < 10 { // even all of them together cannot lock the owner's own tier
						phone = signIn(t, l, Attempt{Account: "alice", Address: address(fresh), DeviceToken: phone})
						signIn(t, l, home)
					}
					w.clock.advance(6 * time.Hour)
				}
				if most := 100 + day; guesses < 30 || guesses > most {
					t.Fatalf("%d guesses by day %d, want at most %d", guesses, day, most)
				}
			}
		})
	}
}

func TestAHoardUsedAtOnceHasNoMoreGuesses(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		var through atomic.Int64
		var wg sync.WaitGroup
		for n := range 200 {
			a := Attempt{Account: "alice", Address: address(n), DeviceToken: remember(t, l, "alice", address(n))}
			for range 5 {
				wg.Go(func() {
					if _, err := l.Begin(context.Background(), a); err == nil {
						through.Add(1)
					}
				})
			}
		}
		wg.Wait()
		if n := through.Load(); n > 40 || n < 30 { // 20 from known devices, and 20 from strangers before the delays
			t.Fatalf("%d of 1000 guesses at once were compared, want 40", n)
		}
	})
}

func TestASessionIsAKnownDeviceOfItsOwn(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		for n := range w.fewer(300, 4) { // strangers are locked out
			guess(t, l, Attempt{Account: "alice", Address: address(n)})
		}
		ask := func(session int) Attempt {
			return Attempt{Account: "alice", Address: address(1000 + session), Session: name(session),
				Owner: ownerOf("alice")}
		}
		guesses := 0
		for session := range w.fewer(50, 2) {
			for range 20 {
				if guess(t, l, ask(session)) {
					guesses++
				}
			}
			if session == 2 { // the owner, with the right password in an own session
				signIn(t, l, ask(2000))
			}
		}
		if guesses != 20 {
			t.Fatalf("%d guesses in 50 sessions, want 20, as for all known devices together", guesses)
		}
	})
}

// After a name has changed hands or a password has changed, what was known before is worthless: it
// neither helps a thief nor harms the present owner.
func TestWhatWasKnownToAFormerOwnerIsWorthNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		var hoard []Attempt
		for n := range 40 {
			a := Attempt{Account: "alice", Address: address(n)}
			a.DeviceToken = l.Remember(t.Context(), "alice", "former", a.Address)
			if n%2 == 0 {
				a.DeviceToken = ""
			}
			hoard = append(hoard, a)
		}
		phone := l.Remember(t.Context(), "alice", "present", address(5000))
		trusted := 0
		for _, a := range hoard {
			ticket, err := l.Begin(t.Context(), a)
			if err != nil {
				refusal(t, err)
				continue
			}
			if known(ticket) && l.Trusts(ticket, "present") {
				trusted++
			}
			if l.Trusts(ticket, "") == known(ticket) {
				t.Fatal("a known device is not trusted, or a stranger is")
			}
			l.Cancel(t.Context(), ticket)
			a.Stranger = true
			if ticket, err = l.Begin(t.Context(), a); err != nil {
				refusal(t, err)
				continue
			}
			if known(ticket) {
				t.Fatal("a stranger counts as a known device")
			}
			l.Failed(t.Context(), ticket)
		}
		if trusted != 0 {
			t.Errorf("%d devices of the former owner are trusted", trusted)
		}
		ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(6000), DeviceToken: phone})
		if err != nil || !known(ticket) || !l.Trusts(ticket, "present") {
			t.Errorf("the present owner's phone is not known: %v", err)
		}
	})
}

// A clock that was ahead has written to the counters, and was then corrected.
func TestAClockThatWasAheadStopsNobodyAndFreesNobody(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{time.Hour, 5 * 365 * 24 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) { stoppedByAClock(t, ahead) })
	}
}

func stoppedByAClock(t *testing.T, ahead time.Duration) {
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		w.clock.advance(ahead)
		for n := range 300 { // the account, this address, and everybody
			guess(t, l, Attempt{Account: "alice", Address: address(1)})
			guess(t, l, Attempt{Account: "alice", Address: address(2 + n)})
			for _, account := range []string{name(n), name(300 + n)} {
				guess(t, l, Attempt{Account: account, Address: address(1)})
			}
		}
		for range 5 { // never ended
			_, _ = l.Begin(t.Context(), Attempt{Account: "dave", Address: address(1)})
			_, _ = l.Begin(t.Context(), Attempt{Account: "dave", Address: address(2)})
		}
		if err := l.Unlock(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		remember(t, l, "carol", address(9))
		w.clock.advance(-ahead)

		signIn(t, l, Attempt{Account: "alice", Address: address(1)})
		signIn(t, l, Attempt{Account: "dave", Address: address(1)})
		guesses := 0
		for n := range 100 {
			if guess(t, l, Attempt{Account: "bob", Address: address(1000 + n)}) {
				guesses++
			}
		}
		if guesses != 20 {
			t.Errorf("%d guesses at an account that was unlocked in the future, want 20", guesses)
		}
		ticket, err := l.Begin(t.Context(), Attempt{Account: "carol", Address: address(9)})
		if err != nil || known(ticket) {
			t.Errorf("an address that was known in the future is known: %v", err)
		}
	})
}

func TestADeviceTokenIsWorthNothingElsewhere(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		phone := remember(t, l, "alice", address(1))
		for account, want := range map[string]bool{"alice": true, "bob": false} {
			ticket, err := l.Begin(t.Context(), Attempt{Account: account, Address: address(2), DeviceToken: phone})
			if err != nil {
				t.Fatal(err)
			}
			if known(ticket) != want {
				t.Errorf("known to %s: %t, want %t", account, known(ticket), want)
			}
			l.Cancel(t.Context(), ticket)
		}
	})
}

func TestAKnownAddressIsForgottenAfterThirtyDays(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		l := w.node(defaults(t))
		remember(t, l, "alice", address(1))
		for _, want := range []bool{true, false} {
			ticket, err := l.Begin(t.Context(), Attempt{Account: "alice", Address: address(1)})
			if err != nil {
				t.Fatal(err)
			}
			if known(ticket) != want {
				t.Errorf("known: %t, want %t", known(ticket), want)
			}
			l.Cancel(t.Context(), ticket)
			w.clock.advance(30 * 24 * time.Hour)
		}
	})
}

func TestWhetherThereIsSuchAnAccountChangesNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *world) {
		// The package does not know whether an account exists; the same campaign at two names must
		// get the same answers.
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
