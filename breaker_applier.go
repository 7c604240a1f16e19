package courier

import (
	"context"
	"errors"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// This file is about what a breaker is told of the calls of an applier, and the applier
// behind one breaker.

// WithCircuitBreaker puts an applier behind its own breaker with the default policy.
func WithCircuitBreaker[T any](applier Applier[T]) Applier[T] {
	return NewCircuitBreakerApplier(applier, NewBreaker(BreakerPolicy{}))
}

// NewCircuitBreakerApplier puts an applier behind a breaker. While the breaker is open,
// Apply returns an [*OpenError] without a call or an allocation. An applier with a retry
// or a dead letter queue is refused, and so is the same breaker twice in a stack.
//
// Retryable errors and panics are failures of the destination. A permanent error is an
// answer and counts as a success. An error of ClassNotAttempted or ClassSkipped, or a
// [*DecodeError], does not count. A call of ApplyBatch is one call: it fails if every
// record fails, and succeeds if every record succeeds. If only some succeed, it counts as
// a success followed by a failure, because an outage may have begun in between. The
// result is as safe for concurrent use as the applier.
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
	if fault == nil && within(layerOf(applier), false, func(l *layer, _ bool) bool { return l.breaker == b }) {
		fault = &ConfigError{"breaker", "is in the stack twice, and its own probe would find it half-open"}
	}
	a := &breakerApplier[T]{stage: newStage(breaking, applier, fault), breaker: b}
	a.tells.breaker, a.tells.clock = b, b.clock
	return a
}

type breakerApplier[T any] struct {
	stage[T]
	breaker *Breaker
}

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
	defer func() {
		if !returned {
			err = a.reportPanic(ctx, permit, recover())
		}
	}()
	err = a.apply(ctx, record)
	returned = true
	return a.breaker.reported(ctx, permit, err)
}

// applyCalm is the rest of Apply where the permit is a number, and a success not worth
// reporting while the phase is calm. Apart it is 7 ns less.
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
	return a.breaker.reported(ctx, calmPermit(seq), a.sound(err))
}

// reportPanic reports a panic, with the value that recover returned, which is nil
// for a Goexit: the goroutine ends then, and nobody gets what is returned.
func (a *breakerApplier[T]) reportPanic(ctx context.Context, permit Permit, value any) error {
	var err error = newPanicError(value)
	err = a.breaker.reported(ctx, permit, err)
	if value == nil {
		leaveVerdict(ctx, a, err)
	}
	return err
}

func (a *breakerApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, a.inner, record, exit)
}

func (a *breakerApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](a), records).err()
}

func (a *breakerApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	if ctx.Err() != nil {
		return verdicts{whole: a.refuse(ctx)}
	}
	permit, err := a.breaker.acquire(ctx)
	if err != nil {
		return verdicts{whole: err}
	}
	v := a.attemptBatch(ctx, records)
	open := a.breaker.report(ctx, permit, v.outcome(ctx), v.whole == nil || len(records) == 1, v)
	v.whole = open.over(ctx, v.whole)
	for i, err := range v.each {
		v.each[i] = open.over(ctx, err)
	}
	return v
}

// reported gives the verdict of a call on one record, and returns the record's error.
func (b *Breaker) reported(ctx context.Context, permit Permit, err error) error {
	return b.report(ctx, permit, outcomeOf(ctx, err), true, verdicts{whole: err}).over(ctx, err)
}

func outcomeOf(ctx context.Context, err error) breaker.Outcome {
	if err == nil {
		return breaker.Success
	}
	switch classify(ctx, err) {
	case ClassPermanent:
		if errors.Is(err, ErrDecode) { // nobody was asked
			return breaker.Ignored
		}
		return breaker.Success
	case ClassSkipped: // nobody had to be asked
		return breaker.Ignored
	case ClassNotAttempted:
		// A destination that was not fast enough for the caller's deadline has
		// failed; the caller's cancel says nothing of it.
		if markedClass(ctx, err) != ClassNotAttempted && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return breaker.Failure
		}
		return breaker.Ignored
	}
	return breaker.Failure
}

// outcome is outcomeOf of the records of a call together. The attempts of a mixed one
// count by the same rule, see retryRun.judge.
func (v verdicts) outcome(ctx context.Context) breaker.Outcome {
	if v.each == nil {
		return outcomeOf(ctx, v.whole)
	}
	through, failed := false, false
	for _, err := range v.each {
		switch outcomeOf(ctx, err) {
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
