package engine

import (
	"math"
	"time"
)

// Suspects is what a polling coordinator remembers of pending records from pass to pass, by
// how each is known: those over which a breaker opened, or stayed open when the record was
// the probe, and the attempts that they have used. It is bounded. One failing record cannot
// tell poison from outage. So another record is the next probe; and the attempts that the
// suspect used while the breaker was closed are kept, so that once the destination is well
// it is exhausted and parked instead of opening the breaker for ever. The zero K is of no
// record.
type Suspects[K comparable, U any] struct {
	limits Limits
	known  map[K]*suspect[U]
	bare   int    // of which nothing was used
	ages   uint64 // how often one was noted

	favoured bool // the last probe was a suspect
}

// Limits is how many records are remembered: in all, and of those on which nothing was
// used, which are worth less.
type Limits struct{ All, Bare int }

type suspect[U any] struct {
	age  uint64 // the oldest has the least
	past []U    // the attempts that each retry has used on it
	seen time.Time
	turn time.Time // when it last failed, or was picked as the probe for having waited
}

// SuspectFor is how long a suspect is remembered that is not seen again: longer than any
// lease should be, and not for ever, for it may have been settled by somebody else.
const SuspectFor = time.Hour

// NewSuspects returns room for suspects.
func NewSuspects[K comparable, U any](limits Limits) Suspects[K, U] {
	return Suspects[K, U]{limits: limits, known: make(map[K]*suspect[U])}
}

// Len returns how many there are.
func (s *Suspects[K, U]) Len() int { return len(s.known) }

// Room returns how many more there is room for.
func (s *Suspects[K, U]) Room() int { return s.limits.All - len(s.known) }

// find returns the suspect with a key, nil if there is none.
func (s *Suspects[K, U]) find(key K, now time.Time) *suspect[U] {
	one := s.known[key]
	if one != nil && now.After(one.seen) {
		one.seen = now
	}
	return one
}

// Has reports whether a record is a suspect.
func (s *Suspects[K, U]) Has(key K, now time.Time) bool { return s.find(key, now) != nil }

// Past returns what was used on a record, nil where it is no suspect.
func (s *Suspects[K, U]) Past(key K, now time.Time) []U {
	if one := s.find(key, now); one != nil {
		return one.past
	}
	return nil
}

// Note remembers a record and what was used on it, as the latest suspect. The oldest one
// makes room, of those on which nothing was used if there are any.
func (s *Suspects[K, U]) Note(key K, past []U, now time.Time) {
	var none K
	if key == none {
		return
	}
	s.Drop(key)
	if len(past) == 0 && s.bare >= s.limits.Bare || len(s.known) >= s.limits.All {
		s.dropOldest(s.bare > 0)
	}
	s.ages++
	s.known[key] = &suspect[U]{s.ages, past, now, now}
	if len(past) == 0 {
		s.bare++
	}
}

func (s *Suspects[K, U]) dropOldest(bare bool) {
	var oldest K
	age := s.ages + 1
	for key, one := range s.known {
		if one.age < age && (!bare || len(one.past) == 0) {
			oldest, age = key, one.age
		}
	}
	s.Drop(oldest)
}

// Await has a record remembered that is not to be seen before some time.
func (s *Suspects[K, U]) Await(key K, until time.Time) {
	s.find(key, until)
}

// Rename has a suspect known by another key. Where that is not sure, what was used on it is
// not the record's.
func (s *Suspects[K, U]) Rename(from, to K, sure bool, now time.Time) {
	one := s.find(from, now)
	if one == nil || from == to {
		return
	}
	s.Drop(from)
	s.Drop(to)
	var none K
	if to == none {
		return
	}
	if !sure {
		one.past = nil
	}
	if s.known[to] = one; len(one.past) == 0 {
		s.bare++
	}
}

// Drop forgets a record that has its verdict.
func (s *Suspects[K, U]) Drop(key K) {
	one := s.known[key]
	if one == nil {
		return
	}
	delete(s.known, key)
	if len(one.past) == 0 {
		s.bare--
	}
}

// ForgetUnseen drops the suspects that have not been met for long.
func (s *Suspects[K, U]) ForgetUnseen(now time.Time) {
	for key, one := range s.known {
		if now.Sub(one.seen) > SuspectFor {
			s.Drop(key)
		}
	}
}

// turnAfter is how long a suspect waits at most while other records are the probes. It may
// be healthy, and if a bad record opens the breaker whenever that closes, no other pass
// takes it.
const turnAfter = time.Minute

// Probe picks the record to try while the breaker may be probed: of those that are no
// suspects the one that choose says, given how many they are; else the one that has been
// suspect the longest. A suspect that has waited for its turn goes first, but not twice in a
// row. Where there are order keys, a record after another one of its key is out of question.
func (s *Suspects[K, U]) Probe(records []K, keys []string, choose func(n int) int, now time.Time) int {
	pick, oldest := 0, s.ages+1
	due, dueAt := -1, now.Add(-turnAfter)
	var others []int
	met := make(map[string]bool)
	for i, record := range records {
		if keys != nil && met[keys[i]] {
			continue
		}
		if keys != nil {
			met[keys[i]] = true
		}
		one := s.find(record, now)
		if one == nil {
			others = append(others, i)
			continue
		}
		if one.age < oldest {
			pick, oldest = i, one.age
		}
		if turn := one.turn; turn.Before(dueAt) || due < 0 && turn.Equal(dueAt) {
			due, dueAt = i, turn
		}
	}
	switch {
	case due >= 0 && !s.favoured:
		return due
	case len(others) > 0:
		return others[choose(len(others))]
	}
	return pick
}

// Spread chooses one of n records for the i-th time, as far as can be from those before
// (multiples of the golden ratio, modulo 1): bad ones that stand together are not chosen one
// after the other.
func Spread(i, n int) int {
	_, part := math.Modf(float64(i) * (math.Phi - 1))
	return int(part * float64(n))
}

// Picked notes that a record is the probe. After a suspect's turn the next probe is another
// record's, if there is one.
func (s *Suspects[K, U]) Picked(key K, now time.Time) {
	one := s.find(key, now)
	if s.favoured = one != nil; s.favoured {
		one.turn = now
	}
}

// Suspected tells which records are suspects, or come after one of their order key.
func (s *Suspects[K, U]) Suspected(records []K, keys []string, now time.Time) []bool {
	suspected := make([]bool, len(records))
	behind := make(map[string]bool)
	for i, record := range records {
		switch {
		case keys != nil && behind[keys[i]]:
			suspected[i] = true
		case s.Has(record, now):
			suspected[i] = true
			if keys != nil {
				behind[keys[i]] = true
			}
		}
	}
	return suspected
}
