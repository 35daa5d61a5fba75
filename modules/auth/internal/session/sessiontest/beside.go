package sessiontest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// RunBeside shows that servers of this release and of the previous one can use the same sessions at
// the same time, as they do while an installation is upgraded or downgraded. Of the engines that
// open makes, Store belongs to this release and Peer to the previous one, which keeps no links: it
// answers the current token and the one before it, and ends a session for an older one. That fault
// stays with it.
func RunBeside(t *testing.T, open Open) {
	checks := []Check{
		{"this release takes on what the one before left", takesOver},
		{"the release before takes on what this one left", isTakenBack},
		{"no mixture of both ends a session", mixture},
	}
	for _, name := range []string{
		"a session begins as it was asked for", "the current token turns", "absolute expiry never moves",
		"the previous token yields the same successor in the window", "the window does not slide",
		"the previous token after the window is reuse", "without a window the previous token is reuse at once",
		"an expired session is gone", "a deleted session is gone", "the same call sent again changes nothing",
		"a limit names the least recently used", "a limit holds when many sign in at once",
		"parallel refreshes make one chain", "lost answers are made good", "nothing turns after an end was answered",
	} {
		checks = append(checks, Named(name))
	}
	run(t, open, checks)
}

// by lets one of the two stores do it.
func (p *probe) by(store session.Store, presented session.Token) (session.RotateResult, session.Token) {
	rotated, next, err := refresh(p.ctx, store, p.codec, presented)
	p.must(err)
	return rotated, next
}

func (p *probe) rotateBy(store session.Store, presented session.Token) session.Token {
	rotated, next := p.by(store, presented)
	p.equal("refresh with the current token", rotated.Outcome, session.Rotated)
	return next
}

func (p *probe) beginBy(store session.Store) session.Token {
	token := p.codec.Mint(uuid.New(), uuid.New(), 1)
	_, err := store.Create(p.ctx, session.Start{ID: token.SessionID(), UserID: token.UserID(), Hash: token.Hash(),
		MaxAge: maxAge, IdleTTL: idleTTL})
	p.must(err)
	return token
}

// takesOver: what the previous release has rotated is answered as well as can be known.
func takesOver(p *probe) {
	for rotations := range 5 {
		for _, late := range []bool{false, true} {
			tokens := []session.Token{p.beginBy(p.Peer)}
			for i := range rotations {
				tokens = append(tokens, p.rotateBy(p.Peer, tokens[i]))
			}
			if late {
				p.clock.Advance(grace + time.Second)
			}
			where := fmt.Sprintf("after %d rotations by the release before, late: %v", rotations, late)
			for i := range rotations {
				want := session.Superseded // it may be a late duplicate, so it ends nothing
				switch {
				case late:
					want = session.Reused
				case i == rotations-1:
					want = session.Replayed
				}
				if late && i > 0 {
					break // the session has ended
				}
				rotated, got := p.by(p.Store, tokens[i])
				p.equal(fmt.Sprintf("%s: outcome for token %d", where, i), rotated.Outcome, want)
				if want == session.Replayed {
					p.equal(where+": what it gets", got == tokens[rotations], true)
				}
			}
			if late && rotations > 0 {
				continue
			}
			next := p.rotateBy(p.Store, tokens[rotations])
			last := p.rotateBy(p.Store, next)
			for i, token := range tokens {
				if i < rotations-1 {
					rotated, _ := p.by(p.Store, token)
					p.equal(fmt.Sprintf("%s and two by this one: outcome for token %d", where, i), rotated.Outcome,
						session.Superseded)
					continue
				}
				rotated, got := p.by(p.Store, token)
				p.equal(fmt.Sprintf("%s and two by this one: outcome for token %d", where, i), rotated.Outcome,
					session.Replayed)
				p.equal(where+" and two by this one: what it gets", got == last, true)
			}
			p.clock.Advance(grace + grace/100)
			rotated, _ := p.by(p.Store, tokens[0])
			p.equal(where+": outcome for the first after its window", rotated.Outcome, session.Reused)
		}
	}
}

// isTakenBack: the previous release finds what it knows.
func isTakenBack(p *probe) {
	for rotations := range 5 {
		tokens := []session.Token{p.beginBy(p.Store)}
		for i := range rotations {
			tokens = append(tokens, p.rotateBy(p.Store, tokens[i]))
		}
		where := fmt.Sprintf("after %d rotations by this release", rotations)
		if rotations > 0 {
			rotated, got := p.by(p.Peer, tokens[rotations-1])
			p.equal(where+": outcome for the previous token", rotated.Outcome, session.Replayed)
			p.equal(where+": what it gets", got == tokens[rotations], true)
		}
		next := p.rotateBy(p.Peer, tokens[rotations])
		rotated, got := p.by(p.Peer, tokens[rotations])
		p.equal(where+": outcome for what it has rotated", rotated.Outcome, session.Replayed)
		p.equal(where+": what that gets", got == next, true)
		next = p.rotateBy(p.Peer, next)
		p.clock.Advance(grace + time.Second)
		next = p.rotateBy(p.Peer, next)
		rotated, _ = p.by(p.Peer, tokens[0])
		p.equal(where+": outcome for the first, later", rotated.Outcome, session.Reused)
		rotated, _ = p.by(p.Store, next)
		p.equal(where+": outcome for the newest of a stopped session", rotated.Outcome, session.Reused)
	}
}

// mixture rotates with either release at random. A late duplicate at this release ends nothing
// within its window, and gets the newest token if it gets any. Once all windows have closed it is
// reuse.
func mixture(p *probe) {
	for seed := range uint64(24) {
		rng := rand.New(rand.NewPCG(seed, 2))
		stores := []session.Store{p.Store, p.Peer}
		tokens := []session.Token{p.beginBy(stores[rng.IntN(2)])}
		var ends []time.Duration // of all windows but the last
		var ours []bool          // whether this release has rotated it
		replayed := 0
		for step := range 60 {
			where := fmt.Sprintf("seed %d step %d", seed, step)
			newest, now := tokens[len(tokens)-1], p.clock.Skew()
			switch n := rng.IntN(10); {
			case n < 1:
				p.clock.Advance(grace*time.Duration(rng.IntN(3)+1)/4 + grace/40)
			case n < 5:
				by := rng.IntN(2)
				tokens = append(tokens, p.rotateBy(stores[by], newest))
				ends, ours = append(ends, now+grace), append(ours, by == 0)
			case n < 6 && len(ends) > 0 && now < ends[len(ends)-1]:
				rotated, got := p.by(stores[rng.IntN(2)], tokens[len(tokens)-2])
				p.equal(where+": the previous token", rotated.Outcome, session.Replayed)
				p.equal(where+": what it gets", got == newest, true)
			case len(ends) > 0:
				i := max(0, len(ends)-1-rng.IntN(5))
				if now >= ends[i] {
					continue
				}
				rotated, got := p.by(p.Store, tokens[i])
				known := true
				for _, one := range ours[i:] {
					known = known && one
				}
				switch {
				case rotated.Outcome == session.Replayed && got == newest:
					replayed++
				case rotated.Outcome == session.Superseded && !known:
				default:
					p.failf("%s: a late duplicate of %d rotations ago was answered %v, all rotated by this release: %v",
						where, len(ends)-i, rotated.Outcome, known)
				}
			}
		}
		p.rotate(tokens[len(tokens)-1])
		p.clock.Advance(grace + grace/50)
		rotated, _ := p.by(p.Store, tokens[0])
		p.equal(fmt.Sprintf("seed %d: a token replaced long ago", seed), rotated.Outcome, session.Reused)
		if replayed == 0 {
			p.failf("seed %d: no duplicate was answered at all", seed)
		}
	}
}
