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

// BatchProcessFunc makes a [BatchApplier] of a function that applies many records in one
// call, and one that is applied alone in a call of its own. A nil function is reported
// as a [*ConfigError] by Apply, ApplyBatch and the coordinator that was given it.
func BatchProcessFunc[T any](fn func(ctx context.Context, records []T) error) BatchApplier[T] {
	return batchProcessFunc[T](fn)
}

type batchProcessFunc[T any] func(context.Context, []T) error

func (f batchProcessFunc[T]) ApplyBatch(ctx context.Context, records []T) error {
	if f == nil {
		return f.Validate()
	}
	return f(ctx, records)
}

func (f batchProcessFunc[T]) Apply(ctx context.Context, record T) error {
	err := f.ApplyBatch(ctx, []T{record})
	if list, ok := err.(*BatchError); ok && list != nil && len(list.Failures) == 1 {
		return list.Failures[0].Err
	}
	return err
}

func (f batchProcessFunc[T]) Validate() error {
	if f == nil {
		return &ConfigError{"process", "is nil: pass the function that applies records"}
	}
	return nil
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

// What follows is about what a source can do besides fetch and mark. Each
// capability is an interface of its own, and a coordinator looks for it once,
// when it is made. The coordinators call the methods one at a time, but beside
// a Fetch or a Mark that is under way.

// Releaser is an optional capability of a [Source]: it takes back records that
// were handed out and not settled. They are wanted again after the given time (0
// is at once). The coordinators call it for what was not attempted when they stop
// or pause, and for failed records. A source that is a [Failer] too, and so told
// of those in another way, may hand out at once what is released, to keep its
// order: a record that waits would be overtaken by later ones. To any other one
// the time is the pace of the retries. Release must be idempotent and must not
// keep the slice. Its error is logged: the source is taken to find out by itself,
// such as by the end of a lease.
type Releaser[T any] interface {
	Release(ctx context.Context, records []T, after time.Duration) error
}

// Failer is an optional capability of a [Source] that keeps a durable retry
// schedule: it is told of failed records, with their errors, in the place of
// [Releaser], and hands each out again when it sees fit. Fail must be
// idempotent and must not keep the slice. Its error is logged: the records come
// back when their lease ends. Where an order by key was asked for
// ([WithOrderKey]), the source holds back the later records of a key itself; a
// streaming coordinator then tries failed records again by itself instead.
type Failer[T any] interface {
	Fail(ctx context.Context, failed []FailedRecord[T]) error
}

// FailedRecord is a record that was attempted in vain and stays pending.
type FailedRecord[T any] struct {
	Record T
	Error  error
	After  time.Duration // the minimum delay that the error asks for, see [RetryAfter]
}

// Renewer is an optional capability of a [Source] that leases its records: it
// extends the leases of those that are still in hand. Renew may list records
// whose lease is lost in a [*BatchError]: what was not begun of them is left
// alone, and nothing is held against it. What was begun goes on, and may come to
// Mark, which passes it over. A record that was marked or given back since the call
// began is passed over too: its lease is not to begin anew. Any other error is
// logged and Renew is called again. It must not keep the slice.
type Renewer[T any] interface {
	// RenewEvery is how often the leases want to be renewed, such as a third
	// of their length; 0 or less is that leases do not end by time. It is asked
	// once at the beginning of each run, by which a source can tell that a
	// coordinator runs.
	RenewEvery() time.Duration
	Renew(ctx context.Context, records []T) error
}

// Revoker is an optional capability of a [Renewer]: a value on the channel tells the
// coordinator that leases are lost, or are about to be, and it calls Renew at once
// instead of at the next renewal. Renew lists the records that are lost: those not begun
// are skipped, and the loss does not count against them. It is for a source that is told
// when it loses records, such as those of a partition that another process takes over.
// A record that goes to another process in order is listed with [ErrRevoked].
// Each call of Renew names all records that the coordinator has, lost ones too: one in work
// is named until its work has ended, and what is not named any more is out of its hands.
//
// If a Fetch is under way, Renew is called again once its records are in hand, so that
// none of them is missed. The channel should have room for one value, and a send that
// finds it full be dropped. It is asked for once for each run; nil is a source that has
// nothing to tell. RenewEvery may be 0: then Renew is called for these values alone.
type Revoker interface {
	Revoked() <-chan struct{}
}

// Waker is an optional capability of a [Source]: a value on the channel tells a
// polling coordinator that there is work now, and it fetches without waiting
// the interval out. The channel should have room for one value, and a send that
// finds it full be dropped. A wake-up that is lost costs the interval, no
// record. The channel is asked for once for each run; nil is a source that does
// not wake.
type Waker interface {
	Wake() <-chan struct{}
}

// Pager is an optional capability of a [Source] whose Fetch may return fewer records
// than the limit while more of them are there, such as one that bounds a batch by its
// bytes too. More reports whether that is so of the last Fetch. A polling coordinator
// then fetches again as it does after a full batch, instead of when the interval has
// passed. It calls More after each Fetch that returned without an error, before the
// next Fetch and on the same goroutine. More must not block.
type Pager interface {
	More() bool
}

// Lagger is an optional capability of a [Source]: it tells how far behind the
// coordinator is. It is called when the coordinator is asked for its state, by
// whoever asks, and must be safe for concurrent use.
type Lagger interface {
	Lag(ctx context.Context) (Lag, error)
}

// Lag is what is pending at a source and could be fetched now.
type Lag struct {
	Pending int           // records; -1 is not known
	Oldest  time.Duration // the age of the oldest, 0 when there is none
}

// Identifier is an optional capability of a [Source]: it names a record, the
// same record always by the same name and no two by one. [WithIdentity] does the
// same for any source, and takes the place of the method.
//
// A polling coordinator knows by its name a record again that the source returns
// a second time, so that the attempts count which an open breaker interrupted.
// It knows numbers and strings by their value. It keeps all other records in hand
// over the pause, and fetches no more until they are settled.
type Identifier[T any] interface {
	Identity(record T) string
}

// OrderedBatcher is an optional capability of a [BatchApplier]: it keeps the order of
// records inside a call. ApplyBatch then applies them in the order of the slice, and
// behind one that has failed nothing that has to come after it. As an applier does not
// know what has to, it is simplest to end the call there. What it leaves for that reason
// it lists with [ErrBehindFailed]: such a record is applied by the next call, at once or,
// if it is behind a failed one of its key, once that is settled. An applier that keeps
// the order of something itself, such as a partition, may go on with the rest, if all
// records of an order key are in the same one.
//
// With [WithOrderKey] several records of a key are then in one call, where else no two
// are. When a later one of them is reported as applied and an earlier one as failed, the
// promise is broken: the later one is marked, and the earlier one comes after it.
//
// OrderedBatches is called once, by each constructor that is given the applier. false is
// that of an applier that does not keep the order, such as a decorator around one that
// does not. A decorator of one's own that takes batches passes on what is inside it; one
// without the method hides it, whether or not it has an Unwrap. The decorators of this
// package have the order if what they are around does, and a fan-out if no branch is
// optional or beyond a quorum, each keeps the order, and it knows the records again
// (FanOutConfig.Identity).
type OrderedBatcher interface {
	OrderedBatches() bool
}

// Validator is an optional capability of a [Source] or an [Applier]: it tells
// before anything is fetched that it cannot work, with an error that should be
// a [*ConfigError]. Start and RunOnce return that error; a panic in Validate becomes
// one. The decorators of this package pass the question on to what they decorate.
type Validator interface {
	Validate() error
}
