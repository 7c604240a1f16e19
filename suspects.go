package courier

import (
	"reflect"
	"time"
)

// suspect is a pending record over which a breaker opened, or stayed open when
// the record was the probe.
type suspect[T any] struct {
	record T
	name   string // where the source names records
	past   history
	seen   time.Time // last
}

// suspects is what a polling coordinator remembers of pending records from
// pass to pass. One failing record cannot tell poison from outage. So another
// record is the next probe (P-3); and the attempts that the suspect used while
// the breaker was closed are kept (P-2), so that once the destination is well
// it is exhausted and parked instead of opening the breaker for ever.
type suspects[T any] struct {
	identity func(T) string // nil compares with reflect.DeepEqual
	clock    Clock
	limit    int
	list     []suspect[T] // oldest first
	hint     int          // where the last search ended: fetches keep their order
}

// suspectFor is how long a suspect is remembered that is not seen again: longer
// than any lease should be, and not for ever, for it may have been settled by
// somebody else.
const suspectFor = time.Hour

// name asks the source what a record is called. A source that panics over it
// has named nothing: the record is compared by its content.
func (s *suspects[T]) name(record T) (name string) {
	if s.identity == nil {
		return ""
	}
	var err error
	isolate(&err, func() error {
		name = s.identity(record)
		return nil
	})
	return name
}

// find returns the index of a record in the list, or -1.
func (s *suspects[T]) find(record T) int {
	if len(s.list) == 0 {
		return -1
	}
	name := s.name(record)
	for n := range s.list {
		i := (s.hint + n) % len(s.list)
		if sus := &s.list[i]; name != "" && name == sus.name || name == "" && reflect.DeepEqual(sus.record, record) {
			s.hint = i + 1
			sus.seen = s.clock.Now()
			return i
		}
	}
	return -1
}

// note remembers a record and the attempts it has used, as the latest suspect.
// The oldest one makes room.
func (s *suspects[T]) note(record T, past history) {
	s.drop(record)
	if len(s.list) >= s.limit {
		s.remove(0)
	}
	s.list = append(s.list, suspect[T]{record, s.name(record), past, s.clock.Now()})
}

// drop forgets a record that has its verdict.
func (s *suspects[T]) drop(record T) {
	if i := s.find(record); i >= 0 {
		s.remove(i)
	}
}

func (s *suspects[T]) remove(i int) {
	copy(s.list[i:], s.list[i+1:])
	clear(s.list[len(s.list)-1:])
	s.list = s.list[:len(s.list)-1]
}

// forgetUnseen drops the suspects that have not been met for long.
func (s *suspects[T]) forgetUnseen() {
	for i := len(s.list) - 1; i >= 0; i-- {
		if s.clock.Now().Sub(s.list[i].seen) > suspectFor {
			s.remove(i)
		}
	}
}

// histories returns what was used on each record, nil when nothing was.
func (s *suspects[T]) histories(records []T) (past []history) {
	for i, record := range records {
		if len(s.list) == 0 {
			return past
		}
		if j := s.find(record); j >= 0 && s.list[j].past != nil {
			if past == nil {
				past = make([]history, len(records))
			}
			past[i] = s.list[j].past
		}
	}
	return past
}

// probe picks the record to try while the breaker may be probed: the first one
// that is no suspect, else the one that has been suspect the longest. Where
// there are keys, a record behind another of its key is out of question.
func (s *suspects[T]) probe(records []T, keys []string) int {
	pick, oldest := 0, len(s.list)
	met := make(map[string]bool)
	for i, record := range records {
		if keys != nil && met[keys[i]] {
			continue
		}
		if keys != nil {
			met[keys[i]] = true
		}
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

// split tells the suspects among the records, and what is behind one of its key,
// from the others.
func (s *suspects[T]) split(records []T, keys []string) (others, suspected []T) {
	behind := make(map[string]bool)
	for i, record := range records {
		switch {
		case keys != nil && behind[keys[i]]:
			suspected = append(suspected, record)
		case s.find(record) >= 0:
			suspected = append(suspected, record)
			if keys != nil {
				behind[keys[i]] = true
			}
		default:
			others = append(others, record)
		}
	}
	return others, suspected
}
