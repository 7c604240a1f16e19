package sim

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// This file is about records that wait for their next attempt (I-1 to I-8 of the
// engine's rules), as far as calls and events tell: when they are tried again, and what
// goes on meanwhile.

// wait is a record that is to be tried again.
type wait struct {
	due     int64
	next    int           // attempt
	asked   bool          // by the destination, see courier.Later
	untimed bool          // something came between, and nobody knows by when
	sooner  bool          // though it has asked for the time, it may be tried before
	leaves  bool          // it may be left to the next run, which comes when it comes
	late    int64         // how late its timer may be, since the process stood still meanwhile
	stalled time.Duration // overdue, with nothing in its way
	fetched bool          // since it is due, the source was asked for others
}

// waiting is what the model knows of the waits of a process.
type waiting struct {
	of       map[int]*wait         // by record, of the first branch
	untried  map[int]string        // records that were not attempted in the last call, and why
	unbegun  map[int]time.Duration // records in hand: how long nothing was in their way
	met      map[int]bool          // that were begun with, at one time or another
	lookedAt int64
	before   int64         // when it was looked at last, at another instant
	worked   bool          // a call was under way since then, but for renewals
	stood    int64         // how long the process had stood still by then
	unasked  time.Duration // how long nothing is fetched, beside waiting records that leave room for it
	unmarked time.Duration // how long an applied record waits for nothing to be marked
	idle     time.Duration // how long nothing is under way, in a stop
	full     time.Duration // how long waiting records are all that may be in hand
	fullTold atomic.Bool
	refused  bool // the queue, or to a poller its destination, has refused a record since one was settled

	fetchedAt, interruptedAt int64
}

// slack is how long what may begin at once takes at most, beside the calls that it
// makes.
const slack = 100 * time.Millisecond

// claim is how many records a poller's worker takes at a time at the most.
const claim = 16

// holds reports whether a coordinator keeps what waits in hand, and not with a worker.
// One worker without keys has nothing else to do, in a fan-out each branch retries by
// itself, and behind a breaker a record without a name would be forgotten over a pause.
func (m *model) holds() bool {
	unnamed := !m.Named && m.shape < leasing
	return m.Stack >= retrying && !m.Batches && m.FanOut == 0 && (m.Workers > 1 || m.Keys > 0) && (!m.breaks() || !unnamed)
}

// postpones reports whether what a destination asks to be tried later waits in hand, and
// no retry holds a worker up meanwhile.
func (m *model) postpones() bool {
	return m.holds() || m.Stack == plain && m.FanOut == 0 && !m.Batches
}

// answerUntried takes in a call that was no attempt at a record: the destination asks for
// another time, or has left it behind a failed one. The attempt that comes then has the
// number of this one, 0 where that is not known.
func (m *model) answerUntried(l *life, c *call, n, attempt int, err error) {
	after := postponed(err)
	behind := errors.Is(err, courier.ErrBehindFailed)
	if after == 0 && !behind || c.gone || l.redrives() { // which comes again when it is time for the next redrive
		return
	}
	if c.counts {
		m.rows[n].calls[l.p.instance]--
	}
	if behind {
		l.waits.untried[n] = "it is behind a failed one"
		return
	}
	m.Sometimes("asked for another time")
	if m.Stack > plain && !m.holds() { // the retry has its attempts in one delivery, and the next one begins at 1
		attempt = 0
	}
	l.waits.untried[n] = "the destination has asked for another time"
	// A run does not wait for what asks, by the end of its batch, for longer than the drain
	// timeout: the run returns its error, and goes on as long as others are to be retried.
	l.waits.begin(n, &wait{due: m.now.Load() + int64(after), next: attempt, asked: true, untimed: m.Budget, leaves: m.Cron > 0 && after > m.Drain}) // a budget may have it wait on
}

// begin takes in that a record waits. Nothing wakes who has it, if that is to wake for
// another one before, by a timer that is late.
func (w *waiting) begin(n int, one *wait) {
	for _, other := range w.of {
		if other.due <= one.due {
			one.late = max(one.late, other.late)
		}
	}
	w.of[n] = one
}

// stand takes in that a process has stood still since it was looked at last. Timers that
// were set before come later by as much, unlike the time that its clock tells. So what
// waited by then may be tried that much later than it is due.
func (w *waiting) stand(stood int64) {
	for _, one := range w.of {
		one.late += stood - w.stood
	}
	w.stood = stood
}

// retriedIn follows what a retry tells of its next attempt.
func (l *life) retriedIn(branch string) func(context.Context, courier.RetryEvent) {
	return func(_ context.Context, e courier.RetryEvent) {
		l.telling.Lock()
		defer l.telling.Unlock()
		if l.watcher != nil {
			l.watcher.retried++
		}
		if n, err := strconv.Atoi(e.Record[min(1, len(e.Record)):]); err == nil && branch == first && !l.p.dead {
			l.look(nil)
			w := &l.waits
			halted := !l.m.streaming() && w.interruptedAt > w.fetchedAt // and with the batch all that waits in it
			w.begin(n, &wait{due: l.m.now.Load() + int64(e.Delay), next: e.Attempt + 1, untimed: halted})
		}
	}
}

// give takes in that a process has got a record. A poller whose source takes nothing
// back may let go of it for want of room.
func (l *life) give(n int) {
	if w := l.waits.of[n]; w != nil && !l.m.has(l, n) { // who had it meanwhile may have done anything with it
		w.sooner, w.untimed = true, true
	}
	if l.m.shape >= leasing && !l.waits.met[n] {
		l.waits.unbegun[n] = 0
	}
}

// end ends the waits of records, with which something is done.
func (w *waiting) end(records ...int) {
	for _, n := range records {
		delete(w.of, n)
		w.meet(n)
	}
}

// meet takes in that a record is begun with, if only by asking a queue for its key.
func (w *waiting) meet(n int) {
	delete(w.unbegun, n)
	w.met[n] = true
}

// refuse takes in that a queue was asked which keys it has, and did not answer.
func (m *model) refuse(w *waiting, keys []string) {
	for n := range w.unbegun {
		if slices.Contains(keys, m.keyName(n)) {
			w.meet(n)
		}
	}
	for n, one := range w.of {
		one.untimed = one.untimed || slices.Contains(keys, m.keyName(n))
	}
}

// asks reports whether a queue is being asked by a process for the key of a record.
func (m *model) asks(l *life, n int, returning *call) bool {
	about := func(c *call) bool {
		keys, ok := c.data.([]string)
		return ok && c.p == l.p && slices.Contains(keys, m.keyName(n))
	}
	return m.KeyedQueue && (returning != nil && about(returning) || slices.ContainsFunc(m.parked, about))
}

// interrupt has waits go on who knows how: a breaker, or an operator, came between.
func (w *waiting) interrupt(now int64, theirs func(n int) bool) {
	w.interruptedAt = now
	for n, one := range w.of {
		one.untimed = one.untimed || theirs(n)
	}
}

// restart has all measures begin anew.
func (w *waiting) restart() {
	w.unmarked, w.idle, w.full, w.unasked = 0, 0, 0, 0
	for n := range w.unbegun {
		w.unbegun[n] = 0
	}
	for _, one := range w.of {
		one.stalled = 0
	}
}

// comeWait looks at an attempt on a record, 0 where its number is not known.
func (m *model) comeWait(l *life, c *call, n, attempt int) {
	r := &m.rows[n]
	sure := !r.twice && !r.strayed && !m.Twins
	if under := slices.ContainsFunc(m.parked, func(o *call) bool { return o != c && o.p == l.p && !o.gone && isAbout(o, n) }); under && sure {
		m.Fail("I-5: %s is applied by process %d, which is at it already", names[n], l.p.number)
	}
	w := l.waits.of[n]
	l.waits.end(n)
	delete(l.waits.untried, n)
	for before, one := range l.waits.of {
		if m.Keys > 0 && before < n && m.key(before) == m.key(n) && !one.untimed && sure && !m.rows[before].strayed && !m.rows[before].twice && m.has(l, before) {
			m.Fail("I-2: %s is begun by process %d, and %s of its key waits", names[n], l.p.number, names[before])
		}
	}
	if w == nil || !sure || !m.has(l, n) {
		return
	}
	before, now := l.waits.before, m.now.Load()
	switch {
	case now < w.due && w.asked && !w.sooner && m.stepped == 0: // whatever came between
		m.Fail("Later: %s is applied %v before the time that the destination has asked for", names[n], time.Duration(w.due-now))
	case w.leaves && !w.untimed && m.stepped == 0 && before < w.due-int64(m.Drain) && !l.waits.worked: // else it was its batch that took so long
		m.Fail("I-7: a run of process %d waits for %s, which has asked for more time than the drain timeout", l.p.number, names[n])
	case w.untimed, w.next == 0:
	case attempt == 1 && w.next > 1:
		m.Fail("I-5: %s is begun anew by process %d, in which it waits for attempt %d", names[n], l.p.number, w.next)
	case attempt > 0 && attempt != w.next:
		m.Fail("I-5: %s is tried for the %dth time by process %d, where attempt %d was to be next", names[n], attempt, l.p.number, w.next)
	case now < w.due && m.stepped == 0 && !l.p.stopping:
		m.Fail("I-1: %s is tried again %v before it is due", names[n], time.Duration(w.due-now))
	}
}

// isAbout reports whether a call applies a record, in the first branch.
func isAbout(c *call, n int) bool {
	switch data := c.data.(type) {
	case try:
		return c.kind == Apply && data.n == n
	case *verdicts:
		return slices.Contains(data.records, n)
	}
	return false
}

// has reports whether a process has a record still, as far as leases tell.
func (m *model) has(l *life, n int) bool {
	return m.shape != leasing && m.shape != broker || m.rows[n].lessee == l.p && !m.rows[n].put && l.inHand[n]
}

// comeFetchWaits looks at a fetch of a poller: what was due before the one before was
// made has been begun with since.
func (m *model) comeFetchWaits(l *life) {
	l.waits.fetchedAt = m.now.Load()
	for n, w := range l.waits.of {
		w.sooner = w.sooner || m.goesWithAnother(l, n) // which comes before it, and again when it does
	}
	if !m.holds() || m.streaming() || m.Prefetch > 0 || m.Twins || m.stepped > 0 || l.opened() {
		return
	}
	for n := range names { // in order
		w := l.waits.of[n]
		if w == nil || w.untimed || m.now.Load() <= w.due || !m.has(l, n) || l.troubled(n) {
			continue
		}
		if w.fetched && l.p.still == 0 {
			m.Fail("I-1: process %d fetches once more, and %s is due since %v", l.p.number, names[n], time.Duration(w.due))
		}
		w.fetched = true
	}
}

// comeFetchNameless looks at a fetch of a poller that could not tell what waits from what
// it is about to get. Nothing waits by then, but for what goes back with an earlier one of
// its key that has failed for good: a call of a batch that has failed as one leaves several
// of a key to be retried. Such a record is another one when it comes again.
func (m *model) comeFetchNameless(l *life) {
	if m.shape >= leasing || m.Twins || m.FanOut > 0 || m.breaks() && l.waits.interruptedAt >= l.waits.fetchedAt { // then it may look past what it has in hand
		return
	}
	for n := range names { // in order
		w := l.waits.of[n]
		switch {
		case w == nil || w.untimed:
		case m.goesWithAnother(l, n):
			w.due, w.untimed = m.now.Load(), !m.Named
		case !m.Named && !w.leaves:
			m.Fail("I-5: process %d fetches, and %s waits, which has no name", l.p.number, names[n])
		}
	}
}

// goesWithAnother reports whether a record has left the hand of a poller behind an earlier
// one of its key, which waits for nothing and is not settled.
func (m *model) goesWithAnother(l *life, n int) bool {
	if m.Keys == 0 {
		return false
	}
	for before := m.key(n); before < n; before += m.Keys {
		w := l.waits.of[before]
		if r := &m.rows[before]; r.arrived && !r.marked && r.told[l.p.instance] != l.p && (w == nil || w.untimed) {
			return true
		}
	}
	return false
}

// told has the full hand of a process be told, see courier.ErrFullHand.
func (l *life) toldOf(e courier.PauseEvent) {
	if errors.Is(e.Err, courier.ErrFullHand) {
		l.waits.fullTold.Store(true)
		l.m.Sometimes("a hand full of waiting records")
	}
}

// fetchesOn reports whether a process that has nothing to do but to wait fetches beside
// that: it has room, and no fetch may have failed.
func (m *model) fetchesOn(l *life, room int) bool {
	troubles := m.rates[Fetch]
	troubles[Slow], troubles[Twice] = 0, 0
	switch {
	case troubles != [faults]float64{} || len(m.outages[0]) > 0 || m.script != nil || m.Cron > 0 || len(l.waits.of) == 0:
		return false
	case m.streaming() || m.Hosts > 0: // and a stream waits before it fetches more that the queue may refuse
		return !l.waits.refused && (m.shape == broker || m.shape == leasing) && m.Keys == 0 && len(l.inHand) < room
	}
	// So does a poller that can settle nothing of what it gets, for a time that grows.
	return !l.waits.refused && m.Prefetch <= 0 && m.Keys == 0 && len(l.waits.of) < room && (m.Named || m.shape == leasing)
}

// under is how many calls are under way that a process has made.
type under struct{ applying, fetching, settling, renewing int }

// under counts the calls of a process, with one that returns just now.
func (l *life) under(returning *call) (u under) {
	now := l.m.now.Load()
	count := func(c *call) {
		switch c.kind {
		case Renew:
			u.renewing++
		case Fetch:
			u.fetching++
		case Mark, Release, Fail:
			u.settling++
		default:
			u.applying++
		}
	}
	for _, c := range l.m.parked {
		if c.p == l.p && c.came < now {
			count(c)
		}
	}
	if returning != nil && returning.came < now {
		count(returning)
	}
	return u
}

// look takes in that time has passed since the last call of a process began or ended,
// whichever was later: what might have gone on meanwhile should have.
func (l *life) look(returning *call) {
	m, w := l.m, &l.waits
	now := m.now.Load()
	w.stand(l.p.stood)
	from := w.lookedAt
	if w.lookedAt = now; now == from {
		return
	}
	u := l.under(returning)
	w.before, w.worked = from, u.applying+u.fetching+u.settling > 0
	if !m.postpones() || l.p.dead || l.redrives() || m.Twins || m.stepped > 0 || l.p.still > from || l.markFailed || l.paused {
		w.restart()
		return
	}
	passed := time.Duration(now - from)
	add := func(to *time.Duration, d time.Duration, stalls bool) time.Duration {
		if *to += d; !stalls {
			*to = 0
		}
		return *to
	}
	still, fetching := u == under{}, u.fetching
	if m.streaming() {
		u.fetching = 0 // beside which all goes on
	}
	at := u.applying + u.fetching + u.settling
	if m.streaming() {
		at = u.settling
	}
	patience := slack
	if m.streaming() {
		patience += 2 * m.Flush
	}

	// I-3: marks do not wait.
	unmarked := false
	for n := range l.inHand {
		r := &m.rows[n]
		unmarked = unmarked || r.told[l.p.instance] == l.p && !r.marked && !r.twice && !r.strayed && !m.stubborn[n] && m.has(l, n)
	}
	if add(&w.unmarked, passed, unmarked && at == 0 && !m.Ordered && m.Keys == 0 && m.Cron == 0) > patience { // with keys a share comes to its end first
		m.Fail("I-3: process %d has applied records in hand, nothing to do, and does not mark them for %v", l.p.number, w.unmarked)
	}
	if l.p.stopping {
		if add(&w.idle, min(passed, time.Duration(now-l.p.askedAt)), still) > 2*slack {
			m.Fail("I-7: process %d is to stop, and does nothing for %v", l.p.number, w.idle)
		}
		return
	}
	if m.Hosts == 0 && l.breaker != courier.BreakerClosed || l.opened() {
		w.restart()
		return
	}

	// I-1: who waits holds no worker.
	begun := patience
	if m.Prefetch > 0 && !m.streaming() {
		begun += 2 * m.Interval // what is fetched ahead has its time, too
	}
	idle := u.applying < m.Workers
	if m.streaming() && m.Keys > 0 { // what a worker was given comes to its end first
		idle = u.applying == 0
	}
	if !m.streaming() {
		idle = idle && u.fetching+u.settling == 0 && (u.applying == 0 || m.Prefetch <= 0 && !m.Beyond)
	}
	var late []int
	for n := range w.unbegun {
		d := w.unbegun[n]
		if add(&d, passed, idle && m.holds() && m.has(l, n) && !m.rows[n].strayed && !m.behindAnother(n) && !l.troubled(n) && !m.asks(l, n, returning)) > begun {
			late = append(late, n)
		}
		w.unbegun[n] = d
	}
	if !m.streaming() && len(late) <= u.applying*(claim-1) { // a poller's worker has claimed them with what it is at
		late = nil
	}
	slices.Sort(late)
	for _, n := range late {
		m.Fail("I-1: process %d has %s in hand and idle workers, and does not begin with it for %v", l.p.number, names[n], w.unbegun[n])
	}
	for n, one := range w.of {
		m.lapses(l, n)
		if late := min(passed, time.Duration(now-one.due-one.late)); late > 0 && !one.untimed && !one.leaves && !l.troubled(n) &&
			(m.Cron == 0 || !one.asked) { // of what asks a run waits for so much only in all
			free := idle && (!one.asked || u.settling == 0) // what has asked for long may be about to go back
			if !m.streaming() {
				free = at == 0
			}
			if add(&one.stalled, late, free && m.has(l, n) && !m.rows[n].strayed && !m.rows[n].twice && !m.asks(l, n, returning)) > patience {
				m.Fail("I-1: %s is due since %v, and process %d has idle workers", names[n], time.Duration(one.due), l.p.number)
			}
		}
	}

	// I-4: a hand full of waiting records is told.
	room, told := m.Batch, patience
	if m.streaming() {
		room = m.limit()
	} else {
		told += m.Interval * 5 / 4 // until when it would fetch
	}
	waits := 0
	for n, one := range w.of {
		if m.has(l, n) && !one.untimed && one.due > now {
			waits++
		}
	}
	if add(&w.full, passed, waits >= room && !w.fullTold.Load() && at+u.applying == 0 && m.Cron == 0 && (m.Named || m.shape >= leasing)) > told {
		m.Fail("I-4: %d records of process %d wait, which may have %d in hand, and it does not tell", waits, l.p.number, room)
	}

	// I-1: intake goes on.
	if add(&w.unasked, passed, fetching+at+u.applying == 0 && m.fetchesOn(l, room)) > told {
		m.Fail("I-1: process %d has room beside the %d records that wait, and fetches nothing for %v", l.p.number, len(w.of), w.unasked)
	}
}

// behindAnother reports whether a record comes before one in the order of its key.
func (m *model) behindAnother(n int) bool {
	if m.Keys == 0 {
		return false
	}
	for before := m.key(n); before < n; before += m.Keys {
		if r := &m.rows[before]; r.arrived && (!r.marked || r.twice || r.strayed) {
			return true
		}
	}
	return false
}
