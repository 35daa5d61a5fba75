package database

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// Nobody need ask for readiness again: then a later error has another reason.
func TestThatCommitsWaitForAStandbyIsForgotten(t *testing.T) {
	t.Parallel()
	db := &DB{noStandby: new(atomic.Int64)}
	for age, want := range map[time.Duration]bool{0: true, 2 * time.Minute: false} {
		db.noStandby.Store(time.Now().Add(-age).Unix())
		if err := db.uncertain(context.DeadlineExceeded); errors.Is(err, errNoStandby) != want {
			t.Errorf("%s later: %v", age, err)
		}
	}
}
