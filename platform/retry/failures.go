package retry

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Failures says which failures of what is tried every few seconds are worth a line of the log.
type Failures struct {
	said sync.Map // by what was tried, when there was a line
}

// Say reports whether to log the error of what was tried; nil if it worked. A failure is logged when it begins, and
// every ten minutes while it lasts.
func (f *Failures) Say(what string, err error, now time.Time) bool {
	last, failed := f.said.Load(what)
	switch {
	case err == nil:
		f.said.Delete(what)
		return false
	case errors.Is(err, context.Canceled) || failed && now.Sub(last.(time.Time)) < 10*time.Minute:
		return false
	}
	f.said.Store(what, now)
	return true
}
