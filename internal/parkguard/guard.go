// Package parkguard decides whether one more record may go to the dead letter
// queue, without a clock, a lock or a goroutine: the time and the number of
// records decided are arguments, and the caller serialises the calls.
//
// It keeps where the parked records stand in the count of the decided ones, and
// nothing of those that went well, so that a record that went well costs its
// caller one addition.
package parkguard

import "time"

// Policy is the guard's configuration, taken as it is.
type Policy struct {
	Rate   float64       // the share of the window that may be parked; 1 is any
	Window int           // how many of the last decided records count
	Min    int           // parked records of the window below which it never refuses
	Pause  time.Duration // for how long it refuses
}

// State is a guard. The zero value has seen nothing.
type State struct {
	Until time.Time // when it refuses: up to but not at
	base  uint64    // what was decided before the guard was armed
	parks []uint64  // the decided count at each park of the window, rising
}

// Refusing reports whether the guard refuses at the time now, which does not go
// back.
func (s *State) Refusing(now time.Time) bool { return now.Before(s.Until) }

// Park asks to park the record that comes after decided others. ok says that it
// may be, and counts it. The counts are of the window that was looked at.
func (s *State) Park(p *Policy, decided uint64, now time.Time) (parked, of int, ok bool) {
	if !s.Until.IsZero() {
		if s.Refusing(now) {
			return 0, 0, false
		}
		*s = State{base: decided, parks: s.parks[:0]}
	}
	if n := len(s.parks); n > 0 {
		decided = max(decided, s.parks[n-1]) // callers race to the lock with their counts
	}
	decided = max(decided, s.base)
	s.forget(decided, p.Window)
	parked = len(s.parks)
	of = int(min(decided-s.base, uint64(p.Window)))
	if parked >= p.Min && float64(parked) > p.Rate*float64(of) {
		s.Until = now.Add(p.Pause)
		return parked, of, false
	}
	s.parks = append(s.parks, decided+1)
	return parked, of, true
}

// Undo takes back the last park that was allowed, because the queue did not
// take the record.
func (s *State) Undo() {
	if n := len(s.parks); n > 0 {
		s.parks = s.parks[:n-1]
	}
}

// forget drops the parks that have left the window.
func (s *State) forget(decided uint64, window int) {
	gone := 0
	for gone < len(s.parks) && s.parks[gone]+uint64(window) <= decided {
		gone++
	}
	s.parks = append(s.parks[:0], s.parks[gone:]...)
	// Parks that raced for one count are not allowed to hold more than a
	// window's worth of memory.
	if over := len(s.parks) - window; over > 0 {
		s.parks = append(s.parks[:0], s.parks[over:]...)
	}
}
