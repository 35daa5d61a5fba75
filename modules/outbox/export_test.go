package outbox

import (
	"context"

	"github.com/toppira/authctl/platform/database"
)

// Shown is what a tail remembers of the events that it has shown.
type Shown = idSet

// Remembered is the number of ids that it has room for.
func (s *idSet) Remembered() int { return len(s.bits) * 64 }

// TailInto is [Tail] with a memory that the test can see.
func TailInto(ctx context.Context, db *database.DB, opt TailOptions, shown *Shown, fn func(Entry) error) error {
	return tail(ctx, db, opt, shown, fn)
}

// IdleSegment is the condition that no event of a segment is waiting.
func IdleSegment(table string) string { return idleSegment(table) }
