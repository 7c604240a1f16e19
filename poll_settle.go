package courier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

// This room is about what becomes of a poller's batch once it was applied:
// marks, releases, and how long to rest.

func (p *poller[T]) settle() {
	b := &p.batch
	b.mu.Lock()
	b.open = false
	b.mu.Unlock()
	p.lease.finish()
	p.halted = b.halted
	if len(p.memory.list) > 0 || p.halted.err != nil || p.probing {
		p.remember()
	}
	if p.once {
		p.noteFailures()
	}
	if b.complete() {
		p.mark, p.whole = b.ledger.Records, false
		p.watch.applied(p.life.work, ApplyEvent{Records: len(p.mark), Applied: len(p.mark), Took: p.watch.since(p.watch.observer.Applied != nil, p.began)})
	} else {
		p.mark = b.ledger.In(ledger.Settled)
		p.report()
		var failed []T
		var errs []error
		var gone map[string]bool // keys of which a record leaves the hand
		if b.keys != nil {
			gone = make(map[string]bool)
		}
		for i, record := range b.ledger.Records {
			switch state := b.ledger.State(i); {
			case state == ledger.Failed && p.failer == nil:
				failed, errs = append(failed, record), append(errs, b.ledger.Err(i))
				p.back.add(record, afterOf(b.ledger.Err(i), maxAfter))
			case state != ledger.Pending:
			case b.isLost(i): // it is not ours to give back
				p.watch.count.inHand.Add(-1)
			case p.halted.err == nil && p.keepWaiting(i):
				continue
			case b.ledger.Err(i) == errHeldBack:
				p.behind = append(p.behind, pending[T]{record, p.idOf(i)})
			case p.waitsAlone(b.ledger.Err(i)):
				failed, errs = append(failed, record), append(errs, b.ledger.Err(i))
				p.back.add(record, afterOf(b.ledger.Err(i), maxAfter))
			default:
				p.release = append(p.release, pending[T]{record, p.idOf(i)})
			}
			if b.keys != nil && b.ledger.State(i) != ledger.Settled && b.ledger.Err(i) != errHeldBack {
				gone[b.keys[i]] = true
			}
		}
		p.followGone(gone)
		p.tellWaiting()
		p.whole = p.whole && len(failed) == len(b.ledger.Records)
		p.pace(failed, errs)
	}
	if p.halted.err != nil || p.life.stop.Err() != nil {
		p.setAside()
		if p.ids == nil && p.identity.inHand {
			p.ids = p.identity.keysOf(p.records)
		}
		left := p.lease.left(pendings(p.records, p.ids))
		p.watch.count.inHand.Add(-int64(len(p.records) - len(left)))
		p.release = append(p.release, left...)
		p.records, p.ids = nil, nil
		p.ahead.callOff()
	}
	p.phase = marking
	if len(p.mark) == 0 {
		p.markErr = nil
		p.phase = marked
	}
}

// waitsAlone reports whether a record that was refused comes again at its own time,
// as one that failed: where its error asks for that, or where others of the batch were
// settled, which it must not hold up. Else the coordinator as a whole waits.
func (p *poller[T]) waitsAlone(err error) bool {
	if err == nil || p.halted.err != nil || p.once || p.life.stop.Err() != nil {
		return false
	}
	return len(p.mark) > 0 || afterOf(err, maxAfter) > 0
}

// idOf returns how a record of the batch is known.
func (p *poller[T]) idOf(i int) (key recordKey) {
	if p.known != nil {
		key = p.known[i]
	}
	return key
}

// remember keeps account of the records that a breaker interrupted.
func (p *poller[T]) remember() {
	b := &p.batch
	if p.known == nil {
		p.known = p.identity.keysOf(b.ledger.Records)
	}
	for i, key := range p.known {
		if b.ledger.State(i) != ledger.Pending {
			p.memory.drop(key)
		} else if err := b.ledger.Err(i); err != nil {
			past := historyOf(err).attempts()
			if !refusedOutside(err) && err != errHeldBack { // it has had its verdict
				p.memory.drop(key)
			}
			if past != nil || b.halted.err != nil && i == b.halted.at || p.probing && b.begun.Load() {
				p.memory.note(key, past)
			}
		}
	}
}

// index returns the place of a record of the batch in its fetch.
func (p *poller[T]) index(i int) int {
	if p.once && p.known != nil {
		return int(p.known[i].number) - 1 // which it has had since, see identity.keysOf
	}
	if one := p.dueNow(i); one != nil {
		return one.place
	}
	if i += p.taken; i < len(p.mixed) {
		i = p.mixed[i]
	}
	return i - len(p.due)
}

// noteFailures keeps what RunOnce returns of the records, as of their last attempt.
func (p *poller[T]) noteFailures() {
	b := &p.batch
	if p.failed == nil && !b.complete() {
		p.failed = make(map[int]error)
		for i := range p.records { // which may not be reached
			p.failed[p.taken+len(b.ledger.Records)+i] = errUnreached
		}
	}
	for i := range b.ledger.Records {
		switch err := b.ledger.Err(i); {
		case err != nil:
			p.failed[p.index(i)] = err
		case b.ledger.State(i) != ledger.Pending:
			delete(p.failed, p.index(i))
		default:
			p.failed[p.index(i)] = errUnreached
		}
	}
}

// errUnreached is of a record to which RunOnce did not come.
var errUnreached = unattempted(errors.New("courier: the run ended before this record was attempted"))

// report collects and tells what went wrong in the batch.
func (p *poller[T]) report() {
	b := &p.batch
	event := ApplyEvent{
		Records: len(b.ledger.Records), Applied: len(p.mark), Took: p.watch.since(p.watch.observer.Applied != nil, p.began),
		DrainOver: errors.Is(context.Cause(p.life.work), ErrDrainTimeout),
	}
	for i, record := range b.ledger.Records {
		err := b.ledger.Err(i)
		if err == nil {
			continue
		}
		failed := b.ledger.State(i) == ledger.Failed
		_, waits := waitOf(err)
		switch {
		case failed:
			event.Failed++
			if p.failer != nil {
				p.faulty = append(p.faulty, FailedRecord[T]{record, err, afterOf(err, maxAfter)})
			}
		case waits:
			event.Waiting++
			continue
		case p.halted.err == nil && (p.life.stop.Err() == nil || errors.Is(err, ErrPark)) && err != errHeldBack && err != errLeaseLost:
			event.Refused++
			if p.refused == nil {
				p.refused = err
			}
		default:
			if event.DrainOver && event.Err == nil { // the first that was cut short
				event.Record, event.Err = b.describe(i), err
			}
			continue
		}
		if event.Err == nil || event.Failed+event.Refused == 1 || failed && event.Failed == 1 {
			event.Record, event.Err = b.describe(i), err
		}
		if p.watch.observer.Failed != nil {
			p.watch.failed(p.life.work, FailEvent{Record: b.describe(i), Class: classOf(failed, err), Err: err})
		}
	}
	p.watch.applied(p.life.work, event)
	if p.halted.err != nil {
		p.watch.paused(p.life.settle, byBreaker, PauseEvent{Until: p.config.clock.told(p.halted.until), Err: p.halted.err, Record: b.describe(p.halted.at), Stuck: p.probing && p.stuck}, gateOf(p.control.breakers).closed)
	}
}

func (p *poller[T]) afterMark() {
	event := MarkEvent{Records: len(p.mark), Err: p.markErr, Took: p.watch.since(p.watch.observer.Marked != nil, p.began)}
	switch {
	case p.markErr == nil:
		if len(p.mark) > 0 {
			p.progress = true
			p.watch.marked(p.life.settle, event, p.markPace.tries)
		}
		p.markPace = trouble{}
	case p.life.settle.Err() != nil || p.once && (p.markPace.tries >= onceMarkRetries || afterOf(p.markErr, maxCallAfter) > p.config.drainTimeout):
		p.unmarked = &MarkError{len(p.mark), p.markErr}
		p.watch.marked(p.life.settle, event, 0)
		p.watch.count.inHand.Add(-int64(len(p.mark)))
		p.release = append(p.release, pendings(p.records, p.ids)...)
		p.records, p.ids = nil, nil
	default:
		event.RetryIn = p.markPace.after(p.config, p.markErr)
		if p.life.stop.Err() != nil {
			event.RetryIn = p.lastPace.atStop(p.config, p.markErr)
		}
		p.watch.marked(p.life.settle, event, 0)
		// A stop shortens the delay, so that its own time begins to run.
		if p.life.stop.Err() == nil {
			p.config.clock.sleep(p.life.stop, event.RetryIn)
		} else {
			p.config.clock.sleep(p.life.settle, event.RetryIn)
		}
		p.phase = marking
		return
	}
	p.mark = nil
	p.phase = reporting
}

// onceMarkRetries is how often RunOnce tries a failed mark again: about three
// seconds in all.
const onceMarkRetries = 5

// tellFailed lets a source that keeps a retry schedule know of what failed.
func (p *poller[T]) tellFailed() {
	p.phase = releasing
	failed := p.faulty
	p.faulty = nil
	if len(failed) == 0 {
		return
	}
	var err error
	p.watch.begins(&p.watch.settling, "note of failures")
	isolate(&err, func() error { return p.failer.Fail(p.life.settle, failed) })
	p.watch.ends(&p.watch.settling)
	p.watch.released(p.life.settle, ReleaseEvent{Records: len(failed), Failed: true, Err: err})
	if p.keyOf != nil && p.identity.inHand {
		for _, f := range failed {
			p.scheduled = append(p.scheduled, f.Record)
		}
	}
}

// giveBack releases what the pass leaves unsettled, at its end: what waits behind
// another record of its key for as long as that.
func (p *poller[T]) giveBack() {
	if len(p.records) > 0 {
		p.phase = cutting
		return
	}
	if !p.sorted && p.keeps() {
		p.sorted = true
		p.keep()
	}
	if p.releaser == nil {
		p.watch.count.inHand.Add(-int64(len(p.release) + len(p.behind) + len(p.back.records())))
		p.release, p.behind, p.back = nil, nil, backlog[T]{}
	}
	now := p.config.clock.Now()
	pace, after := p.config.interval, p.config.interval
	switch {
	case p.once || p.paused || p.life.stop.Err() != nil:
		pace, after = 0, 0
	case p.probing && p.halted.err == nil:
		after = 0 // after a probe that went well, the others are wanted at once
	case p.halted.err != nil:
		after = max(0, p.halted.until.Sub(now))
	}
	if len(p.release) == 0 && (p.halted.err != nil || p.life.stop.Err() != nil) {
		p.dropAhead() // not sooner: a fetch may take long to end, and the marks do not wait for it
	}
	records := recordsOf(p.release)
	p.release = nil
	if len(records) == 0 && len(p.back.groups) > 0 {
		group := p.back.take()
		records, after = group.records, max(group.after, pace)
	}
	if len(records) == 0 {
		if p.keyOf != nil && p.releaser != nil { // else all comes with the next fetch, and in order
			for _, one := range p.waiting { // which keep the order of their keys themselves
				p.gate.free(one.order)
			}
			p.gate.lift(p.fetchedAt, now.Add(after))
		}
		if records, after = p.nextBehind(now); len(records) == 0 {
			p.phase = resting
			return
		}
	}
	var err error
	p.watch.begins(&p.watch.settling, "release")
	isolate(&err, func() error { return p.releaser.Release(p.life.settle, records, after) })
	p.watch.ends(&p.watch.settling)
	p.holdBack(records, after)
	p.watch.released(p.life.settle, ReleaseEvent{Records: len(records), After: after, Err: err})
}

// holdBack keeps the later records of a key from going before those that were
// given back for a while. The source counts that from some time in the call on.
func (p *poller[T]) holdBack(records []T, after time.Duration) {
	if p.keyOf == nil {
		return
	}
	until := p.config.clock.Now().Add(after)
	keys, _ := p.keysOf(nil, records)
	for _, key := range keys {
		p.gate.hold(key, until)
	}
	if p.halted.err != nil && until.After(p.halted.until) { // not to find nothing but what waits
		p.halted.until = until
	}
}

// nextBehind takes the records that wait for the same time as the first of them.
func (p *poller[T]) nextBehind(now time.Time) (records []T, after time.Duration) {
	if len(p.behind) == 0 {
		return nil, 0
	}
	keys, _ := p.keysOf(nil, recordsOf(p.behind))
	until := p.gate.until(keys[0])
	var later []pending[T]
	for i, b := range p.behind {
		if p.gate.until(keys[i]).Equal(until) {
			records = append(records, b.record)
		} else {
			later = append(later, b)
		}
	}
	p.behind = later
	if p.life.stop.Err() != nil {
		return records, 0
	}
	return records, max(0, until.Sub(now))
}

// rest ends the pass: it waits as long as the pass calls for.
func (p *poller[T]) rest() {
	p.phase = fetching
	p.noteHidden()
	if p.once && !p.goesOn() || p.unmarked != nil || p.life.stop.Err() != nil {
		p.noteProbe()
		p.probing = false // it is noted, and what is left in hand is released first
		p.finish()
		return
	}
	if p.paused && len(p.waiting) == 0 { // all was given back
		p.lease.drop()
		return
	}
	if p.halted.err == nil && !p.spared && p.intakeIsOpen() {
		p.watch.resumed(p.life.settle, byBreaker)
	}
	if p.progress && p.refused == nil {
		p.watch.moves(byRefusal)
	}
	passed := p.noteProbe()
	p.memory.forgetUnseen()
	p.dropLost()
	p.lease.waitBeside(p.waiting.leased())
	if len(p.kept) == 0 {
		p.lease.drop()
	}
	p.easeHand()
	lost := p.probing && len(p.batch.ledger.Records) > 0 && p.batch.isLost(0) // the probe's lease, so that another one may go
	p.batch.reset(nil, nil, nil, 1)
	if now := p.config.clock.Now(); p.dueOnly && p.halted.err == nil && (p.refused == nil || p.progress || p.fetchAt.After(now)) { // the time to fetch stays as it was
		p.nap(p.fetchAt.Sub(now))
		return
	}
	var delay time.Duration
	switch {
	case p.halted.err != nil:
		p.probing, p.spareUntil = true, time.Time{}
		delay = p.halted.until.Sub(p.config.clock.Now())
		if delay <= 0 { // somebody else's probe is out
			delay = p.restPace.delay(p.config)
		}
		if p.fetchErr != nil {
			delay = max(delay, p.retryIn)
		}
	case p.fetchErr != nil:
		delay = p.retryIn
	case p.refused != nil && !p.progress:
		delay = p.restPace.delay(p.config)
		p.watch.stands(byRefusal, p.refused, p.config.clock.Now().Add(max(delay, p.config.interval)))
	default:
		p.restPace = trouble{}
		more := passed || p.full && (p.progress || p.waited)
		if (p.config.fixed || !more) && !p.once && !lost {
			delay = p.config.pace()
		}
	}
	if len(p.kept) == 0 {
		delay = max(delay, p.asked.Sub(p.config.clock.Now()))
	}
	if p.worksOff() && !p.once {
		p.watch.log.keeping(p.life.settle, len(p.waiting))
	}
	if len(p.waiting) > 0 {
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
	p.phase = ended
	if waiting, kept, ahead := p.setAside(), p.letGo(), p.dropAhead(); waiting || kept || ahead {
		p.phase = releasing
	}
}

// noteProbe takes in what became of a probe, and reports whether it went well.
func (p *poller[T]) noteProbe() (passed bool) {
	probed := p.probing && p.batch.begun.Load()
	refused := probed && p.refused != nil // which tells nothing of the destination
	passed = probed && !refused && p.halted.err == nil
	switch {
	case passed && p.misses > 0 && gateOf(p.control.breakers).probe: // it wants more successes, and those before have none to give
	case passed:
		p.misses, p.missed, p.probing = 0, 0, false
		p.spareUntil = p.config.clock.Now().Add(sparedFor)
	case !p.probing || !refused && p.halted.err == nil:
	case p.once: // which knows the record again until it ends
		p.missed++
	case p.nameless:
		p.misses++
		p.watch.log.nameless(p.life.settle)
	case p.identity.unsure:
		p.misses++
	}
	return passed
}

// goesOn reports whether RunOnce waits for a breaker that has interrupted it, to
// try the rest of its records. It does so for the drain timeout in all.
func (p *poller[T]) goesOn() bool {
	if len(p.waiting) > 0 {
		return true
	}
	if len(p.kept) == 0 || p.refused != nil && p.halted.err == nil { // it would be refused again, without end
		return false
	}
	now := p.config.clock.Now()
	if p.patience.IsZero() {
		p.patience = now.Add(p.config.drainTimeout)
	}
	return p.halted.err == nil || p.halted.until.After(now) && !p.halted.until.After(p.patience)
}

// nap is a rest that a wake-up ends, or a Pause. A breaker's pause ends when the
// breaker has closed; by a wake-up of the source, which knows nothing of it, no
// pause ends.
func (p *poller[T]) nap(d time.Duration) {
	if due, some := p.waiting.next(); some {
		d = min(d, due.Sub(p.config.clock.Now()))
	}
	if d <= 0 || p.life.stop.Err() != nil {
		return
	}
	woken := p.woken
	if p.halted.err != nil || afterOf(p.fetchErr, maxCallAfter) > 0 { // there may be work, but the source is not to be asked
		woken = nil
	}
	shut := p.halted.err != nil && gateOf(p.control.breakers).closed
	rested := p.config.clock.timer(d)
	for {
		select {
		case <-rested.C:
			rested.fired()
			return
		case <-p.life.stop.Done():
			return
		case <-p.control.wake:
			if p.halted.err == nil || !gateOf(p.control.breakers).closed {
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
