package courierttest

import (
	"context"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Applier is a destination that fails on demand. [Recorder.Applier] makes it. It is safe
// for concurrent use; set the fields before using it.
type Applier[T any] struct {
	// ApplyFunc applies a record unless a fault prevents it, such as your own process
	// function. nil accepts every record.
	ApplyFunc func(ctx context.Context, record T) error

	// Faults apply to the calls, before ApplyFunc, except Lost, which applies after it.
	// They may be set at any time.
	Faults Injector

	recorder *Recorder[T]
}

// Applier returns a destination with the given faults; nil is none.
func (r *Recorder[T]) Applier(faults Faults) *Applier[T] {
	a := &Applier[T]{recorder: r}
	a.Faults.Set(faults...)
	return a
}

// Apply accepts a record, or fails as the faults say.
func (a *Applier[T]) Apply(ctx context.Context, record T) error {
	clock := a.recorder.clock()
	verdicts, err := a.Faults.next(clock.Now(), a.recorder.name(record))
	if err != nil {
		return err
	}
	pause(ctx, clock, verdicts[0].delay)
	return a.apply(ctx, record, verdicts[0])
}

func (a *Applier[T]) apply(ctx context.Context, record T, v verdict) (err error) {
	returned := false
	defer func() {
		if !returned { // a panic or a Goexit, of the fault or of ApplyFunc
			a.recorder.note(Failed, v.err(), record)
		}
	}()
	err = v.interrupt(ctx)
	if err == nil && v.effect != OK && v.effect != Lost {
		err = v.err()
	}
	if err == nil && a.ApplyFunc != nil {
		err = a.ApplyFunc(ctx, record)
	} else if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	kind := Applied
	switch {
	case err != nil && courier.Classify(ctx, err) == courier.ClassSkipped:
		kind = Skipped
	case err != nil:
		kind = Failed
	case v.effect == Lost:
		kind, err = Unacked, v.err()
	}
	a.recorder.note(kind, err, record)
	returned = true
	return err
}

// Validate reports a fault that makes no sense.
func (a *Applier[T]) Validate() error { return a.Faults.Validate() }

// BatchApplier is an [Applier] that takes batches too. Faults apply to each record of a
// batch by itself; the failed records are listed in the [*courier.BatchError]. Whole,
// Panic, Goexit and Hang apply to the whole batch, of which nothing is then applied.
// [Recorder.BatchApplier] makes it. It is safe for concurrent use; set the fields before
// using it.
type BatchApplier[T any] struct {
	Applier[T]

	// ApplyBatchFunc applies the records that no fault prevents. nil calls ApplyFunc for
	// each.
	ApplyBatchFunc func(ctx context.Context, records []T) error

	// InOrder makes it a [courier.OrderedBatcher]: after the first record of a batch that
	// a fault or ApplyFunc fails, no record is applied.
	InOrder bool
}

// OrderedBatches returns InOrder.
func (a *BatchApplier[T]) OrderedBatches() bool { return a.InOrder }

// BatchApplier returns a destination for batches with the given faults; nil is none.
func (r *Recorder[T]) BatchApplier(faults Faults) *BatchApplier[T] {
	a := &BatchApplier[T]{Applier: Applier[T]{recorder: r}}
	a.Faults.Set(faults...)
	return a
}

// ApplyBatch accepts records, or fails as the faults say.
func (a *BatchApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	clock := a.recorder.clock()
	verdicts, err := a.Faults.next(clock.Now(), a.recorder.names(records)...)
	if err != nil {
		return err
	}
	var delay time.Duration
	for _, v := range verdicts {
		delay = max(delay, v.delay)
	}
	pause(ctx, clock, delay)
	for _, v := range verdicts {
		switch v.effect {
		case Whole, Panic, Goexit, Hang:
			a.recorder.note(Failed, v.err(), records...)
			if err := v.interrupt(ctx); err != nil {
				return err
			}
			return v.err()
		}
	}
	if a.ApplyBatchFunc != nil {
		return a.applyRest(ctx, records, verdicts)
	}
	var failed courier.BatchError
	for i, record := range records {
		if err := a.apply(ctx, record, verdicts[i]); err != nil {
			failed.Add(i, err)
			if a.InOrder && courier.Classify(ctx, err) != courier.ClassSkipped {
				addBehind(&failed, i, len(records))
				break
			}
		}
	}
	return failed.ErrorOrNil()
}

// addBehind lists the records of a batch of n behind one that has failed.
func addBehind(failed *courier.BatchError, index, n int) {
	for i := index + 1; i < n; i++ {
		failed.Add(i, courier.ErrBehindFailed)
	}
}

// applyRest gives the records that have no fault to ApplyBatchFunc.
func (a *BatchApplier[T]) applyRest(ctx context.Context, records []T, verdicts []verdict) error {
	var failed courier.BatchError
	var rest []T
	var index []int
	for i, v := range verdicts {
		if v.effect == OK || v.effect == Lost {
			rest, index = append(rest, records[i]), append(index, i)
			if v.effect == Lost && a.InOrder {
				addBehind(&failed, i, len(records))
				break
			}
			continue
		}
		failed.Add(i, v.err())
		a.recorder.note(Failed, v.err(), records[i])
		if a.InOrder {
			addBehind(&failed, i, len(records))
			break
		}
	}
	var err error
	if len(rest) > 0 {
		err = a.ApplyBatchFunc(ctx, rest)
	}
	list, listed := err.(*courier.BatchError)
	for j, i := range index {
		switch at := slices.IndexFunc(failuresOf(list), func(f courier.BatchFailure) bool { return f.Index == j }); {
		case err != nil && !listed:
			failed.Add(i, err)
			a.recorder.note(Failed, err, records[i])
		case at >= 0:
			failed.Add(i, list.Failures[at].Err)
			a.recorder.note(Failed, list.Failures[at].Err, records[i])
		case verdicts[i].effect == Lost:
			failed.Add(i, verdicts[i].err())
			a.recorder.note(Unacked, verdicts[i].err(), records[i])
		default:
			a.recorder.note(Applied, nil, records[i])
		}
	}
	if err != nil && !listed && len(rest) == len(records) {
		return err
	}
	return failed.ErrorOrNil()
}

func failuresOf(list *courier.BatchError) []courier.BatchFailure {
	if list == nil {
		return nil
	}
	return list.Failures
}

var (
	_ courier.Applier[int]      = (*Applier[int])(nil)
	_ courier.BatchApplier[int] = (*BatchApplier[int])(nil)
	_ courier.OrderedBatcher    = (*BatchApplier[int])(nil)
	_ courier.Validator         = (*Applier[int])(nil)
)
