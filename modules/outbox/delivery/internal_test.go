package delivery

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A target wants none of a thousand events a second. The deliverer looks ten times a second, and at
// once after a pause.
func TestLooksThatFindNothingAreSpaced(t *testing.T) {
	t.Parallel()
	var l lull
	now := time.Now()
	looks := func(found bool) (n int) {
		for range 1000 {
			now = now.Add(time.Millisecond)
			if l.due(now) {
				n++
				l.done(now, found)
			}
		}
		return n
	}
	if n := looks(false); n < 10 || n > 20 {
		t.Errorf("%d looks in the first second", n)
	}
	if n := looks(false); n < 9 || n > 10 {
		t.Errorf("%d looks in the second one", n)
	}
	l.due(now)
	if left, put := l.left(now); !put || left <= 0 || left > longestLull {
		t.Errorf("a delayed look waits %v, %v", left, put)
	}
	now = now.Add(time.Second)
	if left, _ := l.left(now); left != 0 || !l.due(now) {
		t.Errorf("after a pause it waits %v", left)
	}
	if _, put := l.left(now); put {
		t.Error("a look that was due is delayed")
	}
	if n := looks(true); n != 1000 {
		t.Errorf("%d of 1000 looks that find something", n)
	}
}

// An outage of the database that lasts and a role without rights have different names in the log, since
// the second waits for a person. Each is logged once, and its end tells how long it lasted.
func TestAnOutageOfTheDatabaseIsLogged(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		wait time.Duration
	}{
		"deliverer_database_away": {errors.New("refused"), 2 * time.Second},
		"deliverer_stalled":       {&pgconn.PgError{Code: "42501"}, 0},
	} {
		core, logs := observer.New(zap.InfoLevel)
		now := time.Unix(1000, 0)
		d := &Deliverer{log: zap.New(core), now: func() time.Time { return now }}
		d.failed(errors.New("a connection that was idle"))
		d.worked()
		d.failed(test.err)
		now = now.Add(test.wait)
		d.failed(test.err)
		d.failed(test.err)
		now = now.Add(time.Minute)
		d.worked()
		d.worked()
		lines := logs.All()
		if len(lines) != 2 || lines[0].Message != name || lines[1].Message != "deliverer_outage_ended" {
			t.Fatalf("%s: %v", name, lines)
		}
		if lasted := lines[1].ContextMap()["lasted"]; lasted != test.wait+time.Minute {
			t.Errorf("%s: it lasted %v", name, lasted)
		}
	}
}
