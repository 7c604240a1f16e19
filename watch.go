package courier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// watch is where a coordinator keeps account of what it does: for its observer,
// for Stats and for Ready. It outlives a run.
type watch struct {
	log      *slogObserver
	observer Observer // of the user's
	clock    *steady
	name     func(record any) string // for people; empty where it has none
	branches map[*Breaker]string     // of the breakers of the stack that are in one
	retries  []any                   // whose waits the coordinator keeps, see holds
	count    counters
	// Of the coordinator's own goroutine.
	pauses int           // since the last was over
	closed [reasons]bool // which are not over
	gated  bool          // by a breaker of the stack
	until  time.Time     // of the last event over a breaker
	hidden int           // passes in a row in which all records of a full batch failed

	mu        sync.Mutex
	lastErr   error
	lastErrAt time.Time
	fetchErr  error // of the last fetch
	markErr   error // of the last mark
	still     [reasons]standstill
	waiting   int       // records in hand between two attempts
	nextDue   time.Time // of the first of them, by the steady clock
	fetching  underway  // by a polling coordinator: that of a stream waits for records
	settling  underway
	settledAt time.Time    // when the last one began
	cycle     atomic.Int64 // how long that was after the one before
	stalls    *stalls      // of the run; nil while there is none
}

// reason is why the intake stops. Each ends by itself.
type reason uint8

const (
	byRefusal reason = iota // records can be settled nowhere, until others are
	byBreaker
	byFullHand
	byPause
	reasons
)

// standstill is why nothing is fetched or settled for now, or none.
type standstill struct {
	err   error
	until time.Time // of the steady time; zero until somebody says that it is over
}

// underway is a call of the source that has not returned, or none.
type underway struct {
	what  string
	began time.Time
}

// overdue is how long a call of the source may take before Ready tells of it.
const overdue = time.Minute

// begins notes a call of the source, and ends that it has returned.
func (w *watch) begins(call *underway, what string) {
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	*call = underway{what, now}
	if call == &w.settling {
		w.cycle.Store(int64(now.Sub(w.settledAt)))
		w.settledAt = now
	}
}

func (w *watch) ends(call *underway) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*call = underway{}
}

// fetches reports whether a fetch of a polling coordinator is under way.
func (w *watch) fetches() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetching.what != ""
}

// slow reports whether so many records take long enough, in all, that to write down
// each of them costs nothing next to it.
func (w *watch) slow(records int) bool {
	return time.Duration(w.cycle.Load()) >= time.Duration(records)*time.Microsecond
}

// hangs returns which call of the source is overdue, nil if none is.
func (w *watch) hangs() error {
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, call := range [...]underway{w.settling, w.fetching} {
		if took := now.Sub(call.began); call.what != "" && took >= overdue {
			return fmt.Errorf("courier: the source has not answered a %s for %v", call.what, took.Round(time.Second))
		}
	}
	return nil
}

// counters are since the coordinator was made.
type counters struct {
	fetched, applied, failed, skipped, retried, parked, released, marked atomic.Int64
	fetchFailures, markFailures, duplicatesAvoided                       atomic.Int64
	inHand                                                               atomic.Int64
}

func newWatch(c *config, name func(any) string) *watch {
	w := &watch{name: name, clock: c.clock, log: newSlogObserver(c.logger, c.clock, c.interval), observer: TeeObservers(c.observers...)}
	w.cycle.Store(math.MaxInt64)
	return w
}

// perRecord reports whether somebody wants to know of every record.
func (w *watch) perRecord() bool {
	return w.observer.RecordStarted != nil || w.observer.RecordEnded != nil
}

// since tells how long something took, where anybody wants to know.
func (w *watch) since(asked bool, began time.Time) time.Duration {
	if !asked {
		return 0
	}
	return w.clock.Now().Sub(began)
}

func (w *watch) now(asked bool) (t time.Time) {
	if asked {
		t = w.clock.Now()
	}
	return t
}

func (w *watch) trouble(slot *error, err error) {
	now := w.clock.Clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if slot != nil {
		*slot = err
	}
	w.lastErr, w.lastErrAt = err, now
}

func (w *watch) well(slot *error) {
	w.mu.Lock()
	*slot = nil
	w.mu.Unlock()
}

// stands notes that the coordinator stands still, and moves that it does not for this
// reason any more.
func (w *watch) stands(why reason, err error, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.still[why] = standstill{err, until}
}

func (w *watch) moves(why reason) { w.stands(why, nil, time.Time{}) }

// waits notes how many records wait in hand, and when the first of them is due.
func (w *watch) waits(n int, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting, w.nextDue = n, next
}

// standstill returns why the coordinator stands still, nil if it does not.
func (w *watch) standstill() error {
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for why, s := range w.still {
		switch {
		case s.err == nil:
		case reason(why) == byRefusal:
			// While it is tried again nobody knows; a while later it has gone elsewhere.
			if w.count.inHand.Load() > 0 || now.Before(s.until.Add(forgotten)) {
				return fmt.Errorf("courier: a record could not be settled, and none has been since: %w", s.err)
			}
		case s.until.IsZero() || now.Before(s.until):
			return fmt.Errorf("courier: nothing is fetched for now: %w", s.err)
		}
	}
	return nil
}

// forgotten is how long after its time a record that was refused may have come again.
const forgotten = time.Minute

// fetched tells of a fetch, of which the records are counted as in hand since it
// ended. The error of one that was cancelled tells of that, and
// it has not succeeded either.
func (w *watch) fetched(ctx context.Context, event FetchEvent, cancelled bool) {
	w.count.fetched.Add(int64(event.Records))
	switch {
	case cancelled:
		if event.Err = nil; event.Records == 0 {
			return
		}
	case event.Err != nil:
		w.count.fetchFailures.Add(1)
		w.trouble(&w.fetchErr, event.Err)
	default:
		w.well(&w.fetchErr)
	}
	w.log.fetched(ctx, event)
	tell(ctx, w.observer.Fetched, event)
}

func (w *watch) applied(ctx context.Context, event ApplyEvent) {
	w.count.applied.Add(int64(event.Applied))
	w.count.failed.Add(int64(event.Failed))
	if event.Err != nil {
		w.trouble(nil, event.Err)
	}
	w.log.applied(ctx, event)
	tell(ctx, w.observer.Applied, event)
}

func (w *watch) marked(ctx context.Context, event MarkEvent, tries int) {
	if event.Err != nil {
		w.count.markFailures.Add(1)
		w.trouble(&w.markErr, event.Err)
	} else {
		w.count.marked.Add(int64(event.Records))
		w.count.inHand.Add(-int64(event.Records))
		if tries > 0 {
			w.count.duplicatesAvoided.Add(int64(event.Records))
		}
		w.well(&w.markErr)
	}
	w.log.marked(ctx, event)
	tell(ctx, w.observer.Marked, event)
}

func (w *watch) released(ctx context.Context, event ReleaseEvent) {
	w.count.released.Add(int64(event.Records))
	w.count.inHand.Add(-int64(event.Records))
	w.log.released(ctx, event)
	tell(ctx, w.observer.Released, event)
}

func (w *watch) failed(ctx context.Context, event FailEvent) { tell(ctx, w.observer.Failed, event) }

// renewed tells of a renewal. That only records are gone which are being marked is
// no error.
func (w *watch) renewed(ctx context.Context, records, lost int, err error) {
	event := RenewEvent{Records: records, Lost: lost, Err: err}
	if _, listed := batchErrorIn(err); listed && lost == 0 {
		event.Err = nil
	}
	w.log.renewed(ctx, event)
	tell(ctx, w.observer.Renewed, event)
}

// paused tells of a stop of the intake, by Pause or by a breaker, and resumed of the
// end of the last of them. A pause that goes on is told once: until there is another
// time to wait for, or another reason to. Ready asks some itself: a breaker of the
// stack, and Pause.
func (w *watch) paused(ctx context.Context, why reason, event PauseEvent, asked bool) {
	if !asked {
		w.stands(why, event.Err, w.clock.of(event.Until))
	}
	if why == byBreaker {
		goesOn := w.closed[why] && w.gated == asked &&
			(event.Until.Equal(w.until) || !event.Until.IsZero() && !w.clock.Clock.Now().Before(event.Until))
		if w.gated = asked; goesOn {
			return
		}
		w.until = event.Until
		if !errors.Is(event.Err, ErrForcedOpen) { // else a record has failed
			w.trouble(nil, event.Err)
		}
	}
	branch, open := pausedBy(event.Err)
	if event.Branch = branch; open != nil {
		event.Breaker = open.Breaker
		if branch == "" {
			event.Branch = w.branches[open.of]
		}
	}
	w.closed[why] = true
	w.pauses++
	w.log.paused(ctx, event)
	tell(ctx, w.observer.Paused, event)
}

func (w *watch) resumed(ctx context.Context, why reason) {
	w.closed[why] = false
	if w.moves(why); why == byBreaker {
		w.gated = false
	}
	if w.pauses == 0 || w.closed != [reasons]bool{} {
		return
	}
	event := ResumeEvent{w.pauses}
	w.pauses = 0
	w.log.resumed(ctx, event)
	tell(ctx, w.observer.Resumed, event)
}

func (w *watch) stopped(ctx context.Context, event StopEvent) {
	w.count.inHand.Store(0)
	w.waits(0, time.Time{})
	w.pauses, w.closed, w.gated = 0, [reasons]bool{}, false
	for why := range reasons {
		w.moves(why)
	}
	w.log.stopped(ctx, event)
	tell(ctx, w.observer.Stopped, event)
}

// parked and retried are the decorators', which may have no coordinator.
func (w *watch) parked(ctx context.Context, letter any, event ParkEvent) {
	if w == nil {
		return
	}
	event.Record = w.name(letter)
	w.count.parked.Add(1)
	if event.Reason != KeyParked { // which has not failed itself
		w.trouble(nil, event.Err)
	}
	w.log.parked(ctx, event)
	tell(ctx, w.observer.Parked, event)
}

func (w *watch) retried(ctx context.Context, event RetryEvent) {
	if w == nil {
		return
	}
	w.count.retried.Add(1)
	tell(ctx, w.observer.Retried, event)
}

// nameWith returns a function that names records for people: as the user or the
// source does, as the record does itself, or by its value where that is a string, a
// number or a bool. The content of others may not be for a log.
func nameWith[T any](source Source[T], c *config) func(record any) string {
	identity, _ := c.identityOf.(func(T) string)
	if named, ok := source.(Identifier[T]); ok && identity == nil {
		identity = named.Identity
	}
	return func(record any) (name string) {
		var ignored error
		isolate(&ignored, func() error {
			r, ours := record.(T)
			switch s, ok := record.(fmt.Stringer); {
			case identity != nil && ours:
				name = identity(r)
			case ok:
				name = s.String()
			default:
				name = textOf(record)
			}
			return nil
		})
		return name
	}
}

// maxScalar is how many bytes of a string stand for it.
const maxScalar = 64

// textOf returns a string, a number or a bool as text, "" for anything else.
func textOf(record any) string {
	v := reflect.ValueOf(record)
	switch k := v.Kind(); {
	case k == reflect.String:
		text := v.String()
		if len(text) <= maxScalar {
			return text
		}
		return text[:runeStart(text, maxScalar)] + "…"
	case k >= reflect.Bool && k <= reflect.Float64: // integers are between
		return fmt.Sprint(v)
	}
	return ""
}
