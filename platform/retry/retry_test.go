package retry_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/toppira/authctl/platform/retry"
)

var errBusy, errBroken = errors.New("busy"), errors.New("broken")

func TestDo(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answers []error // of each attempt; the last one repeats
		want    error
		runs    int
	}{
		"at once":           {[]error{nil}, nil, 1},
		"later":             {[]error{errBusy, errBusy, nil}, nil, 3},
		"too often":         {[]error{errBusy}, errBusy, 4},
		"not worth another": {[]error{errBusy, errBroken}, errBroken, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			var at []time.Duration
			begun := time.Now()
			err := retry.Do(t.Context(), 4, time.Second, func(err error) bool { return err == errBusy }, func() error {
				at = append(at, time.Since(begun))
				return tc.answers[min(len(at), len(tc.answers))-1]
			})
			if err != tc.want || len(at) != tc.runs {
				t.Errorf("%s: %v after %d runs, want %v after %d", name, err, len(at), tc.want, tc.runs)
			}
			for i, longest := 1, time.Second; i < len(at); i, longest = i+1, 2*longest {
				if pause := at[i] - at[i-1]; pause >= longest {
					t.Errorf("%s: the pause %d took %v", name, i, pause)
				}
			}
		})
	}
}

func TestPausesDiffer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var pauses []time.Duration
		for range 3 {
			begun := time.Now()
			_ = retry.Do(t.Context(), 2, time.Hour, func(error) bool { return true }, func() error { return errBusy })
			pauses = append(pauses, time.Since(begun))
		}
		if slices.Max(pauses) == slices.Min(pauses) {
			t.Errorf("three pauses took %v", pauses)
		}
	})
}

func TestAPauseEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if retry.Sleep(ctx, time.Hour) || time.Since(begun) != time.Second {
			t.Errorf("it continued for %v", time.Since(begun))
		}
		runs := 0
		err := retry.Do(ctx, 5, time.Hour, func(error) bool { return true }, func() error { runs++; return errBusy })
		if err != errBusy || runs != 1 {
			t.Errorf("%v after %d runs", err, runs)
		}
	})
}

func TestAFailureThatLastsIsSaidRarely(t *testing.T) {
	t.Parallel()
	var failures retry.Failures
	now := time.Now()
	for i, step := range []struct {
		what  string
		err   error
		after time.Duration
		want  bool
	}{
		{"one", errBusy, 0, true},
		{"one", errBusy, 9 * time.Minute, false},
		{"another", errBusy, 0, true},
		{"one", errBusy, time.Minute, true},
		{"one", context.Canceled, time.Hour, false},
		{"one", nil, 0, false},
		{"one", errBusy, 0, true},
	} {
		now = now.Add(step.after)
		if got := failures.Say(step.what, step.err, now); got != step.want {
			t.Errorf("step %d: %v", i+1, got)
		}
	}
}
