package sessiontest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Checks returns the rules, each named after its promise.
func Checks() []Check {
	return []Check{
		{"a session begins as it was asked for", beginsAsAsked},
		{"texts of the client are kept as they are", textsAreKept},
		{"the current token turns", currentTurns},
		{"absolute expiry never moves", absoluteExpiryStays},
		{"the previous token yields the same successor in the window", previousReplays},
		{"every replaced token yields the newest in its window", replacedReplay},
		{"the window does not slide", windowDoesNotSlide},
		{"each window ends by its own rotation", ownWindows},
		{"the previous token after the window is reuse", previousAfterTheWindow},
		{"an older token after its window is reuse", olderAfterTheWindow},
		{"too many rotations in a window end nothing", tooManyRotations},
		{"the way to the newest is forgotten with the window", waysAreForgotten},
		{"a window from a clock that was ahead is void", voidWindows},
		{"a stopped session stays stopped until it is deleted", stoppedStaysStopped},
		{"without a window the previous token is reuse at once", noWindow},
		{"a token ahead of the record is current", aheadTurns},
		{"two tokens of one generation are reuse", forkIsReuse},
		{"an expired session is gone", expiredIsGone},
		{"an unknown session is gone", unknownIsGone},
		{"a session belongs to its user", ownSessionsOnly},
		{"a deleted session is gone", deletedIsGone},
		{"delete all keeps the kept one and those marked", deleteAllKeeps},
		{"the same call sent again changes nothing", repeatedCalls},
		{"a reissue replaces the token unseen", reissueReplaces},
		{"a session is tentative until it is refreshed", tentativeUntilUsed},
		{"missing records are told", missingAreTold},
		{"a limit names the least recently used", limitNamesTheOldest},
		{"a limit refuses when told to", limitRefuses},
		{"a limit holds when many sign in at once", limitHoldsInParallel},
		{"the list begins with the newest use", listOrder},
		{"a walk finds what the filter chooses", walkFilters},
		{"purge removes what is expired and nothing else", purgeRemovesExpired},
		{"clear forgets everything", clearForgets},
		{"nothing kept can be used", nothingKeptIsUsable},
		{"an ended context is unavailable", endedContext},
		{"parallel refreshes make one chain", parallelRefreshes},
		{"late duplicates make one chain", lateDuplicates},
		{"lost answers are made good", lostAnswers},
		{"nothing turns after an end was answered", endRacesRefresh},
		{"any sequence does as the table says", anySequence},
	}
}

func beginsAsAsked(p *probe) {
	user := uuid.New()
	token, started := p.begin(user, func(s *session.Start) { s.Epoch = 7 })
	one := started.Session
	p.equal("generation", one.Generation, uint32(1))
	p.equal("absolute expiry", one.ExpiresAt.Sub(one.CreatedAt), maxAge)
	p.equal("idle expiry", one.IdleExpiresAt.Sub(one.CreatedAt), idleTTL)
	want := session.Session{
		ID: token.SessionID(), UserID: user, Epoch: 7, Generation: 1, Hash: token.Hash(), DeviceName: "phone",
		UserAgent: "agent/1", IP: "192.0.2.1", Recorded: true,
		AuthTime: one.CreatedAt, CreatedAt: one.CreatedAt, LastUsedAt: one.CreatedAt, ExpiresAt: one.ExpiresAt,
		IdleExpiresAt: one.IdleExpiresAt,
	}
	p.equal("what was begun", one, want)
	p.equal("what is read", p.get(token), want)
	p.equal("how many are listed", len(p.list(user)), 1)
	p.equal("how many are over", len(started.Excess), 0)
	if age := time.Until(one.CreatedAt); age < -time.Hour || age > time.Hour {
		p.failf("begun at %v", one.CreatedAt)
	}
	p.equal("location", one.CreatedAt.Location(), time.UTC)

	_, started = p.begin(user, func(s *session.Start) { s.IdleTTL = 2 * maxAge })
	p.equal("idle expiry beyond the absolute one", started.Session.IdleExpiresAt, started.Session.ExpiresAt)
}

func textsAreKept(p *probe) {
	const odd = "'\"\\ é世;--{}*$1?"
	token, _ := p.begin(uuid.New(), func(s *session.Start) {
		s.DeviceName, s.UserAgent, s.IP = odd+"1", odd+"2", odd+"3"
	})
	one := p.get(token)
	p.equal("the first texts", one.DeviceName+one.UserAgent+one.IP, odd+"1"+odd+"2"+odd+"3")
	p.rotate(token, func(r *session.Rotation) { r.UserAgent, r.IP = odd+"4", odd+"5" })
	one = p.get(token)
	p.equal("the texts then", one.DeviceName+one.UserAgent+one.IP, odd+"1"+odd+"4"+odd+"5")
}

func currentTurns(p *probe) {
	first, started := p.begin(uuid.New())
	p.clock.Advance(time.Hour)
	rotated, second := p.refresh(first)
	p.equal("outcome", rotated.Outcome, session.Rotated)
	one := rotated.Session
	p.equal("generation", one.Generation, uint32(2))
	p.equal("token", one.Accepts(second), true)
	p.equal("where from", one.UserAgent+one.IP, "agent/2192.0.2.2")
	p.equal("idle limit", one.IdleExpiresAt.Sub(one.LastUsedAt), idleTTL)
	if d := one.LastUsedAt.Sub(started.Session.LastUsedAt); d < time.Hour || d > time.Hour+grace {
		p.failf("last use moved by %v", d)
	}
	one.Generation, one.Hash, one.UserAgent, one.IP = 1, first.Hash(), "agent/1", "192.0.2.1"
	one.LastUsedAt, one.IdleExpiresAt = started.Session.LastUsedAt, started.Session.IdleExpiresAt
	p.equal("the rest", one, started.Session)
	p.equal("what is read", p.get(first), rotated.Session)

	for range 20 {
		second = p.rotate(second)
	}
	p.equal("generation", p.get(second).Generation, uint32(22))
}

func absoluteExpiryStays(p *probe) {
	token, started := p.begin(uuid.New())
	for range 6 {
		p.clock.Advance(idleTTL - time.Hour)
		token = p.rotate(token)
	}
	one := p.get(token)
	p.equal("absolute expiry", one.ExpiresAt, started.Session.ExpiresAt)
	p.equal("idle expiry", one.IdleExpiresAt, started.Session.ExpiresAt)
	p.clock.Advance(7 * time.Hour)
	p.answers("the current token after the absolute expiry", token, session.Gone)
}

func previousReplays(p *probe) {
	first, _ := p.begin(uuid.New())
	second := p.rotate(first)
	before := p.get(first)
	for _, later := range []time.Duration{0, 0, grace / 2, grace/2 - time.Minute} {
		p.clock.Advance(later)
		rotated, again := p.refresh(first, func(r *session.Rotation) { r.UserAgent, r.IP = "agent/3", "192.0.2.3" })
		p.equal("outcome", rotated.Outcome, session.Replayed)
		p.equal("the successor", again.Encode() == second.Encode(), true)
		p.equal("the session", rotated.Session, before)
	}
	p.equal("the session", p.get(first), before)
	third := p.rotate(second)
	p.answers("the previous token of the next rotation", second, session.Replayed)
	p.rotate(third)
}

func windowDoesNotSlide(p *probe) {
	first, _ := p.begin(uuid.New())
	second := p.rotate(first)
	p.clock.Advance(grace - time.Minute)
	p.answers("the previous token at the end of the window", first, session.Replayed)
	p.equal("the current token is still in force", p.get(first).Accepts(second), true)
	p.clock.Advance(2 * time.Minute)
	p.answers("the previous token a moment after a replay and after the window", first, session.Reused)
}

func previousAfterTheWindow(p *probe) {
	first, _ := p.begin(uuid.New())
	second := p.rotate(first)
	p.clock.Advance(grace + time.Second)
	rotated := p.answers("the previous token after the window", first, session.Reused)
	p.equal("whose", rotated.Session.ID, first.SessionID())
	p.answers("the current token of a stopped session", second, session.Reused)
}

// replacedReplay: a late duplicate of any age gets the same as a client that has kept up.
func replacedReplay(p *probe) {
	token, _ := p.begin(uuid.New())
	replaced := []session.Token{token}
	for range 12 {
		p.clock.Advance(grace / 20)
		token = p.rotate(token)
		before := p.get(token)
		for i, old := range replaced {
			rotated, newest := p.refresh(old)
			p.equal(fmt.Sprintf("outcome for the token of %d rotations ago", len(replaced)-i), rotated.Outcome,
				session.Replayed)
			p.equal("what it gets", newest == token, true)
			p.equal("the session", rotated.Session, before)
		}
		replaced = append(replaced, token)
	}
	p.rotate(token)
}

// ownWindows: each token is answered until its own window closes, whatever was rotated or answered
// since, and is reuse from then on.
func ownWindows(p *probe) {
	const rotations, step, moment = 6, grace / 8, grace / 50
	for which := range rotations {
		token, _ := p.begin(uuid.New())
		tokens := []session.Token{token}
		begun := p.clock.Skew()
		for range rotations { // one in each step
			tokens = append(tokens, p.rotate(tokens[len(tokens)-1]))
			for _, old := range tokens[:len(tokens)-1] { // using a token does not extend its window
				p.answers("a token in its window", old, session.Replayed)
			}
			p.clock.Advance(step)
		}
		ends := begun + time.Duration(which)*step + grace
		p.clock.Advance(ends - moment - p.clock.Skew())
		for i := which; i < rotations; i++ {
			rotated, newest := p.refresh(tokens[i])
			p.equal(fmt.Sprintf("outcome for token %d before the end of the window of token %d", i, which),
				rotated.Outcome, session.Replayed)
			p.equal("what it gets", newest == tokens[rotations], true)
		}
		p.clock.Advance(2 * moment)
		if which+1 < rotations {
			p.answers(fmt.Sprintf("the token after token %d", which), tokens[which+1], session.Replayed)
		}
		p.answers(fmt.Sprintf("token %d after its window", which), tokens[which], session.Reused)
		p.answers("the newest token of a stopped session", tokens[rotations], session.Reused)
	}
}

func olderAfterTheWindow(p *probe) {
	first, _ := p.begin(uuid.New())
	second := p.rotate(first)
	p.clock.Advance(grace + time.Second)
	third := p.rotate(second) // its window is open, the first one's is not
	p.answers("the token before the previous one", first, session.Reused)
	p.answers("the previous token of a stopped session", second, session.Reused)
	p.answers("the current token of a stopped session", third, session.Reused)
}

// tooManyRotations goes on past the bound of the chain.
func tooManyRotations(p *probe) {
	const many = 5 * session.MaxLinks
	token, _ := p.begin(uuid.New())
	tokens := []session.Token{token}
	for i := range many {
		tokens = append(tokens, p.rotate(tokens[i]))
		if i%session.MaxLinks == session.MaxLinks/2 {
			p.clock.Advance(grace / 20)
		}
	}
	newest := tokens[many]
	for _, age := range []int{1, 2, session.MaxLinks / 2, session.MaxLinks - 1, session.MaxLinks} {
		rotated, got := p.refresh(tokens[many-age])
		p.equal(fmt.Sprintf("outcome for the token of %d rotations ago", age), rotated.Outcome, session.Replayed)
		p.equal("what it gets", got == newest, true)
	}
	for _, age := range []int{session.MaxLinks + 1, session.MaxLinks + 2, 2 * session.MaxLinks, many - 1, many} {
		rotated := p.answers(fmt.Sprintf("the token of %d rotations ago", age), tokens[many-age], session.Superseded)
		p.equal("the session", rotated.Session.Accepts(newest), true)
	}
	newest = p.rotate(newest)
	// The first ones were replaced at once, and each of the others at least a twentieth later.
	p.clock.Advance(grace - 5*(grace/20) + grace/40)
	p.answers("one that was replaced later", tokens[session.MaxLinks], session.Superseded)
	p.answers("the first after its window", tokens[0], session.Reused)
	p.answers("the newest of a stopped session", newest, session.Reused)

	// A stolen old token is discovered while its owner keeps rotating.
	stolen, _ := p.begin(uuid.New())
	held := p.rotate(stolen)
	p.clock.Advance(grace + grace/100)
	for range 3 * session.MaxLinks {
		held = p.rotate(held)
	}
	p.answers("a token from before all of it", stolen, session.Reused)
}

// waysAreForgotten runs by the engine's own clock, which decides when links expire.
func waysAreForgotten(p *probe) {
	short := func(r *session.Rotation) { r.Grace = 300 * time.Millisecond }
	token, _ := p.begin(uuid.New())
	var sealed [][]byte
	for range 4 {
		token = p.rotate(token, short, func(r *session.Rotation) { sealed = append(sealed, r.SealedNext) })
	}
	keeps := func() (n int) {
		_, err := p.either().Forget(p.ctx, 100)
		p.must(err)
		kept, err := p.Dump(p.ctx)
		p.must(err)
		all := bytes.Join(kept, []byte{0})
		for _, one := range sealed {
			if bytes.Contains(all, one) {
				n++
			}
		}
		return n
	}
	for deadline, late := time.Now().Add(20*time.Second), false; ; time.Sleep(20 * time.Millisecond) {
		n := keeps()
		if n == 0 {
			break
		}
		if late { // it was asked after the deadline, however long that took
			p.failf("%d sealed successors outlive their windows", n)
		}
		late = time.Now().After(deadline)
	}
	p.rotate(token)
}

// voidWindows: the engine's clock was ahead, and was corrected.
func voidWindows(p *probe) {
	const ahead = 100 * time.Hour
	p.clock.Advance(ahead)
	first, _ := p.begin(uuid.New())
	second := p.rotate(first)
	third := p.rotate(second)
	p.answers("a token in its window", first, session.Replayed)
	p.clock.Advance(-ahead)
	for _, old := range []session.Token{first, second} {
		p.answers("a token replaced in the future", old, session.Superseded)
	}
	fourth := p.rotate(third)
	p.answers("a token replaced now", third, session.Replayed)
	p.answers("a token replaced in the future", first, session.Superseded)
	p.rotate(fourth)
}

func stoppedStaysStopped(p *probe) {
	user := uuid.New()
	first, _ := p.begin(user)
	other, _ := p.begin(user)
	second := p.rotate(first)
	p.clock.Advance(grace + time.Second)
	current := p.rotate(second)
	rotated, _ := p.refresh(first, func(r *session.Rotation) { r.UserAgent, r.IP = "thief/1", "203.0.113.9" })
	p.equal("outcome", rotated.Outcome, session.Reused)
	p.equal("generation", rotated.Session.Generation, uint32(3))

	p.answers("the current token at once", current, session.Reused)
	p.absent(first, 4)
	p.equal("what is listed", fmt.Sprint(p.list(user)), fmt.Sprint([]uuid.UUID{other.SessionID()}))

	m, found := p.marked()[first.SessionID()]
	p.equal("it is marked", found, true)
	p.equal("which token", m.Generation, uint32(1))
	p.equal("who", m.UserAgent+m.IP, "thief/1203.0.113.9")
	p.equal("whose", m.Session.UserID, user)
	p.equal("the device", m.Session.DeviceName, "phone")
	if d := m.StoppedAt.Sub(m.Session.LastUsedAt); d < 0 || d > time.Hour {
		p.failf("stopped %v after the last use", d)
	}

	// A second use, and a long time without a database to commit to, change nothing.
	p.clock.Advance(2 * maxAge)
	p.answers("the current token later", current, session.Reused)
	again, found := p.marked()[first.SessionID()]
	p.equal("it is marked later", found, true)
	p.equal("the mark is the first one", again, m)
	_, err := p.Store.Purge(p.ctx, 100)
	p.must(err)
	p.answers("the first token later", first, session.Reused)

	p.must(p.either().Delete(p.ctx, user, first.SessionID()))
	_, found = p.marked()[first.SessionID()]
	p.equal("it is marked after it is deleted", found, false)
	p.answers("the current token after it is deleted", current, session.Gone)
}

func noWindow(p *probe) {
	none := func(r *session.Rotation) { r.Grace = 0 }
	first, _ := p.begin(uuid.New())
	p.rotate(first, none)
	rotated, _ := p.refresh(first, none)
	p.equal("the previous token", rotated.Outcome, session.Reused)
}

func aheadTurns(p *probe) {
	user := uuid.New()
	stale, _ := p.begin(user)
	lost := p.codec.Mint(user, stale.SessionID(), 5) // the record has missed four rotations
	rotated, next := p.refresh(lost)
	p.equal("a token ahead", rotated.Outcome, session.Rotated)
	p.equal("generation", rotated.Session.Generation, uint32(6))
	rotated, again := p.refresh(lost)
	p.equal("the same token again", rotated.Outcome, session.Replayed)
	p.equal("its successor", again == next, true)
	next = p.rotate(next)
	// Nobody knows when the tokens that the record has missed were replaced: it may have been just
	// now.
	for _, missed := range []session.Token{stale, p.codec.Mint(user, stale.SessionID(), 3)} {
		p.answers("what the record had missed, at once", missed, session.Superseded)
	}
	next = p.rotate(next)
	p.clock.Advance(grace + grace/100)
	p.answers("what the record had taken for current, after the window", stale, session.Reused)
	p.answers("the true current token", next, session.Reused)

	// Tokens that the record knew to be replaced stay replaced.
	old, _ := p.begin(user)
	stale = p.rotate(old)
	p.clock.Advance(grace + time.Second)
	p.rotate(p.codec.Mint(user, stale.SessionID(), 7))
	p.answers("a token replaced before all that", old, session.Reused)
}

func forkIsReuse(p *probe) {
	user := uuid.New()
	stale, _ := p.begin(user)
	lost := p.codec.Mint(user, stale.SessionID(), 2) // issued before the fail-over
	revived := p.rotate(stale)                       // issued after it
	p.answers("another token of the current generation", lost, session.Reused)
	p.answers("the current token", revived, session.Reused)

	for generation := range uint32(3) {
		stale, _ = p.begin(user)
		p.rotate(p.rotate(p.rotate(stale)))
		p.answers("another token of an older generation", p.codec.Mint(user, stale.SessionID(), generation+1),
			session.Reused)
	}
}

func expiredIsGone(p *probe) {
	user := uuid.New()
	first, _ := p.begin(user)
	second := p.rotate(first)
	p.clock.Advance(idleTTL - time.Minute)
	used, _ := p.begin(user)
	p.equal("how many are live just before the limit", len(p.list(user)), 2)
	p.clock.Advance(2 * time.Minute)
	for what, token := range map[string]session.Token{"current": second, "previous": first,
		"ahead": p.codec.Mint(user, first.SessionID(), 9)} {
		p.answers("the "+what+" token after the idle limit", token, session.Gone)
	}
	p.absent(first, 3)
	p.equal("what is listed", fmt.Sprint(p.list(user)), fmt.Sprint([]uuid.UUID{used.SessionID()}))
	p.equal("how many are marked", len(p.marked()), 0)
}

func unknownIsGone(p *probe) {
	token := p.codec.Mint(uuid.New(), uuid.New(), 1)
	p.answers("the token of an unknown session", token, session.Gone)
	p.answers("the same again", token, session.Gone)
	p.absent(token, 2)
	p.equal("how many are listed", len(p.list(token.UserID())), 0)
	p.must(p.Store.Delete(p.ctx, token.UserID(), token.SessionID()))
	p.must(p.Store.Delete(p.ctx, token.UserID()))
	p.must(p.Store.DeleteAll(p.ctx, token.UserID(), 1, uuid.NullUUID{}))
}

func ownSessionsOnly(p *probe) {
	owner, stranger := uuid.New(), uuid.New()
	token, _ := p.begin(owner)
	id := token.SessionID()
	_, err := p.Store.Get(p.ctx, stranger, id)
	p.equal("another user does not find it", errors.Is(err, session.ErrNotFound), true)
	p.answers("another user's token for it", p.codec.Mint(stranger, id, 1), session.Gone)
	p.must(p.Store.Delete(p.ctx, stranger, id))
	p.must(p.Store.DeleteAll(p.ctx, stranger, 1, uuid.NullUUID{}))
	p.rotate(token)
}

func deletedIsGone(p *probe) {
	user := uuid.New()
	var tokens []session.Token
	for range 4 {
		token, _ := p.begin(user)
		tokens = append(tokens, p.rotate(token))
	}
	p.must(p.Store.Delete(p.ctx, user, tokens[0].SessionID(), tokens[1].SessionID(), uuid.New()))
	p.must(p.Peer.Delete(p.ctx, user, tokens[0].SessionID()))
	p.answers("a token of a deleted session", tokens[0], session.Gone)
	p.answers("a token of a deleted session", tokens[1], session.Gone)
	p.equal("how many are listed", len(p.list(user)), 2)
	p.rotate(tokens[2])
	p.rotate(tokens[3])
}

func deleteAllKeeps(p *probe) {
	user := uuid.New()
	kept, _ := p.begin(user)
	gone, _ := p.begin(user)
	stopped := p.stopped(user)
	other, _ := p.begin(uuid.New())

	newer, _ := p.begin(user, func(s *session.Start) { s.Epoch = 1 })

	p.must(p.Store.DeleteAll(p.ctx, user, 1, uuid.NullUUID{UUID: kept.SessionID(), Valid: true}))
	kept = p.rotate(kept)
	newer = p.rotate(newer) // it began after the others were ended
	p.answers("a token of one that was not kept", gone, session.Gone)
	p.answers("a token of one that is marked", stopped, session.Reused)
	p.must(p.Store.DeleteAll(p.ctx, user, 2, uuid.NullUUID{}))
	p.answers("a token of the kept one, when none is kept", kept, session.Gone)
	p.answers("a token of the newer one, when newer ones have to go", newer, session.Gone)
	p.equal("how many are marked", len(p.marked()), 1)
	p.rotate(other)
}

func repeatedCalls(p *probe) {
	user := uuid.New()
	token := p.codec.Mint(user, uuid.New(), 1)
	start := session.Start{ID: token.SessionID(), UserID: user, Hash: token.Hash(), MaxAge: maxAge, IdleTTL: idleTTL,
		Max: 1, RejectNew: true}
	for range 3 {
		started, err := p.either().Create(p.ctx, start)
		p.must(err)
		p.equal("how many are over", len(started.Excess), 0)
	}
	p.equal("how many are listed", len(p.list(user)), 1)

	// Without a window, a second rotation with the same token would be reuse.
	next, rotation := p.codec.Next(token)
	rotation.IdleTTL = idleTTL
	for range 3 {
		rotated, err := p.either().Rotate(p.ctx, rotation)
		p.must(err)
		p.equal("outcome", rotated.Outcome, session.Rotated)
		p.equal("generation", rotated.Session.Generation, uint32(2))
		p.equal("token", rotated.Session.Accepts(next), true)
	}

	fresh := p.codec.Mint(user, token.SessionID(), 3)
	for range 3 {
		one, err := p.either().Reissue(p.ctx, session.Reissue{UserID: user, SessionID: token.SessionID(), Generation: 3,
			Hash: fresh.Hash(), IdleTTL: idleTTL})
		p.must(err)
		p.equal("token", one.Accepts(fresh), true)
	}
	p.rotate(fresh)
}

func reissueReplaces(p *probe) {
	user := uuid.New()
	first, started := p.begin(user)
	old := p.rotate(first)
	p.clock.Advance(time.Hour)
	fresh := p.codec.Mint(user, old.SessionID(), 3)
	ask := session.Reissue{UserID: user, SessionID: old.SessionID(), Generation: 3, Hash: fresh.Hash(),
		Sealed: p.codec.SealReissued(fresh), Grace: grace, IdleTTL: idleTTL, Reauthenticated: true}

	for _, generation := range []uint32{1, 2, 4} {
		wrong := ask
		wrong.Generation = generation
		_, err := p.either().Reissue(p.ctx, wrong)
		p.equal("a generation that is not the next one", errors.Is(err, session.ErrConflict), true)
	}
	one, err := p.either().Reissue(p.ctx, ask)
	p.must(err)
	p.equal("token", one.Accepts(fresh), true)
	p.equal("what is read", p.get(old), one)
	p.equal("absolute expiry", one.ExpiresAt, started.Session.ExpiresAt)
	p.equal("idle limit", one.IdleExpiresAt.Sub(one.LastUsedAt), idleTTL)
	p.equal("authenticated", one.AuthTime, one.LastUsedAt)

	// A refresh was in flight when the token was replaced, or its answer was lost: the old token
	// gets the new one.
	for range 2 {
		rotated, given := p.refresh(old)
		p.equal("the old token in the window", rotated.Outcome, session.Replayed)
		p.equal("what it gets", given.Encode(), fresh.Encode())
	}
	next := p.rotate(fresh)
	unmoved := ask
	unmoved.Generation, unmoved.Reauthenticated = 5, false
	last := p.codec.Mint(user, old.SessionID(), 5)
	unmoved.Hash, unmoved.Sealed = last.Hash(), p.codec.SealReissued(last)
	again, err := p.either().Reissue(p.ctx, unmoved)
	p.must(err)
	p.equal("authenticated", again.AuthTime, one.AuthTime)
	p.clock.Advance(grace + time.Second)
	p.answers("the old token after the window", next, session.Reused)
	p.answers("the new token then", last, session.Reused)
}

func limitNamesTheOldest(p *probe) {
	user := uuid.New()
	limit := func(s *session.Start) { s.Max = 3 }
	var tokens []session.Token
	for i := range 3 {
		token, started := p.begin(user, limit)
		p.equal(fmt.Sprintf("over with %d", i+1), len(started.Excess), 0)
		tokens = append(tokens, token)
		p.clock.Advance(time.Minute)
	}
	tokens[0] = p.rotate(tokens[0]) // now the second is the least recently used
	p.clock.Advance(time.Minute)
	_, started := p.begin(user, limit)
	p.equal("over with four", fmt.Sprint(overIDs(started)), fmt.Sprint([]uuid.UUID{tokens[1].SessionID()}))
	p.equal("how many are listed until they are deleted", len(p.list(user)), 4)
	tokens[1] = p.rotate(tokens[1])
	p.clock.Advance(time.Minute)
	_, started = p.begin(user, limit)
	p.equal("over with five", fmt.Sprint(overIDs(started)),
		fmt.Sprint([]uuid.UUID{tokens[2].SessionID(), tokens[0].SessionID()}))
	p.must(p.Store.Delete(p.ctx, user, overIDs(started)...))

	// Neither the stopped nor the expired session counts.
	p.rotate(tokens[1], func(r *session.Rotation) { r.Grace = 0 })
	p.answers("a replaced token without a window", tokens[1], session.Reused)
	_, started = p.begin(user, limit)
	p.equal("over with one stopped", len(started.Excess), 0)
	p.clock.Advance(idleTTL + time.Minute)
	for range 3 {
		_, started = p.begin(user, limit)
		p.equal("over when all are expired", len(started.Excess), 0)
	}
	_, started = p.begin(uuid.New(), limit)
	p.equal("over for another user", len(started.Excess), 0)
	_, started = p.begin(user)
	p.equal("over without a limit", len(started.Excess), 0)

	// A session near its absolute end may still be the last used.
	user = uuid.New()
	short, _ := p.begin(user, func(s *session.Start) { s.MaxAge = time.Hour })
	p.clock.Advance(time.Minute)
	long, _ := p.begin(user)
	p.clock.Advance(time.Minute)
	p.rotate(short)
	_, started = p.begin(user, func(s *session.Start) { s.Max = 2 })
	p.equal("over", fmt.Sprint(overIDs(started)), fmt.Sprint([]uuid.UUID{long.SessionID()}))
}

func overIDs(started session.Started) (ids []uuid.UUID) {
	for _, one := range started.Excess {
		ids = append(ids, one.ID)
	}
	return ids
}

// tentativeUntilUsed: only a committed sign-in returns a refresh token.
func tentativeUntilUsed(p *probe) {
	user := uuid.New()
	used, started := p.begin(user)
	p.equal("a session that was just begun is tentative", started.Session.Tentative(), true)
	p.clock.Advance(time.Minute)
	unused, _ := p.begin(user)
	p.equal("as it is read", p.get(unused).Tentative(), true)
	p.clock.Advance(time.Minute)
	p.rotate(used)
	p.equal("a session that was refreshed is tentative", p.get(used).Tentative(), false)
	for one, err := range p.either().Walk(p.ctx, session.Filter{}) {
		p.must(err)
		p.equal("as it is walked over", one.Tentative(), one.ID == unused.SessionID())
	}
	p.clock.Advance(time.Minute)
	_, started = p.begin(user, func(s *session.Start) { s.Max = 1 })
	p.equal("who has to go", fmt.Sprint(started.Excess),
		fmt.Sprint([]session.Excess{{ID: unused.SessionID(), Tentative: true}, {ID: used.SessionID()}}))
}

// missingAreTold, and the store knows since when it has lost nothing.
func missingAreTold(p *probe) {
	user := uuid.New()
	first, _ := p.begin(user)
	second, _ := p.begin(user)
	refs := []session.Ref{{UserID: user, ID: first.SessionID()}, {UserID: user, ID: second.SessionID()},
		{UserID: uuid.New(), ID: first.SessionID()}, {UserID: user, ID: uuid.New()}}
	missing, err := p.either().Missing(p.ctx, refs)
	p.must(err)
	p.equal("missing", fmt.Sprint(missing), fmt.Sprint(refs[2:]))
	missing, err = p.either().Missing(p.ctx, nil)
	p.must(err)
	p.equal("missing of none", len(missing), 0)

	memory, err := p.either().Memory(p.ctx)
	p.must(err)
	for range 5 {
		p.clock.Advance(time.Minute)
		again, err := p.either().Memory(p.ctx)
		p.must(err)
		p.equal("what it remembers, when it is looked at", again, memory)
	}
}

func limitRefuses(p *probe) {
	user := uuid.New()
	limit := func(s *session.Start) { s.Max, s.RejectNew = 2, true }
	first, _ := p.begin(user, limit)
	p.begin(user, limit)
	token := p.codec.Mint(user, uuid.New(), 1)
	start := session.Start{ID: token.SessionID(), UserID: user, Hash: token.Hash(), MaxAge: maxAge, IdleTTL: idleTTL,
		Max: 2, RejectNew: true}
	_, err := p.either().Create(p.ctx, start)
	p.equal("the third is one too many", errors.Is(err, session.ErrTooMany), true)
	p.answers("the token of the refused one", token, session.Gone)
	p.equal("how many are listed", len(p.list(user)), 2)
	p.rotate(first)
	p.must(p.Store.Delete(p.ctx, user, first.SessionID()))
	_, err = p.either().Create(p.ctx, start)
	p.must(err)
	p.rotate(token)
}

func limitHoldsInParallel(p *probe) {
	const most, tries = 5, 25
	user := uuid.New()
	var mu sync.Mutex
	var begun, refused int
	var other error
	together(tries, func(i int) {
		store := []session.Store{p.Store, p.Peer}[i%2]
		_, err := store.Create(p.ctx, session.Start{ID: uuid.New(), UserID: user, MaxAge: maxAge, IdleTTL: idleTTL,
			Max: most, RejectNew: true})
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			begun++
		case errors.Is(err, session.ErrTooMany):
			refused++
		default:
			other = err
		}
	})
	p.must(other)
	p.equal("begun", begun, most)
	p.equal("refused", refused, tries-most)
	p.equal("listed", len(p.list(user)), most)
}

func listOrder(p *probe) {
	user := uuid.New()
	var tokens []session.Token
	for range 4 {
		token, _ := p.begin(user)
		tokens = append(tokens, token)
		p.clock.Advance(time.Minute)
	}
	p.rotate(tokens[1])
	var want []uuid.UUID
	for _, i := range []int{1, 3, 2, 0} {
		want = append(want, tokens[i].SessionID())
	}
	p.equal("order", fmt.Sprint(p.list(user)), fmt.Sprint(want))
}

func walkFilters(p *probe) {
	const many = 603 // more than a page
	var firstHalf time.Time
	want := map[string]int{}
	for i := range many {
		if i == many/2 {
			p.clock.Advance(time.Hour)
			firstHalf = p.get(p.beginAt("192.0.2.1")).LastUsedAt.Add(-time.Minute)
			p.clock.Advance(time.Hour)
		}
		ip := fmt.Sprintf("198.51.100.%d", i%3)
		if i%3 == 2 {
			ip = "2001:db8::1"
		}
		want[ip]++
		p.beginAt(ip)
	}
	last := p.beginAt("not an address")
	p.equal("all", len(p.walk(session.Filter{})), many+2)
	p.equal("an address", len(p.walk(session.Filter{IP: netip.MustParsePrefix("198.51.100.1/32")})),
		want["198.51.100.1"])
	p.equal("a network", len(p.walk(session.Filter{IP: netip.MustParsePrefix("198.51.100.0/24")})),
		want["198.51.100.0"]+want["198.51.100.1"])
	p.equal("an IPv6 network", len(p.walk(session.Filter{IP: netip.MustParsePrefix("2001:db8::/64")})),
		want["2001:db8::1"])
	p.equal("used before", len(p.walk(session.Filter{Before: firstHalf})), many/2)
	byID := p.walk(session.Filter{ID: uuid.NullUUID{UUID: last.SessionID(), Valid: true}})
	p.equal("one by its id", len(byID), 1)
	p.equal("that one", byID[last.SessionID()], p.get(last))
	p.equal("an unknown id", len(p.walk(session.Filter{ID: uuid.NullUUID{UUID: uuid.New(), Valid: true}})), 0)
	n := 0
	for _, err := range p.Store.Walk(p.ctx, session.Filter{}) {
		p.must(err)
		if n++; n == 3 {
			break
		}
	}
	p.equal("taken before the break", n, 3)
}

// stopped makes a session that was stopped for reuse of the token that it returns.
func (p *probe) stopped(user uuid.UUID) session.Token {
	token, _ := p.begin(user)
	p.rotate(token, func(r *session.Rotation) { r.Grace = 0 })
	p.answers("a replaced token without a window", token, session.Reused)
	return token
}

func (p *probe) beginAt(ip string) session.Token {
	token, _ := p.begin(uuid.New(), func(s *session.Start) { s.IP = ip })
	return token
}

func purgeRemovesExpired(p *probe) {
	for range 5 {
		p.begin(uuid.New())
	}
	user := uuid.New()
	stopped := p.stopped(user)
	p.clock.Advance(idleTTL + time.Minute)
	live, _ := p.begin(user)
	live = p.rotate(live)
	purge := func(limit int) int64 {
		n, err := p.either().Purge(p.ctx, limit)
		p.must(err)
		return n
	}
	if p.Purges {
		p.equal("purged with a limit", purge(3), int64(3))
		p.equal("purged then", purge(100), int64(2))
	}
	p.equal("purged when there is nothing left", purge(100), int64(0))
	p.answers("the stopped one", stopped, session.Reused)
	p.rotate(live)
}

func clearForgets(p *probe) {
	const many = 1203 // more than a portion
	var some []session.Token
	for i := range many {
		token, _ := p.begin(uuid.New())
		if i%400 == 0 {
			some = append(some, p.rotate(token))
		}
	}
	some = append(some, p.stopped(uuid.New()))
	n, err := p.Store.Count(p.ctx)
	p.must(err)
	p.equal("counted", n, many+1)

	// The caller is interrupted after a portion, and runs it again.
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	err = p.Peer.Clear(ctx, func(int) { stop() })
	if err != nil && !errors.Is(err, session.ErrUnavailable) {
		p.failf("an interrupted clear: %w", err)
	}
	gone := 0
	p.must(p.Store.Clear(p.ctx, func(n int) { gone = n }))
	if gone > many+1 {
		p.failf("%d records are gone, of %d", gone, many+1)
	}
	for _, token := range some {
		p.answers("a token of a session of before", token, session.Gone)
	}
	n, err = p.Store.Count(p.ctx)
	p.must(err)
	p.equal("counted afterwards", n, 0)
	p.equal("walked", len(p.walk(session.Filter{})), 0)
	p.equal("marked", len(p.marked()), 0)
	kept, err := p.Dump(p.ctx)
	p.must(err)
	p.equal("keys and values that are kept", len(kept), 0)
	p.must(p.Store.Clear(p.ctx, func(int) {}))

	token, _ := p.begin(uuid.New())
	p.rotate(token)
}

// nothingKeptIsUsable searches everything that the engine stores for a secret in any of its forms,
// and tries all of it as a token.
func nothingKeptIsUsable(p *probe) {
	user := uuid.New()
	var tokens []session.Token
	token, _ := p.begin(user) // fresh
	tokens = append(tokens, token)
	token, _ = p.begin(user) // rotated a few times, the windows open
	tokens = append(tokens, token)
	for range 4 {
		tokens = append(tokens, p.rotate(tokens[len(tokens)-1]))
	}
	tokens = append(tokens, p.stopped(user))

	kept, err := p.Dump(p.ctx)
	p.must(err)
	if len(kept) < 20 {
		p.failf("the dump has only %d values", len(kept))
	}
	all := bytes.Join(kept, []byte{0})
	if h := tokens[0].Hash(); !bytes.Contains(all, h[:]) {
		p.failf("the dump lacks a hash that is surely kept")
	}
	for _, token := range tokens {
		text := token.Encode()
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "art_"))
		p.must(err)
		secret := raw[38:70]
		for form, needle := range map[string][]byte{
			"token": []byte(text), "token without its prefix": []byte(text[4:]), "raw token": raw, "raw MAC": raw[70:],
			"secret": secret, "hex": []byte(hex.EncodeToString(secret)),
			"base64":    []byte(base64.RawStdEncoding.EncodeToString(secret)),
			"base64url": []byte(base64.RawURLEncoding.EncodeToString(secret)),
		} {
			if bytes.Contains(all, needle) {
				p.failf("the store keeps a refresh token as %s", form)
			}
		}
	}
	for _, value := range kept {
		encoded := base64.RawURLEncoding.EncodeToString(value)
		for _, text := range []string{string(value), "art_" + string(value), "art_" + encoded} {
			if _, err := p.codec.Parse(text); err == nil {
				p.failf("a kept value is a token: %q", value)
			}
		}
		for from := 0; from+86 <= len(value); from++ {
			if _, err := p.codec.Parse("art_" + base64.RawURLEncoding.EncodeToString(value[from:from+86])); err == nil {
				p.failf("a part of a kept value is a token")
			}
		}
	}
}

func endedContext(p *probe) {
	token, _ := p.begin(uuid.New())
	ended, cancel := context.WithCancel(p.ctx)
	cancel()
	user, id := token.UserID(), token.SessionID()
	_, rotation := p.codec.Next(token)
	rotation.IdleTTL = idleTTL
	for what, call := range map[string]func(context.Context) error{
		"create": func(ctx context.Context) error {
			_, err := p.Store.Create(ctx, session.Start{ID: uuid.New(), UserID: user, MaxAge: maxAge, IdleTTL: idleTTL,
				Max: 5})
			return err
		},
		"rotate": func(ctx context.Context) error { _, err := p.Store.Rotate(ctx, rotation); return err },
		"reissue": func(ctx context.Context) error {
			_, err := p.Store.Reissue(ctx, session.Reissue{UserID: user, SessionID: id, Generation: 2,
				IdleTTL: idleTTL})
			return err
		},
		"get":        func(ctx context.Context) error { _, err := p.Store.Get(ctx, user, id); return err },
		"list":       func(ctx context.Context) error { _, err := p.Store.List(ctx, user); return err },
		"delete":     func(ctx context.Context) error { return p.Store.Delete(ctx, user, id) },
		"delete all": func(ctx context.Context) error { return p.Store.DeleteAll(ctx, user, 1, uuid.NullUUID{}) },
		"missing": func(ctx context.Context) error {
			_, err := p.Store.Missing(ctx, []session.Ref{{UserID: user, ID: id}})
			return err
		},
		"reused": func(ctx context.Context) error { _, err := p.Store.Reused(ctx, 1); return err },
		"walk": func(ctx context.Context) (last error) {
			for _, err := range p.Store.Walk(ctx, session.Filter{}) {
				last = err
			}
			return last
		},
	} {
		if err := call(ended); !errors.Is(err, session.ErrUnavailable) {
			p.failf("%s with an ended context: %v", what, err)
		}
	}
	p.rotate(token)
}

// recorder records calls as their clients see them.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	calls []Call
	err   error
}

func (r *recorder) now() int64 { return int64(time.Since(r.start)) }

func (r *recorder) refresh(p *probe, client int, presented session.Token) session.Token {
	call := Call{Client: client, Token: presented.Encode(), Begin: r.now()}
	rotated, next, err := refresh(p.ctx, []session.Store{p.Store, p.Peer}[client%2], p.codec, presented)
	call.End = r.now()
	if call.Outcome = rotated.Outcome; next != (session.Token{}) {
		call.Next = next.Encode()
	}
	r.add(call, err)
	return next
}

func (r *recorder) add(call Call, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = err
		return
	}
	r.calls = append(r.calls, call)
}

func parallelRefreshes(p *probe) {
	const clients, rounds = 100, 8
	current, _ := p.begin(uuid.New())
	first := current.Encode()
	history := recorder{start: time.Now()}
	for round := range rounds {
		held := make([]session.Token, clients)
		together(clients, func(i int) { held[i] = history.refresh(p, i, current) })
		p.must(history.err)
		for i, token := range held {
			if token != held[0] {
				p.must(Linearizable(first, history.calls))
				p.failf("round %d: client %d holds another successor than client 0", round, i)
			}
		}
		current = held[0]
	}
	rotated := 0
	for _, c := range history.calls {
		if c.Outcome == session.Rotated {
			rotated++
		}
	}
	p.equal("rotations", rotated, rounds)
	p.equal("generation", p.get(current).Generation, uint32(rounds+1))
	p.must(Linearizable(first, history.calls))
}

// lostAnswers has clients that lose their answers and ask again.
func lostAnswers(p *probe) {
	const clients, rounds = 8, 10
	current, _ := p.begin(uuid.New())
	first := current.Encode()
	history := recorder{start: time.Now()}
	for range rounds {
		held := make([]session.Token, clients)
		together(clients, func(i int) {
			for range 1 + i%3 { // all but the last answer are lost
				call := Call{Client: clients + i, Token: current.Encode(), Begin: history.now()}
				_, _, err := refresh(p.ctx, p.Peer, p.codec, current)
				call.End, call.Lost = history.now(), true
				history.add(call, err)
			}
			held[i] = history.refresh(p, i, current)
		})
		p.must(history.err)
		for _, token := range held {
			p.equal("every client holds the same token", token == held[0], true)
		}
		current = held[0]
	}
	p.must(Linearizable(first, history.calls))
	p.rotate(current)
}

// lateDuplicates has clients that follow one chain together, each at its own pace, and repeat
// earlier requests at random. Nobody is signed out, and all end up with one token.
func lateDuplicates(p *probe) {
	const clients, steps = 6, 24
	for range 4 {
		token, _ := p.begin(uuid.New())
		history := recorder{start: time.Now()}
		var mu sync.Mutex
		seen := []session.Token{token}
		held := make([]session.Token, clients)
		together(clients, func(i int) {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(history.start.UnixNano())))
			held[i] = token
			for range steps {
				presented := held[i]
				mu.Lock()
				if rng.IntN(2) == 0 { // none too old: the chain has a bound
					presented = seen[max(0, len(seen)-1-rng.IntN(20))]
				}
				mu.Unlock()
				next := history.refresh(p, i, presented)
				if next == (session.Token{}) {
					return // the history shows it
				}
				held[i] = next
				mu.Lock()
				if !slices.Contains(seen, next) {
					seen = append(seen, next)
				}
				mu.Unlock()
			}
		})
		p.must(history.err)
		p.must(Linearizable(token.Encode(), history.calls))
		newest := p.rotate(seen[slices.IndexFunc(seen, func(t session.Token) bool { return p.get(token).Accepts(t) })])
		for _, old := range held {
			rotated, got := p.refresh(old)
			p.equal("outcome for what a client holds", rotated.Outcome, session.Replayed)
			p.equal("the one chain", got == newest, true)
		}
	}
}

// endRacesRefresh has two clients that hold the same token follow the chain while the session is
// ended. What begins after the answer to the end is refused.
func endRacesRefresh(p *probe) {
	for round := range 20 {
		token, _ := p.begin(uuid.New())
		history := recorder{start: time.Now()}
		turns := make(chan struct{}, 1000)
		together(2, func(i int) {
			if i == 1 {
				for range round % 5 { // end it at another point in each round
					<-turns
				}
				call := Call{Client: 2, Ends: true, Begin: history.now()}
				err := p.Store.Delete(p.ctx, token.UserID(), token.SessionID())
				call.End = history.now()
				history.add(call, err)
				return
			}
			for held := token; held != (session.Token{}); {
				var next [2]session.Token
				together(2, func(i int) { next[i] = history.refresh(p, i, held) })
				held = next[0]
				select {
				case turns <- struct{}{}:
				default:
				}
			}
		})
		p.must(history.err)
		p.must(Linearizable(token.Encode(), history.calls))
		p.answers("a token after the end", token, session.Gone)
	}
}

// anySequence compares long random sequences with the table in package session's comment, which is
// implemented here once more, as plainly as possible.
func anySequence(p *probe) {
	for seed := range uint64(24) {
		m := model{p: p, rng: rand.New(rand.NewPCG(seed, 1)), user: uuid.New(), replaced: map[uint32]*replaced{}}
		m.current, _ = p.begin(m.user)
		m.idleEnd, m.absoluteEnd = p.clock.Skew()+idleTTL, p.clock.Skew()+maxAge
		m.minted = []session.Token{m.current}
		for step := 0; step < 80; step++ {
			if !m.step(fmt.Sprintf("seed %d step %d", seed, step)) {
				break
			}
		}
	}
}

// model is the table, as it applies to one session.
type model struct {
	p    *probe
	rng  *rand.Rand
	user uuid.UUID

	current              session.Token
	replaced             map[uint32]*replaced // by generation
	minted               []session.Token
	idleEnd, absoluteEnd time.Duration
	stopped              bool
}

type replaced struct {
	token session.Token // zero if the record has missed it
	lost  bool          // no links lead from it to the newest
	ends  time.Duration // its window
}

func (m *model) expired(now time.Duration) bool { return now >= min(m.idleEnd, m.absoluteEnd) }

// want is the right answer to a presented token.
func (m *model) want(presented session.Token, now time.Duration) session.Outcome {
	old := m.replaced[presented.Generation()]
	switch {
	case m.stopped:
		return session.Reused
	case m.expired(now):
		return session.Gone
	case presented == m.current || presented.Generation() > m.current.Generation():
		return session.Rotated
	case old == nil:
		return session.Reused
	case old.lost && now < old.ends:
		return session.Superseded
	case old.token == presented && now < old.ends:
		return session.Replayed
	}
	return session.Reused
}

// rotated records that a token was replaced.
func (m *model) rotated(presented, next session.Token, now, window time.Duration) {
	if presented.Generation() > m.current.Generation() {
		for _, old := range m.replaced {
			old.lost = true
		}
		for g := m.current.Generation(); g < presented.Generation(); g++ {
			m.replaced[g] = &replaced{lost: true, ends: now + window}
		}
	}
	m.replaced[presented.Generation()] = &replaced{token: presented, ends: now + window}
	m.current, m.idleEnd = next, now+idleTTL
	m.minted = append(m.minted, next)
}

// step does something at random, and reports whether the test should go on.
func (m *model) step(where string) bool {
	p, rng := m.p, m.rng
	switch rng.IntN(12) {
	case 0, 1:
		// Slightly more than quarters of a window, so never near its end.
		p.clock.Advance(grace*time.Duration(rng.IntN(3)*2+1)/4 + grace/40)
		return true
	case 2:
		if rng.IntN(8) == 0 {
			p.clock.Advance(idleTTL * time.Duration(rng.IntN(2)*2+1) / 2)
		}
		return true
	}
	now := p.clock.Skew()
	if rng.IntN(10) == 0 && !m.stopped && !m.expired(now) {
		fresh := p.codec.Mint(m.user, m.current.SessionID(), m.current.Generation()+1)
		_, err := p.either().Reissue(p.ctx, session.Reissue{UserID: m.user, SessionID: m.current.SessionID(),
			Generation: fresh.Generation(), Hash: fresh.Hash(),
			Sealed: p.codec.SealReissued(fresh), Grace: grace, IdleTTL: idleTTL})
		p.must(err)
		m.rotated(m.current, fresh, now, grace)
		return true
	}
	presented := m.current
	switch rng.IntN(8) {
	case 0, 1, 2:
		presented = m.minted[max(0, len(m.minted)-1-rng.IntN(4))] // a late duplicate
	case 3:
		if rng.IntN(3) == 0 {
			presented = m.minted[rng.IntN(len(m.minted))]
		}
	case 4:
		if rng.IntN(4) == 0 { // of another branch, or ahead
			presented = p.codec.Mint(m.user, m.current.SessionID(),
				max(1, m.current.Generation()+uint32(rng.IntN(4))-1))
		}
	}
	want := m.want(presented, now)
	rotated, next := p.refresh(presented)
	p.equal(where, rotated.Outcome, want)
	switch want {
	case session.Rotated:
		m.rotated(presented, next, now, grace)
		p.equal(where+": generation", rotated.Session.Generation, next.Generation())
	case session.Replayed:
		p.equal(where+": successor", next == m.current, true)
	case session.Superseded:
		p.equal(where+": the session", rotated.Session.Accepts(m.current), true)
	case session.Reused:
		m.stopped = true
	}
	p.equal(where+": listed", slices.Contains(p.list(m.user), m.current.SessionID()), !m.stopped && !m.expired(now))
	return !m.stopped || rng.IntN(3) > 0 // nothing new can happen
}
