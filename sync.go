package courier

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Sync returns a coordinator that fetches records, processes each of them and marks those
// that were processed. It repeats that every interval (5 seconds by default), and
// immediately while the source has more. Nothing happens before Start.
//
// The records of a batch are processed one after another in the order fetched, and marked
// in one call. If process returns an error, the record is not marked and fetch returns it
// again; the rest of the batch goes on. A record that never succeeds is retried
// indefinitely, and a batch full of such records hides the records after it; a dead
// letter queue prevents both, see [ResilientApplier]. The three functions follow the
// rules of [Source] and [Applier].
func Sync[T any](
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	opts ...Option,
) *PollingCoordinator[T] {
	return syncOf(fetch, ProcessFunc(process), mark, opts, nil)
}

// syncOf returns the coordinator of three functions. If there is a policy, it puts a
// retry around the process function.
func syncOf[T any](fetch func(context.Context) ([]T, error), process Applier[T], mark func(context.Context, []T) error, opts []Option, retry *RetryPolicy) *PollingCoordinator[T] {
	c := newConfig(opts)
	if c.attempt > 0 {
		process = NewAttemptTimeoutApplier(process, c.attempt, c.clock.Clock)
	}
	if retry != nil {
		retry.Clock, retry.Random = c.clock.Clock, c.random
		process = NewRetryableApplier(process, *retry)
	}
	return NewPollingCoordinator(BatchSourceFunc[T]{fetch, mark}, process, append(slices.Clip(opts), noAttemptTimeout)...)
}

// SyncWithRetry is [Sync] with up to maxAttempts attempts for each record at each
// delivery, with exponential backoff and jitter between them as in the default
// [RetryPolicy]. It has no dead letter queue: a record whose attempts run out returns
// with a later fetch. [WithAttemptTimeout] bounds each attempt; without it process should
// have a timeout of its own. If maxAttempts is less than 1, Start returns a
// [*ConfigError].
func SyncWithRetry[T any](
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	maxAttempts int,
	opts ...Option,
) *PollingCoordinator[T] {
	coordinator := syncOf(fetch, ProcessFunc(process), mark, opts, &RetryPolicy{MaxAttempts: max(maxAttempts, 1)})
	if maxAttempts < 1 && coordinator.fault == nil {
		coordinator.fault = &ConfigError{"maxAttempts", fmt.Sprintf("is %d: want at least 1", maxAttempts)}
	}
	return coordinator
}

// RunOnce makes one pass and returns: it fetches once, and processes and marks every
// fetched record as in [Sync]. It is meant for cron jobs. Options that set a pace have no
// effect.
//
// When a breaker opens, the run keeps the remaining records in hand and tries another
// record once the breaker lets it, so that a poison record at the head does not block the
// others. It waits at most the drain timeout in total, and ends immediately if the next
// probe comes later than that.
//
// The error is nil if every fetched record was processed and marked. Otherwise errors.Is
// and errors.As find the errors of the records (a [*BatchError] with the indices in the
// order fetched), of the fetch, and of the mark (a [*MarkError], after several tries).
// When ctx ends, the record in progress is finished and processed records are marked,
// within the drain timeout, and the error is the cause of ctx.
func RunOnce[T any](
	ctx context.Context,
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	opts ...Option,
) error {
	return syncOf(fetch, ProcessFunc(process), mark, opts, nil).RunOnce(ctx)
}

// ErrMark is what every [*MarkError] is, to errors.Is.
var ErrMark = errors.New("courier: records were applied but not marked")

// MarkError says that records were applied but could not be marked before the coordinator
// had to end. They are still pending at the source, and will be applied again.
type MarkError struct {
	Records int // how many
	Err     error
}

func (e *MarkError) Error() string {
	return fmt.Sprintf("courier: %d records were applied but not marked, and will be applied again: %s", e.Records, inner(e.Err))
}

// Is reports whether err is [ErrMark].
func (e *MarkError) Is(err error) bool { return err == ErrMark }

// Unwrap returns Err.
func (e *MarkError) Unwrap() error { return e.Err }
