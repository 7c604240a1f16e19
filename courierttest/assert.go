package courierttest

import (
	"fmt"
	"slices"
)

// AssertDelivered reports every record that was added or fetched and is not done. A
// record is done if it was applied, skipped or parked at least once, with the answer that
// says so, and marked.
func AssertDelivered[T any](tb TB, r *Recorder[T]) {
	tb.Helper()
	for _, s := range stories(r) {
		switch {
		case s.settled() == 0:
			tb.Errorf("record %s was neither applied nor parked:\n%s", s.name, r.Timeline(s.name))
		case s.count[Marked] == 0:
			tb.Errorf("record %s was settled and is not marked:\n%s", s.name, r.Timeline(s.name))
		}
	}
}

// AssertDeliveredOnce is [AssertDelivered], and also reports every record that the
// destination and the dead letter queue together have more than once. An at-least-once
// pipeline delivers once unless a process dies, or a lease or an answer is lost.
func AssertDeliveredOnce[T any](tb TB, r *Recorder[T]) {
	tb.Helper()
	AssertDelivered(tb, r)
	for _, s := range stories(r) {
		if n := s.settled() + s.count[Unacked]; n > 1 {
			tb.Errorf("record %s was delivered %d times:\n%s", s.name, n, r.Timeline(s.name))
		}
	}
}

// AssertMarkedAfterApplied reports every mark of a record that had not been applied,
// skipped or parked before, with the answer that says so. A failed mark counts, because
// it may have had its effect.
func AssertMarkedAfterApplied[T any](tb TB, r *Recorder[T]) {
	tb.Helper()
	settled := make(map[string]bool)
	reported := make(map[string]bool)
	for _, e := range r.Events() {
		switch e.Kind {
		case Applied, Skipped, Parked:
			settled[e.Name] = true
		case Marked, MarkFailed:
			if !settled[e.Name] && !reported[e.Name] {
				reported[e.Name] = true
				tb.Errorf("record %s was marked before it was applied or parked:\n%s", e.Name, r.Timeline(e.Name))
			}
		}
	}
}

// AssertOrder reports records that the destination first received before an earlier
// record of the same key. Records are ordered by when they were added, or else fetched; a
// nil key is one key for all. Records that the destination never received, such as parked
// ones, are left out.
func AssertOrder[T any](tb TB, r *Recorder[T], key func(record T) string) {
	tb.Helper()
	place := make(map[string]int)
	all := stories(r)
	for i, s := range all {
		place[s.name] = i
	}
	last := make(map[string]string)
	had := make(map[string]bool)
	for _, e := range r.Events() {
		if e.Kind != Applied && e.Kind != Unacked || had[e.Name] {
			continue
		}
		had[e.Name] = true
		k := ""
		if key != nil {
			k = key(e.Record)
		}
		if before, ok := last[k]; ok && place[e.Name] < place[before] {
			of := "all records"
			if key != nil {
				of = fmt.Sprintf("the key %q", k)
			}
			tb.Errorf("record %s was applied after record %s, and comes before it in the order of %s:\n%s", e.Name, before, of, r.Timeline(e.Name, before))
			continue
		}
		last[k] = e.Name
	}
}

// AssertDrained reports records that are still pending at a source.
func AssertDrained[T any](tb TB, source interface{ Pending() []T }) {
	tb.Helper()
	if left := source.Pending(); len(left) > 0 {
		tb.Errorf("%d records are pending at the source: %v", len(left), left)
	}
}

// story is what happened to one record.
type story struct {
	name  string
	count map[Kind]int
}

func (s *story) settled() int { return s.count[Applied] + s.count[Skipped] + s.count[Parked] }

// stories returns one for each record that a source had, in the order in which
// they were added or first fetched.
func stories[T any](r *Recorder[T]) []*story {
	var all []*story
	known := make(map[string]*story)
	events := r.Events()
	meet := func(kind Kind) {
		for _, e := range events {
			if e.Kind == kind && known[e.Name] == nil {
				known[e.Name] = &story{e.Name, make(map[Kind]int)}
				all = append(all, known[e.Name])
			}
		}
	}
	meet(Added)
	meet(Fetched)
	for _, e := range events {
		if s := known[e.Name]; s != nil {
			s.count[e.Kind]++
		}
	}
	return slices.Clip(all)
}
