package sim

import (
	"math"
	"sync/atomic"
	"time"
)

// epoch is when every episode begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Clock is the virtual clock of one process. It is a [courier.Clock].
type Clock struct {
	p    *Process
	skew atomic.Int64
}

// Now returns the virtual time.
func (c *Clock) Now() time.Time {
	return epoch.Add(time.Duration(c.p.w.now.Load() + c.skew.Load()))
}

// After returns a channel on which a value comes after d.
func (c *Clock) After(d time.Duration) <-chan time.Time {
	t := &timer{clock: c, ch: make(chan time.Time, 1), d: max(0, d)}
	w := c.p.w
	w.mu.Lock()
	now := w.now.Load()
	t.due = now + min(int64(t.d), math.MaxInt64-now)
	w.timers = append(w.timers, t)
	w.mu.Unlock()
	return t.ch
}

// timer is a wait on the clock. Those that begin in one step and are of one
// length cannot be told apart: they end in one step.
type timer struct {
	clock *Clock
	ch    chan time.Time
	d     time.Duration
	due   int64
}

// random draws a number in [0, 1) for the spread of a delay. It goes by the
// instant, of which each step of the simulation has one of its own.
func (p *Process) random() float64 {
	return uniform(hash(p.w.seed, forRandom, uint64(p.w.now.Load()), uint64(p.instance)))
}
