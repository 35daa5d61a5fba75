package outbox

import (
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/database/dbtest"
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

// The shards of a partition go to another relay while the target is away: that ends the
// trouble here, and it is said. What is still this relay's goes on.
func TestTroubleEndsWithTheLease(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	now := time.Unix(1000, 0)
	db := dbtest.SQLite(t)
	r, err := NewRelay(db, &counting{partitions: 4}, Config{}, RelayOptions{Log: zap.New(core), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	r.partitions, r.lanes = 4, make([]lane, 4)
	r.held = map[int]*shard{1: {id: 1}, 2: {id: 2}, 6: {id: 6}}
	boom := errors.New("boom")
	r.trouble.begin(1, "topic", boom)
	r.trouble.begin(2, "topic", boom)
	last := func(want string) {
		t.Helper()
		if all := logs.All(); len(all) == 0 || all[len(all)-1].Message != want {
			t.Errorf("the last line is not %q: %v", want, all)
		}
	}
	renew := func(kept ...int) {
		var held, claims []claim
		for id := range r.held {
			held = append(held, claim{shard: id})
		}
		for _, id := range kept {
			claims = append(claims, claim{shard: id})
		}
		r.applyTick(now, held, tickResult{claims: claims})
	}
	renew(2, 6)
	renew(6)
	last("lost shards to another relay")
	renew()
	var messages []string
	for _, e := range logs.All() {
		messages = append(messages, e.Message)
	}
	if !slices.Contains(messages, "the events that could not be published are another relay's now") {
		t.Errorf("the end is not said: %v", messages)
	}
	// The next time is a time of its own, and its end the usual one.
	now = now.Add(time.Hour)
	r.trouble.begin(3, "topic", boom)
	now = now.Add(time.Second)
	r.trouble.over(3)
	last("events are published again")
	if d := logs.All()[logs.Len()-1].ContextMap()["after"]; d != time.Second {
		t.Errorf("after %v", d)
	}
}
