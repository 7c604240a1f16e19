package courier

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

// stream is one run of a streaming coordinator. The director, which is the
// goroutine of Start, owns every field that is no channel, runs no user code,
// and never blocks on a send: each channel has room for all that can be under
// way. Fetches, applies and settlements have goroutines of their own.
type stream[T any] struct {
	config   *config
	source   Source[T]
	releaser Releaser[T] // nil if the source is none
	applier  Applier[T]
	batch    BatchApplier[T]
	breakers []*Breaker // to be asked before a fetch (D6)
	identity func(T) string
	life     *lifecycle
	leave    context.Context // once it has ended, workers begin no record
	intake   context.Context // what is fetched under
	close    context.CancelCauseFunc

	wanted  chan int            // to the fetcher: at most how many records
	fetched chan fetchResult[T] // from it
	todo    chan *share[T]      // to the workers
	done    chan *share[T]      // from them
	jobs    chan job[T]         // to the settler
	settled chan error          // from it

	inHand   int       // records fetched and neither marked nor released
	queue    []item[T] // to be applied, in this order
	held     []item[T] // failed, to be tried again when due
	unmarked []T       // applied
	back     []T       // to be released
	backFor  time.Duration
	spare    []*share[T]

	asking   bool    // the fetcher is at work
	working  int     // shares with the workers
	job      *job[T] // what the settler is at
	released bool    // its last job was a release
	eof      bool
	stopping bool
	probing  bool // the breaker may be probed, with one record at a time
	sparing  bool // suspects wait for others to close the breaker

	pausedUntil, fetchAt, markAt, flushAt      time.Time
	refusedAt, spareUntil                      time.Time
	pausePace, fetchPace, markPace, refusePace trouble

	fatal    error
	markLost error
}

// item is a record in hand, with its history once it has one.
type item[T any] struct {
	record T
	past   *past
}

// past is what happened to a record before.
type past struct {
	used    history   // attempts interrupted by an open breaker
	suspect bool      // the breaker opened over it, or stayed open
	probes  int       // in vain
	tries   trouble   // deliveries that failed
	due     time.Time // of the next one
	err     error     // of the last one
}

func (it *item[T]) history() *past {
	if it.past == nil {
		it.past = new(past)
	}
	return it.past
}

func (it *item[T]) suspect() bool { return it.past != nil && it.past.suspect }

type fetchResult[T any] struct {
	records []T
	err     error
}

// share is what a worker is given at a time.
type share[T any] struct {
	work  work[T]
	items []item[T]
	probe bool
}

// job is one call for the settler: a mark, or a release.
type job[T any] struct {
	release bool
	records []T
	after   time.Duration
}

func newStream[T any](ctx context.Context, c *StreamingCoordinator[T]) *stream[T] {
	s := &stream[T]{
		config:   &c.config,
		source:   c.source,
		applier:  c.applier,
		batch:    asBatch(c.applier),
		breakers: breakersOf(c.applier),
		life:     beginLifecycle(ctx, c.config.clock, c.config.drainTimeout),
		wanted:   make(chan int, 1),
		fetched:  make(chan fetchResult[T], 1),
		todo:     make(chan *share[T], c.config.workers),
		done:     make(chan *share[T], c.config.workers),
		jobs:     make(chan job[T], 1),
		settled:  make(chan error, 1),
	}
	s.life.applying.Store(true) // the director says when that has ended
	// After a stop, records that were not begun go back to a source that takes
	// them; to leave them alone otherwise would be to lose them.
	s.leave = s.life.work
	if s.releaser, _ = c.source.(Releaser[T]); s.releaser != nil {
		s.leave = ctx
	}
	if named, ok := c.source.(Identifier[T]); ok {
		s.identity = named.Identity
	}
	s.intake, s.close = context.WithCancelCause(ctx)
	return s
}

func (s *stream[T]) run() error {
	var helpers sync.WaitGroup
	helpers.Go(func() { supervise((&fetcher[T]{stream: s}).loop) })
	helpers.Go(func() { supervise((&settler[T]{stream: s}).loop) })
	for range s.config.workers {
		helpers.Go(func() { supervise((&worker[T]{stream: s}).loop) })
	}
	s.direct()
	close(s.wanted)
	close(s.todo)
	close(s.jobs)
	helpers.Wait()
	s.close(ErrStopped)
	s.life.end()

	var unsettled error
	if left := append(s.queue, s.held...); len(left) > 0 {
		e := &UnsettledError[T]{Records: make([]T, len(left))}
		for i, it := range left {
			e.Records[i] = it.record
			if e.Err == nil && it.past != nil {
				e.Err = it.past.err
			}
		}
		s.config.logger.Error("courier: records were not settled and cannot be given back: Start returns them", "records", len(left), "first_error", e.Err)
		unsettled = e
	}
	return errors.Join(s.fatal, s.markLost, unsettled)
}

// direct is the director's loop: do all that can be done now, then wait until
// something happens.
func (s *stream[T]) direct() {
	var alarm <-chan time.Time
	var alarmAt time.Time
	for {
		s.stopping = s.life.stop.Err() != nil
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
		if next := s.next(now); !next.Equal(alarmAt) {
			alarm, alarmAt = nil, next
			if !next.IsZero() {
				alarm = s.config.clock.After(next.Sub(now))
			}
		}
		select {
		case r := <-s.fetched:
			s.receive(r)
		case sh := <-s.done:
			s.collect(sh)
		case err := <-s.settled:
			s.finishJob(err)
		case <-alarm:
			alarm, alarmAt = nil, time.Time{}
		case <-stopped:
		}
	}
}

// act starts whatever may start, and reports whether nothing is left to do.
func (s *stream[T]) act(now time.Time) (finished bool) {
	closing := s.stopping || s.fatal != nil
	s.sparing = false
	if g := gateOf(s.breakers); g.closed || g.probe {
		s.probing = true
		s.sparing = g.probe && now.Before(s.spareUntil)
		if g.until.After(s.pausedUntil) {
			s.pausedUntil = g.until
		}
	}
	paused := now.Before(s.pausedUntil)
	// A queue is worked off unless nobody will take it any more: a stop does not
	// wait for a breaker to close (C-5).
	over := s.leave.Err() != nil || s.fatal != nil || closing && paused || s.eof && s.working == 0 && s.hopeless()

	s.wakeHeld(now, closing)
	if over && s.releaser != nil {
		for _, it := range s.queue {
			s.giveBack(it.record, 0)
		}
		s.queue = nil
	}
	if !over && !paused {
		s.handOut()
	}
	if s.stopping && s.working == 0 && (over || len(s.queue) == 0) {
		s.life.lastApplied()
	}
	if s.job == nil {
		s.settle(now, closing || paused)
	}
	if !s.asking && !s.eof && !closing && !paused && s.markPace.tries == 0 && !now.Before(s.fetchAt) {
		want := min(2*s.config.batchSize-s.inHand, s.config.batchSize)
		if s.probing {
			// A probe needs another record only when all in hand are suspects.
			want = 0
			if s.allSuspect() && s.inHand < max(2*s.config.batchSize, minWindow) {
				want = 1
			}
		}
		if want > 0 {
			s.asking = true
			s.wanted <- want
		}
	}
	if s.asking || s.working > 0 || s.job != nil || len(s.unmarked)+len(s.back) > 0 {
		return false
	}
	return over || (closing || s.eof && !s.retrying()) && len(s.queue) == 0
}

// lastTries is how often a record is delivered that fails at the end of the
// stream, before Start hands it back to its caller.
const lastTries = 3

// lastProbes is how often a record is the probe at the end of the stream: with
// the default policy, for about five minutes.
const lastProbes = 10

// hopeless reports whether the end of the stream has left only records that an
// open breaker was probed with in vain. No other record will come to tell
// whether it is they or the destination.
func (s *stream[T]) hopeless() bool {
	for _, it := range s.queue {
		if it.past == nil || it.past.probes < lastProbes {
			return false
		}
	}
	return len(s.queue) > 0 && !s.retrying()
}

// retrying reports whether a held record is worth waiting for at the end of
// the stream.
func (s *stream[T]) retrying() bool {
	for _, it := range s.held {
		if it.past.tries.tries < lastTries {
			return true
		}
	}
	return false
}

// wakeHeld moves failed records on: back to a source that takes them, else into
// the queue when they are due.
func (s *stream[T]) wakeHeld(now time.Time, closing bool) {
	kept := s.held[:0]
	for _, it := range s.held {
		switch {
		case s.releaser != nil && closing:
			s.giveBack(it.record, 0)
		case s.releaser != nil:
			s.giveBack(it.record, it.past.due.Sub(now))
		case !closing && !now.Before(it.past.due):
			s.queue = append(s.queue, it)
		default:
			kept = append(kept, it)
		}
	}
	clear(s.held[len(kept):])
	s.held = kept
}

func (s *stream[T]) giveBack(record T, after time.Duration) {
	s.back = append(s.back, record)
	s.backFor = max(s.backFor, after)
}

// handOut gives records to idle workers: while probing one, and one only; else
// the queue in equal shares.
func (s *stream[T]) handOut() {
	if s.probing {
		if s.working == 0 && len(s.queue) > 0 && (!s.sparing || !s.allSuspect()) {
			pick := 0
			for i := range s.queue {
				if !s.queue[i].suspect() {
					pick = i
					break
				}
			}
			probe := s.queue[pick]
			s.queue = append(s.queue[:pick], s.queue[pick+1:]...)
			s.send([]item[T]{probe}, true)
		}
		return
	}
	for idle := s.config.workers - s.working; idle > 0 && len(s.queue) > 0; idle-- {
		n := (len(s.queue) + idle - 1) / idle
		s.send(s.queue[:n], false)
		s.queue = s.queue[n:]
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

func (s *stream[T]) allSuspect() bool {
	for i := range s.queue {
		if !s.queue[i].suspect() {
			return false
		}
	}
	return true
}

func (s *stream[T]) send(items []item[T], probe bool) {
	var sh *share[T]
	if n := len(s.spare); n > 0 {
		sh, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		sh = &share[T]{work: work[T]{applier: s.applier, batch: s.batch}}
	}
	records := make([]T, len(items))
	var used []history
	for i, it := range items {
		records[i] = it.record
		if it.past != nil && it.past.used != nil {
			if used == nil {
				used = make([]history, len(items))
			}
			used[i] = it.past.used
		}
	}
	sh.items = append(sh.items[:0], items...)
	sh.probe = probe
	sh.work.reset(records, used)
	s.working++
	s.todo <- sh
}

// settle gives the settler its next job. Applied records wait for more to be
// marked with them, unless there is nothing to wait for.
func (s *stream[T]) settle(now time.Time, hurry bool) {
	n := min(len(s.unmarked), s.config.batchSize)
	dead := s.life.settle.Err() != nil
	if dead && s.markLost != nil {
		s.unmarked, n = nil, 0
	}
	due := n == s.config.batchSize || hurry || !now.Before(s.flushAt) || s.working == 0 && len(s.queue) == 0
	mark := n > 0 && due && (dead || !now.Before(s.markAt))
	switch {
	case len(s.back) > 0 && (!mark || !s.released): // by turns: neither starves the other
		s.start(job[T]{release: true, records: s.back, after: s.backFor})
		s.back, s.backFor = nil, 0
	case mark:
		s.start(job[T]{records: s.unmarked[:n:n]})
		s.unmarked = s.unmarked[n:]
		s.flushAt = now.Add(s.config.flushInterval)
	}
}

func (s *stream[T]) start(j job[T]) {
	s.job, s.released = &j, j.release
	s.jobs <- j
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
	if s.sparing {
		consider(s.spareUntil)
	}
	if !s.stopping {
		consider(s.fetchAt)
		for _, it := range s.held {
			consider(it.past.due)
		}
	}
	if len(s.unmarked) > 0 && s.job == nil {
		consider(s.markAt)
		consider(s.flushAt)
	}
	return first
}

// receive takes in what the fetcher brought.
func (s *stream[T]) receive(r fetchResult[T]) {
	s.asking = false
	s.inHand += len(r.records)
	for _, record := range r.records {
		s.queue = append(s.queue, item[T]{record: record})
	}
	switch {
	case r.err == io.EOF: // not wrapped: that is a connection that broke
		s.eof = true
	case r.err == nil && len(r.records) > 0:
		s.fetchPace = trouble{}
	case s.intake.Err() == nil:
		// Nothing without an error is a source that does not block; it would
		// keep a processor busy.
		delay := s.fetchPace.delay(s.config)
		s.fetchAt = s.config.clock.Now().Add(delay)
		if r.err != nil {
			s.config.logger.Warn("courier: fetch failed", "records", len(r.records), "retry_in", delay, "error", r.err)
		}
	}
}

// collect takes in what became of a share.
func (s *stream[T]) collect(sh *share[T]) {
	s.working--
	w := &sh.work
	now := s.config.clock.Now()
	var again, last []item[T] // last: so that the next probe is another record
	failed, refused := 0, 0
	var first complaint
	for i, it := range sh.items {
		err := w.ledger.Err(i)
		switch state := w.ledger.State(i); {
		case state == ledger.Settled:
			if len(s.unmarked) == 0 {
				s.unmarked = make([]T, 0, s.config.batchSize)
				s.flushAt = now.Add(s.config.flushInterval)
			}
			s.unmarked = append(s.unmarked, it.record)
		case state == ledger.Pending && err == nil: // not begun
			again = append(again, it)
		case state == ledger.Pending && w.halted.err != nil:
			p := it.history()
			p.err = err
			if used := historyOf(err); used != nil {
				p.used = used
			}
			if i != w.halted.at {
				again = append(again, it)
				continue
			}
			p.suspect = true
			if sh.probe {
				p.probes++
			}
			last = append(last, it)
		default:
			p := it.history()
			p.err, p.used = err, nil
			delay := p.tries.delay(s.config)
			if s.releaser != nil {
				delay = releasedFor // what is given back takes no count along
			}
			p.due = now.Add(max(delay, afterOf(err)))
			s.held = append(s.held, it)
			first.add(i, err)
			if failed++; state == ledger.Pending {
				refused++
			}
		}
	}
	if len(again) > 0 {
		s.queue = append(again, s.queue...)
	}
	s.queue = append(s.queue, last...)
	if failed > 0 {
		name := func(i int) string { return describe(s.identity, sh.items[i].record, i) }
		s.config.logger.Warn("courier: records were not settled and are tried again later", append(first.attrs(name), "failed", failed-refused, "refused", refused, "of", len(sh.items))...)
	}
	if refused > 0 && s.life.stop.Err() == nil {
		s.refuse(now)
	}
	s.pause(w.halted, sh.probe, now)
	clear(sh.items)
	w.reset(nil, nil)
	s.spare = append(s.spare, sh)
}

// releasedFor is how long a failed record is given back for.
const releasedFor = 5 * time.Second

// refuse stops intake for a while that grows, because records can be settled
// nowhere: a full dead letter queue must not have the source drained against it.
func (s *stream[T]) refuse(now time.Time) {
	if now.Sub(s.refusedAt) > time.Minute {
		s.refusePace = trouble{}
	}
	s.refusedAt = now
	s.fetchAt = now.Add(s.refusePace.delay(s.config))
}

// pause stops intake while the destination takes nothing (D6), and lets it go
// on after a probe that was not refused.
func (s *stream[T]) pause(h halt, probe bool, now time.Time) {
	switch {
	case h.fatal:
		s.fatal = h.err
		s.close(h.err)
	case h.err != nil:
		until := h.until
		if !until.After(now) { // somebody else's probe is out
			until = now.Add(s.pausePace.delay(s.config))
		}
		if until.After(s.pausedUntil) {
			s.pausedUntil = until
		}
		s.probing = true
		s.config.logger.Warn("courier: paused, records stay pending", "until", s.pausedUntil, "error", h.err)
	case probe:
		s.probing = false
		s.pausePace = trouble{}
		s.spareUntil = now.Add(sparedFor)
	}
}

// finishJob takes in the settler's answer.
func (s *stream[T]) finishJob(err error) {
	j := s.job
	s.job = nil
	n := len(j.records)
	switch {
	case j.release:
		if err != nil {
			s.config.logger.Warn("courier: release failed; the records come back when their lease ends", "records", n, "error", err)
		}
		s.inHand -= n
	case err == nil:
		s.inHand -= n
		s.markPace, s.markAt = trouble{}, time.Time{}
	default:
		s.unmarked = append(j.records, s.unmarked...)
		if s.life.settle.Err() != nil {
			s.markLost = &MarkError{len(s.unmarked), err}
			s.config.logger.Error("courier: gave up marking; the records will be applied again", "records", len(s.unmarked), "error", err)
			return
		}
		delay := s.markPace.delay(s.config)
		s.markAt = s.config.clock.Now().Add(delay)
		s.config.logger.Warn("courier: mark failed, nothing is fetched until it succeeds", "records", n, "retry_in", delay, "error", err)
	}
}
