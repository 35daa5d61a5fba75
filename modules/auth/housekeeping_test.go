package auth

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/database/dbtest"
)

// Some of it is tried every five seconds, and an outage may last for hours.
func TestHousekeepingThatFailsIsLoggedRarely(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	now := time.Now()
	env.now = func() time.Time { return now }
	away, cancel := context.WithDeadline(t.Context(), now)
	defer cancel()
	for i, want := range []int{1, 1, 1, 2, 2} { // after 0, 4, 8, 12 and 16 minutes
		env.forget(away)
		if got := strings.Count(env.log.String(), `"what":"replaced_tokens"`); got != want {
			t.Errorf("%d lines after attempt %d, want %d", got, i+1, want)
		}
		now = now.Add(4 * time.Minute)
	}
	env.forget(t.Context())
	env.forget(away)
	if got := strings.Count(env.log.String(), `"what":"replaced_tokens"`); got != 3 {
		t.Errorf("%d lines after it succeeded and failed again, want 3", got)
	}
}
