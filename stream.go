package courier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// stream is one run of a streaming coordinator. The director, which is the
// goroutine of Start, owns every field that is no channel, runs no user code,
// and never blocks on a send: each channel has room for all that can be under
// way. Fetches, applies and settlements have goroutines of their own.
type stream[T any] struct {
	*pipeline[T]
	leave  context.Context // once it has ended, workers begin no record
	intake context.Context // what is fetched under
	close  context.CancelCauseFunc

	wanted  chan request        // to the fetcher
	fetched chan fetchResult[T] // from it
	todo    chan *share[T]      // to the workers
	done    chan *share[T]      // from them
	jobs    chan *job[T]        // to the settler
	settled chan error          // from it
	losses  chan struct{}       // from the renewals: leases were lost

	limit     int                     // of the records in hand
	inHand    int                     // records fetched and neither marked nor given back
	queue     []item[T]               // to be applied, in this order
	again     engine.Heap[item[T]]    // to be applied in between, by their numbers; only where there is an order
	drewAgain bool                    // the last record that was drawn was one of these
	fresh     []fresh[T]              // to be applied after those, as they were fetched
	unread    int                     // how many records these are
	waiting   engine.Waiting[item[T]] // failed, or between two attempts, and those behind them or behind one at a worker in the order of their key
	returns   []item[T]               // failed, to go back to the source
	mu        sync.Mutex              // over what is out, for drainOver
	out       []*share[T]             // with the workers, in the order they were handed out
	spare     []*share[T]
	marks     engine.MarkQueue[T]          // what waits to be marked
	back      engine.Releases[numbered[T]] // to be released
	faulty    faults[T]                    // to be reported
	pace      time.Duration                // of a record at a worker, lately

	asking   bool        // the fetcher is at work
	fetching atomic.Bool // and has called the source
	job      *job[T]     // what the settler is at
	turn     jobKind     // the last job's
	eof      bool
	paused   bool // by Pause
	stopping bool
	shut     bool // a breaker of the stack is why pausedUntil is set
	full     fullHand
	probing  bool // the breaker may be probed, with one record at a time
	sparing  bool // suspects wait for others to close the breaker

	pausedUntil, fetchAt, markAt, flushAt time.Time
	lookAt, refusedUntil, spareUntil      time.Time
	movedAt                               time.Time // a record was applied, or the stream came to its end
	pausePace, fetchPace, refusePace      callPace
	failing                               onlyFailures

	markLost error
}

// item is a record in hand, with its history once it has one.
type item[T any] struct {
	numbered[T]
	key  string // where an order was asked for
	past *past
}

// past is what happened to a record before.
type past struct {
	unkeyed error     // why its order key is not known
	used    history   // attempts interrupted by an open breaker
	refused bool      // the last time, which was no attempt
	asked   bool      // it waits because its own error says so
	asks    int       // how often in a row it did
	suspect bool      // the breaker opened over it, or stayed open
	probes  int       // in vain
	tries   callPace  // deliveries that failed
	due     time.Time // of the next one
	err     error     // of it
}

func (it *item[T]) history() *past {
	if it.past == nil {
		it.past = new(past)
	}
	return it.past
}

func (it *item[T]) suspect() bool { return it.past != nil && it.past.suspect }

// request is a call for the fetcher.
type request struct {
	ctx   context.Context
	limit int
}

// errHeldUp is why records are not marked that were applied.
var errHeldUp = errors.New("marks are in the order fetched, and a record before them is not settled")

func newStream[T any](ctx context.Context, c *StreamingCoordinator[T]) *stream[T] {
	n := c.config.workers
	s := &stream[T]{
		pipeline: newPipeline(c.control, &c.config, c.source, c.applier),
		limit:    c.config.batchSize * (1 + c.config.prefetch),
		wanted:   make(chan request, 1),
		fetched:  make(chan fetchResult[T], 1),
		todo:     make(chan *share[T], n),
		done:     make(chan *share[T], n),
		jobs:     make(chan *job[T], 1),
		settled:  make(chan error, 1),
		losses:   make(chan struct{}, 1),
		again:    engine.Heap[item[T]]{Before: fetchedBefore[T]},
	}
	s.marks = engine.NewMarkQueue[T](c.config.batchSize, c.config.orderedMarks, s.leases != nil)
	s.begin(ctx, s.inProgress, s.fetching.Load)
	s.life.applying.Store(true) // the director says when that has ended
	// After a stop, records that were not begun go back to a source that takes
	// them; to leave them alone otherwise would be to lose them.
	s.leave = s.life.work
	if s.releaser != nil {
		s.leave = ctx
	}
	s.intake, s.close = context.WithCancelCause(ctx)
	return s
}

func (s *stream[T]) run() error {
	var helpers sync.WaitGroup
	helpers.Go(s.serveFetches)
	helpers.Go(s.serveJobs)
	if s.renewer != nil {
		helpers.Go(func() { s.renewLeases(s.tellLost) })
	}
	for range s.config.workers {
		helpers.Go(func() { work(s.leave, s.life.work, s.todo) })
	}
	helpers.Go(s.stalls.loop)
	s.direct()
	close(s.wanted)
	close(s.todo)
	close(s.jobs)
	s.endRenewals(ErrStopped)
	s.stalls.end()
	helpers.Wait()
	s.close(ErrStopped)
	s.life.end()

	var unsettled error
	s.unpack()
	left := append(s.queue, itemsOf(s.waiting.All())...)
	if len(left) > 0 {
		byNumber(left)
		e := &UnsettledError[T]{Records: make([]T, len(left))}
		for i, it := range left {
			e.Records[i] = it.record
			if e.Err == nil && it.past != nil {
				e.Err = it.past.err
			}
		}
		unsettled = e
	}
	if n := len(s.marks.HeldUp()); n > 0 && s.markLost == nil {
		s.markLost = &MarkError{n, errHeldUp}
	}
	err := errors.Join(s.markLost, unsettled)
	s.watch.stopped(s.life.settle, StopEvent{Unsettled: len(left), Err: err})
	return err
}

// direct is the director's loop: do all that can be done now, then wait until
// something happens.
func (s *stream[T]) direct() {
	alarms := newAlarms(s.config.clock)
	defer alarms.end()
	for {
		if s.life.stop.Err() != nil && !s.stopping {
			s.stopping, s.markAt = true, time.Time{} // the time of marks is short
			s.close(context.Cause(s.life.stop))      // before records are given back, which a fetch under way would take
		}
		now := s.config.clock.Now()
		if s.act(now) {
			return
		}
		var stopped <-chan struct{} // the next phase of the stop
		for _, ctx := range [...]context.Context{s.life.stop, s.life.work, s.life.settle} {
			if ctx.Err() == nil {
				stopped = ctx.Done()
				break
			}
		}
		alarms.set(s.next(now), now)
		select {
		case r := <-s.fetched:
			s.receive(r)
		case sh := <-s.done:
			s.finish(sh)
		case err := <-s.settled:
			s.finishJob(err)
		case <-s.losses:
			s.dropLost()
		case a := <-alarms.rings:
			alarms.rang(a)
		case <-s.control.wake:
			s.fetchAt, s.refusedUntil = time.Time{}, time.Time{}
			if !s.shut {
				s.pausedUntil = time.Time{}
			}
		case <-s.control.stirred:
		case <-stopped:
		}
		s.finishAll()
	}
}

// finishAll takes in what other workers have done meanwhile: many that end
// together are to be given something again together.
func (s *stream[T]) finishAll() {
	for {
		select {
		case sh := <-s.done:
			s.finish(sh)
		default:
			return
		}
	}
}

// act starts whatever may start, and reports whether nothing is left to do.
func (s *stream[T]) act(now time.Time) (finished bool) {
	s.sparing = false
	g := gateOf(s.control.breakers)
	if s.shut && !g.closed { // by its time, or by hand before that
		s.shut, s.pausedUntil = false, time.Time{}
	}
	if g.closed || g.probe {
		s.probing, s.shut = true, g.closed
		if g.closed && len(s.out) == 0 { // it has opened again, and not for a probe of this stream
			s.spareUntil = time.Time{}
		}
		s.sparing = g.probe && now.Before(s.spareUntil) && !s.stopping
		if until := s.config.clock.of(g.until); until.After(s.pausedUntil) {
			s.pausedUntil = until
		}
	}
	switch { // a share brings along what its records have done
	case len(s.out) > 0 || s.stopping:
	case g.closed:
		s.watch.paused(s.life.settle, byBreaker, PauseEvent{Until: g.until, Err: g.cause}, true)
	case s.watch.gated && passing(s.control.breakers):
		s.watch.resumed(s.life.settle, byBreaker)
	}
	s.heed()
	open := now.Before(s.pausedUntil) || g.closed && g.until.IsZero() // a breaker is, or is forced open
	// A queue is worked off unless nobody will take it any more: a stop does not
	// wait for a breaker to close (C-5).
	over := s.leave.Err() != nil || s.stopping && open || s.eof && len(s.out) == 0 && s.hopeless()

	s.look(now)
	s.wakeHeld(now, s.stopping)
	if !over && !open {
		s.handOut(now)
		over = s.stopping && !s.asking && len(s.out) == 0 // what is left waits for what will not be applied
	}
	if over && s.releaser != nil {
		s.giveBackAll()
	}
	s.lookAgain(now)
	if s.eof && len(s.out) == 0 && s.queued() == 0 && !s.retrying() && s.releaser != nil {
		s.wakeHeld(now, true) // nothing of it will be tried again
		s.giveBackAll()
	}
	if (s.stopping || s.eof) && !s.asking && s.releaser != nil && len(s.out)+s.queued()+s.waiting.Held()+len(s.returns) == 0 {
		s.giveBackWaiting()
	}
	if s.stopping && !s.asking && len(s.out) == 0 && (over || s.queued() == 0) {
		s.life.lastApplied()
	}
	if s.job == nil {
		s.settle(now, s.stopping || open)
	}
	if s.inHand < s.limit && !s.stopping && !s.paused && !open {
		s.full.ease(s.life.settle, s.watch, s.inHand <= s.limit/2)
	}
	if !s.asking && !s.eof && !s.stopping && !open && !s.paused && s.markPace.tries == 0 && !now.Before(s.refusedUntil) {
		s.ask(now)
	}
	if s.asking || len(s.out) > 0 || s.job != nil || len(s.marks.Ready()) > 0 || s.back.Some() || len(s.faulty.failed) > 0 {
		return false
	}
	return over || (s.stopping || s.eof && !s.retrying()) && s.queued() == 0
}

// heed follows Pause and Resume. A fetch that blocks is called back, for its
// records would otherwise be taken in during the pause.
func (s *stream[T]) heed() {
	paused := s.control.paused() != nil && !s.stopping
	switch {
	case paused && !s.paused:
		s.watch.paused(s.life.settle, byPause, PauseEvent{}, true)
		s.close(ErrPaused)
	case !paused && s.paused && !s.stopping:
		s.watch.resumed(s.life.settle, byPause)
		s.fetchAt, s.refusedUntil = time.Time{}, time.Time{}
	}
	s.paused = paused
	if !paused && !s.asking && s.intake.Err() != nil && !s.stopping {
		s.intake, s.close = context.WithCancelCause(s.life.stop)
	}
}

// ask has the fetcher fetch, if there is room in hand and it is time to.
func (s *stream[T]) ask(now time.Time) {
	want := min(s.limit-s.inHand, s.config.batchSize)
	if s.probing {
		s.unpack()
		// A probe needs another record only when all in hand are suspects.
		want = 0
		if s.allSuspect() && s.inHand < max(s.limit, minWindow) {
			want = 1
		}
	}
	if want > 0 {
		if !now.Before(s.fetchAt) {
			s.asking = true
			s.wanted <- request{s.intake, want}
		}
	} else if !s.probing && len(s.out)+s.queued() == 0 && len(s.marks.Ready()) == 0 && s.job == nil && !s.back.Some() && len(s.faulty.failed) == 0 {
		var last error
		var record any
		if one := s.waiting.First(); one != nil {
			record, last = one.Value.record, one.Value.past.err
		}
		s.full.tell(s.life.settle, s.watch, PauseEvent{Waiting: s.waiting.Held()}, record, last)
	}
}

// lastTries is how often a record is delivered that fails at the end of the
// stream, before Start hands it back to its caller.
const lastTries = 3

// lastProbes is how often a record is the probe at the end of the stream: with
// the default policy, for about five minutes. It is also how often a record may ask to
// come later (see [Later]) that comes to nothing, and lastWait for how long at least.
const (
	lastProbes = 10
	lastWait   = 5 * time.Minute
)

// hopeless reports whether the end of the stream has left only records that an
// open breaker was probed with in vain. No other record will come to tell
// whether it is they or the destination.
func (s *stream[T]) hopeless() bool {
	if s.unread > 0 {
		return false
	}
	s.unpack()
	behind := make(map[string]bool) // keys that are met
	for _, it := range s.queue {
		if (it.past == nil || it.past.probes < lastProbes) && !behind[it.key] {
			return false
		}
		behind[it.key] = s.keyOf != nil
	}
	return len(s.queue) > 0 && !s.retrying()
}

// retrying reports whether a held record is worth waiting for at the end of
// the stream.
func (s *stream[T]) retrying() bool {
	now := s.config.clock.Now()
	return s.waiting.AnyHeld(func(it *item[T]) bool {
		switch p := it.past; {
		case p.tries.tries >= lastTries, p.asked && s.releaser != nil:
			return false
		default:
			return p.asks < lastProbes || now.Sub(s.movedAt) < lastWait
		}
	})
}

// next is the earliest time at which act has something to do that no event
// announces, zero if there is none.
func (s *stream[T]) next(now time.Time) time.Time {
	var first time.Time
	consider := func(t time.Time) {
		if t.After(now) && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	consider(s.pausedUntil)
	consider(s.lookAt)
	if s.sparing {
		consider(s.spareUntil)
	}
	if !s.stopping {
		consider(s.full.again)
		consider(s.fetchAt)
		consider(s.refusedUntil)
		if due, some := s.waiting.Next(); some {
			consider(due)
		}
	}
	if len(s.marks.Ready()) > 0 && s.job == nil {
		consider(s.markAt)
		consider(s.flushAt)
	}
	return first
}

// receive takes in what the fetcher brought.
func (s *stream[T]) receive(r fetchResult[T]) {
	s.asking = false
	n := len(r.records)
	s.inHand += n
	if s.keyOf == nil && n > 0 {
		s.fresh = append(s.fresh, fresh[T]{r.records, r.first})
		s.unread += n
	}
	for i, record := range r.records {
		if s.keyOf != nil {
			it := item[T]{numbered: numbered[T]{record, r.first + uint64(i)}, key: r.keys[i]}
			if bad := r.unkeyed[i]; bad != nil {
				it.history().unkeyed = bad
				it.key = fmt.Sprintf("courier: none, record %d", it.number) // in the order of no other
			}
			s.queue = append(s.queue, it)
		}
		s.marks.Enter(record)
	}
	event := FetchEvent{Records: n, Err: r.err, Elapsed: r.took}
	cancelled := false
	switch {
	case r.err == io.EOF: // not wrapped: that is a connection that broke
		s.eof, s.movedAt = true, s.config.clock.Now()
		event.Err = nil
	case r.err == nil && n > 0:
		s.fetchPace = callPace{}
	case s.intake.Err() == nil:
		// Nothing without an error is a source that does not block; it would
		// keep a processor busy.
		event.RetryIn = s.fetchPace.after(s.config, r.err)
		s.fetchAt = s.config.clock.Now().Add(event.RetryIn)
	default:
		cancelled = true
	}
	s.watch.count.inHand.Add(int64(n))
	s.watch.fetched(s.life.settle, event, cancelled)
}

// The goroutines that call the source.

func (s *stream[T]) serveFetches() {
	var began time.Time // of the call, where its duration is asked for
	var result fetchResult[T]
	serve(s.wanted, func(r request, again bool) {
		if !again {
			s.fetching.Store(true)
			s.watch.begins(&s.watch.fetching, "")
			began = s.watch.now(s.watch.observer.Fetched != nil)
			s.callFetch(r.ctx, r.limit, &result)
		}
		s.fetching.Store(false)
		s.watch.ends(&s.watch.fetching)
		result.took = s.watch.since(s.watch.observer.Fetched != nil, began)
		result.keys, result.unkeyed = s.keysOf(nil, result.records)
		s.fetched <- result
		result = fetchResult[T]{} // for the garbage collector
	})
}

func (s *stream[T]) serveJobs() {
	var result error
	serve(s.jobs, func(j *job[T], again bool) {
		if !again {
			s.call(j, &result)
		}
		s.callEnded()
		s.settled <- result
	})
}
