package courier

import (
	"context"
	"errors"
	"time"
)

// DeadLetter is a record that could not be delivered, with its error and its history.
type DeadLetter[T any] struct {
	// ID is given by the queue and identifies the letter in its current version. When the
	// record is parked again or the letter is updated, the letter gets another ID, and
	// the old one identifies nothing.
	ID string

	// Record is the record as the source returned it, including changes that the applier
	// made through a pointer or in a map.
	Record T

	// Key is the result of [DLQPolicy].Key for the record, "" without one.
	Key string

	// Error is the error of the last attempt, with its wrappers. A durable queue returns
	// its text and type.
	Error error

	// Reason is ReasonExhausted, ReasonPermanent, ReasonKeyParked or ReasonCrashed.
	Reason Reason

	// Attempts is the number of attempts of the last failed delivery; 0 if the record was
	// parked because an earlier record of its key is parked.
	Attempts int

	// FirstFailedAt and FailedAt are the times of the first and the last failure of the
	// delivery after which the record was parked. A letter in the queue keeps its
	// FirstFailedAt if the record is parked again.
	FirstFailedAt time.Time
	FailedAt      time.Time

	// Branch is [DLQPolicy].Branch: the branch of a fan-out that failed. A letter is
	// identified by its branch and its record, because each branch owes the record.
	Branch string

	// FailedRedrives is how often [Redrive] applied the record again and it failed.
	FailedRedrives int
}

// DeadLetterSink stores the records that could not be delivered. It is all that a
// decorator needs to park them; a topic or a service that only stores letters is one. A
// queue that can also be read and changed is a [DLQ]. Send must be safe for concurrent
// use.
//
// The context of a call that parks a record, or asks for keys, does not end with a stop
// of the coordinator but some time later: see [WithDrainTimeout]. Outside a coordinator
// it ends after 10 seconds.
//
// A sink that recognizes a record when it is parked a second time should keep one letter
// of it for each branch, see Send. It may have the capabilities [KeyedDLQ], [SharedDLQ]
// and [MarkingDLQ].
type DeadLetterSink[T any] interface {
	// Send stores a record; it ignores the letter's ID. Once it has returned nil, the
	// record is marked at its source, so the letter must be as durable as the record
	// deserves. If Send returns an error, the record stays pending.
	//
	// The same record may come twice from one branch if the process died between Send and
	// the mark. A queue that recognizes it replaces the letter of this branch and record,
	// in its place and with a new ID, keeping FirstFailedAt and the larger
	// FailedRedrives. A letter whose Reason is ReasonKeyParked does not replace another,
	// because it says less. The letter of another branch for the record is another
	// letter.
	Send(ctx context.Context, letter DeadLetter[T]) error
}

// DLQ is a dead letter queue: a [DeadLetterSink] whose letters can be read, changed and
// deleted. [Letters] iterates over them and [Redrive] applies their records again. Its
// methods must be safe for concurrent use, and none waits for a letter to arrive.
type DLQ[T any] interface {
	DeadLetterSink[T]

	// Receive returns up to max of the oldest letters, in a slice that belongs to the
	// caller, and removes none. To read further letters, use List.
	Receive(ctx context.Context, max int) ([]DeadLetter[T], error)

	// List returns up to max of the letters after the letter with the given ID, in the
	// order of their places; "" is before the first. A place stays valid when its letter
	// is updated or deleted, so that a walk returns every letter that stays exactly once,
	// whatever else happens to the queue.
	List(ctx context.Context, after string, max int) ([]DeadLetter[T], error)

	// Update sets all fields but the ID, the place, the Record and the Branch of the
	// letter with this ID, atomically, and gives the letter a new ID. It does nothing if
	// no letter has the ID, and never fails because the queue is full.
	Update(ctx context.Context, letter DeadLetter[T]) error

	// Delete removes letters by ID, atomically. It ignores IDs that no letter has, so
	// that deleting by an outdated ID leaves a newer failure in place.
	Delete(ctx context.Context, ids ...string) error

	// Count returns the number of letters: the gauge to watch.
	Count(ctx context.Context) (int, error)
}

// SharedDLQ is an optional capability of a [DeadLetterSink]: it reports whether another
// value keeps its letters in the same place. Without it two queues are the same if they
// are equal. A wrapper around a queue should pass the call on.
type SharedDLQ[T any] interface {
	SameQueue(other DeadLetterSink[T]) bool
}

// MarkingDLQ is an optional capability of a [DeadLetterSink]: if MarksRecords returns
// true, Send also marks the record at its source, so that after a crash there are both
// the letter and the mark, or neither. Such a queue is for a decorator around everything
// that a coordinator applies. A fan-out refuses one in a branch, because the other
// branches may not have the record yet. A wrapper around a queue should pass the call on.
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

// KeyedDLQ is an optional capability of a [DLQ], required by [DLQPolicy].Key: ParkedKeys
// returns those of the given keys for which the queue has letters of the branch. Letters
// of another branch do not count. ParkedKeys must be safe for concurrent use and must not
// keep the slice.
type KeyedDLQ interface {
	ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error)
}

// ReasonKeyParked is the reason of a letter whose record was not applied because an
// earlier record of its key and branch is in the queue.
const ReasonKeyParked Reason = "key parked"

// ReasonCrashed is the reason of a letter that a source parked, because each process that had
// its record in hand died. A decorator parks none for it: it dies with its process.
const ReasonCrashed Reason = "crashed"

// ErrKeyParked is the error of a letter whose reason is [ReasonKeyParked].
var ErrKeyParked = errors.New("courier: not applied, because an earlier record of its key is in the dead letter queue")

// ErrDLQFull is the error of a full queue.
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
