package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// coordinator is what an operator can do to a pipeline.
type coordinator interface {
	Start(ctx context.Context) error
	Pause()
	Resume()
	Stats() courier.Stats
	Ready() error
}

// start runs the coordinators of a process, where an operator can get at them.
func (x *pipe[T]) start(ctx context.Context, l *life, coordinate func(*source[T]) coordinator) error {
	l.running = append(l.running, coordinate(&source[T]{life: l, pipe: x}))
	if x.Twins {
		l.running = append(l.running, coordinate(&source[T]{life: l, pipe: x, number: 1}))
	}
	if x.Cron > 0 {
		return l.cron(ctx, l.running[0].(runner))
	}
	l.runs = 1
	var runs sync.WaitGroup
	errs := make([]error, len(l.running))
	for i, c := range l.running {
		runs.Go(func() { errs[i] = c.Start(inLane(ctx, i)) })
	}
	runs.Wait()
	return errors.Join(errs...)
}

// planPauses draws when an operator pauses the pipeline, and for how long.
func (m *model) planPauses() {
	for i := range m.Pauses {
		u := func(what string) float64 {
			return uniform(hash(m.seed, forSwarm, digest(what), uint64(i)))
		}
		at := time.Duration(u("pause") * u("paused at most") * float64(m.lengths))
		m.later(at, func() bool { return m.pause(true) })
		m.later(at+time.Duration(u("paused for")*float64(time.Minute)), func() bool { return m.pause(false) })
	}
}

// pause pauses or resumes the processes that run now. One that begins later runs.
func (m *model) pause(paused bool) (woke bool) {
	for _, l := range m.lives {
		if l.p.ended || l.p.dead || l.redrives() {
			continue
		}
		l.look(nil)
		l.paused, l.pausedAt = paused, m.now.Load()
		l.waits.interrupt(m.now.Load(), func(int) bool { return true })
		if l.watcher != nil && !paused {
			l.watcher.held = false
		}
		for _, c := range l.running {
			if paused {
				c.Pause()
			} else {
				c.Resume()
			}
		}
		m.Sometimes("paused by an operator")
		woke = true
	}
	return woke
}

// planHands draws when an operator forces the breakers, and how. In the end they are
// left to themselves.
func (m *model) planHands() {
	for i := range m.Hands {
		u := func(what string) float64 {
			return uniform(hash(m.seed, forSwarm, digest(what), uint64(i)))
		}
		to := []courier.BreakerState{courier.BreakerForcedOpen, courier.BreakerForcedOpen, courier.BreakerForcedClosed, courier.BreakerClosed}[int(u("a hand")*4)]
		m.later(time.Duration(u("a hand comes")*float64(m.lengths)), func() bool { return m.force(to) })
	}
	if m.Hands > 0 {
		m.later(m.lengths+time.Second, func() bool { return m.force(courier.BreakerClosed) })
	}
}

// force has an operator force the breakers of the processes that run now.
func (m *model) force(to courier.BreakerState) (woke bool) {
	for _, l := range m.lives {
		if l.p.ended || l.p.dead || l.switches == nil {
			continue
		}
		if m.tracing {
			m.note(entry{p: l.p, text: fmt.Sprintf("an operator has the breaker %s", to)})
		}
		switch l.forced = to; to {
		case courier.BreakerForcedOpen:
			l.switches.ForceOpen()
		case courier.BreakerForcedClosed:
			l.switches.ForceClosed()
		default:
			l.switches.Reset()
		}
		l.forced = ""
		m.Sometimes("the breaker is " + string(to) + " by an operator")
		woke = true
	}
	return woke
}

// redrive is a process of an operator's, who empties the queues now and then. By
// and by what made records poison is mended.
func (x *pipe[T]) redrive(ctx context.Context) error {
	p, m := processOf(ctx), x.model
	l := m.lives[p.number]
	applier := x.destination(l)
	if m.Pick("a redrive has a breaker", 2) == 1 {
		applier = courier.NewCircuitBreakerApplier(applier, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, Clock: &p.clock, Random: p.random}))
	}
	retry := m.Retry(ctx, courier.RetryPolicy{MaxAttempts: 2})
	every := []time.Duration{2 * time.Second, 15 * time.Second}[m.Pick("redriven every", 2)]
	for ctx.Err() == nil {
		x.redriveBranch(ctx, l, x.queue, first, courier.NewRetryableApplier(applier, retry))
		if m.FanOut == 4 {
			x.redriveBranch(ctx, l, x.aside, second, courier.NewRetryableApplier(&branch[T]{l}, retry))
		}
		select {
		case <-p.clock.After(every):
		case <-ctx.Done():
		}
	}
	return nil
}

// redriveBranch redrives the letters of one branch.
func (x *pipe[T]) redriveBranch(ctx context.Context, l *life, queue *courier.MemoryDLQ[T], branch string, applier courier.Applier[T]) {
	m := x.model
	config := courier.RedriveConfig[T]{
		Clock: &l.p.clock, BatchSize: 1 + m.Pick("redriven at a time", 10),
		Match: func(letter courier.DeadLetter[T]) bool { return (letter.Branch == second) == (branch == second) },
	}
	result, err := courier.Redrive(ctx, &letters[T]{parkingLot[T]{queue, l, branch}, map[string]int{}}, applier, &config)
	if result.Succeeded > 0 {
		m.Sometimes("redriven")
	}
	if result.Failed > 0 {
		m.Sometimes("redriven in vain")
	}
	if errors.Is(err, courier.ErrOpen) {
		m.Sometimes("a redrive does not wait longer for a breaker")
	} else if err != nil && ctx.Err() == nil && !errors.Is(err, ErrInjected) && !errors.Is(err, courier.ErrPanic) {
		m.Fail("a redrive failed: %v", err)
	}
}

// redrives reports whether a process is the one that redrives.
func (l *life) redrives() bool { return l.p.instance == l.m.Instances }

// mended reports whether poison records can be applied after all.
func (m *model) mended() bool { return m.Redriving && m.Calm() }

// park notes that the queue has taken a record of a branch, which is to be redriven.
func (m *model) park(n int, branch string) {
	r := &m.rows[n]
	if branch == second {
		r.aside++
		r.toldAside[m.Instances] = nil
		return
	}
	r.parked++
	r.told[m.Instances], r.sure[m.Instances] = nil, nil
}

// wasParked reports whether a branch has ever parked a record.
func (m *model) wasParked(n int, branch string) bool {
	if branch == second {
		return m.rows[n].aside > 0
	}
	return m.rows[n].parked > 0
}

// letters is the queue as the process that redrives a branch sees it.
type letters[T record] struct {
	parkingLot[T]
	of map[string]int // the record of each letter that it was told of
}

func (q *letters[T]) read(ctx context.Context, what string, effect func() error) error {
	return q.p.await(ctx, Read, digest(what), what, nil, func(c *call) { c.err = effect() })
}

func (q *letters[T]) Count(ctx context.Context) (n int, err error) {
	err = q.read(ctx, "count", func() (err error) {
		n, err = q.MemoryDLQ.Count(ctx)
		return err
	})
	return n, err
}

func (q *letters[T]) List(ctx context.Context, after string, limit int) (page []courier.DeadLetter[T], err error) {
	err = q.read(ctx, "list", func() (err error) {
		page, err = q.MemoryDLQ.List(ctx, after, limit)
		for _, letter := range page {
			q.of[letter.ID] = letter.Record.number()
		}
		return err
	})
	return page, err
}

func (q *letters[T]) Update(ctx context.Context, letter courier.DeadLetter[T]) error {
	n := letter.Record.number()
	return q.p.await(ctx, Edit, q.id(uint64(n+1)), names[n], []int(nil), func(c *call) {
		c.err = q.MemoryDLQ.Update(ctx, letter)
	})
}

// Delete removes letters, whose records must have been applied since they were
// parked.
func (q *letters[T]) Delete(ctx context.Context, ids ...string) error {
	var records []int
	for _, id := range ids {
		if q.branch != second {
			records = append(records, q.of[id])
		}
	}
	return q.p.await(ctx, Edit, q.id(digest(fmt.Sprint(ids))>>32), "some letters", records, func(c *call) {
		for _, letter := range lettersOf(q.MemoryDLQ) {
			r := &q.m.rows[letter.n]
			told := r.told[q.p.instance]
			if letter.branch == second {
				told = r.toldAside[q.p.instance]
			}
			if slices.Contains(ids, letter.id) && told != q.p {
				q.m.Fail("D1: the letter of %s is removed, and process %d was not told that it is applied", names[letter.n], q.p.number)
			}
		}
		c.err = q.MemoryDLQ.Delete(ctx, ids...)
	})
}
