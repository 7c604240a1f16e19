package courierttest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// What a source does that has the capabilities of the core's room of that name.

func (s *sourceRun[T]) release(through courier.Source[T], after time.Duration, records ...T) {
	s.tb.Helper()
	releaser, ok := through.(courier.Releaser[T])
	if !ok {
		s.tb.Fatalf("%T is no courier.Releaser", through)
	}
	s.must("Release", func(ctx context.Context) error { return releaser.Release(ctx, records, after) })
}

func (s *sourceRun[T]) releases() {
	s.tb.Helper()
	records := s.take(3)
	s.release(s.Source, 0, records[:2]...)
	s.release(s.Source, 0, records[:2]...) // is idempotent
	want := records[:2]
	if !s.stream && s.f.Lease == 0 {
		want = records
	}
	s.expect(s.Source, namesBy(s.name, want), "after two of three were released, twice")
}

func (s *sourceRun[T]) releasesLater() {
	s.tb.Helper()
	records := s.take(2)
	s.release(s.Source, time.Minute, records...)
	s.expect(s.Source, nil, "after it was released for a minute, at once,")
	s.advance(30 * time.Second)
	s.expect(s.Source, nil, "after it was released for a minute, half a minute later,")
	s.advance(31 * time.Second)
	s.expect(s.Source, namesBy(s.name, records), "after it was released for a minute, a minute later,")
}

func (s *sourceRun[T]) releasesAtOnce() {
	s.tb.Helper()
	records := s.take(2)
	s.release(s.Source, time.Minute, records...)
	s.expect(s.Source, namesBy(s.name, records), "after it was released for a minute, which SourceFeatures.ReleasesAtOnce says it ignores,")
}

func (s *sourceRun[T]) releasesMarked() {
	s.tb.Helper()
	records := s.take(2)
	s.mark(s.Source, records[0])
	s.release(s.Source, 0, records...)
	s.expect(s.Source, namesBy(s.name, records[1:]), "after the first was marked and both were released")
}

func (s *sourceRun[T]) fail(after time.Duration, records ...T) {
	s.tb.Helper()
	failer := s.Source.(courier.Failer[T])
	failed := make([]courier.FailedRecord[T], len(records))
	for i, record := range records {
		failed[i] = courier.FailedRecord[T]{Record: record, Error: errors.New("the suite failed the record"), After: after}
	}
	s.must("Fail", func(ctx context.Context) error { return failer.Fail(ctx, failed) })
}

func (s *sourceRun[T]) retryWithin() time.Duration {
	if s.f.RetryWithin <= 0 {
		return time.Hour
	}
	return s.f.RetryWithin
}

func (s *sourceRun[T]) fails() {
	s.tb.Helper()
	records := s.take(2)
	s.mark(s.Source, records[1])
	s.fail(0, records[0])
	s.fail(0, records[0]) // is idempotent
	s.advance(s.retryWithin())
	s.expect(s.Source, namesBy(s.name, records[:1]), "after the first failed, and the time for a retry")
}

func (s *sourceRun[T]) failsLater() {
	s.tb.Helper()
	records := s.take(1)
	const after = 90 * time.Minute
	s.fail(after, records...)
	s.advance(after - time.Minute)
	s.expect(s.Source, nil, "before the delay passed that the error asks for")
	s.advance(time.Minute + s.retryWithin())
	s.expect(s.Source, namesBy(s.name, records), "after the delay that the error asks for")
}

func (s *sourceRun[T]) failsMarked() {
	s.tb.Helper()
	records := s.take(1)
	s.mark(s.Source, records...)
	s.fail(0, records...)
	s.advance(s.retryWithin())
	s.expect(s.Source, nil, "after a record was marked and then failed")
}

func (s *sourceRun[T]) renew(records ...T) error {
	s.tb.Helper()
	renewer := s.Source.(courier.Renewer[T])
	err, soon := s.do(context.Background(), "Renew", func(ctx context.Context) error { return renewer.Renew(ctx, records) })
	if !soon {
		s.tb.Fatalf("Renew took more than %v", s.patience)
	}
	return err
}

func (s *sourceRun[T]) renews() {
	s.tb.Helper()
	if every := s.Source.(courier.Renewer[T]).RenewEvery(); every <= 0 || every >= s.f.Lease {
		s.tb.Errorf("RenewEvery is %v, want more than 0 and less than the lease of %v", every, s.f.Lease)
	}
	records := s.take(2)
	for range 3 {
		s.advance(s.f.Lease * 2 / 3)
		if err := s.renew(records...); err != nil {
			s.tb.Fatalf("Renew of leases that are held returned an error: %v", err)
		}
	}
	s.expect(s.Source, nil, "while the leases are renewed")
	s.mark(s.Source, records[0])
	s.endLeases()
	s.expect(s.Source, namesBy(s.name, records[1:]), "after the first was marked and the renewed lease of the second ended")
}

// lose has another process take one of two records whose leases ended, and
// returns which, by index.
func (s *sourceRun[T]) lose() (records []T, lost int, other courier.Source[T]) {
	s.tb.Helper()
	if s.Reopen == nil {
		s.tb.Fatalf("this check needs another process: set SourceFixture.Reopen")
	}
	records = s.take(2)
	s.endLeases()
	other = s.Reopen()
	taken := s.fetch(other, 1)
	if len(taken) != 1 {
		s.tb.Fatalf("after the leases ended another one was handed out %d records with a limit of 1", len(taken))
	}
	lost = slices.Index(namesBy(s.name, records), s.name(taken[0]))
	if lost < 0 {
		s.tb.Fatalf("after the leases ended another one was handed out %q, which is new", s.name(taken[0]))
	}
	return records, lost, other
}

func (s *sourceRun[T]) renewsLost() {
	s.tb.Helper()
	records, lost, _ := s.lose()
	err := s.renew(records...)
	var list *courier.BatchError
	if !errors.As(err, &list) || !slices.ContainsFunc(list.Failures, func(f courier.BatchFailure) bool { return f.Index == lost }) {
		s.tb.Errorf("Renew of a lease that is lost returned %v, want a *courier.BatchError that lists index %d", err, lost)
	}
}

func (s *sourceRun[T]) releasesLost() {
	s.tb.Helper()
	records, lost, _ := s.lose()
	s.mark(s.Source, records[1-lost])
	releaser := s.Source.(courier.Releaser[T])
	// Whether it says so does not matter.
	_, _ = s.do(context.Background(), "Release", func(ctx context.Context) error {
		return releaser.Release(ctx, []T{records[lost]}, 0)
	})
	// A lease for several records may end for all of them.
	handedOut, err := s.collectUpTo(s.Source, 0, 1)
	if names := namesBy(s.name, handedOut); err != nil || slices.Contains(names, s.name(records[lost])) {
		s.tb.Fatalf("after a lease was released that somebody else has now the source hands out %q, which %q must not be part of (the error of Fetch: %v)", names, s.name(records[lost]), err)
	}
}

func (s *sourceRun[T]) marksLost() {
	s.tb.Helper()
	if s.Reopen == nil {
		return
	}
	records, _, other := s.lose()
	// With an error, the coordinator would mark for ever.
	s.mark(s.Source, records...)
	s.endLeases()
	if left, _ := s.collect(other, 0); len(left) > 0 {
		s.mark(other, left...)
	}
	s.endLeases()
	s.expect(other, nil, "after all were marked by whoever had them")
}

// wake returns the channel of a source that wakes, nil of one that does not.
func (s *sourceRun[T]) wake() (wake <-chan struct{}) {
	s.tb.Helper()
	if waker, ok := s.Source.(courier.Waker); ok {
		s.must("Wake", func(context.Context) error {
			wake = waker.Wake()
			return nil
		})
	}
	return wake
}

func (s *sourceRun[T]) tells() {
	s.tb.Helper()
	wake := s.wake()
	if wake == nil {
		s.tb.Fatalf("Wake returned a nil channel")
	}
	select {
	case <-wake: // for what was before
	default:
	}
	// Nobody receives: a wake-up that finds the channel full is dropped.
	s.must("SourceFixture.Add, while nobody receives from Wake,", func(context.Context) error {
		s.Add(1)
		s.Add(1)
		s.Add(1)
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), s.patience)
	defer cancel()
	select {
	case <-wake:
	case <-ctx.Done():
		s.tb.Errorf("no value came on the channel of Wake within %v after records were added", s.patience)
	}
}

func (s *sourceRun[T]) lags() {
	s.tb.Helper()
	lagger := s.Source.(courier.Lagger)
	check := func(when string, want int) {
		s.tb.Helper()
		var lag courier.Lag
		s.must("Lag", func(ctx context.Context) (err error) {
			lag, err = lagger.Lag(ctx)
			return err
		})
		if lag.Pending != -1 && lag.Pending != want {
			s.tb.Errorf("%s Lag.Pending is %d, want %d, or -1 for not known", when, lag.Pending, want)
		}
		if lag.Oldest < 0 || want == 0 && lag.Oldest != 0 {
			s.tb.Errorf("%s Lag.Oldest is %v", when, lag.Oldest)
		}
	}
	check("with nothing pending", 0)
	s.add(3)
	check("with three records pending", 3)
	records := s.fetch(s.Source, 1)
	left := 3
	if s.stream || s.f.Lease > 0 {
		left = 3 - len(records)
	}
	check("after a fetch", left)
	s.mark(s.Source, records...)
	check("after a mark", 3-len(records))
}

func (s *sourceRun[T]) identifies() {
	s.tb.Helper()
	identity := s.Source.(courier.Identifier[T]).Identity
	records := s.take(3)
	names := make(map[string]bool)
	for _, record := range records {
		first, second := identity(record), identity(record)
		if first != second {
			s.tb.Errorf("Identity names one record %q and %q", first, second)
		}
		names[first] = true
	}
	if len(names) != len(records) {
		s.tb.Errorf("Identity gives %d records %d names", len(records), len(names))
	}
	again := s.unmarked(records, records, "without a mark")
	for _, record := range again {
		if !names[identity(record)] {
			s.tb.Errorf("Identity names a record %q that is handed out again, and had another name before", identity(record))
		}
	}
}
