package courier

import (
	"strings"
	"sync"
	"sync/atomic"
)

// This file is about the breakers of a keyed breaker: which there are, and which record of
// a key is to be the probe.

// defaultMaxKeys is how many breakers are kept by default.
const defaultMaxKeys = 1000

// keyBreakers is the breakers by key, of which a bounded number is kept. A key of which no
// breaker is kept has none to remember anything for: it is closed, and no call has failed.
type keyBreakers struct {
	policy   BreakerPolicy
	limit    int
	clock    *steady
	windowed bool // every result counts, and not the failures alone

	births atomic.Uint64 // counts the breakers made

	mu    sync.Mutex
	byKey map[string]*keyBreaker
	ends  keyBreaker // of the ring of all, by their last use
}

// keyBreaker is the breaker of a key.
type keyBreaker struct {
	*Breaker
	key   string
	first uint64 // what a permit carries that was given before there was a breaker
	turns turnsOfKey

	newer, older *keyBreaker
}

// turnsOfKey tells who is to be the probe (P-3): not the record that has just failed one,
// while another waits.
type turnsOfKey struct {
	mu     sync.Mutex
	failed int    // failed probes so far
	period uint64 // the open period that the rest is of
	some   bool   // a record was refused in it
	oldest int    // of these, the number of the failed probe that is the longest ago; 0 for a record that was none
}

func (s *keyBreakers) init(policy BreakerPolicy) {
	s.limit = or(policy.MaxKeys, defaultMaxKeys)
	policy.MaxKeys = 0
	s.policy, s.windowed = policy, policy.rated()
	s.clock = newSteady(clockOr(policy.Clock))
	s.byKey = make(map[string]*keyBreaker)
	s.ends.newer, s.ends.older = &s.ends, &s.ends
}

// find returns the breaker of a key for a call, nil where there is none to ask.
func (s *keyBreakers) find(key string) (e *keyBreaker, births uint64) {
	s.mu.Lock()
	e = s.byKey[key]
	if e == nil && s.windowed {
		e = s.add(s.newBreaker(key))
	}
	if e != nil && s.ends.older != e {
		s.unlink(e)
		s.link(e)
	}
	births = s.births.Load()
	s.mu.Unlock()
	return e, births
}

// known returns the breaker of a key, nil if it has none.
func (s *keyBreakers) known(key string) *keyBreaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// made returns the breaker of a key, a new one if it has none.
func (s *keyBreakers) made(key string) *keyBreaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byKey[key]; e != nil {
		return e
	}
	return s.add(s.newBreaker(key))
}

// keep has a breaker stay that was made or found before.
func (s *keyBreakers) keep(e *keyBreaker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byKey[e.key]; other != e {
		if other != nil {
			s.unlink(other)
		}
		s.add(e)
	}
}

func (s *keyBreakers) all() (all []*keyBreaker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.byKey {
		all = append(all, e)
	}
	return all
}

func (s *keyBreakers) newBreaker(key string) *keyBreaker {
	key = strings.Clone(key) // it may be a piece of the record
	policy := s.policy
	if policy.Name == "" {
		policy.Name = key
	} else {
		policy.Name += "/" + key
	}
	b := NewBreaker(policy)
	b.clock = s.clock
	return &keyBreaker{Breaker: b, key: key, first: b.state.Seq}
}

// add takes a breaker in, in the place of another one where there are as many as may be.
// The lock is held.
func (s *keyBreakers) add(e *keyBreaker) *keyBreaker {
	if len(s.byKey) >= s.limit {
		s.forget()
	}
	s.byKey[e.key] = e
	s.link(e)
	s.births.Add(1)
	return e
}

// forget makes room for a breaker: of those that are closed the one goes that was not used
// for the longest, else of those that are not; never one that is forced.
func (s *keyBreakers) forget() {
	var oldest *keyBreaker
	for e := s.ends.newer; e != &s.ends; e = e.newer {
		switch state := e.State(); {
		case state == BreakerForcedOpen || state == BreakerForcedClosed:
			continue
		case state == BreakerClosed:
			s.unlink(e)
			delete(s.byKey, e.key)
			return
		case oldest == nil:
			oldest = e
		}
	}
	if oldest != nil {
		s.unlink(oldest)
		delete(s.byKey, oldest.key)
	}
}

// link puts a breaker into the ring as the last one used.
func (s *keyBreakers) link(e *keyBreaker) {
	last := s.ends.older
	e.older, e.newer = last, &s.ends
	last.newer, s.ends.older = e, e
}

func (s *keyBreakers) unlink(e *keyBreaker) {
	e.older.newer, e.newer.older = e.newer, e.older
}

// period returns in which open period a breaker is, and whether a probe may go. It is 0
// while calls pass.
func (b *Breaker) period() (n uint64, ready bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase.Passing() {
		return 0, false
	}
	return b.opened, b.state.Ready(&b.kernel, now)
}

// refusalNow says that it is worth asking again at any time.
func (b *Breaker) refusalNow() *OpenError {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var cause error
	if b.refusal != nil {
		cause = b.refusal.Cause
	}
	return b.openError(now, cause)
}

// givesWay reports whether a record is not to be the probe now, once in an open period:
// others wait that have not failed one, or longer ago.
func (e *keyBreaker) givesWay(period uint64, past *usage) bool {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if past.used == 0 || past.yielded == period || t.period != period || !t.some || t.oldest >= past.used {
		return false
	}
	past.yielded = period
	return true
}

// waitsIn notes that a record waits for the end of an open period, which may be the
// probe then.
func (e *keyBreaker) waitsIn(period uint64, failed int) {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.period != period {
		t.period, t.some = period, false
	}
	if !t.some || failed < t.oldest {
		t.some, t.oldest = true, failed
	}
}

// failedProbe numbers the failure of a record over which the breaker is open.
func (e *keyBreaker) failedProbe() int {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed++
	return t.failed
}
