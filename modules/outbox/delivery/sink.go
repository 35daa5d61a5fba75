package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/toppira/authctl/modules/outbox"
)

// Sink delivers events to the targets of one kind, such as webhooks.
type Sink interface {
	// Deliver makes one attempt to deliver an event to a target, and returns nil once the target has
	// taken it. It is called for many keys at the same time, and for one event of a key at a time.
	// It must return soon after ctx ends.
	//
	// The error says what happens next. [*Refused]: the target never takes this event. [*Later]: try
	// again, but not before a given time. [*Gone]: the target takes nothing any more. [ErrNotOwned]:
	// nothing was sent. [*Dropped]: the event has become pointless. Any other: try again.
	Deliver(ctx context.Context, t outbox.Subscription, r outbox.Record, attempt Attempt) error

	// AnswerTimeout is how long Deliver may take after [Attempt.Owned] has returned true. A stopping
	// deliverer waits that long for answers: a lost answer means a duplicate.
	AnswerTimeout() time.Duration
}

// Patient is a sink that decides by itself when to give up: its events are tried again until it
// drops or refuses them, whatever outbox.webhook.retry_for says.
type Patient interface {
	// AttemptTimeout is how long an attempt may take; with other sinks it is a minute.
	AttemptTimeout() time.Duration
	// Life is after how long every event is pointless. A key that has been parked for so long is tried again, so
	// that the sink drops what nobody can want any more and nobody has to discard.
	Life() time.Duration
}

// Attempt is one attempt to deliver an event.
type Attempt struct {
	Number int       // counts from 1
	Now    time.Time // when it begins by the database's clock; zero: not known
	// Owned reports whether the event may still be sent. A sink calls it right before it sends, and
	// returns [ErrNotOwned] on false. When the deliverer stops, or the target is removed, ctx ends at
	// once for an attempt that has not asked yet.
	Owned func() bool
}

// ErrNotOwned says that an event was not sent because the lease of its key had ended, or because there
// was no way to send it yet. It does not count as a failed attempt.
var ErrNotOwned = errors.New("the lease of the event has ended")

// Refused is the error for an event that the target will never take. Its key is parked.
type Refused struct{ Err error }

func (e *Refused) Error() string { return "refused for good: " + e.Err.Error() }
func (e *Refused) Unwrap() error { return e.Err }

// Later is the error of a target that says when to try again.
type Later struct {
	After time.Duration // the shortest pause; the pause that grows with each attempt may be longer
	Err   error
}

func (e *Later) Error() string { return e.Err.Error() }
func (e *Later) Unwrap() error { return e.Err }

// Gone is the error of a target that takes nothing any more and says so. The target is paused until
// an operator resumes it.
type Gone struct{ Err error }

func (e *Gone) Error() string { return e.Err.Error() }
func (e *Gone) Unwrap() error { return e.Err }

// Dropped is the error for an event that has become pointless, such as a message that has expired.
// It counts as done and is counted separately.
type Dropped struct{ Err error }

func (e *Dropped) Error() string { return "dropped: " + e.Err.Error() }
func (e *Dropped) Unwrap() error { return e.Err }
