package courier

import (
	"context"
	"time"
)

// Observer is told what a coordinator does: per batch, and per failure. Only
// RecordStarted and RecordEnded are called for every record, at a cost if they are set.
// Every function may be nil.
//
// The functions are called one at a time for a coordinator, except Renewed and Stalled,
// and except RecordStarted, RecordEnded, Retried and Parked, which its workers call. They
// delay the coordinator while they run. They may call any of its methods but Stop, which
// would wait for them, and a panic in them does no harm. Counts are of records. ctx is
// the context of the work or of the marks that the event is about, for its values.
type Observer struct {
	Fetched  func(ctx context.Context, event FetchEvent)
	Applied  func(ctx context.Context, event ApplyEvent)
	Failed   func(ctx context.Context, event FailEvent)
	Retried  func(ctx context.Context, event RetryEvent)
	Parked   func(ctx context.Context, event ParkEvent)
	Marked   func(ctx context.Context, event MarkEvent)
	Released func(ctx context.Context, event ReleaseEvent)
	Renewed  func(ctx context.Context, event RenewEvent)
	Paused   func(ctx context.Context, event PauseEvent)
	Resumed  func(ctx context.Context, event ResumeEvent)
	Stalled  func(ctx context.Context, event StallEvent)
	Stopped  func(ctx context.Context, event StopEvent)

	RecordStarted func(ctx context.Context, event RecordEvent)
	RecordEnded   func(ctx context.Context, event RecordEvent)
}

// FetchEvent is a fetch that has returned.
type FetchEvent struct {
	Records int
	Elapsed time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // after a failure: the least delay before the next fetch; 0 for RunOnce
}

// ApplyEvent is a batch, or a worker's part of a stream, that was applied as far as
// possible.
type ApplyEvent struct {
	Records       int
	Elapsed       time.Duration
	Applied       int    // or parked, or skipped: will be marked
	Failed        int    // stay pending
	Waiting       int    // will be retried while others go on; their outcome is open
	NotAttempted  int    // for another reason than a pause or a stop, or refused by the dead letter queue
	Record        string // the first that failed, was refused, or was cut short by the drain timeout
	Err           error  // of that record
	DrainTimedOut bool   // the drain timeout cut the work short
}

// FailEvent is a record that failed, or was refused, and stays pending.
type FailEvent struct {
	Record string
	Class  ErrorClass
	Err    error
}

// ParkEvent is a record that a dead letter queue has taken.
type ParkEvent struct {
	Record string // by name, "" if it has none
	Branch string // DLQPolicy.Branch
	Reason Reason
	Err    error
}

// MarkEvent is a mark that has returned.
type MarkEvent struct {
	Records int
	Elapsed time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // after a failure; 0 is never: the records will be applied again
}

// ReleaseEvent is a set of records that were given back to their source, or reported to
// it as failed.
type ReleaseEvent struct {
	Records int
	Failed  bool          // by Fail; else by Release
	After   time.Duration // the delay that was passed to Release
	Err     error         // if not nil, they come back immediately, or when their lease ends
}

// RenewEvent is a renewal of leases.
type RenewEvent struct {
	Records int
	Lost    int // to others, or by time, before they were applied
	Revoked int // lost records that were handed over in order, see ErrRevoked
	Err     error
}

// PauseEvent is a stop of the intake.
type PauseEvent struct {
	Until                   time.Time // zero: not known, or until Resume is called
	Err                     error     // why; nil if Pause was called
	Record, Branch, Breaker string    // by name: the first record that was refused, the branch of a fan-out, the breaker; "" if there is none or it is not known

	Waiting int // records in hand that wait for a retry, if no more may be in hand

	Stuck bool // every available record has failed as a probe: a long outage, or poison that cannot be told from one
}

// ResumeEvent is the end of a pause.
type ResumeEvent struct {
	Pauses int // the number of PauseEvents; a breaker causes one each time it opens, also after a probe
}

// StallEvent is a record that has been in progress for longer than [WithStallAfter], or
// the end of that. There is one event at the beginning, and one at the end.
type StallEvent struct {
	Record  string        // by name; a text that says so if it is one of several, or the first of several in one call
	Records int           // 1, or how many these several are
	Attempt int           // of this delivery: 1 is the first
	InWork  time.Duration // for at least this long
	Over    bool          // its call has returned
}

// StopEvent is the end of a run.
type StopEvent struct {
	Unsettled int // records in the *UnsettledError of a stream
	Err       error
}

// RecordEvent is one record on its way to the applier, or back.
type RecordEvent struct {
	Record  string
	Number  uint64        // of the delivery: the first record that was fetched since Start is 1; another delivery of a record has another
	Elapsed time.Duration // at its end: of its call; all records of a batch share one
	Err     error         // at its end, nil if it was applied
}

// teeObservers returns an observer that calls all others, in order.
func teeObservers(observers ...Observer) Observer {
	return Observer{
		Fetched:  teed(observers, func(o Observer) func(context.Context, FetchEvent) { return o.Fetched }),
		Applied:  teed(observers, func(o Observer) func(context.Context, ApplyEvent) { return o.Applied }),
		Failed:   teed(observers, func(o Observer) func(context.Context, FailEvent) { return o.Failed }),
		Retried:  teed(observers, func(o Observer) func(context.Context, RetryEvent) { return o.Retried }),
		Parked:   teed(observers, func(o Observer) func(context.Context, ParkEvent) { return o.Parked }),
		Marked:   teed(observers, func(o Observer) func(context.Context, MarkEvent) { return o.Marked }),
		Released: teed(observers, func(o Observer) func(context.Context, ReleaseEvent) { return o.Released }),
		Renewed:  teed(observers, func(o Observer) func(context.Context, RenewEvent) { return o.Renewed }),
		Paused:   teed(observers, func(o Observer) func(context.Context, PauseEvent) { return o.Paused }),
		Resumed:  teed(observers, func(o Observer) func(context.Context, ResumeEvent) { return o.Resumed }),
		Stalled:  teed(observers, func(o Observer) func(context.Context, StallEvent) { return o.Stalled }),
		Stopped:  teed(observers, func(o Observer) func(context.Context, StopEvent) { return o.Stopped }),

		RecordStarted: teed(observers, func(o Observer) func(context.Context, RecordEvent) { return o.RecordStarted }),
		RecordEnded:   teed(observers, func(o Observer) func(context.Context, RecordEvent) { return o.RecordEnded }),
	}
}

// teed joins the functions that are set, none to nil, so that an event without an
// observer costs nothing.
func teed[E any](observers []Observer, of func(Observer) func(context.Context, E)) func(context.Context, E) {
	var all []func(context.Context, E)
	for _, o := range observers {
		if f := of(o); f != nil {
			all = append(all, f)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return func(ctx context.Context, event E) {
		for _, f := range all {
			tell(ctx, f, event)
		}
	}
}

// tell calls an observer's function if there is one.
func tell[E any](ctx context.Context, f func(context.Context, E), event E) {
	if f != nil { // apart: an event that nobody wants is not to be allocated
		tellOf(ctx, f, event)
	}
}

// tellOf calls an observer's function on a new goroutine, so that a panic or a Goexit in
// it does no harm.
func tellOf[E any](ctx context.Context, f func(context.Context, E), event E) {
	var ignored error
	isolate(&ignored, func() error {
		f(ctx, event)
		return nil
	})
}
