package relay

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/toppira/authctl/modules/outbox"
)

// Sink is where events go: Kafka or a file (package sink).
type Sink interface {
	// Name tells one target from another in the database and in words: its kind and place, such
	// as "kafka:auth.events" or "file:/srv/events.ndjson". Order per key is kept within a target.
	Name() string

	// Identity asks for what tells the target from another of the same name: the id of the
	// Kafka cluster, whatever the addresses of its brokers. Empty: there is no such thing, or
	// the target does not say.
	Identity(ctx context.Context) (string, error)

	// Partitions asks how many partitions the target has now. Events of one partition are
	// published one batch after another, those of different ones side by side.
	Partitions(ctx context.Context) (int, error)

	// Publish makes one attempt to append the batch to its partition, durably and in order,
	// and returns nil once it is safe. The relay calls it again with the same batch until it
	// succeeds, which must not append it twice where that can be helped. A batch given up by
	// the relay is followed by another one.
	//
	// An error says what comes next: [Refused]: these records never, the others yes;
	// [Stalled]: a person must act; [ErrNotOwned]: nothing was sent; any other: try again.
	Publish(ctx context.Context, b *Batch) error

	Close() error
}

// Record is one event on its way.
type Record struct {
	outbox.Record
	shard int
	at    pgtype.TID // of its pending row, on PostgreSQL
}

// Batch is what one attempt appends: records of one partition, in order.
type Batch struct {
	Partition int
	Records   []Record
	// Owned reports whether the relay may still send them. A sink asks right before each
	// time it does; false makes it return [ErrNotOwned].
	Owned func() bool
	// Sealed is the sink's own: what it made of the records, kept through every retry.
	Sealed any
}

// ErrNotOwned says that a batch was not sent because its lease was over.
var ErrNotOwned = errors.New("the lease of the events is over")

// Refused is the error of records that will never be taken: too large, not allowed.
type Refused struct {
	Records []int // which of the batch; empty when that is not known
	Err     error
}

func (e *Refused) Error() string { return "refused for good: " + e.Err.Error() }
func (e *Refused) Unwrap() error { return e.Err }

// Stalled is the error of a target that needs a person before it takes anything: a missing
// topic, a missing right. Trying again is safe and goes on.
type Stalled struct {
	Kind string // one of [outbox.Kinds]
	Err  error  // says what to do
}

func (e *Stalled) Error() string { return e.Err.Error() }
func (e *Stalled) Unwrap() error { return e.Err }
