// Package retry repeats what may succeed later, after pauses.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Do runs do, up to attempts times, while it fails with an error that again accepts, and returns
// the last error. Each pause is random, the first one up to the given length and each later one up
// to twice as long as the one before, so that callers that failed together do not meet again. It
// returns early if ctx ends during a pause.
func Do(ctx context.Context, attempts int, pause time.Duration, again func(error) bool, do func() error) error {
	for {
		attempts--
		err := do()
		if err == nil || attempts <= 0 || !again(err) || !Sleep(ctx, rand.N(pause)) {
			return err
		}
		pause *= 2
	}
}

// Sleep waits, and returns false if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
