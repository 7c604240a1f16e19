package courier

import (
	"cmp"
	"slices"
	"time"
)

// This file is about the records that a poller keeps in hand while they wait for their
// next attempt: others are fetched, applied and marked meanwhile.

// waiter is a record that waits, or that has to come after one of its key that does.
type waiter[T any] struct {
	pending[T]
	order  string    // its order key; "" where no order was asked for
	number uint64    // in the order in which they came into hand
	due    time.Time // the zero time is as soon as those before it are settled
	asked  bool      // by the record's own error
	past   history
	place  int // in its fetch
}

// waiters is the records in hand that wait, in the order fetched.
type waiters[T any] []waiter[T]

// add takes a record in. One that comes back has its old place.
func (w *waiters[T]) add(one waiter[T]) {
	i, _ := slices.BinarySearchFunc(*w, one.number, func(w waiter[T], n uint64) int { return cmp.Compare(w.number, n) })
	*w = slices.Insert(*w, i, one)
}

// next is when the first of them is due that comes after no other in its order, and
// whether there is any.
func (w waiters[T]) next() (due time.Time, some bool) {
	var met map[string]bool
	for i := range w {
		if order := w[i].order; order != "" {
			if met[order] {
				continue
			}
			if met == nil {
				met = make(map[string]bool)
			}
			met[order] = true
		}
		if at := w[i].due; !some || at.Before(due) {
			due, some = at, true
		}
	}
	return due, some
}

// takeDue takes out the records that are due, with those that come after one of them
// in their order.
func (w *waiters[T]) takeDue(now time.Time) (taken []waiter[T]) {
	var held map[string]bool
	*w = slices.DeleteFunc(*w, func(one waiter[T]) bool {
		if now.Before(one.due) || held[one.order] {
			if held == nil {
				held = make(map[string]bool)
			}
			held[one.order] = one.order != ""
			return false
		}
		taken = append(taken, one)
		return true
	})
	return taken
}

// keeps reports whether a record of the order key waits.
func (w waiters[T]) keeps(order string) bool {
	return order != "" && slices.ContainsFunc(w, func(one waiter[T]) bool { return one.order == order })
}

// find returns the record that is known by a key, nil if there is none.
func (w waiters[T]) find(key recordKey) *waiter[T] {
	if key == (recordKey{}) {
		return nil
	}
	for i := range w {
		if w[i].key == key {
			return &w[i]
		}
	}
	return nil
}

// leased returns the records as a lease knows them: by their numbers.
func (w waiters[T]) leased() []pending[T] {
	list := make([]pending[T], len(w))
	for i, one := range w {
		list[i] = pending[T]{one.record, recordKey{number: one.number}}
	}
	return list
}

// dueNow returns the record that waited and is now in the batch, nil where it is one
// that was fetched.
func (p *poller[T]) dueNow(i int) *waiter[T] {
	i += p.taken
	if i < len(p.mixed) {
		i = p.mixed[i]
	}
	if i < len(p.due) {
		return &p.due[i]
	}
	return nil
}

// mix puts the fetched records of the pass between those that were due: these have failed
// before and may again, and a breaker must not take that for an outage for having been
// put together, by one worker or by many that begin at once. A due record stays before the
// fetched ones of its key.
func (p *poller[T]) mix() {
	n := len(p.due)
	apart := max(1, min((len(p.records)-n)/n, p.config.workers))
	keys, _ := p.keysOf(nil, p.records)
	left := make(map[string]int) // due records by key
	for i := range min(n, len(keys)) {
		left[keys[i]]++
	}
	records, ids := p.records, p.ids
	p.records, p.ids, p.mixed = make([]T, 0, len(records)), make([]recordKey, 0, len(records)), nil
	put := func(i int) {
		p.records, p.ids, p.mixed = append(p.records, records[i]), append(p.ids, ids[i]), append(p.mixed, i)
	}
	due := 0
	putDue := func() {
		if keys != nil {
			left[keys[due]]--
		}
		put(due)
		due++
	}
	for i := n; i < len(records); i++ {
		if due < n && (i-n)%apart == 0 {
			putDue()
		}
		for keys != nil && left[keys[i]] > 0 {
			putDue()
		}
		put(i)
	}
	for due < n {
		putDue()
	}
}

// keepWaiting has a record of the batch that was not settled wait in hand, and reports
// whether it does: it asks for that, or comes after one of its key that waits.
func (p *poller[T]) keepWaiting(i int) bool {
	err := p.batch.ledger.Err(i)
	due, waits := waitOf(err)
	order, before := p.orderOf(i), p.dueNow(i)
	past := historyOf(err)
	if p.known == nil {
		p.known = p.identity.keysOf(p.batch.ledger.Records)
	}
	switch {
	case p.life.stop.Err() != nil:
		return false
	case waits && p.leftToSource(i, due, past):
		return true
	case waits && p.once && ownWait(err) && due.Sub(p.config.clock.Now()) > p.config.drainTimeout:
		return false
	case waits:
	case err == errHeldBack && p.waiting.keeps(order):
	case !p.once && (past.goesOn() || before != nil && refusedOutside(err)):
		if !past.goesOn() {
			past = before.past
		}
		if p.lease == nil && (p.releaser != nil || p.identity.inHand) { // it cannot be held for long, or would keep all others out
			p.memory.note(p.idOf(i), past.attempts())
			return false
		}
		due = p.config.clock.Now().Add(max(p.config.interval, afterOf(err, maxAfter)))
	default:
		return false
	}
	one := waiter[T]{pending: pending[T]{p.batch.ledger.Records[i], p.idOf(i)}, order: order, due: due, asked: ownWait(err), past: past, place: p.index(i)}
	if before != nil {
		one.number = before.number
		if one.past == nil && err == errHeldBack {
			one.past = before.past
		}
	}
	p.lease.numberOne(i, p.enlist(one))
	p.waited = p.waited || waits
	return true
}

// maxUnrenewed is how long a record waits in hand whose lease cannot be renewed.
const maxUnrenewed = 10 * time.Second

// leftToSource gives a record back that waits for longer than its source may leave it in
// hand, if the source keeps the time, and reports whether it did.
func (p *poller[T]) leftToSource(i int, due time.Time, past history) bool {
	after := due.Sub(p.config.clock.Now())
	if p.releaser == nil || p.failer != nil || p.lease != nil || p.once || after <= maxUnrenewed {
		return false
	}
	if past.attempts() != nil && (p.idOf(i) == recordKey{}) { // they would be lost, and poison never parked
		return false
	}
	p.memory.note(p.idOf(i), past.attempts())
	p.back.add(p.batch.ledger.Records[i], after)
	return true
}

// enlist has a record wait, and returns its number. One that has come into hand just
// now gets it.
func (p *poller[T]) enlist(one waiter[T]) (number uint64) {
	if one.number == 0 {
		if one.number = one.key.number; one.number == 0 {
			p.identity.number++
			one.number = p.identity.number
		}
	}
	p.waiting.add(one)
	return one.number
}

// tellWaiting tells Stats how many records wait, once others do than before.
func (p *poller[T]) tellWaiting() {
	next, _ := p.waiting.next()
	n := 0
	for i := range p.waiting {
		if !p.waiting[i].due.IsZero() {
			n++
		}
	}
	p.watch.waits(n, next)
}

// followGone has waiting records leave the hand with an earlier one of their key that
// leaves it without being settled.
func (p *poller[T]) followGone(gone map[string]bool) {
	if len(p.waiting) == 0 || len(gone) == 0 {
		return
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(one waiter[T]) bool {
		if gone[one.order] {
			p.memory.note(one.key, one.past.attempts())
			p.behind = append(p.behind, one.pending)
		}
		return gone[one.order]
	})
}

// orderOf returns the order key of a record of the batch.
func (p *poller[T]) orderOf(i int) (key string) {
	if p.batch.keys != nil {
		key = p.batch.keys[i]
	}
	return key
}

// worksOff reports whether the waiting records are settled before more is fetched: the
// source would return them again, and they could not be told from others.
func (p *poller[T]) worksOff() bool {
	if len(p.waiting) == 0 || p.releaser != nil && !p.once {
		return false
	}
	return p.identity.inHand || slices.ContainsFunc(p.waiting, func(one waiter[T]) bool { return one.key == recordKey{} })
}

// room is how many records may come into hand beside those that wait.
func (p *poller[T]) room() int { return p.config.batchSize - len(p.waiting) }

// takeWaiting has the pass work on waiting records alone while it is not the time to
// fetch, or there is no room for more, and reports whether the pass has its task.
func (p *poller[T]) takeWaiting() bool {
	if len(p.waiting) == 0 {
		return false
	}
	now := p.config.clock.Now()
	worksOff := p.worksOff()
	room := p.room() > 0 || p.ahead.asked() // what was fetched ahead is in hand
	mayFetch := !worksOff && !p.paused && room && !now.Before(p.fetchAt)
	if mayFetch && p.ahead == nil { // then what is due goes along with what is fetched
		return false
	}
	if p.takeDue(now); len(p.due) > 0 {
		p.records, p.ids = p.dueRecords()
		p.handed, p.dueOnly = true, true
		p.phase = fetched
		return true
	}
	if mayFetch {
		return false
	}
	due, _ := p.waiting.next()
	if !worksOff && !room {
		p.tellFullHand(due)
	}
	d := due.Sub(now)
	if !worksOff && !p.paused && room {
		d = min(d, p.fetchAt.Sub(now))
	}
	p.nap(d)
	return true
}

// takeDue takes the records that are due out of those that wait, for the pass.
func (p *poller[T]) takeDue(now time.Time) {
	p.due = p.waiting.takeDue(now)
	p.tellWaiting()
	if !p.probing && !p.sparing {
		return
	}
	for _, one := range p.due { // the suspects are who is not to be the probe
		if past := one.past.attempts(); past != nil {
			p.memory.note(one.key, past)
		}
	}
}

// waitOn has those of the due records wait on that are not picked, of which it asks by
// their places: until some time, if it is not zero.
func (p *poller[T]) waitOn(picked func(i int) bool, until time.Time) {
	var due []waiter[T]
	for i, one := range p.due {
		if picked(i) {
			due = append(due, one)
			continue
		}
		if until.After(one.due) {
			one.due = until
		}
		p.enlist(one)
	}
	p.due = due
	p.tellWaiting()
}

func (p *poller[T]) dueRecords() (records []T, ids []recordKey) {
	for _, one := range p.due {
		records, ids = append(records, one.record), append(ids, one.key)
	}
	return records, ids
}

// tellFullHand tells that the waiting records are all that may be in hand.
func (p *poller[T]) tellFullHand(until time.Time) {
	if p.fullHand { // since, with what was due in vain
		p.watch.stands(byFullHand, ErrFullHand, until)
	} else {
		p.fullHand = true
		p.watch.paused(p.life.settle, byFullHand, PauseEvent{Until: p.config.clock.told(until), Err: ErrFullHand, Waiting: len(p.waiting)}, false)
	}
}

// easeHand tells, once half of the hand is free, that it is not full any more.
func (p *poller[T]) easeHand() {
	if p.fullHand && len(p.waiting) <= p.config.batchSize/2 {
		p.fullHand = false
		p.watch.resumed(p.life.settle, byFullHand)
	}
}

// joinWaiting takes in hand, beside what was fetched, what is due. It drops what the
// source has returned a second time.
func (p *poller[T]) joinWaiting() {
	fetchedNow := p.records
	ids := p.identity.keysOf(fetchedNow)
	p.takeDue(p.config.clock.Now())
	var fresh []T
	var freshIDs []recordKey
	room := p.room() - len(p.due)
	dropped := 0
	for i, record := range fetchedNow {
		twin := p.waiting.find(ids[i])
		if twin == nil {
			twin = waiters[T](p.due).find(ids[i])
		}
		switch {
		case twin != nil:
			if p.releaser != nil { // its lease had run out, and the source knows this one
				twin.record = record
				p.lease.regain(twin.number)
			}
			dropped++
		case room <= 0 && p.releaser == nil && !p.limitless:
			dropped++
		default:
			fresh, freshIDs = append(fresh, record), append(freshIDs, ids[i])
			room--
		}
	}
	p.records, p.ids = p.dueRecords()
	p.records, p.ids = append(p.records, fresh...), append(p.ids, freshIDs...)
	p.watch.count.inHand.Add(-int64(dropped))
}

// putBehind has the records of the pass wait that come after a waiting one of their key.
func (p *poller[T]) putBehind() {
	if p.ids == nil {
		p.ids = p.identity.keysOf(p.records)
	}
	keys, _ := p.keysOf(nil, p.records)
	n := len(p.due)
	records, ids := slices.Clone(p.records[:n]), slices.Clone(p.ids[:n])
	for i := n; i < len(p.records); i++ {
		if p.waiting.keeps(keys[i]) {
			p.enlist(waiter[T]{pending: pending[T]{p.records[i], p.ids[i]}, order: keys[i], place: i - n})
		} else {
			records, ids = append(records, p.records[i]), append(ids, p.ids[i])
		}
	}
	p.records, p.ids = records, ids
	p.tellWaiting()
}

// pasts returns what was used on the next n records of the pass, nil where nothing was.
func (p *poller[T]) pasts(n int) []history {
	past := p.memory.histories(p.known)
	for i := range n {
		if len(p.due) == 0 {
			break
		}
		if past == nil {
			past = make([]history, n)
		}
		if one := p.dueNow(i); one != nil && one.past != nil {
			past[i] = one.past
		}
	}
	return past
}

// inLease returns what the pass has in hand, as a lease knows it.
func (p *poller[T]) inLease() []pending[T] {
	list := pendings(p.records, p.ids)
	for i := range list {
		if one := p.dueNow(i); one != nil {
			list[i].key = recordKey{number: one.number}
		}
	}
	return append(append(list, p.release...), p.kept...)
}

// setAside has the waiting records go back to the source, or be kept for as long as
// nothing is applied. What they have used is remembered as far as they are known.
func (p *poller[T]) setAside() (some bool) {
	some = len(p.waiting) > 0
	for _, one := range p.waiting {
		if past := one.past.attempts(); past != nil {
			p.memory.note(one.key, past)
		}
		if left := one.due.Sub(p.config.clock.Now()); one.asked && left > 0 && p.releaser != nil && p.keyOf == nil && !p.once {
			p.back.add(one.record, left)
		} else {
			p.release = append(p.release, one.pending)
		}
	}
	p.waiting = nil
	p.tellWaiting()
	p.lease.waitBeside(nil)
	p.easeHand()
	return some
}

// dropLost lets go of waiting records that another instance has by now.
func (p *poller[T]) dropLost() {
	p.waiting = slices.DeleteFunc(p.waiting, func(one waiter[T]) bool {
		lost := p.lease.lostWaiting(one.number)
		if lost {
			p.watch.count.inHand.Add(-1)
		}
		return lost
	})
	p.tellWaiting()
}
