package courier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about what can be asked of a coordinator while it runs, and where it keeps
// account of that.

var (
	// ErrRunning is returned by Start and RunOnce if the coordinator already runs.
	ErrRunning = errors.New("courier: the coordinator is running already")
	// ErrNotRunning is returned by Ready before Start and after it has returned.
	ErrNotRunning = errors.New("courier: the coordinator is not running")
	// ErrPaused is returned by Ready after Pause.
	ErrPaused = errors.New("courier: the coordinator is paused, until Resume is called")
	// ErrNoLag is returned by Lag when the source is no [Lagger].
	ErrNoLag = errors.New("courier: the source cannot tell how far behind it is")
	// ErrFullHand is the reason of a pause in which every record that a coordinator may
	// have in hand waits: for a retry or for a later time ([Later]), or behind a record
	// that does. No record is in progress or waits only to be marked.
	ErrFullHand = errors.New("courier: every record that may be in hand waits for a retry, or for an earlier record of its key or of the order of marks: park records that never succeed, or raise WithBatchSize or WithPrefetch")
)

// control is the part of a coordinator that outlives its runs. Its methods are
// the coordinator's.
type control struct {
	watch    *watch
	lagger   Lagger        // nil if the source is none
	breakers []*Breaker    // of the stack, outermost first
	stack    *layer        // what is applied with
	advice   []string      // to be logged when it first runs
	fleeting string        // likewise, of RunOnce
	parkers  []*parker     // of the stack
	wake     chan struct{} // room for one: fetch now
	stirred  chan struct{} // room for one: look up

	mu      sync.Mutex
	run     context.Context         // nil when there is none
	cancel  context.CancelCauseFunc // of the run; nil when there is none
	ended   chan struct{}           // closed when it has ended
	resumed chan struct{}           // closed by Resume; nil when not paused

	fetching context.Context // what the run fetches under, until the next Pause
	callBack context.CancelCauseFunc
}

func newControl[T any](source Source[T], applier Applier[T], config *config) *control {
	stack := layerOf(applier)
	c := &control{
		watch: newWatch(config, nameWith(source, config)), breakers: breakersOf(stack), stack: stack,
		wake: make(chan struct{}, 1), stirred: make(chan struct{}, 1),
	}
	c.watch.branches = make(map[*Breaker]string)
	for _, b := range c.breakers {
		c.watch.branches[b], _ = branchOf(stack, b)
	}
	config.clock.stack = clocksOf(stack)
	c.lagger, _ = source.(Lagger)
	if exposed(stack) {
		c.advice = append(c.advice, "courier: the dead letter queue has neither a retry nor a breaker inside: in an outage it takes healthy records; use ResilientApplier")
	}
	if breaksOrder(source, applier, config, len(c.breakers) > 0) {
		c.advice = append(c.advice, "courier: the order of the source may be broken: where a record of a batch fails, with several workers, or by the probes of an open breaker, later records may be applied before it; keep the order of each key with WithOrderKey")
	}
	c.parkers = parkersOf(stack)
	if slices.ContainsFunc(c.parkers, func(p *parker) bool { return p.own }) {
		c.fleeting = "courier: the dead letter queue is in memory, and its letters are lost when this process ends, while their records are marked as done: give RunOnce a durable queue, by ResilientConfig.DLQ or NewDLQApplier"
	}
	return c
}

// breaksOrder reports whether the order of a source that has one may be lost.
func breaksOrder[T any](source Source[T], applier Applier[T], c *config, breaker bool) (breaks bool) {
	s, ok := source.(Ordered)
	if !ok || c.keyOf != nil || c.workers == 1 && !breaker && (asBatch(applier) == nil || isOrdered(applier)) {
		return false
	}
	var ignored error
	isolate(&ignored, func() error { breaks = s.Ordered(); return nil })
	return breaks
}

// begin opens a run. end closes it.
func (c *control) begin(ctx context.Context, once bool) (context.Context, error) {
	c.mu.Lock()
	if c.cancel != nil {
		c.mu.Unlock()
		return nil, ErrRunning
	}
	ctx, c.cancel = context.WithCancelCause(ctx)
	c.run, c.ended = ctx, make(chan struct{})
	c.openIntake()
	for _, b := range c.breakers {
		b.addListener(c.stirred)
	}
	advice := c.advice
	c.advice = nil
	if once && c.fleeting != "" {
		advice, c.fleeting = append(advice, c.fleeting), ""
	}
	c.mu.Unlock()
	for _, text := range advice {
		c.watch.log.say(ctx, slog.LevelWarn, text)
	}
	return ctx, nil
}

func (c *control) end() {
	if n := inMemory(c.parkers); n > 0 {
		c.watch.log.leaving(c.run, n)
	}
	for _, b := range c.breakers {
		b.removeListener(c.stirred)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel(ErrStopped)
	c.run, c.cancel = nil, nil
	close(c.ended)
}

// openIntake lets the run fetch, unless it is paused. The lock is held.
func (c *control) openIntake() {
	c.fetching, c.callBack = context.WithCancelCause(c.run)
	if c.resumed != nil {
		c.callBack(ErrPaused)
	}
}

// intake returns the context of fetches: it ends with the run, and with Pause.
func (c *control) intake() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetching
}

// Stop ends the run as the end of Start's context does, and waits until Start has
// returned. It then returns nil; it also returns nil if nothing runs. If ctx ends first,
// Stop returns its cause, and the stop continues within the drain timeout. It must not be
// called from a function that the coordinator calls, because it would wait for itself.
func (c *control) Stop(ctx context.Context) error {
	if fault := contextFault(ctx); fault != nil {
		return fault
	}
	c.mu.Lock()
	cancel, ended := c.cancel, c.ended
	c.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel(ErrStopped)
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-ended:
		return nil
	default:
		return fmt.Errorf("courier: the coordinator has not ended yet: %w", causeOf(ctx))
	}
}

// Pause stops a coordinator from fetching until Resume is called, even if it is started
// later. It cancels the context of a Fetch that is under way. The coordinator processes
// the records in hand and marks them; records fetched ahead go back to the source. Pause
// does not wait, and has no effect on a coordinator that is paused already. RunOnce
// ignores it.
func (c *control) Pause() {
	c.mu.Lock()
	if c.resumed == nil {
		c.resumed = make(chan struct{})
		if c.run != nil {
			c.callBack(ErrPaused)
		}
	}
	c.mu.Unlock()
	nudge(c.stirred)
}

// Resume ends a Pause; the coordinator fetches immediately.
func (c *control) Resume() {
	c.Wake() // first, so that the fetch that follows finds it, and not the rest behind that
	c.mu.Lock()
	if c.resumed != nil {
		close(c.resumed)
		c.resumed = nil
		if c.run != nil {
			c.openIntake()
		}
	}
	c.mu.Unlock()
	nudge(c.stirred)
}

// paused returns a channel that Resume closes, nil when there was no Pause.
func (c *control) paused() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resumed
}

// Wake ends the wait of a coordinator before its next fetch: a polling coordinator's
// interval, the delay after an error, and a pause for any reason but an open breaker of
// the applier's stack. It does not end a Pause. It never blocks; several calls before the
// next fetch count as one.
func (c *control) Wake() {
	nudge(c.wake)
}

// nudge sends on a channel that has room for one, unless it is full.
func nudge(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Ready returns nil if the coordinator runs and nothing blocks it. Otherwise it returns
// the first of these reasons:
//
//   - [ErrNotRunning], or [ErrStopped] from the moment that a stop begins, or
//     [ErrPaused];
//   - an [*OpenError] of a breaker;
//   - the error for which the coordinator pauses or backs off: of a dead letter queue
//     that is full or guards against too many letters, of a breaker inside the user's own
//     applier, or [ErrFullHand]. A queue that refuses records stays a reason until others
//     are settled;
//   - an error for a call of the source that has been under way for a minute: a polling
//     coordinator's fetch, a mark, a release or a Fail;
//   - an error that names the record that has been in progress for the longest, once that
//     is longer than [WithStallAfter], until its call returns;
//   - the error of the last fetch or mark, until one succeeds. A fetch of a stream, which
//     may wait for records for hours, counts as a success once it has gone on for ten
//     seconds, or for twice as long as the fetches that failed before it, a minute at the
//     most.
//
// Failing records do not make a coordinator unready, however many they are: an open
// breaker does, and Stats().Failed counts them. Ready is meant for a readiness probe, and
// never blocks.
func (c *control) Ready() error {
	c.mu.Lock()
	run, resumed := c.run, c.resumed
	c.mu.Unlock()
	switch {
	case run == nil:
		return ErrNotRunning
	case run.Err() != nil:
		return ErrStopped
	case resumed != nil:
		return ErrPaused
	}
	if g := gateOf(c.breakers); g.closed {
		return g.cause
	}
	if err := c.watch.standstill(); err != nil {
		return err
	}
	if err := c.watch.hangs(); err != nil {
		return err
	}
	if err := c.watch.stalled(); err != nil {
		return err
	}
	return c.watch.callsFail()
}

// Stats counts what a coordinator has done since it was made, over all its runs. Counts
// are in records unless noted.
type Stats struct {
	Fetched  int64
	Applied  int64 // settled by the applier: applied, parked or skipped
	Skipped  int64 // the part of Applied by [Skip]
	Parked   int64 // in a dead letter queue; counted for each branch of a fan-out
	Failed   int64 // deliveries that failed and left their record pending
	Retried  int64 // retries, of records or batches
	Marked   int64
	Released int64 // given back to the source, as failed or not attempted

	FetchFailures int64 // calls
	MarkFailures  int64 // calls

	InHand      int64     // fetched, but neither marked nor given back
	Waiting     int       // the part of InHand that waits for its next attempt
	NextAttempt time.Time // when the first waiting record is due; zero if none waits

	// OldestInWork is how long the oldest record in progress has been so at least, and
	// OldestRecord is its name. They are 0 and "" until a record has been in progress for
	// a quarter to a half of [WithStallAfter], and grow in steps of a quarter.
	OldestInWork time.Duration
	OldestRecord string

	LastError   error // of a fetch, a mark, or a record that stays pending, was parked, has failed for longer than WithStallAfter or asks again for a later time; nil if there was none
	LastErrorAt time.Time
	Breakers    []BreakerStats // of the applier's stack, outermost first; then those of keyed breakers that are not closed
}

// BreakerStats has the metrics of a breaker of a stack, and the branch of the fan-out
// that it is in. The branch is "" outside a fan-out, and the outermost one if there are
// several.
type BreakerStats struct {
	Branch string
	BreakerMetrics
}

// Stats returns what the coordinator has done so far. It never blocks. The counts are
// read one by one while the coordinator runs.
func (c *control) Stats() Stats {
	n := &c.watch.count
	s := Stats{
		Fetched: n.fetched.Load(), Applied: n.applied.Load(), Skipped: n.skipped.Load(), Parked: n.parked.Load(),
		Failed: n.failed.Load(), Retried: n.retried.Load(), Marked: n.marked.Load(), Released: n.released.Load(),
		FetchFailures: n.fetchFailures.Load(), MarkFailures: n.markFailures.Load(),
		InHand: n.inHand.Load(),
	}
	for _, b := range c.breakers {
		s.Breakers = append(s.Breakers, BreakerStats{c.watch.branches[b], b.Metrics()})
	}
	s.Breakers = append(s.Breakers, keyedStats(c.stack, "")...)
	if st := c.watch.oldest(); st != nil {
		s.OldestInWork, s.OldestRecord = st.age, st.name
	}
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	s.LastError, s.LastErrorAt = c.watch.lastErr, c.watch.lastErrAt
	s.Waiting, s.NextAttempt = c.watch.waiting, c.watch.clock.told(c.watch.nextDue)
	return s
}

// Lag asks the source how many records are pending and how old the oldest is.
// The error is the source's, or [ErrNoLag].
func (c *control) Lag(ctx context.Context) (lag Lag, err error) {
	if c.lagger == nil {
		return Lag{}, ErrNoLag
	}
	isolate(&err, func() (err error) {
		lag, err = c.lagger.Lag(ctx)
		return err
	})
	return lag, err
}

// watch records what a coordinator does: for its observer, for Stats and for Ready. It
// outlives a run.
type watch struct {
	log      *slogObserver
	observer Observer // of the user's
	clock    *steady
	name     func(record any) string // for people; empty where it has none
	branches map[*Breaker]string     // of the breakers of the stack that are in one
	retries  []any                   // whose waits the coordinator keeps, see holds
	count    counters

	longAfter time.Duration // for as long a record fails until that is told
	// Of the coordinator's own goroutine.
	pauses int           // since the last was over
	closed [reasons]bool // which are not over
	gated  bool          // by a breaker of the stack
	until  time.Time     // of the last event over a breaker
	hidden int           // passes in a row in which all records of a full batch failed

	mu        sync.Mutex
	lastErr   error
	lastErrAt time.Time
	fetches   outcome
	marks     outcome
	still     [reasons]standstill
	waiting   int       // records in hand between two attempts
	nextDue   time.Time // of the first of them, by the steady clock
	fetching  underway
	settling  underway
	settledAt time.Time                    // when the last one began
	cycle     atomic.Int64                 // how long that was after the one before
	stalls    interface{ oldest() *stall } // of the run; nil while there is none
}

// reason is why fetching stops. Each reason ends by itself.
type reason uint8

const (
	byRefusal reason = iota // records can be settled nowhere, until others are
	byBreaker
	byFullHand
	byPause
	reasons
)

// standstill is why nothing is fetched or settled for now, if anything.
type standstill struct {
	err   error
	until time.Time // of the steady time; zero until somebody says that it is over
}

// underway is a call of the source that has not returned, if any.
type underway struct {
	what  string // "" if it may take any time, as the fetch of a stream
	began time.Time
}

// outcome is how the last calls of a kind have ended.
type outcome struct {
	err  error         // of the last one
	took time.Duration // the longest since one was well, of a fetch
}

// wellFor is how long a fetch of a stream that goes on is taken for no success at least.
const wellFor = 10 * time.Second

// overdue is how long a call of the source may take before Ready tells of it.
const overdue = time.Minute

// begins notes the start of a call of the source, and ends its return.
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
	var now time.Time
	if call == &w.fetching {
		now = w.clock.Now()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if call == &w.fetching {
		if w.waitsWell(now) {
			w.fetches = outcome{}
		}
		w.fetches.took = max(w.fetches.took, now.Sub(call.began))
	}
	*call = underway{}
}

// waitsWell reports whether a stream's fetch has gone on for long enough not to fail as
// the one before it. The lock is held.
func (w *watch) waitsWell(now time.Time) bool {
	call := w.fetching
	return call.what == "" && !call.began.IsZero() && now.Sub(call.began) >= min(max(wellFor, 2*w.fetches.took), overdue)
}

// callsFail returns the error for which the calls of the source are a reason not to be
// ready, if they are.
func (w *watch) callsFail() error {
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.marks.err != nil:
		return fmt.Errorf("courier: the last mark failed: %w", w.marks.err)
	case w.fetches.err != nil && !w.waitsWell(now):
		return fmt.Errorf("courier: the last fetch failed: %w", w.fetches.err)
	}
	return nil
}

// fetchesNow reports whether a fetch of a polling coordinator is under way.
func (w *watch) fetchesNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetching.what != ""
}

// slow reports whether so many records take long enough, in total, that the cost of
// noting each of them does not matter.
func (w *watch) slow(records int) bool {
	return time.Duration(w.cycle.Load()) >= time.Duration(records)*time.Microsecond
}

// hangs returns an error for a call of the source that is overdue.
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
	fetchFailures, markFailures                                          atomic.Int64
	inHand                                                               atomic.Int64
}

func newWatch(c *config, name func(any) string) *watch {
	w := &watch{name: name, clock: c.clock, log: newSlogObserver(c.logger, c.clock, c.interval), observer: teeObservers(c.observers...), longAfter: c.stallAfter}
	w.cycle.Store(math.MaxInt64)
	return w
}

// perRecord reports whether any observer wants to know of every record.
func (w *watch) perRecord() bool {
	return w.observer.RecordStarted != nil || w.observer.RecordEnded != nil
}

// since returns how long something took, if any observer wants to know.
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

func (w *watch) noteError(of *outcome, err error) {
	now := w.clock.Clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if of != nil {
		of.err = err
	}
	w.lastErr, w.lastErrAt = err, now
}

func (w *watch) well(of *outcome) {
	w.mu.Lock()
	*of = outcome{}
	w.mu.Unlock()
}

// stands notes that the coordinator stands still for a reason; moves notes the end of
// that.
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
		case reason(why) != byRefusal && (s.until.IsZero() || now.Before(s.until)):
			return fmt.Errorf("courier: nothing is fetched for now: %w", s.err)
		case reason(why) != byFullHand && (w.count.inHand.Load() > 0 || now.Before(s.until.Add(forgotten))):
			// While it is tried again nobody knows; a while later it has gone elsewhere.
			return fmt.Errorf("courier: a record could not be settled, and none has been since: %w", s.err)
		}
	}
	return nil
}

// forgotten is how long after its time a record that was refused may have come again.
const forgotten = time.Minute

// fetched reports a fetch. Its records count as in hand from the end of the fetch. A
// cancelled fetch counts neither as a failure nor as a success.
func (w *watch) fetched(ctx context.Context, event FetchEvent, cancelled bool) {
	w.count.fetched.Add(int64(event.Records))
	switch {
	case cancelled:
		if event.Err = nil; event.Records == 0 {
			return
		}
	case event.Err != nil:
		w.count.fetchFailures.Add(1)
		w.noteError(&w.fetches, event.Err)
	default:
		w.well(&w.fetches)
	}
	w.log.fetched(ctx, event)
	tell(ctx, w.observer.Fetched, event)
}

func (w *watch) applied(ctx context.Context, event ApplyEvent) {
	w.count.applied.Add(int64(event.Applied))
	w.count.failed.Add(int64(event.Failed))
	if event.Err != nil {
		w.noteError(nil, event.Err)
	}
	w.log.applied(ctx, event)
	tell(ctx, w.observer.Applied, event)
}

func (w *watch) marked(ctx context.Context, event MarkEvent) {
	if event.Err != nil {
		w.count.markFailures.Add(1)
		w.noteError(&w.marks, event.Err)
	} else {
		w.count.marked.Add(int64(event.Records))
		w.count.inHand.Add(-int64(event.Records))
		w.well(&w.marks)
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

// renewed reports a renewal. It is no error if the only lost records are being marked.
func (w *watch) renewed(ctx context.Context, event RenewEvent) {
	if _, listed := batchErrorIn(event.Err); listed && event.Lost == 0 {
		event.Err = nil
	}
	w.log.renewed(ctx, event)
	tell(ctx, w.observer.Renewed, event)
}

// answered reports whether the error of a probe, or its success, shows anything about the
// destination. The error of a record that asks for a later time does not, unless a
// breaker of the stack had stopped the intake and has closed.
func (w *watch) answered(err error, breakers []*Breaker) bool {
	_, waits := waitOf(err)
	return !waits || w.gated && passing(breakers)
}

// paused reports a stop of the intake, by Pause or by a breaker, and resumed the end of
// the last of them. A pause that goes on is reported once, until it has another time or
// another reason. Ready itself asks some of the reasons: a breaker of the stack, and
// Pause.
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
			w.noteError(nil, event.Err)
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

// parked and retried are called by decorators, which may be outside a coordinator.
func (w *watch) parked(ctx context.Context, letter any, event ParkEvent) {
	if w == nil {
		return
	}
	event.Record = w.name(letter)
	w.count.parked.Add(1)
	if event.Reason != ReasonKeyParked { // which has not failed itself
		w.noteError(nil, event.Err)
	}
	w.log.parked(ctx, event)
	tell(ctx, w.observer.Parked, event)
}

// later reports that a record asks again for a later time.
func (w *watch) later(ctx context.Context, record any, due time.Time, err error) {
	w.noteError(nil, err)
	w.log.later(ctx, w.name(record), w.clock.told(due), err)
}

// retried is told for how long the record has failed in this delivery.
func (w *watch) retried(ctx context.Context, event RetryEvent, failing time.Duration) {
	if w == nil {
		return
	}
	w.count.retried.Add(1)
	if failing >= w.longAfter {
		w.noteError(nil, event.Err)
		w.log.retried(ctx, event, failing)
	}
	tell(ctx, w.observer.Retried, event)
}

// nameWith returns a function that names records for people: by the user's function or
// the source, by the record's String method, or by its value if that is a string, a
// number or a bool. The content of other records may not be fit for a log.
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

// maxScalar is how many bytes of a string are used as a name.
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
