package breaker

import "time"

// counts is what a window holds.
type counts struct{ calls, failures, slow int }

func (c *counts) add(failed, slow bool, n int) {
	c.calls += n
	if failed {
		c.failures += n
	}
	if slow {
		c.slow += n
	}
}

// slices is how finely a time window is cut: a result leaves it after between
// nine and ten tenths of its length.
const slices = 10

// window counts recent results: the last ones where Calls is set, else those of
// the last Window of time. A result is counted when the call ends, so that a
// call which outlasts the window counts as any other.
type window struct {
	total counts

	results []result // of a count window, a ring
	next    int

	slice  [slices]counts // of a time window, a ring
	at     int            // the current slice
	atTime time.Time      // where it begins
}

type result struct{ failed, slow bool }

func (w *window) add(p *Policy, failed, slow bool, now time.Time) {
	if p.WindowCalls > 0 {
		r := result{failed, slow}
		if len(w.results) < p.WindowCalls {
			w.results = append(w.results, r)
		} else {
			old := w.results[w.next]
			w.total.add(old.failed, old.slow, -1)
			w.results[w.next] = r
			w.next = (w.next + 1) % p.WindowCalls
		}
		w.total.add(failed, slow, 1)
		return
	}
	w.roll(p, now)
	w.slice[w.at].add(failed, slow, 1)
	w.total.add(failed, slow, 1)
}

// roll drops the slices that have left a time window. A clock that steps back
// adds to the current slice.
func (w *window) roll(p *Policy, now time.Time) {
	if p.WindowCalls > 0 || p.Window <= 0 {
		return
	}
	if w.atTime.IsZero() {
		w.atTime = now
	}
	length := max(p.Window/slices, 1)
	passed := now.Sub(w.atTime) / length
	if passed <= 0 {
		return
	}
	w.atTime = w.atTime.Add(passed * length)
	for range min(passed, slices) {
		w.at = (w.at + 1) % slices
		old := w.slice[w.at]
		w.total.calls -= old.calls
		w.total.failures -= old.failures
		w.total.slow -= old.slow
		w.slice[w.at] = counts{}
	}
}

func (w *window) clear() {
	w.total, w.slice = counts{}, [slices]counts{}
	w.results, w.next, w.atTime = w.results[:0], 0, time.Time{}
}

// reaches compares without rounding: 199 of 400 are not half, and 3 of 30 are a
// tenth. A division is correctly rounded, a product is not.
func reaches(part, whole int, rate float64) bool {
	return rate > 0 && whole > 0 && float64(part)/float64(whole) >= rate
}
