// Package breaker is the state machine of a circuit breaker, without a clock,
// a lock or a goroutine: time and random values are arguments, and the caller
// serialises the calls.
//
// Every phase is a generation. A permit carries the generation it was given
// in, and a result from an older one changes nothing: a call that was slow to
// fail must not reopen a breaker that has recovered since, nor may one that
// was slow to succeed close it.
package breaker

import (
	"math"
	"time"
)

// Phase is what the breaker does with calls.
type Phase uint8

// The phases.
const (
	Closed   Phase = iota // all pass
	Open                  // none pass
	HalfOpen              // a few probes pass
)

func (p Phase) String() string {
	return [...]string{"closed", "open", "half-open"}[p]
}

// Outcome is the verdict of one call on the destination.
type Outcome uint8

// The outcomes.
const (
	Success Outcome = iota // it answered
	Failure                // it did not, or not well
	Ignored                // the call says nothing about it
)

// Policy is the breaker's configuration, taken as it is.
type Policy struct {
	FailureThreshold int           // consecutive failures that open
	OpenFor          time.Duration // first open period
	MaxOpenFor       time.Duration // cap of the longer ones
	OpenMultiplier   float64
	Jitter           float64 // spread of an open period, ± this fraction
	Probes           int     // calls in flight at once while half-open
	Successes        int     // successful probes that close
	ProbeTimeout     time.Duration
}

// Permit is the right to make one call, to be reported once.
type Permit struct {
	Gen uint64
	// Probe tells that the call was admitted while the breaker was not closed,
	// so that a failure says nothing of the record it carries.
	Probe bool
}

// State is a breaker. The zero value is closed.
type State struct {
	Phase    Phase
	Gen      uint64
	Until    time.Time // when Open: the earliest probe
	failures int       // consecutive, when Closed
	inflight int       // probes, when HalfOpen
	good     int       // successful probes, when HalfOpen
	opens    int       // consecutive open periods
	progress time.Time // of the last probe's start or verdict
}

// Acquire asks for a permit. timedOut says that the probes in flight made no
// progress for the probe timeout and that the breaker opened over it.
func (s *State) Acquire(p *Policy, now time.Time, random float64) (permit Permit, ok, timedOut bool) {
	switch s.Phase {
	case Closed:
		return Permit{Gen: s.Gen}, true, false
	case Open:
		if now.Before(s.Until) {
			return Permit{}, false, false
		}
		s.enter(HalfOpen)
	case HalfOpen:
		if s.inflight >= p.Probes {
			if now.Sub(s.progress) < p.ProbeTimeout {
				return Permit{}, false, false
			}
			s.open(p, now, random)
			return Permit{}, false, true
		}
	}
	s.inflight++
	s.progress = now
	return Permit{Gen: s.Gen, Probe: true}, true, false
}

// Report gives the result of a permitted call. A stale one changes nothing.
func (s *State) Report(p *Policy, permit Permit, outcome Outcome, now time.Time, random float64) {
	if permit.Gen != s.Gen {
		return
	}
	if s.Phase == HalfOpen {
		s.inflight--
		s.progress = now
	}
	switch outcome {
	case Success:
		s.failures = 0
		if s.Phase == HalfOpen {
			if s.good++; s.good >= p.Successes {
				s.enter(Closed)
				s.opens = 0
			}
		}
	case Failure:
		if s.failures++; s.Phase == HalfOpen || s.failures >= p.FailureThreshold {
			s.open(p, now, random)
		}
	}
}

// Streak is the number of consecutive failures while closed.
func (s *State) Streak() int { return s.failures }

func (s *State) enter(phase Phase) {
	s.Phase = phase
	s.Gen++
	s.failures, s.inflight, s.good = 0, 0, 0
}

func (s *State) open(p *Policy, now time.Time, random float64) {
	s.enter(Open)
	// The jitter is inside the cap: MaxOpenFor is never passed.
	d := float64(p.OpenFor) * math.Pow(p.OpenMultiplier, float64(s.opens))
	d = min(d, float64(p.MaxOpenFor)) * (1 + p.Jitter*(2*random-1))
	open := p.MaxOpenFor
	if d < float64(p.MaxOpenFor) {
		open = time.Duration(d)
	}
	s.Until = now.Add(open)
	s.opens = min(s.opens+1, 1<<20)
}
