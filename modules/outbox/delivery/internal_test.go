package delivery

import (
	"testing"
	"time"
)

// A thousand events a second wake a target that wants none of them: it looks ten times a second, and at
// once when there was a pause.
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
		t.Errorf("a look that is put off waits %v, %v", left, put)
	}
	now = now.Add(time.Second)
	if left, _ := l.left(now); left != 0 || !l.due(now) {
		t.Errorf("after a pause it waits %v", left)
	}
	if _, put := l.left(now); put {
		t.Error("a look that is made is put off")
	}
	if n := looks(true); n != 1000 {
		t.Errorf("%d of 1000 looks that find something", n)
	}
}
