// Command bench measures authctl, and prints every figure beside a bound that it takes in the
// same run: a bare hash, a bare handler with one Redis script. Absolute figures tell about
// the machine; the ratios travel.
//
//	go run ./cmd/bench            everything
//	go run ./cmd/bench signin     start-up, memory, sign-in and registration beside bare hashing
//	go run ./cmd/bench session    refresh and me beside a bare handler
//	go run ./cmd/bench feed       refresh without and with a thousand followers
//	go run ./cmd/bench flood      what a flood of sign-ins does to everything else
//	go run ./cmd/bench import     what an import does to sign-ins, on each database
//	go run ./cmd/bench relay      the relay beside a bare producer
//	go run ./cmd/bench timing     whether the time of a refused sign-in tells why
//
// It starts its own servers, on loopback, against the PostgreSQL and Redis named by
// AUTHCTL_TEST_POSTGRES and AUTHCTL_TEST_REDIS (./deploy/test.sh starts them), and embedded
// where there are none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	duration time.Duration // of each measurement
	cost     int           // bcrypt
	pairs    int           // of the timing study

	// prepare runs before the server starts, on its database; run calls authctl there.
	prepare func(run func(stdin string, args ...string) error) error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 2 && os.Args[1] == bareCommand {
		os.Exit(exit(runBare(ctx)))
	}
	var o options
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "how long each measurement takes")
	flag.IntVar(&o.cost, "cost", 10, "bcrypt cost of the sign-ins measured")
	flag.IntVar(&o.pairs, "pairs", 2000, "sign-ins of each kind in the timing study")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: go run ./cmd/bench [flags] "+
			"[signin] [session] [feed] [flood] [import] [relay] [timing]\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	os.Exit(exit(run(ctx, o, flag.Args())))
}

func exit(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o options, parts []string) error {
	all := []struct {
		name string
		run  func(context.Context, options, *report) error
	}{{"signin", benchSignIn}, {"session", benchSession}, {"feed", benchFeed}, {"flood", benchFlood}, {"import",
		benchImport}, {"relay", benchRelay}, {"timing", benchTiming}}
	for _, part := range parts {
		if !slices.ContainsFunc(all, func(one struct {
			name string
			run  func(context.Context, options, *report) error
		}) bool {
			return one.name == part
		}) {
			return fmt.Errorf("there is no part %q: signin, session, feed, flood, import, relay, timing", part)
		}
	}
	var r report
	for _, part := range all {
		if len(parts) > 0 && !slices.Contains(parts, part.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", part.name)
		r.part = part.name
		if err := part.run(ctx, o, &r); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", part.name, err), r.print())
		}
	}
	return r.print()
}

// report collects the lines of the result.
type report struct {
	part  string
	lines []line
}

type line struct {
	part, what, figure, bound, ratio, goal string
	met                                    string
}

// rate adds a throughput beside its bound; goal is the least ratio, 0 for none.
func (r *report) rate(what string, figure, bound float64, boundName string, goal float64) {
	l := line{part: r.part, what: what, figure: fmt.Sprintf("%.1f/s", figure),
		bound: fmt.Sprintf("%s %.1f/s", boundName, bound), ratio: fmt.Sprintf("%.2f", figure/bound)}
	if goal > 0 {
		l.goal = fmt.Sprintf("≥ %.2f", goal)
		l.met = met(figure/bound >= goal)
	}
	r.lines = append(r.lines, l)
}

// latency adds a latency beside the same one without load; goal is the longest, 0 for none.
func (r *report) latency(what string, figure, unloaded, goal time.Duration) {
	l := line{part: r.part, what: what, figure: short(figure)}
	if unloaded > 0 {
		l.bound, l.ratio = "unloaded "+short(unloaded), fmt.Sprintf("%.1f", float64(figure)/float64(unloaded))
	}
	if goal > 0 {
		l.goal, l.met = "≤ "+short(goal), met(figure <= goal)
	}
	r.lines = append(r.lines, l)
}

// plain adds a figure with no bound to measure beside it.
func (r *report) plain(what, figure, goal string, ok bool) {
	l := line{part: r.part, what: what, figure: figure, goal: goal}
	if goal != "" {
		l.met = met(ok)
	}
	r.lines = append(r.lines, l)
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}

func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func (r *report) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "PART\tWHAT\tFIGURE\tBOUND\tRATIO\tGOAL\t")
	for _, l := range r.lines {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.part, l.what, l.figure, l.bound, l.ratio, l.goal, l.met)
	}
	return w.Flush()
}
