package main

import (
	"bytes"
	_ "embed"
	"math"
	"text/template"
)

//go:embed chart.svg.tmpl
var chartTemplate string

// The measures of the chart, in pixels.
const (
	chartWidth = 900
	barsFrom   = 270 // left of them are the titles
	barsTo     = 700 // right of them are the numbers
	lineHeight = 20
	barHeight  = 12
	headHeight = 34
	topHeight  = 84
	footHeight = 40
)

// chart is what the template draws. All places are from the upper left corner.
type chart struct {
	Width, Height int
	Card          struct{ Width, Height int } // a ground of its own, whatever it is shown on
	GridTop       int
	GridBottom    int
	Ticks         []tick
	Heads         []head
	Bars          []bar
	Foot          string
	FootY         int
}

type tick struct {
	X    float64
	Text string
}

type head struct {
	Y    int
	Text string
}

type bar struct {
	Y, TextY    int
	X, Width    float64
	Kind        kind
	Title, Cost string
	Ratio       string
	Goal        float64 // where the bar should end; 0 for nowhere
	Met         bool
}

// draw makes an SVG of the sections that are to be plotted: bars on a
// logarithmic scale, since the cases are orders of magnitude apart.
func draw(t *table) ([]byte, error) {
	page, err := template.New("chart").Parse(chartTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = page.Execute(&out, layOut(t))
	return out.Bytes(), err
}

func layOut(t *table) chart {
	scale := scaleOf(t)
	c := chart{Width: chartWidth, GridTop: topHeight - 8}
	y := topHeight
	for _, p := range t.parts {
		if !p.plot {
			continue
		}
		y += headHeight
		c.Heads = append(c.Heads, head{Y: y - 8, Text: p.title})
		for _, l := range p.lines {
			b := bar{
				Y: y + (lineHeight-barHeight)/2, TextY: y + lineHeight/2 + 4,
				X: barsFrom, Width: scale.at(l.value) - barsFrom,
				Kind: l.kind, Title: l.title, Cost: amount(l.value, p.unit),
			}
			if !math.IsNaN(l.base) {
				b.Ratio = cells(l, p.unit)[ratioColumn]
				if l.goal.set() {
					b.Goal, b.Met = scale.at(l.goal.limit*l.base), l.met()
				}
			}
			c.Bars = append(c.Bars, b)
			y += lineHeight
		}
	}
	c.GridBottom = y + 6
	c.Height = y + footHeight
	c.Card.Width, c.Card.Height = c.Width-2, c.Height-2
	c.FootY = y + 26
	c.Foot = machine(t)
	for e := scale.low; e <= scale.high; e++ {
		c.Ticks = append(c.Ticks, tick{scale.at(math.Pow(10, float64(e))), powers[e]})
	}
	return c
}

// scale is the decades that all bars fit in.
type scale struct{ low, high int }

// powers of ten, of a nanosecond, that a record may cost.
var powers = map[int]string{-1: "0.1 ns", 0: "1 ns", 1: "10 ns", 2: "100 ns", 3: "1 µs", 4: "10 µs", 5: "100 µs", 6: "1 ms", 7: "10 ms"}

func scaleOf(t *table) scale {
	s := scale{low: 0, high: 1}
	for _, p := range t.parts {
		for _, l := range p.lines {
			if p.plot {
				s.low = min(s.low, int(math.Floor(math.Log10(l.value))))
				s.high = max(s.high, int(math.Ceil(math.Log10(l.value))))
			}
		}
	}
	return s
}

func (s scale) at(value float64) float64 {
	part := (math.Log10(value) - float64(s.low)) / float64(s.high-s.low)
	return math.Round(10*(barsFrom+part*(barsTo-barsFrom))) / 10
}
