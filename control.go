package courier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// This room is about what can be asked of a coordinator while it runs.

var (
	// ErrRunning is returned by Start and RunOnce of a coordinator that runs.
	ErrRunning = errors.New("courier: the coordinator is running already")
	// ErrNotRunning is returned by Ready before Start and after it has returned.
	ErrNotRunning = errors.New("courier: the coordinator is not running")
	// ErrPaused is returned by Ready after Pause.
	ErrPaused = errors.New("courier: the coordinator is paused, until Resume is called")
	// ErrNoLag is returned by Lag when the source is no [Lagger].
	ErrNoLag = errors.New("courier: the source cannot tell how far behind it is")
	// ErrFullHand is the reason of a pause in which every record that a coordinator may
	// have in hand has failed and waits to be tried again.
	ErrFullHand = errors.New("courier: all records that may be in hand have failed and wait to be tried again, or wait for one of their key that has: park what never succeeds, or raise WithBatchSize or WithPrefetch")
)

// control is the part of a coordinator that outlives its runs. Its methods are
// the coordinator's.
type control struct {
	watch    *watch
	lagger   Lagger        // nil if the source is none
	breakers []*Breaker    // of the stack, outermost first
	stack    layer         // what is applied with
	advice   string        // to be logged when it first runs
	fleeting string        // likewise, of RunOnce
	parkers  []parker      // of the stack
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
		c.advice = "courier: the dead letter queue has neither a retry nor a breaker inside: in an outage it takes healthy records; use ResilientApplier"
	}
	c.parkers = parkersOf(stack)
	if slices.ContainsFunc(c.parkers, parker.ownsQueue) {
		c.fleeting = "courier: the dead letter queue is in memory, and its letters are lost when this process ends, while their records are marked as done: give RunOnce a durable queue, by ResilientConfig.DLQ or NewDLQApplier"
	}
	return c
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
	advice := []string{c.advice, ""}
	c.advice = ""
	if once {
		advice[1], c.fleeting = c.fleeting, ""
	}
	c.mu.Unlock()
	for _, text := range advice {
		if text != "" {
			c.watch.log.say(ctx, slog.LevelWarn, text)
		}
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

// intake returns what a run fetches under: it ends with the run, and with Pause.
func (c *control) intake() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetching
}

// Stop ends the run as the end of Start's context does, and waits until Start
// has returned. It returns nil then, and at once when nothing runs. When ctx
// ends first it returns the cause of that; the stop goes on, within the drain
// timeout. It must not be called by what the coordinator itself calls, which it
// would wait for.
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

// Pause keeps a coordinator from fetching until Resume is called, also one that is
// started later. It cancels the context of a Fetch that is under way. The
// coordinator works off the records in hand and marks them; records that it has
// fetched ahead go back to the source. Pause does not wait, and does nothing when
// the coordinator is paused already. RunOnce ignores it.
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

// Resume ends what Pause began, and fetches at once.
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
// interval, the delay after an error, and a pause over anything but an open breaker
// of the applier's stack. It does not end what Pause began. It never blocks; calls
// before the next fetch count as one.
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

// Ready returns nil when the coordinator runs and nothing stands in its way,
// else the reason: [ErrNotRunning], [ErrStopped] from the moment that a stop begins,
// [ErrPaused], an [*OpenError] of a breaker, the
// error over which the coordinator pauses or backs off (a dead letter queue that is
// full or guards against too many letters, a breaker inside an applier of the
// user's own, [ErrFullHand]; one that refuses records stays a reason until others are
// settled), the error of the last fetch or mark, for as long as
// none has succeeded, or a call of the source that has been under way for a minute: a
// polling coordinator's fetch, or a mark, a release or a note of failures. Before the
// last fetch or mark it names the record that has been in work for the longest, once
// that is longer than [WithStallAfter], and for as long as its call does not return. Records that
// fail do not make it unready, however many: a breaker does, and Stats().Failed tells.
// It is for a readiness probe, and never blocks.
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
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	switch {
	case c.watch.markErr != nil:
		return fmt.Errorf("courier: the last mark failed: %w", c.watch.markErr)
	case c.watch.fetchErr != nil:
		return fmt.Errorf("courier: the last fetch failed: %w", c.watch.fetchErr)
	}
	return nil
}

// Stats is what a coordinator has done since it was made, over all its runs, in
// records where nothing else is said.
type Stats struct {
	Fetched  int64
	Applied  int64 // settled by the applier: applied, parked or skipped
	Skipped  int64 // of those, by [Skip]
	Parked   int64 // taken by a dead letter queue; those of a fan-out's branches each
	Failed   int64 // deliveries that failed, and left their record pending
	Retried  int64 // retries, of records or batches
	Marked   int64
	Released int64 // given back to the source, as failed or not attempted

	FetchFailures     int64 // calls
	MarkFailures      int64 // calls
	DuplicatesAvoided int64 // marked by a later try, and not applied again because the first failed

	InHand      int64     // fetched, and neither marked nor given back
	Waiting     int       // of those, between two attempts
	NextAttempt time.Time // when the first of these is due; zero when none waits

	// OldestInWork is how long the record has been in work at least that has been for the
	// longest, and OldestRecord is its name. They are 0 and "" until a record has been for
	// a quarter to a half of the time that is set with [WithStallAfter], and go on by quarters.
	OldestInWork time.Duration
	OldestRecord string

	LastError   error // of a fetch, a mark, or a record that stays pending or was parked; nil when there was none
	LastErrorAt time.Time
	Breakers    []BreakerStats // of the applier's stack, outermost first; then those of keyed breakers that are not closed
}

// BreakerStats is a breaker of a stack: its metrics, and the branch of a fan-out in which
// it is, "" where it is in none, the outer one first where there are several.
type BreakerStats struct {
	Branch string
	BreakerMetrics
}

// Stats returns what the coordinator has done so far. It never blocks. The
// counts are read one by one while the coordinator goes on.
func (c *control) Stats() Stats {
	n := &c.watch.count
	s := Stats{
		Fetched: n.fetched.Load(), Applied: n.applied.Load(), Skipped: n.skipped.Load(), Parked: n.parked.Load(),
		Failed: n.failed.Load(), Retried: n.retried.Load(), Marked: n.marked.Load(), Released: n.released.Load(),
		FetchFailures: n.fetchFailures.Load(), MarkFailures: n.markFailures.Load(), DuplicatesAvoided: n.duplicatesAvoided.Load(),
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
