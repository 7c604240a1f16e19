package main

import (
	"math"
	"slices"
)

// section is a part of the table.
type section struct {
	title string
	unit  string // what is compared; "" is ns/record
	plot  bool   // it is drawn, too
	cases []benchmark
}

// benchmark is a row of the table.
type benchmark struct {
	name  string // without "Benchmark"
	title string // what it is, within its section
	kind  kind
	to    string // the benchmark that it is a multiple of; "" for none
	goal  goal
}

// What a benchmark may be compared to that is no single other one.
const (
	cheapest  = "the cheapest"   // of the section's, of those that have a goal if any has
	bestFloor = "the best floor" // of the section's
	bestRival = "the best rival"
	limit     = "the limit" // which is 1
)

type kind string

const (
	floor kind = "floor" // the least code that does the same work
	ours  kind = "courier"
	rival kind = "rival"
)

// table is the plan with what was measured.
type table struct {
	parts    []part
	unknown  []line // measured, and not in the plan
	met, set int    // goals
	rounds   int
	config   map[string]string
}

type part struct {
	section
	lines []line
}

// line is a row with its numbers.
type line struct {
	benchmark
	value  float64 // in the unit of its section
	spread float64
	allocs float64 // NaN where they were not counted
	base   float64 // what the value is compared to; NaN for nothing
	toName string
}

func (l line) ratio() float64 { return l.value / l.base }
func (l line) met() bool      { return l.goal.met(l.ratio(), l.allocs) }

const perRecord = "ns/record"

// tabulate lays what was measured out as planned. What was not measured is left
// out, as when only some benchmarks were run.
func tabulate(plan []section, found *results) *table {
	t := &table{rounds: found.rounds(), config: found.config}
	titles := map[string]string{}
	for _, s := range plan {
		for _, c := range s.cases {
			titles[c.name] = c.title
		}
	}
	for _, s := range plan {
		if s.unit == "" {
			s.unit = perRecord
		}
		p := part{section: s}
		for _, c := range s.cases {
			l, ok := lineOf(c, s.unit, found)
			if !ok {
				continue
			}
			switch base, ok := found.values[c.to][s.unit]; {
			case c.to == cheapest, c.to == bestFloor, c.to == bestRival:
				l.base, l.toName = leastOf(s, c.to, found), c.to
			case c.to == limit:
				l.base, l.toName = 1, limit
			case ok:
				l.base, l.toName = median(base), titles[c.to]
			}
			if c.goal.set() && !math.IsNaN(l.base) {
				t.set++
				if l.met() {
					t.met++
				}
			}
			p.lines = append(p.lines, l)
		}
		if len(p.lines) > 0 {
			t.parts = append(t.parts, p)
		}
	}
	for _, name := range found.order {
		if _, planned := titles[name]; !planned {
			if l, ok := lineOf(benchmark{name: name, title: name}, perRecord, found); ok {
				t.unknown = append(t.unknown, l)
			}
		}
	}
	return t
}

func lineOf(c benchmark, unit string, found *results) (line, bool) {
	values := found.values[c.name][unit]
	if len(values) == 0 {
		return line{}, false
	}
	l := line{benchmark: c, value: median(values), spread: spread(values), allocs: math.NaN(), base: math.NaN()}
	if allocs := found.values[c.name]["allocs/record"]; len(allocs) > 0 && unit == perRecord {
		l.allocs = median(allocs)
	}
	return l, true
}

// leastOf is the least median of the cases of a section that are meant. It is NaN
// if none of them was measured.
func leastOf(s section, of string, found *results) float64 {
	goals := slices.ContainsFunc(s.cases, func(c benchmark) bool { return c.goal.set() })
	meant := func(c benchmark) bool {
		switch of {
		case bestFloor:
			return c.kind == floor
		case bestRival:
			return c.kind == rival
		}
		return c.goal.set() == goals
	}
	least := math.NaN()
	for _, c := range s.cases {
		if l, ok := lineOf(c, s.unit, found); ok && meant(c) && !(l.value >= least) {
			least = l.value
		}
	}
	return least
}
