package courier

import (
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
	"github.com/erfanmomeniii/courier/internal/ledger"
)

// This room is about what becomes of the records of a stream that have their
// verdict: marked, given back, or tried again.

// finish takes in what a worker has done.
func (s *stream[T]) finish(sh *share[T]) {
	sh.ended = true
	s.collect(sh, sh.end)
	s.mu.Lock()
	for i, other := range s.out {
		if other == sh {
			s.out = append(s.out[:i], s.out[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	now := s.config.clock.Now()
	sh.event.Elapsed = sh.took
	if n := sh.event.Records; n > 0 { // a moving average; what took no time says nothing
		s.pace = (3*s.pace + min(sh.event.Elapsed/time.Duration(n), time.Hour)) / 4
	}
	sh.event.DrainTimedOut = sh.event.Applied < sh.event.Records && s.life.drainTimedOut()
	s.watch.applied(s.life.work, sh.event)
	if sh.event.NotAttempted > 0 && s.life.stop.Err() == nil {
		s.refuse(sh.event.Err, now)
	}
	if sh.event.Applied > 0 {
		s.movedAt = now
	}
	s.failing.note(sh.event.Applied, sh.took/time.Duration(s.config.workers), now)
	probed := sh.probe && sh.account.begun.Load()
	halted := sh.account.halted
	if halted.err != nil {
		halted.name = sh.account.describe(halted.at)
	}
	s.closeIntake(halted, probed && sh.event.NotAttempted == 0 && s.watch.answered(sh.account.ledger.Err(0), s.control.breakers), probed && sh.account.ledger.State(0) != ledger.Pending, now)
	clear(sh.items)
	clear(sh.records)
	clear(sh.past)
	sh.probe = false
	sh.account.reset(nil, nil, nil, 1)
	s.spare = append(s.spare, sh)
}

// collect takes in what became of a share's records, up to one of them. While
// the worker goes on that is those that are settled, have failed or wait.
func (s *stream[T]) collect(sh *share[T], upto int) {
	now := s.config.clock.Now()
	var again, last []item[T] // last: so that the next probe is another record
	for sh.taken < upto {
		if n := sh.account.ledger.Run(sh.taken, upto); n > 0 {
			since := sh.since
			if sh.taken+1 == sh.end { // the last one was applied just now
				since = now
			}
			if at := since.Add(s.config.flushInterval); len(s.marks.Ready()) == 0 || at.Before(s.flushAt) {
				s.flushAt = at
			}
			s.applied(sh, n)
			continue
		}
		state, err := sh.account.verdict(sh.taken)
		// What else has an error may be interrupted, with others, and where there is an
		// order the worker itself holds back what comes after it.
		if !sh.ended && (s.keyOf != nil || state != ledger.Failed && mayBeInterrupted(err)) {
			break
		}
		it := sh.item(sh.taken)
		switch {
		case state != ledger.Failed && s.dropIfLost(&it):
		case state == ledger.Pending && (err == nil || err == errHeldBack): // not begun
			again = append(again, it)
		case state == ledger.Pending && s.keepWaiting(sh, &it, err):
		case state == ledger.Pending && sh.account.paused() != nil:
			p := it.history()
			p.err = err
			if used := historyOf(err); used != nil || !refusedOutside(err) {
				p.used = used
			}
			if sh.taken != sh.account.halted.at {
				again = append(again, it)
				break
			}
			p.suspect = true
			if sh.probe {
				p.probes++
			}
			if s.keyOf != nil { // an order forbids to try another of its key first
				again = append(again, it)
			} else {
				last = append(last, it)
			}
		default:
			s.fail(sh, it, state == ledger.Pending, err, now)
		}
		s.leaveWorker(it.key)
		sh.taken++
	}
	s.requeue(again)
	if len(last) > 0 {
		s.unpack()
		s.queue = append(s.queue, last...)
	}
}

// mayBeInterrupted reports whether a record with an error, or none, that was not settled
// may have to wait for what becomes of the others of its share.
func mayBeInterrupted(err error) bool {
	if err == nil || err == errHeldBack || err == errLeaseLost {
		return true
	}
	_, paused := pauseOf(err)
	return paused
}

// applied has the next n records of a share wait for their mark.
func (s *stream[T]) applied(sh *share[T], n int) {
	from, to := sh.taken, sh.taken+n
	sh.event.Applied += n
	sh.taken = to
	if len(sh.items) == 0 && !s.marks.Ordered() {
		first := sh.item(from).number
		s.leases.Settle(first, n)
		s.marks.Add(first, sh.account.ledger.Records[from:to]...)
		return
	}
	for i := from; i < to; i++ {
		it := sh.item(i)
		s.leases.Settle(it.number, 1)
		s.marks.Settle(it.number, it.record)
		s.leaveWorker(it.key)
	}
}

// fail has a record that failed, or was refused, tried again when it is due.
func (s *stream[T]) fail(sh *share[T], it item[T], refused bool, err error, now time.Time) {
	p := it.history()
	if used := historyOf(err); refused && used.goesOn() {
		p.used = used
	} else if !refused || !refusedOutside(err) {
		p.used = nil
	}
	p.err, p.refused, p.asked = err, refused, false
	delay := p.tries.delay(s.config)
	if s.givesBack() {
		delay = s.failing.release(now) // what is given back takes no count along
	}
	p.due = now.Add(max(delay, afterOf(err, maxAfter)))
	switch {
	case s.givesBack():
		s.returns = append(s.returns, it)
	case s.dropIfLost(&it): // it is another's to try again
	default:
		s.hold(it)
	}
	sh.account.tally(&sh.event, sh.taken, err)
}

// givesBack reports whether failed records go back to the source. Where an order
// was asked for they do not, unless the stream ends: the source could hand out
// a later one of the key first, or be marked past it.
func (s *stream[T]) givesBack() bool {
	return s.releaser != nil && s.keyOf == nil && !s.marks.Ordered()
}

// keepWaiting keeps a record in hand that waits for its next attempt, and reports
// whether it does.
func (s *stream[T]) keepWaiting(sh *share[T], it *item[T], err error) bool {
	due, waits := waitOf(err)
	if !waits {
		return false
	}
	p := it.history()
	p.err, p.used, p.refused, p.asked, p.due = err, historyOf(err), false, ownWait(err), due
	if p.asks++; !p.asked {
		p.asks = 0
	}
	if p.asks > 1 {
		s.watch.later(s.life.settle, it.record, due, err)
	}
	p.suspect = p.suspect || p.used != nil // one that has not failed is the better probe
	sh.event.Waiting++
	now := s.config.clock.Now()
	if s.givesBack() && p.used == nil && s.renewer == nil && s.failer == nil && p.due.Sub(now) > maxUnrenewed {
		s.giveBack(*it, p.due.Sub(now))
	} else {
		s.hold(*it)
	}
	return true
}

// hold keeps a record until it is due, and the later ones of its key behind it.
func (s *stream[T]) hold(it item[T]) {
	s.waiting.Hold(waiterOf(it))
	s.tellWaiting()
}

func (s *stream[T]) tellWaiting() {
	next, _ := s.waiting.Next()
	s.watch.waits(s.waiting.Held(), next)
}

// letGo takes the held records that are due, or all, in the order they failed, and those
// behind them.
func (s *stream[T]) letGo(now time.Time, all bool) (due, free []item[T]) {
	var taken, freed []engine.Waiter[item[T]]
	if all {
		taken = s.waiting.TakeHeld()
	} else {
		taken, freed = s.waiting.TakeDue(now)
	}
	if len(taken) == 0 {
		return nil, nil
	}
	due, free = itemsOf(taken), itemsOf(freed)
	s.tellWaiting()
	return due, free
}

// wakeHeld moves failed records on: back to a source that takes them, else into
// the queue when they are due.
func (s *stream[T]) wakeHeld(now time.Time, closing bool) {
	if closing && s.releaser == nil {
		return
	}
	for _, it := range s.returns {
		switch {
		case closing:
			s.giveBack(it, 0)
		case s.dropIfLost(&it): // it is another's to try again
		case s.failer != nil && !it.past.refused:
			s.faulty.add(it.numbered, it.past.err)
		default:
			s.giveBack(it, it.past.due.Sub(now))
		}
	}
	s.returns = nil
	due, free := s.letGo(now, closing)
	for _, it := range due {
		switch {
		case closing && it.past.asked && s.keyOf == nil: // else its later ones would come before it
			s.giveBack(it, it.past.due.Sub(now))
		case closing:
			s.giveBack(it, 0)
		case s.keyOf == nil:
			s.queue = append(s.queue, it)
		default:
			s.again.Push(it)
		}
	}
	s.requeue(free)
}

// giveBack has a record go back to the source, unless it is somebody else's by now.
func (s *stream[T]) giveBack(it item[T], after time.Duration) {
	if !s.dropIfLost(&it) {
		s.leases.Settle(it.number, 1)
		s.back.Add(it.numbered, max(0, after))
	}
}

// giveBackAll gives back what is not with a worker.
func (s *stream[T]) giveBackAll() {
	s.unpack()
	left := append(s.queue, itemsOf(s.waiting.TakeBehind())...)
	byNumber(left)
	for _, it := range left {
		s.giveBack(it, 0)
	}
	s.queue = nil
}

// giveBackWaiting gives back what may not be marked any more, because a record
// before it was given back: a mark could tell the source that it is past that.
func (s *stream[T]) giveBackWaiting() {
	records, numbers := s.marks.TakeHeldUp()
	for i, record := range records {
		s.back.Add(numbered[T]{record, numbers[i]}, 0)
	}
}

// dropIfLost lets go of a record that another instance has by now, and reports whether
// one has.
func (s *stream[T]) dropIfLost(it *item[T]) bool {
	if !s.leases.Lost(it.number) {
		return false
	}
	s.inHand--
	s.dropped(it.number)
	s.marks.Leave(it.number, engine.Gone)
	return true
}

// tellLost has the workers look whether what they come to is lost, and the director drop
// what is not with them.
func (s *stream[T]) tellLost() {
	s.mu.Lock()
	for _, sh := range s.out {
		sh.account.alert.Store(true)
	}
	s.mu.Unlock()
	nudge(s.losses)
}

// dropLost lets go of the records that another instance has by now: those with a worker
// when it comes to them.
func (s *stream[T]) dropLost() {
	s.unpack()
	s.queue = slices.DeleteFunc(s.queue, func(it item[T]) bool { return s.dropIfLost(&it) })
	_, free := s.waiting.Remove(func(one *engine.Waiter[item[T]]) bool { return s.dropIfLost(&one.Value) })
	s.requeue(itemsOf(free))
	s.tellWaiting()
}

// settle gives the settler its next job, by turns, so that no kind starves
// another. Applied records wait for more to be marked with them, unless there is
// nothing to wait for.
func (s *stream[T]) settle(now time.Time, hurry bool) {
	dead := s.life.settle.Err() != nil
	if dead && s.markLost != nil {
		s.marks.Drop()
	}
	n := len(s.marks.Ready())
	due := n >= s.config.batchSize || hurry || !now.Before(s.flushAt) || len(s.out) == 0 && s.queued() == 0 || s.starved()
	for range jobKinds {
		s.turn = (s.turn + 1) % jobKinds
		switch {
		case s.turn == markJob && n > 0 && due && (dead || !now.Before(s.markAt)):
			records, numbers := s.marks.Take()
			s.start(job[T]{kind: markJob, records: records, numbers: numbers})
		case s.turn == releaseJob && s.back.Some():
			s.start(releaseOf(s.back.Take()))
		case s.turn == failJob && len(s.faulty.failed) > 0:
			s.start(s.faulty.take())
		default:
			continue
		}
		return
	}
}

// starved reports whether workers wait for records that cannot be fetched before
// some are marked.
func (s *stream[T]) starved() bool {
	return s.queued() == 0 && s.inHand+s.config.batchSize > s.limit
}

func (s *stream[T]) start(j job[T]) {
	s.job = &j
	s.jobs <- s.job
}

// finishJob takes in the settler's answer.
func (s *stream[T]) finishJob(err error) {
	j := s.job
	s.job = nil
	n := len(j.records) + len(j.failed)
	if j.kind != markJob {
		s.released(j, err)
		s.inHand -= n
		return
	}
	event := s.markEvent(j, err)
	switch {
	case err == nil:
		s.inHand -= n
		s.leases.Leave(j.numbers...)
		s.marks.Reuse(j.records)
		s.markPace, s.markAt = callPace{}, time.Time{}
		s.refusePace, s.refusedUntil = callPace{}, time.Time{} // others are settled
		s.watch.moves(byRefusal)
	case s.life.settle.Err() != nil:
		s.marks.PutBack(j.records, j.numbers)
		s.markLost = &MarkError{len(s.marks.Ready()), err}
		event.Records = len(s.marks.Ready())
	default:
		s.marks.PutBack(j.records, j.numbers)
		event.RetryIn = s.retryMarkIn(err)
		s.markAt = s.config.clock.Now().Add(event.RetryIn)
		s.flushAt = time.Time{} // they have waited
	}
	s.watch.marked(s.life.settle, event)
}

// releasedFor is how long a failed record is given back for, and mostReleased how long at the
// most for the sake of others: as long as those that are held.
const (
	releasedFor  = 5 * time.Second
	mostReleased = 30 * time.Second
)

// onlyFailures is a time in which nothing is applied but records that fail.
type onlyFailures struct {
	since time.Time
	took  time.Duration // by the calls, of that of all workers
}

// note takes in calls that have ended.
func (f *onlyFailures) note(applied int, took time.Duration, now time.Time) {
	if applied > 0 {
		*f = onlyFailures{}
		return
	}
	if f.since.IsZero() {
		f.since = now.Add(-took)
	}
	f.took += took
}

// release is how long the source keeps failed records that it would hand out first again:
// longer where they alone have taken most of the time, so that the workers come to those
// behind them.
func (f *onlyFailures) release(now time.Time) time.Duration {
	if lasted := now.Sub(f.since); !f.since.IsZero() && f.took >= lasted/2 {
		return max(releasedFor, min(2*lasted, mostReleased))
	}
	return releasedFor
}

// refuse stops intake for a while that grows, because records can be settled
// nowhere: a full dead letter queue must not have the source drained against it.
// Those refused meanwhile, which may be many, tell nothing new.
func (s *stream[T]) refuse(err error, now time.Time) {
	if !now.Before(s.refusedUntil) {
		s.refusedUntil = now.Add(s.refusePace.delay(s.config))
	}
	until := now.Add(releasedFor) // when the records come again
	if s.refusedUntil.After(until) {
		until = s.refusedUntil
	}
	s.watch.stands(byRefusal, err, until)
}

// closeIntake stops intake while the destination takes nothing (D6), and lets it
// go on after a probe that was attempted and that no breaker interrupted.
func (s *stream[T]) closeIntake(h halt, probed, verdict bool, now time.Time) {
	switch {
	case h.err != nil:
		until := h.until
		if !until.After(now) { // somebody else's probe is out
			until = now.Add(s.pausePace.delay(s.config))
		}
		if until.After(s.pausedUntil) {
			s.pausedUntil = until
		}
		stuck := probed && s.probing && s.allSuspect()
		s.probing, s.spareUntil = true, time.Time{}
		s.watch.paused(s.life.settle, byBreaker, PauseEvent{Until: s.config.clock.told(h.until), Err: h.err, Record: h.name, Stuck: stuck}, gateOf(s.control.breakers).closed)
	case probed:
		s.probing = false
		s.pausePace = callPace{}
		s.spareUntil = now.Add(sparedFor)
		if verdict && passing(s.control.breakers) {
			s.watch.resumed(s.life.settle, byBreaker)
		}
	}
}
