package courier

import (
	"context"
	"errors"
	"time"
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

	// Reason is ReasonExhausted, ReasonPermanent or ReasonKeyParked.
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

	// FailedRedrives is how often [Redrive] applied the record again in vain.
	FailedRedrives int
}

// DeadLetterSink takes the records that were given up. It is all that a decorator
// needs to park them; a topic or a service that only stores them is one. A queue that
// can be read and changed too is a [DLQ]. Send must be safe for concurrent use.
//
// The context of a call that parks a record, or asks for keys, does not end with a
// stop of the coordinator but some time after: see [WithDrainTimeout]. Outside of a
// coordinator it ends after 10 seconds.
//
// A sink that knows a record again when it is parked a second time should keep
// one letter of it for each branch, see Send. It may have the capabilities
// [KeyedDLQ], [SharedDLQ] and [MarkingDLQ].
type DeadLetterSink[T any] interface {
	// Send takes a record over, whatever the letter's ID says. Once it has
	// returned nil the record is marked at its source, so the letter must be as
	// durable as the record deserves. A queue that cannot take it returns an
	// error, and the record stays pending.
	//
	// The same record may come twice from one branch, when the process died
	// between Send and the mark. A queue that can tell replaces the letter of this
	// branch and record, in its place, with a new ID, keeping FirstFailedAt and the
	// larger FailedRedrives; a letter whose Reason is ReasonKeyParked does not replace one, as
	// it knows less. Another branch's letter of the record is another letter.
	Send(ctx context.Context, letter DeadLetter[T]) error
}

// DLQ is a dead letter queue: a [DeadLetterSink] whose letters can be read, changed
// and deleted. [Letters] iterates over them and [Redrive] applies their records again.
// Its methods must be safe for concurrent use, and none waits for a letter to come.
type DLQ[T any] interface {
	DeadLetterSink[T]

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

// SharedDLQ is an optional capability of a [DeadLetterSink]: it tells whether another value
// keeps its letters in the same place. Without it two queues are the same when
// they are equal. A wrapper around a queue should pass the question on.
type SharedDLQ[T any] interface {
	SameQueue(other DeadLetterSink[T]) bool
}

// MarkingDLQ is an optional capability of a [DeadLetterSink]: where MarksRecords is true,
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

// KeyedDLQ is an optional capability of a [DLQ], which [DLQPolicy].Key needs: it
// tells which of the given keys are those of letters of a branch in the queue.
// Letters of another branch park no key of this one. ParkedKeys must be safe for
// concurrent use and must not keep the slice.
type KeyedDLQ interface {
	ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error)
}

// ReasonKeyParked is the reason of a letter whose record was not applied because an
// earlier one of its key and branch is in the queue.
const ReasonKeyParked Reason = "key parked"

// ErrKeyParked is the error of a letter whose reason is [ReasonKeyParked].
var ErrKeyParked = errors.New("courier: not applied, because an earlier record of its key is in the dead letter queue")

// ErrDLQFull is what a full queue refuses with.
var ErrDLQFull = errors.New("courier: the dead letter queue is full")

// failed enters what a failed delivery says. A first failure that is known
// already stays.
func (l *DeadLetter[T]) failed(ctx context.Context, err error, now time.Time) {
	l.Error, l.Reason, l.Attempts, l.FailedAt = err, ReasonExhausted, attemptsOf(err), now
	if classify(ctx, err) == ClassPermanent {
		l.Reason = ReasonPermanent
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
