package telemetry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Check checks one backend of the process.
type Check struct {
	Name     string // database, session_store, kafka
	Probe    func(context.Context) error
	Critical bool // the process cannot serve without it; otherwise it is only reported

	// Holds is how long the result of a successful probe is reused, at least a quarter of a second.
	// That of a failed one is always reused for a quarter of a second.
	Holds time.Duration
}

// Result is the result of a check.
type Result struct {
	Name     string
	Critical bool
	Latency  time.Duration
	Err      error // its text is only for operators
}

// Readiness runs the checks. However often it is asked, each check runs once at a time, and not
// again while its result holds.
type Readiness struct {
	checks []Check
	probes []probe
	now    func() time.Time
}

const (
	probeTimeout = time.Second
	holds        = 250 * time.Millisecond
)

// probe is the state of one check: its last result, and whether it is running.
type probe struct {
	mu      sync.Mutex
	result  Result
	at      time.Time
	running chan struct{} // closed at the end of the current run; nil between runs
}

// NewReadiness makes a readiness of checks.
func NewReadiness(checks ...Check) *Readiness {
	return &Readiness{checks: checks, probes: make([]probe, len(checks)), now: time.Now}
}

var errSlow = errors.New("no answer in time")

// Report returns the result of every check, in order, and whether all critical ones succeeded. It
// takes at most a second: a probe that takes longer has failed, even if it ignores its context,
// and is not started again before it returns.
func (r *Readiness) Report(ctx context.Context) (results []Result, ready bool) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	waits := make([]chan struct{}, len(r.checks))
	for i := range r.checks {
		waits[i] = r.start(i)
	}
	results, ready = make([]Result, len(r.checks)), true
	for i, check := range r.checks {
		results[i] = r.await(ctx, i, waits[i])
		if results[i].Err != nil && check.Critical {
			ready = false
		}
	}
	return results, ready
}

// start begins a run unless the last result still holds or a run is in progress. It returns what
// to wait for, or nil.
func (r *Readiness) start(i int) chan struct{} {
	p, check := &r.probes[i], r.checks[i]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil {
		return p.running
	}
	hold := holds
	if p.result.Err == nil {
		hold = max(holds, check.Holds)
	}
	if !p.at.IsZero() && r.now().Sub(p.at) < hold {
		return nil
	}
	done := make(chan struct{})
	p.running = done
	go func() {
		defer close(done)
		// Not the caller's deadline, because others wait for the same run.
		ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
		defer cancel()
		begun := r.now()
		err := attempt(ctx, check.Probe)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.at = r.now()
		p.result = Result{Name: check.Name, Critical: check.Critical, Latency: p.at.Sub(begun), Err: err}
		p.running = nil
	}()
	return done
}

func (r *Readiness) await(ctx context.Context, i int, done chan struct{}) Result {
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			// An earlier check may have used up the time, but this one may be done.
			select {
			case <-done:
			default:
				return Result{Name: r.checks[i].Name, Critical: r.checks[i].Critical, Latency: probeTimeout,
					Err: errSlow}
			}
		}
	}
	p := &r.probes[i]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

func attempt(ctx context.Context, probe func(context.Context) error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("panic: %v", value)
		}
	}()
	return probe(ctx)
}
