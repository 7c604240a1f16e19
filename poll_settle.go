package courier

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
	"github.com/erfanmomeniii/courier/internal/ledger"
)

// This room is about what becomes of a poller's batch once it was applied:
// marks, releases, and how long to rest.

func (p *poller[T]) settle() {
	b := &p.batch
	b.mu.Lock()
	b.open = false
	b.mu.Unlock()
	p.pass.halted = b.halted
	if p.memory.Len() > 0 || p.pass.halted.err != nil || p.probing {
		p.remember()
	}
	if p.once {
		p.noteFailures()
	}
	p.toMark()
	if b.complete() {
		p.pass.whole = false
		p.watch.applied(p.life.work, p.applied())
	} else {
		p.sortOut()
	}
	if p.pass.halted.err != nil || p.life.stop.Err() != nil {
		p.setAside()
		if p.identity.inHand {
			p.identify(&p.pass.run)
		}
		p.leaveRest()
		p.ahead.callOff()
	}
	p.phase = phaseMark
	if len(p.mark.records) == 0 {
		p.phase = phaseReport
	}
}

// leaveRest leaves the records of the pass that did not come into a batch.
func (p *poller[T]) leaveRest() {
	for _, it := range p.ours(p.pass.all()) {
		p.release = append(p.release, p.leave(it))
	}
	p.pass.run = run[T]{}
}

// toMark sets out the mark of what was applied.
func (p *poller[T]) toMark() {
	b := &p.batch
	p.mark = job[T]{kind: markJob, records: b.ledger.Records}
	if !b.complete() {
		p.mark.records = b.ledger.In(ledger.Settled)
	}
	if p.leases == nil {
		return
	}
	p.mark.numbers = make([]uint64, 0, len(p.mark.records))
	for i := range p.part.len() {
		if b.ledger.State(i) == ledger.Settled {
			p.mark.numbers = append(p.mark.numbers, b.number(i))
			p.leases.Settle(b.number(i), 1)
		}
	}
}

// applied is what is told of the batch where all is well.
func (p *poller[T]) applied() ApplyEvent {
	return ApplyEvent{Records: p.part.len(), Applied: len(p.mark.records), Elapsed: p.watch.since(p.watch.observer.Applied != nil, p.began)}
}

// sortOut says what becomes of each record of the batch that is not to be marked, and tells
// what went wrong.
func (p *poller[T]) sortOut() {
	b := &p.batch
	event := p.applied()
	event.DrainTimedOut = p.life.drainTimedOut()
	var failed []T
	var errs []error
	if b.keys != nil && p.pass.gone == nil {
		p.pass.gone = make(map[string]uint64)
	}
	p.identify(&p.part) // something may wait
	for i := range b.ledger.Records {
		state := b.ledger.State(i)
		if state == ledger.Settled {
			continue
		}
		it, err := p.part.item(i), b.ledger.Err(i)
		due, waits := waitOf(err)
		switch {
		case err == nil:
		case waits && state != ledger.Failed:
			event.Waiting++
			if it.waited && ownWait(err) {
				p.watch.later(p.life.settle, it.record, due, err)
			}
		case b.tally(&event, i, err) && state != ledger.Failed && p.pass.refused == nil:
			p.pass.refused = err
		}
		switch {
		case p.leases.Lost(it.number): // it is not ours to give back
			p.pass.lost = true
			p.dropped(it.number)
		case state == ledger.Failed && p.failer != nil:
			p.leases.Settle(it.number, 1)
			p.faulty.add(it.numbered, err)
		case state == ledger.Failed:
			failed, errs = append(failed, it.record), append(errs, err)
			p.goBack(it, afterOf(err, maxAfter))
		case waits && p.leftToSource(it, b.key(i), err, due):
		case p.keepWaiting(it, b.key(i), err, due, waits):
			continue
		case err == errHeldBack:
			p.behind = append(p.behind, p.leave(it))
		case p.waitsAlone(err):
			failed, errs = append(failed, it.record), append(errs, err)
			p.goBack(it, afterOf(err, maxAfter))
		default:
			if waits && p.outlastsRun(err, due) {
				it.id = recordKey{} // by which it would be kept over a pause
			}
			past := it.past
			if used := historyOf(err); used != nil || err != nil && !refusedOutside(err) {
				past, it.past = used, nil // see remember
			}
			p.letWait(it, past, due, ownWait(err))
		}
		if b.keys != nil && err != errHeldBack {
			if _, met := p.pass.gone[b.keys[i]]; !met {
				p.pass.gone[b.keys[i]] = it.number
			}
		}
	}
	p.watch.applied(p.life.work, event)
	if p.pass.halted.err != nil {
		p.watch.paused(p.life.settle, byBreaker, PauseEvent{Until: p.config.clock.told(p.pass.halted.until), Err: p.pass.halted.err, Record: b.describe(p.pass.halted.at), Stuck: p.probing && p.stuck}, gateOf(p.control.breakers).closed)
	}
	p.followGone(p.pass.gone)
	p.tellWaiting()
	p.pass.whole = p.pass.whole && len(failed) == len(b.ledger.Records)
	p.pass.failed = p.pass.failed || event.Failed > 0
	p.pace(failed, errs)
}

// goBack has a record of the batch released for some time.
func (p *poller[T]) goBack(it pending[T], after time.Duration) {
	p.leases.Settle(it.number, 1)
	p.back.Add(it.numbered, after)
}

// waitsAlone reports whether a record that was refused comes again at its own time,
// as one that failed: where its error asks for that, or where others of the batch were
// settled, which it must not hold up. Else the coordinator as a whole waits.
func (p *poller[T]) waitsAlone(err error) bool {
	if err == nil || p.pass.halted.err != nil || p.once || p.life.stop.Err() != nil {
		return false
	}
	return len(p.mark.records) > 0 || afterOf(err, maxAfter) > 0
}

// remember keeps account of the records that a breaker interrupted.
func (p *poller[T]) remember() {
	b := &p.batch
	p.identify(&p.part)
	now := p.clock.Now()
	for i := range p.part.items {
		key := p.part.items[i].id
		if b.ledger.State(i) != ledger.Pending {
			p.memory.Drop(key)
		} else if err := b.ledger.Err(i); err != nil {
			past := historyOf(err).attempts()
			if !refusedOutside(err) && err != errHeldBack { // it has had its verdict
				p.memory.Drop(key)
			}
			if past != nil || b.halted.err != nil && i == b.halted.at || p.probing && b.begun.Load() {
				p.memory.Note(key, past, now)
			}
		}
	}
}

// noteFailures keeps what RunOnce returns of the records, as of their last attempt.
func (p *poller[T]) noteFailures() {
	b := &p.batch
	if p.failed == nil && !b.complete() {
		p.failed = make(map[int]error)
		for _, it := range p.pass.all() { // which may not be reached
			p.failed[it.place] = errUnreached
		}
	}
	for i := range b.ledger.Records {
		place := p.part.item(i).place
		switch err := b.ledger.Err(i); {
		case err != nil:
			p.failed[place] = err
		case b.ledger.State(i) != ledger.Pending:
			delete(p.failed, place)
		default:
			p.failed[place] = errUnreached
		}
	}
}

// errUnreached is of a record to which RunOnce did not come.
var errUnreached = unattempted(errors.New("courier: the run ended before this record was attempted"))

// finishJob takes in what a call of the source has returned.
func (p *poller[T]) finishJob() {
	j, err := p.job, p.jobErr
	p.job = job[T]{}
	switch j.kind {
	case releaseJob:
		p.phase = phaseRelease
		p.holdBack(&j)
		p.released(&j, err)
	case failJob:
		p.phase = phaseRelease
		p.released(&j, err)
		if p.keyOf != nil && p.identity.inHand {
			for _, f := range j.failed {
				p.pass.scheduled = append(p.pass.scheduled, f.Record)
			}
		}
	default:
		p.afterMark(&j, err)
	}
}

func (p *poller[T]) afterMark(j *job[T], err error) {
	event := p.markEvent(j, err)
	switch {
	case err == nil:
		p.pass.progress, p.fruitless = true, false
		p.leases.Leave(j.numbers...)
		p.watch.marked(p.life.settle, event)
		p.markPace = callPace{}
	case p.life.settle.Err() != nil || p.once && (p.markPace.tries >= onceMarkRetries || afterOf(err, maxCallAfter) > p.config.drainTimeout):
		p.unmarked = &MarkError{len(j.records), err}
		p.watch.marked(p.life.settle, event)
		p.leases.Leave(j.numbers...)
		p.watch.count.inHand.Add(-int64(len(j.records)))
		p.leaveRest()
	default:
		event.RetryIn = p.retryMarkIn(err)
		p.watch.marked(p.life.settle, event)
		// A stop shortens the delay, so that its own time begins to run.
		if p.life.stop.Err() == nil {
			p.config.clock.sleep(p.life.stop, event.RetryIn)
		} else {
			p.config.clock.sleep(p.life.settle, event.RetryIn)
		}
		p.phase = phaseMark
		return
	}
	p.mark = job[T]{}
	p.phase = phaseReport
}

// onceMarkRetries is how often RunOnce tries a failed mark again: about three
// seconds in all.
const onceMarkRetries = 5

// tellFailed lets a source that keeps a retry schedule know of what failed.
func (p *poller[T]) tellFailed() {
	p.phase = phaseRelease
	if len(p.faulty.failed) > 0 {
		p.setOut(p.faulty.take())
	}
}

// giveBack releases what the pass leaves unsettled, at its end: what waits behind
// another record of its key for as long as that.
func (p *poller[T]) giveBack() {
	if p.pass.len() > 0 {
		p.phase = phaseCut
		return
	}
	if !p.pass.sorted && p.keeps() {
		p.pass.sorted = true
		p.keep()
	}
	p.release = p.ours(p.release)
	if p.releaser == nil {
		for _, one := range append(append(p.back.All(), numberedIn(p.release)...), numberedIn(p.behind)...) {
			p.dropped(one.number)
		}
		p.release, p.behind, p.back = nil, nil, engine.Releases[numbered[T]]{}
	}
	now := p.config.clock.Now()
	pace, after := p.config.interval, p.config.interval
	switch {
	case p.once || p.paused || p.life.stop.Err() != nil:
		pace, after = 0, 0
	case p.probing && p.pass.halted.err == nil:
		after = 0 // after a probe that went well, the others are wanted at once
	case p.pass.halted.err != nil:
		after = max(0, p.pass.halted.until.Sub(now))
	}
	if len(p.release) == 0 && (p.pass.halted.err != nil || p.life.stop.Err() != nil) {
		p.dropAhead() // not sooner: a fetch may take long to end, and the marks do not wait for it
	}
	some := numberedIn(p.release)
	overPause := len(some) > 0 && p.pass.halted.err != nil
	p.release = nil
	if len(some) == 0 && p.back.Some() {
		some, after = p.back.Take()
		after = max(after, pace)
	}
	if len(some) == 0 {
		if p.keyOf != nil && p.releaser != nil { // else all comes with the next fetch, and in order
			p.waiting.Each(func(one *waiter[T]) {
				if p.blocked.Until(one.Key).IsZero() { // it keeps the order of its key itself, with none of it at the source
					p.blocked.Free(one.Key)
				}
			})
			p.blocked.Lift(p.fetchedAt, now.Add(after))
		}
		if some, after = p.nextBehind(now); len(some) == 0 {
			p.phase = phaseRest
			return
		}
	}
	j := releaseOf(some, after)
	j.overPause = overPause
	p.setOut(j)
}

// holdBack keeps the later records of a key from going before those that were
// given back for a while. The source counts that from some time in the call on.
func (p *poller[T]) holdBack(j *job[T]) {
	if p.keyOf == nil {
		return
	}
	until := p.config.clock.Now().Add(j.after)
	keys, _ := p.keysOf(nil, j.records)
	for _, key := range keys {
		p.blocked.BlockUntil(key, until)
	}
	if j.overPause && until.After(p.pass.halted.until) { // not to find nothing but what waits
		p.pass.halted.until = until
	}
}

// nextBehind takes the records that wait for the same time as the first of them.
func (p *poller[T]) nextBehind(now time.Time) (some []numbered[T], after time.Duration) {
	if p.behind = p.ours(p.behind); len(p.behind) == 0 {
		return nil, 0
	}
	keys, _ := p.keysOf(nil, recordsIn(p.behind))
	until := p.blocked.Until(keys[0])
	var later []pending[T]
	for i, b := range p.behind {
		if p.blocked.Until(keys[i]).Equal(until) {
			some = append(some, b.numbered)
		} else {
			later = append(later, b)
		}
	}
	p.behind = later
	if p.life.stop.Err() != nil {
		return some, 0
	}
	return some, max(0, until.Sub(now))
}

// rest ends the pass: it waits as long as the pass calls for.
func (p *poller[T]) rest() {
	p.phase = phaseFetch
	p.dropLost()
	p.noteHidden()
	if p.once && !p.goesOn() || p.unmarked != nil || p.life.stop.Err() != nil {
		p.noteProbe()
		p.probing = false // it is noted, and what is left in hand is released first
		p.finish()
		return
	}
	if p.paused && p.waiting.Len() == 0 { // all was given back
		return
	}
	if p.pass.halted.err == nil && !p.pass.spared && p.intakeIsOpen() {
		p.watch.resumed(p.life.settle, byBreaker)
	}
	if p.pass.progress && p.pass.refused == nil {
		p.watch.moves(byRefusal)
	}
	goOn := p.noteProbe()
	p.memory.ForgetUnseen(p.clock.Now())
	p.easeHand()
	p.batch.reset(nil, nil, nil, 1)
	// Of all that was fetched nothing is left.
	inVain := p.fruitless && p.pass.failed && p.waiting.Len() == 0
	// Then the time to fetch stays as it was.
	if now := p.config.clock.Now(); p.pass.dueOnly && p.pass.halted.err == nil && (!inVain && (p.pass.refused == nil || p.pass.progress) || p.fetchAt.After(now)) {
		p.nap(p.fetchAt.Sub(now))
		return
	}
	var delay time.Duration
	switch {
	case p.pass.halted.err != nil:
		p.probing, p.spareUntil = true, time.Time{}
		delay = p.pass.halted.until.Sub(p.config.clock.Now())
		if delay <= 0 { // somebody else's probe is out
			delay = p.restPace.delay(p.config)
		}
		if p.fetchErr != nil {
			delay = max(delay, p.retryIn)
		}
	case p.fetchErr != nil:
		delay = p.retryIn
	case p.pass.refused != nil && !p.pass.progress:
		now := p.config.clock.Now()
		if !now.Before(p.refusedUntil) {
			p.refusedUntil = now.Add(p.restPace.delay(p.config))
		}
		delay = p.refusedUntil.Sub(now)
		p.watch.stands(byRefusal, p.pass.refused, now.Add(max(delay, p.config.interval)))
		if p.ahead.asked() { // it is in hand, and may be well
			delay = 0
		}
	default:
		p.restPace, p.refusedUntil = callPace{}, time.Time{}
		more := goOn || p.pass.full && (p.pass.progress || p.pass.waited || p.pass.lost)
		lostProbe := p.probing && p.pass.lost // so that another one may go
		if (p.config.fixed || !more) && !p.once && !lostProbe {
			delay = p.config.pace()
		}
	}
	if len(p.kept) == 0 {
		delay = max(delay, p.asked.Sub(p.config.clock.Now()))
	}
	if p.worksOff() && !p.once {
		p.watch.log.keeping(p.life.settle, p.waiting.Len())
	}
	if p.waiting.Len() > 0 {
		p.fetchAt = p.config.clock.Now().Add(delay)
	}
	p.nap(delay)
}

// intakeIsOpen reports whether nothing stops the intake any more: a breaker of the stack
// knows by itself; what else stopped it tells by the verdict of a probe, or a fetch.
func (p *poller[T]) intakeIsOpen() bool {
	switch {
	case !passing(p.control.breakers):
		return false
	case p.probing && !p.watch.gated:
		return p.batch.begun.Load() && p.batch.ledger.State(0) != ledger.Pending
	}
	return p.watch.gated || p.fetchErr == nil
}

// finish ends the run, once what is still in hand was given back.
func (p *poller[T]) finish() {
	p.leaving = true
	p.phase = phaseEnded
	if waiting, kept, ahead := p.setAside(), p.letGo(), p.dropAhead(); waiting || kept || ahead {
		p.phase = phaseRelease
	}
}

// noteProbe takes in what became of a probe, and reports whether another record is to go at
// once: it went well, or was no verdict.
func (p *poller[T]) noteProbe() (goOn bool) {
	probed := p.probing && p.batch.begun.Load()
	refused := probed && p.pass.refused != nil // which tells nothing of the destination
	goOn = probed && !refused && p.pass.halted.err == nil
	passed := goOn && p.watch.answered(p.batch.ledger.Err(0), p.control.breakers)
	switch {
	case passed && p.misses > 0 && gateOf(p.control.breakers).probe: // it wants more successes, and those before have none to give
	case passed:
		p.misses, p.missed, p.probing = 0, 0, false
		p.spareUntil = p.config.clock.Now().Add(sparedFor)
	case !p.probing || !refused && p.pass.halted.err == nil:
	case p.once: // which knows the record again until it ends
		p.missed++
	case p.nameless:
		p.misses++
		p.watch.log.nameless(p.life.settle)
	case p.identity.unsure:
		p.misses++
	}
	return goOn
}

// goesOn reports whether RunOnce goes on: with what waits in hand, or with the rest of its
// records once a breaker lets it.
func (p *poller[T]) goesOn() bool {
	if p.waiting.Len() > 0 && p.pass.halted.err == nil {
		return true
	}
	if len(p.kept)+p.waiting.Len() == 0 || p.pass.refused != nil && p.pass.halted.err == nil { // it would be refused again, without end
		return false
	}
	until := p.pass.halted.until
	return p.pass.halted.err == nil || until.After(p.config.clock.Now()) && !until.After(p.patientUntil())
}

// nap is a rest that a wake-up ends, or a Pause. A breaker's pause ends when the
// breaker has closed; by a wake-up of the source, which knows nothing of it, no
// pause ends.
func (p *poller[T]) nap(d time.Duration) {
	if due, some := p.waiting.Next(); some && p.pass.halted.err == nil {
		d = min(d, due.Sub(p.config.clock.Now()))
	}
	if d <= 0 || p.life.stop.Err() != nil {
		return
	}
	woken := p.woken
	if p.pass.halted.err != nil || afterOf(p.fetchErr, maxCallAfter) > 0 { // there may be work, but the source is not to be asked
		woken = nil
	}
	shut := p.pass.halted.err != nil && gateOf(p.control.breakers).closed
	rested := p.config.clock.timer(d)
	for {
		select {
		case <-rested.C:
			rested.fired()
			return
		case <-p.life.stop.Done():
			return
		case <-p.control.wake:
			if p.pass.halted.err == nil || !gateOf(p.control.breakers).closed {
				p.waits.lift()
				p.fetchAt = time.Time{}
				return
			}
		case <-p.control.stirred:
			if p.control.paused() != nil && !p.once || shut && !gateOf(p.control.breakers).closed {
				return
			}
		case _, open := <-woken:
			if open {
				p.fetchAt = time.Time{}
				return
			}
			woken, p.woken = nil, nil // the source has given up waking: the interval is the pace
		}
	}
}

// outcome is what the run returns.
func (p *poller[T]) outcome() error {
	if !p.once {
		return p.unmarked
	}
	var stopped error
	if p.life.stop.Err() != nil {
		stopped = causeOf(p.life.stop)
	}
	if p.fetchErr != nil && stopped != nil && errors.Is(p.fetchErr, stopped) {
		stopped = nil // said already
	}
	var fetchErr error
	if p.fetchErr != nil {
		fetchErr = fmt.Errorf("courier: fetch failed: %w", p.fetchErr)
	}
	var failed BatchError
	reached := false
	for _, i := range slices.Sorted(maps.Keys(p.failed)) {
		failed.Add(i, p.failed[i])
		reached = reached || p.failed[i] != errUnreached
	}
	var list error
	if reached || stopped == nil { // else it is the stop that says why
		list = failed.ErrorOrNil()
	}
	return errors.Join(fetchErr, list, p.unmarked, stopped)
}
