package courier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

// Unlimited is a MaxAttempts without a limit.
const Unlimited = math.MaxInt

// Jitter is how the delays between attempts are spread, so that many records
// that failed together are not tried again together. The kinds are those of
// the AWS Architecture Blog, "Exponential Backoff and Jitter".
type Jitter int

// The kinds of jitter, for a delay of d.
const (
	FullJitter         = Jitter(backoff.Full)         // anything up to d; the default
	EqualJitter        = Jitter(backoff.Equal)        // between d/2 and d
	DecorrelatedJitter = Jitter(backoff.Decorrelated) // between the initial delay and 3 times the delay before
	NoJitter           = Jitter(backoff.None)         // d itself
)

// RetryPolicy says how often and when a record is tried again. The zero value
// is the default. A policy is copied when it is given to a decorator.
type RetryPolicy struct {
	// MaxAttempts is the number of attempts, the first included. 0 is 5;
	// [Unlimited] has no limit. Around a breaker, and where the retry blocks (see
	// [NewRetryableApplier]), a call of a batch in which other
	// records got through counts only if it is the record's first: there the
	// breaker begins to count anew as well. The attempt over which the breaker opened
	// is made once more, so that a record which is parked after an outage may have had
	// one attempt more.
	MaxAttempts int

	// InitialDelay is the delay after the first failure. 0 is 100 ms.
	InitialDelay time.Duration

	// MaxDelay caps every delay, jitter included. 0 is 30 seconds, or
	// InitialDelay where that is longer.
	MaxDelay time.Duration

	// Multiplier is what each delay is longer than the one before. 0 is 2.
	Multiplier float64

	// Jitter spreads the delays. The zero value is FullJitter.
	Jitter Jitter

	// MaxRetryAfter caps the minimum delay that an error asks for with
	// [RetryAfter]: between the attempts, and where the coordinator delivers a
	// record again that was given up here. 0 is MaxDelay.
	MaxRetryAfter time.Duration

	// MaxElapsed ends the retries of a delivery: the record stays pending when
	// the next attempt would begin later than this after Apply was called. It
	// interrupts no attempt. 0 is off, and off is right for a pipeline, which
	// has a time to lose and records not to.
	MaxElapsed time.Duration

	// AttemptTimeout ends the context of each attempt, see
	// [NewAttemptTimeoutApplier]. 0 is off. It is set around what the retry
	// decorates, which must not be a breaker then; [ResilientApplier] sets it
	// inside its own.
	AttemptTimeout time.Duration

	// Budget bounds the retries of all that share it. nil is off. When it is
	// empty the record stays pending.
	Budget *RetryBudget

	// OnRetry is called before the delay of a retry, and OnGiveUp once for each
	// record given up, parked or not. What they do changes no delay; a panic in
	// them does no harm.
	OnRetry  func(ctx context.Context, event RetryEvent)
	OnGiveUp func(ctx context.Context, err *RetryError)

	// Clock is nil for the system's clock, Random for math/rand/v2's Float64, see
	// [WithRandom]. Both must be safe for concurrent use.
	Clock  Clock
	Random func() float64
}

// RetryEvent is a retry that is about to be made.
type RetryEvent struct {
	Record  string        // by name, of several the first; "" where it has none, or outside of a coordinator
	Records int           // 1, or those of a batch that are tried again
	Attempt int           // of this delivery, that has failed: 1 is the first
	Delay   time.Duration // before the next
	Err     error         // of the attempt
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	p.MaxAttempts = or(p.MaxAttempts, 5)
	p.InitialDelay = or(p.InitialDelay, 100*time.Millisecond)
	p.MaxDelay = or(p.MaxDelay, max(30*time.Second, p.InitialDelay))
	p.Multiplier = or(p.Multiplier, 2)
	p.MaxRetryAfter = or(p.MaxRetryAfter, p.MaxDelay)
	p.Clock = clockOr(p.Clock)
	return p
}

func (p RetryPolicy) validate() error {
	d := p.withDefaults()
	switch {
	case p.MaxAttempts < 0:
		return &ConfigError{"RetryPolicy.MaxAttempts", fmt.Sprintf("is %d: want at least 1, courier.Unlimited, or 0 for the default", p.MaxAttempts)}
	case p.InitialDelay < 0:
		return &ConfigError{"RetryPolicy.InitialDelay", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.InitialDelay)}
	case p.MaxDelay < 0:
		return &ConfigError{"RetryPolicy.MaxDelay", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.MaxDelay)}
	case d.MaxDelay < d.InitialDelay:
		return &ConfigError{"RetryPolicy.MaxDelay", fmt.Sprintf("is %v: want at least InitialDelay (%v)", p.MaxDelay, d.InitialDelay)}
	case !(d.Multiplier >= 1) || math.IsInf(d.Multiplier, 1):
		return &ConfigError{"RetryPolicy.Multiplier", fmt.Sprintf("is %v: want a finite number of at least 1, or 0 for the default", p.Multiplier)}
	case p.Jitter < FullJitter || p.Jitter > NoJitter:
		return &ConfigError{"RetryPolicy.Jitter", fmt.Sprintf("is %d: want FullJitter, EqualJitter, DecorrelatedJitter or NoJitter", p.Jitter)}
	case p.MaxRetryAfter < 0:
		return &ConfigError{"RetryPolicy.MaxRetryAfter", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.MaxRetryAfter)}
	case p.MaxElapsed < 0:
		return &ConfigError{"RetryPolicy.MaxElapsed", fmt.Sprintf("is %v: want more than 0, or 0 for off", p.MaxElapsed)}
	case p.AttemptTimeout < 0:
		return &ConfigError{"RetryPolicy.AttemptTimeout", fmt.Sprintf("is %v: want more than 0, or 0 for off", p.AttemptTimeout)}
	case p.Budget != nil && p.Budget.clock == nil:
		return &ConfigError{"RetryPolicy.Budget", "is the zero value: make it with NewRetryBudget"}
	case p.Budget != nil && p.Budget.fault != nil:
		return p.Budget.fault
	}
	return clockFault("RetryPolicy.Clock", p.Clock)
}

// Reason is why a record was given up.
type Reason string

// The reasons of a [*RetryError] and of a [DeadLetter].
const (
	Exhausted        Reason = "exhausted"         // every attempt failed
	PermanentFailure Reason = "permanent"         // the error said that no retry helps
	DeadlineTooClose Reason = "deadline too near" // it, or MaxElapsed, would pass before the next attempt
	BudgetEmpty      Reason = "retry budget empty"
	Interrupted      Reason = "interrupted" // the context ended, or the coordinator stops
)

// ErrExhausted is what a [*RetryError] is, to errors.Is, when every attempt
// failed.
var ErrExhausted = errors.New("courier: retries exhausted")

// RetryError is the end of the retries of a record. errors.Is and errors.As
// see the last error, and the cause of an interruption too. Its class is
// NotAttempted when the reason is DeadlineTooClose, BudgetEmpty or Interrupted:
// the record stays pending. Otherwise it is that of the last error.
type RetryError struct {
	Reason   Reason
	Attempts int           // made while the breaker was closed, those before an interruption included
	Elapsed  time.Duration // from the first failure seen by this call
	Last     error         // the last attempt's
	Cause    error         // why it was cut short, where more can be told than the reason

	maxAfter time.Duration // the policy's MaxRetryAfter
}

func (e *RetryError) Error() string {
	text := fmt.Sprintf("courier: gave up after %d attempt", e.Attempts)
	if e.Attempts != 1 {
		text += "s"
	}
	text += fmt.Sprintf(" (%s): %v", e.Reason, e.Last)
	if e.Cause != nil {
		text += fmt.Sprintf("; %v", e.Cause)
	}
	return text
}

// Is reports whether err is [ErrExhausted] and that was the reason.
func (e *RetryError) Is(err error) bool { return err == ErrExhausted && e.Reason == Exhausted }

// Unwrap returns Last, and Cause if there is one.
func (e *RetryError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Last}
	}
	return []error{e.Last, e.Cause}
}

// NotAttempted reports that the retries were cut short.
func (e *RetryError) NotAttempted() bool {
	return e.Reason == DeadlineTooClose || e.Reason == BudgetEmpty || e.Reason == Interrupted
}

// WithRetry tries records again that fail, by the default policy.
func WithRetry[T any](applier Applier[T]) Applier[T] {
	return NewRetryableApplier(applier, RetryPolicy{})
}

// NewRetryableApplier tries records again that fail with a retryable error.
// Apply returns nil, a [*RetryError], or what is NotAttempted or Skipped as it
// came. It gives up at once, with the record
// pending, when the context's deadline is nearer than the next attempt, and
// when its coordinator stops. In a batch only what failed is applied again; a
// batch that failed as one is applied again record by record, and only then do
// failures count. Around another retry, or a dead letter queue, it is refused.
//
// In a coordinator with several workers, or an order key, a delay holds up no other
// record: Apply returns an error of class NotAttempted, and the coordinator calls it again
// when the next attempt is due. It blocks during the delays everywhere else: with one
// worker and no key, in Redrive, inside a decorator of the user's own, which would take
// that error for the end of the retries, and behind a breaker where the records of a
// source that is no [Releaser] have no name (see [WithIdentity]), since the attempts of
// such a record would be forgotten over the breaker's pause.
//
// A success costs no allocation, no clock read and no timer. The result is as
// safe for concurrent use as the applier. A panic, or a call of runtime.Goexit, is
// a failed attempt as any other.
func NewRetryableApplier[T any](applier Applier[T], policy RetryPolicy) Applier[T] {
	p := policy.withDefaults()
	fault := firstFault(policy.validate(), misplaced("applier", retrying, layerOf(applier)))
	if p.AttemptTimeout > 0 && applier != nil {
		fault = firstFault(fault, misplaced("RetryPolicy.AttemptTimeout", timing, layerOf(applier)))
		applier = newTimeoutApplier(applier, p.AttemptTimeout, p.Clock, fault)
	}
	_, refuses := applier.(*breakerApplier[T])
	return &retryApplier[T]{newStage(retrying, applier, fault), p, newSteady(p.Clock), backoff.Policy{
		Base: p.InitialDelay, Max: p.MaxDelay, Multiplier: p.Multiplier, Jitter: backoff.Jitter(p.Jitter),
	}, p.MaxElapsed > 0 || p.Budget != nil, refuses, len(breakersOf(layerOf(applier))) > 0, keyedIn[T](layerOf(applier))}
}

type retryApplier[T any] struct {
	stage[T]
	policy  RetryPolicy
	clock   *steady
	backoff backoff.Policy
	metered bool             // there is a budget or a MaxElapsed
	refuses bool             // what is inside refuses an ended context by itself
	guarded bool             // a breaker is inside
	keyed   *KeyedBreaker[T] // likewise, nil if none is
}

func (r *retryApplier[T]) Apply(ctx context.Context, record T) error {
	if r.fault != nil || ctx == nil || !r.refuses && ctx.Err() != nil {
		return r.refuse(ctx)
	}
	if p, ok := ctx.(*pastContext); ok && len(p.past) == 1 {
		if last := p.past[0].by(r); last.pace.waits > 0 {
			return r.goOnAfterWait(ctx, record, last)
		}
	}
	if r.metered {
		return r.applyMetered(ctx, record)
	}
	err := r.attempt(ctx, record)
	if err == nil {
		return nil
	}
	return r.again(ctx, record, time.Time{}, err)
}

// goOnAfterWait is the rest of Apply for a record that has waited in the coordinator's
// hand for this attempt.
func (r *retryApplier[T]) goOnAfterWait(ctx context.Context, record T, last usage) error {
	if passageOf(ctx).stop.Err() != nil {
		return r.interrupted(ctx, last)
	}
	ctx = withAttempt(ctx, last.pace.waits+1)
	worker := exitsIn(ctx)
	worker.goesOn(r, last.pace.waits+1)
	defer worker.tried(r)
	err := r.attempt(ctx, record)
	if err == nil || untouched(ctx, err) {
		r.policy.Budget.refund(last.pace.owes)
	}
	if err == nil {
		return nil
	}
	return r.again(ctx, record, last.pace.entry, err)
}

// interrupted is the error of a record that was to be attempted when the coordinator
// stopped.
func (r *retryApplier[T]) interrupted(ctx context.Context, last usage) error {
	r.policy.Budget.refund(last.pace.owes)
	run := r.begin(ctx, last.pace.entry)
	run.resume(last.pace)
	return run.giveUp(Interrupted, last.used, last.pace.last, causeOf(run.passage.stop))
}

// applyMetered is the rest of Apply where a success has to be noted, or the time
// of the call.
func (r *retryApplier[T]) applyMetered(ctx context.Context, record T) error {
	entry := r.entry()
	err := r.attempt(ctx, record)
	if err == nil {
		r.policy.Budget.deposit(1)
		return nil
	}
	return r.again(ctx, record, entry, err)
}

func (r *retryApplier[T]) resume(ctx context.Context, record T, exit error) error {
	err := resumed(ctx, r.inner, record, exit)
	if err == nil {
		return nil
	}
	return r.again(ctx, record, r.entry(), err)
}

// again is the rest of Apply once the first attempt has failed.
func (r *retryApplier[T]) again(ctx context.Context, record T, entry time.Time, err error) error {
	past := historiesIn(ctx, 1)
	class := classify(ctx, err)
	if past == nil && class == NotAttempted && countedIn(err) == 0 {
		return err // it was not attempted, as any record while a breaker is open: without an allocation
	}
	run := r.begin(ctx, entry)
	if run.told() {
		run.about = record
	}
	used := 0
	if past != nil {
		last := past[0].by(r)
		used = last.used
		run.resume(last.pace)
	}
	return r.loop(ctx, record, run, used, err)
}

// loop is the rest of again, on whatever goroutines the attempts leave.
func (r *retryApplier[T]) loop(ctx context.Context, record T, run retryRun, used int, err error) error {
	returned := false
	defer run.worker.tried(r)
	defer func() {
		if !returned { // an attempt has called runtime.Goexit
			r.goOn(ctx, record, run, used)
		}
	}()
	err = r.rounds(ctx, record, &run, &used, err)
	returned = true
	return err
}

// rounds judges a failed attempt and makes the next one, until one of them is final.
func (r *retryApplier[T]) rounds(ctx context.Context, record T, run *retryRun, used *int, err error) error {
	for {
		if final := run.judge(classify(ctx, err), err, false, used); final != nil {
			return final
		}
		delay, cut := run.plan(err, 1)
		if cut == nil && run.held {
			return run.later(err, delay, *used, 1)
		}
		if cut == nil {
			cut = run.sleep(delay, 1)
		}
		if cut != nil {
			return run.giveUp(cut.reason, *used, err, cut.cause)
		}
		if err = r.retry(withAttempt(ctx, run.waits+1), record); err == nil {
			return nil
		}
	}
}

// goOn is the rest of loop while the goroutine of the last attempt is ending: on
// another one, and on the next where an attempt ends that too.
func (r *retryApplier[T]) goOn(ctx context.Context, record T, run retryRun, used int) {
	err := error(newPanicError(nil))
	for isExit(err) {
		if err = afterExit(ctx, r.inner, record, err); err == nil {
			break
		}
		failed, returned := err, false
		isolate(&err, func() error {
			final := r.rounds(ctx, record, &run, &used, failed)
			returned = true
			return final
		})
		if returned {
			break
		}
	}
	leaveVerdict(ctx, r, err)
}

// untouched reports whether a record was not attempted at all, so that a retry
// has nothing to add to the error: the case of every record while a breaker is
// open, and so without an allocation.
func untouched(ctx context.Context, err error) bool {
	return classify(ctx, err) == NotAttempted && countedIn(err) == 0
}

// retry makes one further attempt. What it took from the budget comes back unless
// the attempt failed.
func (r *retryApplier[T]) retry(ctx context.Context, record T) error {
	err := r.attempt(ctx, record)
	if err == nil || untouched(ctx, err) {
		r.policy.Budget.refund(1)
	}
	return err
}

// entry is when Apply was called, where that matters: a clock is not free.
func (r *retryApplier[T]) entry() time.Time {
	if r.policy.MaxElapsed > 0 {
		return r.clock.Now()
	}
	return time.Time{}
}

func (r *retryApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	if r.batch == nil {
		return applyEach(ctx, Applier[T](r), records)
	}
	if r.fault != nil || ctx == nil || ctx.Err() != nil {
		return r.refuse(ctx)
	}
	if past := historiesIn(ctx, len(records)); past != nil && slices.ContainsFunc(past, func(h history) bool { return h.by(r).pace.waits > 0 }) {
		return r.batchAfterWait(ctx, records, past)
	}
	entry := r.entry()
	err := r.attemptBatch(ctx, records)
	if err == nil {
		r.policy.Budget.deposit(len(records))
		return nil
	}
	if list, ok := batchErrorIn(err); ok && list != nil {
		r.policy.Budget.deposit(max(0, len(records)-len(list.Failures)))
	}
	return r.batchAgain(ctx, records, entry, err)
}

// batchAgain is the rest of ApplyBatch once the first call has failed. Once the
// batch has failed as one, which counts against no record of it, it goes on
// record by record.
func (r *retryApplier[T]) batchAgain(ctx context.Context, records []T, entry time.Time, err error) error {
	past := historiesIn(ctx, len(records))
	if _, listed := batchErrorIn(err); !listed && past == nil && untouched(ctx, err) {
		return err // of every record
	}
	run := r.begin(ctx, entry)
	if run.held {
		return gather(r.batchLater(run, records, past, err))
	}
	defer run.worker.tried(r)
	results := make([]error, len(records))
	used := make([]int, len(records))
	for i := range past {
		used[i] = past[i].by(r).used
	}
	open := allOf(len(records))          // the indices still to be applied
	lasts := make([]error, len(records)) // each record's last error
	left, errs := records, make([]error, len(records))
	alone := false
	var behind []int // of the open ones, those that were not attempted behind a failed one
	for round := 1; ; round++ {
		errs = errs[:len(open)]
		whole := spread(err, errs)
		for j, i := range open {
			lasts[i] = errs[j]
		}
		delayBy := err // the failure that asks for the longest delay
		if class := classify(ctx, err); whole && len(open) > 1 && (class == Retryable || class == PermanentClass) {
			alone, behind = true, nil
		} else {
			still := open[:0]
			delayBy, behind = nil, behind[:0]
			mixed := r.mixedIn(ctx, left, err, errs)
			for j, i := range open {
				if errs[j] == nil {
					continue
				}
				if len(still) > 0 && behindFailed(ctx, errs[j]) { // it goes along, behind that
					still, behind = append(still, i), append(behind, i)
					continue
				}
				if results[i] = run.judge(classify(ctx, errs[j]), errs[j], mixed != nil && mixed[j], &used[i]); results[i] == nil {
					still = append(still, i)
					if delayBy == nil || afterOf(errs[j], math.MaxInt64) > afterOf(delayBy, math.MaxInt64) {
						delayBy = errs[j]
					}
				}
			}
			if open = still; len(open) == 0 {
				return gather(results)
			}
			left = make([]T, len(open))
			for j, i := range open {
				left[j] = records[i]
			}
		}
		charge := len(open) - len(behind)
		if alone && whole { // the retries of a batch that is taken apart are one
			charge = 1
		}
		if run.told() {
			run.about, run.records = left[0], len(left)
		}
		delay, cut := run.plan(delayBy, charge)
		if cut == nil {
			cut = run.sleep(delay, charge)
		}
		if cut != nil {
			for _, i := range open {
				if results[i] = lasts[i]; !slices.Contains(behind, i) {
					results[i] = run.giveUp(cut.reason, max(used[i], round), lasts[i], cut.cause)
				}
			}
			return gather(results)
		}
		again := withAttempt(ctx, round+1)
		if alone {
			err = applySingly(again, Applier[T](r.batch), left, r.order)
		} else {
			err = r.attemptBatch(again, left)
		}
		r.policy.Budget.refund(min(charge, unspent(ctx, err, open, behind)))
	}
}

// batchAfterWait is ApplyBatch where some of the records have waited in the
// coordinator's hand for this attempt.
func (r *retryApplier[T]) batchAfterWait(ctx context.Context, records []T, past []history) error {
	stop := passageOf(ctx).stop
	results := make([]error, len(records))
	attempt := 1
	var index []int // of those that are attempted
	for i := range records {
		last := past[i].by(r)
		if last.pace.waits > 0 && stop.Err() != nil {
			results[i] = r.interrupted(ctx, last)
			if r.order { // what is behind it is not to overtake it
				for j := i + 1; j < len(records); j++ {
					results[j] = ErrBehindFailed
				}
				break
			}
			continue
		}
		attempt = max(attempt, last.pace.waits+1)
		index = append(index, i)
	}
	if len(index) == 0 {
		return gather(results)
	}
	entry := r.entry()
	share, some := shareOf(ctx, records, index)
	err := r.attemptBatch(withAttempt(share, attempt), some)
	errs := make([]error, len(index))
	spread(err, errs)
	for j, i := range index {
		switch last := past[i].by(r); {
		case errs[j] != nil && (!untouched(ctx, errs[j]) || behindFailed(ctx, errs[j])): // which still has it
		case last.pace.waits > 0:
			r.policy.Budget.refund(last.pace.owes)
		case errs[j] == nil:
			r.policy.Budget.deposit(1)
		}
	}
	if err != nil {
		for j, err := range r.batchLater(r.begin(ctx, entry), some, historiesIn(share, len(some)), err) {
			results[index[j]] = err
		}
	}
	return gather(results)
}

// batchLater returns the errors of the records of a batch of which some have failed,
// and are to be delivered again. After a batch that failed as one, which counts against
// no record of it, each goes alone.
func (r *retryApplier[T]) batchLater(run retryRun, records []T, past []history, err error) []error {
	ctx := run.ctx
	results := make([]error, len(records))
	whole := spread(err, results)
	class := classify(ctx, err)
	whole = whole && len(records) > 1 && (class == Retryable || class == PermanentClass)
	charge := 1 // the retries of a batch that is taken apart are one
	for i, err := range results {
		if err == nil {
			continue
		}
		one := run
		last := usage{owner: r}
		if past != nil {
			last = past[i].by(r)
			one.resume(last.pace)
		}
		if one.told() {
			one.about = records[i]
		}
		if !whole {
			// Other records that got through may be new ones, each time: then no attempt
			// on poison would ever count, if those of a mixed call did not.
			if results[i] = one.judge(classify(ctx, err), err, false, &last.used); results[i] != nil {
				continue
			}
		}
		delay, cut := one.plan(err, charge)
		if cut != nil {
			results[i] = one.giveUp(cut.reason, max(last.used, one.waits), err, cut.cause)
			continue
		}
		later := one.later(err, delay, last.used, charge)
		later.usage.together = !whole && len(records) > 1
		if results[i] = later; whole {
			charge = 0
		}
	}
	return results
}

// unspent counts the records of a retried batch that cost the destination
// nothing in vain: they are applied, or were not attempted. It leaves out those that
// were no retry.
func unspent(ctx context.Context, err error, open, fresh []int) (count int) {
	errs := make([]error, len(open))
	spread(err, errs)
	for j, err := range errs {
		if !slices.Contains(fresh, open[j]) && (err == nil || untouched(ctx, err)) {
			count++
		}
	}
	return count
}

// retryRun is the retries of one call, from its first failure on.
type retryRun struct {
	ctx     context.Context
	passage *passage
	worker  *exits // nil outside of a coordinator
	owner   any    // the retry
	policy  *RetryPolicy
	clock   *steady
	backoff *backoff.Policy
	entry   time.Time     // of the call, where MaxElapsed is set
	start   time.Time     // of the first failure
	delay   time.Duration // the last one
	waits   int
	about   any  // the first record that is tried again
	records int  // how many are, of a batch
	held    bool // the coordinator keeps what waits
}

func (r *retryApplier[T]) begin(ctx context.Context, entry time.Time) retryRun {
	passage := passageOf(ctx)
	return retryRun{ctx: ctx, passage: passage, worker: exitsIn(ctx), entry: entry, owner: r, policy: &r.policy, clock: r.clock, backoff: &r.backoff, start: r.clock.Now(), held: passage.watch.holds(r)}
}

// resume goes on with the delays where an earlier delivery has stopped.
func (r *retryRun) resume(last pace) {
	if last.waits > 0 {
		r.waits, r.delay, r.start = last.waits, last.delay, last.start
	}
}

// later has the coordinator deliver the record again after a delay. Of the budget n
// retries are withdrawn for it.
func (r *retryRun) later(err error, delay time.Duration, used, n int) *laterError {
	if r.policy.Budget == nil {
		n = 0
	}
	due := r.passage.watch.clock.Now().Add(delay)
	return &laterError{err: err, due: due, usage: usage{owner: r.owner, used: used, pace: pace{r.waits, r.delay, r.start, r.entry, n, err}}}
}

// judge counts a failed attempt and returns the record's final error, or nil
// when it is to be tried again. In a mixed call other records got through, and the
// breaker begins to count anew with one failure. If the record's attempts counted
// more, an outage that began in that call would exhaust them before the breaker
// opens.
func (r *retryRun) judge(class Class, err error, mixed bool, used *int) error {
	switch class {
	case Skipped:
		return err
	case NotAttempted:
		if *used += countedIn(err); *used == 0 {
			return err
		}
		left := usage{owner: r.owner, used: *used}
		if r.held { // what interrupts a delivery that goes on in hand is no end of it
			left.pace = pace{waits: r.waits, delay: r.delay, start: r.start, entry: r.entry, last: err}
		}
		return &pendingError{err, left}
	case PermanentClass:
		*used++
		return r.giveUp(PermanentFailure, *used, err, nil)
	}
	if !mixed || *used == 0 {
		*used++
	}
	if *used >= r.policy.MaxAttempts {
		return r.giveUp(Exhausted, *used, err, nil)
	}
	return nil
}

func (r *retryRun) giveUp(reason Reason, attempts int, last, cause error) error {
	err := &RetryError{Reason: reason, Attempts: attempts, Elapsed: r.clock.Now().Sub(r.start), Last: last, Cause: cause, maxAfter: r.policy.MaxRetryAfter}
	tell(r.ctx, r.policy.OnGiveUp, err)
	return err
}

// errEndsFirst is why a coordinator's retry is not waited for.
var errEndsFirst = errors.New("the context of Start or RunOnce ends before the next attempt")

// cut is a wait that was not waited out.
type cut struct {
	reason Reason
	cause  error
}

// plan returns the delay before the next attempt, which is one of n records, or why
// there is to be none: there is no budget for it, the deadline would pass, or the
// coordinator stops.
func (r *retryRun) plan(last error, n int) (time.Duration, *cut) {
	r.waits++
	r.delay = r.backoff.Delay(r.waits, r.delay, uniform(r.policy.Random))
	most := r.policy.MaxRetryAfter
	delay := max(r.delay, min(afterOf(last, most), most))
	stop := r.passage.stop
	for _, ctx := range [...]context.Context{r.ctx, stop} {
		if ctx.Err() != nil {
			return 0, &cut{Interrupted, causeOf(ctx)}
		}
		if deadline, ok := ctx.Deadline(); ok && deadline.Sub(r.clock.Clock.Now()) <= delay {
			if ctx == stop {
				return 0, &cut{DeadlineTooClose, errEndsFirst}
			}
			return 0, &cut{DeadlineTooClose, nil}
		}
	}
	if limit := r.policy.MaxElapsed; limit > 0 && delay > limit-r.clock.Now().Sub(r.entry) {
		return 0, &cut{DeadlineTooClose, nil}
	}
	if !r.policy.Budget.withdraw(n) {
		return 0, &cut{BudgetEmpty, nil}
	}
	event := RetryEvent{Records: max(1, r.records), Attempt: r.waits, Delay: delay, Err: last}
	if w := r.passage.watch; w != nil && r.told() {
		event.Record = w.name(r.about)
	}
	tell(r.ctx, r.policy.OnRetry, event)
	r.passage.watch.retried(r.ctx, event)
	return delay, nil
}

// sleep waits for the next attempt, and returns why it was cut short, if it was.
func (r *retryRun) sleep(delay time.Duration, n int) *cut {
	stop := r.passage.stop
	r.worker.waits(r.owner, r.waits)
	if delay > 0 {
		over := timer{C: r.clock.After(delay)}
		if r.policy.MaxElapsed > 0 { // else it does not matter how much has passed
			over = r.clock.timer(delay)
		}
		select {
		case <-over.C: // a clock may be there already, and this is the cheapest to ask
			over.fired()
		default:
			select {
			case <-over.C:
				over.fired()
			case <-r.ctx.Done():
			case <-stop.Done():
			}
		}
	}
	r.worker.goesOn(r.owner, r.waits+1)
	// Several cases may have been ready: what ended decides, not which was
	// picked.
	for _, ctx := range [...]context.Context{r.ctx, stop} {
		if ctx.Err() != nil {
			r.policy.Budget.refund(n)
			return &cut{Interrupted, causeOf(ctx)}
		}
	}
	return nil
}

// told reports whether anybody hears of retries: to keep a record for that costs an
// allocation.
func (r *retryRun) told() bool {
	w := r.passage.watch
	return r.policy.OnRetry != nil || w != nil && w.observer.Retried != nil
}

// maxAfter is the longest delay that a coordinator obeys of those that the errors
// of records ask for, where no retry has capped it.
const maxAfter = 24 * time.Hour

// afterOf returns the minimum delay that an error asks for, up to a limit, and 0
// if none: of several errors the longest. What a retry was given up with is capped
// by the policy of that, and not by the limit.
func afterOf(err error, limit time.Duration) (after time.Duration) {
	for err != nil { // by hand: errors.As allocates, for every failure
		switch e := err.(type) {
		case *retryAfterError:
			return min(e.after, limit)
		case *RetryError:
			if e.maxAfter > 0 {
				limit = e.maxAfter
			}
			err = e.Last
			continue
		}
		several, one := wrappedIn(err)
		for _, child := range several {
			after = max(after, afterOf(child, limit))
		}
		if several != nil {
			return after
		}
		err = one
	}
	return 0
}
