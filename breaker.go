package courier

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// BreakerPolicy configures a [Breaker]. The zero value is the default.
type BreakerPolicy struct {
	// FailureThreshold is how many calls must fail in a row for the breaker to
	// open. 0 is 5. Together with a retry around the breaker it should be at
	// least 2 and at most RetryPolicy.MaxAttempts: with 1 a record that fails
	// on its own account always opens it and is never parked; above
	// MaxAttempts, the record at the head of an outage is exhausted before it
	// opens.
	FailureThreshold int

	// OpenFor is how long the breaker first stays open before it lets a probe
	// through. 0 is 5 seconds. Each failed probe doubles it, up to MaxOpenFor.
	// 0 is one minute, or OpenFor where that is longer.
	OpenFor, MaxOpenFor time.Duration

	// Probes is how many calls are let through at once while half-open, and
	// Successes how many of them must succeed for it to close. 0 is 1 of each.
	Probes, Successes int

	// ProbeTimeout is how long probes may hang without any verdict before the
	// breaker opens again without them. 0 is one minute, or OpenFor where that
	// is longer.
	ProbeTimeout time.Duration

	// Clock is nil for the system's clock, Random for math/rand/v2's Float64:
	// it spreads an open period by up to a fifth either way, so that several
	// processes do not probe together. Both must be safe for concurrent use.
	Clock  Clock
	Random func() float64
}

func (p BreakerPolicy) withDefaults() BreakerPolicy {
	p.FailureThreshold = or(p.FailureThreshold, 5)
	p.OpenFor = or(p.OpenFor, 5*time.Second)
	p.MaxOpenFor = or(p.MaxOpenFor, max(time.Minute, p.OpenFor))
	p.Probes = or(p.Probes, 1)
	p.Successes = or(p.Successes, 1)
	p.ProbeTimeout = or(p.ProbeTimeout, max(time.Minute, p.OpenFor))
	if p.Clock == nil {
		p.Clock = systemClock{}
	}
	if p.Random == nil {
		p.Random = rand.Float64
	}
	return p
}

func (p BreakerPolicy) validate() error {
	switch {
	case p.FailureThreshold < 0:
		return &ConfigError{"BreakerPolicy.FailureThreshold", fmt.Sprintf("is %d: want at least 1, or 0 for the default", p.FailureThreshold)}
	case p.OpenFor < 0:
		return &ConfigError{"BreakerPolicy.OpenFor", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.OpenFor)}
	case p.MaxOpenFor < 0:
		return &ConfigError{"BreakerPolicy.MaxOpenFor", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.MaxOpenFor)}
	case p.MaxOpenFor != 0 && p.MaxOpenFor < p.withDefaults().OpenFor:
		return &ConfigError{"BreakerPolicy.MaxOpenFor", fmt.Sprintf("is %v: want at least OpenFor (%v)", p.MaxOpenFor, p.withDefaults().OpenFor)}
	case p.Probes < 0:
		return &ConfigError{"BreakerPolicy.Probes", fmt.Sprintf("is %d: want at least 1, or 0 for the default", p.Probes)}
	case p.Successes < 0:
		return &ConfigError{"BreakerPolicy.Successes", fmt.Sprintf("is %d: want at least 1, or 0 for the default", p.Successes)}
	case p.ProbeTimeout < 0:
		return &ConfigError{"BreakerPolicy.ProbeTimeout", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.ProbeTimeout)}
	}
	return nil
}

// ErrOpen is what every [*OpenError] is, to errors.Is.
var ErrOpen = errors.New("courier: breaker open")

// OpenError says that the breaker lets no call through, or that the call just
// made is the one over which it opened. Its class is NotAttempted: coordinators
// stop fetching until the time it tells.
type OpenError struct {
	Until   time.Time // when a probe may go; the time of the call when all probe slots are taken
	Cause   error     // the failure that opened the breaker
	Counted bool      // the call was made while the breaker was closed, and counts as an attempt
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("courier: breaker open, next probe at %s; opened by: %v", e.Until.Format(time.RFC3339), e.Cause)
}

// Is reports whether err is [ErrOpen].
func (e *OpenError) Is(err error) bool { return err == ErrOpen }

// Unwrap returns Cause.
func (e *OpenError) Unwrap() error { return e.Cause }

// NotAttempted reports true.
func (e *OpenError) NotAttempted() bool { return true }

// RetryAt returns Until.
func (e *OpenError) RetryAt() time.Time { return e.Until }

// ErrProbeTimeout is the cause of a breaker that opened again because its
// probes hung.
var ErrProbeTimeout = errors.New("courier: the breaker's probes gave no verdict within the probe timeout")

// Breaker stops calls to a destination that is down, and finds out when it is
// up again. Several appliers may share one when they share the destination. It
// is safe for concurrent use, has no goroutine or timer, and never blocks.
type Breaker struct {
	policy BreakerPolicy
	kernel breaker.Policy
	fault  error

	// calm is the generation of a closed phase without a failure in it, or 0.
	// Success then has nothing to write, and calls need not take the lock.
	calm atomic.Uint64

	mu       sync.Mutex
	state    breaker.State
	rejected *OpenError // what calls are refused with while not closed, made once
}

// NewBreaker returns a closed breaker. A bad policy is reported by the Apply
// of the appliers that use it.
func NewBreaker(policy BreakerPolicy) *Breaker {
	p := policy.withDefaults()
	b := &Breaker{policy: p, fault: policy.validate(), kernel: breaker.Policy{
		FailureThreshold: p.FailureThreshold,
		OpenFor:          p.OpenFor,
		MaxOpenFor:       p.MaxOpenFor,
		OpenMultiplier:   2,
		Jitter:           0.2,
		Probes:           p.Probes,
		Successes:        p.Successes,
		ProbeTimeout:     p.ProbeTimeout,
	}}
	b.state.Gen = 1
	b.calm.Store(b.state.Gen)
	return b
}

// State returns "closed", "open" or "half-open". An open breaker stays open
// until somebody calls: it is the call that becomes the probe.
func (b *Breaker) State() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Phase.String()
}

// acquire returns a permit or the error to refuse the call with.
func (b *Breaker) acquire() (breaker.Permit, error) {
	if gen := b.calm.Load(); gen != 0 {
		return breaker.Permit{Gen: gen}, nil
	}
	now, random := b.policy.Clock.Now(), b.policy.Random()
	b.mu.Lock()
	defer b.mu.Unlock()
	gen := b.state.Gen
	permit, ok, timedOut := b.state.Acquire(&b.kernel, now, random)
	switch {
	case timedOut:
		b.rejected = &OpenError{Until: b.state.Until, Cause: ErrProbeTimeout}
	case b.state.Gen != gen: // half-open from here on: worth asking again at any time
		b.rejected = &OpenError{Until: now, Cause: b.rejected.Cause}
	}
	if !ok {
		return breaker.Permit{}, b.rejected
	}
	return permit, nil
}

// report gives the verdict of a call. When the breaker is open because of it,
// the error says so and carries err. counts says whether the failure can be held
// against every record of the call.
func (b *Breaker) report(permit breaker.Permit, outcome breaker.Outcome, counts bool, err error) error {
	if outcome == breaker.Success && b.calm.Load() == permit.Gen {
		return err
	}
	now, random := b.policy.Clock.Now(), b.policy.Random()
	b.mu.Lock()
	defer b.mu.Unlock()
	gen := b.state.Gen
	b.state.Report(&b.kernel, permit, outcome, now, random)
	if b.state.Phase == breaker.Closed && b.state.Streak() == 0 {
		b.calm.Store(b.state.Gen)
	} else {
		b.calm.Store(0)
	}
	if b.state.Phase == breaker.Open && b.state.Gen != gen {
		b.rejected = &OpenError{Until: b.state.Until, Cause: err}
	}
	// By the permit, not by the state: it is the call's own phase that says
	// whether its failure counts against the record (P-1).
	switch {
	case outcome != breaker.Failure:
	case b.state.Phase != breaker.Closed:
		return &OpenError{Until: b.rejected.Until, Cause: err, Counted: counts && !permit.Probe}
	case permit.Probe: // a late one: the breaker has closed without it
		return &OpenError{Until: now, Cause: err}
	}
	return err
}

// WithCircuitBreaker puts an applier behind a breaker of its own with the
// default policy.
func WithCircuitBreaker[T any](applier Applier[T]) Applier[T] {
	return NewCircuitBreakerApplier(applier, NewBreaker(BreakerPolicy{}))
}

// NewCircuitBreakerApplier puts an applier behind a breaker. While that is
// open, Apply returns an [*OpenError] without a call, or an allocation. A call
// of ApplyBatch is one call to the breaker, and fails when all its records do.
//
// Retryable errors and panics are failures of the destination; a permanent
// error is an answer, hence a success; what is NotAttempted says nothing. The
// result is as safe for concurrent use as the applier.
func NewCircuitBreakerApplier[T any](applier Applier[T], b *Breaker) Applier[T] {
	if b == nil {
		b = NewBreaker(BreakerPolicy{})
		b.fault = &ConfigError{"breaker", "is nil: pass the result of NewBreaker"}
	}
	return &breakerApplier[T]{newStage(applier, b.fault), b}
}

type breakerApplier[T any] struct {
	stage[T]
	breaker *Breaker
}

func (a *breakerApplier[T]) Apply(ctx context.Context, record T) (err error) {
	if err := a.refuse(ctx); err != nil {
		return err
	}
	permit, err := a.breaker.acquire()
	if err != nil {
		return err
	}
	// A panic or a Goexit is reported on its way through: recovering it here
	// would lose where it came from.
	returned := false
	defer func() {
		if !returned {
			_ = a.breaker.report(permit, breaker.Failure, false, ErrPanic)
		}
	}()
	err = a.apply(ctx, record)
	returned = true
	return a.breaker.report(permit, outcomeOf(ctx, err), true, err)
}

func (a *breakerApplier[T]) ApplyBatch(ctx context.Context, records []T) (err error) {
	if a.batch == nil {
		return applyEach(ctx, Applier[T](a), records)
	}
	if err := a.refuse(ctx); err != nil {
		return err
	}
	permit, err := a.breaker.acquire()
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = a.breaker.report(permit, breaker.Failure, false, ErrPanic)
		}
	}()
	err = a.applyBatch(ctx, records)
	returned = true
	_, listed := batchErrorIn(err)
	return a.breaker.report(permit, batchOutcomeOf(ctx, err, len(records)), listed || len(records) == 1, err)
}

// refuse returns why there is no call to be made, before the breaker is asked.
func (a *breakerApplier[T]) refuse(ctx context.Context) error {
	if a.fault != nil {
		return a.fault
	}
	if ctx.Err() != nil {
		return unattempted(context.Cause(ctx))
	}
	return nil
}

func outcomeOf(ctx context.Context, err error) breaker.Outcome {
	if err == nil {
		return breaker.Success
	}
	switch Classify(ctx, err) {
	case PermanentClass, Skipped:
		return breaker.Success
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

// batchOutcomeOf lets one record that got through vouch for the destination.
func batchOutcomeOf(ctx context.Context, err error, n int) breaker.Outcome {
	list, ok := batchErrorIn(err)
	if !ok {
		return outcomeOf(ctx, err)
	}
	if list == nil || len(list.Failures) < n {
		return breaker.Success
	}
	verdict := breaker.Ignored
	for _, f := range list.Failures {
		if f.Err == nil {
			continue
		}
		switch outcomeOf(ctx, f.Err) {
		case breaker.Success:
			return breaker.Success
		case breaker.Failure:
			verdict = breaker.Failure
		}
	}
	return verdict
}

// or returns v, or the default where v is zero.
func or[V int | float64 | time.Duration](v, def V) V {
	if v == 0 {
		return def
	}
	return v
}
