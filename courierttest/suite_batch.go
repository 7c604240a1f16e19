package courierttest

import (
	"context"
	"errors"
	"slices"

	"github.com/erfanmomeniii/courier"
)

func batchChecks[T any](f ApplierFeatures) []check[applierRun[T]] {
	type run = applierRun[T]
	list := []check[run]{
		{"is a batch applier", (*run).isBatch},
		{"applies a batch", (*run).appliesBatch},
		{"applies a batch of one", (*run).appliesBatchOfOne},
		{"applies a large batch", (*run).appliesLargeBatch},
		{"applies a batch again", (*run).appliesBatchAgain},
		{"leaves the batch's slice alone", (*run).leavesSliceAlone},
		{"keeps no batch", (*run).keepsNoBatch},
		{"tells the truth of a batch whose context has ended", (*run).endedBatch},
		{"fails a batch in an outage", (*run).failsBatchInOutage},
		{"ends a batch with its context in an outage", (*run).endsBatchInOutage},
		{"recovers with a batch from an outage", (*run).recoversBatch},
		{"tells what failed of a batch", (*run).tellsWhatFailed},
		{"tells what failed of a large batch", (*run).tellsWhatFailedOfMany},
	}
	if f.Ordered {
		list = append(list, check[run]{"keeps the order of a batch", (*run).keepsBatchOrder})
	}
	if f.OrderedBatches {
		list = append(list, check[run]{"applies nothing behind what failed of a batch", (*run).endsBehindPoison})
	}
	if f.Isolated {
		list = append(list, check[run]{"lists poison alone", (*run).listsPoisonAlone})
	}
	if f.Permanent {
		list = append(list, check[run]{"says of a batch what is permanent", (*run).saysPermanent})
	}
	return list
}

func (s *applierRun[T]) batch() courier.BatchApplier[T] {
	s.tb.Helper()
	b, ok := s.Applier.(courier.BatchApplier[T])
	if !ok {
		s.tb.Fatalf("%T is no courier.BatchApplier: is ApplyBatch missing, or its signature another?", s.Applier)
	}
	return b
}

func (s *applierRun[T]) applyBatch(ctx context.Context, records []T) (err error, soon bool) {
	s.tb.Helper()
	b := s.batch()
	return s.do(ctx, "ApplyBatch", func(ctx context.Context) error { return b.ApplyBatch(ctx, records) })
}

func (s *applierRun[T]) mustApplyBatch(records []T) {
	s.tb.Helper()
	b := s.batch()
	s.must("ApplyBatch", func(ctx context.Context) error { return b.ApplyBatch(ctx, records) })
}

func (s *applierRun[T]) isBatch() {
	s.tb.Helper()
	s.batch()
}

func (s *applierRun[T]) appliesBatch() {
	s.tb.Helper()
	records := s.records(5)
	s.mustApplyBatch(records)
	s.expect(records, "after ApplyBatch returned nil")
}

func (s *applierRun[T]) appliesBatchOfOne() {
	s.tb.Helper()
	s.mustApplyBatch(s.records(1))
	s.expect(s.records(1), "after ApplyBatch of one record returned nil")
}

func (s *applierRun[T]) appliesLargeBatch() {
	s.tb.Helper()
	records := s.records(large)
	s.mustApplyBatch(records)
	had := s.had()
	for _, record := range records {
		if had != nil && !had[s.name(record)] {
			s.tb.Fatalf("after ApplyBatch of %d records returned nil the destination has %d of them, and not record %s", len(records), len(had), s.name(record))
		}
	}
}

// large is a batch that an implementation works off in parts, if it does so.
const large = 1234

// had returns the names of what the destination has, nil where that cannot be
// seen.
func (s *applierRun[T]) had() map[string]bool {
	if s.Applied == nil {
		return nil
	}
	had := make(map[string]bool)
	for _, name := range s.Applied() {
		had[name] = true
	}
	return had
}

func (s *applierRun[T]) appliesBatchAgain() {
	s.tb.Helper()
	records := s.records(4)
	s.mustApplyBatch(records[:3])
	s.mustApplyBatch(records[1:])
	s.expect(records, "after ApplyBatch returned nil")
	if s.f.Idempotent && s.Applied != nil && len(s.Applied()) != len(records) {
		s.tb.Errorf("after two batches that share records the destination has %q", s.Applied())
	}
}

func (s *applierRun[T]) leavesSliceAlone() {
	s.tb.Helper()
	records := s.records(5)
	slices.Reverse(records)
	want := namesBy(s.name, records)
	s.mustApplyBatch(records)
	if got := namesBy(s.name, records); !slices.Equal(got, want) {
		s.tb.Errorf("ApplyBatch made %q of the slice it was given, which held %q", got, want)
	}
}

func (s *applierRun[T]) keepsNoBatch() {
	s.tb.Helper()
	records := s.records(6)
	batch := slices.Clone(records[:3])
	s.mustApplyBatch(batch)
	copy(batch, records[3:]) // as the coordinator does
	s.mustApplyBatch(batch)
	s.expect(records, "after the slice of a batch was used for another")
}

func (s *applierRun[T]) endedBatch() {
	s.tb.Helper()
	ctx, records := ended(), s.records(3)
	err, soon := s.applyBatch(ctx, records)
	if !soon {
		s.tb.Errorf("ApplyBatch did not return at once though its context had ended")
	}
	for i, err := range s.errorsOf(err, records) {
		if err == nil {
			s.expect(records[i:i+1], "after ApplyBatch reported no error of it, though its context had ended,")
		} else if class := courier.Classify(ctx, err); class != courier.ClassNotAttempted {
			s.tb.Errorf("ApplyBatch, whose context had ended, returned an error that is %s: the stop would be held against the record: %v", class, err)
		}
	}
	s.mustApplyBatch(records)
	s.expect(records, "after ApplyBatch returned nil")
}

func (s *applierRun[T]) keepsBatchOrder() {
	s.tb.Helper()
	records := s.records(5)
	slices.Reverse(records)
	s.mustApplyBatch(records)
	s.inOrder(records)
}

func (s *applierRun[T]) endsBehindPoison() {
	s.tb.Helper()
	if o, ok := s.Applier.(courier.OrderedBatcher); !ok || !o.OrderedBatches() {
		s.tb.Fatalf("%T is no courier.OrderedBatcher whose OrderedBatches returns true, so that no two records of a key are in one of its batches", s.Applier)
	}
	if s.Poison == nil {
		return
	}
	records, poison, errs := s.poisoned()
	whole := s.wholeBatch(errs)
	for i, err := range errs {
		switch {
		case i == poison || whole && s.Applied == nil:
		case i > poison && (err == nil || s.Applied != nil && s.has(records[i])):
			s.tb.Errorf("ApplyBatch applied record %s behind one that failed, index %d, so that it has overtaken that if they are of one key", s.name(records[i]), poison)
		case whole: // which says that no record was applied
		case i < poison && err != nil:
			s.tb.Errorf("ApplyBatch failed for a record before the poison at index %d, index %d: %v", poison, i, err)
		case i > poison && !errors.Is(err, courier.ErrBehindFailed):
			s.tb.Errorf("ApplyBatch did not list index %d, behind the poison at index %d, with courier.ErrBehindFailed, so that it does not go on at once: %v", i, poison, err)
		case i > poison && courier.Classify(context.Background(), err) != courier.ClassNotAttempted:
			s.tb.Errorf("ApplyBatch listed index %d, behind the poison at index %d, with an error that counts as an attempt: %v", i, poison, err)
		}
	}
}

// errorsOf lays the result of ApplyBatch out over its records, as the core does,
// and reports a list that does not fit.
func (s *applierRun[T]) errorsOf(err error, records []T) []error {
	s.tb.Helper()
	errs := make([]error, len(records))
	if err == nil {
		return errs
	}
	var list *courier.BatchError
	if !errors.As(err, &list) {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	for _, f := range list.Failures {
		switch {
		case f.Index < 0 || f.Index >= len(records):
			s.tb.Fatalf("a BatchError lists index %d of a batch of %d", f.Index, len(records))
		case f.Err == nil:
			s.tb.Fatalf("a BatchError lists index %d without an error", f.Index)
		case errs[f.Index] != nil:
			s.tb.Fatalf("a BatchError lists index %d twice", f.Index)
		}
		errs[f.Index] = f.Err
	}
	return errs
}

func (s *applierRun[T]) failsBatchInOutage() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	up := s.Down()
	defer up()
	records := s.records(3)
	err, _ := s.applyBatch(context.Background(), records)
	for _, err := range s.errorsOf(err, records) {
		s.outage("ApplyBatch", err)
	}
}

func (s *applierRun[T]) endsBatchInOutage() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	up := s.Down()
	defer up()
	records := s.records(3)
	ctx, cancel := context.WithTimeout(context.Background(), glance)
	defer cancel()
	err, soon := s.applyBatch(ctx, records)
	if !soon {
		s.tb.Errorf("ApplyBatch did not return for %v after its context had ended, while the destination was down", s.patience)
	}
	for _, err := range s.errorsOf(err, records) {
		s.outage("ApplyBatch, whose context ended,", err)
	}
}

func (s *applierRun[T]) recoversBatch() {
	s.tb.Helper()
	if s.Down == nil {
		return
	}
	records := s.records(3)
	up := s.Down()
	_, _ = s.applyBatch(context.Background(), records)
	up()
	b := s.batch()
	s.recovered(func(ctx context.Context) error { return b.ApplyBatch(ctx, records) }, records...)
}

// poisoned applies a batch with poison in it.
func (s *applierRun[T]) poisoned() (records []T, poison int, errs []error) {
	s.tb.Helper()
	records, poison = s.records(5), 2
	records[poison] = s.Poison(poison)
	err, _ := s.applyBatch(context.Background(), records)
	return records, poison, s.errorsOf(err, records)
}

func (s *applierRun[T]) tellsWhatFailed() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	records, poison, errs := s.poisoned()
	if errs[poison] == nil {
		s.tb.Fatalf("ApplyBatch reported no error of a record that the destination never takes, index %d: %v", poison, errs)
	}
	whole := !slices.Contains(errs, nil)
	for i, record := range records {
		switch {
		case i == poison:
		case errs[i] == nil:
			s.expect(records[i:i+1], "after ApplyBatch reported no error of it, but of another,")
		case whole && s.Applied != nil && s.has(record):
			s.tb.Errorf("ApplyBatch failed as a whole, which says that no record was applied, and the destination has record %s: list the failed ones in a BatchError", s.name(record))
		}
	}
}

func (s *applierRun[T]) tellsWhatFailedOfMany() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	records := s.records(large)
	poison := []int{0, large / 2, large - 1}
	for _, i := range poison {
		records[i] = s.Poison(i)
	}
	err, _ := s.applyBatch(context.Background(), records)
	errs, had := s.errorsOf(err, records), s.had()
	for i, err := range errs {
		switch {
		case slices.Contains(poison, i) && err == nil:
			s.tb.Fatalf("ApplyBatch of %d records reported no error of one that the destination never takes, index %d", len(records), i)
		case err == nil && had != nil && !had[s.name(records[i])]:
			s.tb.Fatalf("after ApplyBatch of %d records reported no error of record %s the destination does not have it", len(records), s.name(records[i]))
		}
	}
}

func (s *applierRun[T]) listsPoisonAlone() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	_, poison, errs := s.poisoned()
	for i, err := range errs {
		if i != poison && err != nil {
			s.tb.Errorf("ApplyBatch failed for a healthy record of a batch with poison in it, index %d: %v", i, err)
		}
	}
}

func (s *applierRun[T]) saysPermanent() {
	s.tb.Helper()
	if s.Poison == nil {
		return
	}
	_, poison, errs := s.poisoned()
	for i, err := range errs {
		if err == nil {
			continue
		}
		class := courier.Classify(context.Background(), err)
		if permanent := class == courier.ClassPermanent; permanent != (i == poison) && !s.wholeBatch(errs) {
			s.tb.Errorf("of a batch with poison at index %d, the error of index %d is %s: %v", poison, i, class, err)
		}
	}
}

// wholeBatch reports whether a batch failed as one: then its records are applied
// one by one, which tells what is permanent.
func (s *applierRun[T]) wholeBatch(errs []error) bool {
	for _, err := range errs {
		if err != errs[0] {
			return false
		}
	}
	return true
}
