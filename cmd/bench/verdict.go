package main

import (
	"fmt"
	"slices"
	"time"
)

// paired are latencies of one operation on two installations, measured in turns, by turn.
type paired struct {
	name          string
	empty, loaded [][]time.Duration
	less          [2]time.Duration // to subtract from p50 and p99, such as the time of a hash
}

// add keeps the latencies of a turn. Those of the first round only warm up.
func (p *paired) add(round int, empty bool, took []time.Duration) {
	switch {
	case round == 0:
	case empty:
		p.empty = append(p.empty, took)
	default:
		p.loaded = append(p.loaded, took)
	}
}

// judged is the verdict on a pair of measurements.
type judged struct {
	what          string
	empty, loaded time.Duration
	ratio         float64
	moved         float64 // the ratio of the empty installation's halves, at least 1
	met           string
}

// movedMost is how far the bound may move within a run before a ratio to it means nothing.
const movedMost = 1.2

// judge compares a quantile. The turns of the empty installation are the bound: when its first half and
// its second differ by more than a fifth, the machine was not the same throughout.
func (p paired) judge(q float64) judged {
	at := func(turns [][]time.Duration) time.Duration { return quantile(slices.Concat(turns...), q) }
	less := p.less[0]
	if q > 0.5 {
		less = p.less[1]
	}
	half := len(p.empty) / 2
	first, second := at(p.empty[:half])-less, at(p.empty[half:])-less
	j := judged{
		what: fmt.Sprintf("%s p%.0f", p.name, 100*q), empty: at(p.empty) - less, loaded: at(p.loaded) - less,
		moved: apart(float64(first), float64(second)),
	}
	j.ratio, j.met = verdict(float64(j.loaded), float64(j.empty), j.moved, growthLimit)
	return j
}

// apart is the ratio of the larger of two figures to the smaller one.
func apart(a, b float64) float64 {
	if a <= 0 || b <= 0 {
		return 1e9
	}
	return max(a/b, b/a)
}

// verdict says whether a figure is at most limit times its bound.
func verdict(figure, bound, moved, limit float64) (ratio float64, met string) {
	if bound <= 0 {
		return 0, "not judged: no bound"
	}
	ratio = figure / bound
	switch {
	case moved > 1e6:
		return ratio, "not judged: no bound"
	case moved > movedMost:
		return ratio, fmt.Sprintf("not judged: the bound moved by %.0f %%", 100*(moved-1))
	case ratio <= limit:
		return ratio, "met"
	}
	return ratio, "MISSED"
}

// slope judges a series by the means of its first and last third, without the points in windows. A
// falling series counts as flat.
type slope struct {
	first, last float64
	ratio       float64
	seen        int // points in the third with fewer
}

// slopeOf returns the slope of the points after from.
func slopeOf(points [][2]float64, from float64, windows [][2]float64) slope {
	var kept [][2]float64
	for _, p := range points {
		if p[0] >= from &&
			!slices.ContainsFunc(windows, func(w [2]float64) bool { return p[0] >= w[0] && p[0] <= w[1] }) {
			kept = append(kept, p)
		}
	}
	var s slope
	if len(points) == 0 {
		return s
	}
	begin, end := from, points[len(points)-1][0]
	third := (end - begin) / 3
	mean := func(from, to float64) (value float64, n int) {
		sum := 0.0
		for _, p := range kept {
			if p[0] >= from && p[0] <= to {
				sum, n = sum+p[1], n+1
			}
		}
		return sum / float64(max(1, n)), n
	}
	var first, last int
	s.first, first = mean(begin, begin+third)
	s.last, last = mean(end-third, end)
	s.seen = min(first, last)
	switch {
	case s.first > 0:
		s.ratio = s.last / s.first
	case s.last == 0:
		s.ratio = 1
	default:
		s.ratio = 1e9
	}
	return s
}

// flat reports whether the last third is at most limit times the first, or exceeds it by no more
// than a negligible absolute amount. A series with too few points in a third is not flat.
func (s slope) flat(limit, some float64) bool {
	return s.seen >= 3 && (s.ratio <= limit || s.last-s.first <= some)
}
