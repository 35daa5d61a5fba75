package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
)

// benchTiming asks whether the time of a refused sign-in tells a name that does not exist
// from one that does: the chance that one of the first takes longer than one of the second.
// 0.5 is no difference; R01 allows 0.47 to 0.53.
func benchTiming(ctx context.Context, o options, r *report) (err error) {
	// A low cost makes differences of everything else stand out, and the study short.
	o.cost = 4
	s, err := startServer(ctx, o, "AUTH_THROTTLE_ENABLED=false")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	names, _, err := s.users(50)
	if err != nil {
		return err
	}
	kinds := []struct {
		name string
		pick func() string
	}{
		{"existing", func() string { return names[rand.IntN(len(names))] }},
		{"missing", func() string { return "bench-" + uuid.NewString() }},
	}
	times := make([][]time.Duration, len(kinds))
	for range o.pairs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, k := range rand.Perm(len(kinds)) { // interleaved: what else goes on meets all alike
			body := map[string]string{"username": kinds[k].pick(), "password": "a wrong password"}
			start := time.Now()
			status, _, err := s.call("POST", "/api/v1/auth/login", body)
			took := time.Since(start)
			if err != nil || status != 401 {
				return fmt.Errorf("%s: %d %w", kinds[k].name, status, err)
			}
			times[k] = append(times[k], took)
		}
	}
	a := auc(times[1], times[0])
	r.plain(fmt.Sprintf("AUC of missing against existing names, %d pairs", o.pairs), fmt.Sprintf("%.3f", a), "0.47 to 0.53", a >= 0.47 && a <= 0.53)
	return nil
}

// auc is the probability that a value of a is above one of b (Mann–Whitney).
func auc(a, b []time.Duration) float64 {
	b = slices.Sorted(slices.Values(b))
	var sum float64
	for _, v := range a {
		below, _ := slices.BinarySearch(b, v)
		above, _ := slices.BinarySearch(b, v+1)
		sum += float64(below) + float64(above-below)/2
	}
	return sum / float64(len(a)) / float64(len(b))
}
