package courier

import "context"

// This room is about attempts that outlive a call. When an open breaker
// interrupts the retries of a record, the attempts that it has used travel
// outwards with the error, stay with the coordinator while the record is
// pending, and come back inwards with the context of its next delivery.

// pendingError is an error of class NotAttempted and the attempts that the
// record had used before.
type pendingError struct {
	err  error
	used int
}

func (e *pendingError) Error() string      { return e.err.Error() }
func (e *pendingError) Unwrap() error      { return e.err }
func (e *pendingError) NotAttempted() bool { return true }

// pendingWith adds the attempts used, if any.
func pendingWith(err error, used int) error {
	if used == 0 {
		return err
	}
	return &pendingError{err, used}
}

// usedIn returns the attempts that an error of class NotAttempted says the
// record has used: the count that a retry put there, or the one call over which
// a breaker opened.
func usedIn(err error) int {
	for err != nil {
		switch e := err.(type) {
		case *pendingError:
			return e.used
		case *unattemptedError: // what it wraps happened to another record
			return 0
		case *OpenError:
			if e.Counted {
				return 1
			}
			return 0
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return 0
		}
	}
	return 0
}

type usedKey struct{}

// withUsed gives the appliers the attempts that the records of this delivery
// have used before: one count for each record of the batch.
func withUsed(ctx context.Context, used []int) context.Context {
	return context.WithValue(ctx, usedKey{}, used)
}

// usedBefore returns what withUsed set, or nil.
func usedBefore(ctx context.Context) []int {
	used, _ := ctx.Value(usedKey{}).([]int)
	return used
}

type attemptKey struct{}

func withAttempt(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, attemptKey{}, n)
}

// AttemptFrom returns which attempt a call is, for logs and idempotency keys: 1
// is the first. It is 1 outside a retry too. In a batch it is the attempt of
// the batch.
func AttemptFrom(ctx context.Context) int {
	if n, ok := ctx.Value(attemptKey{}).(int); ok {
		return n
	}
	if used := usedBefore(ctx); len(used) == 1 {
		return used[0] + 1
	}
	return 1
}

type stopKey struct{}

// withStop lets the appliers see that the coordinator is stopping while their
// own context still lives (D8).
func withStop(ctx, stop context.Context) context.Context {
	return context.WithValue(ctx, stopKey{}, stop)
}

// stopOf returns the context that ends when the coordinator stops; where there
// is none, one that never ends.
func stopOf(ctx context.Context) context.Context {
	if stop, ok := ctx.Value(stopKey{}).(context.Context); ok {
		return stop
	}
	return context.Background()
}
