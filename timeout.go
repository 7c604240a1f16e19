package courier

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrAttemptTimeout is what every [*AttemptTimeoutError] is, to errors.Is.
var ErrAttemptTimeout = errors.New("courier: attempt timeout")

// AttemptTimeoutError is an attempt that failed after its own timeout had ended
// its context. It is retryable, a failure to a breaker, and
// context.DeadlineExceeded to errors.Is.
type AttemptTimeoutError struct {
	Timeout time.Duration
	Err     error // what the attempt returned
}

func (e *AttemptTimeoutError) Error() string {
	return fmt.Sprintf("courier: the attempt did not end within its timeout of %v: %v", e.Timeout, e.Err)
}

// Is reports whether err is [ErrAttemptTimeout] or context.DeadlineExceeded.
func (e *AttemptTimeoutError) Is(err error) bool {
	return err == ErrAttemptTimeout || err == context.DeadlineExceeded
}

// Unwrap returns Err.
func (e *AttemptTimeoutError) Unwrap() error { return e.Err }

// NewAttemptTimeoutApplier ends the context of each call of the applier after
// d. It waits for the call to return: a goroutine cannot be killed, so the
// applier must heed its context. A call that returns nil has applied its record,
// however late, and nil it stays; an error of a call whose time was up is an
// [*AttemptTimeoutError], unless the caller's own context ended as well.
//
// It belongs innermost, inside a breaker, to which a timeout is the commonest
// sign of a destination that is down; [ResilientApplier] puts it there. Around a
// breaker, a retry or a dead letter queue it is refused.
// The result is as safe for concurrent use as the applier. A nil clock is the
// system's.
func NewAttemptTimeoutApplier[T any](applier Applier[T], d time.Duration, clock Clock) Applier[T] {
	var fault error
	if d <= 0 {
		fault = &ConfigError{"attempt timeout", fmt.Sprintf("is %v: want more than 0", d)}
	}
	return newTimeoutApplier(applier, d, clock, fault)
}

func newTimeoutApplier[T any](applier Applier[T], d time.Duration, clock Clock, fault error) Applier[T] {
	fault = firstFault(fault, clockFault("clock", clock))
	return &timeoutApplier[T]{newStage(timing, applier, fault), d, clockOr(clock)}
}

type timeoutApplier[T any] struct {
	stage[T]
	timeout time.Duration
	clock   Clock
}

func (a *timeoutApplier[T]) Apply(ctx context.Context, record T) error {
	if a.fault != nil || ctx == nil {
		return a.refuse(ctx)
	}
	child, cancel := withTimeout(ctx, a.clock, a.timeout, ErrAttemptTimeout)
	defer cancel()
	return a.named(ctx, child, a.apply(child, record))
}

func (a *timeoutApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	if a.fault != nil || ctx == nil {
		return a.refuse(ctx)
	}
	if a.batch == nil {
		return applyEach(ctx, Applier[T](a), records)
	}
	child, cancel := withTimeout(ctx, a.clock, a.timeout, ErrAttemptTimeout)
	defer cancel()
	err := a.applyBatch(child, records)
	list, listed := batchErrorIn(err)
	if !listed || list == nil {
		return a.named(ctx, child, err)
	}
	named := BatchError{make([]Failure, len(list.Failures))}
	for i, f := range list.Failures {
		named.Failures[i] = Failure{f.Index, a.named(ctx, child, f.Err)}
	}
	return &named
}

func (a *timeoutApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, a.inner, record, exit)
}

// named says what an error after the timeout came of. Which context ended
// decides, and that of the caller first: its deadline is not the attempt's.
func (a *timeoutApplier[T]) named(ctx, child context.Context, err error) error {
	if err == nil || child.Err() == nil || ctx.Err() != nil || markedClass(ctx, err) != Retryable {
		return err
	}
	return &AttemptTimeoutError{a.timeout, err}
}
