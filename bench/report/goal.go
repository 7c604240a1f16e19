package main

import "fmt"

// goal is what the ratio of a case to its floor must be. The zero value is no
// goal.
type goal struct {
	text     string
	limit    float64 // of the ratio, at most
	show     func(ratio float64) string
	noAllocs bool
}

func (g goal) set() bool { return g.text != "" }

// fewAllocs is what counts as none: what a batch allocates is shared by its
// records.
const fewAllocs = 0.05

func (g goal) met(ratio, allocs float64) bool {
	return ratio <= g.limit && (!g.noAllocs || allocs < fewAllocs)
}

// atMost is a cost of so many times the floor.
func atMost(times float64) goal {
	return goal{text: fmt.Sprintf("≤ %g×", times), limit: times, show: showTimes}
}

// atMostFree is atMost, without allocations.
func atMostFree(times float64) goal {
	g := atMost(times)
	g.text += ", 0 allocs"
	g.noAllocs = true
	return g
}

// shareOf is so much of the throughput of the limit.
func shareOf(percent float64) goal {
	return goal{text: fmt.Sprintf("≥ %g %%", percent), limit: 100 / percent, show: showShare}
}

// cheaper is a cost so many times less.
func cheaper(times float64) goal {
	return goal{text: fmt.Sprintf("≥ %g× cheaper", times), limit: 1 / times, show: showCheaper}
}

// showTimes has a digit more than other numbers, so that one can see on which
// side of a goal it is.
func showTimes(ratio float64) string {
	if ratio > 0.0995 && ratio < 9.995 {
		return fmt.Sprintf("%.2f×", ratio)
	}
	return significant(ratio) + "×"
}

func showShare(ratio float64) string   { return fmt.Sprintf("%.1f %%", 100/ratio) }
func showCheaper(ratio float64) string { return significant(1/ratio) + "× cheaper" }
