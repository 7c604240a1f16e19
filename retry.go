package courier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

// UnlimitedAttempts is a MaxAttempts without a limit.
const UnlimitedAttempts = math.MaxInt

// Jitter is how the delays between attempts are spread, so that many records that failed
// together are not retried together. The kinds are those of the AWS Architecture Blog,
// "Exponential Backoff and Jitter".
type Jitter int

// The kinds of jitter, for a delay of d.
const (
	FullJitter         = Jitter(backoff.Full)         // anything up to d; the default
	EqualJitter        = Jitter(backoff.Equal)        // between d/2 and d
	DecorrelatedJitter = Jitter(backoff.Decorrelated) // between the initial delay and 3 times the delay before
	NoJitter           = Jitter(backoff.None)         // d itself
)

// RetryPolicy says how often and when a record is retried. The zero value is the default.
// A policy is copied when it is given to a decorator.
type RetryPolicy struct {
	// MaxAttempts is the number of attempts, including the first. 0 is 5;
	// [UnlimitedAttempts] has no limit. The attempt over which a breaker opened is made
	// once more, so a record that is parked after an outage may have had one attempt
	// more. Around a breaker, and where the retry blocks (see [NewRetryableApplier]), a
	// batch call in which other records succeeded counts for a record only if it is the
	// record's first, because the breaker starts to count again as well.
	MaxAttempts int

	// InitialDelay is the delay after the first failure. 0 is 100 ms.
	InitialDelay time.Duration

	// MaxDelay caps every delay, including jitter. 0 is 30 seconds, or InitialDelay if
	// that is longer.
	MaxDelay time.Duration

	// Multiplier is the ratio of each delay to the one before. 0 is 2.
	Multiplier float64

	// Jitter spreads the delays. The zero value is FullJitter.
	Jitter Jitter

	// MaxRetryAfter caps the minimum delay that an error asks for with [RetryAfter],
	// between attempts and before the coordinator delivers a record again whose attempts
	// ran out. 0 is MaxDelay.
	MaxRetryAfter time.Duration

	// MaxElapsed ends the retries of a delivery: the record stays pending if its next
	// attempt would begin later than this after Apply was called. It interrupts no
	// attempt. 0 is off, which is right for a pipeline: it may be late, but must not lose
	// records.
	MaxElapsed time.Duration

	// Budget bounds the retries of everything that shares it. nil is off. While it is empty,
	// a record waits in the coordinator's hand, keeps its attempts, and asks again after a
	// delay that grows up to MaxDelay; others go on. Outside of a coordinator, and in
	// RunOnce, the retries end with ReasonBudget and the record stays pending. If it pays for
	// less than the records that fail need, these fill the hand in the end, and less is
	// fetched.
	Budget *RetryBudget

	// OnRetry is called before the delay of a retry, and OnGiveUp once for each record
	// whose retries end without success, parked or not. They do not change the delays; a
	// panic in them does no harm.
	OnRetry  func(ctx context.Context, event RetryEvent)
	OnGiveUp func(ctx context.Context, err *RetryError)

	// Clock is nil for the system's clock, Random for math/rand/v2's Float64, see
	// [WithRandom]. Both must be safe for concurrent use.
	Clock  Clock
	Random func() float64
}

// RetryEvent is a retry that is about to be made.
type RetryEvent struct {
	Record  string        // by name, the first of several; "" if it has none, or outside a coordinator
	Records int           // 1, or the records of a batch that are retried
	Attempt int           // the number of the failed attempt in this delivery: 1 is the first
	Delay   time.Duration // before the next attempt
	Err     error         // of the failed attempt
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
	const time, off = "more than 0, or 0 for the default", "more than 0, or 0 for off"
	d := p.withDefaults()
	fault := boundsFault("RetryPolicy", []bound{
		{"MaxAttempts", p.MaxAttempts, p.MaxAttempts >= 0, "at least 1, courier.UnlimitedAttempts, or 0 for the default"},
		{"InitialDelay", p.InitialDelay, p.InitialDelay >= 0, time},
		{"MaxDelay", p.MaxDelay, p.MaxDelay >= 0, time},
		{"MaxDelay", p.MaxDelay, d.MaxDelay >= d.InitialDelay, fmt.Sprintf("at least InitialDelay (%v)", d.InitialDelay)},
		{"Multiplier", p.Multiplier, d.Multiplier >= 1 && !math.IsInf(d.Multiplier, 1), "a finite number of at least 1, or 0 for the default"},
		{"Jitter", p.Jitter, p.Jitter >= FullJitter && p.Jitter <= NoJitter, "FullJitter, EqualJitter, DecorrelatedJitter or NoJitter"},
		{"MaxRetryAfter", p.MaxRetryAfter, p.MaxRetryAfter >= 0, time},
		{"MaxElapsed", p.MaxElapsed, p.MaxElapsed >= 0, off},
	})
	switch {
	case fault != nil || p.Budget == nil:
	case p.Budget.clock == nil:
		fault = &ConfigError{"RetryPolicy.Budget", "is the zero value: make it with NewRetryBudget"}
	default:
		fault = p.Budget.fault
	}
	return firstFault(fault, clockFault("RetryPolicy.Clock", p.Clock))
}

// Reason is why the retries of a record ended.
type Reason string

// The reasons of a [*RetryError] and of a [DeadLetter].
const (
	ReasonExhausted   Reason = "exhausted"         // every attempt failed
	ReasonPermanent   Reason = "permanent"         // the error said that no retry helps
	ReasonDeadline    Reason = "deadline too near" // the deadline, or MaxElapsed, would pass before the next attempt
	ReasonBudget      Reason = "retry budget empty"
	ReasonInterrupted Reason = "interrupted" // the context ended, or the coordinator stops
)

// ErrExhausted matches a [*RetryError] in errors.Is if every attempt failed.
var ErrExhausted = errors.New("courier: retries exhausted")

// RetryError is the end of the retries of a record. errors.Is and errors.As find the last
// error, and the cause of an interruption too. Its class is ClassNotAttempted if the
// reason is ReasonDeadline, ReasonBudget or ReasonInterrupted: the record stays pending.
// Otherwise its class is that of the last error.
type RetryError struct {
	Reason   Reason
	Attempts int           // made while the breaker was closed, including those before an interruption
	Elapsed  time.Duration // from the first failure seen by this call
	Last     error         // the last attempt's
	Cause    error         // why the retries were cut short, if there is more to say than the reason

	maxAfter time.Duration // the policy's MaxRetryAfter
}

func (e *RetryError) Error() string {
	text := fmt.Sprintf("courier: gave up after %d attempt", e.Attempts)
	if e.Attempts != 1 {
		text += "s"
	}
	text += fmt.Sprintf(" (%s): %s", e.Reason, inner(e.Last))
	if e.Cause != nil {
		text += "; " + inner(e.Cause)
	}
	return text
}

// Is reports whether err is [ErrExhausted] and that was the reason.
func (e *RetryError) Is(err error) bool { return err == ErrExhausted && e.Reason == ReasonExhausted }

// Unwrap returns Last, and Cause if there is one.
func (e *RetryError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Last}
	}
	return []error{e.Last, e.Cause}
}

// NotAttempted reports that the retries were cut short.
func (e *RetryError) NotAttempted() bool {
	return e.Reason == ReasonDeadline || e.Reason == ReasonBudget || e.Reason == ReasonInterrupted
}

// WithRetry retries failed records with the default policy.
func WithRetry[T any](applier Applier[T]) Applier[T] {
	return NewRetryableApplier(applier, RetryPolicy{})
}

// NewRetryableApplier retries records that fail with a retryable error. Apply returns
// nil, a [*RetryError], or an error of ClassNotAttempted or ClassSkipped unchanged. It
// gives up immediately, and leaves the record pending, if the deadline of its context is
// before the next attempt, or if the coordinator stops. In a batch only the failed
// records are applied again. A batch that failed as a whole is applied again record by
// record, and only then do failures count. An applier with a retry or a dead letter queue
// of its own is refused.
//
// In a coordinator with several workers, or with an order key, a delay blocks no other
// record: Apply returns an error of ClassNotAttempted, and the coordinator calls it again
// when the next attempt is due. Everywhere else Apply blocks during the delays: with one
// worker and no key; in Redrive; inside a decorator of the user's own, which would take
// that error for the end of the retries; and around a breaker if the records of a source
// that is no [Releaser] have no names (see [WithIdentity]), because the breaker's pause
// would reset the attempts of such a record.
//
// A success costs no allocation, no clock read and no timer. The result is as safe for
// concurrent use as the applier. A panic, or a call of runtime.Goexit, is a failed
// attempt like any other.
func NewRetryableApplier[T any](applier Applier[T], policy RetryPolicy) Applier[T] {
	p := policy.withDefaults()
	fault := firstFault(policy.validate(), misplaced("applier", retrying, layerOf(applier)))
	_, refuses := applier.(*breakerApplier[T])
	r := &retryApplier[T]{
		stage: newStage(retrying, applier, fault),
		retrier: retrier{policy: p, clock: newSteady(p.Clock), backoff: backoff.Policy{
			Base: p.InitialDelay, Max: p.MaxDelay, Multiplier: p.Multiplier, Jitter: backoff.Jitter(p.Jitter),
		}},
		metered: p.MaxElapsed > 0 || p.Budget != nil,
		refuses: refuses,
		guarded: len(breakersOf(layerOf(applier))) > 0,
		keyed:   keyedIn[T](layerOf(applier)),
	}
	r.owner, r.tells.of = r, r
	return r
}

// retrier is the part of a retry that does not know the type of its records.
type retrier struct {
	owner   any // the retry
	policy  RetryPolicy
	clock   *steady
	backoff backoff.Policy
}

type retryApplier[T any] struct {
	stage[T]
	retrier
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
	var entry time.Time
	if r.metered {
		entry = r.entry()
	}
	err := r.attempt(ctx, record)
	if err != nil {
		return r.again(ctx, record, entry, err)
	}
	if r.metered {
		r.policy.Budget.deposit(1)
	}
	return nil
}

// goOnAfterWait is the rest of Apply for a record that has waited in the coordinator's
// hand for this attempt.
func (r *retryApplier[T]) goOnAfterWait(ctx context.Context, record T, last usage) error {
	passage := passageOf(ctx)
	if passage.stop.Err() != nil {
		return r.interrupted(ctx, last)
	}
	if last.pace.short > 0 {
		if short := r.pay(ctx, record, &last); short != nil {
			return short
		}
		if passage.stop.Err() != nil { // a hook or a clock came between
			return r.interrupted(ctx, last)
		}
	}
	passage.owed.add(r.policy.Budget, -last.pace.owes)
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
	passageOf(ctx).owed.add(r.policy.Budget, -last.pace.owes)
	r.policy.Budget.refund(last.pace.owes)
	run := r.begin(ctx, last.pace.entry)
	run.resume(last.pace)
	return run.giveUp(ReasonInterrupted, last.used, last.pace.last, causeOf(run.passage.stop))
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
	if past == nil && class == ClassNotAttempted && countedIn(err) == 0 {
		return err // it was not attempted, as any record while a breaker is open: without an allocation
	}
	run := r.begin(ctx, entry)
	used := 0
	if past != nil {
		last := past[0].by(r)
		used = last.used
		run.resume(last.pace)
	}
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
		if run.told() && run.about == nil {
			run.about = record
		}
		delay, cut := run.plan(err, 1)
		if cut == nil && run.held {
			return run.later(err, delay, *used, 1)
		}
		if cut == nil {
			cut = run.sleep(delay, 1)
		}
		if cut.waits(run.passage) {
			return run.runShort(delay, err, *used)
		}
		if cut != nil {
			return run.giveUp(cut.reason, *used, err, cut.cause)
		}
		err = r.attempt(withAttempt(ctx, run.waits+1), record)
		if err == nil || untouched(ctx, err) {
			r.policy.Budget.refund(1)
		}
		if err == nil {
			return nil
		}
	}
}

// goOn is the rest of again while the goroutine of the last attempt is ending: on
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

// untouched reports whether a record was not attempted at all, so that a retry has
// nothing to add to the error. While a breaker is open that is so for every record, and
// costs no allocation.
func untouched(ctx context.Context, err error) bool {
	return classify(ctx, err) == ClassNotAttempted && countedIn(err) == 0
}

// entry is when Apply was called, where that matters: a clock is not free.
func (r *retrier) entry() time.Time {
	if r.policy.MaxElapsed > 0 {
		return r.clock.Now()
	}
	return time.Time{}
}

// retryRun is the retries of one call, from its first failure on.
type retryRun struct {
	*retrier
	pace
	ctx     context.Context
	passage *passage
	worker  *exits    // nil outside of a coordinator
	about   any       // the first record that is tried again, if that is told
	seen    time.Time // when the call began, or the last delay ended
	several int       // how many are, of a batch
	held    bool      // the coordinator keeps what waits
}

func (r *retrier) begin(ctx context.Context, entry time.Time) retryRun {
	passage := passageOf(ctx)
	now := r.clock.Now()
	return retryRun{retrier: r, pace: pace{start: now, entry: entry}, ctx: ctx, passage: passage, worker: exitsIn(ctx), seen: now, held: passage.watch.holds(r.owner)}
}

// resume goes on with the delays where an earlier delivery has stopped.
func (r *retryRun) resume(last pace) {
	if last.waits > 0 {
		r.pace = last
	}
}

// usage is what was used on a record, the last time in an attempt that came to err. For the
// next one owes retries are withdrawn from the budget.
func (r *retryRun) usage(used, owes int, err error) usage {
	u := usage{owner: r.owner, used: used}
	if r.held {
		u.pace = r.pace
		u.pace.owes, u.pace.last = owes, err
	}
	return u
}

// later has the coordinator deliver the record again after a delay. Of the budget n
// retries are withdrawn for it.
func (r *retryRun) later(err error, delay time.Duration, used, n int) *laterError {
	if r.policy.Budget == nil {
		n = 0
	}
	r.passage.owed.add(r.policy.Budget, n)
	due := r.passage.watch.clock.Now().Add(delay)
	return &laterError{err: err, due: due, usage: r.usage(used, n, err)}
}

// runShort is the error of a record whose next attempt the budget does not pay for. Inside
// a coordinator it waits in hand, also where other delays block, and asks again when it is
// due, less often each time: were it left to come anew, its attempts would begin anew too.
func (r *retryRun) runShort(delay time.Duration, err error, used int) error {
	r.short++
	slow := r.backoff
	slow.Jitter = backoff.Equal // not to ask at once
	delay = max(delay, slow.Delay(r.waits+r.short, 0, uniform(r.policy.Random)))
	if r.tooLate(delay) {
		return r.giveUp(ReasonDeadline, used, err, nil)
	}
	later := r.later(err, delay, used, 0)
	later.usage.pace = r.pace
	later.usage.pace.owes, later.usage.pace.last = 0, err
	return later
}

// pay withdraws the retry of a record that has waited for the budget. It returns the error
// with which the record waits on if that is still too small.
func (r *retrier) pay(ctx context.Context, record any, last *usage) error {
	run := r.begin(ctx, last.pace.entry)
	run.resume(last.pace)
	if !r.policy.Budget.withdraw(1) {
		return run.runShort(0, last.pace.last, last.used)
	}
	run.passage.owed.add(r.policy.Budget, 1)
	if run.told() {
		run.about = record
	}
	run.tell(0, last.pace.last)
	last.pace.owes, last.pace.short = 1, 0
	return nil
}

// judge counts a failed attempt and returns the record's final error, or nil
// when it is to be tried again. In a mixed call other records got through, and the
// breaker begins to count anew with one failure. If the record's attempts counted
// more, an outage that began in that call would exhaust them before the breaker
// opens.
func (r *retryRun) judge(class ErrorClass, err error, mixed bool, used *int) error {
	switch class {
	case ClassSkipped:
		return err
	case ClassNotAttempted:
		if *used += countedIn(err); *used == 0 {
			return err
		}
		return &pendingError{err, r.usage(*used, 0, r.last)} // what interrupts a delivery that goes on in hand is no end of it
	case ClassPermanent:
		*used++
		return r.giveUp(ReasonPermanent, *used, err, nil)
	}
	if !mixed || *used == 0 {
		*used++
	}
	if *used >= r.policy.MaxAttempts {
		return r.giveUp(ReasonExhausted, *used, err, nil)
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

// waits reports whether a record whose wait was cut waits on with the coordinator: for the
// budget, but not during RunOnce, which returns it.
func (c *cut) waits(p *passage) bool {
	return c != nil && c.reason == ReasonBudget && p.watch != nil && !p.once
}

// plan returns the delay before the next attempt, which is one of n records, or why
// there is to be none: there is no budget for it, the deadline would pass, or the
// coordinator stops.
func (r *retryRun) plan(last error, n int) (time.Duration, *cut) {
	r.waits++
	r.short = 0
	r.delay = r.backoff.Delay(r.waits, r.delay, uniform(r.policy.Random))
	most := r.policy.MaxRetryAfter
	delay := max(r.delay, min(afterOf(last, most), most))
	stop := r.passage.stop
	for _, ctx := range [...]context.Context{r.ctx, stop} {
		if ctx.Err() != nil {
			return 0, &cut{ReasonInterrupted, causeOf(ctx)}
		}
		if deadline, ok := ctx.Deadline(); ok && deadline.Sub(r.clock.Clock.Now()) <= delay {
			if ctx == stop {
				return 0, &cut{ReasonDeadline, errEndsFirst}
			}
			return 0, &cut{ReasonDeadline, nil}
		}
	}
	if r.tooLate(delay) {
		return 0, &cut{ReasonDeadline, nil}
	}
	if !r.policy.Budget.withdraw(n) {
		return delay, &cut{ReasonBudget, nil}
	}
	r.tell(delay, last)
	return delay, nil
}

// tooLate reports whether MaxElapsed would pass in a delay.
func (r *retryRun) tooLate(delay time.Duration) bool {
	limit := r.policy.MaxElapsed
	return limit > 0 && delay > limit-r.clock.Now().Sub(r.pace.entry)
}

// tell tells of a retry that is about to be made.
func (r *retryRun) tell(delay time.Duration, last error) {
	event := RetryEvent{Records: max(1, r.several), Attempt: r.waits, Delay: delay, Err: last}
	if w := r.passage.watch; w != nil && r.about != nil {
		event.Record = w.name(r.about)
	}
	tell(r.ctx, r.policy.OnRetry, event)
	r.passage.watch.retried(r.ctx, event, r.failing())
}

// sleep waits for the next attempt, and returns why it was cut short, if it was.
func (r *retryRun) sleep(delay time.Duration, n int) *cut {
	stop := r.passage.stop
	r.worker.waits(r.owner, r.waits)
	if delay > 0 {
		var over timer
		if r.policy.MaxElapsed > 0 {
			over = r.clock.timer(delay)
		} else { // it does not matter how much has passed
			over.C = r.clock.After(delay)
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
			return &cut{ReasonInterrupted, causeOf(ctx)}
		}
	}
	r.seen = r.clock.Now()
	return nil
}

// told reports whether anybody hears of retries: to keep a record for that costs an
// allocation.
func (r *retryRun) told() bool {
	w := r.passage.watch
	return r.policy.OnRetry != nil || w != nil && (w.observer.Retried != nil || r.failing() >= w.longAfter)
}

// failing is for how long attempts have failed.
func (r *retryRun) failing() time.Duration { return r.seen.Sub(r.start) }

// maxAfter is the longest delay that a coordinator accepts from the error of a record if
// no retry has capped it.
const maxAfter = 24 * time.Hour

// afterOf returns the minimum delay that an error asks for, up to a limit, and 0 if it
// asks for none. If several errors ask, the longest delay counts. A delay after the end
// of retries is capped by the retry's policy instead of the limit.
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

// after is afterOf the errors of a call, of which there may be none.
func (v verdicts) after(limit time.Duration) (after time.Duration) {
	after = afterOf(v.whole, limit)
	for _, err := range v.each {
		after = max(after, afterOf(err, limit))
	}
	return after
}
