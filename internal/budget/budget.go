// Package budget is a token bucket for retries. It is pure: time is an
// argument, and the caller serialises the calls.
//
// The scheme is that of Finagle's RetryBudget: first attempts that succeed
// deposit a part of a retry, and a floor rate lets a quiet pipeline retry too.
package budget

import "time"

// Policy is taken as it is.
type Policy struct {
	Ratio float64 // of a retry, deposited by each success
	Floor float64 // retries a second that are there in any case
	Burst float64 // the most that can be saved up
}

// State is a bucket. It is full when it is first asked.
type State struct {
	tokens float64
	at     time.Time
	begun  bool
}

// refill adds what the floor rate has brought. It does so whatever else happens,
// so that a budget that was used up recovers by itself. A clock that steps back
// brings nothing.
func (s *State) refill(p *Policy, now time.Time) {
	if !s.begun {
		s.tokens, s.at, s.begun = p.Burst, now, true
		return
	}
	if passed := now.Sub(s.at); passed > 0 {
		s.tokens = min(p.Burst, s.tokens+p.Floor*passed.Seconds())
		s.at = now
	}
}

// Deposit adds n first attempts that succeeded.
func (s *State) Deposit(p *Policy, n float64, now time.Time) {
	s.refill(p, now)
	s.tokens = min(p.Burst, s.tokens+n*p.Ratio)
}

// Withdraw takes n retries, if there are as many.
func (s *State) Withdraw(p *Policy, n float64, now time.Time) bool {
	s.refill(p, now)
	if s.tokens < n {
		return false
	}
	s.tokens -= n
	return true
}

// Refund gives n retries back.
func (s *State) Refund(p *Policy, n float64) { s.tokens = min(p.Burst, s.tokens+n) }
