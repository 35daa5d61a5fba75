package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestAClockThatDiffersIsLoggedOnce(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	answers := []time.Duration{0, hour, hour, -hour, 0, time.Second, -hour, 0}
	core, logged := observer.New(zapcore.InfoLevel)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watchClock(ctx, zap.New(core), time.Nanosecond, func(context.Context) (time.Duration, error) {
		if len(answers) == 0 {
			cancel()
			return 0, errors.New("the database is away")
		}
		off := answers[0]
		answers = answers[1:]
		return off, nil
	})
	var names []string
	for _, entry := range logged.All() {
		names = append(names, entry.Message)
	}
	if want := []string{"clock_differs", "clock_agrees_again", "clock_differs", "clock_agrees_again"}; !slices.Equal(
		names, want) {
		t.Errorf("logged %v, want %v", names, want)
	}
}

func TestTheClockOfPostgreSQLIsCompared(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	off, err := clockOffset(t.Context(), dbtest.Open(t, dbtest.PostgresURL(t)))
	if err != nil || off.Abs() > clockTolerance+time.Since(begun) {
		t.Errorf("the clock of this machine differs from itself by %s: %v", off, err)
	}
}
