package engine

import "time"

// Suspects is what a polling coordinator remembers of pending records from pass to pass, by
// how each is known: those over which a breaker opened, or stayed open when the record was
// the probe, and the attempts that they have used. It is bounded. One failing record cannot
// tell poison from outage. So another record is the next probe; and the attempts that the
// suspect used while the breaker was closed are kept, so that once the destination is well
// it is exhausted and parked instead of opening the breaker for ever. The zero K is of no
// record.
type Suspects[K comparable, P any] struct {
	limit int
	list  []suspect[K, P] // oldest first
	hint  int             // where the last search ended: fetches keep their order

	favoured bool // the last probe was a suspect
}

type suspect[K comparable, P any] struct {
	key  K
	past P         // what was used on it
	seen time.Time // last
	turn time.Time // when it last failed, or was picked as the probe for having waited
}

// SuspectFor is how long a suspect is remembered that is not seen again: longer than any
// lease should be, and not for ever, for it may have been settled by somebody else.
const SuspectFor = time.Hour

// NewSuspects returns room for so many suspects.
func NewSuspects[K comparable, P any](limit int) Suspects[K, P] { return Suspects[K, P]{limit: limit} }

// Len returns how many there are.
func (s *Suspects[K, P]) Len() int { return len(s.list) }

// find returns the index of a record in the list, or -1.
func (s *Suspects[K, P]) find(key K, now time.Time) int {
	var none K
	if key == none {
		return -1
	}
	for n := range s.list {
		i := (s.hint + n) % len(s.list)
		if one := &s.list[i]; one.key == key {
			s.hint = i + 1
			one.seen = now
			return i
		}
	}
	return -1
}

// Has reports whether a record is a suspect.
func (s *Suspects[K, P]) Has(key K, now time.Time) bool { return s.find(key, now) >= 0 }

// Past returns what was used on a record, the zero P where it is no suspect.
func (s *Suspects[K, P]) Past(key K, now time.Time) (past P) {
	if i := s.find(key, now); i >= 0 {
		past = s.list[i].past
	}
	return past
}

// Note remembers a record and what was used on it, as the latest suspect. The oldest one
// makes room.
func (s *Suspects[K, P]) Note(key K, past P, now time.Time) {
	var none K
	if key == none {
		return
	}
	s.Drop(key, now)
	if len(s.list) >= s.limit {
		s.remove(0)
	}
	s.list = append(s.list, suspect[K, P]{key, past, now, now})
}

// Rename has a suspect known by another key. Where that is not sure, what was used on it is
// not the record's.
func (s *Suspects[K, P]) Rename(from, to K, sure bool, now time.Time) {
	i := s.find(from, now)
	if i < 0 {
		return
	}
	s.list[i].key = to
	if !sure {
		var none P
		s.list[i].past = none
	}
}

// Drop forgets a record that has its verdict.
func (s *Suspects[K, P]) Drop(key K, now time.Time) {
	if i := s.find(key, now); i >= 0 {
		s.remove(i)
	}
}

func (s *Suspects[K, P]) remove(i int) {
	copy(s.list[i:], s.list[i+1:])
	clear(s.list[len(s.list)-1:])
	s.list = s.list[:len(s.list)-1]
}

// ForgetUnseen drops the suspects that have not been met for long.
func (s *Suspects[K, P]) ForgetUnseen(now time.Time) {
	for i := len(s.list) - 1; i >= 0; i-- {
		if now.Sub(s.list[i].seen) > SuspectFor {
			s.remove(i)
		}
	}
}

// turnAfter is how long a suspect waits at most while other records are the probes. It may
// be healthy, and if a bad record opens the breaker whenever that closes, no other pass
// takes it.
const turnAfter = time.Minute

// Probe picks the record to try while the breaker may be probed: the first one that is no
// suspect, or one after it where some are to be passed over, in turn; else the one that has
// been suspect the longest. A suspect that has waited for its turn goes first, but not twice
// in a row. Where there are order keys, a record after another one of its key is out of
// question.
func (s *Suspects[K, P]) Probe(records []K, keys []string, pass int, now time.Time) int {
	pick, oldest := 0, len(s.list)
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
		j := s.find(record, now)
		if j < 0 {
			others = append(others, i)
			continue
		}
		if j < oldest {
			pick, oldest = i, j
		}
		if turn := s.list[j].turn; turn.Before(dueAt) || due < 0 && turn.Equal(dueAt) {
			due, dueAt = i, turn
		}
	}
	switch {
	case due >= 0 && !s.favoured:
		return due
	case len(others) > 0:
		return others[pass%len(others)]
	}
	return pick
}

// Picked notes that a record is the probe. After a suspect's turn the next probe is another
// record's, if there is one.
func (s *Suspects[K, P]) Picked(key K, now time.Time) {
	i := s.find(key, now)
	if s.favoured = i >= 0; s.favoured {
		s.list[i].turn = now
	}
}

// Suspected tells which records are suspects, or come after one of their order key.
func (s *Suspects[K, P]) Suspected(records []K, keys []string, now time.Time) []bool {
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
