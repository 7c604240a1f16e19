package sim

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"testing/synctest"
	"time"
)

// event is something that happens at an instant: a call that goes on, a timer, or
// an action of the world's.
type event struct {
	due     int64
	class   class
	p       *Process
	a, b, c uint64 // what it is, see compare
	stamp   uint64 // of the call
	call    *call
	timer   *timer
	action  func() (woke bool)
}

type class uint8

const (
	action class = iota
	going        // a call goes on
	ringing
)

// compare is the canonical order of events: by what they are, never by which
// came first.
func (e *event) compare(o *event) int {
	if e.due != o.due {
		return cmp.Compare(e.due, o.due)
	}
	return cmp.Or(cmp.Compare(e.class, o.class), cmp.Compare(e.p.number, o.p.number),
		cmp.Compare(e.a, o.a), cmp.Compare(e.b, o.b), cmp.Compare(e.c, o.c))
}

func (c *call) compare(o *call) int {
	return cmp.Or(cmp.Compare(c.p.number, o.p.number), cmp.Compare(c.kind, o.kind), cmp.Compare(c.id, o.id), cmp.Compare(c.lane, o.lane), cmp.Compare(c.number, o.number), cmp.Compare(c.n, o.n))
}

// resume has a call go on at some time.
func (w *World) resume(due int64, c *call) {
	w.schedule(event{due: due, class: going, p: c.p, a: uint64(c.kind), b: c.id, c: uint64(c.n), stamp: c.stamp, call: c})
}

// at has an action happen after d.
func (w *World) at(d int64, p *Process, do func() (woke bool)) {
	w.actions++
	w.schedule(event{due: w.now.Load() + d, p: p, a: w.actions, action: do})
}

// schedule, pop and postpone keep the events in a binary heap.
func (w *World) schedule(e event) {
	h := append(w.heap, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].compare(&h[i]) <= 0 {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	w.heap = h
}

func (w *World) pop() event {
	h := w.heap
	first := h[0]
	n := len(h) - 1
	h[0] = h[n]
	h[n] = event{}
	w.heap = h[:n]
	w.sink(0)
	return first
}

func (w *World) sink(i int) {
	h := w.heap
	for {
		down := 2*i + 1
		if down >= len(h) {
			return
		}
		if right := down + 1; right < len(h) && h[right].compare(&h[down]) < 0 {
			down = right
		}
		if h[i].compare(&h[down]) <= 0 {
			return
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
}

// postpone has a process stand still: all that it waits for comes later.
func (w *World) postpone(p *Process, d int64) {
	for i := range w.heap {
		if e := &w.heap[i]; e.p == p && e.class != action {
			e.due += d
		}
	}
	for i := len(w.heap)/2 - 1; i >= 0; i-- {
		w.sink(i)
	}
}

// loop runs the world until its end. Between two rounds everything else is
// blocked; each round lets one goroutine go on.
func (w *World) loop() {
	for {
		synctest.Wait()
		w.steps++
		w.intake()
		w.look()
		switch {
		case w.failed() && !w.aborting:
			w.abort()
			continue
		case w.letGo() || w.finish():
			continue
		case w.over():
			return
		}
		for {
			if len(w.heap) == 0 && !w.options.Native {
				w.Fail("D10: everything waits, and nothing will happen")
				if w.aborting {
					return // what is left is reported as goroutines that leak
				}
				break
			}
			if w.options.Native && !w.sleep() {
				break
			}
			if e := w.pop(); w.happen(&e) || w.failed() {
				break
			}
		}
	}
}

// sleep lets the bubble's time pass up to the next event, and reports whether
// that is due now.
func (w *World) sleep() bool {
	next := w.now.Load() + int64(time.Second)
	if len(w.heap) > 0 {
		next = w.heap[0].due
	}
	if next <= w.now.Load() {
		return true
	}
	time.Sleep(time.Duration(next - w.now.Load())) //nolint:forbidigo // the time of the bubble
	w.now.Store(next)
	w.expire()
	return false
}

// intake takes in the calls and timers that have come since the last round, in
// canonical order.
func (w *World) intake() {
	w.mu.Lock()
	w.incoming, w.inbox = w.inbox, w.incoming[:0]
	w.newTimers, w.timers = w.timers, w.newTimers[:0]
	back := w.returned
	w.returned = nil
	w.mu.Unlock()

	slices.SortFunc(back, func(a, b returned) int { return cmp.Compare(a.p.number, b.p.number) })
	for _, r := range back {
		r.p.end(r.err)
	}
	for _, t := range w.newTimers {
		w.schedule(event{due: t.due, class: ringing, p: t.clock.p, a: w.steps, b: uint64(t.d), timer: t})
	}
	if len(w.incoming) > 1 {
		slices.SortStableFunc(w.incoming, (*call).compare)
	}
	for i, c := range w.incoming {
		if i > 0 && c.indistinct(w.incoming[i-1]) {
			c.n = w.incoming[i-1].n
		} else if !c.closes {
			w.number(&c.callID)
		}
		w.admit(c)
	}
}

// indistinct reports whether two notes that come at one instant say the same, so
// that which of the two came first is chance. They share a number, and with it
// the time at which they go on.
func (c *call) indistinct(o *call) bool {
	return (c.kind == Begin || c.kind == Hook) && c.p == o.p && c.kind == o.kind && c.id == o.id && c.lane == o.lane
}

// admit has a call that has come go on at a time that is drawn for it.
func (w *World) admit(c *call) {
	now := w.now.Load()
	c.p.open++
	if c.turn {
		w.resume(now, c)
		return
	}
	if c.closes {
		w.resume(now+w.delay(c, forReply), c)
		return
	}
	c.came = now
	c.p.calls++
	if c.p.calls > mostCalls {
		w.Fail("D6: busy loop: process %d has made %d calls in %v", c.p.number, c.p.calls, time.Duration(now-c.p.began))
	}
	w.parked = append(w.parked, c)
	if c.p.dead {
		c.err, c.gone = errCrashed, true
		w.resume(now+1, c)
		return
	}
	if w.comes != nil {
		w.comes(c)
	}
	w.decide(c)
	if !c.gone {
		w.resume(now+w.delay(c, forDelay), c)
	}
}

// mostCalls is how many calls a process makes at most.
const mostCalls = 100_000

// number gives a call its place among those of its kind about the same.
func (w *World) number(c *callID) {
	key := callID{kind: c.kind, id: c.id}
	c.n = w.counts[key]
	w.counts[key]++
	w.made[c.kind]++
}

// within draws what goes wrong with one record of a batch, and the error of that.
func (w *World) within(c *call, kind Kind, id uint64, name string) (FaultKind, error) {
	one := call{callID: callID{kind: kind, id: id}, p: c.p, name: name}
	w.number(&one.callID)
	w.decide(&one)
	if one.fault == None {
		return None, nil
	}
	return one.fault, one.fail(one.fault.String())
}

// delay is how long a call takes to its effect, or from there to its reply.
func (w *World) delay(c *call, purpose uint64) int64 {
	u := uniform(hash(w.seed, purpose, uint64(c.kind)<<32|uint64(c.n), c.id))
	d := 1 + int64(u*float64(latency[c.kind])*w.pace)
	if c.fault == Slow {
		d *= slower
	}
	if c.fault == Hang && purpose == forDelay {
		d = int64(hung)
	}
	return d
}

// letGo has one call return whose context has ended, and reports whether there
// was one.
func (w *World) letGo() bool {
	var first *call
	for _, c := range w.parked {
		if c.gone || c.ctx == nil || c.ctx.Err() == nil {
			continue
		}
		// A call that has had its effect may still say so.
		if c.had && uniform(hash(w.seed, forHeed, uint64(c.kind)<<32|uint64(c.n), c.id)) < 0.5 {
			continue
		}
		if first == nil || c.compare(first) < 0 {
			first = c
		}
	}
	if first == nil {
		return false
	}
	if first.had {
		w.Sometimes("cancelled behind its effect")
	}
	cause := errors.Join(first.ctx.Err(), context.Cause(first.ctx))
	first.err, first.fault, first.gone = &callError{id: first.id, text: cause.Error(), cause: cause}, None, true
	w.reply(first)
	return true
}

// happen has an event happen, and reports whether a goroutine goes on because of
// it.
func (w *World) happen(e *event) (woke bool) {
	w.now.Store(max(w.now.Load(), e.due))
	w.expire()
	switch e.class {
	case action:
		return e.action()
	case ringing:
		w.ring(e)
		for len(w.heap) > 0 && w.heap[0].compare(e) == 0 {
			again := w.pop()
			w.ring(&again)
		}
		return true
	}
	c := e.call
	switch {
	case e.stamp != c.stamp: // it has returned already
		return false
	case c.gone || c.closes || c.had || c.effect == nil:
		w.reply(c)
		return true
	}
	w.take(c)
	return false
}

// expire ends an episode that has had its time.
func (w *World) expire() {
	if now := w.now.Load(); !w.aborting && now > int64(w.lengths+w.stepped+w.options.Within) {
		what := w.unsettled()
		if what == nil {
			what = []string{"the coordinators have stopped"}
		}
		w.Fail("D10: not settled %v after the last fault; still to come true: %s", time.Duration(now)-w.lengths, strings.Join(what, "; "))
	}
}

func (w *World) ring(e *event) { e.timer.ch <- e.timer.clock.Now() }

// take has a call have its effect.
func (w *World) take(c *call) {
	switch c.fault {
	case Error, Down, Permanent, Refused, Later, Hang, Panic, Goexit:
		c.err = c.fail(c.fault.String())
	}
	if c.err == nil {
		if c.effect(c); c.wait {
			c.wait = false
			w.blocked = append(w.blocked, c)
			return
		}
		switch {
		case c.err != nil:
		case c.fault == Lost:
			c.err = c.fail("lost, after it had its effect")
		case c.fault == Partly:
			c.err = c.fail("an error, besides its records")
		}
	}
	c.had = true
	if w.taken != nil {
		w.taken(c)
	}
	w.fold(uint64(c.kind)<<32|uint64(c.n), c.id)
	w.resume(w.now.Load()+w.delay(c, forReply), c)
}

// kick has calls that had to wait try again.
func (w *World) kick() {
	for _, c := range w.blocked {
		if c.gone || c.had {
			continue
		}
		w.resume(max(w.now.Load(), c.p.still)+w.delay(c, forDelay), c)
	}
	w.blocked = w.blocked[:0]
}

// reply lets a call return.
func (w *World) reply(c *call) {
	c.stamp++
	c.p.open--
	if !c.closes {
		i := slices.Index(w.parked, c)
		w.parked[i] = w.parked[len(w.parked)-1]
		w.parked = w.parked[:len(w.parked)-1]
		w.blocked = slices.DeleteFunc(w.blocked, func(b *call) bool { return b == c }) // its memory is another call's soon
	}
	if w.replies != nil && !c.turn {
		w.replies(c)
	}
	if c.effect == nil && c.err == nil && !c.closes && !c.continues() {
		c.err = c.fail(c.fault.String())
	}
	if c.fault == Panic || c.fault == Goexit {
		c.p.threw.Store(c.id)
	}
	failed := uint64(0)
	if c.err != nil {
		failed = 1
	}
	w.fold(uint64(c.kind)<<32|uint64(c.n), c.id)
	w.fold(uint64(c.fault)<<1|failed, uint64(c.p.number))
	if w.tracing {
		w.note(entry{p: c.p, call: c.callID, isCall: true, name: c.name, detail: c.detail, fault: c.fault, err: c.err, closes: c.closes, first: c.effect == nil && c.err == nil && c.continues()})
	}
	c.wake <- struct{}{}
}
