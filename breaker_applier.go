package courier

import (
	"context"
	"errors"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// WithCircuitBreaker puts an applier behind a breaker of its own with the
// default policy.
func WithCircuitBreaker[T any](applier Applier[T]) Applier[T] {
	return NewCircuitBreakerApplier(applier, NewBreaker(BreakerPolicy{}))
}

// NewCircuitBreakerApplier puts an applier behind a breaker. While that is
// open, Apply returns an [*OpenError] without a call, or an allocation. A call
// of ApplyBatch is one call to the breaker, and fails when all its records do.
// Around a retry or a dead letter queue it is refused, and so is one and the same
// breaker twice in a stack.
//
// Retryable errors and panics are failures of the destination; a permanent
// error is an answer, hence a success; what is NotAttempted or skipped, and a
// [*DecodeError], says nothing. A batch is one call: it fails when every record
// fails, and succeeds when every record gets through. When only some get through,
// it is a success followed by a failure, as an outage may have begun in between.
// The result is as safe for concurrent use as the applier.
func NewCircuitBreakerApplier[T any](applier Applier[T], b *Breaker) Applier[T] {
	return newBreakerApplier(applier, b, nil)
}

func newBreakerApplier[T any](applier Applier[T], b *Breaker, fault error) *breakerApplier[T] {
	if b.zero() {
		b = NewBreaker(BreakerPolicy{})
		b.fault = errZeroBreaker
	}
	if fault == nil {
		fault = b.fault
	}
	if fault == nil && within(layerOf(applier), false, func(l layer, _ bool) bool { return breakerIn(l) == b }) {
		fault = &ConfigError{"breaker", "is in the stack twice, and its own probe would find it half-open"}
	}
	return &breakerApplier[T]{stage: newStage(breaking, applier, fault), breaker: b}
}

type breakerApplier[T any] struct {
	stage[T]
	breaker *Breaker
}

func (a *breakerApplier[T]) breakerOf() *Breaker { return a.breaker }
func (a *breakerApplier[T]) clocks() []*steady   { return []*steady{a.breaker.clock} }

func (a *breakerApplier[T]) Apply(ctx context.Context, record T) (err error) {
	if a.fault != nil || ctx == nil || ctx.Err() != nil {
		return a.refuse(ctx)
	}
	if seq := a.breaker.calm.Load(); seq != 0 {
		return a.applyCalm(ctx, record, seq)
	}
	permit, err := a.breaker.acquire(ctx)
	if err != nil {
		return err
	}
	returned := false
	defer a.abrupt(ctx, permit, &returned, &err)
	err = a.apply(ctx, record)
	returned = true
	return a.breaker.report(ctx, permit, outcomeOf(ctx, err), true, err)
}

// abrupt reports a call that panicked, or called runtime.Goexit, as a failure. It
// must be deferred itself, since it recovers.
func (a *breakerApplier[T]) abrupt(ctx context.Context, permit Permit, returned *bool, err *error) {
	if *returned {
		return
	}
	*err = a.reportPanic(ctx, permit, recover())
}

// reportPanic reports a panic, with the value that recover returned, which is nil
// for a Goexit: the goroutine ends then, and nobody gets what is returned.
func (a *breakerApplier[T]) reportPanic(ctx context.Context, permit Permit, value any) error {
	var err error = newPanicError(value)
	err = a.breaker.report(ctx, permit, outcomeOf(ctx, err), true, err)
	if value == nil {
		leaveVerdict(ctx, a, err)
	}
	return err
}

func (a *breakerApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, a.inner, record, exit)
}

// applyCalm is the rest of Apply on the fast path: the permit is a number, and a
// success in a phase that is still calm is not worth reporting. What abrupt does
// is written out in it, which is 10 ns less.
func (a *breakerApplier[T]) applyCalm(ctx context.Context, record T, seq uint64) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = a.reportPanic(ctx, calmPermit(seq), recover())
		}
	}()
	err = a.inner.Apply(ctx, record)
	returned = true
	if err == nil && a.breaker.calm.Load() == seq {
		return nil
	}
	err = a.sound(err)
	return a.breaker.report(ctx, calmPermit(seq), outcomeOf(ctx, err), true, err)
}

func (a *breakerApplier[T]) ApplyBatch(ctx context.Context, records []T) (err error) {
	if a.batch == nil {
		return applyEach(ctx, Applier[T](a), records)
	}
	if a.fault != nil || ctx == nil || ctx.Err() != nil {
		return a.refuse(ctx)
	}
	permit, err := a.breaker.acquire(ctx)
	if err != nil {
		return err
	}
	err = a.attemptBatch(ctx, records)
	_, listed := batchErrorIn(err)
	return a.breaker.report(ctx, permit, batchOutcomeOf(ctx, err, len(records)), listed || len(records) == 1, err)
}

func outcomeOf(ctx context.Context, err error) breaker.Outcome {
	if err == nil {
		return breaker.Success
	}
	switch classify(ctx, err) {
	case PermanentClass:
		if errors.Is(err, ErrDecode) { // nobody was asked
			return breaker.Ignored
		}
		return breaker.Success
	case Skipped: // nobody had to be asked
		return breaker.Ignored
	case NotAttempted:
		// A destination that was not fast enough for the caller's deadline has
		// failed; the caller's cancel says nothing of it.
		if markedClass(ctx, err) != NotAttempted && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return breaker.Failure
		}
		return breaker.Ignored
	}
	return breaker.Failure
}

// batchOutcomeOf is outcomeOf of n records together. The attempts of a mixed batch
// count by the same rule, see retryRun.judge.
func batchOutcomeOf(ctx context.Context, err error, n int) breaker.Outcome {
	list, ok := batchErrorIn(err)
	if !ok {
		return outcomeOf(ctx, err)
	}
	if list == nil {
		return breaker.Success
	}
	through, failed := listed(list) < n, false
	for _, f := range list.Failures {
		if f.Err == nil {
			continue
		}
		switch outcomeOf(ctx, f.Err) {
		case breaker.Success:
			through = true
		case breaker.Failure:
			failed = true
		}
	}
	switch {
	case through && failed:
		return breaker.Mixed
	case through:
		return breaker.Success
	case failed:
		return breaker.Failure
	}
	return breaker.Ignored
}

// listed counts the records that a list names, one named twice once.
func listed(list *BatchError) int {
	seen := make(map[int]bool, len(list.Failures))
	for _, f := range list.Failures {
		seen[f.Index] = true
	}
	return len(seen)
}
