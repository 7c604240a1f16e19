package courier

import (
	"reflect"
	"time"
)

// recordKey is how a poller knows a record again: by its name, by its value, or,
// while the record stays in hand, by its number in the order fetched. The zero key
// is of no record.
type recordKey struct {
	name   string
	value  any
	number uint64
}

// suspect is a pending record over which a breaker opened, or stayed open when
// the record was the probe.
type suspect struct {
	key  recordKey
	past history
	seen time.Time // last
	turn time.Time // when it last failed, or was picked as the probe for having waited
}

// suspects is what a polling coordinator remembers of pending records from
// pass to pass. One failing record cannot tell poison from outage. So another
// record is the next probe (P-3); and the attempts that the suspect used while
// the breaker was closed are kept (P-2), so that once the destination is well
// it is exhausted and parked instead of opening the breaker for ever.
type suspects struct {
	clock Clock
	limit int
	list  []suspect // oldest first
	hint  int       // where the last search ended: fetches keep their order

	favoured bool // the last probe was a suspect
}

// suspectFor is how long a suspect is remembered that is not seen again: longer
// than any lease should be, and not for ever, for it may have been settled by
// somebody else.
const suspectFor = time.Hour

// find returns the index of a record in the list, or -1.
func (s *suspects) find(key recordKey) int {
	if key == (recordKey{}) {
		return -1
	}
	for n := range s.list {
		i := (s.hint + n) % len(s.list)
		if sus := &s.list[i]; sus.key == key {
			s.hint = i + 1
			sus.seen = s.clock.Now()
			return i
		}
	}
	return -1
}

// note remembers a record and the attempts it has used, as the latest suspect.
// The oldest one makes room.
func (s *suspects) note(key recordKey, past history) {
	if key == (recordKey{}) {
		return
	}
	s.drop(key)
	if len(s.list) >= s.limit {
		s.remove(0)
	}
	now := s.clock.Now()
	s.list = append(s.list, suspect{key, past, now, now})
}

// rename has a suspect known by another key. Where that is not sure, the attempts
// are not the record's.
func (s *suspects) rename(from, to recordKey, sure bool) {
	i := s.find(from)
	if i < 0 {
		return
	}
	s.list[i].key = to
	if !sure {
		s.list[i].past = nil
	}
}

// drop forgets a record that has its verdict.
func (s *suspects) drop(key recordKey) {
	if i := s.find(key); i >= 0 {
		s.remove(i)
	}
}

func (s *suspects) remove(i int) {
	copy(s.list[i:], s.list[i+1:])
	clear(s.list[len(s.list)-1:])
	s.list = s.list[:len(s.list)-1]
}

// forgetUnseen drops the suspects that have not been met for long.
func (s *suspects) forgetUnseen() {
	for i := len(s.list) - 1; i >= 0; i-- {
		if s.clock.Now().Sub(s.list[i].seen) > suspectFor {
			s.remove(i)
		}
	}
}

// histories returns what was used on each record, nil when nothing was.
func (s *suspects) histories(ids []recordKey) (past []history) {
	for i, id := range ids {
		if len(s.list) == 0 {
			return past
		}
		if j := s.find(id); j >= 0 && s.list[j].past != nil {
			if past == nil {
				past = make([]history, len(ids))
			}
			past[i] = s.list[j].past
		}
	}
	return past
}

// turnAfter is how long a suspect waits at most while other records are the probes.
// It may be healthy, and if a bad record opens the breaker whenever that closes, no
// other pass takes it.
const turnAfter = time.Minute

// probe picks the record to try while the breaker may be probed: the first one
// that is no suspect, or one after it where some are to be passed over, in turn;
// else the one that has been suspect the longest. A suspect that has waited for its
// turn goes first, but not twice in a row. Where there are keys, a record after
// another one of its key is out of question.
func (s *suspects) probe(ids []recordKey, keys []string, pass int) int {
	pick, oldest := 0, len(s.list)
	due, dueAt := -1, s.clock.Now().Add(-turnAfter)
	var others []int
	met := make(map[string]bool)
	for i, id := range ids {
		if keys != nil && met[keys[i]] {
			continue
		}
		if keys != nil {
			met[keys[i]] = true
		}
		j := s.find(id)
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

// picked notes that a record is the probe. After a suspect's turn the next probe is
// another record's, if there is one.
func (s *suspects) picked(key recordKey) {
	i := s.find(key)
	if s.favoured = i >= 0; s.favoured {
		s.list[i].turn = s.clock.Now()
	}
}

// suspected tells which records are suspects, or behind one of their key.
func (s *suspects) suspected(ids []recordKey, keys []string) []bool {
	suspected := make([]bool, len(ids))
	behind := make(map[string]bool)
	for i, id := range ids {
		switch {
		case keys != nil && behind[keys[i]]:
			suspected[i] = true
		case s.find(id) >= 0:
			suspected[i] = true
			if keys != nil {
				behind[keys[i]] = true
			}
		}
	}
	return suspected
}

// identity is how a poller knows the records of its source again.
type identity[T any] struct {
	name    func(T) string // nil when nobody names them
	byValue bool           // by its value
	unsure  bool           // though that may be another one when it comes again

	// comparable says that equal values are the same record, if they are equal.
	comparable bool

	// inHand is for records that cannot be known again once the source has
	// returned them anew: those that a breaker interrupts stay in hand until they
	// are settled.
	inHand bool
	number uint64 // of the last record that has one
}

// identityOf says how records are known: as the user names them, or the source
// does; a number or a string by its value. Any other value is no name: a handler
// may set a field of a record, and a row may have another time or count at each
// fetch. It has to do for a source whose leases cannot be renewed, and so not held
// over a pause.
func identityOf[T any](source Source[T], c *config, once, renews bool) identity[T] {
	id := identity[T]{byValue: scalar(reflect.TypeFor[T]()), comparable: comparableValue(reflect.TypeFor[T]())}
	if named, ok := source.(Identifier[T]); ok {
		id.name = named.Identity
	}
	if f, ok := c.identityOf.(func(T) string); ok {
		id.name = f
	}
	_, leases := source.(Releaser[T])
	if !once && id.name == nil && !id.byValue && leases && !renews {
		id.unsure, id.byValue = true, id.comparable
	}
	id.inHand = once || id.name == nil && !id.byValue && !id.unsure
	return id
}

// keysOf returns how each record is known. A record over which the function panics
// has no name, and one that does not equal itself no value to be known by.
func (d *identity[T]) keysOf(records []T) []recordKey {
	keys := make([]recordKey, len(records))
	if d.inHand {
		for i := range keys {
			d.number++
			keys[i].number = d.number
		}
		return keys
	}
	for next := 0; d.name != nil && next < len(records); {
		var ignored error
		isolate(&ignored, func() error {
			for next < len(records) {
				next++ // before the call, which may panic
				keys[next-1].name = d.name(records[next-1])
			}
			return nil
		})
	}
	for i := range keys {
		if d.byValue && keys[i].name == "" && equal(records[i], records[i]) {
			keys[i].value = records[i]
		}
	}
	return keys
}

// lasting returns how each record is known again when the source returns it anew.
func (d *identity[T]) lasting(records []T) []recordKey {
	known := identity[T]{name: d.name, byValue: d.comparable}
	return known.keysOf(records)
}

// equal compares records whose type is comparable. One with a NaN in it equals none,
// not even itself.
func equal[T any](a, b T) bool { return any(a) == any(b) }

// scalar reports whether a type's values are numbers or strings.
func scalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// comparableValue reports whether two values of the type that are equal are the
// same to everybody: they have nothing behind a pointer.
func comparableValue(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface, reflect.Pointer, reflect.UnsafePointer, reflect.Chan:
		return false
	case reflect.Array:
		return comparableValue(t.Elem())
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() { // whose pointer is to a location
			return true
		}
		for i := range t.NumField() {
			if !comparableValue(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return t.Comparable()
}
