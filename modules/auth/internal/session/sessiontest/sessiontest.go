// Package sessiontest holds the rules of a session store as checks for every implementation, and
// the model against which recorded histories of refreshes are checked.
//
// A check returns an error instead of failing a test, so that tests can show with mutants of the
// implementations that it finds what it should.
package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Engine is what an implementation provides to the suite.
type Engine struct {
	Store session.Store
	Peer  session.Store // the same sessions, as another server sees them

	// Dump returns every stored key and value.
	Dump func(context.Context) ([][]byte, error)
	// Purges reports that expired sessions stay until Purge.
	Purges bool
}

// Open makes an engine without sessions, whose clock is ahead by skew.
type Open func(t testing.TB, skew func() time.Duration) Engine

// Run runs every check, each on its own engine.
func Run(t *testing.T, open Open) { run(t, open, Checks()) }

func run(t *testing.T, open Open, checks []Check) {
	for _, check := range checks {
		t.Run(strings.ReplaceAll(check.Name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if err := check.Run(t, open); err != nil {
				t.Error(err)
			}
		})
	}
}

// Check is one rule.
type Check struct {
	Name string
	body func(*probe)
}

// Run returns how the rule is broken, or nil.
func (c Check) Run(t testing.TB, open Open) (err error) {
	clock := new(Clock)
	codec, err := session.NewCodec("the secret of the session tests, which is long")
	if err != nil {
		return err
	}
	p := &probe{Engine: open(t, clock.Skew), clock: clock, codec: codec, ctx: t.Context()}
	defer func() {
		switch broken := recover().(type) {
		case nil:
		case violation:
			err = broken
		default:
			panic(broken)
		}
	}()
	c.body(p)
	return nil
}

// Named returns the check of [Checks] with a name.
func Named(name string) Check {
	for _, c := range Checks() {
		if c.Name == name {
			return c
		}
	}
	panic("no check is named " + name)
}

// Clock moves an engine's time without waiting.
type Clock struct{ ahead atomic.Int64 }

// Advance moves the time on.
func (c *Clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// Skew is how far the clock is ahead.
func (c *Clock) Skew() time.Duration { return time.Duration(c.ahead.Load()) }

// The limits that checks use unless they test others. The real time of a check is short compared
// with each of them, and with all distances from them, also on a machine that is many times too busy.
const (
	grace   = 2 * time.Hour
	idleTTL = 120 * time.Hour
	maxAge  = 720 * time.Hour
)

// violation is a broken rule; the probe ends a check with it.
type violation struct{ error }

// probe is the environment of a check.
type probe struct {
	Engine
	clock *Clock
	codec *session.Codec
	ctx   context.Context
	peer  atomic.Bool
}

func (p *probe) failf(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

func (p *probe) must(err error) {
	if err != nil {
		p.failf("unexpected error: %w", err)
	}
}

func (p *probe) equal(what string, got, want any) {
	if got != want {
		p.failf("%s: got %v, want %v", what, got, want)
	}
}

// either alternates between the two servers.
func (p *probe) either() session.Store {
	if p.peer.Swap(!p.peer.Load()) {
		return p.Peer
	}
	return p.Store
}

// begin signs a device in and returns its first token.
func (p *probe) begin(user uuid.UUID, change ...func(*session.Start)) (session.Token, session.Started) {
	token := p.codec.Mint(user, uuid.New(), 1)
	start := session.Start{
		ID: token.SessionID(), UserID: user, Hash: token.Hash(),
		DeviceName: "phone", UserAgent: "agent/1", IP: "192.0.2.1", MaxAge: maxAge, IdleTTL: idleTTL,
	}
	for _, c := range change {
		c(&start)
	}
	started, err := p.either().Create(p.ctx, start)
	p.must(err)
	return token, started
}

// refresh presents a token. It returns the answer and, if there is one, the successor that the
// client then holds.
func (p *probe) refresh(
	presented session.Token, change ...func(*session.Rotation),
) (session.RotateResult, session.Token) {
	rotated, next, err := refresh(p.ctx, p.either(), p.codec, presented, change...)
	p.must(err)
	return rotated, next
}

func refresh(
	ctx context.Context, store session.Store, codec *session.Codec, presented session.Token,
	change ...func(*session.Rotation),
) (session.RotateResult, session.Token, error) {
	next, rotation := codec.Next(presented)
	rotation.Grace, rotation.IdleTTL, rotation.UserAgent, rotation.IP = grace, idleTTL, "agent/2", "192.0.2.2"
	for _, c := range change {
		c(&rotation)
	}
	rotated, err := store.Rotate(ctx, rotation)
	if err != nil {
		return rotated, session.Token{}, err
	}
	switch rotated.Outcome {
	case session.Rotated:
		return rotated, next, nil
	case session.Replayed:
		next, err := codec.OpenChain(presented, rotated.Links)
		return rotated, next, err
	}
	return rotated, session.Token{}, nil
}

// rotate rotates a token that must be the current one.
func (p *probe) rotate(presented session.Token, change ...func(*session.Rotation)) session.Token {
	rotated, next := p.refresh(presented, change...)
	p.equal("refresh with the current token", rotated.Outcome, session.Rotated)
	return next
}

// answers requires an outcome.
func (p *probe) answers(what string, presented session.Token, want session.Outcome) session.RotateResult {
	rotated, _ := p.refresh(presented)
	p.equal(what, rotated.Outcome, want)
	return rotated
}

func (p *probe) get(t session.Token) session.Session {
	one, err := p.either().Get(p.ctx, t.UserID(), t.SessionID())
	p.must(err)
	return one
}

// absent requires that the session of a token is neither found nor reissued, nor walked over.
func (p *probe) absent(t session.Token, next uint32) {
	_, err := p.Store.Get(p.ctx, t.UserID(), t.SessionID())
	p.equal("it is not found", errors.Is(err, session.ErrNotFound), true)
	_, err = p.Store.Reissue(p.ctx, session.Reissue{UserID: t.UserID(), SessionID: t.SessionID(), Generation: next,
		IdleTTL: idleTTL})
	p.equal("it is not reissued", errors.Is(err, session.ErrNotFound), true)
	_, walked := p.walk(session.Filter{})[t.SessionID()]
	p.equal("it is walked over", walked, false)
}

func (p *probe) list(user uuid.UUID) []uuid.UUID {
	sessions, err := p.either().List(p.ctx, user)
	p.must(err)
	var ids []uuid.UUID
	for _, one := range sessions {
		ids = append(ids, one.ID)
	}
	return ids
}

// walk returns the ids that match, without repeats.
func (p *probe) walk(f session.Filter) map[uuid.UUID]session.Session {
	found := map[uuid.UUID]session.Session{}
	for one, err := range p.either().Walk(p.ctx, f) {
		p.must(err)
		found[one.ID] = one
	}
	return found
}

func (p *probe) marked() map[uuid.UUID]session.Marked {
	marked, err := p.either().Reused(p.ctx, 1000)
	p.must(err)
	found := map[uuid.UUID]session.Marked{}
	for _, m := range marked {
		found[m.Session.ID] = m
	}
	return found
}

// together starts n calls at once and waits for all of them.
func together(n int, call func(i int)) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			call(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
}
