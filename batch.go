package courier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// BatchError is what ApplyBatch returns when some records of the batch failed:
// the listed ones, and no others. Without any failure listed it means that all
// were applied.
//
// It is recognised when it is wrapped, and [Permanent], [Skip] and [RetryAfter]
// around it are meant for each record that it lists; but not inside a join with
// other errors, which could mean anything of the records it does not list.
type BatchError struct {
	Failures []Failure
}

// Failure is one record of a batch, by its index, and its error.
type Failure struct {
	Index int
	Err   error
}

// Add lists a record as failed.
func (e *BatchError) Add(index int, err error) {
	e.Failures = append(e.Failures, Failure{index, err})
}

// ErrorOrNil returns e, or nil when it lists no failure: the last line of an
// ApplyBatch that collects failures as it goes.
func (e *BatchError) ErrorOrNil() error {
	if e == nil || len(e.Failures) == 0 {
		return nil
	}
	return e
}

// Error tells of the first failures, by the index of the record, and counts the rest.
func (e *BatchError) Error() string {
	const shown = 3
	switch { // to an ApplyBatch they are no error, so it was another function
	case e == nil:
		return "courier: user code returned an error that cannot be used: a *courier.BatchError that is a nil pointer: return nil itself, or ErrorOrNil()"
	case len(e.Failures) == 0:
		return "courier: user code returned a BatchError that lists no record: return ErrorOrNil()"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "courier: %d of the batch's records failed", len(e.Failures))
	for i, f := range e.Failures {
		if i == shown {
			fmt.Fprintf(&b, "; and %d more", len(e.Failures)-shown)
			break
		}
		fmt.Fprintf(&b, "%c index %d: %v", ":;"[min(i, 1)], f.Index, f.Err)
	}
	return b.String()
}

// Unwrap returns the records' errors in the order listed.
func (e *BatchError) Unwrap() []error {
	if e == nil {
		return nil
	}
	errs := make([]error, len(e.Failures))
	for i, f := range e.Failures {
		errs[i] = f.Err
	}
	return errs
}

// tested returns a list whose errors can be looked into, itself where they can.
func (e *BatchError) tested() *BatchError {
	if e == nil {
		return nil
	}
	list := e
	for i, f := range e.Failures {
		if f.Err == nil || unsound(f.Err, false) == "" {
			continue
		}
		if list == e {
			list = &BatchError{slices.Clone(e.Failures)}
		}
		list.Failures[i].Err = tested(f.Err)
	}
	return list
}

// batchErrorIn finds a BatchError below wrappers. Joins it does not look into,
// nor errors that tell of something else than this batch's attempt and may carry
// the list of another one: the cause that a breaker opened by, say.
func batchErrorIn(err error) (*BatchError, bool) {
	var marks []func(error) error // around the list, the outermost first: they are meant for all that it lists
	for err != nil {
		switch e := err.(type) {
		case *BatchError:
			return e.marked(marks), true
		case *permanentError:
			marks = append(marks, Permanent)
		case *skipError:
			marks = append(marks, Skip)
		case *retryAfterError:
			marks = append(marks, func(err error) error { return RetryAfter(err, e.after) })
		case interface{ NotAttempted() bool }:
			if e.NotAttempted() {
				return nil, false
			}
		}
		_, err = wrappedIn(err)
	}
	return nil, false
}

// marked returns the list with each error marked, itself where there is no mark.
func (e *BatchError) marked(marks []func(error) error) *BatchError {
	if e == nil || len(marks) == 0 {
		return e
	}
	all := &BatchError{make([]Failure, len(e.Failures))}
	for i, f := range e.Failures {
		for _, mark := range slices.Backward(marks) {
			f.Err = mark(f.Err)
		}
		all.Failures[i] = f
	}
	return all
}

// spread lays the result of ApplyBatch out over its records: errs[i] is nil
// when record i was applied. whole says that the batch failed as one, so that
// the error can be held against no record in particular.
func spread(err error, errs []error) (whole bool) {
	clear(errs)
	if err == nil {
		return false
	}
	if e, ok := batchErrorIn(err); ok {
		if err = e.fill(errs); err == nil {
			return false
		}
	}
	for i := range errs {
		errs[i] = err
	}
	return true
}

// fill sets the errors of the listed records. A list that does not fit the
// batch is not to be believed about any record of it.
func (e *BatchError) fill(errs []error) error {
	if e == nil {
		return nil
	}
	for _, f := range e.Failures {
		switch {
		case f.Index < 0 || f.Index >= len(errs):
			return fmt.Errorf("courier: a BatchError lists record %d of a batch of %d; the whole batch counts as not applied: %w", f.Index, len(errs), f.Err)
		case f.Err == nil:
			errs[f.Index] = errors.New("courier: listed as failed in a BatchError, without an error")
		case errs[f.Index] != nil: // listed twice
			errs[f.Index] = errors.Join(errs[f.Index], f.Err)
		default:
			errs[f.Index] = f.Err
		}
	}
	return nil
}

// gather is the inverse of spread: nil when no record failed, else a
// BatchError.
func gather(errs []error) error {
	var e *BatchError
	for i, err := range errs {
		if err != nil {
			if e == nil {
				e = new(BatchError)
			}
			e.Add(i, err)
		}
	}
	return e.ErrorOrNil()
}

// asBatch returns the batch form of an applier if it has one that is worth
// calling. A decorator always has the method; it says whether there is a batch
// applier inside, and that is asked of one that the user's decorator shows.
func asBatch[T any](a Applier[T]) BatchApplier[T] {
	b, ok := a.(BatchApplier[T])
	if !ok {
		return nil
	}
	if d, ok := layerOf(a).(interface{ batches() bool }); ok && !d.batches() {
		return nil
	}
	return b
}

// isOrdered reports whether an applier takes batches and keeps the order inside a call.
func isOrdered[T any](a Applier[T]) (ordered bool) {
	o, ok := a.(OrderedBatcher)
	if !ok || asBatch(a) == nil {
		return false
	}
	var ignored error // one that panics has promised nothing
	isolate(&ignored, func() error { ordered = o.OrderedBatches(); return nil })
	return ordered
}

// stage is what every decorator is made of: the applier inside it, the batch
// form of that where there is one, and what is wrong with the configuration.
type stage[T any] struct {
	what  kind
	inner Applier[T]
	below layer // the next decorator inside, nil if there is none
	batch BatchApplier[T]
	order bool // that keeps the order inside a call
	fault error
	ours  bool // what is inside is a decorator, whose errors are sound
	safe  bool // and lets no panic through
}

func newStage[T any](what kind, inner Applier[T], fault error) stage[T] {
	below := layerOf(inner)
	fault = firstFault(applierFault("applier", inner), fault, misplaced("applier", what, below))
	s := stage[T]{what: what, inner: inner, below: below, fault: fault}
	if inner != nil {
		s.batch, s.order = asBatch(inner), isOrdered(inner)
		l, ours := inner.(layer)
		s.ours, s.safe = ours, ours && l.kind().catches()
	}
	return s
}

// Validate reports a fault of the decorator or of what it decorates.
func (s *stage[T]) Validate() error { return s.fault }

func (s *stage[T]) batches() bool { return s.batch != nil }

// OrderedBatches reports whether what is inside keeps the order.
func (s *stage[T]) OrderedBatches() bool { return s.order }

// Unwrap returns what the decorator is around.
func (s *stage[T]) Unwrap() Applier[T] { return s.inner }

func (s *stage[T]) kind() kind      { return s.what }
func (s *stage[T]) inside() []layer { return []layer{s.below} }

func (s *stage[T]) next() []layer {
	if !s.ours {
		return nil
	}
	return []layer{s.below}
}

// refuse returns why there is no call to be made: there is a fault, or ctx is nil or
// has ended.
func (s *stage[T]) refuse(ctx context.Context) error {
	switch {
	case s.fault != nil:
		return s.fault
	case ctx == nil:
		return errNoContext
	}
	return unattempted(causeOf(ctx))
}

// attempt is apply with a panic as an error.
func (s *stage[T]) attempt(ctx context.Context, record T) error {
	if s.safe {
		return s.sound(s.inner.Apply(ctx, record))
	}
	return s.shielded(ctx, record)
}

// shielded is guard without a closure, on the path of every record.
func (s *stage[T]) shielded(ctx context.Context, record T) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = newPanicError(recover())
		}
	}()
	err = s.inner.Apply(ctx, record)
	returned = true
	return s.sound(err)
}

func (s *stage[T]) apply(ctx context.Context, record T) error {
	return s.sound(s.inner.Apply(ctx, record))
}

func (s *stage[T]) applyBatch(ctx context.Context, records []T) error {
	return s.sound(s.batch.ApplyBatch(ctx, records))
}

// attemptBatch is applyBatch with a panic, or a Goexit, as an error of the whole
// batch.
func (s *stage[T]) attemptBatch(ctx context.Context, records []T) (err error) {
	if s.safe {
		return s.applyBatch(ctx, records)
	}
	isolate(&err, func() error { return s.batch.ApplyBatch(ctx, records) })
	return err
}

// sound makes an error of what is inside one that can be looked into.
func (s *stage[T]) sound(err error) error {
	if err == nil || s.ours {
		return err
	}
	return tested(err)
}

// applyEach is the batch form of an applier that has none: the records one by
// one, each failure its own. Once the context ends, or an error stops the
// intake (see pauseOf), the remaining records are not attempted. The records
// are applied on a goroutine that user code may end without taking the verdicts
// of the others along.
func applyEach[T any](ctx context.Context, a Applier[T], records []T) error {
	return applySingly(ctx, a, records, false)
}

// applySingly is applyEach that, where an order is kept, ends behind the first record
// that has failed.
func applySingly[T any](ctx context.Context, a Applier[T], records []T, order bool) error {
	if ctx == nil {
		return errNoContext
	}
	errs := make([]error, len(records))
	past := historiesIn(ctx, len(records))
	ctx = withExits(ctx)
	worker := exitsIn(ctx)
	next := 0
	one := ctx
	ends := func(err error) bool {
		return err != nil && (order && classify(ctx, err) != Skipped || pauses(ctx, err))
	}
	supervise(func() {
		if next > 0 && isExit(errs[next-1]) { // it ended the goroutine before this one
			i := next - 1
			errs[i] = afterExit(one, a, records[i], errs[i])
		}
		for next < len(records) && ctx.Err() == nil && (next == 0 || !ends(errs[next-1])) {
			i := next
			one = ctx
			if past != nil {
				one = withHistories(ctx, past[i:i+1])
			}
			next++
			worker.step()
			guard(&errs[i], func() error { return a.Apply(one, records[i]) })
		}
	})
	if next < len(records) {
		left := ErrBehindFailed
		switch why := causeOf(ctx); {
		case why != nil:
			left = unattempted(why)
		case pauses(ctx, errs[next-1]):
			left = unattempted(errs[next-1])
		}
		for i := next; i < len(records); i++ {
			errs[i] = left
		}
	}
	return gather(errs)
}

// applyIsolated calls ApplyBatch and, when the batch fails as one by an attempt
// that was made or with a list that does not fit it, applies its records one by one:
// the failure may be a single record's (D3), and none may be parked or failed for
// another's. Where an order is kept, those behind a failed one are not attempted.
func applyIsolated[T any](ctx context.Context, a BatchApplier[T], records []T, order bool) error {
	var err error
	isolate(&err, func() error { return a.ApplyBatch(ctx, records) })
	if err == nil {
		return nil
	}
	if whole := spread(err, make([]error, len(records))); !whole || classify(ctx, err) == NotAttempted {
		return err
	}
	return applySingly(ctx, Applier[T](a), records, order)
}

// allOf returns the indices of n records.
func allOf(n int) []int {
	index := make([]int, n)
	for i := range index {
		index[i] = i
	}
	return index
}

// applyOn is applyIsolated that goes on behind a failed record, for records that have no
// order among each other.
func applyOn[T any](ctx context.Context, a BatchApplier[T], records []T, order bool) error {
	err := applyIsolated(ctx, a, records, order)
	if _, listed := batchErrorIn(err); !listed {
		return err
	}
	errs := make([]error, len(records))
	spread(err, errs)
	for index := []int(nil); ; {
		var left []int
		for i := range errs {
			if behindFailed(ctx, errs[i]) {
				left = append(left, i)
			}
		}
		if len(left) == 0 || len(left) == len(records) || len(left) == len(index) {
			return gather(errs)
		}
		index = left
		share, some := shareOf(ctx, records, index)
		scatter(applyIsolated(share, a, some, order), index, errs)
	}
}
