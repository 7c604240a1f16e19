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

	place  func(i int) string // of a record that has no name
	number func(i int) uint64 // of a record in the order fetched

	stepwise bool          // somebody follows how far the only hand is
	unkeyed  map[int]error // of the records whose key function panicked

	begun   atomic.Bool // a record was
	alert   atomic.Bool // before the next record, look whether it is still to be begun
	careful bool        // as if there were an alert always
	exact   atomic.Bool // the hands write down each record, and not the claim alone
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

// reset begins a new batch, to be shared by some hands. Where an order was asked
// for, the keys are the records'.
func (b *batch[T]) reset(records []T, past []history, keys []string, hands int) {
	b.turn++
	b.ledger.Reset(records)
	b.past, b.keys = past, keys
	b.halted, b.unkeyed = halt{}, nil
	if hands <= 1 && (b.together == nil || b.ordered) { // one by one is in order
		keys = nil
	}
	b.claims.Reset(len(records), keys, hands)
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

// verdict returns what became of a record that has its verdict, also while the hand
// goes on.
func (b *batch[T]) verdict(i int) (ledger.State, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.State(i), b.ledger.Err(i)
}

// alone reports whether a record is not to be in one call with others.
func (b *batch[T]) alone(i int) bool { return b.past != nil && b.past[i].alone() }

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

// cutShort keeps a hand that goes stepwise from going on behind what it is at,
// and returns where that is.
func (b *batch[T]) cutShort() (begun int) {
	if b.claims.Chained() {
		return len(b.ledger.Records)
	}
	return b.claims.CutShort()
}

// crew is the hands that share a batch. They are roused by each other, as long as
// there is something to claim: for records that cost little the first has done
// them all before the last would be awake.
type crew[T any] struct {
	hands  []hand[T]
	todo   chan *hand[T] // to the workers
	ended  chan struct{} // all that were roused are done
	asleep atomic.Int32
	awake  atomic.Int32
}

// orNone returns nil for the crew of an only hand, which nobody wakes.
func (c *crew[T]) orNone() *crew[T] {
	if c.todo == nil {
		return nil
	}
	return c
}

// work has some hands work a batch off, and waits for them.
func (c *crew[T]) work(hands int) {
	c.awake.Store(1)
	c.asleep.Store(int32(hands - 1))
	c.todo <- &c.hands[hands-1]
	<-c.ended
}

// rouse wakes up to two more hands. The caller is awake.
func (c *crew[T]) rouse() {
	for range 2 {
		n := c.asleep.Add(-1)
		if n < 0 {
			return
		}
		c.awake.Add(1)
		c.todo <- &c.hands[n]
	}
}

// done lets the one who waits go on when the last hand is.
func (h *hand[T]) done() {
	if h.crew.awake.Add(-1) == 0 {
		h.crew.ended <- struct{}{}
	}
}

// hand is one worker's place in a batch. When user code ends the worker's
// goroutine (runtime.Goexit), run is called again on another and goes on behind
// the record that did it.
type hand[T any] struct {
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

	doing atomic.Uint64   // see show
	ctx   context.Context // what the last run was under
	calls *exits          // of that; written under the batch's lock
	began time.Time       // of the call, where its duration is asked for

	_ [64]byte // keeps the hands off each other's cache lines
}

func (h *hand[T]) reset(b *batch[T], c *crew[T]) {
	*h = hand[T]{batch: b, list: h.list[:0], cutChain: -1, crew: c, ctx: h.ctx, calls: h.calls}
}

// run applies what it can claim until nothing is left, stop has ended, or the
// destination takes nothing for now. What it leaves is pending.
func (h *hand[T]) run(stop, ctx context.Context) {
	if h.ctx != ctx {
		h.under(ctx)
	}
	h.calls.unwatched()
	switch {
	case h.exit != nil:
		h.resume(ctx)
	case h.group != nil: // the call of ApplyBatch ended the goroutine
		h.settleTogether(ctx)
	}
	for (h.at < h.to || h.advance()) && !h.over(stop) {
		if h.together != nil && !h.tried {
			h.tried = true
			h.applyTogether(ctx)
			continue
		}
		if h.careful || h.together != nil || h.alert.Load() {
			h.applyCarefully(stop, ctx)
		} else {
			h.applyAll(stop, ctx)
		}
	}
	h.leaveAgain()
	h.doing.Store(uint64(nothing))
}

// advance goes on to the next records of the chains in hand, or claims more.
func (h *hand[T]) advance() bool {
	h.tried, h.partly = false, false
	if !h.claims.Chained() {
		h.at, h.to = h.claims.Claim()
		h.callOthers()
		return h.at < h.to
	}
	if h.ordered {
		h.fill()
		h.callOthers()
		h.at, h.to = 0, len(h.list)
		return h.to > 0
	}
	h.list = h.claims.Chains.Follow(h.list)
	if len(h.list) == 0 {
		from, to := h.claims.Claim()
		h.list = append(h.list, h.claims.Chains.Heads[from:to]...)
		h.callOthers()
	}
	h.at, h.to = 0, len(h.list)
	return h.to > 0
}

// fill claims whole chains, as many as make up the hand's share of the batch, or a call.
// What there is no room for in a call comes first in the next one.
func (h *hand[T]) fill() {
	n := len(h.ledger.Records)
	most := or(h.portion, n)
	share := min(most, (n+h.claims.Workers-1)/h.claims.Workers)
	h.list = h.list[:0]
	h.draw(h.cutChain, most)
	if room := share - len(h.list); room > 0 {
		from, to := h.claims.ClaimChains(room)
		for _, head := range h.claims.Chains.Heads[from:to] {
			h.draw(head, most)
		}
	}
	slices.Sort(h.list)
}

// draw adds the records of a chain to the claim, from one on, until there are as many as
// a call may have.
func (h *hand[T]) draw(i, most int) {
	for ; i >= 0 && len(h.list) < most; i = h.claims.Chains.After[i] {
		h.list = append(h.list, i)
	}
	h.cutChain = i
}

// callOthers has further hands woken once the first claim was made, if that left
// anything.
func (h *hand[T]) callOthers() {
	if h.crew != nil && !h.roused && h.claims.Left() {
		h.roused = true
		h.crew.rouse()
	}
}

// record returns the index of the record that is at a place of the claim.
func (h *hand[T]) record(at int) int {
	if h.claims.Chained() {
		return h.list[at]
	}
	return at
}

// applyAll is the fast path: records one after the other, and claims one after
// the other, until one panics. One deferred call for all of them is what makes a
// panic cost nothing to those that do not.
func (h *hand[T]) applyAll(stop, ctx context.Context) {
	h.calling = true
	defer h.caught(ctx)
	if !h.begun.Load() {
		h.begun.Store(true)
	}
	h.show(h.at, h.to-h.at, false)
	apply := h.apply
	for h.at < h.to {
		records, i := h.ledger.Records[:h.to], h.at
		h.unsettled = i
		for ; i < len(records) && stop.Err() == nil && !h.alert.Load(); i++ {
			if h.at = i; h.exact.Load() {
				h.doing.Store(uint64(doingOf(i, 1, false)))
			}
			if err := apply(ctx, records[i]); err != nil {
				h.ledger.SettleRun(h.unsettled, i)
				h.unsettled = i + 1
				h.note(ctx, i, sound(err))
			}
		}
		h.ledger.SettleRun(h.unsettled, i)
		if h.at = i; i < h.to {
			break
		}
		h.at, h.to = h.claims.Claim()
		h.show(h.at, h.to-h.at, false)
	}
	h.calling = false
}

// applyCarefully is applyAll where a record may be withheld, or has a history.
func (h *hand[T]) applyCarefully(stop, ctx context.Context) {
	defer h.caught(ctx)
	for ; h.at < h.to && !h.over(stop); h.at++ {
		i := h.record(h.at)
		if h.partly && h.judged(i) {
			continue
		}
		if err := h.withheld(i); err != nil {
			h.note(ctx, i, err)
			continue
		}
		h.begun.Store(true)
		h.show(i, 1, false)
		h.tellStarted(ctx, i)
		h.calling, h.unsettled = true, h.at
		err := h.apply(h.with(ctx, i), h.ledger.Records[i])
		h.calling = false
		h.enter(ctx, i, sound(err))
	}
}

// with returns the context of one record, which has its history.
func (h *hand[T]) with(ctx context.Context, i int) context.Context {
	if h.past == nil {
		return ctx
	}
	return withHistories(ctx, h.past[i:i+1])
}

// enter tells of a record that was applied, and enters its verdict.
func (h *hand[T]) enter(ctx context.Context, i int, err error) {
	h.tellEnded(ctx, i, err)
	if err == nil {
		h.ledger.Settle(i)
	} else {
		h.note(ctx, i, err)
	}
}

// describe names a record for people, by its place where it has no name.
func (b *batch[T]) describe(i int) string {
	if name := b.watch.name(b.ledger.Records[i]); name != "" {
		return name
	}
	return b.place(i)
}

// tellStarted and tellEnded tell of every record, where somebody wants to know.
func (h *hand[T]) tellStarted(ctx context.Context, i int) {
	if f := h.watch.observer.RecordStarted; f != nil {
		tell(ctx, f, RecordEvent{Record: h.describe(i)})
	}
	h.began = h.watch.now(h.watch.observer.RecordEnded != nil)
}

func (h *hand[T]) tellEnded(ctx context.Context, i int, err error) {
	if f := h.watch.observer.RecordEnded; f != nil {
		tell(ctx, f, RecordEvent{Record: h.describe(i), Elapsed: h.watch.since(true, h.began), Err: err})
	}
}

// caught enters a panic as the failure of its record. Where it was a Goexit, the
// hand goes on with the same record on another goroutine.
func (h *hand[T]) caught(ctx context.Context) {
	if !h.calling {
		return
	}
	h.calling = false
	if h.unsettled < h.at {
		h.ledger.SettleRun(h.unsettled, h.at)
	}
	err := newPanicError(recover())
	if err.Goexit() {
		h.exit = err
		return
	}
	h.enter(ctx, h.record(h.at), err)
	h.at++
}

// resume goes on with the record whose call ended the goroutine before this one.
func (h *hand[T]) resume(ctx context.Context) {
	i, exit := h.record(h.at), h.exit
	h.exit = nil
	h.enter(ctx, i, afterExit(h.with(ctx, i), h.applier, h.ledger.Records[i], exit))
	h.at++
}

// applyTogether applies as one batch the records of the claim, but for those that may be
// poison: they go alone rather than fail the batch for all. After a batch that failed as
// one, all go alone.
func (h *hand[T]) applyTogether(ctx context.Context) {
	records, index := h.unburdened(ctx)
	if len(records) == 0 {
		h.partly = true
		h.blockAfterAgain()
		return
	}
	h.begun.Store(true)
	for _, i := range index { // which there is where somebody wants to know
		h.tellStarted(ctx, i)
	}
	h.group, h.index = records, index
	h.showTogether()
	share := ctx
	if h.past != nil {
		share = historiesOf(withHistories(ctx, h.past), len(h.past), index)
	}
	guard(&h.outcome.whole, func() error {
		h.outcome = applyMany(share, h.together, records)
		return h.outcome.whole
	})
	h.settleTogether(ctx)
}

// settleTogether enters the verdicts of a batch.
func (h *hand[T]) settleTogether(ctx context.Context) {
	records, index, v := h.group, h.index, h.outcome
	h.group, h.index, h.outcome = nil, nil, verdicts{}
	if v.ok() && index == nil { // apart, to allocate nothing
		h.ledger.SettleRun(h.at, h.to)
		h.at = h.to
		return
	}
	errs := v.of(len(records))
	for j, i := range index {
		h.tellEnded(ctx, i, errs[j])
	}
	h.partly = index != nil
	if v.whole != nil && len(records) > 1 && classify(ctx, v.whole) != ClassNotAttempted {
		return
	}
	behind := h.leftBehind(ctx, errs)
	var again map[string]bool // the keys of those left behind, and whether one after these has an error
	if behind != nil && h.keys != nil {
		again = make(map[string]bool)
	}
	for j, err := range errs {
		i := h.at + j
		if index != nil {
			i = index[j]
		}
		failed, left := again[h.key(i)]
		switch {
		case err == nil:
			h.ledger.Settle(i)
		case behind != nil && behind[j] && failed: // another call would take it past that one
			h.note(ctx, i, errHeldBack)
		case behind != nil && behind[j]:
			h.again = append(h.again, i)
			if again != nil {
				again[h.keys[i]] = false
			}
		case left:
			if h.judge(ctx, i, err) {
				h.blocking = append(h.blocking, i)
				again[h.keys[i]] = true
			}
		default:
			h.note(ctx, i, err)
		}
	}
	h.blockAfterAgain()
	switch {
	case len(h.again) > 0:
		h.tried, h.partly = false, true
	case !h.partly:
		h.at = h.to
	}
}

// blockAfterAgain holds keys back once no earlier record of theirs is left for another call.
func (h *hand[T]) blockAfterAgain() {
	if len(h.again) > 0 {
		return
	}
	for _, i := range h.blocking {
		h.blocked.Block(h.keys[i])
	}
	h.blocking = nil
}

// leaveAgain has records that come after one that gets no other call now wait for that,
// and not for what they asked for themselves.
func (h *hand[T]) leaveAgain() {
	if len(h.again) == 0 || len(h.blocking) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.blocking {
		if h.ledger.State(i) == ledger.Pending {
			h.ledger.Leave(i, errHeldBack)
		}
	}
}

// leftBehind says which records of a call ApplyBatch did not apply behind a failed one,
// nil where it says so of none, or of all: these it would leave again and again.
func (h *hand[T]) leftBehind(ctx context.Context, errs []error) []bool {
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
func (h *hand[T]) unburdened(ctx context.Context) (records []T, index []int) {
	if again := h.again; again != nil {
		h.again = nil
		return h.willing(ctx, again)
	}
	if !h.careful && !h.alert.Load() {
		return h.ledger.Records[h.at:h.to:h.to], nil
	}
	list := make([]int, 0, h.to-h.at)
	var behind map[string]bool // keys of records that go alone
	for at := h.at; at < h.to; at++ {
		i := h.record(at)
		switch {
		case h.alone(i):
			if h.keys != nil {
				if behind == nil {
					behind = make(map[string]bool)
				}
				behind[h.keys[i]] = true
			}
		case behind == nil || !behind[h.keys[i]]:
			list = append(list, i)
		}
	}
	return h.willing(ctx, list)
}

// willing returns those of some records that are not withheld, with their indices.
func (h *hand[T]) willing(ctx context.Context, list []int) (records []T, index []int) {
	index = list[:0]
	for _, i := range list {
		if err := h.withheld(i); err != nil {
			h.note(ctx, i, err)
			continue
		}
		index = append(index, i)
		records = append(records, h.ledger.Records[i])
	}
	return records, index
}
