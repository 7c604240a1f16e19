package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
)

// come looks at a call that has begun.
func (m *model) come(c *call) {
	l := m.lives[c.p.number]
	switch c.kind {
	case Fetch:
		m.comeFetch(l)
	case Apply:
		if n, first := c.data.(int); first {
			m.comeApply(l, c, n)
			m.comeBreaker(l, c)
		}
	case Batch:
		for _, o := range c.data.(*verdicts).records {
			m.comeApply(l, c, o.N)
		}
		m.comeBreaker(l, c)
	case Mark, Release, Fail, Renew:
	}
}

func (m *model) comeFetch(l *life) {
	l.fetches++
	up := time.Duration(m.now.Load() - l.p.began)
	if l.fetches > 200+60*int(up/time.Second+1) && !m.streaming() {
		m.Fail("D6: busy loop: %d fetches in %v", l.fetches, up)
	}
	ahead := m.Prefetch > 0 && !m.streaming()
	switch {
	case ahead:
	case l.p.stopping:
		m.Fail("D8: process %d fetches after it was told to stop", l.p.number)
	case l.markFailed:
		m.Fail("D7: process %d fetches before it has marked what it applied", l.p.number)
	case m.FanOut == 0 && l.breaker == courier.BreakerOpen && l.p.clock.Now().Before(l.until):
		m.Fail("D6: process %d fetches while its breaker is open", l.p.number)
	}
	room := 2 * m.Batch
	if m.Prefetch >= 0 {
		room = (1 + m.Prefetch) * m.Batch
	}
	if m.Stack == 2 {
		room = max(room, 100) // while the breaker is probed
	}
	if m.shape == broker && len(l.inHand) > room {
		m.Fail("D11: process %d has %d records in hand, more than %d", l.p.number, len(l.inHand), room)
	}
}

// comeApply looks at an attempt that begins: no other record of its key is at the
// destination, and none before it was left out (D4).
func (m *model) comeApply(l *life, c *call, n int) {
	r := &m.rows[n]
	if r.calls[l.p.instance]++; r.applied > 0 && !r.marked && r.told[l.p.instance] != l.p && m.lives[0] != l {
		m.Sometimes("a record comes again after a crash")
	}
	if len(m.parked) > 1 && m.Workers > 1 {
		m.Sometimes("two at once")
	}
	if m.Keys == 0 {
		return
	}
	if m.busy[m.key(n)] != nil {
		m.Fail("D4: %s is applied together with another of its key", names[n])
	}
	m.busy[m.key(n)] = c
	for before := m.key(n); before < n && !m.knownKeys(); before += m.Keys {
		if r := &m.rows[before]; r.applied == 0 && r.parked == 0 && !m.skipped[before] {
			m.Fail("D4: %s is applied before %s", names[n], names[before])
		}
	}
}

// comeBreaker looks whether the breaker lets the call through rightly.
func (m *model) comeBreaker(l *life, c *call) {
	switch l.breaker {
	case courier.BreakerOpen:
		m.Fail("B-1: a call while the breaker is open: %s", c.name)
	case courier.BreakerHalfOpen:
		m.Sometimes("half-open")
		if l.probes++; l.probes > m.Probes {
			m.Fail("B-2: %d probes at once, more than %d", l.probes, m.Probes)
		}
		c.detail = "a probe"
	}
}

// take looks at a call that has had its effect, or a failure in its place.
func (m *model) take(c *call) {
	switch {
	case c.err == nil:
	case c.kind == Batch:
		m.Sometimes("a batch failed as one")
	case c.fault == Panic || c.fault == Goexit:
		m.Sometimes("a panic")
	case c.fault == Permanent:
		m.Sometimes("permanent")
	}
}

// answer looks at a call that returns.
func (m *model) answer(c *call) {
	if c.p.dead {
		return
	}
	l := m.lives[c.p.number]
	switch c.kind {
	case Fetch:
		if c.err == nil {
			for _, n := range l.handing {
				l.inHand[n] = true
			}
		}
		l.handing = l.handing[:0]
	case Apply:
		if n, first := c.data.(int); first {
			delete(m.busy, m.key(n))
			if c.err == nil || m.skipped[n] && courier.Classify(context.Background(), c.err) == courier.Skipped {
				l.told(n)
			}
			m.probed(l, c)
		}
	case Batch:
		v := c.data.(*verdicts)
		for i, o := range v.records {
			delete(m.busy, m.key(o.N))
			if c.err == nil && (v.errs[i] == nil || m.skipped[o.N] && courier.Classify(context.Background(), v.errs[i]) == courier.Skipped) {
				l.told(o.N)
			}
		}
		m.probed(l, c)
	case Send:
		if c.err == nil {
			l.told(c.data.(int))
			m.Sometimes("parked")
		} else {
			m.Sometimes("the queue refused")
		}
	case Mark:
		if l.markFailed = c.err != nil; l.markFailed {
			m.Sometimes("a mark failed")
		}
	case Release, Fail:
		m.Sometimes(map[Kind]string{Release: "given back", Fail: "reported as failed"}[c.kind])
		for _, o := range c.data.([]order) {
			delete(l.inHand, o.N)
			if r := &m.rows[o.N]; c.err != nil && r.lessee == l.p && !r.put { // it comes again when the source finds out
				r.put, r.until = true, m.now.Load()+int64(time.Minute)
				m.later(time.Minute, func() bool { m.kick(); return false })
			}
		}
	}
}

func (m *model) probed(l *life, c *call) {
	if c.detail == "a probe" {
		if l.probes--; c.err != nil {
			m.Sometimes("a probe failed")
		}
	}
	if errors.Is(c.err, courier.ErrAttemptTimeout) {
		m.Sometimes("an attempt timed out")
	}
	if errors.Is(c.err, courier.ErrDrainTimeout) {
		m.Sometimes("drain timeout")
	}
}

// breakerChanged follows the breaker of a process.
func (l *life) breakerChanged(_ context.Context, change courier.BreakerChange) {
	m := l.m
	if change.From != l.breaker || change.Generation != l.generation+1 {
		m.Fail("B-3: a breaker that is %s goes from %s, generation %d after %d", l.breaker, change.From, change.Generation, l.generation)
	}
	switch fmt.Sprintf("%s to %s", change.From, change.To) {
	case "closed to open", "half-open to open":
		open := change.Until.Sub(change.At)
		if least := time.Duration(float64(m.OpenFor) * 0.79); open < least || open > time.Minute {
			m.Fail("B-4: a breaker opens for %v, not between %v and a minute", open, least)
		}
		m.Sometimes("breaker open")
	case "open to half-open":
		if change.At.Before(l.until) {
			m.Fail("B-5: a breaker is half-open at %v, and was to be open until %v", change.At, l.until)
		}
		l.probes = 0
	case "half-open to closed":
		m.Sometimes("breaker closed again")
	default:
		m.Fail("B-6: a breaker goes from %s to %s", change.From, change.To)
	}
	l.breaker, l.until, l.generation = change.To, change.Until, change.Generation
}
