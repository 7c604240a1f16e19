package courier

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
	"github.com/erfanmomeniii/courier/internal/ledger"
)

// batch is the account of records in hand. Workers claim runs of them by an
// atomic index, without a lock, and enter a verdict for each.
type batch[T any] struct {
	*pipeline[T]
	ledger  ledger.Ledger[T]
	past    []history           // attempts used before, parallel to the records; nil when none were
	keys    []string            // parallel to the records; nil when no order was asked for
	blocked *engine.BlockedKeys // the keys that are held back
	claims  engine.Claims

	label  func(i int) string // of a record that has no name
	number func(i int) uint64 // of a record in the order fetched

	stepwise bool          // somebody follows how far the only worker is
	unkeyed  map[int]error // of the records whose key function panicked

	begun   atomic.Bool // a record was
	alert   atomic.Bool // before the next record, look whether it is still to be begun
	careful bool        // as if there were an alert always
	exact   atomic.Bool // the workers write down each record, and not the claim alone
	turn    uint64      // counts the resets: what is in work now is no record of a batch before

	mu     sync.Mutex // over what is rare
	open   bool       // it is in work, for those who look at that from outside
	halted halt
}

// halt is why a batch was left before its end.
type halt struct {
	err   error     // nil when it was not
	at    int       // the first record over which
	name  string    // of that, where it is told
	until time.Time // when it is worth going on, by the steady clock
}

// reset begins a new batch, to be shared by some workers. Where an order was asked
// for, the keys are the records'.
func (b *batch[T]) reset(records []T, past []history, keys []string, workers int) {
	b.turn++
	b.ledger.Reset(records)
	b.past, b.keys = past, keys
	b.halted, b.unkeyed = halt{}, nil
	if workers <= 1 && (b.together == nil || b.ordered) { // one by one is in order
		keys = nil
	}
	b.claims.Reset(len(records), keys, workers)
	switch {
	case b.together != nil:
		b.claims.Step(or(b.portion, b.claims.Share()))
	case b.stepwise:
		b.claims.Step(1)
	}
	b.careful = past != nil || b.keys != nil || b.watch.perRecord()
	b.begun.Store(false)
	b.alert.Store(false)
	b.heedLost()
}

// heedLost has the workers look at each record while something in hand is lost. Whoever
// loses something later alerts them.
func (b *batch[T]) heedLost() {
	if b.leases.Some() {
		b.alert.Store(true)
	}
}

// complete reports whether every record has its verdict and none has an error.
func (b *batch[T]) complete() bool {
	return !b.ledger.Noted() && !b.alert.Load() && !b.claims.Left()
}

// note enters the verdict of a record that returned an error, and holds its key back.
func (b *batch[T]) note(ctx context.Context, i int, err error) {
	if b.judge(ctx, i, err) {
		b.blocked.Block(b.keys[i])
	}
}

// judge enters the verdict of a record that returned an error, and reports whether the
// later records of its key have to wait.
func (b *batch[T]) judge(ctx context.Context, i int, err error) (blocks bool) {
	class := classify(ctx, err)
	var until time.Time
	paused := false
	if class == ClassNotAttempted { // before the lock: it asks the error, and the clock
		if until, paused = pauseOf(err); paused {
			until = b.clock.of(until)
		}
		err = timed(err, b.clock.Now())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch class {
	case ClassSkipped:
		b.ledger.Settle(i)
		b.watch.count.skipped.Add(1)
		return false
	case ClassNotAttempted:
		b.ledger.Leave(i, err)
		if paused && (b.halted.err == nil || i < b.halted.at) {
			b.halted = halt{err: err, at: i, until: until}
			b.alert.Store(true)
		}
	default:
		b.ledger.Fail(i, err)
	}
	return b.keys != nil && b.unkeyed[i] == nil && err != errHeldBack
}

// over reports whether nothing more is to be begun.
func (b *batch[T]) over(stop context.Context) bool {
	if stop.Err() != nil {
		b.alert.Store(true) // for complete: something may be left
		return true
	}
	return b.paused() != nil
}

// paused returns why the intake is to pause, nil where it is not.
func (b *batch[T]) paused() error {
	if !b.alert.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.halted.err
}

// verdict returns what became of a record that has its verdict, also while the worker
// goes on.
func (b *batch[T]) verdict(i int) (ledger.State, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.State(i), b.ledger.Err(i)
}

// alone reports whether a record is not to be in one call with others. A branch of a fan-out
// that has answered does not get it again, and would get those behind it alone.
func (b *batch[T]) alone(i int) bool {
	return b.past != nil && (b.past[i].alone() || b.keys != nil && b.past[i].answered())
}

// judged reports whether a record has its verdict, or an error that says why it stays
// pending.
func (b *batch[T]) judged(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.State(i) != ledger.Pending || b.ledger.Err(i) != nil
}

// key returns the order key of a record, "" where no order was asked for.
func (b *batch[T]) key(i int) string {
	if b.keys == nil {
		return ""
	}
	return b.keys[i]
}

// isLost reports whether somebody else has a record by now.
func (b *batch[T]) isLost(i int) bool { return b.leases.Some() && b.leases.Lost(b.number(i)) }

// errHeldBack is why a record was not begun behind a failed one of its key.
var errHeldBack = unattempted(errors.New("an earlier record of the same key is not settled"))

// errLeaseLost is why a record was not begun that another instance may have.
var errLeaseLost = unattempted(errors.New("its lease ran out"))

// withheld returns why a record is not to be begun, nil when it is.
func (b *batch[T]) withheld(i int) error {
	switch {
	case b.isLost(i):
		return errLeaseLost
	case b.keys == nil:
		return nil
	case b.unkeyed[i] != nil:
		return b.unkeyed[i]
	case b.blocked.Blocks(b.keys[i]):
		return errHeldBack
	}
	return nil
}

// cutShort keeps a worker that goes stepwise from going on behind what it is at,
// and returns where that is.
func (b *batch[T]) cutShort() (begun int) {
	if b.claims.Chained() {
		return len(b.ledger.Records)
	}
	return b.claims.CutShort()
}

// crew is the workers that share a batch. They are roused by each other, as long as
// there is something to claim: for records that cost little the first has done
// them all before the last would be awake.
type crew[T any] struct {
	workers []worker[T]
	todo    chan *worker[T] // to the goroutines
	ended   chan struct{}   // all that were roused are done
	asleep  atomic.Int32
	awake   atomic.Int32
}

// orNone returns nil for the crew of an only worker, which nobody wakes.
func (c *crew[T]) orNone() *crew[T] {
	if c.todo == nil {
		return nil
	}
	return c
}

// work has some workers work a batch off, and waits for them.
func (c *crew[T]) work(workers int) {
	c.awake.Store(1)
	c.asleep.Store(int32(workers - 1))
	c.todo <- &c.workers[workers-1]
	<-c.ended
}

// rouse wakes up to two more workers. The caller is awake.
func (c *crew[T]) rouse() {
	for range 2 {
		n := c.asleep.Add(-1)
		if n < 0 {
			return
		}
		c.awake.Add(1)
		c.todo <- &c.workers[n]
	}
}

// done lets the one who waits go on when the last worker is.
func (w *worker[T]) done() {
	if w.crew.awake.Add(-1) == 0 {
		w.crew.ended <- struct{}{}
	}
}

// worker is one of those that apply a batch, and how far it is. When user code ends its
// goroutine (runtime.Goexit), run is called again on another and goes on behind
// the record that did it.
type worker[T any] struct {
	*batch[T]
	at, to    int   // the claim: what is before at is done
	unsettled int   // from here to at all are applied, and that is not noted yet
	list      []int // the records of the claim, where they are chains
	tried     bool  // as one batch
	partly    bool  // and only those are left to do that have no verdict
	again     []int // those that ApplyBatch has left behind a failed one, for the next call
	blocking  []int // those with an error that come after one of these: their keys are held back after it
	cutChain  int   // where the chain goes on that a call had no room for; -1 where none does
	calling   bool  // user code runs, on the record at
	exit      error // the call on the record at ended the goroutine; nil if none did

	group   []T      // what is applied together now; nil when nothing is
	index   []int    // of these in the batch, where they are not simply the claim
	outcome verdicts // of that

	crew   *crew[T] // nil for the only one
	roused bool     // it has woken others

	position atomic.Uint64   // see show
	ctx      context.Context // what the last run was under
	calls    *exits          // of that; written under the batch's lock
	began    time.Time       // of the call, where its duration is asked for

	_ [64]byte // keeps the workers off each other's cache lines
}

func (w *worker[T]) reset(b *batch[T], c *crew[T]) {
	*w = worker[T]{batch: b, list: w.list[:0], cutChain: -1, crew: c, ctx: w.ctx, calls: w.calls}
}

// run applies what it can claim until nothing is left, stop has ended, or the
// destination takes nothing for now. What it leaves is pending.
func (w *worker[T]) run(stop, ctx context.Context) {
	if w.ctx != ctx {
		w.under(ctx)
	}
	w.calls.unwatched()
	switch {
	case w.exit != nil:
		w.resume(ctx)
	case w.group != nil: // the call of ApplyBatch ended the goroutine
		w.settleTogether(ctx)
	}
	for (w.at < w.to || w.advance()) && !w.over(stop) {
		if w.together != nil && !w.tried {
			w.tried = true
			w.applyTogether(ctx)
			continue
		}
		if w.careful || w.together != nil || w.alert.Load() {
			w.applyCarefully(stop, ctx)
		} else {
			w.applyAll(stop, ctx)
		}
	}
	w.leaveAgain()
	w.position.Store(uint64(finished))
}

// advance goes on to the next records of the chains at hand, or claims more.
func (w *worker[T]) advance() bool {
	w.tried, w.partly = false, false
	if !w.claims.Chained() {
		w.at, w.to = w.claims.Claim()
		w.callOthers()
		return w.at < w.to
	}
	if w.ordered {
		w.fill()
		w.callOthers()
		w.at, w.to = 0, len(w.list)
		return w.to > 0
	}
	w.list = w.claims.Chains.Follow(w.list)
	if len(w.list) == 0 {
		from, to := w.claims.Claim()
		w.list = append(w.list, w.claims.Chains.Heads[from:to]...)
		w.callOthers()
	}
	w.at, w.to = 0, len(w.list)
	return w.to > 0
}

// fill claims whole chains, as many as make up the share of a worker of the batch, or a call.
// What there is no room for in a call comes first in the next one.
func (w *worker[T]) fill() {
	n := len(w.ledger.Records)
	most := or(w.portion, n)
	share := min(most, (n+w.claims.Workers-1)/w.claims.Workers)
	w.list = w.list[:0]
	w.draw(w.cutChain, most)
	if room := share - len(w.list); room > 0 {
		from, to := w.claims.ClaimChains(room)
		for _, head := range w.claims.Chains.Heads[from:to] {
			w.draw(head, most)
		}
	}
	slices.Sort(w.list)
}

// draw adds the records of a chain to the claim, from one on, until there are as many as
// a call may have.
func (w *worker[T]) draw(i, most int) {
	for ; i >= 0 && len(w.list) < most; i = w.claims.Chains.After[i] {
		w.list = append(w.list, i)
	}
	w.cutChain = i
}

// callOthers has further workers woken once the first claim was made, if that left
// anything.
func (w *worker[T]) callOthers() {
	if w.crew != nil && !w.roused && w.claims.Left() {
		w.roused = true
		w.crew.rouse()
	}
}

// record returns the index of the record that is at a place of the claim.
func (w *worker[T]) record(at int) int {
	if w.claims.Chained() {
		return w.list[at]
	}
	return at
}

// applyAll is the fast path: records one after the other, and claims one after
// the other, until one panics. One deferred call for all of them is what makes a
// panic cost nothing to those that do not.
func (w *worker[T]) applyAll(stop, ctx context.Context) {
	w.calling = true
	defer w.caught(ctx)
	if !w.begun.Load() {
		w.begun.Store(true)
	}
	w.show(w.at, w.to-w.at, false)
	apply := w.apply
	for w.at < w.to {
		records, i := w.ledger.Records[:w.to], w.at
		w.unsettled = i
		for ; i < len(records) && stop.Err() == nil && !w.alert.Load(); i++ {
			if w.at = i; w.exact.Load() {
				w.position.Store(uint64(positionOf(i, 1, false)))
			}
			if err := apply(ctx, records[i]); err != nil {
				w.ledger.SettleRun(w.unsettled, i)
				w.unsettled = i + 1
				w.note(ctx, i, sound(err))
			}
		}
		w.ledger.SettleRun(w.unsettled, i)
		if w.at = i; i < w.to {
			break
		}
		w.at, w.to = w.claims.Claim()
		w.show(w.at, w.to-w.at, false)
	}
	w.calling = false
}

// applyCarefully is applyAll where a record may be withheld, or has a history.
func (w *worker[T]) applyCarefully(stop, ctx context.Context) {
	defer w.caught(ctx)
	for ; w.at < w.to && !w.over(stop); w.at++ {
		i := w.record(w.at)
		if w.partly && w.judged(i) {
			continue
		}
		if err := w.withheld(i); err != nil {
			w.note(ctx, i, err)
			continue
		}
		w.begun.Store(true)
		w.show(i, 1, false)
		w.tellStarted(ctx, i)
		w.calling, w.unsettled = true, w.at
		err := w.apply(w.with(ctx, i), w.ledger.Records[i])
		w.calling = false
		w.enter(ctx, i, sound(err))
	}
}

// with returns the context of one record, which has its history.
func (w *worker[T]) with(ctx context.Context, i int) context.Context {
	if w.past == nil {
		return ctx
	}
	return withHistories(ctx, w.past[i:i+1])
}

// enter tells of a record that was applied, and enters its verdict.
func (w *worker[T]) enter(ctx context.Context, i int, err error) {
	w.tellEnded(ctx, i, err)
	if err == nil {
		w.ledger.Settle(i)
	} else {
		w.note(ctx, i, err)
	}
}

// describe names a record for people, by its place where it has no name.
func (b *batch[T]) describe(i int) string {
	if name := b.watch.name(b.ledger.Records[i]); name != "" {
		return name
	}
	return b.label(i)
}

// tellStarted and tellEnded tell of every record, where somebody wants to know.
func (w *worker[T]) tellStarted(ctx context.Context, i int) {
	if f := w.watch.observer.RecordStarted; f != nil {
		tell(ctx, f, RecordEvent{Record: w.describe(i), Number: w.number(i)})
	}
	w.began = w.watch.now(w.watch.observer.RecordEnded != nil)
}

func (w *worker[T]) tellEnded(ctx context.Context, i int, err error) {
	if f := w.watch.observer.RecordEnded; f != nil {
		tell(ctx, f, RecordEvent{Record: w.describe(i), Number: w.number(i), Elapsed: w.watch.since(true, w.began), Err: err})
	}
}

// caught enters a panic as the failure of its record. Where it was a Goexit, the
// worker goes on with the same record on another goroutine.
func (w *worker[T]) caught(ctx context.Context) {
	if !w.calling {
		return
	}
	w.calling = false
	if w.unsettled < w.at {
		w.ledger.SettleRun(w.unsettled, w.at)
	}
	err := newPanicError(recover())
	if err.Goexit() {
		w.exit = err
		return
	}
	w.enter(ctx, w.record(w.at), err)
	w.at++
}

// resume goes on with the record whose call ended the goroutine before this one.
func (w *worker[T]) resume(ctx context.Context) {
	i, exit := w.record(w.at), w.exit
	w.exit = nil
	w.enter(ctx, i, afterExit(w.with(ctx, i), w.applier, w.ledger.Records[i], exit))
	w.at++
}

// applyTogether applies as one batch the records of the claim, but for those that may be
// poison: they go alone rather than fail the batch for all. After a batch that failed as
// one, all go alone.
func (w *worker[T]) applyTogether(ctx context.Context) {
	records, index := w.unburdened(ctx)
	if len(records) == 0 {
		w.partly = true
		w.blockAfterAgain()
		return
	}
	w.begun.Store(true)
	for _, i := range index { // which there is where somebody wants to know
		w.tellStarted(ctx, i)
	}
	w.group, w.index = records, index
	w.showTogether()
	share := ctx
	if w.past != nil {
		share = historiesOf(withHistories(ctx, w.past), len(w.past), index)
	}
	guard(&w.outcome.whole, func() error {
		w.outcome = applyMany(share, w.together, records)
		return w.outcome.whole
	})
	w.settleTogether(ctx)
}

// settleTogether enters the verdicts of a batch.
func (w *worker[T]) settleTogether(ctx context.Context) {
	records, index, v := w.group, w.index, w.outcome
	w.group, w.index, w.outcome = nil, nil, verdicts{}
	if v.ok() && index == nil { // apart, to allocate nothing
		w.ledger.SettleRun(w.at, w.to)
		w.at = w.to
		return
	}
	errs := v.of(len(records))
	for j, i := range index {
		w.tellEnded(ctx, i, errs[j])
	}
	w.partly = index != nil
	if v.whole != nil && len(records) > 1 && classify(ctx, v.whole) != ClassNotAttempted {
		return
	}
	behind := w.leftBehind(ctx, errs)
	var again map[string]bool // the keys of those left behind, and whether one after these has an error
	if behind != nil && w.keys != nil {
		again = make(map[string]bool)
	}
	for j, err := range errs {
		i := w.at + j
		if index != nil {
			i = index[j]
		}
		failed, left := again[w.key(i)]
		switch {
		case err == nil:
			w.ledger.Settle(i)
		case behind != nil && behind[j] && failed: // another call would take it past that one
			w.note(ctx, i, errHeldBack)
		case behind != nil && behind[j]:
			w.again = append(w.again, i)
			if again != nil {
				again[w.keys[i]] = false
			}
		case left:
			if w.judge(ctx, i, err) {
				w.blocking = append(w.blocking, i)
				again[w.keys[i]] = true
			}
		default:
			w.note(ctx, i, err)
		}
	}
	w.blockAfterAgain()
	switch {
	case len(w.again) > 0:
		w.tried, w.partly = false, true
	case !w.partly:
		w.at = w.to
	}
}

// blockAfterAgain holds keys back once no earlier record of theirs is left for another call.
func (w *worker[T]) blockAfterAgain() {
	if len(w.again) > 0 {
		return
	}
	for _, i := range w.blocking {
		w.blocked.Block(w.keys[i])
	}
	w.blocking = nil
}

// leaveAgain has records that come after one that gets no other call now wait for that,
// and not for what they asked for themselves.
func (w *worker[T]) leaveAgain() {
	if len(w.again) == 0 || len(w.blocking) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.blocking {
		if w.ledger.State(i) == ledger.Pending {
			w.ledger.Leave(i, errHeldBack)
		}
	}
}

// leftBehind says which records of a call ApplyBatch did not apply behind a failed one,
// nil where it says so of none, or of all: these it would leave again and again.
func (w *worker[T]) leftBehind(ctx context.Context, errs []error) []bool {
	behind, n := make([]bool, len(errs)), 0
	for j, err := range errs {
		if behind[j] = behindFailed(ctx, err); behind[j] {
			n++
		}
	}
	if n == 0 || n == len(errs) {
		return nil
	}
	return behind
}

// unburdened returns the records of the claim that may go together, and their
// indices where they are not simply those of the claim.
func (w *worker[T]) unburdened(ctx context.Context) (records []T, index []int) {
	if again := w.again; again != nil {
		w.again = nil
		return w.willing(ctx, again)
	}
	if !w.careful && !w.alert.Load() {
		return w.ledger.Records[w.at:w.to:w.to], nil
	}
	list := make([]int, 0, w.to-w.at)
	var behind map[string]bool // keys of records that go alone
	for at := w.at; at < w.to; at++ {
		i := w.record(at)
		switch {
		case w.alone(i):
			if w.keys != nil {
				if behind == nil {
					behind = make(map[string]bool)
				}
				behind[w.keys[i]] = true
			}
		case behind == nil || !behind[w.keys[i]]:
			list = append(list, i)
		}
	}
	return w.willing(ctx, list)
}

// willing returns those of some records that are not withheld, with their indices.
func (w *worker[T]) willing(ctx context.Context, list []int) (records []T, index []int) {
	index = list[:0]
	for _, i := range list {
		if err := w.withheld(i); err != nil {
			w.note(ctx, i, err)
			continue
		}
		index = append(index, i)
		records = append(records, w.ledger.Records[i])
	}
	return records, index
}
