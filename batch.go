package courier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// BatchError is what ApplyBatch returns if only some records of the batch failed: the
// listed ones. If it lists no failure, all records were applied.
//
// It is recognized when it is wrapped, and [Permanent], [Skip] and [RetryAfter] around it
// apply to each record that it lists. It is not recognized inside a join with other
// errors, because it is unknown to which records those belong.
type BatchError struct {
	Failures []BatchFailure
}

// BatchFailure is a record of a batch, by its index, and its error.
type BatchFailure struct {
	Index int
	Err   error
}

// Add lists a record as failed.
func (e *BatchError) Add(index int, err error) {
	e.Failures = append(e.Failures, BatchFailure{index, err})
}

// ErrorOrNil returns e, or nil if it lists no failure: the last line of an ApplyBatch
// that collects failures.
func (e *BatchError) ErrorOrNil() error {
	if e == nil || len(e.Failures) == 0 {
		return nil
	}
	return e
}

// Error describes the first failures, by the index of the record, and counts the rest.
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
	all := &BatchError{make([]BatchFailure, len(e.Failures))}
	for i, f := range e.Failures {
		for _, mark := range slices.Backward(marks) {
			f.Err = mark(f.Err)
		}
		all.Failures[i] = f
	}
	return all
}

// verdicts is what became of the records of one call, between the decorators and the
// coordinators: a BatchError is for code of the user's alone. The zero value says that all
// are applied. Whoever is given verdicts owns the slice.
type verdicts struct {
	each  []error // by index, nil for what is applied; nil where all of it is, and beside a whole
	whole error   // the batch failed as one, so that the error can be held against no record in particular
}

func (v verdicts) ok() bool { return v.each == nil && v.whole == nil }

// of returns the error of each of the n records of the call.
func (v verdicts) of(n int) []error {
	if v.each != nil {
		return v.each
	}
	errs := make([]error, n)
	if v.whole != nil {
		for i := range errs {
			errs[i] = v.whole
		}
	}
	return errs
}

// scatter enters the verdicts on some records of a batch, by their indices.
func (v verdicts) scatter(index []int, errs []error) {
	for j, err := range v.of(len(index)) {
		errs[index[j]] = err
	}
}

func allNil(errs []error) bool {
	for _, err := range errs {
		if err != nil {
			return false
		}
	}
	return true
}

// apart returns the verdicts on records whose errors are each their own.
func apart(errs []error) verdicts {
	if allNil(errs) {
		return verdicts{}
	}
	return verdicts{each: errs}
}

// err returns what an ApplyBatch returns.
func (v verdicts) err() error {
	if v.each == nil {
		return v.whole
	}
	list := new(BatchError)
	for i, err := range v.each {
		if err != nil {
			list.Add(i, err)
		}
	}
	return list
}

// decoded returns what an ApplyBatch of the user's has said of n records. A list that
// does not fit the batch is not to be believed about any record of it.
func decoded(err error, n int) verdicts {
	list, listed := batchErrorIn(err)
	if !listed {
		return verdicts{whole: err}
	}
	if list == nil || len(list.Failures) == 0 {
		return verdicts{}
	}
	errs := make([]error, n)
	for _, f := range list.Failures {
		switch {
		case f.Index < 0 || f.Index >= n:
			return verdicts{whole: misfit(f, n)}
		case f.Err == nil:
			errs[f.Index] = errors.New("courier: listed as failed in a BatchError, without an error")
		case errs[f.Index] != nil: // listed twice
			errs[f.Index] = errors.Join(errs[f.Index], f.Err)
		default:
			errs[f.Index] = f.Err
		}
	}
	return verdicts{each: errs}
}

// misfit is the error of a batch of n whose list does not fit it. A skip in it is not to
// be believed either.
func misfit(f BatchFailure, n int) error {
	format := "courier: a BatchError lists record %d of a batch of %d; the whole batch counts as not applied: %w"
	if f.Err == nil || markedClass(context.Background(), f.Err) == ClassSkipped {
		format = strings.Replace(format, "%w", "%v", 1)
	}
	return fmt.Errorf(format, f.Index, n, f.Err)
}

// manyApplier is a decorator of this package. Its applyMany is called where it is sound and
// takes batches.
type manyApplier[T any] interface {
	described
	applyMany(ctx context.Context, records []T) verdicts
}

// applyMany applies records as one batch, or each by itself by a decorator around an
// applier that takes no batches.
func applyMany[T any](ctx context.Context, a BatchApplier[T], records []T) verdicts {
	d, ours := a.(manyApplier[T])
	if !ours || !isOurs(a) {
		return decoded(sound(a.ApplyBatch(ctx, records)), len(records))
	}
	switch l := d.describe(); {
	case l.fault != nil:
		return verdicts{whole: l.fault}
	case ctx == nil:
		return verdicts{whole: errNoContext}
	case !l.batches:
		return applyEach(ctx, Applier[T](a), records)
	}
	return d.applyMany(ctx, records)
}

// asBatch returns the batch form of an applier if it has one that is worth
// calling. A decorator always has the method; it says whether there is a batch
// applier inside, and that is asked of one that the user's decorator shows.
func asBatch[T any](a Applier[T]) BatchApplier[T] {
	b, ok := a.(BatchApplier[T])
	if !ok {
		return nil
	}
	if l := layerOf(a); l != nil && !l.batches {
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

// applyEach is the batch form of an applier that has none: the records one by
// one, each failure its own. Once the context ends, or an error stops the
// intake (see pauseOf), the remaining records are not attempted. The records
// are applied on a goroutine that user code may end without taking the verdicts
// of the others along.
func applyEach[T any](ctx context.Context, a Applier[T], records []T) verdicts {
	return applySingly(ctx, a, records, false)
}

// applySingly is applyEach that, where an order is kept, ends behind the first record
// that has failed.
func applySingly[T any](ctx context.Context, a Applier[T], records []T, order bool) verdicts {
	errs := make([]error, len(records))
	past := historiesIn(ctx, len(records))
	ctx = withExits(ctx)
	worker := exitsIn(ctx)
	next := 0
	one := ctx
	ends := func(err error) bool {
		return err != nil && (order && classify(ctx, err) != ClassSkipped || pauses(ctx, err))
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
	return apart(errs)
}

// isolated is applyMany with a panic, or a Goexit, as an error of the whole batch.
func isolated[T any](ctx context.Context, a BatchApplier[T], records []T) (v verdicts) {
	isolate(&v.whole, func() error {
		v = applyMany(ctx, a, records)
		return v.whole
	})
	return v
}

// applyIsolated calls ApplyBatch and, when the batch fails as one by an attempt
// that was made or with a list that does not fit it, applies its records one by one:
// the failure may be a single record's (D3), and none may be parked or failed for
// another's. Where an order is kept, those behind a failed one are not attempted.
func applyIsolated[T any](ctx context.Context, a BatchApplier[T], records []T, order bool) verdicts {
	v := isolated(ctx, a, records)
	if v.whole == nil || classify(ctx, v.whole) == ClassNotAttempted {
		return v
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
func applyOn[T any](ctx context.Context, a BatchApplier[T], records []T, order bool) verdicts {
	v := applyIsolated(ctx, a, records, order)
	if v.each == nil {
		return v
	}
	for before := len(records); ; {
		var left []int
		for i, err := range v.each {
			if behindFailed(ctx, err) {
				left = append(left, i)
			}
		}
		if len(left) == 0 || len(left) == before {
			return apart(v.each)
		}
		before = len(left)
		share, some := shareOf(ctx, records, left)
		applyIsolated(share, a, some, order).scatter(left, v.each)
	}
}
