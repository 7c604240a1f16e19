package courier

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// steady reads a Clock so that time never goes back, for everything that waits by
// comparing times: a clock that is set back makes no wait longer than was asked.
// From there time goes on from the last reading. What had passed since that
// reading only a timer tells that was set before, see timer; a wait that began in
// between may be shorter by as much. A clock that is set forward may end a wait
// early: nothing tells that from time that has passed.
//
// The kernels are given this time, and so do without a thought of the matter. The
// system's clock has a monotonic reading and is taken as it is.
type steady struct {
	Clock
	stack []*steady // the clocks of what a coordinator applies with

	mu   sync.Mutex
	last time.Time     // the latest time read, or known to have come
	back time.Duration // how far the clock is behind, for having been set back
}

// coarse is how far a clock may seem to go back that was not set: it moves in
// steps, or two goroutines have read it at once. Then time stands still.
const coarse = time.Second

func newSteady(clock Clock) *steady {
	if s, ok := clock.(*steady); ok {
		return s
	}
	return &steady{Clock: clockOr(clock)}
}

func (s *steady) system() bool {
	_, ok := s.Clock.(systemClock)
	return ok
}

// Now returns the steady time. It is safe for concurrent use.
func (s *steady) Now() time.Time {
	t := s.Clock.Now()
	if s.system() {
		return t
	}
	s.mu.Lock()
	if s.back != 0 {
		t = t.Add(s.back)
	}
	if t.Before(s.last) {
		if behind := s.last.Sub(t); behind >= coarse {
			s.back += min(behind, math.MaxInt64-s.back)
		}
		t = s.last
	}
	s.last = t
	s.mu.Unlock()
	return t
}

// of returns the steady time of a time by the Clock as it is now. The zero time
// stays what it is, as it does in told.
func (s *steady) of(t time.Time) time.Time {
	if !s.system() {
		s.Now()
	}
	return s.shifted(t, 1)
}

// told returns what the Clock calls a steady time, as of the last reading.
func (s *steady) told(t time.Time) time.Time { return s.shifted(t, -1) }

func (s *steady) shifted(t time.Time, sign time.Duration) time.Time {
	if t.IsZero() || s.system() {
		return t
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.Add(sign * s.back)
}

// timer is a timer of a steady clock. Whoever has waited for it says so, which is
// how the clock, and those of the stack, know of time that a step has hidden.
type timer struct {
	C     <-chan time.Time
	clock *steady
	due   time.Time
	stack []time.Time // likewise, of each clock of it
}

func (s *steady) timer(d time.Duration) timer {
	if s.system() && len(s.stack) == 0 {
		return timer{C: s.After(d)}
	}
	t := timer{clock: s, due: s.Now().Add(d)}
	for _, c := range s.stack {
		t.stack = append(t.stack, c.Now().Add(d))
	}
	t.C = s.After(d)
	return t
}

// fired says that the timer has been waited for.
func (t *timer) fired() {
	if t.clock == nil {
		return
	}
	t.clock.reach(t.due)
	for i, c := range t.clock.stack {
		c.reach(t.stack[i])
	}
}

func (s *steady) reach(t time.Time) {
	if s.system() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.After(s.last) {
		s.last = t
	}
}

// sleep waits on the clock, or until ctx ends.
func (s *steady) sleep(ctx context.Context, d time.Duration) {
	if d <= 0 || ctx.Err() != nil {
		return
	}
	t := s.timer(d)
	select {
	case <-t.C:
		t.fired()
	case <-ctx.Done():
	}
}

// alarms are the timers of one who waits for many things. Each stays until it has
// fired, though another is set before it: it tells of time that a step has hidden,
// and by a clock that was set back nobody knows which is the next.
type alarms struct {
	clock *steady
	at    []time.Time // what those under way are for
	rings chan alarm
	over  chan struct{}
	waits sync.WaitGroup
}

type alarm struct {
	timer
	at time.Time
}

func newAlarms(clock *steady) *alarms {
	return &alarms{clock: clock, rings: make(chan alarm), over: make(chan struct{})}
}

// set has an alarm ring at a time, unless one will from now up to then, or the time
// is zero.
func (a *alarms) set(at, now time.Time) {
	rings := func(t time.Time) bool { return t.After(now) && !t.After(at) }
	if at.IsZero() || slices.ContainsFunc(a.at, rings) {
		return
	}
	one := alarm{a.clock.timer(at.Sub(now)), at}
	a.at = append(a.at, at)
	a.waits.Go(func() {
		select {
		case <-one.C:
		case <-a.over:
			return
		}
		select {
		case a.rings <- one:
		case <-a.over:
		}
	})
}

// rang takes in an alarm that has rung.
func (a *alarms) rang(one alarm) {
	one.fired()
	i := slices.IndexFunc(a.at, one.at.Equal)
	a.at = slices.Delete(a.at, i, i+1)
}

func (a *alarms) end() {
	close(a.over)
	a.waits.Wait()
}

// moment is a time of a steady clock, for errors that tell it: by the Clock it may
// be another by the time that it is asked for. The zero moment has none.
type moment struct {
	clock *steady
	at    time.Time
}

// told returns what the moment is called now, or the time given where it is none.
func (m moment) told(t time.Time) time.Time {
	if m.clock == nil || m.clock.system() {
		return t
	}
	m.clock.Now()
	return m.clock.told(m.at)
}

// clocksOf returns the clocks by which a stack decides when it takes records again,
// but the system's.
func clocksOf(stack *layer) (found []*steady) {
	within(stack, false, func(l *layer, _ bool) bool {
		if l.clock != nil && !l.clock.system() {
			found = append(found, l.clock)
		}
		return false
	})
	return found
}
