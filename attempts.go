package courier

import (
	"context"
	"errors"
	"slices"
	"time"
)

// This file is about attempts that outlive a call, and waits between them. When an open breaker
// interrupts the retries of a record, the attempts that it has used travel
// outwards with the error, stay with the coordinator while the record is
// pending, and come back inwards with the context of its next delivery. They
// belong to the retry that counted them: another one on the way, such as a
// user's own inside process, does not take them for its own.

// usage is how many attempts on a record a retry has used.
type usage struct {
	owner any // the retry's address
	used  int
	pace  pace // of its delays

	together bool // it was one of the failures that a call of a batch listed, and may be in another

	answers []answer // instead, of a fan-out: those of its branches

	yielded uint64 // of a keyed breaker: the open period in which the record gave way to another probe
	unmet   int    // likewise: in how many open periods in a row the record gave way and no other record came
}

// history is what the retries of a stack have used on one record: several with
// a fan-out.
type history []usage

// with adds what is known of other retries, or more of the same ones: while a
// record is pending its attempts only become more.
func (h history) with(more ...usage) history {
	for _, u := range more {
		i := slices.IndexFunc(h, func(known usage) bool { return known.owner == u.owner })
		if i < 0 {
			h = append(h, u)
			continue
		}
		h[i].used = max(h[i].used, u.used)
		h[i].together = h[i].together && u.together
		if u.pace.waits > h[i].pace.waits {
			h[i].pace = u.pace
		}
	}
	return h
}

// goesOn reports whether the history is of a delivery that goes on in hand.
func (h history) goesOn() bool {
	return slices.ContainsFunc(h, func(u usage) bool { return u.answers != nil || u.pace.waits > 0 })
}

// askedUntil returns until when a record waits while nothing is applied: for as long as a
// branch has asked for that has to, whatever others of a fan-out wait for.
func (h history) askedUntil(due time.Time, asked bool) (time.Time, bool) {
	for _, u := range h {
		for _, a := range u.answers {
			if at, waits := waitOf(a.err); waits && ownWait(a.err) && (!asked || at.After(due)) {
				due, asked = at, true
			}
		}
	}
	return due, asked
}

// alone reports whether the next call is to be for the record alone: it may have failed
// all others of its batch.
func (h history) alone() bool {
	return slices.ContainsFunc(h, func(u usage) bool { return u.answers == nil && !u.together })
}

// answered reports whether branches of a fan-out have answered in this delivery.
func (h history) answered() bool {
	return slices.ContainsFunc(h, func(u usage) bool { return u.answers != nil })
}

// of returns what some retries have used, nil where none has.
func (h history) of(owners []any) (theirs history) {
	for _, u := range h {
		if slices.Contains(owners, u.owner) {
			theirs = append(theirs, u)
		}
	}
	return theirs
}

// attempts returns the history without the answers of branches. They are told while the
// record stays in hand: one that comes again from the source by the same name or value
// may have changed since.
func (h history) attempts() (left history) {
	for _, u := range h {
		if u.answers == nil {
			left = append(left, u)
		}
	}
	return left
}

// replaced returns a copy of the history with another entry of one retry.
func (h history) replaced(with usage) history {
	h = slices.Clone(h)
	for i := range h {
		if h[i].owner == with.owner {
			h[i] = with
		}
	}
	return h
}

func (h history) by(owner any) usage {
	for _, u := range h {
		if u.owner == owner {
			return u
		}
	}
	return usage{owner: owner}
}

// pendingError is an error of class ClassNotAttempted with the attempts that a retry
// had used on the record before.
type pendingError struct {
	err   error
	usage usage
}

func (e *pendingError) Error() string      { return e.err.Error() }
func (e *pendingError) Unwrap() error      { return e.err }
func (e *pendingError) NotAttempted() bool { return true }

// historyOf returns the attempts that an error tells of. Nothing that happened
// to another record counts.
func historyOf(err error) history {
	var found history
	for err != nil {
		switch e := err.(type) {
		case *unattemptedError:
			return found
		case *pendingError:
			found = found.with(e.usage)
		case *laterError:
			if e.usage.owner != nil {
				found = found.with(e.usage)
			}
		case *askedLaterError:
			if e.usage != nil {
				found = found.with(*e.usage)
			}
		case *notCalledError:
			return found.with(e.past...)
		case *FanOutError:
			for _, f := range e.Failures {
				found = found.with(historyOf(f.Err)...)
			}
			return found
		}
		_, err = wrappedIn(err)
	}
	return found
}

// countedIn returns 1 when an error of class ClassNotAttempted was an attempt all
// the same: the one over which a breaker opened.
func countedIn(err error) int {
	for err != nil {
		switch e := err.(type) {
		case *unattemptedError, *pendingError, *laterError:
			return 0
		case *OpenError:
			if e.counted {
				return 1
			}
			return 0
		}
		_, err = wrappedIn(err)
	}
	return 0
}

type historyKey struct{}

// pastContext is a context with the histories of a delivery. It is a type of its own so
// that whoever has nothing to do with histories sees that at a glance.
type pastContext struct {
	context.Context
	past []history
}

func (c *pastContext) Value(key any) any {
	if key == (historyKey{}) {
		return c.past
	}
	return c.Context.Value(key)
}

// withHistories gives the retries what was used on the records of a delivery,
// one history for each.
func withHistories(ctx context.Context, past []history) context.Context {
	return &pastContext{ctx, past}
}

// historiesIn returns what withHistories set for a batch of n. That of another
// batch, met where user code applies one inside another, is not this one's.
func historiesIn(ctx context.Context, n int) []history {
	past, _ := ctx.Value(historyKey{}).([]history)
	if len(past) != n {
		return nil
	}
	return past
}

// shareOf returns some records of a batch, and their histories instead of the
// batch's.
func shareOf[T any](ctx context.Context, records []T, index []int) (context.Context, []T) {
	share := make([]T, len(index))
	for j, i := range index {
		share[j] = records[i]
	}
	return historiesOf(ctx, len(records), index), share
}

// historiesOf puts the histories of some records of a batch of n in the place of
// the batch's, also when there are none: those of another batch around this one,
// which happens to be as long, are not theirs.
func historiesOf(ctx context.Context, n int, index []int) context.Context {
	var past []history
	if all := historiesIn(ctx, n); all != nil {
		past = make([]history, len(index))
		for j, i := range index {
			past[j] = all[i]
		}
	}
	return withHistories(ctx, past)
}

type attemptKey struct{}

func withAttempt(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, attemptKey{}, n)
}

// AttemptFromContext returns the number of the attempt within the current delivery, for
// logs and idempotency keys. It is 1 for the first attempt, and outside a retry. In a
// batch it is the attempt of the batch.
func AttemptFromContext(ctx context.Context) int {
	if n, ok := ctx.Value(attemptKey{}).(int); ok {
		return n
	}
	return 1
}

// passage is what a coordinator gives the decorators to know on the way.
type passage struct {
	stop  context.Context // ends when the coordinator stops, while the work's own still lives (D8)
	watch *watch          // nil where there is none
	life  *lifecycle      // likewise
	once  bool            // it is RunOnce
	owed  owedRetries
}

type passageKey struct{}

func withPassage(ctx context.Context, p *passage) context.Context {
	return context.WithValue(ctx, passageKey{}, p)
}

var nowhere = passage{stop: context.Background()}

// passageOf returns what a coordinator gave along; outside of one, a stop that
// never comes and no watch.
func passageOf(ctx context.Context) *passage {
	if p, ok := ctx.Value(passageKey{}).(*passage); ok {
		return p
	}
	return &nowhere
}

// What follows is about records that wait for their next attempt while others go on.
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

// refusedOutside reports whether an error of class ClassNotAttempted came from around the
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
	short int           // how often in a row the budget was too small for it: it is not paid for
	last  error         // of the last attempt
}

// holds reports whether the coordinator keeps records that a retry wants to wait.
func (w *watch) holds(retry any) bool { return w != nil && slices.Contains(w.retries, retry) }
