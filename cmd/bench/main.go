// Command bench measures authctl, and prints every figure with a bound from the
// same run: a bare hash, a bare handler with one Redis script. Absolute figures depend on
// the machine; the ratios carry over to others.
//
//	go run ./cmd/bench            everything
//	go run ./cmd/bench signin     start-up, memory, sign-in and registration, and bare hashing
//	go run ./cmd/bench session    refresh and me, and a bare handler
//	go run ./cmd/bench feed       refresh without and with a thousand followers
//	go run ./cmd/bench flood      what a flood of sign-ins does to everything else
//	go run ./cmd/bench import     what an import does to sign-ins, on each database
//	go run ./cmd/bench relay      the relay and a bare producer
//	go run ./cmd/bench timing     whether the time of a refused sign-in tells why
//	go run ./cmd/bench growth     everything with ten million accounts; only when it is named
//	go run ./cmd/bench soak       half an hour with faults; only when it is named
//
// It starts its own servers, on loopback, against the PostgreSQL and Redis named by
// AUTHCTL_TEST_POSTGRES and AUTHCTL_TEST_REDIS (./deploy/test.sh starts them), and embedded
// where there are none.
package main

import (
	"cmp"
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
	size     float64       // accounts of the largest step of growth
	soak     time.Duration // how long it takes
	picture  string        // folder for the pictures of growth and soak; "": none
	slowDisk time.Duration // by how much longer PostgreSQL's flushes take
	slowCPU  int           // percent of each core that is left; 0: all of it
	binary   string        // authctl to measure; "": built from this tree
	beside   string        // another one that session measures in turns; "": none
	diskEnv  []string      // of a PostgreSQL whose disk is slow
	users    string        // what is imported before the server starts
	embedded bool          // the server has no engines, although there are some
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { interrupted.Store(true) })
	if len(os.Args) == 3 && os.Args[1] == bareCommand {
		os.Exit(exit(runBare(ctx, os.Args[2])))
	}
	if len(os.Args) == 2 && os.Args[1] == floodCommand {
		os.Exit(exit(floodClients(os.Stdin, os.Stdout)))
	}
	if len(os.Args) == 3 && os.Args[1] == burnerCommand {
		os.Exit(exit(runBurner(os.Args[2])))
	}
	var o options
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "how long each measurement takes")
	flag.IntVar(&o.cost, "cost", 10, "bcrypt cost of the sign-ins measured")
	flag.IntVar(&o.pairs, "pairs", 2000, "sign-ins of each kind in the timing study")
	flag.Float64Var(&o.size, "size", 1e7, "accounts of the largest step of growth")
	flag.DurationVar(&o.soak, "for", 30*time.Minute, "how long soak takes")
	flag.StringVar(&o.picture, "picture", "", "folder in which growth and soak leave a picture of what they measured")
	flag.StringVar(&o.binary, "binary", "", "authctl to measure, if not the one built from this tree; what relay "+
		"and growth say of events is of this tree's relay")
	flag.StringVar(&o.beside, "beside", "", "another authctl that session measures in turns, as a bound of 0.98")
	flag.DurationVar(&o.slowDisk, "slow-disk", 0, "how much longer each flush takes of a PostgreSQL that is started "+
		"for the run")
	flag.IntVar(&o.slowCPU, "slow-cpu", 0, "percent of each core that is left to everything on this machine; "+
		"needs root")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: go run ./cmd/bench [flags] "+
			"[signin] [session] [feed] [flood] [import] [relay] [timing] [growth] [soak]\n\n")
		flag.PrintDefaults()
	}
	os.Exit(exit(run(ctx, o, parts(os.Args[1:]))))
}

// parts reads flags, which may come before and after the names of parts.
func parts(args []string) (names []string) {
	for {
		_ = flag.CommandLine.Parse(args) // which exits when it fails
		if args = flag.Args(); len(args) == 0 {
			return names
		}
		names, args = append(names, args[0]), args[1:]
	}
}

func exit(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o options, parts []string) (err error) {
	type part struct {
		name  string
		run   func(context.Context, options, *report) error
		named bool // it runs only when it is named
	}
	all := []part{
		{"signin", benchSignIn, false}, {"session", benchSession, false}, {"feed", benchFeed, false},
		{"flood", benchFlood, false}, {"import", benchImport, false}, {"relay", benchRelay, false},
		{"timing", benchTiming, false}, {"growth", benchGrowth, true}, {"soak", benchSoak, true},
	}
	for _, name := range parts {
		if !slices.ContainsFunc(all, func(one part) bool { return one.name == name }) {
			return fmt.Errorf("there is no part %q: signin, session, feed, flood, import, relay, timing, growth, soak",
				name)
		}
	}
	restore, err := slowMachine(&o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore(), os.RemoveAll(built)) }()
	var r report
	for _, part := range all {
		if len(parts) > 0 && !slices.Contains(parts, part.name) || len(parts) == 0 && part.named {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", part.name)
		r.part = part.name
		whole := len(r.lines)
		err := part.run(ctx, o, &r)
		if ctx.Err() != nil { // what it measured last was cut off
			err, r.lines = cmp.Or(err, ctx.Err()), r.lines[:whole]
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", part.name, err), r.print())
		}
	}
	return r.print()
}

// undo takes back what was done, the last first.
type undo []func() error

func (u undo) run() error {
	var errs []error
	for _, one := range slices.Backward(u) {
		errs = append(errs, one())
	}
	return errors.Join(errs...)
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

// rate adds a throughput with its bound; goal is the lowest ratio, 0 for none.
func (r *report) rate(what string, figure, bound float64, boundName string, goal float64) {
	l := line{part: r.part, what: what, figure: fmt.Sprintf("%.1f/s", figure),
		bound: fmt.Sprintf("%s %.1f/s", boundName, bound), ratio: fmt.Sprintf("%.2f", figure/bound)}
	if goal > 0 {
		l.goal = fmt.Sprintf("≥ %.2f", goal)
		l.met = met(figure/bound >= goal)
	}
	r.lines = append(r.lines, l)
}

// turns adds throughputs that were measured in turns with their bound; goal is the lowest ratio, 0
// for none.
func (r *report) turns(what string, figures, bounds []result, boundName string, goal float64) {
	rates := func(list []result) (all []float64) {
		for _, one := range list {
			all = append(all, one.rate)
		}
		return all
	}
	failed := int64(0)
	for _, one := range slices.Concat(figures, bounds) {
		failed += one.failed
	}
	bound, half := rates(bounds), len(bounds)/2
	r.rate(fmt.Sprintf("%s (failed %d)", what, failed), mean(rates(figures)), mean(bound), boundName, goal)
	r.steady(apart(mean(bound[:half]), mean(bound[half:])))
}

// latency adds a latency together with that without load; goal is the longest, 0 for none.
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

// within adds a latency in milliseconds with its bound. The goal is met if it is at most that many
// times the bound, or short enough in itself.
func (r *report) within(what string, figure, bound float64, boundName string, times, enough float64) {
	l := line{part: r.part, what: what, figure: fmt.Sprintf("%.2f ms", figure),
		bound: fmt.Sprintf("%s %.2f ms", boundName, bound),
		goal:  fmt.Sprintf("≤ %.1f × or ≤ %.0f ms", times, enough), met: met(figure <= max(times*bound, enough))}
	if bound > 0 {
		l.ratio = fmt.Sprintf("%.1f", figure/bound)
	}
	r.lines = append(r.lines, l)
}

// underLoad adds a latency together with that without load. The goal is met if it is at most that
// many times as long, and not too long in itself.
func (r *report) underLoad(what string, figure, unloaded time.Duration, times float64, most time.Duration) {
	r.latency(what, figure, unloaded, most)
	l := &r.lines[len(r.lines)-1]
	l.goal = fmt.Sprintf("≤ %.0f × and ≤ %s", times, short(most))
	l.met = met(figure <= most && float64(figure) <= times*float64(unloaded))
}

// steady adds to the last line by what factor its bound differed between the halves of the run, or
// between turns. There is no verdict if it moved by more than a fifth.
func (r *report) steady(moved float64) {
	l := &r.lines[len(r.lines)-1]
	l.bound += fmt.Sprintf(", moved %.0f %%", 100*(moved-1))
	if l.met != "" && moved > movedMost {
		l.met = "not judged"
	}
}

// plain adds a figure without a bound.
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
