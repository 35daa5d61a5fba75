package relay

import (
	"context"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// SweepOften makes a relay look below its bounds all the time.
func SweepOften(r *Relay) { SweepEvery(r, 20*time.Millisecond) }

// SweepEvery makes a relay look below its bounds so often.
func SweepEvery(r *Relay, d time.Duration) { r.sweepEvery = d }

// Settling returns what raises the bound by one step and returns it.
func Settling(db *database.DB) func(context.Context) (int64, error) {
	s := schema.StableWatermark{DB: db}
	return func(ctx context.Context) (int64, error) {
		_, err := s.Advance(ctx, "")
		return s.ID, err
	}
}

// Server tells which database server this is.
func Server(ctx context.Context, db *database.DB) (name string, err error) {
	err = db.QueryRowContext(ctx, "SELECT "+schema.ThisServer(db)).Scan(&name)
	return name, err
}
