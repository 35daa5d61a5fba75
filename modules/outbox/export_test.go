package outbox

import (
	"context"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// SweepOften makes a relay look below its bounds all the time.
func SweepOften(r *Relay) { SweepEvery(r, 20*time.Millisecond) }

// SweepEvery makes a relay look below its bounds so often.
func SweepEvery(r *Relay, d time.Duration) { r.sweepEvery = d }

// Settling returns what raises the bound by one step and returns it.
func Settling(db *database.DB) func(context.Context) (int64, error) {
	s := settler{db: db}
	return func(ctx context.Context) (int64, error) {
		_, err := s.step(ctx, "")
		return s.bound, err
	}
}

// Server tells which database server this is.
func Server(ctx context.Context, db *database.DB) (name string, err error) {
	err = db.QueryRowContext(ctx, "SELECT "+thisServer(db)).Scan(&name)
	return name, err
}

// Shown is what a tail remembers of what it has shown.
type Shown = idSet

// Remembered is how many ids it has room for.
func (s *idSet) Remembered() int { return len(s.bits) * 64 }

// TailInto is [Tail] that remembers where the test can see it.
func TailInto(ctx context.Context, db *database.DB, opt TailOptions, shown *Shown, fn func(Entry) error) error {
	return tail(ctx, db, opt, shown, fn)
}
