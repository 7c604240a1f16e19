package sim

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// rogue is a pipeline that breaks one promise, to see that a check can fail.
type rogue struct {
	breaks string // what the check says
	fixed  func(s *settings)
	plan   func(m *model)
	act    func(g *gear)
}

// gear is what a rogue has to do it with.
type gear struct {
	*pipe[order]
	ctx   context.Context
	l     *life
	s     *source[order]
	apply courier.Applier[order]
	queue *parkingLot[order]
	aside *parkingLot[order]
}

func (g *gear) fetch(n int) []order {
	records, _ := g.s.Fetch(g.ctx, n)
	return records
}

func (g *gear) do(records ...order) {
	for _, r := range records {
		_ = g.apply.Apply(g.ctx, r)
	}
}

func (g *gear) batch(records ...order) {
	_ = g.apply.(courier.BatchApplier[order]).ApplyBatch(g.ctx, records)
}

func (g *gear) wait(d time.Duration) { <-g.l.p.clock.After(d) }

func (g *gear) send(n int, branch, key string, reason courier.Reason) {
	q := g.queue
	if branch == second {
		q = g.aside
	}
	_ = q.Send(g.ctx, courier.DeadLetter[order]{Record: order{n}, Branch: branch, Key: key, Reason: reason, Error: errRogue})
}

func (g *gear) drop(n int, branch string) {
	q := g.pipe.queue
	if branch == second {
		q = g.pipe.aside
	}
	for _, letter := range lettersOf(q) {
		if letter.n == n {
			_ = q.Delete(g.ctx, letter.id)
		}
	}
}

func (g *gear) change(from, to courier.BreakerState, more ...func(c *courier.BreakerChange)) {
	now := g.l.p.clock.Now()
	c := courier.BreakerChange{From: from, To: to, At: now, Generation: g.l.generation + 1}
	if to == courier.BreakerOpen {
		c.Until, c.Cause = now.Add(g.OpenFor), errRogue
	}
	for _, f := range more {
		f(&c)
	}
	g.l.breakerChanged(g.ctx, c)
}

// trip has the breaker open for a good reason, as far as anybody can see.
func (g *gear) trip() {
	g.l.counted.failures = g.Threshold
	g.change(courier.BreakerClosed, courier.BreakerOpen)
}

// detached is a context of the process that does not end with it.
func (g *gear) detached() context.Context { return context.WithoutCancel(g.ctx) }

func (g *gear) ended() context.Context {
	ctx, cancel := context.WithCancel(g.ctx)
	cancel()
	return ctx
}

var errRogue = errors.New("on purpose")

// calm are the settings of a rogue.
func calm(s *settings) {
	*s = settings{
		shape: leasing, Records: 6, Batch: 3, Workers: 1, Prefetch: -1, Attempts: 3, Threshold: 2, Successes: 1, Probes: 1,
		OpenFor: time.Second, MaxOpenFor: time.Minute, Capacity: 5, Yield: true, Interval: time.Second, Flush: time.Second, Drain: time.Second, Instances: 1, Foreign: -1,
	}
}

// stopAt plans a stop.
func stopAt(d time.Duration) func(m *model) {
	return func(m *model) { m.later(d, func() bool { m.processes[0].stop(); return true }) }
}

func pauseAt(d time.Duration) func(m *model) {
	return func(m *model) { m.later(d, func() bool { return m.pause(true) }) }
}

// hangs has every call of a kind take long, up to its effect.
func hangs(kind Kind) func(m *model) {
	return func(m *model) {
		m.script = map[callID][]Fault{}
		for id := range uint64(200) {
			m.script[callID{kind: kind, id: id}] = []Fault{{What: Hang}}
		}
	}
}

// busyOnce has the destination ask for another time for the first record.
func busyOnce(m *model) {
	m.script = map[callID][]Fault{{kind: Apply, id: 1}: {{What: Later}}}
}

func orderedBatches(s *settings) { s.Keys, s.Batches, s.InOrder = 1, true, true }
func hosted(s *settings)         { s.Stack, s.Hosts = resilient, 2 }

func both(a, b func(m *model)) func(m *model) { return func(m *model) { a(m); b(m) } }

var rogues = []rogue{
	{breaks: "a mark of nothing", act: func(g *gear) { _ = g.s.Mark(g.ctx, nil) }},
	{breaks: "a release of nothing", act: func(g *gear) { _ = g.s.Release(g.ctx, nil, 0) }},
	{breaks: "D2: ", act: func(g *gear) { _ = g.s.Mark(g.ctx, g.fetch(1)) }},
	{breaks: "F-1: ", fixed: func(s *settings) { s.FanOut = 2 }, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		_ = g.s.Mark(g.ctx, r)
	}},
	{breaks: "D1: branch first has parked r0", fixed: func(s *settings) { s.Stack, s.FanOut = resilient, 4 }, act: func(g *gear) {
		g.send(0, first, "", courier.ReasonExhausted)
		g.drop(0, first)
		g.send(0, second, "", courier.ReasonExhausted)
	}},
	{breaks: "D1: branch second has parked r0", fixed: func(s *settings) { s.Stack, s.FanOut = resilient, 4 }, act: func(g *gear) {
		g.send(0, second, "", courier.ReasonExhausted)
		g.drop(0, second)
		g.send(0, first, "", courier.ReasonExhausted)
	}},
	{breaks: "D1: the position", fixed: func(s *settings) { s.shape = journal }, act: func(g *gear) {
		r := g.fetch(3)
		g.do(r[2])
		_ = g.s.Mark(g.ctx, r[2:])
	}},
	{breaks: "D1: the letter", fixed: func(s *settings) { s.Stack, s.Redriving = resilient, true }, act: func(g *gear) {
		g.send(0, first, "", courier.ReasonExhausted)
		g.l.p.instance = g.Instances // it is the one that redrives
		q := &letters[order]{*g.queue, map[string]int{}}
		page, _ := q.List(g.ctx, "", 1)
		_ = q.Delete(g.ctx, page[0].ID)
	}},
	{breaks: "D4: r1 is applied together", fixed: func(s *settings) { s.Keys, s.Workers = 1, 2 }, act: func(g *gear) {
		r := g.fetch(2)
		go g.do(r[0])
		g.wait(1)
		g.do(r[1])
	}},
	{breaks: "D4: r1 is applied before r0", fixed: func(s *settings) { s.Keys = 1 }, act: func(g *gear) { g.do(g.fetch(2)[1]) }},
	{breaks: "D4: r1 is applied before r0", fixed: orderedBatches, act: func(g *gear) {
		r := g.fetch(2)
		g.batch(r[1], r[0])
	}},
	{breaks: "D4: r1 is applied together", fixed: together(orderedBatches, func(s *settings) { s.InOrder = false }), act: func(g *gear) { g.batch(g.fetch(2)...) }},
	{breaks: "D4: r1 is applied before r0", fixed: func(s *settings) { s.Keys, s.FanOut = 1, 2 }, act: func(g *gear) {
		_ = (&branch[order]{g.l}).Apply(g.ctx, g.fetch(2)[1])
	}},
	{breaks: "D4: r1 is applied, with r0", fixed: func(s *settings) { s.Keys, s.Stack, s.KeyedQueue = 1, resilient, true }, act: func(g *gear) {
		r := g.fetch(2)
		g.send(0, first, "0", courier.ReasonExhausted)
		g.do(r[1])
	}},
	{breaks: "D4: r1 is redriven before r0", fixed: func(s *settings) { s.Keys, s.Stack, s.KeyedQueue = 1, resilient, true }, act: func(g *gear) {
		g.send(0, first, "0", courier.ReasonExhausted)
		g.send(1, first, "0", courier.ReasonKeyParked)
		g.l.p.instance = g.Instances // it is the one that redrives
		g.do(order{1})
	}},
	{breaks: "Q-8: ", fixed: func(s *settings) { s.Keys, s.Stack, s.KeyedQueue = 1, resilient, true }, act: func(g *gear) {
		g.l.parked(0, first, courier.ReasonKeyParked)
	}},
	{breaks: "D5: r0 is reported", fixed: func(s *settings) { s.Failing = true }, act: func(g *gear) {
		_ = g.s.Fail(g.ctx, []courier.FailedRecord[order]{{Record: g.fetch(1)[0]}})
	}},
	{breaks: "D5: r0 is begun", fixed: func(s *settings) { s.Renewing = true }, act: func(g *gear) {
		r := g.fetch(1)
		g.rows[0].lostBy = g.l.p
		g.l.m.Observe(g.ctx).RecordStarted(g.ctx, courier.RecordEvent{Record: r[0].String()})
	}},
	{breaks: "D5: r0 is parked with", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.l.gaveUp(0, courier.ReasonPermanent, 1, context.Canceled)
	}},
	{breaks: "D5: r0 is parked after 3 attempts", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.l.gaveUp(0, courier.ReasonExhausted, 3, errRogue)
	}},
	{breaks: "Q-1: ", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.l.gaveUp(0, courier.ReasonExhausted, 1, errRogue)
	}},
	{breaks: "R-1: ", fixed: func(s *settings) { s.Stack, s.Stubborn = retrying, []int{0} }, act: func(g *gear) {
		a := courier.NewRetryableApplier(courier.ProcessFunc(func(ctx context.Context, r order) error {
			return g.apply.Apply(ctx, r)
		}), courier.RetryPolicy{MaxAttempts: 4, Clock: &g.l.p.clock})
		_ = a.Apply(g.ctx, g.fetch(1)[0])
	}},
	{breaks: "R-1: r0 was given up after 1 of 3", fixed: func(s *settings) { s.Stack, s.Stubborn = retrying, []int{0} }, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r[0], r[0])
	}},
	{breaks: "R-8: ", fixed: func(s *settings) { s.Stack = retrying }, act: func(g *gear) {
		g.l.permanent[0] = true
		g.retry(g.ctx)
	}},
	{breaks: "D6: r0 is healthy", fixed: func(s *settings) { s.Stack = resilient }, plan: func(m *model) {
		m.healthyOnly = true
		m.outages[1] = []window{{0, int64(time.Hour)}}
		m.good[0] = -1
	}, act: func(g *gear) { g.l.gaveUp(0, courier.ReasonExhausted, 3, errRogue) }},
	{breaks: "F-3: ", fixed: func(s *settings) { s.Stack, s.FanOut = resilient, 2 }, act: func(g *gear) {
		g.trip()
		g.wait(time.Millisecond)
		_ = (&branch[order]{g.l}).Apply(g.ctx, g.fetch(1)[0])
	}},
	{breaks: "D6: busy loop: ", act: func(g *gear) {
		for g.ctx.Err() == nil {
			for _, r := range g.fetch(1) {
				_ = g.s.Release(g.ctx, []order{r}, 0)
			}
		}
	}},
	{breaks: "D6: busy loop: process", fixed: func(s *settings) { s.shape = broker }, act: func(g *gear) {
		for g.ctx.Err() == nil {
			_ = g.s.Release(g.ctx, []order{{0}}, 0)
		}
	}},
	{breaks: "D6: process 0 fetches while its breaker is open", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.trip()
		g.wait(time.Millisecond)
		g.fetch(1)
	}},
	{breaks: "D6: process 0 fetches while its breaker is forced open", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.wait(time.Millisecond)
		g.l.forced = courier.BreakerForcedOpen
		g.change(courier.BreakerClosed, courier.BreakerForcedOpen)
		g.wait(time.Millisecond)
		g.fetch(1)
	}},
	{breaks: "D7: process 0 fetches before", plan: func(m *model) {
		m.script = map[callID][]Fault{{kind: Mark, id: 1}: {{What: Error}}}
	}, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		_ = g.s.Mark(g.ctx, r)
		_ = g.s.Release(g.ctx, r, 0)
		g.fetch(1)
	}},
	{breaks: "D7: r0 is applied again", act: func(g *gear) {
		r := g.fetch(1)
		g.do(r[0], r[0])
	}},
	{breaks: "D8: r0 is tried again", fixed: func(s *settings) { s.Stack = retrying }, plan: stopAt(time.Second), act: func(g *gear) {
		g.wait(2 * time.Second)
		g.retry(g.detached())
	}},
	{breaks: "D8: a fetch of process 0 with a context that has ended", act: func(g *gear) { _, _ = g.s.Fetch(g.ended(), 1) }},
	{breaks: "D8: a release of process 0 with a context that has ended", act: func(g *gear) { _ = g.s.Release(g.ended(), []order{{0}}, 0) }},
	{breaks: "D8: a fetch of process 0 has a context that lives", plan: both(stopAt(time.Second), hangs(Fetch)), act: func(g *gear) {
		_, _ = g.s.Fetch(g.detached(), 1)
	}},
	{breaks: "D8: a apply of process 0 has a context that lives", plan: both(stopAt(time.Second), hangs(Apply)), act: func(g *gear) {
		_ = g.apply.Apply(g.detached(), order{0})
	}},
	{breaks: "D8: a release of process 0 has a context that lives", fixed: func(s *settings) { s.Stack, s.Drain = retrying, time.Millisecond }, plan: stopAt(time.Second), act: func(g *gear) {
		g.wait(time.Minute / 2)
		_ = g.s.Release(g.detached(), []order{{0}}, 0)
	}},
	{breaks: "D8: a apply of process 0 is cut short", plan: both(stopAt(time.Second), hangs(Apply)), act: func(g *gear) {
		_ = g.apply.Apply(g.ctx, order{0})
	}},
	{breaks: "D8: process 0 fetches after", plan: stopAt(time.Second), act: func(g *gear) {
		g.wait(2 * time.Second)
		_, _ = g.s.Fetch(g.ctx, 1)
	}},
	{breaks: "D8: process 0 was stopped and returned", plan: stopAt(time.Second), act: func(g *gear) { <-g.ctx.Done(); g.fail(errRogue) }},
	{breaks: "D8: process 0 was stopped and gave these not back: [0]", plan: stopAt(time.Second), act: func(g *gear) { g.fetch(1); <-g.ctx.Done() }},
	{breaks: "D8: process 0 took", plan: stopAt(time.Second), act: func(g *gear) { g.wait(2 * time.Minute) }},
	{breaks: "D8: process 0 has returned with 1 calls", plan: both(stopAt(time.Second), hangs(Apply)), act: func(g *gear) {
		go g.do(order{0})
		g.wait(time.Millisecond)
		<-g.ctx.Done()
	}},
	{breaks: "process 0 has ended by itself", act: func(g *gear) { g.fail(errRogue) }},
	{breaks: "D10: everything waits", act: func(g *gear) { <-g.ctx.Done() }},
	{breaks: "D10: not settled", act: func(g *gear) {
		for g.ctx.Err() == nil {
			g.wait(time.Second)
		}
	}},
	{breaks: "D11: process 0 fetches 2 records beside [0 1]", act: func(g *gear) { g.fetch(2); g.fetch(2) }},
	{breaks: "D11: process 0 fetches, and has", fixed: func(s *settings) { s.Stack, s.Records = resilient, 101 }, act: func(g *gear) {
		g.trip()
		g.wait(g.OpenFor)
		g.change(courier.BreakerOpen, courier.BreakerHalfOpen)
		g.fetch(101)
		g.fetch(1)
	}},
	{breaks: "D11: process 0 has 6 records in hand", fixed: func(s *settings) { s.shape, s.Batch = broker, 1 }, act: func(g *gear) {
		g.fetch(6)
		g.fetch(1)
	}},
	{breaks: "D11: process 0 has 6 records in hand", fixed: func(s *settings) { s.shape, s.Batch = channel, 1 }, act: func(g *gear) {
		r := <-g.queued()
		for range 5 {
			<-g.queued()
		}
		g.do(r)
	}},
	{breaks: "D8: r0 was sent after", fixed: func(s *settings) { s.shape = channel }, plan: stopAt(time.Second), act: func(g *gear) {
		<-g.ctx.Done()
		g.rows[0].sent = g.now.Load() + 1
		_ = g.apply.Apply(g.detached(), <-g.queued())
	}},
	{breaks: "Pause: r0 was sent after", fixed: func(s *settings) { s.shape = channel }, plan: pauseAt(time.Second), act: func(g *gear) {
		g.wait(2 * time.Second)
		g.rows[0].sent = g.now.Load()
		g.do(<-g.queued())
	}},
	{breaks: "Pause: process 0 fetches", plan: pauseAt(time.Second), act: func(g *gear) { g.wait(2 * time.Second); g.fetch(1) }},
	{breaks: "Pause: a fetch of process 0 has a context that lives", plan: both(pauseAt(time.Second), hangs(Fetch)), act: func(g *gear) {
		_, _ = g.s.Fetch(g.detached(), 1)
	}},
	{breaks: "D11: process 0 renews r0, which it gave back", fixed: func(s *settings) { s.Renewing, s.Lease = true, time.Hour }, act: func(g *gear) {
		records := g.fetch(1)
		_ = g.s.Release(g.ctx, records, time.Hour)
		g.wait(time.Minute)
		_ = g.s.Renew(g.ctx, records)
	}},
	{breaks: "D11: the lease of r0 ran out", fixed: func(s *settings) { s.Stack, s.Renewing, s.Lease = retrying, true, time.Second }, act: func(g *gear) {
		r := g.fetch(1)
		g.wait(2 * time.Second)
		g.do(r...)
	}},

	// What waits.
	{breaks: "I-1: process 0 has r1 in hand", fixed: holding, act: func(g *gear) {
		r := g.fetch(2)
		g.do(r[0])
		g.wait(time.Second)
		g.do(r[1])
	}},
	{breaks: "I-1: r0 is tried again 900ms before", fixed: holding, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.retries(0, 1, time.Second)
		g.wait(100 * time.Millisecond)
		g.again(0, 2)
	}},
	{breaks: "I-1: r0 is due since", fixed: holding, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.retries(0, 1, time.Second)
		g.wait(2 * time.Second)
		g.again(0, 2)
	}},
	{breaks: "I-1: process 0 fetches once more, and r0 is due", fixed: holding, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.retries(0, 1, time.Millisecond)
		for range 3 {
			g.wait(2 * time.Millisecond)
			g.fetch(1)
		}
	}},
	{breaks: "I-2: r1 is begun by process 0, and r0 of its key waits", fixed: together(holding, func(s *settings) { s.Keys = 1 }), act: func(g *gear) {
		r := g.fetch(2)
		g.do(r[0])
		g.retries(0, 1, time.Second)
		g.do(r[1])
	}},
	{breaks: "I-3: ", fixed: holding, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		g.wait(time.Second)
		_ = g.s.Mark(g.ctx, r)
	}},
	{breaks: "I-4: 3 records of process 0 wait", fixed: holding, act: func(g *gear) {
		for n, r := range g.fetch(3) {
			g.do(r)
			g.retries(n, 1, time.Minute)
		}
		g.wait(10 * time.Second)
		g.again(0, 2)
	}},
	{breaks: "I-5: r0 is applied by process 0, which is at it already", fixed: holding, act: func(g *gear) {
		r := g.fetch(1)
		go g.do(r...)
		g.wait(1)
		g.do(r...)
	}},
	{breaks: "I-5: r0 is begun anew", fixed: holding, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		g.retries(0, 1, time.Millisecond)
		g.wait(time.Millisecond)
		g.do(r...)
	}},
	{breaks: "I-5: r0 is tried for the 3th time", fixed: holding, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.retries(0, 1, time.Millisecond)
		g.wait(time.Millisecond)
		g.again(0, 3)
	}},
	{breaks: "I-5: process 0 fetches, and r0 waits, which has no name", fixed: together(holding, func(s *settings) { s.shape, s.Named = rereading, false }), act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.retries(0, 1, time.Second)
		g.fetch(1)
	}},
	{breaks: "I-7: a run of process 0 waits for r0", fixed: func(s *settings) { s.Cron, s.Drain = time.Hour, 1 }, plan: busyOnce, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		g.wait(time.Minute)
		g.do(r...)
	}},
	{breaks: "I-1: process 0 has room beside the 1 records", fixed: holding, act: func(g *gear) {
		r := g.fetch(2)
		g.do(r...)
		g.retries(0, 1, time.Hour)
		_ = g.s.Mark(g.ctx, r[1:])
		g.wait(10 * time.Second)
		g.again(0, 2)
	}},
	{breaks: "Later: r0 is applied", plan: busyOnce, act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		g.do(r...)
	}},
	{breaks: "D5: r0 is parked with on purpose after a call", fixed: func(s *settings) { s.Stack = resilient }, plan: busyOnce, act: func(g *gear) {
		g.do(g.fetch(1)...)
		g.l.gaveUp(0, courier.ReasonPermanent, 1, errRogue)
	}},
	{breaks: "I-7: process 0 is to stop, and does nothing", fixed: holding, plan: stopAt(time.Second), act: func(g *gear) {
		r := g.fetch(1)
		g.do(r...)
		g.retries(0, 1, 2*time.Second)
		g.wait(2 * time.Second)
		_ = g.s.Release(g.detached(), r, 0)
	}},
	{breaks: "D8: a batch is tried again", fixed: func(s *settings) { s.Stack, s.Batches = retrying, true }, plan: stopAt(time.Second), act: func(g *gear) {
		g.wait(2 * time.Second)
		g.again(0, 2)
	}},

	// The breaker.
	{breaks: "B-1: a call behind 2 failures", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.l.surely = 2
		g.do(g.fetch(1)...)
	}},
	{breaks: "B-1: a call while the breaker is open", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		r := g.fetch(1)
		g.trip()
		g.do(r...)
	}},
	{breaks: "B-1: a call for host 1, whose breaker is open: [1]", fixed: hosted, act: func(g *gear) {
		r := g.fetch(2)
		g.l.circuits[1].counted.failures = g.Threshold
		g.change(courier.BreakerClosed, courier.BreakerOpen, func(c *courier.BreakerChange) { c.Breaker = "1" })
		g.do(r...)
	}},
	{breaks: "B-3: a breaker that is called", fixed: hosted, act: func(g *gear) {
		g.change(courier.BreakerClosed, courier.BreakerOpen, func(c *courier.BreakerChange) { c.Breaker = "2" })
	}},
	{breaks: "I-1: process 0 has r1 in hand", fixed: together(holding, hosted), act: func(g *gear) { // whose host is well
		r := g.fetch(2)
		g.do(r[0])
		g.l.circuits[0].counted.failures = g.Threshold
		g.change(courier.BreakerClosed, courier.BreakerOpen, func(c *courier.BreakerChange) { c.Breaker = "0" })
		g.wait(time.Second)
		g.do(r[1])
	}},
	{breaks: "B-18: a call while", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		r := g.fetch(1)
		g.l.forced = courier.BreakerForcedOpen
		g.change(courier.BreakerClosed, courier.BreakerForcedOpen)
		g.do(r...)
	}},
	{breaks: "B-18: a breaker that", fixed: func(s *settings) { s.Stack = resilient }, act: func(g *gear) {
		g.l.forced = courier.BreakerForcedOpen
		g.change(courier.BreakerClosed, courier.BreakerClosed)
	}},
	{breaks: "B-2: 2 probes", fixed: func(s *settings) { s.Stack, s.Workers = resilient, 2 }, act: func(g *gear) {
		r := g.fetch(2)
		g.trip()
		g.wait(g.OpenFor)
		g.change(courier.BreakerOpen, courier.BreakerHalfOpen)
		go g.do(r[0])
		g.wait(1)
		g.do(r[1])
	}},
	{breaks: "B-3: a breaker that is closed goes from", act: func(g *gear) { g.change(courier.BreakerHalfOpen, courier.BreakerClosed) }},
	{breaks: "B-3: a breaker opens after 0", act: func(g *gear) { g.change(courier.BreakerClosed, courier.BreakerOpen) }},
	{breaks: "B-3: a half-open breaker goes", act: func(g *gear) {
		g.trip()
		g.wait(g.OpenFor)
		g.change(courier.BreakerOpen, courier.BreakerHalfOpen)
		g.l.good = 1
		g.change(courier.BreakerHalfOpen, courier.BreakerClosed)
	}},
	{breaks: "B-4: ", act: func(g *gear) {
		g.trip()
		g.wait(g.OpenFor)
		g.change(courier.BreakerOpen, courier.BreakerHalfOpen)
		g.change(courier.BreakerHalfOpen, courier.BreakerOpen, func(c *courier.BreakerChange) { c.Cause = courier.ErrProbeTimeout })
	}},
	{breaks: "B-14: ", act: func(g *gear) {
		g.l.counted.failures = g.Threshold
		g.change(courier.BreakerClosed, courier.BreakerOpen, func(c *courier.BreakerChange) { c.Until = c.At.Add(2 * g.MaxOpenFor) })
	}},
	{breaks: "B-1: a breaker is half-open 1s before", act: func(g *gear) { g.trip(); g.change(courier.BreakerOpen, courier.BreakerHalfOpen) }},
	{breaks: "B-21: ", act: func(g *gear) {
		g.trip()
		g.wait(g.OpenFor)
		g.change(courier.BreakerOpen, courier.BreakerHalfOpen)
		g.l.probeAt = g.now.Load()
		g.change(courier.BreakerHalfOpen, courier.BreakerClosed)
	}},
	{breaks: "B-21: ", act: func(g *gear) { g.trip(); g.change(courier.BreakerOpen, courier.BreakerClosed) }},

	// Runs, and a redrive.
	{breaks: "RunOnce: process 0 fetches once more in a run", fixed: cronly, act: func(g *gear) {
		g.fetch(1)
		g.fetch(1)
	}},
	{breaks: "RunOnce: process 0 returned no error", fixed: cronly, act: func(g *gear) {
		g.fetch(1)
		g.l.ranOnce(nil)
	}},
	{breaks: "RunOnce: process 0 tells of record 1 of 1", fixed: cronly, act: func(g *gear) {
		g.fetch(1)
		g.l.ranOnce(&courier.BatchError{Failures: []courier.BatchFailure{{Index: 1, Err: errRogue}}})
	}},
	{breaks: "RunOnce: process 0 tells of r3 as record 0", fixed: cronly, act: func(g *gear) {
		g.fetch(1)
		g.l.ranOnce(&courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: injured(4, "on purpose")}}})
	}},
	{breaks: "a redrive failed", fixed: func(s *settings) { s.Stack, s.Redriving = resilient, true }, act: func(g *gear) {
		g.redriveBranch(g.ctx, g.l, g.pipe.queue, first, nil)
	}},

	// What is told.
	{breaks: "watch: process 0 tells of a mark that it did not make", fixed: watched, act: func(g *gear) { g.told().Marked(g.ctx, courier.MarkEvent{Records: 1}) }},
	{breaks: "watch: process 0 tells of 2 records in a fetch of 1", fixed: watched, act: func(g *gear) { g.fetch(1); g.told().Fetched(g.ctx, courier.FetchEvent{Records: 2}) }},
	{breaks: "watch: process 0 tells that a fetch took", fixed: watched, act: func(g *gear) { g.fetch(1); g.told().Fetched(g.ctx, courier.FetchEvent{Records: 1}) }},
	{breaks: "watch: process 0 tells of a release with on purpose", fixed: watched, act: func(g *gear) {
		_ = g.s.Release(g.ctx, g.fetch(1), 0)
		g.told().Released(g.ctx, courier.ReleaseEvent{Records: 1, Err: errRogue})
	}},
	{breaks: "watch: process 0 tells that a fetch (<nil>) is tried again", fixed: watched, act: func(g *gear) {
		began := g.now.Load()
		g.fetch(1)
		g.told().Fetched(g.ctx, courier.FetchEvent{Records: 1, Elapsed: time.Duration(g.now.Load() - began), RetryIn: 1})
	}},
	{breaks: "watch: process 0 tells of 2 records applied", fixed: watched, act: func(g *gear) { g.told().Applied(g.ctx, courier.ApplyEvent{Records: 1, Applied: 2, Elapsed: 1}) }},
	{breaks: "watch: process 0 tells of 1 records failed", fixed: watched, act: func(g *gear) { g.told().Applied(g.ctx, courier.ApplyEvent{Records: 1, Failed: 1, Elapsed: 1}) }},
	{breaks: "watch: process 0 tells that an apply of 1 records took 0s", fixed: watched, act: func(g *gear) { g.told().Applied(g.ctx, courier.ApplyEvent{Records: 1, Applied: 1}) }},
	{breaks: "watch: process 0 tells that \"r0\" failed", fixed: watched, act: func(g *gear) { g.told().Failed(g.ctx, courier.FailEvent{Record: "r0"}) }},
	{breaks: "watch: process 0 tells of a release for 1s", fixed: watched, act: func(g *gear) {
		_ = g.s.Release(g.ctx, g.fetch(1), 0)
		g.told().Released(g.ctx, courier.ReleaseEvent{Records: 1, After: time.Second})
	}},
	{breaks: "watch: process 0 tells of 2 leases renewed", fixed: func(s *settings) { watched(s); s.Renewing, s.Lease = true, time.Minute }, act: func(g *gear) {
		_ = g.s.Renew(g.ctx, g.fetch(1))
		g.told().Renewed(g.ctx, courier.RenewEvent{Records: 2})
	}},
	{breaks: "watch: process 0 tells of a pause by hand until", fixed: watched, act: func(g *gear) { g.told().Paused(g.ctx, courier.PauseEvent{Until: g.l.p.clock.Now()}) }},
	{breaks: "watch: process 0 tells that 1 pauses are over, of 0", fixed: watched, act: func(g *gear) { g.told().Resumed(g.ctx, courier.ResumeEvent{Pauses: 1}) }},
	{breaks: "watch: process 0 tells that \"r0\" is not in work for long any more", fixed: watched, act: func(g *gear) { g.told().Stalled(g.ctx, courier.StallEvent{Record: "r0", Over: true}) }},
	{breaks: "watch: process 0 tells that 0 records (\"r0\") are in work for long", fixed: watched, act: func(g *gear) { g.told().Stalled(g.ctx, courier.StallEvent{Record: "r0"}) }},
	{breaks: "watch: process 0 tells that \"r0\" has been in work for 1h", fixed: watched, act: func(g *gear) {
		g.told().Stalled(g.ctx, courier.StallEvent{Record: "r0", Records: 1, Attempt: 1, InWork: time.Hour})
	}},
	{breaks: "watch: process 0 is ready, and \"r0\" has been in work", fixed: watched, act: func(g *gear) {
		g.stepped = 1
		g.told().Stalled(g.ctx, courier.StallEvent{Record: "r0", Records: 1, Attempt: 1, InWork: time.Hour})
	}},
	{breaks: "watch: process 0: Stats does not tell that \"r0\" has been in work", fixed: watched, act: func(g *gear) {
		g.l.p.began, g.Workers = g.l.p.began-int64(time.Hour), 2
		g.l.running = []coordinator{unready{}}
		g.told().Stalled(g.ctx, courier.StallEvent{Record: "r0", Records: 1, Attempt: 1, InWork: time.Hour})
	}},
	{breaks: "watch: process 0 does not tell that r0 was in work", fixed: watched, act: func(g *gear) {
		c := &call{callID: callID{kind: Apply}, name: "r0", p: g.l.p}
		c.came = g.now.Load() - int64(time.Hour)
		g.l.watcher.hasApplied(c)
	}},
	{breaks: "watch: process 0: records fetched, by Stats and by events: 1 and 0", fixed: watched, act: func(g *gear) { g.l.runs = 0; g.l.watcher.end(courier.Stats{Fetched: 1}) }},
	{breaks: "watch: process 0: 2 records fetched, of which 0 again, and 1 marked or released", fixed: watched, act: func(g *gear) {
		g.l.runs = 0
		g.l.watcher.told = courier.Stats{Fetched: 2, Marked: 1, Applied: 1}
		g.l.watcher.end(g.l.watcher.told)
	}},
	{breaks: "watch: process 0 tells of its end 0 times", fixed: watched, act: func(g *gear) { g.l.runs = 1; g.l.watcher.end(courier.Stats{}) }},
}

// holding are the settings where what waits is in hand, and not with a worker.
func holding(s *settings) { s.Stack, s.Workers, s.Named = retrying, 2, true }

func together(a, b func(s *settings)) func(s *settings) { return func(s *settings) { a(s); b(s) } }

func cronly(s *settings)  { s.shape, s.Cron = rereading, time.Second }
func watched(s *settings) { s.Watched = true }

func (g *gear) told() courier.Observer { return g.l.watcher.observer() }

func (g *gear) queued() chan order { return g.l.line.(*line[order]).queued }

// retry has the destination see a second attempt.
func (g *gear) retry(ctx context.Context) {
	attempts := 0
	a := courier.NewRetryableApplier(courier.ProcessFunc(func(ctx context.Context, r order) error {
		if attempts++; attempts == 1 {
			return errRogue
		}
		return g.apply.Apply(ctx, r)
	}), courier.RetryPolicy{Clock: &g.l.p.clock})
	_ = a.Apply(ctx, order{0})
}

// retries has a retry tell that a record is tried again, after so many attempts.
func (g *gear) retries(n, attempt int, delay time.Duration) {
	g.l.retriedIn(first)(g.ctx, courier.RetryEvent{Record: names[n], Records: 1, Attempt: attempt, Delay: delay, Err: errRogue})
}

// again has the destination see an attempt that is not the first.
func (g *gear) again(n, attempt int) {
	ctx := context.WithoutCancel(g.ctx)
	if g.Batches {
		_ = g.p().await(ctx, Batch, uint64(n+1), names[n], &verdicts{records: []int{n}, errs: make([]error, 1), attempt: attempt}, func(*call) {})
		return
	}
	_ = g.p().await(ctx, Apply, uint64(n+1), names[n], try{n, attempt}, func(*call) {})
}

func (g *gear) p() *Process { return g.l.p }

// fail has the process return an error.
func (g *gear) fail(err error) { panic(quit{err}) }

type quit struct{ err error }

// run has a rogue live in a world without faults, and returns what was found, and where.
func (r *rogue) run(t *testing.T) (problems []string, sites map[string]bool) {
	sites = map[string]bool{}
	o := Options{Within: 10 * time.Minute, StopWithin: time.Minute}
	result := episode(t, 1, &o, func(w *World) {
		m := newModel(w, func(s *settings) {
			calm(s)
			if r.fixed != nil {
				r.fixed(s)
			}
		})
		m.rates, m.outages, m.endings, m.lengths, m.suffers = rates{}, [3][]window{}, nil, 0, nil
		for n := range m.Records {
			m.rows[n].arrived = true
		}
		if r.plan != nil {
			r.plan(m)
		}
		m.redrive = func(ctx context.Context) error { <-ctx.Done(); return nil }
		m.failing = func() { called(sites) }
		x := m.pipe.(*pipe[order])
		began := false
		m.live = func(ctx context.Context) (err error) {
			if began { // it has done what it does
				<-ctx.Done()
				return nil
			}
			began = true
			defer func() {
				if q, quits := recover().(quit); quits {
					err = q.err
				}
			}()
			l := m.lives[processOf(ctx).number]
			l.running = []coordinator{idle{}}
			r.act(&gear{
				pipe: x, ctx: ctx, l: l, s: &source[order]{life: l, pipe: x}, apply: x.destination(l),
				queue: &parkingLot[order]{x.queue, l, first}, aside: &parkingLot[order]{x.aside, l, second},
			})
			<-ctx.Done()
			return nil
		}
	}, nil, false)
	return result.Problems, sites
}

// idle is a coordinator that does nothing.
type idle struct{}

func (idle) Start(context.Context) error { return nil }
func (idle) Pause()                      {}
func (idle) Resume()                     {}
func (idle) Stats() courier.Stats        { return courier.Stats{} }
func (idle) Ready() error                { return nil }

// unready is one that says so.
type unready struct{ idle }

func (unready) Ready() error { return errRogue }

// called notes the lines that a problem was found at.
func called(sites map[string]bool) {
	var pcs [8]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		sites[fmt.Sprintf("%s:%d", filepath.Base(frame.File), frame.Line)] = true
		if !more {
			return
		}
	}
}

// Each check can fail: for each there is a pipeline that breaks what it looks at.
func TestEveryCheckCanFail(t *testing.T) {
	all := checks(t)
	defer watch(t.Name(), patience)()
	for i := range rogues {
		r := &rogues[i]
		problems, sites := r.run(t)
		found := false
		for _, p := range problems {
			_, text, _ := strings.Cut(p, ": ")
			found = found || strings.HasPrefix(text, r.breaks)
		}
		if !found {
			t.Errorf("%s: found %q", r.breaks, problems)
		}
		for site := range sites {
			delete(all, site)
		}
	}
	o := Options{Within: time.Minute}
	for what, setup := range map[string]func(w *World){
		"there is nothing to run": func(*World) {},
		errRogue.Error(): func(w *World) {
			w.Run(func(ctx context.Context) error { <-ctx.Done(); return nil })
			w.Always(func() error { return errRogue })
		},
	} {
		sites := map[string]bool{}
		r := episode(t, 1, &o, func(w *World) {
			w.failing = func() { called(sites) }
			setup(w)
		}, nil, false)
		if len(r.Problems) == 0 || !strings.Contains(r.Problems[0], what) {
			t.Errorf("%s: found %q", what, r.Problems)
		}
		for site := range sites {
			delete(all, site)
		}
	}
	var left []string
	for site, text := range all {
		if strings.Contains(text, "goroutines are left") { // see TestAGoroutineThatIsLeftIsFound, which needs a process of its own
			continue
		}
		left = append(left, site+" "+text)
	}
	sort.Strings(left)
	if len(left) > 0 {
		t.Errorf("nothing shows that these can fail:\n%s", strings.Join(left, "\n"))
	}
}

// checks are the lines that find a problem, of the simulation and of the model.
func checks(t *testing.T) map[string]string {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	sites := map[string]string{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "model_") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || method.Sel.Name != "Fail" && method.Sel.Name != "fail" {
				return true
			}
			text, ok := call.Args[0].(*ast.BasicLit)
			of, named := method.X.(*ast.Ident)
			if errorOfACall := named && of.Name == "c"; ok && !errorOfACall {
				sites[fmt.Sprintf("%s:%d", path, set.Position(call.Pos()).Line)] = text.Value
			}
			return true
		})
	}
	return sites
}
