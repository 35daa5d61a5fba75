package outbox

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestTroubleIsSaidOnceAndNotForTrifles(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	tr := trouble{log: zap.New(core), now: func() time.Time { return now }}
	said := func(want int) {
		t.Helper()
		if got := logs.Len(); got != want {
			t.Fatalf("%d lines, want %d: %v", got, want, logs.All())
		}
	}
	boom := errors.New("boom")
	tr.begin(1, "retry", boom)
	tr.over(1)
	said(0) // a trifle
	tr.begin(1, "retry", boom)
	tr.begin(2, "retry", boom)
	now = now.Add(2 * time.Second)
	tr.begin(1, "retry", boom)
	tr.begin(2, "retry", boom)
	said(1)
	now = now.Add(time.Minute)
	tr.begin(1, "retry", boom)
	said(2) // still
	tr.over(1)
	said(2) // not all of it
	tr.over(2)
	said(3)
	tr.begin(3, "topic", boom) // nothing that mends itself
	said(4)
}
