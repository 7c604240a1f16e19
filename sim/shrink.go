package sim

import (
	"strings"
	"testing"
	"time"
)

// How much is spent on finding the fewest faults.
const (
	mostTries = 400
	mostTime  = 10 * time.Second
)

// shrink looks for the fewest faults that make an episode fail in the way it did,
// and runs it once more, with those, to have its timeline.
func (r *Report) shrink(t *testing.T, o *Options, setup func(*World)) {
	seed, way := r.Failed.Seed, wayOf(r.Failed.Problems[0])
	began := time.Now() //nolint:forbidigo // the time of the wall
	over := func() bool {
		return r.Tried >= mostTries || time.Since(began) > mostTime //nolint:forbidigo // the time of the wall
	}
	fails := func(faults []Fault) bool {
		if over() {
			return false
		}
		r.Tried++
		one := episode(t, seed, o, setup, scripted(faults), false)
		return len(one.Problems) > 0 && wayOf(one.Problems[0]) == way
	}
	// A list of faults keeps each at its call; an outage is one of many then.
	faults := append([]Fault{}, r.Failed.Faults...)
	if fails(faults) {
		faults = fewest(faults, fails, over)
	} else {
		faults = nil // let the seed draw them again
	}
	again := episode(t, seed, o, setup, scripted(faults), true)
	if len(again.Problems) > 0 {
		*r.Failed = again
	}
}

// wayOf is the part of a problem that tells one kind from another.
func wayOf(problem string) string {
	_, text, _ := strings.Cut(problem, ": ")
	way, _, _ := strings.Cut(text, ":")
	if len(way) > 4 {
		way, _, _ = strings.Cut(text, " ")
	}
	return way
}

// fewest returns a part of the list that still fails, and of which no single
// element can be left out, unless the tries are over before that (ddmin).
func fewest[F any](list []F, fails func([]F) bool, over func() bool) []F {
	if len(list) > 0 && fails([]F{}) {
		return []F{}
	}
	for parts := 2; len(list) > 1 && !over(); {
		size := (len(list) + parts - 1) / parts
		smaller := false
		for from := 0; from < len(list) && !over(); from += size {
			rest := append(append([]F{}, list[:from]...), list[min(from+size, len(list)):]...)
			if fails(rest) {
				list, smaller = rest, true
				break
			}
		}
		switch {
		case smaller:
			parts = max(2, parts-1)
		case size == 1:
			return list
		default:
			parts = min(2*parts, len(list))
		}
	}
	return list
}
