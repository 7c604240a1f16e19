package courier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// DeadLetter is a record that was given up, and what is known of it.
type DeadLetter[T any] struct {
	// ID is given by the queue and names the letter as it is now: once the
	// record was parked again or the letter updated, the letter has another ID,
	// and the old one names nothing.
	ID string

	// Record is the record as the source handed it out, with what the applier has
	// changed behind a pointer or in a map.
	Record T

	// Key is what [DLQPolicy].Key returned for the record, "" without one.
	Key string

	// Error is the last attempt's, with its wrappers. A durable queue gives it
	// back as text and type.
	Error error

	// Reason is Exhausted, PermanentFailure or KeyParked.
	Reason Reason

	// Attempts is how many the delivery made that failed last; 0 when the record
	// was parked behind another one of its key.
	Attempts int

	// FirstFailedAt and FailedAt are the times of the first and the last failure of
	// the delivery after which the record was parked. A letter in the queue keeps its
	// FirstFailedAt when the record is parked again.
	FirstFailedAt time.Time
	FailedAt      time.Time

	// Branch is [DLQPolicy].Branch: the branch of a fan-out that failed. A letter
	// is known by its branch and its record: each branch owes the record.
	Branch string

	// Redriven is how often [Redrive] applied the record again in vain.
	Redriven int

	_ struct{}
}

// DLQ is a dead letter queue: where records wait that were given up. [Letters]
// walks through one and [Redrive] applies its records again. Its methods must
// be safe for concurrent use, and none waits for a letter to come.
//
// The context of a call that parks a record, or asks for keys, does not end with a
// stop of the coordinator but some time after: see [WithDrainTimeout]. Outside of a
// coordinator it ends after 10 seconds.
//
// A queue that knows a record again when it is parked a second time should keep
// one letter of it for each branch, see Send, and may have the capabilities
// [KeyedDLQ], [SharedDLQ] and [MarkingDLQ].
type DLQ[T any] interface {
	// Send takes a record over, whatever the letter's ID says. Once it has
	// returned nil the record is marked at its source, so the letter must be as
	// durable as the record deserves. A queue that cannot take it returns an
	// error, and the record stays pending.
	//
	// The same record may come twice from one branch, when the process died
	// between Send and the mark. A queue that can tell replaces the letter of this
	// branch and record, in its place, with a new ID, keeping FirstFailedAt and the
	// larger Redriven; a letter whose Reason is KeyParked does not replace one, as
	// it knows less. Another branch's letter of the record is another letter.
	Send(ctx context.Context, letter DeadLetter[T]) error

	// Receive returns up to max of the oldest letters, in a slice of the
	// caller's own, and removes none. To see past them, use List.
	Receive(ctx context.Context, max int) ([]DeadLetter[T], error)

	// List returns up to max of the letters behind the one with the given ID, in
	// the order of their places; "" is before the first. A place keeps its
	// meaning when its letter was updated or deleted since, so that a walk meets
	// every letter that stays exactly once, whatever else happens to the queue.
	List(ctx context.Context, after string, max int) ([]DeadLetter[T], error)

	// Update sets all but the ID, the place, the Record and the Branch of the
	// letter with this ID, which gets a new one, at once or not at all. It does
	// nothing when no letter has the ID, and never refuses because the queue is
	// full.
	Update(ctx context.Context, letter DeadLetter[T]) error

	// Delete removes letters by ID, at once or not at all. IDs that no letter has
	// are passed over: deleting by an ID that is out of date leaves the newer
	// failure alone.
	Delete(ctx context.Context, ids ...string) error

	// Count returns how many letters there are: the gauge to watch.
	Count(ctx context.Context) (int, error)
}

// SharedDLQ is an optional capability of a [DLQ]: it tells whether another value
// keeps its letters in the same place. Without it two queues are the same when
// they are equal. A wrapper around a queue should pass the question on.
type SharedDLQ[T any] interface {
	SameQueue(other DLQ[T]) bool
}

// MarkingDLQ is an optional capability of a [DLQ]: where MarksRecords is true,
// Send marks the record at its source as well, so that a crash finds both the
// letter and the mark or neither. Such a queue is for a decorator around all
// that a coordinator applies. A fan-out refuses one in a branch, as the other
// branches may not have the record yet. A wrapper around a queue should pass
// the question on.
type MarkingDLQ interface {
	MarksRecords() bool
}

func marksRecords(queue any) (marks bool) {
	m, ok := queue.(MarkingDLQ)
	if !ok || isNil(queue) {
		return false
	}
	marks = true // what does not say so may
	var ignored error
	isolate(&ignored, func() error { marks = m.MarksRecords(); return nil })
	return marks
}

// ErrDLQFull is what a full queue refuses with.
var ErrDLQFull = errors.New("courier: the dead letter queue is full")

// ErrPark is what every [*ParkError] is, to errors.Is.
var ErrPark = errors.New("courier: the dead letter queue did not take a record")

// ParkError says that a record failed for good and that the dead letter queue
// refused it. Its class is NotAttempted: the record stays pending, and its
// coordinator backs off.
type ParkError struct {
	Err   error // the record's
	Store error // the queue's, or a *ParkRateError
}

func (e *ParkError) Error() string {
	return fmt.Sprintf("courier: the dead letter queue did not take a record (%v), which stays pending; the record's error: %v", e.Store, e.Err)
}

// Is reports whether err is [ErrPark].
func (e *ParkError) Is(err error) bool { return err == ErrPark }

// Unwrap returns both errors.
func (e *ParkError) Unwrap() []error { return []error{e.Err, e.Store} }

// NotAttempted reports true.
func (e *ParkError) NotAttempted() bool { return true }

// DLQPolicy says how records are parked. The zero value is the default. A
// policy is copied when it is given to a decorator.
type DLQPolicy[T any] struct {
	// Branch names the branch of a fan-out whose failures these are. It is kept
	// with the letters, each of which is known by its branch and its record:
	// branches that share a queue need names that differ. It is valid UTF-8
	// without NUL. "", the default, is for a decorator outside of all fan-outs.
	Branch string

	// Key is for destinations that must get the records of one key in order:
	// while one of a key is parked, the later ones of that key are parked behind
	// it, unapplied, with [KeyParked] as the reason, until the letters of the key
	// are deleted or redriven. Letters of other branches park nothing here.
	// Records whose key is "" are in no order. nil, the default, is off. The
	// queue must be a [KeyedDLQ], and is asked once a record or batch. Key must
	// be safe for concurrent use and always return the same for a record.
	//
	// The order is by what the queue holds. It cannot be kept against a source
	// that hands records of a key out of order, or a coordinator that applies two
	// of them at once; nor while the queue refuses the record that would be the
	// first of its key there, which stays pending as any record does.
	Key func(record T) string

	// OnPark is called after a record was parked, with the letter as it was sent.
	// It delays the pipeline while it runs; a panic in it does no harm. nil is
	// none.
	OnPark func(ctx context.Context, letter DeadLetter[T])

	// The guard against draining a source into the queue: when at least MinParked
	// of the last ParkWindow records that were applied or parked were parked, and
	// they are more than the share MaxParkRate, nothing more is parked for
	// ParkPause. What fails then stays pending with a [*ParkRateError], over which
	// the coordinator pauses; after it the count begins anew. Records parked
	// behind others of their key do not count.
	//
	// MaxParkRate is between 0 and 1, 0 is 0.5; [AnyParkRate] switches the guard
	// off. ParkWindow 0 is 100, MinParked 0 is 20 or ParkWindow where that is
	// less, ParkPause 0 is a minute.
	MaxParkRate float64
	ParkWindow  int
	MinParked   int
	ParkPause   time.Duration

	// Clock is nil for the system's clock.
	Clock Clock

	_ struct{}
}

func (p DLQPolicy[T]) withDefaults() DLQPolicy[T] {
	p.MaxParkRate = or(p.MaxParkRate, 0.5)
	p.ParkWindow = or(p.ParkWindow, 100)
	p.MinParked = or(p.MinParked, min(20, p.ParkWindow))
	p.ParkPause = or(p.ParkPause, time.Minute)
	p.Clock = clockOr(p.Clock)
	return p
}

func (p DLQPolicy[T]) validate(queue DLQ[T]) error {
	d := p.withDefaults()
	switch {
	case math.IsNaN(p.MaxParkRate) || p.MaxParkRate < 0 || p.MaxParkRate > 1:
		return &ConfigError{"DLQPolicy.MaxParkRate", fmt.Sprintf("is %v: want a share between 0 and 1, courier.AnyParkRate, or 0 for the default", p.MaxParkRate)}
	case p.ParkWindow < 0:
		return &ConfigError{"DLQPolicy.ParkWindow", fmt.Sprintf("is %d: want at least 1, or 0 for the default", p.ParkWindow)}
	case p.MinParked < 0 || d.MinParked > d.ParkWindow:
		return &ConfigError{"DLQPolicy.MinParked", fmt.Sprintf("is %d: want from 1 to ParkWindow (%d), or 0 for the default", p.MinParked, d.ParkWindow)}
	case p.ParkPause < 0:
		return &ConfigError{"DLQPolicy.ParkPause", fmt.Sprintf("is %v: want more than 0, or 0 for the default", p.ParkPause)}
	case !utf8.ValidString(p.Branch) || strings.Contains(p.Branch, "\x00"):
		return &ConfigError{"DLQPolicy.Branch", fmt.Sprintf("is %q: want valid UTF-8 without NUL, which every queue can keep apart", p.Branch)}
	}
	if _, keyed := queue.(KeyedDLQ); p.Key != nil && !keyed {
		return &ConfigError{"DLQPolicy.Key", fmt.Sprintf("cannot be used with a %T, which does not tell what keys it holds: give the queue the method ParkedKeys of courier.KeyedDLQ", queue)}
	}
	return clockFault("DLQPolicy.Clock", p.Clock)
}

// sendTimeout bounds a call of the dead letter queue, which does not end with
// the context of the apply: a stop must not lose a hand-over half done. See
// detached for what a coordinator makes of it.
const sendTimeout = 10 * time.Second

// WithDLQ parks the records that an applier fails, in a [MemoryDLQ] of the
// default capacity. What the applier returns is final here: put retries inside,
// as [ResilientApplier] does.
func WithDLQ[T any](applier Applier[T]) (Applier[T], DLQ[T]) {
	queue := NewMemoryDLQ[T](0)
	return newDLQApplier(applier, DLQ[T](queue), DLQPolicy[T]{}, true), queue
}

// NewDLQApplier parks the records that an applier fails in a queue, by the
// default [DLQPolicy]. Apply returns nil when the record is applied or parked,
// so that it is marked, and a [*ParkError] when it was not taken. What is
// NotAttempted is never parked and returned as it came. A panic of the applier
// is a failure as any other. Around another dead letter queue it is refused, unless
// that is in a branch of a fan-out. The result is as safe for concurrent use as the
// applier.
func NewDLQApplier[T any](applier Applier[T], queue DLQ[T]) Applier[T] {
	return NewDLQApplierWith(applier, queue, DLQPolicy[T]{})
}

// NewDLQApplierWith is [NewDLQApplier] with a policy.
func NewDLQApplierWith[T any](applier Applier[T], queue DLQ[T], policy DLQPolicy[T]) Applier[T] {
	return newDLQApplier(applier, queue, policy, false)
}

func newDLQApplier[T any](applier Applier[T], queue DLQ[T], policy DLQPolicy[T], own bool) Applier[T] {
	fault := configErrorOf("dlq", queue)
	if fault == nil {
		fault = policy.validate(queue)
	}
	p := policy.withDefaults()
	d := &dlqApplier[T]{stage: newStage(parking, applier, fault), queue: queue, policy: p, guard: newParkGuard(&p), own: own}
	if p.Key != nil {
		d.keys, _ = queue.(KeyedDLQ)
	}
	return d
}

type dlqApplier[T any] struct {
	stage[T]
	queue  DLQ[T]
	policy DLQPolicy[T]
	guard  *parkGuard
	keys   KeyedDLQ // nil without a Key
	own    bool     // the queue is a MemoryDLQ that nobody has asked for
}

func (d *dlqApplier[T]) deadLetters() any       { return d.queue }
func (d *dlqApplier[T]) ownsQueue() bool        { return d.own }
func (d *dlqApplier[T]) branchName() string     { return d.policy.Branch }
func (d *dlqApplier[T]) parksIn(queue any) bool { return sameQueue(d.queue, queue) }

func (d *dlqApplier[T]) clocks() []*steady {
	if d.guard == nil {
		return nil
	}
	return []*steady{d.guard.clock}
}

func (d *dlqApplier[T]) Apply(ctx context.Context, record T) error {
	switch {
	case d.fault != nil || ctx == nil:
		return d.refuse(ctx)
	case d.keys != nil:
		return d.applyKeyed(ctx, record)
	}
	return d.deliver(ctx, record, "")
}

// deliver applies a record, and parks what is the queue's.
func (d *dlqApplier[T]) deliver(ctx context.Context, record T, key string) error {
	return d.delivered(ctx, record, key, d.attempt(ctx, record))
}

func (d *dlqApplier[T]) delivered(ctx context.Context, record T, key string, err error) error {
	if err == nil || classify(ctx, err) == Skipped {
		d.guard.applied(1)
		return err
	}
	return d.settle(ctx, record, key, err)
}

func (d *dlqApplier[T]) resume(ctx context.Context, record T, exit error) error {
	err := resumed(ctx, d.inner, record, exit)
	key := ""
	if d.keys != nil {
		var unkeyed error
		if key, unkeyed = d.keyOf(record); unkeyed != nil {
			return d.settle(ctx, record, "", unkeyed)
		}
	}
	return d.delivered(ctx, record, key, err)
}

func (d *dlqApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	switch {
	case d.fault != nil || ctx == nil:
		return d.refuse(ctx)
	case d.batch == nil:
		return applyEach(ctx, Applier[T](d), records)
	case d.keys != nil:
		return d.applyBatchKeyed(ctx, records)
	}
	err := applyIsolated(ctx, d.batch, records, d.order)
	if err == nil {
		d.guard.applied(len(records))
		return nil
	}
	errs := make([]error, len(records))
	spread(err, errs)
	d.guard.applied(settledIn(ctx, errs)) // before the failures: they are a share of these
	var hung hungQueue
	for i, err := range errs {
		if err == nil {
			continue
		}
		errs[i] = hung.settle(ctx, err, func() error { return d.settle(ctx, records[i], "", err) })
	}
	return gather(errs)
}

// hungQueue remembers, for the length of a batch, that the queue does not
// answer, so that it is not asked once more for every record: a stop could not
// wait for that.
type hungQueue struct{ err error }

func (h *hungQueue) settle(ctx context.Context, err error, settle func() error) error {
	if h.err != nil && (err == ErrKeyParked || parks(ctx, err)) {
		return &ParkError{Err: err, Store: h.err}
	}
	err = settle()
	if refused, ok := err.(*ParkError); ok && (errors.Is(refused.Store, context.DeadlineExceeded) || errors.Is(refused.Store, ErrDrainTimeout)) {
		h.err = refused.Store
	}
	return err
}

// settledIn counts the records of a batch that are applied or skipped.
func settledIn(ctx context.Context, errs []error) (n int) {
	for _, err := range errs {
		if err == nil || classify(ctx, err) == Skipped {
			n++
		}
	}
	return n
}

// parks reports whether a failed record is the queue's.
func parks(ctx context.Context, err error) bool {
	class := classify(ctx, err)
	return class == Retryable || class == PermanentClass
}

// settle parks a failed record, or says why it stays pending.
func (d *dlqApplier[T]) settle(ctx context.Context, record T, key string, err error) error {
	switch {
	case !parks(ctx, err):
		return err
	case redriveOf(ctx, d.queue):
		return errRedriveLoop(err)
	}
	letter := DeadLetter[T]{Record: record, Key: key, Branch: d.policy.Branch}
	letter.failed(ctx, err, d.policy.Clock.Now())
	return d.park(ctx, letter)
}

// failed enters what a failed delivery says. A first failure that is known
// already stays.
func (l *DeadLetter[T]) failed(ctx context.Context, err error, now time.Time) {
	l.Error, l.Reason, l.Attempts, l.FailedAt = err, Exhausted, attemptsOf(err), now
	if classify(ctx, err) == PermanentClass {
		l.Reason = PermanentFailure
	}
	first := now
	if retried := retriesIn(err); retried != nil {
		first = now.Add(-max(0, retried.Elapsed))
	}
	if l.FirstFailedAt.IsZero() {
		l.FirstFailedAt = first
	}
}

// retriesIn returns the end of the retries that an error tells of, nil when it
// tells of none.
func retriesIn(err error) *RetryError {
	if e, ok := err.(*RetryError); ok {
		return e
	}
	several, one := wrappedIn(err)
	if one != nil {
		return retriesIn(one)
	}
	for _, child := range several {
		if e := retriesIn(child); e != nil {
			return e
		}
	}
	return nil
}

// attemptsOf returns how many attempts a failure is the end of.
func attemptsOf(err error) int {
	if retried := retriesIn(err); retried != nil {
		return retried.Attempts
	}
	return 1
}

// park hands a letter over.
func (d *dlqApplier[T]) park(ctx context.Context, letter DeadLetter[T]) error {
	behind := letter.Reason == KeyParked
	if refusal := d.guard.ask(behind); refusal != nil {
		return &ParkError{Err: letter.Error, Store: refusal}
	}
	refusal := detached(ctx, d.policy.Clock, func(ctx context.Context) error { return d.queue.Send(ctx, letter) })
	if refusal != nil {
		d.guard.undo(behind)
		return &ParkError{Err: letter.Error, Store: refusal}
	}
	if !behind {
		d.guard.applied(1)
	}
	passageOf(ctx).watch.parked(ctx, letter.Record, ParkEvent{Branch: letter.Branch, Reason: letter.Reason, Err: letter.Error})
	if d.policy.OnPark != nil {
		var ignored error
		isolate(&ignored, func() error {
			d.policy.OnPark(ctx, letter)
			return nil
		})
	}
	return nil
}

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
