package courierttest

import (
	"slices"
	"testing/synctest"
	"time"

	"github.com/benbjohnson/clock"

	"github.com/erfanmomeniii/courier"
)

// Clock is a [courier.Clock] whose time moves only when the test moves it, over the Mock
// of github.com/benbjohnson/clock. It is for tests that look at single steps. If only the
// end counts, the virtual time of the bubble is enough, without a clock.
//
// It needs a bubble, see [Bubble], to detect when the goroutines that it woke wait for
// something again. [NewClock] makes it. It is safe for concurrent use, but only one
// goroutine may move it.
type Clock struct {
	mock *clock.Mock
	turn chan struct{} // a lock that can be waited for in a bubble while time passes
	due  []time.Time   // of the timers that have not fired, in order
}

// NewClock returns a clock that starts on 1 January 2000, as the clock of a bubble does.
func NewClock() *Clock {
	c := &Clock{mock: clock.NewMock(), turn: make(chan struct{}, 1)}
	c.mock.Set(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
	return c
}

// Mock returns the underlying clock, for code that takes a clock.Clock. Its timers fire
// as time passes them; Next and Timers only know timers made by After of this clock.
func (c *Clock) Mock() *clock.Mock { return c.mock }

// Now returns the current time of the clock.
func (c *Clock) Now() time.Time { return c.mock.Now() }

// After returns a channel that gets the time once the clock has been moved by d.
func (c *Clock) After(d time.Duration) <-chan time.Time {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if d <= 0 {
		now := make(chan time.Time, 1)
		now <- c.mock.Now()
		return now
	}
	at := c.mock.Now().Add(d)
	i, _ := slices.BinarySearchFunc(c.due, at, time.Time.Compare)
	c.due = slices.Insert(c.due, i, at)
	return c.mock.After(d)
}

// Timers returns how many timers have not fired, including those that nobody waits for
// anymore.
func (c *Clock) Timers() int {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return len(c.due)
}

// Settle returns when every other goroutine of the bubble waits for something:
// for the clock to move, or for the test.
func (c *Clock) Settle() {
	if !settle() {
		panic("courierttest: a Clock moves in a bubble only: make it and use it inside courierttest.Bubble")
	}
}

// Advance moves the clock by d, from timer to timer. After each timer it lets the
// goroutines settle, which may make further timers.
func (c *Clock) Advance(d time.Duration) {
	c.Settle()
	end := c.Now().Add(d)
	for {
		next, ok := c.next()
		if !ok || next.After(end) {
			break
		}
		c.move(next)
	}
	c.move(end)
}

// Next moves the clock to its next timer, lets the goroutines settle, and returns how far
// it moved. Without a timer it does not move, and returns false.
func (c *Clock) Next() (time.Duration, bool) {
	c.Settle()
	next, ok := c.next()
	if !ok {
		return 0, false
	}
	d := next.Sub(c.Now())
	c.move(next)
	return d, true
}

func (c *Clock) next() (time.Time, bool) {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if len(c.due) == 0 {
		return time.Time{}, false
	}
	return c.due[0], true
}

func (c *Clock) move(to time.Time) {
	c.turn <- struct{}{}
	c.due = slices.DeleteFunc(c.due, func(t time.Time) bool { return !t.After(to) })
	c.mock.Set(to)
	<-c.turn
	c.Settle()
}

// settle waits until all else in the bubble waits, and returns false outside of
// one.
func settle() (inBubble bool) {
	defer func() {
		if !inBubble {
			_ = recover() // it says that there is no bubble
		}
	}()
	synctest.Wait()
	return true
}

var _ courier.Clock = (*Clock)(nil)
