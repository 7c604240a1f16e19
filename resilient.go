package courier

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ResilientConfig configures [ResilientApplier]. The zero value is the default.
type ResilientConfig[T any] struct {
	Retry RetryPolicy

	// Breaker.FailureThreshold must be from 2 to Retry.MaxAttempts, which are
	// the values by which a poison record can be told from an outage. 0 is 5,
	// or Retry.MaxAttempts where that is less.
	Breaker BreakerPolicy

	// BreakerKey returns the destination of a record: a host, a tenant, a topic. Each
	// destination then has a breaker of its own, and the records of one that is down wait
	// while the others go on, see [NewKeyedCircuitBreakerApplier]. nil is one breaker for
	// all.
	BreakerKey func(T) string

	// AroundBreaker puts your own decorator between the retry and the breaker, which is
	// the place of a rate limit: there each attempt is charged, except attempts that wait
	// for the breaker's own open period. It is called once, with the breaker around the
	// applier, and returns an applier that passes calls on to it. A decorator without
	// ApplyBatch gets the records of a batch one by one. An error of the decorator counts
	// as the attempt's error. If it should not count as an attempt, it needs a method
	// NotAttempted() bool; the error of a context that has ended does not. nil is none.
	AroundBreaker func(breaker Applier[T]) Applier[T]

	// AttemptTimeout ends the context of each attempt after that long, see
	// [NewAttemptTimeoutApplier]. 0 is off.
	AttemptTimeout time.Duration

	// DLQ is where records are parked. nil is a new [MemoryDLQ] of the default capacity,
	// which does not survive the process; RunOnce then logs a warning, because the
	// letters are lost when a cron job ends. If it is no [DLQ], such as a topic, the
	// returned queue takes letters, and counts them if the sink has a method Count; its
	// other methods return [ErrSendOnly].
	DLQ DeadLetterSink[T]

	// Parking says how records are parked: for which branch, in which order, and when to
	// stop parking.
	Parking DLQPolicy[T]

	// Clock is for AttemptTimeout, and for every policy above that has none.
	Clock Clock
}

// ResilientApplier wraps an applier in retry, breaker and dead letter queue, in the only
// right order: DLQ( Retry( AroundBreaker( Breaker( AttemptTimeout( applier ))))).
// AroundBreaker and AttemptTimeout are left out unless they are configured. It returns
// the result and the queue. A nil config is the default.
//
// While the destination is down, the breaker opens and records stay pending, however long
// that takes. A record is parked if it keeps failing while the destination is healthy, or
// fails with a [Permanent] error. A bad record whose error is not Permanent looks like an
// outage at first: it opens the breaker, and the other records wait for the open period.
// If it is the only record, it stays pending until enough others get through, because only
// they show the difference: each lets it make up to FailureThreshold more attempts. So
// return Permanent where you can.
//
// A panic in the applier is a failure like any other. A success allocates nothing. With
// BreakerKey all of that holds for each key by itself. An applier with a retry or a dead
// letter queue of its own is refused. The result is as safe for concurrent use as the
// applier.
func ResilientApplier[T any](applier Applier[T], config *ResilientConfig[T]) (Applier[T], DLQ[T]) {
	var c ResilientConfig[T]
	if config != nil {
		c = *config
	}
	own := c.DLQ == nil
	if own {
		c.DLQ = &MemoryDLQ[T]{}
	}
	if c.Retry.Clock == nil {
		c.Retry.Clock = c.Clock
	}
	if c.Breaker.Clock == nil {
		c.Breaker.Clock = c.Clock
	}
	if c.Parking.Clock == nil {
		c.Parking.Clock = c.Clock
	}
	attempts := c.Retry.withDefaults().MaxAttempts
	if c.Breaker.FailureThreshold == 0 {
		c.Breaker.FailureThreshold = min(5, attempts)
	}

	fault := firstFault(applierFault("applier", applier), configErrorOf("ResilientConfig.DLQ", c.DLQ), clockFault("ResilientConfig.Clock", c.Clock), misplaced("applier", resilient, layerOf(applier)), c.validate(attempts))
	sink := applier
	if c.AttemptTimeout > 0 {
		fault = firstFault(fault, misplaced("ResilientConfig.AttemptTimeout", timing, layerOf(applier)))
		sink = newTimeoutApplier(sink, c.AttemptTimeout, c.Clock, fault)
	}
	var guarded Applier[T]
	if c.BreakerKey != nil {
		guarded = newKeyedBreaker(sink, c.BreakerKey, c.Breaker, fault)
	} else {
		guarded = newBreakerApplier(sink, NewBreaker(c.Breaker), fault)
	}
	if c.AroundBreaker != nil {
		guarded = newAroundApplier(guarded, c.AroundBreaker)
	}
	applier = newDLQApplier(NewRetryableApplier(guarded, c.Retry), c.DLQ, c.Parking, own)
	return applier, queueOf(c.DLQ)
}

// queueOf returns a sink as a queue.
func queueOf[T any](sink DeadLetterSink[T]) DLQ[T] {
	if queue, ok := sink.(DLQ[T]); ok {
		return queue
	}
	return sendOnly[T]{sink}
}

// ErrSendOnly is returned by a queue that can neither read nor change its letters.
var ErrSendOnly = errors.New("courier: the dead letter queue only takes letters; read them where it stores them")

// sendOnly is a sink with the methods that it does not have.
type sendOnly[T any] struct{ DeadLetterSink[T] }

func (sendOnly[T]) Receive(context.Context, int) ([]DeadLetter[T], error) { return nil, ErrSendOnly }
func (sendOnly[T]) List(context.Context, string, int) ([]DeadLetter[T], error) {
	return nil, ErrSendOnly
}
func (sendOnly[T]) Update(context.Context, DeadLetter[T]) error { return ErrSendOnly }
func (sendOnly[T]) Delete(context.Context, ...string) error     { return ErrSendOnly }

func (q sendOnly[T]) Count(ctx context.Context) (int, error) {
	counts, ok := q.DeadLetterSink.(interface {
		Count(ctx context.Context) (int, error)
	})
	if !ok {
		return 0, ErrSendOnly
	}
	return counts.Count(ctx)
}

// validate checks what the policies cannot see of each other.
func (c *ResilientConfig[T]) validate(attempts int) error {
	if err := c.Retry.validate(); err != nil {
		return err
	}
	if err := c.Breaker.validate(); err != nil {
		return err
	}
	switch {
	case c.AttemptTimeout < 0:
		return &ConfigError{"ResilientConfig.AttemptTimeout", fmt.Sprintf("is %v: want more than 0, or 0 for off", c.AttemptTimeout)}
	case c.BreakerKey == nil && c.Breaker.MaxKeys != 0:
		return errOneBreaker
	case attempts < 2:
		return &ConfigError{"RetryPolicy.MaxAttempts", "is 1: a breaker with a dead letter queue needs at least 2 to tell a poison record from an outage"}
	case c.Breaker.rated() && c.Breaker.withDefaults().MinCalls < 2:
		return &ConfigError{"BreakerPolicy.MinCalls", "is 1: a single failure would open the breaker, and poison could not be told from an outage"}
	case c.Breaker.FailureThreshold < 2 || c.Breaker.FailureThreshold > attempts:
		return &ConfigError{"BreakerPolicy.FailureThreshold", fmt.Sprintf("is %d: want from 2 to RetryPolicy.MaxAttempts (%d), which is what tells a poison record from an outage", c.Breaker.FailureThreshold, attempts)}
	}
	return nil
}

// aroundApplier is a breaker with the user's decorator around it. It shows the breaker,
// whether or not the decorator has an Unwrap.
type aroundApplier[T any] struct{ stage[T] }

func newAroundApplier[T any](breaker Applier[T], around func(Applier[T]) Applier[T]) Applier[T] {
	const field = "ResilientConfig.AroundBreaker"
	var outer Applier[T]
	var fault error
	isolate(&fault, func() error { outer = around(breaker); return nil })
	if fault != nil {
		fault = &ConfigError{field, "did not return an applier: " + inner(fault)}
	}
	fault = firstFault(breaker.(Validator).Validate(), fault, applierFault(field, outer))
	a := &aroundApplier[T]{newStage(wrapping, outer, fault)}
	a.fault, a.tells.fault = fault, fault // the field's, and not that of an applier
	if shows := layerOf(breaker); !within(a.tells, false, func(l *layer, _ bool) bool { return l == shows }) {
		a.tells.inside[0].layer = shows
	}
	return a
}

func (a *aroundApplier[T]) Apply(ctx context.Context, record T) error {
	if a.fault != nil || ctx == nil {
		return a.refuse(ctx)
	}
	return a.apply(ctx, record)
}

func (a *aroundApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](a), records).err()
}

func (a *aroundApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	return a.applyBatch(ctx, records)
}
