package courier

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

// This room is about what becomes of the records of a stream that have their
// verdict: marked, given back, or tried again.

// line is the records that wait for their mark: in the order they were settled,
// or as they were fetched where that was asked for. Then one that is not settled
// holds up the marks of all behind it.
type line[T any] struct {
	ordered bool
	batch   int
	settled []T       // may be marked
	spare   []T       // memory for the next of them
	first   uint64    // the number of slots[0]
	slots   []slot[T] // in the order fetched, if ordered
}

type slot[T any] struct {
	record T
	state  slotState
}

type slotState uint8

const (
	unsettled slotState = iota // or given back: then for good
	markable
	gone // somebody else's: not to be marked, and in nobody's way
)

// enter gives a record that was fetched its place.
func (l *line[T]) enter(record T) {
	if l.ordered {
		l.slots = append(l.slots, slot[T]{record: record})
	}
}

// leave says what became of it, where that matters to others.
func (l *line[T]) leave(it *item[T], state slotState) {
	if !l.ordered {
		return
	}
	l.slots[it.number-l.first].state = state
	for len(l.slots) > 0 && l.slots[0].state != unsettled {
		if l.slots[0].state == markable {
			l.add(l.slots[0].record)
		}
		l.slots[0] = slot[T]{}
		l.slots = l.slots[1:]
		l.first++
	}
}

// waiting returns the records that are settled, and held up by one that is not.
func (l *line[T]) waiting() (records []T) {
	for _, s := range l.slots {
		if s.state == markable {
			records = append(records, s.record)
		}
	}
	return records
}

func (l *line[T]) add(records ...T) {
	if l.settled == nil {
		if l.settled, l.spare = l.spare, nil; l.settled == nil {
			l.settled = make([]T, 0, l.batch)
		}
	}
	l.settled = append(l.settled, records...)
}

// ready is how many records may be marked.
func (l *line[T]) ready() int { return len(l.settled) }

// take returns the first records that may be marked, for one call.
func (l *line[T]) take() (records []T) {
	n := min(len(l.settled), l.batch)
	if n == len(l.settled) { // with all its memory, for reuse
		records, l.settled = l.settled, nil
		return records
	}
	records, l.settled = l.settled[:n:n], l.settled[n:]
	return records
}

// putBack returns records that could not be marked to their place.
func (l *line[T]) putBack(records []T) { l.settled = append(records, l.settled...) }

// reuse takes the memory of records that are marked.
func (l *line[T]) reuse(records []T) {
	if l.spare == nil && cap(records) >= l.batch {
		clear(records)
		l.spare = records[:0]
	}
}

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
	sh.event.Took = sh.took
	if n := sh.event.Records; n > 0 { // a moving average; what took no time says nothing
		s.pace = (3*s.pace + min(sh.event.Took/time.Duration(n), time.Hour)) / 4
	}
	sh.event.DrainOver = sh.event.Applied < sh.event.Records && errors.Is(context.Cause(s.life.work), ErrDrainTimeout)
	s.watch.applied(s.life.work, sh.event)
	if sh.event.Refused > 0 && s.life.stop.Err() == nil {
		s.refuse(sh.event.Err, now)
	}
	probed := sh.probe && sh.account.begun.Load()
	halted := sh.account.halted
	if halted.err != nil {
		halted.name = sh.account.describe(halted.at)
	}
	s.closeIntake(halted, probed && sh.event.Refused == 0, probed && sh.account.ledger.State(0) != ledger.Pending, now)
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
			if at := since.Add(s.config.flushInterval); s.line.ready() == 0 || at.Before(s.flushAt) {
				s.flushAt = at
			}
			s.applied(sh, n)
			continue
		}
		state, err := sh.account.verdict(sh.taken)
		// What else has an error may be interrupted, with others, and where there is an
		// order the worker itself holds back what comes after it.
		if !sh.ended && (s.lanes != nil || state != ledger.Failed && mayBeInterrupted(err)) {
			break
		}
		it := sh.item(sh.taken)
		switch {
		case state != ledger.Failed && sh.account.isLost(sh.taken):
			s.drop(&it)
		case state == ledger.Pending && (err == nil || err == errHeldBack): // not begun
			again = append(again, it)
		case state == ledger.Pending && s.keepWaiting(sh, &it, err):
		case state == ledger.Pending && sh.account.halted.err != nil:
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
			if s.lanes != nil { // an order forbids to try another of its key first
				again = append(again, it)
			} else {
				last = append(last, it)
			}
		default:
			s.fail(sh, it, state == ledger.Pending, err, now)
		}
		s.leaveLane(it.key)
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
	if !s.line.ordered {
		s.line.add(sh.account.ledger.Records[from:to]...)
	}
	for i := from; i < to && (s.line.ordered || s.lanes != nil); i++ {
		it := sh.item(i)
		s.line.leave(&it, markable)
		s.leaveLane(it.key)
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
		delay = releasedFor // what is given back takes no count along
	}
	p.due = now.Add(max(delay, afterOf(err, maxAfter)))
	switch {
	case s.givesBack():
		s.returns = append(s.returns, it)
	case sh.account.isLost(sh.taken): // it is another's to try again
		s.drop(&it)
	default:
		s.hold(it)
	}
	switch {
	case !refused:
		sh.event.Failed++
	case s.life.stop.Err() == nil || errors.Is(err, ErrPark):
		sh.event.Refused++
	default: // the stop interrupted it
		if sh.event.Err == nil && errors.Is(context.Cause(s.life.work), ErrDrainTimeout) {
			sh.event.Record, sh.event.Err = sh.account.describe(sh.taken), err
		}
		return
	}
	if sh.event.Err == nil || sh.event.Failed+sh.event.Refused == 1 || !refused && sh.event.Failed == 1 {
		sh.event.Record, sh.event.Err = sh.account.describe(sh.taken), err
	}
	if s.watch.observer.Failed != nil {
		s.watch.failed(s.life.work, FailEvent{Record: sh.account.describe(sh.taken), Class: classOf(!refused, err), Err: err})
	}
}

// givesBack reports whether failed records go back to the source. Where an order
// was asked for they do not, unless the stream ends: the source could hand out
// a later one of the key first, or be marked past it.
func (s *stream[T]) givesBack() bool {
	return s.releaser != nil && s.lanes == nil && !s.line.ordered
}

// keepWaiting keeps a record in hand that waits for its next attempt, and reports
// whether it does.
func (s *stream[T]) keepWaiting(sh *share[T], it *item[T], err error) bool {
	due, waits := waitOf(err)
	if !waits {
		return false
	}
	if sh.account.isLost(sh.taken) {
		s.drop(it)
		return true
	}
	p := it.history()
	p.err, p.used, p.refused, p.asked, p.due = err, historyOf(err), false, ownWait(err), due
	p.suspect = p.suspect || p.used != nil // one that has not failed is the better probe
	sh.event.Waiting++
	now := s.config.clock.Now()
	if s.givesBack() && p.used == nil && s.renewEvery <= 0 && s.failer == nil && p.due.Sub(now) > maxUnrenewed {
		s.giveBack(*it, p.due.Sub(now))
	} else {
		s.hold(*it)
	}
	return true
}

// hold keeps a record until it is due, and the later ones of its key behind it.
func (s *stream[T]) hold(it item[T]) {
	if s.lanes != nil {
		s.lanes[it.key].held++
	}
	s.failed++
	it.past.turn = s.failed
	if s.isYoung(&it) {
		s.young++
	}
	s.held.push(it)
	s.tellWaiting()
}

// isYoung reports whether a held record is worth waiting for at the end of the stream.
func (s *stream[T]) isYoung(it *item[T]) bool {
	return it.past.tries.tries < lastTries && (!it.past.asked || s.releaser == nil)
}

func (s *stream[T]) tellWaiting() {
	var next time.Time
	if len(s.held.items) > 0 {
		next = s.held.items[0].past.due
	}
	s.watch.waits(len(s.held.items), next)
}

// letGo takes the held records that are due, or all, in the order they failed.
func (s *stream[T]) letGo(now time.Time, all bool) (items []item[T]) {
	for len(s.held.items) > 0 && (all || !now.Before(s.held.items[0].past.due)) {
		it := s.held.pop()
		if s.isYoung(&it) {
			s.young--
		}
		items = append(items, it)
	}
	if items == nil {
		return nil
	}
	s.tellWaiting()
	slices.SortFunc(items, func(a, b item[T]) int { return cmp.Compare(a.past.turn, b.past.turn) })
	return items
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
		case s.failer != nil && !it.past.refused:
			s.faulty = append(s.faulty, FailedRecord[T]{it.record, it.past.err, afterOf(it.past.err, maxAfter)})
		default:
			s.giveBack(it, it.past.due.Sub(now))
		}
	}
	s.returns = nil
	for _, it := range s.letGo(now, closing) {
		switch {
		case closing && it.past.asked:
			s.giveBack(it, it.past.due.Sub(now))
		case closing:
			s.giveBack(it, 0)
		case s.lanes == nil:
			s.queue = append(s.queue, it)
		default:
			s.again.push(it)
			s.lanes[it.key].held--
			s.openLane(it.key)
		}
	}
}

// backlog is records that are to be released, those together that are to be
// released for as long.
type backlog[T any] struct {
	groups []returned[T]
	at     map[time.Duration]int // the groups by their time, counted from the first there ever was
	taken  int                   // groups
}

type returned[T any] struct {
	records []T
	after   time.Duration
}

func (b *backlog[T]) add(record T, after time.Duration) {
	i, ok := b.at[after]
	if !ok {
		if b.at == nil {
			b.at = make(map[time.Duration]int)
		}
		i = b.taken + len(b.groups)
		b.at[after] = i
		b.groups = append(b.groups, returned[T]{after: after})
	}
	group := &b.groups[i-b.taken]
	group.records = append(group.records, record)
}

// records returns all records, group by group.
func (b *backlog[T]) records() (all []T) {
	for _, group := range b.groups {
		all = append(all, group.records...)
	}
	return all
}

// take returns the first group.
func (b *backlog[T]) take() returned[T] {
	first := b.groups[0]
	b.groups[0] = returned[T]{}
	b.groups = b.groups[1:]
	b.taken++
	delete(b.at, first.after)
	return first
}

func (s *stream[T]) giveBack(it item[T], after time.Duration) { s.back.add(it.record, max(0, after)) }

// giveBackAll gives back what is not with a worker.
func (s *stream[T]) giveBackAll() {
	s.unpack()
	left := s.queue
	for _, waiting := range s.inLanes() {
		left = append(left, waiting...)
	}
	byNumber(left)
	for _, it := range left {
		s.giveBack(it, 0)
	}
	s.queue = nil
	for _, l := range s.lanes {
		l.waiting.items = nil
	}
}

// giveBackWaiting gives back what may not be marked any more, because a record
// before it was given back: a mark could tell the source that it is past that.
func (s *stream[T]) giveBackWaiting() {
	for _, record := range s.line.waiting() {
		s.back.add(record, 0)
	}
	s.line.slots = nil
}

// byNumber puts records in the order fetched.
func byNumber[T any](items []item[T]) {
	slices.SortFunc(items, func(a, b item[T]) int { return cmp.Compare(a.number, b.number) })
}

// drop lets go of a record that another instance has by now.
func (s *stream[T]) drop(it *item[T]) {
	s.inHand--
	s.watch.count.inHand.Add(-1)
	s.line.leave(it, gone)
}

// job is one call for the settler.
type job[T any] struct {
	kind    jobKind
	records []T
	failed  []FailedRecord[T]
	after   time.Duration
	began   time.Time
}

type jobKind int

const (
	markJob jobKind = iota
	releaseJob
	failJob
	jobKinds
)

func (k jobKind) String() string { return [...]string{"mark", "release", "note of failures"}[k] }

// settle gives the settler its next job, by turns, so that no kind starves
// another. Applied records wait for more to be marked with them, unless there is
// nothing to wait for.
func (s *stream[T]) settle(now time.Time, hurry bool) {
	dead := s.life.settle.Err() != nil
	if dead && s.markLost != nil {
		s.line.settled = nil
	}
	n := s.line.ready()
	due := n >= s.config.batchSize || hurry || !now.Before(s.flushAt) || len(s.out) == 0 && s.queued() == 0 || s.starved()
	for range jobKinds {
		s.turn = (s.turn + 1) % jobKinds
		switch {
		case s.turn == markJob && n > 0 && due && (dead || !now.Before(s.markAt)):
			s.start(job[T]{kind: markJob, records: s.line.take()})
		case s.turn == releaseJob && len(s.back.groups) > 0:
			back := s.back.take()
			s.start(job[T]{kind: releaseJob, records: back.records, after: back.after})
		case s.turn == failJob && len(s.faulty) > 0:
			s.start(job[T]{kind: failJob, failed: s.faulty})
			s.faulty = nil
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
	j.began = s.watch.now(s.watch.observer.Marked != nil && j.kind == markJob)
	s.job = &j
	s.jobs <- j
}

// finishJob takes in the settler's answer.
func (s *stream[T]) finishJob(err error) {
	j := s.job
	s.job = nil
	n := len(j.records) + len(j.failed)
	if j.kind != markJob {
		s.watch.released(s.life.settle, ReleaseEvent{Records: n, Failed: j.kind == failJob, After: j.after, Err: err})
		s.inHand -= n
		return
	}
	event := MarkEvent{Records: n, Took: s.watch.since(s.watch.observer.Marked != nil, j.began), Err: err}
	tries := s.markPace.tries
	switch {
	case err == nil:
		s.inHand -= n
		s.line.reuse(j.records)
		s.markPace, s.markAt = trouble{}, time.Time{}
		s.refusePace, s.refusedUntil = trouble{}, time.Time{} // others are settled
		s.watch.moves(byRefusal)
	case s.life.settle.Err() != nil:
		s.line.putBack(j.records)
		s.markLost = &MarkError{s.line.ready(), err}
		event.Records = s.line.ready()
	default:
		s.line.putBack(j.records)
		event.RetryIn = s.markPace.after(s.config, err)
		if s.life.stop.Err() != nil {
			event.RetryIn = s.lastPace.atStop(s.config, err)
		}
		s.markAt = s.config.clock.Now().Add(event.RetryIn)
		s.flushAt = time.Time{} // they have waited
	}
	s.watch.marked(s.life.settle, event, tries)
}

// releasedFor is how long a failed record is given back for.
const releasedFor = 5 * time.Second

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
		s.pausePace = trouble{}
		s.spareUntil = now.Add(sparedFor)
		if verdict && passing(s.control.breakers) {
			s.watch.resumed(s.life.settle, byBreaker)
		}
	}
}
