package courierttest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/benbjohnson/clock"

	"github.com/erfanmomeniii/courier"
)

// ApplierFixture is an applier under test, with access to its destination. An optional
// field that is nil skips the checks that need it.
type ApplierFixture[T any] struct {
	// Applier is the applier under test, with an empty destination. Required.
	Applier courier.Applier[T]

	// Record returns the n-th record, for any n from 0: always the same record for the
	// same n. Required.
	Record func(n int) T

	// Name names a record. nil is fmt.Sprint.
	Name func(record T) string

	// Applied returns the names of the records that the destination has, in its order; a
	// record that it has twice is listed twice.
	Applied func() []string

	// Poison returns a record that the destination never accepts, in place of the n-th
	// record. If there are several kinds of such records, return different ones.
	Poison func(n int) T

	// Down makes the destination fail, or not answer, until up is called.
	Down func() (up func())
}

// ApplierFeatures says which features an applier has beyond the contract of
// [courier.Applier]. The zero value has none. Features that an applier does not have are
// not tested.
type ApplierFeatures struct {
	// Bubble runs each check in a bubble of its own, see [Bubble]: for implementations in
	// memory.
	Bubble bool

	// Idempotent means that the destination has a record once, however often it is
	// applied.
	Idempotent bool

	// Ordered means that the destination keeps the order in which records are applied,
	// within a batch too.
	Ordered bool

	// Concurrent means that the applier may be called concurrently.
	Concurrent bool

	// Permanent means that the applier returns courier.Permanent for the poison.
	Permanent bool

	// Isolated means that a batch applier lists, for a batch that contains poison, only
	// the poison.
	Isolated bool

	// OrderedBatches means that the applier is a [courier.OrderedBatcher]: in a batch
	// that contains poison, it applies nothing after the poison. All records of the
	// fixture must then depend on their order, and Isolated cannot be set.
	OrderedBatches bool

	// Recovers is how long after an outage records may still be refused, for example by
	// an open breaker, in the bubble's time. 0 is not at all.
	Recovers time.Duration

	// Patience is how long a call may take. 0 is 10 seconds.
	Patience time.Duration
}

// TestApplier tests an applier, each check on a fresh one that open makes.
func TestApplier[T any](t *testing.T, open func(t *testing.T) ApplierFixture[T], features ApplierFeatures) {
	runSuite(t, features.Bubble, func(t *testing.T) *applierRun[T] {
		return newApplierRun(t, open(t), features)
	}, applierChecks[T](features))
}

// TestBatchApplier tests a batch applier, as [TestApplier] and by its batches.
func TestBatchApplier[T any](t *testing.T, open func(t *testing.T) ApplierFixture[T], features ApplierFeatures) {
	runSuite(t, features.Bubble, func(t *testing.T) *applierRun[T] {
		return newApplierRun(t, open(t), features)
	}, slices.Concat(applierChecks[T](features), batchChecks[T](features)))
}

func applierChecks[T any](f ApplierFeatures) []check[applierRun[T]] {
	type run = applierRun[T]
	list := []check[run]{
		{"is complete", (*run).isComplete},
		{"applies a record", (*run).applies},
		{"applies a record again", (*run).appliesAgain},
		{"tells the truth when its context has ended", (*run).endedContext},
		{"fails in an outage", (*run).failsInOutage},
		{"ends with its context in an outage", (*run).endsInOutage},
		{"recovers from an outage", (*run).recovers},
		{"refuses poison", (*run).refusesPoison},
		{"goes on behind poison", (*run).goesOn},
	}
	if f.Ordered {
		list = append(list, check[run]{"keeps the order", (*run).keepsOrder})
	}
	if f.Concurrent {
		list = append(list, check[run]{"takes calls at once", (*run).takesCallsAtOnce})
	}
	return list
}

// applierRun is one check of an applier.
type applierRun[T any] struct {
	attempt
	ApplierFixture[T]
	f    ApplierFeatures
	name func(T) string
}

func newApplierRun[T any](tb TB, x ApplierFixture[T], f ApplierFeatures) *applierRun[T] {
	return &applierRun[T]{newAttempt(tb, f.Patience), x, f, nameBy(x.Name)}
}

func (s *applierRun[T]) apply(ctx context.Context, record T) (err error, soon bool) {
	s.tb.Helper()
	return s.do(ctx, "Apply", func(ctx context.Context) error { return s.Applier.Apply(ctx, record) })
}

func (s *applierRun[T]) mustApply(records ...T) {
	s.tb.Helper()
	for _, record := range records {
		s.must(fmt.Sprintf("Apply of record %s", s.name(record)), func(ctx context.Context) error {
			return s.Applier.Apply(ctx, record)
		})
	}
}

// records returns the first n.
func (s *applierRun[T]) records(n int) []T {
	records := make([]T, n)
	for i := range records {
		records[i] = s.Record(i)
	}
	return records
}

// has reports whether the destination has a record; true where that cannot be
// seen.
func (s *applierRun[T]) has(record T) bool {
	return s.Applied == nil || slices.Contains(s.Applied(), s.name(record))
}

// expect checks that the destination has these records.
func (s *applierRun[T]) expect(records []T, when string) {
	s.tb.Helper()
	for _, record := range records {
		if !s.has(record) {
			s.tb.Fatalf("%s the destination does not have record %s, but %q", when, s.name(record), s.Applied())
		}
	}
}

func (s *applierRun[T]) isComplete() {
	s.tb.Helper()
	if s.Applier == nil || s.Record == nil {
		s.tb.Fatalf("ApplierFixture.Applier and Record are required")
	}
	if v, ok := s.Applier.(courier.Validator); ok {
		if err := v.Validate(); err != nil {
			s.tb.Errorf("Validate reports a fault: %v", err)
		}
	}
}

func (s *applierRun[T]) applies() {
	s.tb.Helper()
	records := s.records(3)
	s.mustApply(records...)
	s.expect(records, "after Apply returned nil")
}

func (s *applierRun[T]) appliesAgain() {
	s.tb.Helper()
	records := s.records(2)
	s.mustApply(records[0], records[1], records[0], records[0])
	s.expect(records, "after Apply returned nil")
	if got := s.Applied; s.f.Idempotent && got != nil && len(got()) != 2 {
		s.tb.Errorf("after three applies of one record and one of another the destination has %q", got())
	}
}

func (s *applierRun[T]) endedContext() {
	s.tb.Helper()
	ctx, record := ended(), s.Record(0)
	err, soon := s.apply(ctx, record)
	if !soon {
		s.tb.Errorf("Apply did not return at once though its context had ended")
	}
	if err == nil {
		s.expect([]T{record}, "after Apply returned nil, though its context had ended,")
	} else if class := courier.Classify(ctx, err); class != courier.ClassNotAttempted {
		s.tb.Errorf("Apply, whose context had ended, returned an error that is %s: the stop would be held against the record: %v", class, err)
	}
	s.mustApply(record)
	s.expect([]T{record}, "after Apply returned nil")
}

// outage checks an error of the time while the destination is down.
func (s *applierRun[T]) outage(what string, err error) {
	s.tb.Helper()
	if err == nil {
		s.tb.Errorf("%s returned nil while the destination was down", what)
		return
	}
	if class := courier.Classify(context.Background(), err); class != courier.ClassRetryable && class != courier.ClassNotAttempted {
		s.tb.Errorf("%s returned an error that is %s while the destination was down, so that an outage takes healthy records out: %v", what, class, err)
	}
}

func (s *applierRun[T]) failsInOutage() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	up := s.Down()
	defer up()
	err, _ := s.apply(context.Background(), s.Record(0))
	s.outage("Apply", err)
}

func (s *applierRun[T]) endsInOutage() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	up := s.Down()
	defer up()
	ctx, cancel := context.WithTimeout(context.Background(), glance)
	defer cancel()
	if _, soon := s.apply(ctx, s.Record(0)); !soon {
		s.tb.Errorf("Apply did not return for %v after its context had ended, while the destination was down", s.patience)
	}
}

func (s *applierRun[T]) recovers() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	up := s.Down()
	_, _ = s.apply(context.Background(), s.Record(0))
	up()
	s.recovered(func(ctx context.Context) error { return s.Applier.Apply(ctx, s.Record(1)) }, s.Record(1))
}

// recovered makes a call until it succeeds, for as long as an applier may take
// to recover.
func (s *applierRun[T]) recovered(call func(ctx context.Context) error, records ...T) {
	s.tb.Helper()
	var err error
	for waited := time.Duration(0); waited <= s.f.Recovers; waited += time.Second {
		if waited > 0 {
			<-clock.New().After(time.Second)
		}
		if err, _ = s.do(context.Background(), "a call after an outage", call); err == nil {
			s.expect(records, "after a call that succeeded behind an outage")
			return
		}
	}
	s.tb.Errorf("after an outage, and %v, a call still fails: %v", s.f.Recovers, err)
}

func (s *applierRun[T]) refusesPoison() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	err, _ := s.apply(context.Background(), s.Poison(0))
	if err == nil {
		s.tb.Fatalf("Apply returned nil for a record that the destination never takes")
	}
	switch class := courier.Classify(context.Background(), err); {
	case class == courier.ClassSkipped:
		s.tb.Errorf("Apply skips a record that the destination never takes, so that it is lost: %v", err)
	case class == courier.ClassNotAttempted:
		s.tb.Errorf("Apply says that a record was not attempted, so that it comes back for ever: %v", err)
	case s.f.Permanent && class != courier.ClassPermanent:
		s.tb.Errorf("Apply returned an error that is %s for a record that the destination never takes, want permanent: %v", class, err)
	}
}

func (s *applierRun[T]) goesOn() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	_, _ = s.apply(context.Background(), s.Poison(0))
	records := []T{s.Record(1), s.Record(2)}
	s.mustApply(records...)
	s.expect(records, "behind a record that the destination did not take")
}

func (s *applierRun[T]) keepsOrder() {
	s.tb.Helper()
	records := s.records(5)
	s.mustApply(records...)
	s.inOrder(records)
}

func (s *applierRun[T]) inOrder(records []T) {
	s.tb.Helper()
	if s.Applied == nil {
		return
	}
	if got, want := s.Applied(), namesBy(s.name, records); !slices.Equal(got, want) {
		s.tb.Errorf("the destination has %q, and they were applied in the order %q", got, want)
	}
}

func (s *applierRun[T]) takesCallsAtOnce() {
	s.tb.Helper()
	records := s.records(20)
	errs := make([]error, len(records))
	s.must("Apply, from several goroutines at once,", func(ctx context.Context) error {
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i, record := range records {
			all.Go(func() {
				<-begin
				errs[i] = s.Applier.Apply(ctx, record)
			})
		}
		close(begin)
		all.Wait()
		return nil
	})
	for i, err := range errs {
		if err != nil {
			s.tb.Fatalf("Apply of record %s, beside others, returned an error: %v", s.name(records[i]), err)
		}
	}
	s.expect(records, "after applies from several goroutines")
}
