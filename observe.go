package courier

import (
	"context"
	"time"
)

// Observer is told what a coordinator does: per batch, and per failure. Only
// RecordStarted and RecordEnded are called for every record, and cost
// something, when they are set. Every function may be nil.
//
// The functions are called one at a time for a coordinator; RecordStarted,
// RecordEnded, Retried and Parked, which its workers call, Renewed and Stalled excepted.
// They delay the coordinator for as long as they run, may call any of its methods
// but Stop, which would wait for them, and do no harm when they panic. Counts are
// of records. ctx is that of the work or of the settling that the event is about,
// for its values.
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
	Took    time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // when it did not: at the soonest; 0 for RunOnce, which fetches once
}

// ApplyEvent is a batch, or a worker's share of a stream, that was applied as
// far as it could be.
type ApplyEvent struct {
	Records   int
	Took      time.Duration
	Applied   int    // or parked, or skipped: to be marked
	Failed    int    // and stay pending
	Waiting   int    // and are tried again while others go on: nothing is decided of them yet
	Refused   int    // not attempted for a reason that is not a pause or a stop, or refused by the dead letter queue
	Record    string // the first that failed, or was refused, or was cut short by the drain timeout
	Err       error  // of that one
	DrainOver bool   // the drain timeout cut the work short
}

// FailEvent is a record that failed, or was refused, and stays pending.
type FailEvent struct {
	Record string
	Class  Class
	Err    error
}

// ParkEvent is a record that a dead letter queue has taken.
type ParkEvent struct {
	Record string // by name, "" where it has none
	Branch string // DLQPolicy.Branch
	Reason Reason
	Err    error
}

// MarkEvent is a mark that has returned.
type MarkEvent struct {
	Records int
	Took    time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // when it did not; 0 is never: the records will be applied again
}

// ReleaseEvent is records that were given back to their source, or reported to
// it as failed.
type ReleaseEvent struct {
	Records int
	Failed  bool          // by Fail; else by Release
	After   time.Duration // when they are to come again, by Release
	Err     error         // they come back when their lease ends
}

// RenewEvent is leases that were to be renewed.
type RenewEvent struct {
	Records int
	Lost    int // to others, or to time, before they were applied
	Err     error
}

// PauseEvent is a stop of the intake.
type PauseEvent struct {
	Until                   time.Time // zero: not known, or until Resume is called
	Err                     error     // why; nil when Pause was called
	Record, Branch, Breaker string    // over which, by name: the first record that was refused, the branch of a fan-out, the breaker; "" where there is none or it is not known

	Waiting int // records in hand that wait to be tried again, where they are all that may be in hand

	Stuck bool // every record at hand has failed as a probe before: a long outage, or poison that nothing can tell from one
}

// ResumeEvent is the end of a pause.
type ResumeEvent struct {
	Pauses int // that it took: the events of them. Of a breaker there is one for each time that it opened, also after a probe
}

// StallEvent is a record that has been in work for longer than [WithStallAfter], or the
// end of that. There is one at the beginning, and one at the end.
type StallEvent struct {
	Record  string        // by name; where it is one of several, or the first of several in one call, a text that says so
	Records int           // 1, or how many these are
	Attempt int           // of this delivery: 1 is the first
	InWork  time.Duration // for how long at least
	Over    bool          // its call has returned
}

// StopEvent is the end of a run.
type StopEvent struct {
	Unsettled int // records that the stream hands back by its error
	Err       error
}

// RecordEvent is one record on its way to the applier, or back.
type RecordEvent struct {
	Record string
	Took   time.Duration // at its end: of its call, which is that of all in a batch
	Err    error         // at its end, nil when it was applied
}

// TeeObservers returns an observer that tells all others, in their order.
func TeeObservers(observers ...Observer) Observer {
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

// teed joins the functions that are set, none to nil, so that an event nobody
// asked for stays free.
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

// tellOf does so on a goroutine of its own: a panic or a Goexit in the function
// does no harm.
func tellOf[E any](ctx context.Context, f func(context.Context, E), event E) {
	var ignored error
	isolate(&ignored, func() error {
		f(ctx, event)
		return nil
	})
}
