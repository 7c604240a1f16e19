package courierttest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/benbjohnson/clock"

	"github.com/erfanmomeniii/courier"
)

// SourceFixture is a source under test, with access to its store. An optional field that
// is nil skips the checks that need it.
type SourceFixture[T any] struct {
	// Source is the source under test, with nothing pending. Required.
	Source courier.Source[T]

	// Add makes n new records pending and returns their names, in the order in which the
	// source should return them. Required.
	Add func(n int) []string

	// Name names a record. nil is fmt.Sprint.
	Name func(record T) string

	// Reopen returns another source over the same store, for another process, or for the
	// same process after a restart.
	Reopen func() courier.Source[T]

	// Marked returns the names of the marked records, if marks can be seen from outside.
	Marked func() []string

	// FailMarks makes marks of this record fail until heal is called: best by a fault of
	// the store, since a fault of Mark as a whole does not show what Mark has noted by then.
	FailMarks func(record T) (heal func())

	// End tells a stream that no more records will come.
	End func()

	// Advance lets time pass for the source. nil is the time of the bubble.
	Advance func(d time.Duration)
}

// SourceFeatures says which features a source has beyond the contract of
// [courier.Source]. The zero value is a source that returns the same records until they
// are marked. Features that a source does not have are not tested. A capability that the
// source has but the features do not name is an error, and so is the reverse.
type SourceFeatures struct {
	// Bubble runs each check in a bubble of its own, see [Bubble]: for implementations in
	// memory. Checks of a lease or a delay need it, or SourceFixture.Advance.
	Bubble bool

	// Ordered means that the source returns the oldest records first.
	Ordered bool

	// Unlimited means that the source ignores the limit of Fetch, as a
	// courier.BatchSourceFunc does.
	Unlimited bool

	// Lease is the length of a lease, for a source that hands a record out once, until it
	// is marked, given back, or the lease ends.
	Lease time.Duration

	// Fenced means that the source distinguishes leases: a lost lease can neither be
	// renewed nor released.
	Fenced bool

	// The capabilities of the same names. A source whose Wake returns nil is no
	// Waker, one whose RenewEvery is 0 no Renewer, and one whose Lag returns
	// courier.ErrNoLag no Lagger.
	Releaser, Failer, Renewer, Waker, Lagger, Identifier bool

	// Position means that the source keeps a position instead of a mark for each record:
	// the offset of a partition, the token of a page. After it is opened again, it
	// returns the first unsettled record and all later ones, including settled ones.
	Position bool

	// Page is how many records at most come in one page, for a source with a Position that
	// has positions only between pages. After it is opened again, it may return up to
	// Page-1 settled records before the first unsettled one: those directly before it.
	// 0 is 1.
	Page int

	// ReleasesAtOnce means that a Releaser ignores the delay and returns released records
	// immediately, as a source that is also a Failer may.
	ReleasesAtOnce bool

	// RetryWithin is how long a Failer may take to return a failed record that asks for
	// no delay. 0 is an hour.
	RetryWithin time.Duration

	// Patience is how long a call may take. 0 is 10 seconds.
	Patience time.Duration
}

// TestSource tests a source for a polling coordinator. Each check uses a new source from
// open. It also tests sources that lease, see [SourceFeatures].Lease. For a source whose
// Fetch waits for records use [TestStreamSource].
func TestSource[T any](t *testing.T, open func(t *testing.T) SourceFixture[T], features SourceFeatures) {
	runSuite(t, features.Bubble, func(t *testing.T) *sourceRun[T] {
		return newSourceRun(t, open(t), features, false)
	}, sourceChecks[T](features, false))
}

// TestStreamSource tests a source for a streaming coordinator, whose Fetch waits for the
// first record and returns each record once. Outside a bubble, each check that Fetch
// waits takes 20 ms.
func TestStreamSource[T any](t *testing.T, open func(t *testing.T) SourceFixture[T], features SourceFeatures) {
	runSuite(t, features.Bubble, func(t *testing.T) *sourceRun[T] {
		return newSourceRun(t, open(t), features, true)
	}, sourceChecks[T](features, true))
}

func sourceChecks[T any](f SourceFeatures, stream bool) []check[sourceRun[T]] {
	type run = sourceRun[T]
	var list []check[run]
	add := func(when bool, name string, f func(*run)) {
		if when {
			list = append(list, check[run]{name, f})
		}
	}
	leasing := f.Lease > 0
	add(true, "has the features it is said to have", (*run).hasFeatures)
	add(true, "hands out what is pending", (*run).handsOut)
	add(!stream, "hands out nothing when nothing is pending", (*run).handsOutNothing)
	add(true, "hands out all in portions of the limit", (*run).handsOutAll)
	add(f.Ordered, "hands out the oldest first", (*run).handsOutInOrder)
	add(!stream && !leasing, "hands out again what is not marked", (*run).handsOutAgain)
	add(stream || leasing, "hands out once", (*run).handsOutOnce)
	add(leasing, "hands out to one at a time", (*run).handsOutToOne)
	add(leasing, "hands out again when the lease ends", (*run).handsOutAfterTheLease)
	add(true, "leaves fetched records alone", (*run).leavesFetchedAlone)
	add(true, "loses nothing to a fetch whose context has ended", (*run).endedFetch)
	add(true, "marks any subset in any order", (*run).marksSubset)
	add(true, "marks again without harm", (*run).marksAgain)
	add(true, "takes no new record for an old mark", (*run).marksLate)
	add(true, "does not keep the slice of a mark", (*run).keepsNoSlice)
	add(true, "tells the truth of a mark whose context has ended", (*run).endedMark)
	add(true, "marks all or nothing", (*run).marksAllOrNothing)
	add(true, "keeps a mark that failed before", (*run).keepsRepeatedMark)
	add(true, "is durable", (*run).isDurable)
	add(stream, "waits for the first record", (*run).waits)
	add(stream, "wakes for a record", (*run).wakes)
	add(stream, "takes what is ready", (*run).takesWhatIsReady)
	add(stream, "ends a wait with its context", (*run).endsWait)
	add(stream, "marks while a fetch waits", (*run).marksBesideFetch)
	add(stream, "ends with io.EOF", (*run).endsWithEOF)
	add(f.Releaser, "takes records back", (*run).releases)
	add(f.Releaser && !f.ReleasesAtOnce, "takes records back for a while", (*run).releasesLater)
	add(f.Releaser && f.ReleasesAtOnce, "takes records back for a while, and hands them out at once", (*run).releasesAtOnce)
	add(f.Releaser, "does not take back what is marked", (*run).releasesMarked)
	add(f.Failer, "hands out failed records again", (*run).fails)
	add(f.Failer, "keeps the delay of a failed record", (*run).failsLater)
	add(f.Failer, "does not schedule what is marked", (*run).failsMarked)
	add(f.Renewer && leasing, "renews leases", (*run).renews)
	add(f.Renewer && leasing && f.Fenced, "does not renew a lost lease", (*run).renewsLost)
	add(f.Releaser && leasing && f.Fenced, "does not release a lost lease", (*run).releasesLost)
	add(leasing, "marks without error after a lost lease", (*run).marksLost)
	add(f.Waker, "wakes who waits for work", (*run).tells)
	add(f.Lagger, "tells its lag", (*run).lags)
	add(f.Identifier, "names records", (*run).identifies)
	return list
}

// sourceRun is one check of a source.
type sourceRun[T any] struct {
	attempt
	SourceFixture[T]
	f      SourceFeatures
	stream bool
	name   func(T) string
}

func newSourceRun[T any](tb TB, x SourceFixture[T], f SourceFeatures, stream bool) *sourceRun[T] {
	return &sourceRun[T]{newAttempt(tb, f.Patience), x, f, stream, nameBy(x.Name)}
}

// add makes records pending.
func (s *sourceRun[T]) add(n int) []string {
	s.tb.Helper()
	names := s.Add(n)
	if len(names) != n {
		s.tb.Fatalf("SourceFixture.Add(%d) returned %d names", n, len(names))
	}
	return names
}

// try fetches once.
func (s *sourceRun[T]) try(ctx context.Context, from courier.Source[T], limit int) (records []T, err error) {
	s.tb.Helper()
	err, soon := s.do(ctx, "Fetch", func(ctx context.Context) (err error) {
		records, err = from.Fetch(ctx, limit)
		return err
	})
	if err != nil && !soon {
		err = fmt.Errorf("after %v: %w", s.patience, err)
	}
	return records, err
}

// fetch fetches once, and must succeed.
func (s *sourceRun[T]) fetch(from courier.Source[T], limit int) []T {
	s.tb.Helper()
	records, err := s.try(context.Background(), from, limit)
	if err != nil {
		s.tb.Fatalf("Fetch returned an error: %v", err)
	}
	return records
}

// collect returns what the source hands out, of which so many are expected. At
// a stream it looks for a moment whether there are more.
func (s *sourceRun[T]) collect(from courier.Source[T], expected int) (records []T, err error) {
	s.tb.Helper()
	return s.collectUpTo(from, expected, expected)
}

// collectUpTo does the same where more may come than have to.
func (s *sourceRun[T]) collectUpTo(from courier.Source[T], least, most int) (records []T, err error) {
	s.tb.Helper()
	look, cancel := context.WithCancel(context.Background())
	defer cancel()
	once := s.stream || s.f.Lease > 0
	for {
		enough := s.stream && len(records) >= least
		if enough {
			look, cancel = context.WithTimeout(look, glance)
			defer cancel()
		}
		more, err := s.try(look, from, max(100, most+1))
		records = append(records, more...)
		switch {
		case enough && (len(more) == 0 || len(records) > most):
			return records, nil
		case enough: // of a stream that returns them in several calls
		case err != nil, !once, len(more) == 0, len(records) > most:
			return records, err
		}
	}
}

// expect collects exactly the named records.
func (s *sourceRun[T]) expect(from courier.Source[T], want []string, when string) []T {
	s.tb.Helper()
	records, err := s.collect(from, len(want))
	if got := namesBy(s.name, records); err != nil || !same(got, want, false) {
		s.tb.Fatalf("%s the source hands out %q, want %q (the error of Fetch: %v)", when, got, want, err)
	}
	return records
}

// take adds n records and fetches them.
func (s *sourceRun[T]) take(n int) []T {
	s.tb.Helper()
	return s.expect(s.Source, s.add(n), "after they were added")
}

func (s *sourceRun[T]) mark(through courier.Source[T], records ...T) {
	s.tb.Helper()
	s.must("Mark", func(ctx context.Context) error { return through.Mark(ctx, records) })
}

// advance lets time pass.
func (s *sourceRun[T]) advance(d time.Duration) {
	s.tb.Helper()
	switch {
	case s.Advance != nil:
		s.Advance(d)
	case s.f.Bubble:
		<-clock.New().After(d)
	default:
		s.tb.Fatalf("this check lets time pass: set SourceFeatures.Bubble or SourceFixture.Advance")
	}
}

// endLeases has time pass until the leases have ended. At the server of a stream a fetch that
// was cut short may be about to take records, which are free then after one lease more.
func (s *sourceRun[T]) endLeases() {
	s.tb.Helper()
	s.advance(s.f.Lease + time.Second)
	if s.stream {
		s.advance(s.f.Lease + time.Second)
	}
}

// unmarked checks that exactly these records of those in hand are pending, as
// far as that can be seen, and returns them as they are handed out now.
func (s *sourceRun[T]) unmarked(inHand, want []T, when string) []T {
	s.tb.Helper()
	names := namesBy(s.name, want)
	if s.Marked != nil {
		left := slices.DeleteFunc(namesBy(s.name, inHand), func(name string) bool { return slices.Contains(s.Marked(), name) })
		if !same(left, names, false) {
			s.tb.Fatalf("%s these are not marked: %q, want %q", when, left, names)
		}
	}
	switch {
	case s.f.Lease > 0:
		s.endLeases()
	case s.stream && !s.f.Releaser:
		return want // there is no other way to see it
	case s.stream:
		releaser := s.Source.(courier.Releaser[T])
		s.must("Release", func(ctx context.Context) error { return releaser.Release(ctx, inHand, 0) })
	}
	return s.expect(s.Source, names, when)
}
