// Package courier relays records between systems with at-least-once delivery: an outbox
// to a broker, an API to a database.
//
// [Sync] fetches records with one function, processes them with another, and marks those
// that were processed with a third:
//
//	coordinator := courier.Sync(fetch, process, mark)
//	err := coordinator.Start(ctx) // until ctx ends
//
// # The guarantee
//
// Delivery is at least once. At any instant a record that a source has handed out is
// pending at the source; or applied and not yet marked; or marked, after its apply (or
// its parking in the dead letter queue) returned nil. A record is applied a second time
// only when the process dies, or a lease runs out, between the apply and the mark. So
// applying a record should be idempotent.
//
// A failing record does not keep other records from being applied. With one worker they
// wait while it is retried. With several workers, or with an order key, the failing
// record waits for its next attempt in hand and occupies no worker and no batch: other
// records are applied, marked and fetched meanwhile.
//
// Only a real attempt counts as an attempt. A record that an open breaker refused, or
// that was still waiting when the coordinator stopped, stays pending and is never
// dead-lettered.
//
// # Order
//
// One worker, the default, applies records in the order fetched, but for the probes of an
// open breaker: after one that failed, a later record may be the next, so that a poison
// record does not hold up the others. Several workers apply records concurrently. [WithOrderKey] keeps the order of each key, in
// an outage too, and an [OrderedBatcher] may be given several records of a key in one call.
//
// A polling coordinator marks and reports each batch in fetch order, regardless of which
// worker finished first. A streaming coordinator does so in completion order, unless
// [WithOrderedMarks] is set.
//
// # The decorators
//
// A decorator is an applier around another applier. This is the order of the decorators,
// outermost first, and [ResilientApplier] builds it:
//
//	DLQ( Retry( Breaker( AttemptTimeout( apply ))))
//
// The dead letter queue acts on the final failure only. The retry is outside the breaker,
// so that the breaker sees each attempt and a probe is one call. The attempt timeout is
// inside the breaker, because a timeout is the most common sign that a destination is
// down. A rate limit belongs between retry and breaker (ResilientConfig.AroundBreaker),
// so that every attempt is charged. A fan-out is outside all of them, with one such stack
// for each branch. A decoder ([NewDecodingApplier]) may be anywhere inside the queue.
//
// Each constructor refuses an order of decorators that would not work, with a
// [*ConfigError] that says what to do instead: a retry inside another retry, a breaker or
// an attempt timeout; a dead letter queue inside a retry, a breaker, an attempt timeout,
// a decoder or another queue; a breaker inside an attempt timeout; and the same breaker
// twice. Other decorators in between make no difference, provided that your own have an
// Unwrap method (see [Applier]). A fan-out in between makes none either, except that a
// queue may be around a fan-out whose branches park. All other orders are allowed.
//
// # Errors
//
// The error that an applier returns decides what happens to the record, see [Classify]:
// by default an error is retryable, [Permanent] ends the retries, [RetryAfter] sets a
// minimum delay, [Later] postpones the record without counting an attempt, and [Skip]
// marks it without applying it.
package courier

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// Source is where records come from. A source for a polling coordinator may return the
// same record again until it is marked. A source for a streaming coordinator returns each
// record once, until it is given back ([Releaser]).
//
// A coordinator calls Fetch from one goroutine at a time and Mark from one goroutine at a
// time. A streaming coordinator, and one that fetches ahead ([WithPrefetch]), may call
// Fetch and Mark concurrently.
type Source[T any] interface {
	// Fetch returns at most limit pending records and never acknowledges them. A
	// streaming source blocks until it has a record, and returns io.EOF at its end. The
	// caller does not modify the slice and drops it once the records are settled. If
	// Fetch returns more than limit records, they are processed in batches of limit. If
	// it returns records together with an error, the records are processed too, and the
	// error counts as a failed fetch.
	Fetch(ctx context.Context, limit int) ([]T, error)

	// Mark notes durably that records are done. It takes any subset of the fetched
	// records in any order, is idempotent, and marks all of them or none. When it fails,
	// the coordinator calls it again with the same records before it fetches more. So if
	// a record can no longer be marked because its lease was lost, Mark skips it and does
	// not return an error. It must not keep the slice after it returned.
	Mark(ctx context.Context, records []T) error
}

// Applier does the work for one record. A nil error means that the record is applied,
// durably. It must tolerate a record that it has seen before. A record is not copied: its
// retries, its mark and its dead letter see what an applier changes through a pointer or
// in a map. A coordinator with several workers calls Apply concurrently.
//
// An applier that decorates another one, and passes every call on to it, should have a
// method Unwrap() Applier[T], as the decorators of this package do. Through it a
// coordinator finds the breakers and dead letter queues inside, and each constructor
// finds the decorators that must not be there. Without the method the decorator hides
// them. Unwrap always returns the same applier.
type Applier[T any] interface {
	Apply(ctx context.Context, record T) error
}

// BatchApplier is an [Applier] that can apply many records in one call.
//
// ApplyBatch returns nil if all records were applied, and a [*BatchError] if only the
// records that it lists were not. Any other error means that no record was applied;
// Courier then applies the records one by one, so that one bad record does not fail the
// whole batch. The slice must not be kept or modified. A batch applier that keeps the
// order inside a call is an [OrderedBatcher].
type BatchApplier[T any] interface {
	Applier[T]
	ApplyBatch(ctx context.Context, records []T) error
}

// Clock tells the time and wakes after a duration. In every option and field nil means
// the system's clock. Both clocks of github.com/benbjohnson/clock implement it. It must
// be safe for concurrent use.
//
// Now need not return a monotonic reading. If the clock is set back, no wait becomes
// longer than requested, provided that After does not notice. If the clock is set
// forward, waits may end early, because that cannot be told from time that has passed. If
// a method panics, the system's clock is used for that call. A method must not end its
// goroutine.
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
// call. A single record is applied in a call of its own. A nil function is reported as a
// [*ConfigError] by Apply, ApplyBatch and the coordinator.
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

// ProcessFunc makes an [Applier] of a function. A nil function is reported as a
// [*ConfigError] by Apply and by the coordinator.
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

// BatchSourceFunc makes a [Source] of two functions, both required. It is for polling
// coordinators. As FetchFunc has no limit, the coordinator takes a fetch for a full
// batch, and fetches again immediately, if it returned at least the batch size or as many
// records as any fetch before.
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

// ignoresLimit tells the engine that the length of a fetch cannot be compared with the
// requested limit.
func (s BatchSourceFunc[T]) ignoresLimit() {}

// What follows is about what a source can do besides fetch and mark. Each
// capability is an interface of its own, and a coordinator looks for it once,
// when it is made. The coordinators call the methods one at a time, but beside
// a Fetch or a Mark that is under way.

// Releaser is an optional capability of a [Source]: it takes back records that were
// handed out and not settled. The source should not return them before after has elapsed;
// 0 means immediately. A coordinator calls Release for records that it did not attempt
// when it stops or pauses, and for failed records, where after paces the retries.
//
// A source that is also a [Failer] learns of failed records in another way. It may return
// released records immediately to keep its order, because later records would overtake a
// record that waits. Release must be idempotent and must not keep the slice. If it fails,
// the error is logged, and the records are expected to return when their lease expires.
type Releaser[T any] interface {
	Release(ctx context.Context, records []T, after time.Duration) error
}

// Failer is an optional capability of a [Source] that keeps a durable retry schedule.
// Failed records go to Fail, with their errors, instead of to [Releaser], and the source
// returns each of them when its schedule says so. Fail must be idempotent and must not
// keep the slice. If it fails, the error is logged, and the records return when their
// lease expires. With [WithOrderKey] the source must hold back the later records of a key
// itself; a streaming coordinator then retries failed records itself instead.
type Failer[T any] interface {
	Fail(ctx context.Context, failed []FailedRecord[T]) error
}

// FailedRecord is a record whose attempt failed and that stays pending.
type FailedRecord[T any] struct {
	Record T
	Error  error
	After  time.Duration // the minimum delay that the error asks for, see [RetryAfter]
}

// Renewer is an optional capability of a [Source] that leases its records: Renew extends
// the leases of the records in hand. It may list records whose lease is lost in a
// [*BatchError]. Records not yet started are then skipped and do not count as attempts.
// Records in progress continue and may reach Mark, which must skip them. Renew must also
// skip records that were marked or given back since the call began: their leases must not
// start again. Any other error is logged, and Renew is called again. It must not keep the
// slice. A record that comes again after its lease ran out takes a second place in hand,
// unless an Identity method says that it is the same.
type Renewer[T any] interface {
	// RenewEvery returns how often to renew the leases, for example a third of their
	// length. Zero or negative disables renewal by time. RenewEvery is called once at the
	// start of each run, which tells a source that a coordinator runs.
	RenewEvery() time.Duration
	Renew(ctx context.Context, records []T) error
}

// Revoker is an optional capability of a [Renewer] that is told when it loses records,
// such as those of a partition that another process takes over. A value on the channel
// makes the coordinator call Renew immediately instead of at the next renewal. Renew
// lists the lost records: those not yet started are skipped, and the loss does not count
// as an attempt. A record that another process receives in order is listed with
// [ErrRevoked].
//
// Each call of Renew names all records that the coordinator has, including lost ones. A
// record in progress is named until its work has ended; a record that is no longer named
// is no longer in hand. If a Fetch is under way, Renew is called again once the fetched
// records are in hand, so that none is missed.
//
// The channel should have room for one value, and a send that finds it full should be
// dropped. Revoked is called once for each run; a nil channel means that the source has
// nothing to report. If RenewEvery is 0, Renew is called for these values only.
type Revoker interface {
	Revoked() <-chan struct{}
}

// Waker is an optional capability of a [Source]: a value on the channel makes a polling
// coordinator fetch without waiting for the rest of the interval. The channel should have
// room for one value, and a send that finds it full should be dropped. A lost wake-up
// delays records by the interval and loses none. Wake is called once for each run; a nil
// channel means that the source does not wake.
type Waker interface {
	Wake() <-chan struct{}
}

// Pager is an optional capability of a [Source] whose Fetch may return fewer records than
// the limit although more are pending, such as a source that also bounds a batch by
// bytes. More reports whether that was so for the last Fetch. A polling coordinator then
// fetches again as after a full batch, instead of after the interval. It calls More after
// each Fetch that returned no error, before the next Fetch and on the same goroutine.
// More must not block.
type Pager interface {
	More() bool
}

// Lagger is an optional capability of a [Source]: it reports how far the coordinator is
// behind. It is called when a method of the coordinator asks for the lag, on the caller's
// goroutine, and must be safe for concurrent use.
type Lagger interface {
	Lag(ctx context.Context) (Lag, error)
}

// Lag describes the records that are pending at a source and could be fetched now.
type Lag struct {
	Pending int           // records; -1 is not known
	Oldest  time.Duration // the age of the oldest, 0 when there is none
}

// Identifier is an optional capability of a [Source]: it names a record. It returns the
// same name for the same record, and no name for two records. [WithIdentity] does the
// same for any source and takes precedence.
//
// By its name a polling coordinator recognizes a record that the source returns a second
// time, so that attempts before the pause of an open breaker still count. It recognizes
// numbers and strings by their value. It keeps all other records in hand during the
// pause, and fetches no more until they are settled.
type Identifier[T any] interface {
	Identity(record T) string
}

// OrderedBatcher is an optional capability of a [BatchApplier]: it keeps the order of the
// records inside a call. ApplyBatch then applies them in the order of the slice, and
// after a failed record it applies no record that must come after the failed one. An
// applier that does not know which records these are should end the call there. It lists
// the records that it left out with [ErrBehindFailed]; the next call applies them,
// immediately or, after a failed record of the same key, once that record is settled. An
// applier that keeps an order of its own, such as that of a partition, may go on with the
// other records if all records of an order key are in the same partition.
//
// With [WithOrderKey] one call may then contain several records of a key; without
// OrderedBatcher it does not. If a later record of a key is reported as applied and an
// earlier one as failed, the order is broken: the later record is marked, and the earlier
// one comes after it.
//
// OrderedBatches is called once, by each constructor that is given the applier. It
// returns false if the applier does not keep the order, such as a decorator around an
// applier that does not. Your own batch decorator should return what the applier inside
// it returns; without the method it hides that applier's, whether or not it has an
// Unwrap. The decorators of this package keep the order if the applier inside does. A
// fan-out keeps it if no branch is optional or beyond a quorum, each branch keeps it, and
// it recognizes records (FanOutConfig.Identity).
type OrderedBatcher interface {
	OrderedBatches() bool
}

// Ordered is an optional capability of a [Source]: Ordered returns true if the order of its
// records matters, and of several processes only one works at a time. When a coordinator
// first runs, it then warns if that order may be broken without [WithOrderKey]: by a
// [BatchApplier] that is no [OrderedBatcher], by several workers, or by a breaker, whose
// probes may be later records. Ordered is called once, by the constructor.
type Ordered interface {
	Ordered() bool
}

// Validator is an optional capability of a [Source] or an [Applier]: it reports before
// anything is fetched that it cannot work, with an error that should be a [*ConfigError].
// Start and RunOnce return that error; a panic in Validate becomes one. The decorators of
// this package also call Validate of what they decorate.
type Validator interface {
	Validate() error
}
