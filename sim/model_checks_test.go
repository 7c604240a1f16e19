package sim

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier"
)

// come looks at a call that has begun.
func (m *model) come(c *call) {
	l := m.lives[c.p.number]
	l.watcher.applies(c)
	l.look(nil)
	switch c.kind {
	case Fetch:
		m.comeFetchNameless(l)
		m.comeFetchWaits(l)
		m.comeFetch(l, c.data.(*handing).limit)
	case Apply:
		if t, first := c.data.(try); first {
			m.comeWait(l, c, t.n, t.attempt)
			m.comeApply(l, c, t.n)
			m.comeBreaker(l, c, t.n)
			if t.attempt == 1 && !m.Yield {
				m.comeFirst(l, t.n)
			}
			m.comeRetry(l, t)
			switch {
			case t.attempt == 1 || m.Batches:
			case l.p.stopping && l.p.still < m.now.Load():
				m.Fail("D8: %s is tried again after process %d was told to stop", names[t.n], l.p.number)
			case l.permanent[t.n] && !m.rows[t.n].twice && !m.Twins: // of twins one may know of attempts before the other's
				m.Fail("R-8: %s is tried again after a permanent error", names[t.n])
			}
		} else if t, aside := c.data.(besides); aside {
			m.comeOrder(l, c, t.n, second)
			if t.attempt == 1 && !m.Batches {
				m.comeSecond(l, t.n)
			}
		}
	case Batch:
		if v := c.data.(*verdicts); v.attempt > 1 && l.p.stopping && l.p.still < l.p.askedAt && m.now.Load() > l.p.askedAt {
			m.Fail("D8: a batch is tried again after process %d was told to stop: %s", l.p.number, c.name)
		}
		for _, n := range c.data.(*verdicts).records {
			m.comeWait(l, c, n, 0)
			if m.comeApply(l, c, n); !m.Yield {
				m.comeFirst(l, n)
			}
		}
		m.comeBreaker(l, c, c.data.(*verdicts).records...)
	case Send:
		if letter := c.data.(sent); letter.branch != second {
			l.waits.end(letter.n)
		}
	case Mark:
		l.waits.end(c.data.([]int)...)
	case Begin:
		if n, err := strconv.Atoi(c.name[1:]); err == nil && !m.Batches {
			l.waits.meet(n)
			m.comeFirst(l, n)
		}
	case Renew:
		l.renewAt = m.now.Load()
		for _, n := range c.data.([]int) { // while some are being given back, the others of that may be renewed still
			if r := &m.rows[n]; r.put && !r.twice && !r.strayed && r.lessee == l.p && l.p.still < r.putAt && r.putAt < l.renewAt-int64(40*time.Second) {
				m.Fail("D11: process %d renews %s, which it gave back long ago", l.p.number, names[n])
			}
		}
	case Release, Fail:
		l.waits.end(c.data.(given).list...)
		for _, n := range c.data.(given).list {
			m.rows[n].leaving = true
		}
	}
	m.comeContext(l, c)
}

// comeRetry looks at an attempt that is the first of a delivery, though the retries of
// the one before were to go on: whatever an attempt failed with, it is one of several.
func (m *model) comeRetry(l *life, t try) {
	if made := l.tries[t.n]; made > 0 && t.attempt == 1 && !m.rows[t.n].twice && !m.rows[t.n].strayed {
		m.Fail("R-1: %s was given up after %d of %d attempts", names[t.n], made, m.Attempts)
	}
	delete(l.tries, t.n)
}

// forget has the attempts be forgotten that were made at some records: what a keyed
// queue, when asked, did not answer for is given back, and one that has no name is
// another record when it comes again.
func (m *model) forget(l *life, keys []string) {
	unnamed := !m.Named
	if m.streaming() || !unnamed && m.Cron == 0 {
		return
	}
	for n := range l.tries {
		if slices.Contains(keys, m.keyName(n)) {
			delete(l.tries, n)
		}
	}
}

// answerRetry notes whether an attempt is to be followed by another. A breaker may
// interrupt that, and of twins nobody knows which delivers.
func (m *model) answerRetry(l *life, c *call, t try) {
	failed := c.err != nil && !c.gone && c.fault != Permanent && c.fault != Refused && c.fault != Later && !m.skipped[t.n] && t.n != m.Foreign
	known := !m.Busy || m.holds() // else what asks for another time has the next delivery begin to number anew
	if (m.Stack == retrying || m.Stack == unbroken) && failed && known && t.attempt < m.Attempts && !m.Batches && !m.Twins && !l.redrives() {
		l.tries[t.n] = t.attempt
	}
}

// comeContext looks at the context of a call that begins.
func (m *model) comeContext(l *life, c *call) {
	switch c.kind {
	case Fetch:
		if c.ctx.Err() != nil && !l.p.stopping && !l.paused {
			m.Fail("D8: a fetch of process %d with a context that has ended, before any stop", l.p.number)
		}
	case Apply, Batch, Mark, Release, Fail, Renew, Send, Keys:
		if c.ctx.Err() != nil && (l.inTime() || !l.p.stopping) {
			m.Fail("D8: a %s of process %d with a context that has ended, within the drain timeout", c.kind, l.p.number)
		}
	}
}

// ctxSlack is how long calls go on, in all, that were ended by their contexts when
// they had had their effect.
const ctxSlack = 5 * time.Second

// answerContext looks at the context of a call that returns.
func (m *model) answerContext(l *life, c *call) {
	lives := !c.gone && c.ctx.Err() == nil
	if c.kind == Fetch && lives && l.paused && l.pausedAt < m.now.Load() {
		m.Fail("Pause: a fetch of process %d has a context that lives, after an operator has paused it", l.p.number)
	}
	if !l.p.stopping || l.redrives() {
		return
	}
	since := time.Duration(m.now.Load() - l.p.stoppedAt)
	switch c.kind {
	case Fetch:
		if lives {
			m.Fail("D8: a fetch of process %d has a context that lives, %v after the stop", l.p.number, since)
		}
		return
	case Apply, Batch:
		if lives && since > m.Drain {
			m.Fail("D8: a %s of process %d has a context that lives, %v after the stop, with a drain timeout of %v", c.kind, l.p.number, since, m.Drain)
		}
	case Mark, Release, Fail, Renew:
		if lives && since > 2*m.Drain+ctxSlack {
			m.Fail("D8: a %s of process %d has a context that lives, %v after the stop, with a drain timeout of %v", c.kind, l.p.number, since, m.Drain)
		}
	}
	if c.kind == Renew && (m.Twins || !m.works(l)) { // which ends the renewals; of twins one may be at its end
		return
	}
	if c.gone && l.inTime() && !errors.Is(c.err, context.DeadlineExceeded) {
		m.Fail("D8: a %s of process %d is cut short within the drain timeout: %v", c.kind, l.p.number, c.err)
	}
}

// inTime reports whether the drain timeout of a process that stops is not over. A
// redrive has none: what it does not get to stays in the queue.
func (l *life) inTime() bool {
	return !l.redrives() && l.p.stopping && l.m.now.Load() < l.p.askedAt+int64(l.m.Drain)
}

func (m *model) comeFetch(l *life, limit int) {
	l.fetches++
	up := time.Duration(m.now.Load() - l.p.began)
	if l.fetches > 200+60*int(up/time.Second+1) && !m.streaming() {
		m.Fail("D6: busy loop: %d fetches in %v", l.fetches, up)
	}
	ahead := m.Prefetch > 0 && !m.streaming()
	switch {
	case l.paused:
		m.Fail("Pause: process %d fetches after an operator has paused it", l.p.number)
	case ahead:
	case l.p.stopping:
		m.Fail("D8: process %d fetches after it was told to stop", l.p.number)
	case l.markFailed && !m.Twins: // whose mark it was nobody knows
		m.Fail("D7: process %d fetches before it has marked what it applied", l.p.number)
	case m.Cron > 0: // a run asks no breaker before it fetches
		if l.fetches > 1 {
			m.Fail("RunOnce: process %d fetches once more in a run", l.p.number)
		}
	case m.FanOut == 0 && m.Hosts == 0 && l.breaker == courier.BreakerForcedOpen && l.changedAt < m.now.Load() &&
		l.changedAt > l.p.still: // else the process may have asked it before it stood still
		m.Fail("D6: process %d fetches while its breaker is forced open", l.p.number)
	case m.FanOut == 0 && m.Hosts == 0 && l.breaker == courier.BreakerOpen && l.changedAt < m.now.Load() && l.tooEarly(l.circuit):
		m.Fail("D6: process %d fetches while its breaker is open", l.p.number)
	}
	if most := m.hand(); !m.Twins && m.shape == leasing && len(l.inHand)+limit > most && !l.opened() {
		m.Fail("D11: process %d fetches %d records beside %v, which it has in hand, and may have %d", l.p.number, limit, numbers(l.inHand), most)
	}
	// Once its breaker has opened, a poller looks past those that it was probed with.
	if kept := max(100, m.Batch); (m.Prefetch <= 0 || l.halted.Load()) && !m.Twins && m.shape == leasing && len(l.inHand) > kept {
		m.Fail("D11: process %d fetches, and has these in hand still: %v", l.p.number, numbers(l.inHand))
	}
	l.halted.Store(false)
	if room := m.room(); m.shape == broker && len(l.inHand) > room {
		m.Fail("D11: process %d has %d records in hand, more than %d", l.p.number, len(l.inHand), room)
	}
}

// hand is how many records a poller may have in hand, those that wait included. What
// a source returns beyond the limit is in hand besides, but for what keeps a poller
// that fetches nothing ahead from the next fetch.
func (m *model) hand() int {
	batches := 1 + max(0, m.Prefetch)
	if m.Beyond && m.Prefetch > 0 {
		batches *= 3
	}
	return m.Batch * batches
}

// limit is how many records a stream takes in hand of its own accord.
func (m *model) limit() int {
	if m.Prefetch >= 0 {
		return (1 + m.Prefetch) * m.Batch
	}
	return 2 * m.Batch
}

// room is how many records a stream may have in hand.
func (m *model) room() int {
	room := m.limit()
	if m.breaks() && m.Hosts == 0 {
		room = max(room, 100) // while the breaker is probed
	}
	if m.Twins {
		if room *= 2; m.Beyond { // the other may have had more than it asked for
			room += 2 * m.Batch
		}
	}
	return room
}

// comeQueued looks at a record that has come through a channel, whose fetches
// nobody sees.
func (m *model) comeQueued(l *life, n int) {
	sent := m.rows[n].sent
	switch hand := l.sent - l.line.waiting() - l.done; {
	case hand > m.room():
		m.Fail("D11: process %d has %d records in hand, more than %d", l.p.number, hand, m.room())
	case l.p.stopping && sent > l.p.askedAt:
		m.Fail("D8: %s was sent after process %d was told to stop, and is fetched", names[n], l.p.number)
	case l.paused && sent > l.pausedAt:
		m.Fail("Pause: %s was sent after an operator has paused process %d, and is fetched", names[n], l.p.number)
	}
}

// comeFirst looks at a record that a worker begins with. Decorators that are given
// a batch may take it apart by themselves, and a keyed queue is asked in between.
func (m *model) comeFirst(l *life, n int) {
	if r := &m.rows[n]; r.lostBy == l.p && !r.twice && !m.Twins && !m.KeyedQueue && (!m.Batches || m.Stack == plain && m.FanOut == 0) {
		m.Fail("D5: %s is begun by process %d, which was told that its lease is lost", names[n], l.p.number)
	}
}

// comeApply looks at an attempt that begins: no other record of its key is at the
// destination, and none before it was left out (D4).
func (m *model) comeApply(l *life, c *call, n int) {
	r := &m.rows[n]
	if l.line != nil {
		m.comeQueued(l, n)
	}
	of := l.of(n).breaker
	if c.counts = !m.breaks() || m.Batches || of == courier.BreakerClosed || of == courier.BreakerForcedClosed; c.counts { // a probe does not
		r.calls[l.p.instance]++
	}
	if r.applied > 0 && !r.marked && r.told[l.p.instance] != l.p && m.lives[0] != l {
		m.Sometimes("a record comes again after a crash")
	}
	if len(m.parked) > 1 && m.Workers > 1 {
		m.Sometimes("two at once")
	}
	m.comeOrder(l, c, n, first)
}

// comeOrder looks whether an attempt is in the order of its key, in its branch.
func (m *model) comeOrder(l *life, c *call, n int, branch string) {
	if m.Keys == 0 || l.redrives() && !m.KeyedQueue {
		return
	}
	if m.KeyedQueue {
		m.comeKeyed(l, n, branch)
	}
	with := m.busy[m.lane(n, branch)]
	if with == c && m.InOrder {
		m.Sometimes("several of a key in one call")
	} else if with != nil {
		m.Fail("D4: %s is applied together with another of its key", names[n])
	}
	m.busy[m.lane(n, branch)] = c
	for before := m.key(n); before < n; before += m.Keys {
		r := &m.rows[before]
		done := r.applied > 0 || r.parked > 0 || m.skipped[before]
		if branch == second {
			done = r.second > 0 || r.aside > 0
		}
		if !done && !r.strayed && (!m.InOrder || !c.takesBefore(before, n)) {
			m.Fail("D4: %s is applied before %s", names[n], names[before])
		}
	}
}

// takesBefore reports whether a call has one record before another.
func (c *call) takesBefore(one, other int) bool {
	v, ok := c.data.(*verdicts)
	return ok && slices.Contains(v.records[:slices.Index(v.records, other)], one)
}

// lane is a key in a branch, where there are several.
func (m *model) lane(n int, branch string) string {
	if branch == second {
		return m.keyName(n) + " " + second
	}
	return m.keyName(n)
}

// comeKeyed looks at an attempt where the queue keeps the order of keys: one that
// has a letter of its branch waits for the redrive, which begins with the oldest.
func (m *model) comeKeyed(l *life, n int, branch string) {
	for _, letter := range m.letters() {
		switch {
		case letter.key != m.keyName(n) || (letter.branch == second) != (branch == second):
			continue
		case !l.redrives():
			m.Fail("D4: %s is applied, with %s of its key in the queue", names[n], names[letter.n])
		case letter.n != n:
			m.Fail("D4: %s is redriven before %s", names[n], names[letter.n])
		}
		return
	}
}

// comeSecond looks at a record that the second branch gets: while the breaker of
// the first was open before, the first has taken it.
func (m *model) comeSecond(l *life, n int) {
	of := l.of(n)
	passing := of.breaker == courier.BreakerClosed || of.breaker == courier.BreakerForcedClosed
	asked := m.FanOut == 4 && m.Keys > 0 // its queue, after the delivery had begun
	if !passing && !asked && m.Hosts == 0 && of.changedAt < m.now.Load() && m.rows[n].told[l.p.instance] != l.p && !m.skipped[n] {
		m.Fail("F-3: the second branch gets %s, and the breaker of the first, which has not taken it, is %s", names[n], of.breaker)
	}
}

// works reports whether a process has records in hand that it is at.
func (m *model) works(l *life) bool {
	return slices.ContainsFunc(m.parked, func(c *call) bool {
		return c.p == l.p && (c.kind == Apply || c.kind == Batch || c.kind == Mark || c.kind == Release || c.kind == Fail)
	})
}

// take looks at a call that has had its effect, or a failure in its place.
func (m *model) take(c *call) {
	if c.fault == Down {
		switch data := c.data.(type) {
		case try:
			m.meetsOutage(data.n)
		case *verdicts:
			for _, n := range data.records {
				m.meetsOutage(n)
			}
		}
	}
	switch {
	case c.err == nil && (c.kind == Apply || c.kind == Batch):
		m.isWell(c)
	case c.err == nil:
	case c.kind == Batch:
		m.Sometimes("a batch failed as one")
	case c.fault == Panic || c.fault == Goexit:
		m.Sometimes("a panic")
	case c.fault == Permanent:
		m.Sometimes("permanent")
	}
}

// isWell notes that an apply has succeeded.
func (m *model) isWell(c *call) {
	v, batch := c.data.(*verdicts)
	switch t, one := c.data.(try); {
	case one:
		m.good[m.host(t.n)] = m.now.Load()
	case batch:
		for i, n := range v.records {
			if m.Hosts == 0 || v.of(c, i) == nil {
				m.good[m.host(n)] = m.now.Load()
			}
		}
	default: // the second branch's
		m.good[0] = m.now.Load()
	}
}

// meetsOutage notes which outage a record fails in.
func (m *model) meetsOutage(n int) {
	r := &m.rows[n]
	if r.outages == nil {
		r.outages = map[int64]bool{}
	}
	r.outages[m.outage(n)] = true
}

// isDown reports whether the host of a record is down by itself.
func (m *model) isDown(c *call) bool {
	now := m.now.Load()
	return c.kind == Apply && c.id > 0 && c.id < beside && m.Hosts > 0 &&
		slices.ContainsFunc(m.down[m.host(int(c.id-1))], func(o window) bool { return now >= o.from && now < o.to })
}

// outage is when the last of the destination's began that a record may meet, -1 if none
// has.
func (m *model) outage(n int) (last int64) {
	last = -1
	for _, list := range [...][]window{m.outages[1], m.down[m.host(n)]} {
		for _, o := range list { // in no order
			if o.from <= m.now.Load() {
				last = max(last, o.from)
			}
		}
	}
	return last
}

// flickers reports whether calls have succeeded since the outage began, as those do
// that were under way then.
func (m *model) flickers(n int) bool {
	from := m.outage(n)
	return from < 0 || m.good[m.host(n)] >= from
}

// answer looks at a call that returns.
func (m *model) answer(c *call) {
	if c.p.dead {
		return
	}
	l := m.lives[c.p.number]
	l.look(c)
	if c.err == nil && (c.kind == Apply || c.kind == Batch) {
		m.isWell(c) // by now the breaker knows, too
	}
	m.answerContext(l, c)
	l.watcher.hasApplied(c)
	switch c.kind {
	case Fetch:
		if c.fault == Partly {
			m.Sometimes("records and an error")
		}
		handing := c.data.(*handing)
		if c.err != nil && c.fault != Partly {
			handing.all = nil
		}
		l.watcher.returns(c, len(handing.all), 0)
		if m.Cron > 0 {
			l.pass = append(l.pass, handing.all...)
		}
		for _, n := range handing.list {
			switch {
			case c.err == nil || c.fault == Partly:
				l.give(n)
				l.inHand[n] = true
				m.rows[n].given = m.now.Load()
			case m.shape == broker: // which finds out by and by that nobody has them
				l.putBack(n, time.Second)
			case m.shape == journal:
				l.at = min(l.at, n)
			}
		}
		handing.list, handing.all = handing.list[:0], nil
	case Apply:
		if t, first := c.data.(try); first {
			n := t.n
			m.leave(c, n)
			m.lapses(l, n)
			m.answerRetry(l, c, t)
			m.answerUntried(l, c, n, t.attempt, c.err)
			l.permanent[n] = c.err != nil && c.fault == Permanent
			l.waits.refused = l.waits.refused || !m.streaming() && (c.fault == Refused || n == m.Foreign && c.err != nil)
			if c.err == nil || m.skipped[n] && courier.Classify(context.Background(), c.err) == courier.ClassSkipped {
				l.told(n)
			}
			m.probed(l, c, nil)
		} else if t, aside := c.data.(besides); aside {
			m.leave(c, t.n)
			if c.err == nil {
				m.rows[t.n].toldAside[l.p.instance] = l.p
			}
		}
	case Batch:
		v := c.data.(*verdicts)
		for i, n := range v.records {
			m.leave(c, n)
			m.lapses(l, n)
			if m.answerUntried(l, c, n, 0, v.of(c, i)); c.err == nil && (v.errs[i] == nil || m.skipped[n] && courier.Classify(context.Background(), v.errs[i]) == courier.ClassSkipped) {
				l.told(n)
			}
		}
		m.probed(l, c, v)
	case Send:
		if c.err == nil {
			letter := c.data.(sent)
			l.toldParked(letter.n, letter.branch)
			m.Sometimes("parked")
		} else {
			l.waits.refused = true
			m.Sometimes("the queue refused")
		}
	case Keys:
		if asked, ok := c.data.([]string); ok && c.err != nil {
			m.forget(l, asked)
			m.refuse(&l.waits, asked)
		}
	case Renew:
		l.watcher.returns(c, len(c.data.([]int)), 0)
		for _, n := range l.losing {
			if r := &m.rows[n]; c.err == nil && r.given <= l.renewAt { // not handed out again since
				l.waits.end(n)
				r.lostBy = l.p
			}
		}
		l.losing = l.losing[:0]
	case Mark:
		l.watcher.returns(c, len(c.data.([]int)), 0)
		if l.markFailed = c.err != nil; l.markFailed {
			m.Sometimes("a mark failed")
		}
	case Edit:
		for _, n := range c.data.([]int) {
			if c.err != nil || m.hasLetter(n, first) { // a newer one, which stays
				m.rows[n].excuses++
			}
		}
	case Release, Fail:
		m.Sometimes(map[Kind]string{Release: "given back", Fail: "reported as failed"}[c.kind])
		back := c.data.(given)
		l.watcher.returns(c, len(back.list), back.after)
		for _, n := range back.list {
			m.rows[n].leaving = false
			delete(l.inHand, n)
			if r := &m.rows[n]; c.err != nil && r.lessee == l.p && !r.put { // it comes again when the source finds out
				r.put, r.putAt, r.until = true, m.now.Load(), m.now.Load()+int64(time.Minute)
				m.later(time.Minute, func() bool { m.kick(); return false })
			}
		}
	}
}

func (m *model) hasLetter(n int, branch string) bool {
	for _, letter := range m.letters() {
		if letter.n == n && (letter.branch == second) == (branch == second) {
			return true
		}
	}
	return false
}

// leave has a record's key be free for the next one.
func (m *model) leave(c *call, n int) {
	for _, branch := range [...]string{first, second} {
		if m.busy[m.lane(n, branch)] == c {
			delete(m.busy, m.lane(n, branch))
		}
	}
}
