package relay

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/toppira/authctl/modules/outbox"
)

// Sink is where events go: Kafka or a file. Package sink has both.
type Sink interface {
	// Name tells targets apart, in the database and in messages. It is the kind and the place, such
	// as "kafka:auth.events" or "file:/srv/events.ndjson". Order per key holds within a target.
	Name() string

	// Identity tells the target from another of the same name: the id of the Kafka cluster,
	// whatever the addresses of its brokers. It is empty if the target has none or does not say.
	Identity(ctx context.Context) (string, error)

	// Partitions asks how many partitions the target has now. The batches of one partition are
	// published one after another, those of different partitions concurrently.
	Partitions(ctx context.Context) (int, error)

	// Publish makes one attempt to append the batch to its partition, durably and in order, and
	// returns nil once it is durable. The relay calls it again with the same batch until it
	// succeeds; a sink should not append the batch twice if it can avoid that. When the relay gives
	// a batch up, another one follows.
	//
	// The error says what happens next. [Refused]: these records are never taken, the others are.
	// [Stalled]: a person must act. [ErrNotOwned]: nothing was sent. Any other: try again.
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
	// Owned reports whether the relay may still send them. A sink calls it right before each time
	// it sends, and returns [ErrNotOwned] on false.
	Owned func() bool
	// Sealed belongs to the sink: what it made of the records, kept for every retry.
	Sealed any
}

// ErrNotOwned says that a batch was not sent because its lease had ended.
var ErrNotOwned = errors.New("the lease of the events has ended")

// Refused is the error for records that the target will never take: too large, or not allowed.
type Refused struct {
	Records []int // which of the batch; empty: not known
	Err     error
}

func (e *Refused) Error() string { return "refused for good: " + e.Err.Error() }
func (e *Refused) Unwrap() error { return e.Err }

// Stalled is the error of a target that takes nothing until a person acts, on a missing topic or a
// missing right. The relay keeps trying, which is safe.
type Stalled struct {
	Kind string // one of [outbox.Kinds]
	Err  error  // says what to do
}

func (e *Stalled) Error() string { return e.Err.Error() }
func (e *Stalled) Unwrap() error { return e.Err }
