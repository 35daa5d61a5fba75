package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// chart is a picture of small panels over one horizontal axis. It brings its own light background, so
// that it can be read on a page of any colour, and its letters are large enough on a screen of 320
// pixels.
type chart struct {
	title   string
	notes   []string // lines below
	columns int
	ticks   []tick // of the horizontal axis
	xTo     float64
	panels  []panel
}

type tick struct {
	at    float64
	label string
}

type panel struct {
	title string
	unit  string
	log   bool // the vertical axis is logarithmic
	lines []plotLine
	bands [][2]float64 // that are shaded
}

type plotLine struct {
	name   string
	color  int // of palette
	dashed bool
	points [][2]float64
}

// palette has colours that people with other colour vision can tell apart, also by brightness.
var palette = []string{"#0550ae", "#bc4c00", "#57606a"}

const (
	chartWidth  = 360.0
	panelHeight = 92.0
	letters     = 11.0
)

// niceTop is the round number at or above a value, where an axis ends.
func niceTop(v float64) float64 {
	if v <= 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 1.5, 2, 3, 4, 5, 6, 8, 10} {
		if v <= m*unit*(1+1e-9) {
			return m * unit
		}
	}
	return 10 * unit
}

// brief writes a number in few characters.
func brief(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'g', 3, 64) + "k"
	}
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// svg draws it.
func (c chart) svg() string {
	var b strings.Builder
	columns := max(1, c.columns)
	rows := (len(c.panels) + columns - 1) / columns
	const head, left, right, above, below = 26.0, 32.0, 10.0, 38.0, 18.0
	foot := 10 + 14*float64(len(c.notes))
	row := above + panelHeight + below
	height := head + float64(rows)*row + foot
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" role="img" aria-label="%s" `+
		`font-family="system-ui, sans-serif" font-size="%g" fill="#1f2328">`+"\n", chartWidth, height, 2*chartWidth, 2*height,
		html.EscapeString(c.title), letters)
	fmt.Fprintf(&b, `<rect width="%g" height="%g" rx="6" fill="#ffffff" stroke="#d0d7de"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<text x="10" y="18" font-weight="600" font-size="12">%s</text>`+"\n", html.EscapeString(c.title))
	width := chartWidth / float64(columns)
	for i, p := range c.panels {
		x0 := float64(i%columns)*width + left
		y0 := head + float64(i/columns)*row + above
		c.panel(&b, p, x0, y0, width-left-right)
	}
	for i, note := range c.notes {
		fmt.Fprintf(&b, `<text x="10" y="%g" fill="#57606a">%s</text>`+"\n", height-foot+14*float64(i+1)-2, html.EscapeString(note))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c chart) panel(b *strings.Builder, p panel, x0, y0, width float64) {
	x := func(v float64) float64 { return x0 + width*v/max(1e-9, c.xTo) }
	scale, marks := p.scale()
	y := func(v float64) float64 { return y0 + panelHeight*(1-scale(v)) }
	name := p.title
	if p.unit != "" {
		name += ", " + p.unit
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-weight="600">%s</text>`+"\n", x0-22, y0-24, html.EscapeString(name))
	legend := x0 - 22
	for _, l := range p.lines {
		if l.name == "" {
			continue
		}
		fmt.Fprintf(b, `<path d="M%.1f %.1fh14" stroke="%s" stroke-width="2"%s/>`, legend, y0-14, palette[l.color], dash(l.dashed))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", legend+17, y0-10, html.EscapeString(l.name))
		legend += 17 + 6.2*float64(len(l.name)) + 8
	}
	for _, band := range p.bands {
		from, to := max(band[0], 0), min(band[1], c.xTo)
		if to > from {
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#f1e05a" fill-opacity="0.35"/>`+"\n",
				x(from), y0, max(1, x(to)-x(from)), panelHeight)
		}
	}
	for _, v := range marks {
		fmt.Fprintf(b, `<path d="M%.1f %.1fh%.1f" stroke="#d0d7de"/><text x="%.1f" y="%.1f" text-anchor="end" fill="#57606a">%s</text>`+"\n",
			x0, y(v), width, x0-3, y(v)+4, brief(v))
	}
	shown := math.Inf(1)
	for _, t := range slices.Backward(c.ticks) { // the last one always, the others where they have room
		if at := x(t.at); shown-at > 24 {
			fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#57606a">%s</text>`+"\n", at, y0+panelHeight+13,
				superscript(t.label))
			shown = at
		}
	}
	for _, l := range p.lines {
		if len(l.points) == 0 {
			continue
		}
		var path strings.Builder
		step := 'M'
		for _, at := range l.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", step, x(at[0]), y(at[1]))
			step = 'L'
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"%s/>`+"\n", path.String(), palette[l.color], dash(l.dashed))
		if len(l.points) <= 8 {
			for _, at := range l.points {
				fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="2.4" fill="%s"/>`, x(at[0]), y(at[1]), palette[l.color])
			}
			b.WriteString("\n")
		}
	}
}

// scale maps values to the height of the panel, 0 to 1, and returns where grid lines are.
func (p panel) scale() (scale func(float64) float64, marks []float64) {
	least, most := math.Inf(1), 0.0
	for _, l := range p.lines {
		for _, at := range l.points {
			if most = max(most, at[1]); at[1] > 0 {
				least = min(least, at[1])
			}
		}
	}
	if !p.log || most <= 0 {
		top := niceTop(most)
		return func(v float64) float64 { return v / top }, []float64{0, top / 2, top}
	}
	from, to := math.Floor(math.Log10(least)+1e-9), math.Ceil(math.Log10(most)-1e-9)
	to = max(to, from+1)
	for e := from; e <= to; e++ {
		marks = append(marks, math.Pow(10, e))
	}
	return func(v float64) float64 { return (math.Log10(max(v, math.Pow(10, from))) - from) / (to - from) }, marks
}

func dash(dashed bool) string {
	if dashed {
		return ` stroke-dasharray="4 3"`
	}
	return ""
}

// superscript writes 10^5 with a raised exponent.
func superscript(label string) string {
	base, exponent, found := strings.Cut(label, "^")
	if !found {
		return html.EscapeString(label)
	}
	return html.EscapeString(base) + `<tspan dy="-4" font-size="8">` + html.EscapeString(exponent) + `</tspan>`
}

func (c chart) write(path string) error {
	if err := os.WriteFile(path, []byte(c.svg()), 0o644); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	return nil
}

// spark draws a line of text, at most width characters, from 0 to the largest value.
func spark(points [][2]float64, width int) string {
	const steps = "▁▂▃▄▅▆▇█"
	levels := []rune(steps)
	if len(points) == 0 {
		return ""
	}
	most := 0.0
	for _, p := range points {
		most = max(most, p[1])
	}
	n := min(width, len(points))
	out := make([]rune, n)
	for i := range n {
		from, to := i*len(points)/n, (i+1)*len(points)/n
		sum := 0.0
		for _, p := range points[from:to] {
			sum += p[1]
		}
		level := 0
		if most > 0 {
			level = int(sum / float64(to-from) / most * float64(len(levels)-1) * 1.0001)
		}
		out[i] = levels[min(level, len(levels)-1)]
	}
	return string(out)
}
