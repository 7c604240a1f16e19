package courier

import (
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// This file is about the records that a poller keeps in hand while they wait for their
// next attempt: others are fetched, applied and marked meanwhile.

// waiter is a record that waits, or that has to come after one of its key that does. It is
// due at the zero time as soon as those before it are settled.
type waiter[T any] = engine.Waiter[pending[T]]

// mix puts the fetched records of the pass between those that were due: these have failed
// before and may again, and a breaker must not take that for an outage for having been
// put together, by one worker or by many that begin at once. A due record stays before the
// fetched ones of its key.
func (p *poller[T]) mix() {
	items := p.pass.items
	n := 0 // that were due, which come first
	for n < len(items) && items[n].waited {
		n++
	}
	if n == 0 || n == len(items) {
		return
	}
	apart := max(1, min((len(items)-n)/n, p.config.workers))
	keys, _ := p.keysOf(nil, p.pass.records)
	left := make(map[string]int) // due records by key
	for i := range min(n, len(keys)) {
		left[keys[i]]++
	}
	mixed := make([]pending[T], 0, len(items))
	due := 0
	putDue := func() {
		if keys != nil {
			left[keys[due]]--
		}
		mixed = append(mixed, items[due])
		due++
	}
	for i := n; i < len(items); i++ {
		if due < n && (i-n)%apart == 0 {
			putDue()
		}
		for keys != nil && left[keys[i]] > 0 {
			putDue()
		}
		mixed = append(mixed, items[i])
	}
	p.pass.run = runOf(append(mixed, items[due:n]...))
}

// keepWaiting has a record of the batch that was not settled wait in hand, and reports
// whether it does: it asks for that, or comes after one of its key that waits.
func (p *poller[T]) keepWaiting(it pending[T], order string, err error, due time.Time, waits bool) bool {
	past, asked := historyOf(err), ownWait(err)
	outlastsRun := waits && p.outlastsRun(err, due)
	_, behindGone := p.pass.gone[order]
	follows := p.waiting.Busy(order) && p.blocked.Until(order).IsZero() && !behindGone // an earlier one, with none between them at the source
	if waits && p.pass.halted.err != nil {
		due, asked = past.askedUntil(due, asked)
	}
	switch {
	case p.life.stop.Err() != nil || outlastsRun:
		return false
	case waits && (p.pass.halted.err == nil || p.outlastsPause(due, asked)):
	case follows && err == errHeldBack:
	case behindGone && err == errHeldBack:
		return false
	case p.pass.halted.err != nil:
		return false
	case !p.once && (past.goesOn() || it.waited && refusedOutside(err)):
		if !past.goesOn() {
			past = it.past
		}
		if p.leases == nil && (p.releaser != nil || p.identity.inHand) { // it cannot be held for long, or would keep all others out
			p.memory.Note(it.id, past.attempts(), p.clock.Now())
			return false
		}
		due = p.config.clock.Now().Add(max(p.config.interval, afterOf(err, maxAfter)))
	case follows:
	default:
		return false
	}
	if past == nil && !waits {
		past = it.past
	}
	it = it.bare()
	it.asked, it.past, it.due, it.order, it.err = asked, past, due, order, err
	p.enlist(it, due.IsZero())
	p.pass.waited = p.pass.waited || waits
	return true
}

// outlastsRun reports whether a record asks for a time that RunOnce does not wait for.
func (p *poller[T]) outlastsRun(err error, due time.Time) bool {
	return p.once && ownWait(err) && due.After(p.patientUntil())
}

// patientUntil is until when RunOnce waits for what has not failed: for the drain timeout
// since it began to.
func (p *poller[T]) patientUntil() time.Time {
	if p.patience.IsZero() {
		p.patience = p.config.clock.Now().Add(p.config.drainTimeout)
	}
	return p.patience
}

// outlastsPause reports whether a record waits on in hand while a breaker lets nothing be
// applied: it has asked for the time by its own error, and nobody else gets it meanwhile.
func (p *poller[T]) outlastsPause(due time.Time, asked bool) bool {
	return asked && due.After(p.config.clock.Now()) && (p.releaser == nil || p.leases != nil || p.once)
}

// maxUnrenewed is how long a record waits in hand whose lease cannot be renewed.
const maxUnrenewed = 10 * time.Second

// leftToSource gives a record of the batch back that waits for longer than its source
// may leave it in hand, if the source keeps the time, and reports whether it did. While its
// lease is renewed it stays, but a retry only as long as half of the hand is free. One
// behind a waiting record of its key stays: one that is fetched meanwhile would overtake it.
// So does one whose attempts there is no room to remember: poison would never be parked.
// The room for those in hand is left for a pause, in which they are given back too.
func (p *poller[T]) leftToSource(it pending[T], order string, err error, due time.Time) bool {
	past := historyOf(err).attempts()
	stays := p.leases != nil && (past == nil || p.waiting.Len() < p.config.batchSize/2)
	if stays || p.pass.halted.err != nil || p.releaser == nil || p.failer != nil || p.once || p.life.stop.Err() != nil || p.waiting.Busy(order) {
		return false
	}
	after := due.Sub(p.config.clock.Now())
	if after <= maxUnrenewed || past != nil && (p.identity.unsure || p.identity.inHand || it.id == recordKey{}) { // they would be lost, and poison never parked
		return false
	}
	if past != nil {
		if p.memory.Room() <= mostInHand(p.config) {
			return false
		}
		now := p.clock.Now()
		p.memory.Note(it.id, past, now)
		p.memory.Await(it.id, now.Add(after))
	}
	p.goBack(it, after)
	p.pass.waited = true // those after it are not to rest for it
	return true
}

// enlist has a record wait, until it is due or behind another one of its key.
func (p *poller[T]) enlist(it pending[T], behind bool) {
	one := waiter[T]{Value: it, Key: it.order, Number: it.number, Due: it.due}
	if behind {
		p.waiting.Behind(one)
	} else {
		p.waiting.Hold(one)
	}
}

// tellWaiting tells Stats how many records wait, once others do than before.
func (p *poller[T]) tellWaiting() {
	next, _ := p.waiting.Next()
	n := 0
	p.waiting.Each(func(one *waiter[T]) {
		if !one.Due.IsZero() {
			n++
		}
	})
	p.watch.waits(n, next)
}

// dropWaiting takes out the waiting records that are gone.
func (p *poller[T]) dropWaiting(gone func(one *waiter[T]) bool) (removed []waiter[T]) {
	removed, free := p.waiting.Remove(gone)
	for _, one := range free { // at once
		p.waiting.Hold(one)
	}
	return removed
}

// followGone has waiting records leave the hand with an earlier one of their key that
// leaves it without being settled.
func (p *poller[T]) followGone(gone map[string]uint64) {
	if p.waiting.Len() == 0 || len(gone) == 0 {
		return
	}
	p.dropLost()
	follows := func(one *waiter[T]) bool {
		first, some := gone[one.Key]
		return some && first < one.Number
	}
	for _, one := range p.dropWaiting(follows) {
		p.behind = append(p.behind, p.leave(one.Value))
	}
}

// worksOff reports whether the waiting records are settled before more is fetched: the
// source would return them again, and they could not be told from others.
func (p *poller[T]) worksOff() bool {
	if p.waiting.Len() == 0 || p.releaser != nil && !p.once {
		return false
	}
	nameless := p.identity.inHand
	p.waiting.Each(func(one *waiter[T]) { nameless = nameless || one.Value.id == recordKey{} })
	return nameless
}

// room is how many records may come into hand beside those that wait.
func (p *poller[T]) room() int { return p.config.batchSize - p.waiting.Len() }

// takeWaiting has the pass work on waiting records alone while it is not the time to
// fetch, or there is no room for more, and reports whether the pass has its task.
func (p *poller[T]) takeWaiting() bool {
	if p.waiting.Len() == 0 {
		return false
	}
	now := p.config.clock.Now()
	worksOff := p.worksOff()
	room := p.room() > 0 || p.ahead.asked() // what was fetched ahead is in hand
	mayFetch := !worksOff && !p.paused && room && !now.Before(p.fetchAt)
	if mayFetch && p.ahead == nil { // then what is due goes along with what is fetched
		return false
	}
	if due := p.takeDue(now); len(due) > 0 {
		p.pass.run = runOf(due)
		p.pass.handed, p.pass.dueOnly = true, true
		p.phase = phaseTake
		return true
	}
	if mayFetch {
		return false
	}
	due, _ := p.waiting.Next()
	d := due.Sub(now)
	if !worksOff && !room {
		p.tellFullHand(due)
		d = min(d, sayAgain)
	}
	if !worksOff && !p.paused && room {
		d = min(d, p.fetchAt.Sub(now))
	}
	p.nap(d)
	return true
}

// takeDue takes the records that are due out of those that wait, for the pass.
func (p *poller[T]) takeDue(now time.Time) (items []pending[T]) {
	due, free := p.waiting.TakeDue(now)
	for _, one := range append(due, free...) {
		it := one.Value
		it.due, it.waited = one.Due, true
		items = append(items, it)
		if past := it.past.attempts(); past != nil && (p.probing || p.sparing) { // the suspects are who is not to be the probe
			p.memory.Note(it.id, past, now)
		}
	}
	byNumber(items)
	p.tellWaiting()
	return items
}

// passOver leaves records of the pass for later: those that were due wait on, until some
// time if it is not zero.
func (p *poller[T]) passOver(items []pending[T], until time.Time) {
	for _, it := range items {
		if !it.waited {
			p.release = append(p.release, it)
			continue
		}
		if until.After(it.due) {
			it.due = until
		}
		p.enlist(it, false)
	}
	p.tellWaiting()
}

// tellFullHand tells that the waiting records are all that may be in hand.
func (p *poller[T]) tellFullHand(until time.Time) {
	var last error
	var record any
	if one := p.waiting.First(); one != nil {
		record, last = one.Value.record, one.Value.err
	}
	p.fullHand.tell(p.life.settle, p.watch, PauseEvent{Until: p.config.clock.told(until), Waiting: p.waiting.Len()}, record, last)
}

// easeHand tells that there is room in hand, and once half of it is free, or there was room
// for a while, that the pause is over.
func (p *poller[T]) easeHand() {
	if p.room() > 0 && !p.ends() {
		p.fullHand.ease(p.life.settle, p.watch, p.waiting.Len() <= p.config.batchSize/2)
	}
}

// joinWaiting takes in hand, beside what was fetched, what is due. It drops what the
// source has returned a second time.
func (p *poller[T]) joinWaiting() {
	p.identify(&p.pass.run)
	fetchedNow := p.pass.items
	var items []pending[T]
	if !p.ahead.took() { // else what is due has a pass of its own
		items = p.takeDue(p.config.clock.Now())
	}
	n := len(items)
	inHand := make(map[recordKey]*pending[T])
	p.waiting.Each(func(one *waiter[T]) { inHand[one.Value.id] = &one.Value })
	for i := range items {
		inHand[items[i].id] = &items[i]
	}
	delete(inHand, recordKey{}) // which is no record's
	var fresh []pending[T]
	room := p.room() - n
	for _, it := range fetchedNow {
		twin := inHand[it.id]
		switch {
		case twin != nil:
			if p.releaser != nil { // its lease had run out, and the source knows this one
				twin.record = it.record
				p.leases.Regain(twin.number, it.record)
			}
			p.dropped(it.number)
		case room <= 0 && p.releaser == nil && !p.limitless && !p.probing && !p.sparing:
			p.dropped(it.number)
		default:
			fresh = append(fresh, it)
			room--
		}
	}
	p.pass.run = runOf(append(items, fresh...))
}

// putBehind has the records of the pass wait that come after a waiting one of their key.
func (p *poller[T]) putBehind() {
	p.identify(&p.pass.run)
	keys, _ := p.keysOf(nil, p.pass.records)
	var free []pending[T]
	for i, it := range p.pass.items {
		if !it.waited && p.waiting.Busy(keys[i]) {
			it.order = keys[i]
			p.enlist(it, true)
		} else {
			free = append(free, it)
		}
	}
	p.pass.run = runOf(free)
	p.tellWaiting()
}

// pasts returns what was used on the records of the batch, nil where nothing was.
func (p *poller[T]) pasts() (past []history) {
	now := p.clock.Now()
	for i, it := range p.part.items {
		used := it.past
		if used == nil {
			used = p.memory.Past(it.id, now)
		}
		if used != nil {
			if past == nil {
				past = make([]history, len(p.part.items))
			}
			past[i] = used
		}
	}
	return past
}

// setAside has the waiting records go back to the source, or be kept for as long as
// nothing is applied, and at the end of the run. What they have used is remembered as far
// as they are known. Over a pause those wait on that have asked for their time, and those
// behind them.
func (p *poller[T]) setAside() (some bool) {
	p.dropLost()
	leaves, longer := make(map[uint64]bool), make(map[uint64]time.Time)
	stays, left := make(map[string]bool), make(map[string]bool) // keys
	for _, one := range p.waiting.All() {
		due, asked := one.Value.past.askedUntil(one.Due, one.Value.asked)
		own := p.outlastsPause(due, asked) || one.Due.IsZero() && stays[one.Key]
		if stay := own && !left[one.Key] && !p.ends(); !stay {
			leaves[one.Number] = true
			left[one.Key] = one.Key != ""
		} else {
			stays[one.Key] = one.Key != ""
			if due.After(one.Due) {
				longer[one.Number] = due
			}
		}
	}
	for _, one := range p.dropWaiting(func(one *waiter[T]) bool { return !longer[one.Number].IsZero() }) {
		one.Value.due, one.Value.asked = longer[one.Number], true
		p.enlist(one.Value, false)
	}
	for _, one := range p.dropWaiting(func(one *waiter[T]) bool { return leaves[one.Number] }) {
		p.letWait(one.Value, one.Value.past, one.Due, one.Value.asked)
	}
	p.tellWaiting()
	p.easeHand()
	return len(leaves) > 0
}

// ends reports whether the run comes to its end.
func (p *poller[T]) ends() bool { return p.leaving || p.life.stop.Err() != nil }

// letWait has a record leave the hand that was to wait until it is due. If it has asked for
// the time by itself, its source keeps that; but not where the run ends, and nobody would
// hold the later ones of its key back. At a stop the retries of other branches may go on at
// once elsewhere.
func (p *poller[T]) letWait(one pending[T], past history, due time.Time, asked bool) {
	if !p.ends() {
		due, asked = past.askedUntil(due, asked)
	}
	one = p.leave(one)
	left := due.Sub(p.config.clock.Now())
	if asked && left > 0 && p.releaser != nil && (p.keyOf == nil || !p.once && !p.ends()) {
		p.goBack(one, left)
		return
	}
	p.release = append(p.release, one)
}

// leave returns a record as it leaves the hand unsettled. What was used on it is remembered
// for when it comes again.
func (p *poller[T]) leave(it pending[T]) pending[T] {
	if past := it.past.attempts(); past != nil {
		p.memory.Note(it.id, past, p.clock.Now())
	}
	return it.bare()
}

// dropLost lets go of waiting records that another instance has by now.
func (p *poller[T]) dropLost() {
	if !p.leases.Some() {
		return
	}
	for _, one := range p.dropWaiting(func(one *waiter[T]) bool { return p.leases.Lost(one.Number) }) {
		p.dropped(one.Number)
	}
	p.tellWaiting()
}
