package courier

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// This file is about calls that are given only so long: attempts, and calls of a dead
// letter queue.

// ErrAttemptTimeout is what every [*AttemptTimeoutError] is, to errors.Is.
var ErrAttemptTimeout = errors.New("courier: attempt timeout")

// AttemptTimeoutError is the error of an attempt that failed after its timeout had ended
// its context. It is retryable, a failure to a breaker, and context.DeadlineExceeded to
// errors.Is.
type AttemptTimeoutError struct {
	Timeout time.Duration
	Err     error // what the attempt returned
}

func (e *AttemptTimeoutError) Error() string {
	return fmt.Sprintf("courier: the attempt did not end within its timeout of %v: %s", e.Timeout, inner(e.Err))
}

// Is reports whether err is [ErrAttemptTimeout] or context.DeadlineExceeded.
func (e *AttemptTimeoutError) Is(err error) bool {
	return err == ErrAttemptTimeout || err == context.DeadlineExceeded
}

// Unwrap returns Err.
func (e *AttemptTimeoutError) Unwrap() error { return e.Err }

// NewAttemptTimeoutApplier ends the context of each call of the applier after d. It waits
// for the call to return: a goroutine cannot be killed, so the applier must obey its
// context. A call that returns nil has applied its record, however late. The error of a
// call whose time was up is an [*AttemptTimeoutError], unless the caller's own context
// ended as well.
//
// It belongs innermost, inside a breaker, because a timeout is the most common sign that
// a destination is down; [ResilientApplier] puts it there. An applier with a breaker, a
// retry or a dead letter queue is refused. The result is as safe for concurrent use as
// the applier. A nil clock is the system's clock.
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
	return applyMany(ctx, BatchApplier[T](a), records).err()
}

func (a *timeoutApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	child, cancel := withTimeout(ctx, a.clock, a.timeout, ErrAttemptTimeout)
	defer cancel()
	v := a.applyBatch(child, records)
	v.whole = a.named(ctx, child, v.whole)
	for i, err := range v.each {
		v.each[i] = a.named(ctx, child, err)
	}
	return v
}

func (a *timeoutApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, a.inner, record, exit)
}

// named says what an error after the timeout came of. Which context ended
// decides, and that of the caller first: its deadline is not the attempt's.
func (a *timeoutApplier[T]) named(ctx, child context.Context, err error) error {
	if err == nil || child.Err() == nil || ctx.Err() != nil || markedClass(ctx, err) != ClassRetryable {
		return err
	}
	return &AttemptTimeoutError{a.timeout, err}
}

// sendTimeout bounds a call of the dead letter queue, which does not end with
// the context of the apply: a stop must not lose a hand-over half done. See
// detached for what a coordinator makes of it.
const sendTimeout = 10 * time.Second

// detached makes a call of a queue that does not end with the context of the
// apply, and has the send timeout. In a coordinator it has no more than the drain
// timeout, and a stop leaves it what is left of that; or, where that is over, half
// of one, for a verdict that came at its end. A panic in it is its error.
func detached(ctx context.Context, clock Clock, call func(context.Context) error) (err error) {
	timeout, life := sendTimeout, passageOf(ctx).life
	end := context.Background()
	if life != nil {
		end = life.work
		if timeout = min(timeout, life.drain); end.Err() != nil {
			timeout, end = min(timeout, life.drain/2), life.overtime()
		}
	}
	ctx, cancel := withTimeout(context.WithoutCancel(ctx), clock, timeout, context.DeadlineExceeded)
	defer cancel()
	ctx, release := endOn(ctx, end.Done(), ErrDrainTimeout)
	defer release()
	isolate(&err, func() error { return call(ctx) })
	cause := context.Cause(ctx)
	if e, ok := cause.(*expiry); ok {
		cause = e.error
	}
	switch {
	case err == nil || cause == nil:
	case cause == context.DeadlineExceeded:
		err = &noAnswerError{timeout, err}
	case !errors.Is(err, cause):
		err = fmt.Errorf("%w: %w", cause, err) // whatever a driver calls it
	}
	return err
}

// noAnswerError is the error of a call of a queue that was ended because it took too
// long, whatever a driver calls that.
type noAnswerError struct {
	after time.Duration
	err   error
}

func (e *noAnswerError) Error() string {
	text := fmt.Sprintf("the queue did not answer within %v", e.after)
	if errors.Is(e.err, context.DeadlineExceeded) {
		return text
	}
	return fmt.Sprintf("%s: %v", text, e.err)
}

func (e *noAnswerError) Unwrap() []error { return []error{context.DeadlineExceeded, e.err} }

// withTimeout is context.WithTimeout on a Clock. It waits for nothing: the
// goroutine ends with the cancel function.
func withTimeout(ctx context.Context, clock Clock, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if _, system := clock.(systemClock); system {
		return context.WithTimeoutCause(ctx, d, cause)
	}
	return endOn(ctx, clock.After(d), cause)
}

// endOn returns a context that ends, as at a deadline, once something comes on a
// channel or that is closed.
func endOn[E any](ctx context.Context, end <-chan E, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-end:
			cancel(&expiry{cause})
		case <-ctx.Done():
		}
	})
	return &timeoutContext{ctx}, func() {
		cancel(context.Canceled)
		watcher.Wait()
	}
}

// timeoutContext is a context that a Clock ends, and that says it was a
// deadline as one that the system ends does.
type timeoutContext struct{ context.Context }

// expiry is the cause by which a timeoutContext knows its own end.
type expiry struct{ error }

func (e *expiry) Unwrap() error { return e.error }

func (c *timeoutContext) Err() error {
	err := c.Context.Err()
	if _, expired := context.Cause(c.Context).(*expiry); err != nil && expired {
		return context.DeadlineExceeded
	}
	return err
}
