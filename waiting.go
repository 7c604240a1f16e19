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
}

func (e *laterError) Error() string      { return e.err.Error() }
func (e *laterError) Unwrap() error      { return e.err }
func (e *laterError) NotAttempted() bool { return true }

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
	return err != nil && err != errHeldBack && !errors.As(err, &parked)
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
