package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
)

// clockOffset is by how much PostgreSQL's clock is ahead of this machine's.
func clockOffset(ctx context.Context, db *database.DB) (time.Duration, error) {
	before := time.Now()
	var there time.Time
	if err := db.QueryRowContext(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
		return 0, err
	}
	return there.Sub(before.Add(time.Since(before) / 2)), nil
}

const (
	watchClockEvery = time.Minute
	clockTolerance  = 10 * time.Second // less than the lead that other servers accept in a token
)

// watchClock logs when this machine's clock and PostgreSQL's begin to differ, and when they agree again. Nobody
// else would say so: the other servers, which have the right time, only refuse the tokens of this one.
func watchClock(
	ctx context.Context, log *zap.Logger, every time.Duration, ask func(context.Context) (time.Duration, error),
) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for differs := false; ; {
		begun := time.Now()
		short, cancel := context.WithTimeout(ctx, checkTimeout)
		off, err := ask(short)
		cancel()
		// The answer may have taken its time on one way alone.
		wrong := err == nil && off.Abs()-time.Since(begun)/2 > clockTolerance
		switch {
		case err != nil:
		case wrong && !differs:
			log.Warn("clock_differs", zap.Duration("database_is_ahead_by", off), zap.String("hint",
				"other servers refuse access tokens that are dated ahead: synchronise both clocks (NTP)"))
			differs = true
		case !wrong && differs:
			log.Info("clock_agrees_again")
			differs = false
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
