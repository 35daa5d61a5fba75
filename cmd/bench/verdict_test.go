package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func turns(values ...time.Duration) (list [][]time.Duration) {
	for _, v := range values {
		list = append(list, []time.Duration{v, v, v})
	}
	return list
}

func TestARatioIsJudgedUnlessTheBoundMoved(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		p    paired
		want string
	}{
		"as fast":      {paired{empty: turns(10*ms, 10*ms), loaded: turns(10*ms, 11*ms)}, "met"},
		"at the limit": {paired{empty: turns(10*ms, 10*ms), loaded: turns(12*ms, 12*ms)}, "met"},
		"slower":       {paired{empty: turns(10*ms, 10*ms), loaded: turns(13*ms, 13*ms)}, "MISSED"},
		"slower but for a hash": {paired{empty: turns(10*ms, 10*ms), loaded: turns(11*ms, 11*ms),
			less: [2]time.Duration{8 * ms, 8 * ms}}, "MISSED"},
		"the machine slowed": {paired{empty: turns(10*ms, 13*ms), loaded: turns(20*ms, 20*ms)},
			"not judged: the bound moved by 30 %"},
		"the machine sped up": {paired{empty: turns(13*ms, 10*ms), loaded: turns(9*ms, 9*ms)},
			"not judged: the bound moved by 30 %"},
		"nothing was measured": {paired{}, "not judged: no bound"},
	} {
		if got := c.p.judge(0.5).met; got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTheSlopeLeavesFaultsOut(t *testing.T) {
	t.Parallel()
	series := func(f func(at float64) float64) (points [][2]float64) {
		for at := 0.0; at <= 100; at++ {
			points = append(points, [2]float64{at, f(at)})
		}
		return points
	}
	steady := series(func(float64) float64 { return 50 })
	grows := series(func(at float64) float64 { return 50 + at })
	spike := series(func(at float64) float64 {
		if at > 80 && at < 90 {
			return 5000
		}
		return 50
	})
	warms := series(func(at float64) float64 { return min(50, 5*at) })
	for name, c := range map[string]struct {
		points  [][2]float64
		from    float64
		windows [][2]float64
		want    bool
	}{
		"steady":                     {steady, 0, nil, true},
		"grows":                      {grows, 0, nil, false},
		"a spike":                    {spike, 0, nil, false},
		"a spike in a fault":         {spike, 0, [][2]float64{{79, 91}}, true},
		"warms up":                   {warms, 0, nil, false},
		"has warmed up":              {warms, 10, nil, true},
		"too few points are left":    {steady, 0, [][2]float64{{0, 97}}, false},
		"nothing was seen":           {nil, 0, nil, false},
		"the end is lost in a fault": {grows, 0, [][2]float64{{60, 100}}, false},
		"falls":                      {series(func(at float64) float64 { return 200 - at }), 0, nil, true},
		"from nothing to some":       {series(func(at float64) float64 { return max(0, at-60) }), 0, nil, false},
	} {
		if got := slopeOf(c.points, c.from, c.windows).flat(1.1, 2); got != c.want {
			t.Errorf("%s: flat is %v, want %v: %+v", name, got, c.want, slopeOf(c.points, c.from, c.windows))
		}
	}
}

// A relay that grows until it is killed counts as growing, even if its small successor does not.
func TestARelayIsJudgedUntilItIsKilled(t *testing.T) {
	t.Parallel()
	s := &soak{series: map[string][][2]float64{}, faults: []fault{{"Redis", 40, 45}, {"relay", 73, 75}}}
	for at := 1.0; at < 100; at++ {
		memory := 50 + at
		if at >= 73 {
			memory = 50
		}
		s.series["memory relay"] = append(s.series["memory relay"], [2]float64{at, memory})
	}
	s.series["memory serve"] = s.series["memory relay"]
	if sl := slopeOf(s.ofOneProcess("memory relay"), 10, s.windows()); sl.flat(1.15, 8) {
		t.Errorf("a relay that grows is flat: %+v", sl)
	}
	if n := len(s.ofOneProcess("memory serve")); n != 99 {
		t.Errorf("%d of 99 points of serve are checked", n)
	}
}

func TestAnOperationMayFailOnlyInAFault(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		status         int
		err            error
		doubt, inFault bool
		want           soakOutcome
	}{
		"done":                                  {status: 204, want: soakDone},
		"later":                                 {status: 503, want: soakLater},
		"too many":                              {status: 429, want: soakLater},
		"an error of the server":                {status: 500, want: soakFailed},
		"broken":                                {err: broken, want: soakFailed},
		"broken in a fault":                     {err: broken, inFault: true, want: soakFault},
		"an error of the server in a fault":     {status: 500, inFault: true, want: soakFault},
		"signed out":                            {status: 401, want: soakFailed},
		"signed out after a lost answer":        {status: 401, doubt: true, want: soakFault},
		"another error after a lost answer":     {status: 500, doubt: true, want: soakFailed},
		"a connection lost after a lost answer": {err: broken, doubt: true, want: soakFailed},
	} {
		if got := outcomeIn(c.status, c.err, c.doubt, c.inFault); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A point needs all the rows that it measures with: the last point has everything, and each earlier
// one leaves what the next goes on with.
func TestThePointsOfGrowth(t *testing.T) {
	t.Parallel()
	points := growthPoints(10_000_000)
	var curve []int
	alone := map[string]bool{}
	for _, p := range points {
		if strings.HasPrefix(p.name, "all") {
			curve = append(curve, p.a.accounts)
		} else {
			alone[p.name] = p.final
		}
	}
	if want := []int{1, 1_000, 100_000, 10_000_000}; !slices.Equal(curve, want) {
		t.Errorf("the curve is %v, want %v", curve, want)
	}
	for _, kind := range []string{"accounts", "sessions", "revocations", "backlog"} {
		if !alone[kind] {
			t.Errorf("%s are not judged on their own", kind)
		}
	}
	last := points[len(points)-1]
	if want := (amounts{10_000_000, 5_000_000, 1_000_000, 5_000_000}); last.a != want || !last.final || !last.onTop {
		t.Errorf("the last point is %+v", last)
	}
	for _, p := range growthPoints(100) {
		if p.a.accounts > 100 {
			t.Errorf("%s is larger than what was asked for", p.name)
		}
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	const gb = 1e9
	for _, c := range []struct {
		size         int
		disk, memory float64
		want         bool
	}{{1_000_000, 100 * gb, 100 * gb, true}, {10_000_000, 20 * gb, 100 * gb, false}, {10_000_000, 100 * gb, 4 * gb,
		false}} {
		if err := fits(c.size, c.disk, c.memory); (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAPictureIsWellFormedAndInItsFrame(t *testing.T) {
	t.Parallel()
	c := chart{title: "a < b & c", notes: []string{"10^3"}, columns: 2, xTo: 7, ticks: []tick{{0, "1"}, {7, "10^7"}}}
	for i := range 3 {
		c.panels = append(c.panels,
			panel{title: "p", unit: "ms", log: i == 1, bands: [][2]float64{{-5, 1}, {6, 900}}, lines: []plotLine{
				{name: "p50", points: [][2]float64{{0, 0}, {7, 123456}}}, {name: "none"},
			}})
	}
	text := c.svg()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, wrong := range []string{"NaN", "Inf", `x="-`} {
		if strings.Contains(text, wrong) {
			t.Errorf("the picture has %s", wrong)
		}
	}
	if n := strings.Count(text, "<path d=\"M"); n < 3 {
		t.Errorf("it has %d lines", n)
	}
}

func TestASparkShowsTheShape(t *testing.T) {
	t.Parallel()
	var rise [][2]float64
	for i := range 80 {
		rise = append(rise, [2]float64{float64(i), float64(i)})
	}
	if got := spark(rise, 8); got != "▁▂▃▄▄▅▆▇" {
		t.Errorf("a line that rises is %q", got)
	}
	if got := spark(rise[:1], 8); got != "▁" {
		t.Errorf("one zero is %q", got)
	}
	if got := spark(nil, 8); got != "" {
		t.Errorf("nothing is %q", got)
	}
}

func TestRoundNumbers(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]float64{0: 1, 0.7: 0.8, 1: 1, 1.2: 1.5, 47: 50, 99: 100, 5001: 6000} {
		if got := niceTop(v); got < want*0.999 || got > want*1.001 {
			t.Errorf("the axis of %g ends at %g, want %g", v, got, want)
		}
	}
	if got := grouped(1234567); got != "1,234,567" {
		t.Error(got)
	}
	for n, want := range map[int]string{1: "1", 1000: "10^3", 10_000_000: "10^7", 3_000_000: "3·10^6", 1234: "1234"} {
		if got := power(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
