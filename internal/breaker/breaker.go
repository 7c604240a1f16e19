// Package breaker is the state machine of a circuit breaker, without a clock,
// a lock or a goroutine: time and random values are arguments, and the caller
// serialises the calls.
//
// Every phase is a generation, and a result from an older one changes nothing: a
// call that was slow to fail must not reopen a breaker that has recovered since,
// nor may one that was slow to succeed close it.
//
// Within a closed phase failures are counted twice. A row of failures is broken by
// any success. A chain is of failures of which each began after the one before was
// counted, as the attempts on one record do, and a success takes away only those that
// were counted before it began: one that was in flight when an outage began says nothing
// of the time since. Either opens at the threshold. The chain alone would miss an outage in
// which all calls fail at once; the row alone would be broken while a record uses up
// its attempts; and if a late success broke no row at all, a few failures among many
// slow calls would open the breaker.
package breaker

import (
	"math"
	"time"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

// Phase is what the breaker does with calls.
type Phase uint8

// The phases.
const (
	Closed       Phase = iota // all pass
	Open                      // none pass
	HalfOpen                  // a few probes pass
	ForcedOpen                // none pass, until told otherwise
	ForcedClosed              // all pass, until told otherwise
)

func (p Phase) String() string {
	return [...]string{"closed", "open", "half-open", "forced open", "forced closed"}[p]
}

// Passing reports whether the breaker lets all calls through.
func (p Phase) Passing() bool { return p == Closed || p == ForcedClosed }

// Outcome is the verdict of one call on the destination.
type Outcome uint8

// The outcomes.
const (
	Success Outcome = iota // it answered
	Failure                // it did not, or not well
	Ignored                // the call says nothing about it
	Mixed                  // it answered for some records of a batch, and failed others
)

// Policy is the breaker's configuration, taken as it is. A condition whose
// threshold is 0 is off.
type Policy struct {
	FailureThreshold int // consecutive failures that open

	FailureRate  float64       // share of the window's calls that opens
	SlowCallRate float64       // the same for slow calls
	MinCalls     int           // below which the rates say nothing
	Window       time.Duration // what the rates are of, or
	WindowCalls  int           // as a number of calls

	OpenFor        time.Duration // first open period
	MaxOpenFor     time.Duration // cap of the longer ones
	MaxAfter       time.Duration // cap of those that the destination asked for
	OpenMultiplier float64
	Jitter         float64 // spread of an open period, ± this fraction

	Probes       int // calls in flight at once while half-open
	Successes    int // successful probes that close
	ProbeTimeout time.Duration
}

// Windowed reports whether single successes matter, because a rate is of them.
func (p *Policy) Windowed() bool { return p.FailureRate > 0 || p.SlowCallRate > 0 }

// Permit is the right to make one call, to be reported once.
type Permit struct {
	// Seq tells what had been counted when it was given, and so its generation too.
	Seq uint64
	// Probe tells that the call was admitted while the breaker was not closed,
	// so that a failure says nothing of the record it carries.
	Probe bool
}

// State is a breaker. The zero value is closed.
type State struct {
	Phase    Phase
	Gen      uint64    // counts the phases
	Seq      uint64    // goes up with each phase, and each failure when Closed
	Until    time.Time // when Open: the earliest probe
	since    uint64    // Seq when the phase began
	vouched  uint64    // Seq up to which successes tell that the destination was well since
	begins   []uint64  // Seq when each of the failures began that were counted since vouched; the last one is Seq itself
	chain    int       // how many of these are one after the other at the most
	link     uint64    // Seq of the last one in the chain
	failures int       // in a row, when Closed
	inflight int       // probes, when HalfOpen
	good     int       // successful probes, when HalfOpen
	opens    int       // consecutive open periods
	progress time.Time // of the last probe's start or verdict
	window   window    // when Closed
}

// Acquire asks for a permit. timedOut says that the probes in flight made no
// progress for the probe timeout and that the breaker opened over it.
func (s *State) Acquire(p *Policy, now time.Time, random float64) (permit Permit, ok, timedOut bool) {
	switch s.Phase {
	case Closed, ForcedClosed:
		return Permit{Seq: s.Seq}, true, false
	case ForcedOpen:
		return Permit{}, false, false
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
			s.open(p, 0, now, random)
			return Permit{}, false, true
		}
	}
	s.inflight++
	s.progress = now
	return Permit{Seq: s.Seq, Probe: true}, true, false
}

// Ready reports whether it is worth asking Acquire, without taking a permit: it
// gives one, or finds that the probes in flight have hung.
func (s *State) Ready(p *Policy, now time.Time) bool {
	switch s.Phase {
	case ForcedOpen:
		return false
	case Open:
		return !now.Before(s.Until)
	case HalfOpen:
		return s.inflight < p.Probes || now.Sub(s.progress) >= p.ProbeTimeout
	}
	return true
}

// Report gives the result of a permitted call and reports whether it was stale:
// then it has changed nothing. after is how long the destination asked to be left
// alone.
func (s *State) Report(p *Policy, permit Permit, outcome Outcome, slow bool, after time.Duration, now time.Time, random float64) (stale bool) {
	if permit.Seq < s.since {
		return true
	}
	switch s.Phase {
	case HalfOpen:
		s.inflight = max(0, s.inflight-1) // a permit reported twice frees no other's slot
		s.progress = now
		s.probed(p, outcome, slow, after, now, random)
	case Closed:
		s.counted(p, permit, outcome, slow, after, now, random)
	}
	return false
}

// probed takes the verdict of a probe. One that was slow failed, where slow
// calls are what opens the breaker.
func (s *State) probed(p *Policy, outcome Outcome, slow bool, after time.Duration, now time.Time, random float64) {
	switch {
	case outcome == Ignored:
	case outcome == Failure, slow && p.SlowCallRate > 0:
		s.open(p, after, now, random)
	default:
		if s.good++; s.good >= p.Successes {
			s.enter(Closed)
			s.opens = 0
		}
	}
}

func (s *State) counted(p *Policy, permit Permit, outcome Outcome, slow bool, after time.Duration, now time.Time, random float64) {
	if outcome == Ignored {
		return
	}
	failed := outcome == Failure
	if !failed { // a mixed call is a success followed by a failure
		s.failures = 0
		s.vouch(permit.Seq)
	}
	if outcome != Success {
		s.failures++
		s.note(permit.Seq)
	}
	if p.Windowed() {
		s.window.add(p, failed, slow, now)
	}
	w := &s.window.total
	enough := w.calls >= p.MinCalls
	switch {
	case outcome != Success && p.FailureThreshold > 0 && s.Streak() >= p.FailureThreshold,
		failed && enough && reaches(w.failures, w.calls, p.FailureRate),
		slow && enough && reaches(w.slow, w.calls, p.SlowCallRate):
		s.open(p, after, now, random)
	}
}

// maxBegins is how many failures are remembered that a chain may be made of. There are
// more only with a threshold above it: no more are remembered for each link than calls
// were in flight.
const maxBegins = 1 << 12

// note counts a failure of a call that began when Seq was so much.
func (s *State) note(began uint64) {
	if len(s.begins) == maxBegins {
		s.vouch(s.Seq - maxBegins/2)
	}
	s.Seq++
	s.begins = append(s.begins, began)
	s.extend(began, s.Seq)
}

// extend takes a failure into the chain, if it can: of failures in the order in which they
// were counted, the longest chain begins with the first, and goes on with the first that
// fits.
func (s *State) extend(began, counted uint64) {
	if s.chain == 0 || began >= s.link {
		s.chain, s.link = s.chain+1, counted
	}
}

// vouch has failures count no more that were counted before a call began that succeeded.
func (s *State) vouch(began uint64) {
	if began <= s.vouched {
		return
	}
	s.vouched = began
	before := s.Seq - uint64(len(s.begins)) // the first of them is the next
	if began <= before {
		return
	}
	s.begins = append(s.begins[:0], s.begins[began-before:]...)
	s.chain = 0
	for i, began := range s.begins {
		s.extend(began, s.vouched+1+uint64(i))
	}
}

// Force enters a forced phase, or Closed, whatever the calls in flight say.
func (s *State) Force(phase Phase) {
	s.enter(phase)
	s.opens = 0
}

// Streak is the number of consecutive failures while closed: those of the row or of
// the chain, whichever is longer.
func (s *State) Streak() int { return max(s.failures, s.chain) }

// Counts returns what the window holds now.
func (s *State) Counts(p *Policy, now time.Time) (calls, failures, slow int) {
	s.window.roll(p, now)
	w := s.window.total
	return w.calls, w.failures, w.slow
}

func (s *State) enter(phase Phase) {
	s.Phase = phase
	s.Gen++
	s.Seq++
	s.since, s.vouched = s.Seq, s.Seq
	s.begins, s.chain = s.begins[:0], 0
	s.failures, s.inflight, s.good = 0, 0, 0
	s.window.clear()
}

func (s *State) open(p *Policy, after time.Duration, now time.Time, random float64) {
	s.enter(Open)
	d := float64(p.OpenFor) * math.Pow(p.OpenMultiplier, float64(s.opens))
	d = min(d, float64(p.MaxOpenFor)) * (1 + p.Jitter*(2*random-1))
	// The jitter is inside the cap: it is never passed.
	s.Until = now.Add(max(backoff.Within(d, p.MaxOpenFor), min(after, p.MaxAfter)))
	s.opens = min(s.opens+1, 1<<20)
}
