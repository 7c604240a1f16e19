package courier

import "reflect"

// suspect is a pending record over which a breaker opened, or stayed open when
// the record was the probe.
type suspect[T any] struct {
	record T
	used   int // attempts that count against it
	seen   bool
}

// suspects is what a polling coordinator remembers of pending records from
// pass to pass. One failing record cannot tell poison from outage. So another
// record is the next probe (P-3); and the attempts that the suspect used while
// the breaker was closed are kept (P-2), so that once the destination is well
// it is exhausted and parked instead of opening the breaker for ever.
type suspects[T any] struct {
	identity func(T) string // nil compares with reflect.DeepEqual
	limit    int
	list     []suspect[T]
	hint     int // where the last search ended: fetches keep their order
}

func (s *suspects[T]) same(a, b T) bool {
	if s.identity != nil {
		return s.identity(a) == s.identity(b)
	}
	return reflect.DeepEqual(a, b)
}

// find returns the index of a record in the list, or -1.
func (s *suspects[T]) find(record T) int {
	for n := range s.list {
		i := (s.hint + n) % len(s.list)
		if s.same(s.list[i].record, record) {
			s.hint = i + 1
			return i
		}
	}
	return -1
}

// note remembers a record and the attempts it has used, as the latest suspect.
// The oldest one makes room.
func (s *suspects[T]) note(record T, used int) {
	s.drop(record)
	if len(s.list) >= s.limit {
		s.remove(0)
	}
	s.list = append(s.list, suspect[T]{record: record, used: used, seen: true})
}

// drop forgets a record that has its verdict.
func (s *suspects[T]) drop(record T) {
	if i := s.find(record); i >= 0 {
		s.remove(i)
	}
}

func (s *suspects[T]) remove(i int) {
	s.list = append(s.list[:i], s.list[i+1:]...)
	var none suspect[T]
	s.list[:len(s.list)+1][len(s.list)] = none
}

// usedBy returns the attempts used by each record, nil when none has any.
func (s *suspects[T]) usedBy(records []T) (used []int) {
	if len(s.list) == 0 {
		return nil
	}
	for i, record := range records {
		j := s.find(record)
		if j < 0 {
			continue
		}
		s.list[j].seen = true
		if s.list[j].used > 0 {
			if used == nil {
				used = make([]int, len(records))
			}
			used[i] = s.list[j].used
		}
	}
	return used
}

// forgetUnseen drops the suspects that usedBy has not met since the last call:
// when a fetch returned all that is pending, they are pending no more.
func (s *suspects[T]) forgetUnseen() {
	kept := s.list[:0]
	for _, sus := range s.list {
		if sus.seen {
			sus.seen = false
			kept = append(kept, sus)
		}
	}
	clear(s.list[len(kept):])
	s.list = kept
}

// probe picks the record to try while the breaker may be probed: the first one
// that is no suspect, else the one that has been suspect the longest.
func (s *suspects[T]) probe(records []T) int {
	pick, oldest := 0, len(s.list)
	for i, record := range records {
		j := s.find(record)
		if j < 0 {
			return i
		}
		if j < oldest {
			pick, oldest = i, j
		}
	}
	return pick
}
