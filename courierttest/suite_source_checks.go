package courierttest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/erfanmomeniii/courier"
)

// What every source does, whether it leases and whether it waits.

func (s *sourceRun[T]) hasFeatures() {
	s.tb.Helper()
	if s.Source == nil || s.Add == nil {
		s.tb.Fatalf("SourceFixture.Source and Add are required")
	}
	check := func(name string, has, said bool) {
		s.tb.Helper()
		switch {
		case said && !has:
			s.tb.Errorf("SourceFeatures.%s is said, and %T is no courier.%[1]s: is a method missing, or its signature another?", name, s.Source)
		case has && !said:
			s.tb.Errorf("%T is a courier.%s, and SourceFeatures.%[2]s is not said, so that it is not tested", s.Source, name)
		}
	}
	_, releaser := s.Source.(courier.Releaser[T])
	_, failer := s.Source.(courier.Failer[T])
	_, identifier := s.Source.(courier.Identifier[T])
	check("Releaser", releaser, s.f.Releaser)
	check("Failer", failer, s.f.Failer)
	check("Identifier", identifier, s.f.Identifier)
	// The others can say that they are none, as a source around another one does.
	if renewer, ok := s.Source.(courier.Renewer[T]); !ok || s.f.Renewer || renewer.RenewEvery() > 0 {
		check("Renewer", ok, s.f.Renewer)
	}
	if lagger, ok := s.Source.(courier.Lagger); !ok || s.f.Lagger || !lagless(lagger) {
		check("Lagger", ok, s.f.Lagger)
	}
	if _, waker := s.Source.(courier.Waker); !waker || s.f.Waker || s.wake() != nil {
		check("Waker", waker, s.f.Waker)
	}
	if s.f.ReleasesAtOnce && !failer {
		s.tb.Errorf("SourceFeatures.ReleasesAtOnce is said, and %T is no courier.Failer: failed records are released, and would be tried again without a pause", s.Source)
	}
	if v, ok := s.Source.(courier.Validator); ok {
		if err := v.Validate(); err != nil {
			s.tb.Errorf("Validate reports a fault: %v", err)
		}
	}
}

func lagless(lagger courier.Lagger) bool {
	_, err := lagger.Lag(context.Background())
	return errors.Is(err, courier.ErrNoLag)
}

func (s *sourceRun[T]) handsOut() {
	s.tb.Helper()
	s.take(3)
}

func (s *sourceRun[T]) handsOutNothing() {
	s.tb.Helper()
	if records := s.fetch(s.Source, 10); len(records) > 0 {
		s.tb.Errorf("Fetch returned %q from a source with nothing pending", namesBy(s.name, records))
	}
}

func (s *sourceRun[T]) handsOutAll() {
	s.tb.Helper()
	const limit = 2
	want := s.add(5)
	var got []string
	var err error
	for len(got) < len(want) && err == nil {
		var records []T
		records, err = s.try(context.Background(), s.Source, limit)
		if len(records) > limit && !s.f.Unlimited {
			s.tb.Fatalf("Fetch returned %d records, the limit is %d", len(records), limit)
		}
		if len(records) == 0 {
			break
		}
		got = append(got, namesBy(s.name, records)...)
		if pager, ok := s.Source.(courier.Pager); ok && len(records) < limit && len(got) < len(want) && !pager.More() {
			s.tb.Errorf("Fetch returned %d records, the limit is %d, and More is false: %d are left, which wait for the interval", len(records), limit, len(want)-len(got))
		}
		s.mark(s.Source, records...)
	}
	if err != nil || !same(got, want, false) {
		s.tb.Errorf("with a limit of %d, and a mark after each fetch, the source handed out %q, want %q (the error of Fetch: %v)", limit, got, want, err)
	}
}

func (s *sourceRun[T]) handsOutInOrder() {
	s.tb.Helper()
	want := append(s.add(3), s.add(2)...)
	if got := namesBy(s.name, s.expect(s.Source, want, "after they were added")); !slices.Equal(got, want) {
		s.tb.Errorf("the source hands out %q, and they were added in the order %q", got, want)
	}
}

func (s *sourceRun[T]) handsOutAgain() {
	s.tb.Helper()
	names := namesBy(s.name, s.take(3))
	s.expect(s.Source, names, "without a mark")
}

func (s *sourceRun[T]) handsOutOnce() {
	s.tb.Helper()
	s.take(3)
	s.expect(s.Source, nil, "while its records are in hand")
}

func (s *sourceRun[T]) handsOutToOne() {
	s.tb.Helper()
	if s.Reopen == nil {
		return
	}
	s.add(4)
	first := s.fetch(s.Source, 2)
	second, _ := s.collect(s.Reopen(), 4-len(first))
	got := namesBy(s.name, append(slices.Clone(first), second...))
	if slices.Sort(got); len(slices.Compact(got)) != len(first)+len(second) {
		s.tb.Errorf("one process was handed out %q, and another %q at the same time", namesBy(s.name, first), namesBy(s.name, second))
	}
}

func (s *sourceRun[T]) handsOutAfterTheLease() {
	s.tb.Helper()
	names := namesBy(s.name, s.take(3))
	s.advance(s.f.Lease / 2)
	s.expect(s.Source, nil, "before the leases end")
	s.endLeases()
	s.expect(s.Source, names, "after the leases ended")
}

func (s *sourceRun[T]) leavesFetchedAlone() {
	s.tb.Helper()
	s.add(4)
	first := s.fetch(s.Source, 2)
	before := namesBy(s.name, first)
	if len(first) == 0 {
		s.tb.Fatalf("Fetch returned nothing")
	}
	s.mark(s.Source, first[0])
	s.fetch(s.Source, 2)
	if after := namesBy(s.name, first); !slices.Equal(after, before) {
		s.tb.Errorf("a second Fetch made %q of the slice of the first, which held %q and is not settled yet", after, before)
	}
}

func (s *sourceRun[T]) endedFetch() {
	s.tb.Helper()
	want := s.add(3)
	var records []T
	if _, soon := s.do(ended(), "Fetch with a context that has ended", func(ctx context.Context) (err error) {
		records, err = s.Source.Fetch(ctx, 2)
		return err
	}); !soon {
		s.tb.Errorf("Fetch did not return at once though its context had ended")
	}
	switch {
	case s.f.Lease > 0: // it may have leased them before it saw the context
		s.endLeases()
	case s.stream:
		got := namesBy(s.name, records)
		want = slices.DeleteFunc(want, func(name string) bool { return slices.Contains(got, name) })
	}
	s.expect(s.Source, want, "after a Fetch whose context had ended")
}

func (s *sourceRun[T]) marksSubset() {
	s.tb.Helper()
	records := s.take(5)
	s.mark(s.Source, records[3], records[1])
	s.unmarked(records, []T{records[0], records[2], records[4]}, "after the fourth and the second were marked")
}

func (s *sourceRun[T]) marksAgain() {
	s.tb.Helper()
	records := s.take(3)
	s.mark(s.Source, records[0], records[1])
	s.mark(s.Source, records[1], records[0])
	s.mark(s.Source, records[1], records[2])
	s.unmarked(records, nil, "after all were marked, one of them three times")
}

func (s *sourceRun[T]) marksLate() {
	s.tb.Helper()
	old := s.take(1)
	s.mark(s.Source, old...)
	want := s.add(1)
	s.mark(s.Source, old...)
	s.expect(s.Source, want, "after an old mark was repeated")
}

func (s *sourceRun[T]) keepsNoSlice() {
	s.tb.Helper()
	records := s.take(4)
	batch := []T{records[0], records[1]}
	s.mark(s.Source, batch...)
	batch[0], batch[1] = records[2], records[3] // as the coordinator does
	s.unmarked(records, records[2:], "after the first two were marked, and the slice was used again")
}

func (s *sourceRun[T]) endedMark() {
	s.tb.Helper()
	records := s.take(2)
	err, soon := s.do(ended(), "Mark with a context that has ended", func(ctx context.Context) error {
		return s.Source.Mark(ctx, records[:1])
	})
	if !soon {
		s.tb.Errorf("Mark did not return at once though its context had ended")
	}
	if err != nil { // it may have marked or not: again
		s.mark(s.Source, records[0])
	}
	s.unmarked(records, records[1:], "after a Mark whose context had ended")
}

func (s *sourceRun[T]) marksAllOrNothing() {
	s.tb.Helper()
	if s.FailMarks == nil {
		return
	}
	records := s.take(s.mayRepeat() + 3) // more than a page: for less, a position needs no store
	heal := s.FailMarks(records[1])
	err, _ := s.do(context.Background(), "Mark", func(ctx context.Context) error { return s.Source.Mark(ctx, records) })
	if err == nil {
		s.tb.Fatalf("Mark returned nil though it cannot have marked a record")
	}
	again := s.unmarked(records, records, "after a Mark that failed for the second of them")
	heal()
	s.mark(s.Source, again...)
	s.unmarked(again, nil, "after a Mark that was repeated")
}

// keepsRepeatedMark fails the store during a mark and marks again, as a coordinator does.
// What the source noted of the first call does not make up for what the store missed.
func (s *sourceRun[T]) keepsRepeatedMark() {
	s.tb.Helper()
	if s.FailMarks == nil || s.Reopen == nil {
		return
	}
	records := s.take(s.mayRepeat() + 3)
	heal := s.FailMarks(records[1])
	_, _ = s.do(context.Background(), "Mark", func(ctx context.Context) error { return s.Source.Mark(ctx, records) })
	heal()
	s.mark(s.Source, records...)
	if s.f.Lease > 0 {
		s.endLeases()
	}
	const when = "after a Mark that failed was repeated and returned nil, and it was opened again,"
	if s.f.Position {
		s.resume(s.Reopen(), namesBy(s.name, records), len(records), when)
		return
	}
	s.expect(s.Reopen(), nil, when)
}

func (s *sourceRun[T]) isDurable() {
	s.tb.Helper()
	if s.Reopen == nil {
		return
	}
	if s.f.Position {
		s.keepsPosition()
		return
	}
	records := s.take(4)
	s.mark(s.Source, records[1], records[3])
	if s.f.Lease > 0 {
		s.endLeases()
	}
	other := s.Reopen()
	rest := s.expect(other, namesBy(s.name, []T{records[0], records[2]}), "after it was opened again")
	s.mark(other, rest...)
	if s.f.Lease > 0 {
		s.endLeases()
	}
	s.expect(s.Source, nil, "after all were marked through another one")
}

// keepsPosition opens the source again after each mark, without going back to one before.
func (s *sourceRun[T]) keepsPosition() {
	s.tb.Helper()
	before := s.mayRepeat() + 2 // so many are settled that some must not come again
	records := s.take(before + 3)
	names := namesBy(s.name, records)
	s.mark(s.Source, records[1], records[before+1])
	second := s.Reopen()
	again := s.resume(second, names, 0, "after it was opened again, with the first record not marked,")
	s.mark(second, append(slices.Clone(again[:before]), again[before+1])...)
	third := s.Reopen()
	rest := s.resume(third, names, before, fmt.Sprintf("after it was opened again, with record %d of %d not marked,", before+1, len(names)))
	s.mark(third, rest...)
	s.resume(s.Reopen(), names, len(names), "after it was opened again, with all marked,")
}

// mayRepeat is how many settled records before the first unsettled one a source may
// return after it was opened again.
func (s *sourceRun[T]) mayRepeat() int {
	if !s.f.Position {
		return 0
	}
	return max(0, s.f.Page-1)
}

// resume collects the records from the first unsettled one on, which is given by its
// index, and what a source with a position may return of the settled ones before it.
func (s *sourceRun[T]) resume(from courier.Source[T], names []string, first int, when string) []T {
	s.tb.Helper()
	earliest := max(0, first-s.mayRepeat())
	records, err := s.collectUpTo(from, len(names)-first, len(names)-earliest)
	got := namesBy(s.name, records)
	start := len(names) - len(got)
	if err == nil && start >= earliest && start <= first && slices.Equal(got, names[start:]) {
		return records
	}
	want := fmt.Sprintf("%q", names[first:])
	if earliest < first {
		want += fmt.Sprintf(", which up to %d of the settled records directly before may precede", first-earliest)
	}
	if s.f.Page < 2 && start < first && start >= 0 && slices.Equal(got, names[start:]) {
		want += "; if the records of a page share a position, set SourceFeatures.Page"
	}
	s.tb.Fatalf("%s the source hands out %q, want %s (the error of Fetch: %v)", when, got, want, err)
	return nil
}
