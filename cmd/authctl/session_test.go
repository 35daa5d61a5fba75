package main

import (
	"errors"
	"testing"
	"time"
)

func TestAMomentIsATimeOrHowLongAgoItWas(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"2026-11-01T00:00:00Z":      time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		"2026-11-01T00:00:00+02:00": time.Date(2026, 10, 31, 22, 0, 0, 0, time.UTC),
		"72h":                       now.Add(-72 * time.Hour),
		"1h30m":                     now.Add(-90 * time.Minute),
		"0s":                        now,
	} {
		if got, err := parseMoment("before", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "-1h", "72", "2026-11-01", "h", "1h ago", "0001-01-01T00:00:00Z",
		"0001-01-01T01:00:00+01:00"} {
		_, err := parseMoment("before", text, now)
		if _, misused := errors.AsType[misuse](err); !misused {
			t.Errorf("%q: %v", text, err)
		}
	}
}
