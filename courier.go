// Package courier moves records from A to B and can be trusted to do it.
//
// [Sync] relays what a fetch function returns to a process function and marks
// what was processed:
//
//	coordinator := courier.Sync(fetch, process, mark)
//	err := coordinator.Start(ctx) // until ctx ends
//
// # The guarantee
//
// Delivery is at least once. At any instant a record that a source has handed
// out is one of three things: pending at the source; applied and not yet
// marked; or marked, after its apply (or its parking in the dead letter queue)
// returned nil. A record is applied a second time only when the process dies,
// or a lease runs out, between the apply and the mark. What is applied should
// therefore be idempotent.
//
// A failing record never keeps the others from being applied. With one worker they
// wait while it is retried. With several, or with an order key, it waits for its next
// attempt in hand, and occupies no worker and no batch: others are applied, marked and
// fetched meanwhile. Only a real
// attempt counts as one: a record that was refused by an open breaker, or that
// was still waiting when the coordinator stopped, stays pending and is never
// dead-lettered.
//
// # Order
//
// One worker, the default, applies records in the order fetched. Several apply
// them together; [WithOrderKey] keeps the order of each key, and an [OrderedBatcher] may be
// given several records of a key in one call. What a coordinator
// marks, and tells its [Observer], is in the order fetched within a batch, and not
// in the order in which its workers came to an end; a stream's is the latter,
// unless [WithOrderedMarks] is given.
//
// # The decorators
//
// Policies are appliers around an applier. This is their order, outermost
// first, and [ResilientApplier] builds it:
//
//	DLQ( Retry( Breaker( AttemptTimeout( apply ))))
//
// The dead letter queue decides on the final failure only; retry is outside
// the breaker so that the breaker sees each attempt and a probe is one call;
// the attempt timeout is inside it because a timeout is the commonest sign of a
// destination that is down; a rate limit of one's own goes between retry and
// breaker (ResilientConfig.AroundBreaker), so that every attempt is charged. A fan-out is outside all of it,
// with one such stack for each branch. A decoder ([NewDecodingApplier]) is anywhere
// inside the queue.
//
// Each constructor refuses the orders that do not do what they look like, with a
// [*ConfigError] that says what to do instead: a retry inside another retry, a breaker
// or an attempt timeout; a dead letter queue inside a retry, a breaker, an attempt
// timeout, a decoder or another queue; a breaker inside an attempt timeout, and one
// breaker twice. Decorators between the two make no difference, if those of the user's
// own have an Unwrap (see [Applier]), nor does a fan-out, but
// that a queue may be around one whose branches park. All other orders are allowed.
//
// # Errors
//
// What an applier returns steers what happens to the record, see [Classify]:
// any error is retryable, [Permanent] ends the retries, [RetryAfter] sets a
// minimum delay, [Later] puts the record off without an attempt, [Skip] marks it
// without applying it.
package courier

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// Source is where records come from. A source that a polling coordinator reads
// may hand the same record out again until it is marked; one that a streaming
// coordinator reads hands each record out once until it is given back
// ([Releaser]).
//
// A coordinator calls Fetch from one goroutine at a time and Mark from one
// goroutine at a time; a streaming coordinator, and one that fetches ahead
// ([WithPrefetch]), may call both at once.
type Source[T any] interface {
	// Fetch returns at most limit pending records and never acknowledges them.
	// A streaming source blocks until it has one, and returns io.EOF at its
	// end. The caller does not modify the slice and drops it once the records
	// are settled. More than limit records are worked off in batches of limit;
	// records that come together with an error are worked off too, and the
	// error counts as a failed fetch.
	Fetch(ctx context.Context, limit int) ([]T, error)

	// Mark notes that records are done, durably. It takes any subset of what
	// was fetched in any order, is idempotent, and marks all or nothing. When
	// it fails the coordinator calls it again with the same records before it
	// fetches more. So a record that it cannot mark for good, since its lease
	// was lost, is to be passed over and no error. It must not keep the slice
	// after it returned.
	Mark(ctx context.Context, records []T) error
}

// Applier does the work for one record. A nil error means that the record is
// applied, durably. It must tolerate a record that it has seen before. A record is
// not copied: what an applier changes behind a pointer or in a map, its retries, the
// mark and the dead letter see.
// Coordinators with several workers call it from several goroutines at once.
//
// An applier that decorates another one, and passes every call on to it, shows it by
// a method Unwrap() Applier[T], as the decorators of this package do. Then they see
// through it: a coordinator finds the breakers and dead letter queues inside, and
// each constructor the decorators that may not be there. Without the method the
// decorator hides them. Unwrap always returns the same applier.
type Applier[T any] interface {
	Apply(ctx context.Context, record T) error
}

// BatchApplier is an [Applier] that is better at many records than at one.
//
// ApplyBatch returns nil when all records were applied and a [*BatchError]
// when only the listed ones were not. Any other error means that none was, and
// Courier then applies the records one by one, so that one bad record does not
// take the batch with it. The slice must not be kept or modified. One that keeps the
// order inside a call is an [OrderedBatcher].
type BatchApplier[T any] interface {
	Applier[T]
	ApplyBatch(ctx context.Context, records []T) error
}

// Clock tells the time and wakes after a duration. The zero of every Clock
// option and field is the system's clock. Both clocks of
// github.com/benbjohnson/clock satisfy it as they are. It must be safe for
// concurrent use.
//
// Now need not have a monotonic reading. A clock that is set back makes no wait
// longer than was asked, as After is not expected to notice. A clock that is set
// forward may end waits early: nothing tells that from time that has passed. For a
// call that panics the system's clock answers. A call must not end its goroutine.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// systemClock is the default Clock, and the only place where the package asks
// for the real time.
type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// soundClock is a Clock of the user's, which may panic.
type soundClock struct{ clock Clock }

func (s soundClock) Now() (t time.Time) {
	defer func() {
		if recover() != nil {
			t = systemClock{}.Now()
		}
	}()
	return s.clock.Now()
}

func (s soundClock) After(d time.Duration) (c <-chan time.Time) {
	defer func() {
		if recover() != nil {
			c = systemClock{}.After(d)
		}
	}()
	return s.clock.After(d)
}

// uniform draws a number from [0, 1), by a function of the user's where there is one.
func uniform(random func() float64) float64 {
	if random == nil {
		return rand.Float64()
	}
	n := math.NaN()
	var ignored error
	isolate(&ignored, func() error {
		n = random()
		return nil
	})
	if n >= 0 && n < 1 {
		return n
	}
	return 0.5
}

// ProcessFunc makes an [Applier] of a function. A nil function is reported as
// a [*ConfigError] by Apply and by the coordinator that was given it.
func ProcessFunc[T any](fn func(ctx context.Context, record T) error) Applier[T] {
	return processFunc[T](fn)
}

type processFunc[T any] func(context.Context, T) error

func (f processFunc[T]) Apply(ctx context.Context, record T) error {
	if f == nil {
		return f.Validate()
	}
	return f(ctx, record)
}

// Validate reports a nil function.
func (f processFunc[T]) Validate() error {
	if f == nil {
		return &ConfigError{Field: "process", Problem: "is nil: pass the function that applies a record"}
	}
	return nil
}

// BatchSourceFunc makes a [Source] of two functions. Both are required. Since
// FetchFunc has no limit of its own to go by, a fetch counts as a full one,
// after which the coordinator fetches again at once, when it returned at least
// the batch size or as many records as it ever did. It is for polling
// coordinators.
type BatchSourceFunc[T any] struct {
	FetchFunc func(ctx context.Context) ([]T, error)
	MarkFunc  func(ctx context.Context, records []T) error
}

// Fetch calls FetchFunc, which decides by itself how much it returns.
func (s BatchSourceFunc[T]) Fetch(ctx context.Context, _ int) ([]T, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s.FetchFunc(ctx)
}

// Mark calls MarkFunc.
func (s BatchSourceFunc[T]) Mark(ctx context.Context, records []T) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return s.MarkFunc(ctx, records)
}

// Validate reports a nil function.
func (s BatchSourceFunc[T]) Validate() error {
	switch {
	case s.FetchFunc == nil:
		return &ConfigError{Field: "fetch", Problem: "is nil: pass the function that returns pending records"}
	case s.MarkFunc == nil:
		return &ConfigError{Field: "mark", Problem: "is nil: pass the function that marks records as done"}
	}
	return nil
}

// ignoresLimit tells the engine that the length of a fetch cannot be compared
// with the limit that was asked for.
func (s BatchSourceFunc[T]) ignoresLimit() {}
