package courier

import (
	"errors"
	"slices"
	"time"
)

// This file is about records that wait for their next attempt while others go on.
// Inside a coordinator a retry does not sleep: it returns a laterError, the
// coordinator keeps the record in hand, and delivers it again when it is due, with
// what the retry has to know then.

// laterError is the error of a record whose next attempt is due at a time.
type laterError struct {
	err   error
	due   time.Time // by the coordinator's clock
	usage usage     // of the retry that asks for the wait; without an owner where none does
	asked bool      // by the record's own error, see Later
}

func (e *laterError) Error() string      { return e.err.Error() }
func (e *laterError) Unwrap() error      { return e.err }
func (e *laterError) NotAttempted() bool { return true }

// Later asks that the record be tried again once d has passed, and not before: the
// destination has said that it is busy until then. Nothing was attempted: no attempt is
// counted, nothing is parked, no breaker hears of it, and the coordinator goes on with
// other records, with one worker and without an order key too. With an order key the
// later records of the key wait with it. A negative d counts as 0, and 24 hours are the
// most. Later(nil, d) is nil. An error that counts as an attempt and asks for time is
// [RetryAfter].
//
// The record waits in hand, where it takes up room, see [WithBatchSize]. It is given back
// for the time that is left when the coordinator stops, if the source is a [Releaser]; so
// is one that waits for more than 10 seconds, unless its lease is renewed ([Renewer]) or
// the source keeps a schedule of its own ([Failer]). RunOnce waits for it within the drain
// timeout. An ApplyBatch lists it in a [*BatchError], or returns it for all its records.
// Outside of a coordinator the error is returned as it is, and its class is NotAttempted.
func Later(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &askedLaterError{err: err, after: min(max(d, 0), maxAfter)}
}

type askedLaterError struct {
	err   error
	after time.Duration
	usage *usage // of the keyed breaker that asks; nil where none does, or it knows nothing of the record
}

func (e *askedLaterError) Error() string      { return e.err.Error() }
func (e *askedLaterError) Unwrap() error      { return e.err }
func (e *askedLaterError) NotAttempted() bool { return true }

// askedLater returns for how long an error asks with Later, of several in it the longest.
func askedLater(err error) (after time.Duration, asked bool) {
	for err != nil {
		if e, ok := err.(*askedLaterError); ok {
			return e.after, true
		}
		several, one := wrappedIn(err)
		for _, child := range several {
			if d, ok := askedLater(child); ok {
				after, asked = max(after, d), true
			}
		}
		if several != nil {
			return after, asked
		}
		err = one
	}
	return 0, false
}

// timed returns an error that asks with Later as one that has the time.
func timed(err error, now time.Time) error {
	if _, waits := waitOf(err); waits {
		return err
	}
	if after, asked := askedLater(err); asked {
		return &laterError{err: err, due: now.Add(after), asked: true}
	}
	return err
}

// ownWait reports whether a wait was asked for by the record's own error.
func ownWait(err error) bool {
	for err != nil {
		if e, ok := err.(*laterError); ok {
			return e.asked
		}
		_, err = wrappedIn(err)
	}
	return false
}

// waitOf says whether an error means that its record waits for its next attempt while
// others go on, and until when.
func waitOf(err error) (due time.Time, waits bool) {
	for err != nil {
		switch e := err.(type) {
		case *laterError:
			return e.due, true
		case *FanOutError: // which waits as a whole, or not at all
			return time.Time{}, false
		}
		_, err = wrappedIn(err)
	}
	return time.Time{}, false
}

// refusedOutside reports whether an error of class NotAttempted came from around the
// retry, so that what the retry has used before still counts.
func refusedOutside(err error) bool {
	var parked *ParkError
	var fan *FanOutError
	return err != nil && err != errHeldBack && !errors.As(err, &parked) && !errors.As(err, &fan)
}

// pace is how far the delays of a retry have come on one record.
type pace struct {
	waits int           // how many there were
	delay time.Duration // the last one
	start time.Time     // when the first failure was seen, by the retry's clock
	entry time.Time     // when Apply was first called, where MaxElapsed is set
	owes  int           // retries withdrawn from the budget for the attempt that is due
	last  error         // of the last attempt
}

// heldRetries returns the retries of a stack whose waits a coordinator may keep, and the
// fan-outs that they are in. One
// inside a decorator of the user's is not among them: that takes what it gets for the
// end of the retries.
func heldRetries(stack any) (found []any) {
	l, ours := stack.(layer)
	if !ours {
		return nil
	}
	if l.kind() == retrying || l.kind() == branching {
		found = append(found, l)
	}
	for _, inner := range l.next() {
		found = append(found, heldRetries(inner)...)
	}
	return found
}

// holds reports whether the coordinator keeps records that a retry wants to wait.
func (w *watch) holds(retry any) bool { return w != nil && slices.Contains(w.retries, retry) }
