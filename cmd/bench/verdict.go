package main

import (
	"fmt"
	"slices"
	"time"
)

// paired are latencies of one operation, measured in turns at two installations, by turn.
type paired struct {
	name          string
	empty, loaded [][]time.Duration
	less          [2]time.Duration // what both take of it that is not of interest: a hash; p50 and p99
}

// judged is what a pair of measurements says.
type judged struct {
	what          string
	empty, loaded time.Duration
	ratio         float64
	moved         float64 // the larger one of the empty installation's halves by the smaller one
	met           string
}

// movedMost is how far the bound may move within a run before a ratio to it says nothing.
const movedMost = 1.2

// judge compares a quantile. The turns of the empty installation are the bound: when its first half and
// its second differ by more than a fifth, the machine was not the same throughout.
func (p paired) judge(q float64, limit float64) judged {
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
	j.ratio, j.met = verdict(float64(j.loaded), float64(j.empty), j.moved, limit)
	return j
}

// apart is how many times the larger one of two figures is as large as the smaller one.
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

// slope judges a series by the means of its first and last third, without what lies in windows. A
// series that falls is flat.
type slope struct {
	first, last float64
	ratio       float64
	seen        int // points in the third that has fewer
}

// slopeOf returns the slope of the points after from.
func slopeOf(points [][2]float64, from float64, windows [][2]float64) slope {
	var kept [][2]float64
	for _, p := range points {
		if p[0] >= from && !slices.ContainsFunc(windows, func(w [2]float64) bool { return p[0] >= w[0] && p[0] <= w[1] }) {
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

// flat reports whether the last third is at most limit times the first, or above it by no more than
// some absolute amount that is not worth a word. What was hardly seen in a third is not.
func (s slope) flat(limit, some float64) bool {
	return s.seen >= 3 && (s.ratio <= limit || s.last-s.first <= some)
}
