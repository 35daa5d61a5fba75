package outbox

import (
	"context"

	"github.com/toppira/authctl/platform/database"
)

// Shown is what a tail remembers of what it has shown.
type Shown = idSet

// Remembered is how many ids it has room for.
func (s *idSet) Remembered() int { return len(s.bits) * 64 }

// TailInto is [Tail] that remembers where the test can see it.
func TailInto(ctx context.Context, db *database.DB, opt TailOptions, shown *Shown, fn func(Entry) error) error {
	return tail(ctx, db, opt, shown, fn)
}

// IdleSegment is the condition that no event of a segment waits.
func IdleSegment(table string) string { return idleSegment(table) }
