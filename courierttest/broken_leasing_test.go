package courierttest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// leasingWith is a leasing source of which some methods are others.
type leasingWith struct {
	*LeasingSource[int]
	fetch   func(ctx context.Context, limit int) ([]int, error)
	mark    func(ctx context.Context, records []int) error
	release func(ctx context.Context, records []int, after time.Duration) error
	renew   func(ctx context.Context, records []int) error
	fail    func(ctx context.Context, failed []courier.FailedRecord[int]) error
	wake    func() <-chan struct{}
	lag     func(ctx context.Context) (courier.Lag, error)

	identity func(int) string
}

func (s *leasingWith) Identity(record int) string {
	if s.identity != nil {
		return s.identity(record)
	}
	return s.LeasingSource.Identity(record)
}

func (s *leasingWith) Fetch(ctx context.Context, limit int) ([]int, error) {
	if s.fetch != nil {
		return s.fetch(ctx, limit)
	}
	return s.LeasingSource.Fetch(ctx, limit)
}

func (s *leasingWith) More() bool { return false }

func (s *leasingWith) Mark(ctx context.Context, records []int) error {
	if s.mark != nil {
		return s.mark(ctx, records)
	}
	return s.LeasingSource.Mark(ctx, records)
}

func (s *leasingWith) Release(ctx context.Context, records []int, after time.Duration) error {
	if s.release != nil {
		return s.release(ctx, records, after)
	}
	return s.LeasingSource.Release(ctx, records, after)
}

func (s *leasingWith) Renew(ctx context.Context, records []int) error {
	if s.renew != nil {
		return s.renew(ctx, records)
	}
	return s.LeasingSource.Renew(ctx, records)
}

func (s *leasingWith) Fail(ctx context.Context, failed []courier.FailedRecord[int]) error {
	if s.fail != nil {
		return s.fail(ctx, failed)
	}
	return (&SchedulingSource[int]{LeasingSource: s.LeasingSource}).Fail(ctx, failed)
}

func (s *leasingWith) Wake() <-chan struct{} {
	if s.wake != nil {
		return s.wake()
	}
	return s.LeasingSource.Wake()
}

func (s *leasingWith) Lag(ctx context.Context) (courier.Lag, error) {
	if s.lag != nil {
		return s.lag(ctx)
	}
	return s.LeasingSource.Lag(ctx)
}

type leasingDefect struct {
	defect, check string
	break_        func(t *testing.T, s *leasingWith, x *SourceFixture[int])
}

// ofLeases are the defects that only a source that leases can have.
var ofLeases = []leasingDefect{
	{"no end", "hands out again when the lease ends", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.shared.length = 1000 * time.Hour
	}},
	{"half the length", "hands out again when the lease ends", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.shared.length = lease / 2
	}},
	{"to whoever asks", "hands out to one at a time", func(_ *testing.T, s *leasingWith, x *SourceFixture[int]) {
		x.Reopen = func() courier.Source[int] { return new(Recorder[int]).LeasingSource(lease, s.Pending()...) }
	}},
	{"does nothing", "renews leases", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.renew = func(context.Context, []int) error { return nil }
	}},
	{"without end", "renews leases", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.renew = func(ctx context.Context, records []int) error {
			s.shared.length = 1000 * time.Hour
			return s.LeasingSource.Renew(ctx, records)
		}
	}},
	{"says nil", "does not renew a lost lease", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.renew = func(ctx context.Context, records []int) error {
			_ = s.LeasingSource.Renew(ctx, records)
			return nil
		}
	}},
	{"lists another", "does not renew a lost lease", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.renew = func(ctx context.Context, records []int) error {
			err := s.LeasingSource.Renew(ctx, records)
			if list, ok := err.(*courier.BatchError); ok {
				list.Failures[0].Index++
			}
			return err
		}
	}},
	{"by name alone", "does not release a lost lease", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(ctx context.Context, records []int, after time.Duration) error {
			for _, r := range s.shared.records {
				s.tokens[r.name] = r.token
			}
			return s.LeasingSource.Release(ctx, records, after)
		}
	}},
	{"an error", "marks without error after a lost lease", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(ctx context.Context, records []int) error {
			if err := s.LeasingSource.Renew(ctx, records); err != nil {
				return err
			}
			return s.LeasingSource.Mark(ctx, records)
		}
	}},
}

// ofCapabilities are the defects of capabilities, whether leases end or not.
var ofCapabilities = []leasingDefect{
	{"does nothing", "takes records back", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(context.Context, []int, time.Duration) error { return nil }
	}},
	{"twice is two", "takes records back", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(ctx context.Context, records []int, _ time.Duration) error {
			err := s.LeasingSource.Mark(ctx, records)
			s.Add(records...)
			return err
		}
	}},
	{"at once", "takes records back for a while", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(ctx context.Context, records []int, _ time.Duration) error {
			return s.LeasingSource.Release(ctx, records, 0)
		}
	}},
	{"for ever", "takes records back for a while", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(ctx context.Context, records []int, after time.Duration) error {
			return s.LeasingSource.Release(ctx, records, after*1000)
		}
	}},
	{"brings back", "does not take back what is marked", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.release = func(ctx context.Context, records []int, after time.Duration) error {
			s.Add(slices.DeleteFunc(slices.Clone(records), func(r int) bool { return slices.Contains(s.Pending(), r) })...)
			return s.LeasingSource.Release(ctx, records, after)
		}
	}},
	{"gives up", "hands out failed records again", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fail = func(ctx context.Context, failed []courier.FailedRecord[int]) error {
			return s.LeasingSource.Mark(ctx, recordsOf(failed))
		}
	}},
	{"forgets the delay", "keeps the delay of a failed record", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fail = func(ctx context.Context, failed []courier.FailedRecord[int]) error {
			return s.LeasingSource.Release(ctx, recordsOf(failed), time.Second)
		}
	}},
	{"brings back", "does not schedule what is marked", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fail = func(_ context.Context, failed []courier.FailedRecord[int]) error {
			s.Add(recordsOf(failed)...)
			return nil
		}
	}},
	{"nobody sends", "wakes who waits for work", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		wake := make(chan struct{}, 1)
		s.wake = func() <-chan struct{} { return wake }
	}},
	{"a nil channel", "wakes who waits for work", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.wake = func() <-chan struct{} { return nil }
	}},
	{"waits for who is told", "wakes who waits for work", func(t *testing.T, s *leasingWith, x *SourceFixture[int]) {
		wake, end := make(chan struct{}), make(chan struct{})
		t.Cleanup(func() { close(end) })
		s.wake = func() <-chan struct{} { return wake }
		add := x.Add
		x.Add = func(n int) []string {
			select {
			case wake <- struct{}{}:
			case <-end:
			}
			return add(n)
		}
	}},
	{"counts what is leased", "tells its lag", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.lag = func(context.Context) (courier.Lag, error) { return courier.Lag{Pending: len(s.Pending())}, nil }
	}},
	{"an age of nothing", "tells its lag", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.lag = func(context.Context) (courier.Lag, error) { return courier.Lag{Pending: -1, Oldest: time.Hour}, nil }
	}},
}

func recordsOf(failed []courier.FailedRecord[int]) (records []int) {
	for _, f := range failed {
		records = append(records, f.Record)
	}
	return records
}

// leasingTable makes a table of the defects.
func leasingTable(defects []leasingDefect, open func(*testing.T) SourceFixture[int], f SourceFeatures, stream bool) (table []broken[sourceRun[int]]) {
	for _, d := range defects {
		table = append(table, broken[sourceRun[int]]{d.defect, d.check, func(t *testing.T, tb TB) *sourceRun[int] {
			x := open(t)
			s := new(leasingWith)
			switch from := x.Source.(type) {
			case *SchedulingSource[int]:
				s.LeasingSource = from.LeasingSource
			case *LeasingSource[int]:
				s.LeasingSource = from
			}
			x.Source = s
			d.break_(t, s, &x)
			return newSourceRun(tb, x, f, stream)
		}})
	}
	return table
}

func TestBrokenLeasingSources(t *testing.T) {
	f := schedulingFeatures()
	testBroken(t, sourceChecks[int](f, false), leasingTable(slices.Concat(ofEverySource, ofLeases, ofCapabilities), openScheduling, f, false))
}

// withMethods opens scheduling sources of which some methods are others.
func withMethods(change func(s *leasingWith)) func(t *testing.T) SourceFixture[int] {
	return func(t *testing.T) SourceFixture[int] {
		x := openScheduling(t)
		s := &leasingWith{LeasingSource: x.Source.(*SchedulingSource[int]).LeasingSource}
		change(s)
		x.Source = s
		return x
	}
}

// releaseAtOnce ignores for how long records are given back.
func releaseAtOnce(s *leasingWith) {
	s.release = func(ctx context.Context, records []int, _ time.Duration) error {
		return s.LeasingSource.Release(ctx, records, 0)
	}
}

func sleepOn(s *leasingWith) { s.wake = func() <-chan struct{} { return nil } }

func TestSourcesThatReleaseAtOnceOrDoNotWake(t *testing.T) {
	f := schedulingFeatures()
	f.ReleasesAtOnce = true
	TestSource(t, withMethods(releaseAtOnce), f)
	f = schedulingFeatures()
	f.Waker = false
	TestSource(t, withMethods(sleepOn), f)
}

func TestBrokenSourcesThatReleaseAtOnceOrDoNotWake(t *testing.T) {
	const (
		features = "has the features it is said to have"
		atOnce   = "takes records back for a while, and hands them out at once"
	)
	f := schedulingFeatures()
	f.ReleasesAtOnce = true
	noFailer := f
	noFailer.Failer = false
	waking := schedulingFeatures()
	waking.Waker = false
	checks := slices.DeleteFunc(sourceChecks[int](f, false), func(c check[sourceRun[int]]) bool { return c.name != features && c.name != atOnce })
	testBroken(t, checks, []broken[sourceRun[int]]{
		{"obeys the time", atOnce, func(t *testing.T, tb TB) *sourceRun[int] {
			return newSourceRun(tb, openScheduling(t), f, false)
		}},
		{"has no pace of retries", features, func(t *testing.T, tb TB) *sourceRun[int] {
			return newSourceRun(tb, openLeasing(t), noFailer, false)
		}},
		{"wakes, and does not say so", features, func(t *testing.T, tb TB) *sourceRun[int] {
			return newSourceRun(tb, openScheduling(t), waking, false)
		}},
	})
}
