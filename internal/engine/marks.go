package engine

// MarkQueue is the records that wait for their mark: in the order in which they were
// settled, or in the order fetched where that was asked for. Then a record that is not
// settled holds up the marks of all that were fetched after it.
type MarkQueue[T any] struct {
	ordered bool
	batch   int
	settled []T           // may be marked
	numbers []uint64      // of these, if anybody asks for them
	number  bool          // somebody does
	spare   []T           // memory for the next of them
	first   uint64        // the number of slots[0]
	slots   []markSlot[T] // in the order fetched, if ordered
}

type markSlot[T any] struct {
	record T
	fate   Fate
}

// Fate is what became of a record that was fetched, as far as the marks of others depend
// on it.
type Fate uint8

// The fates.
const (
	Unsettled Fate = iota // or given back: then for good
	Markable
	Gone // somebody else's: not to be marked, and in nobody's way
)

// NewMarkQueue returns a queue whose marks have up to a batch of records each, in the
// order fetched if ordered, and the numbers of the records if numbered.
func NewMarkQueue[T any](batch int, ordered, numbered bool) MarkQueue[T] {
	return MarkQueue[T]{batch: batch, ordered: ordered, number: numbered, first: 1}
}

// Ordered reports whether marks are in the order fetched.
func (q *MarkQueue[T]) Ordered() bool { return q.ordered }

// Enter gives a record that was fetched its place.
func (q *MarkQueue[T]) Enter(record T) {
	if q.ordered {
		q.slots = append(q.slots, markSlot[T]{record: record})
	}
}

// Leave says what became of a record, by its number in the order of Enter, of which the
// first is 1, where that matters to others.
func (q *MarkQueue[T]) Leave(number uint64, fate Fate) {
	if !q.ordered {
		return
	}
	q.slots[number-q.first].fate = fate
	for len(q.slots) > 0 && q.slots[0].fate != Unsettled {
		if q.slots[0].fate == Markable {
			q.Add(q.first, q.slots[0].record)
		}
		q.slots[0] = markSlot[T]{}
		q.slots = q.slots[1:]
		q.first++
	}
}

// HeldUp returns the records that are settled, and held up by one that is not.
func (q *MarkQueue[T]) HeldUp() (records []T) {
	for _, s := range q.slots {
		if s.fate == Markable {
			records = append(records, s.record)
		}
	}
	return records
}

// TakeHeldUp returns the same with their numbers, and forgets all records that are not
// ready.
func (q *MarkQueue[T]) TakeHeldUp() (records []T, numbers []uint64) {
	for i, s := range q.slots {
		if s.fate == Markable {
			numbers = append(numbers, q.first+uint64(i))
		}
	}
	records = q.HeldUp()
	q.slots = nil
	return records, numbers
}

// Settle has a record wait for its mark: in its place if ordered, else behind those that
// do.
func (q *MarkQueue[T]) Settle(number uint64, record T) {
	if q.ordered {
		q.Leave(number, Markable)
	} else {
		q.Add(number, record)
	}
}

// Add has records wait for their mark, behind those that do. The first has a number, and
// the others those after it.
func (q *MarkQueue[T]) Add(first uint64, records ...T) {
	if q.settled == nil {
		if q.settled, q.spare = q.spare, nil; q.settled == nil {
			q.settled = make([]T, 0, q.batch)
		}
	}
	q.settled = append(q.settled, records...)
	for i := 0; q.number && i < len(records); i++ {
		q.numbers = append(q.numbers, first+uint64(i))
	}
}

// Ready returns the records that may be marked. The slice is the queue's.
func (q *MarkQueue[T]) Ready() []T { return q.settled }

// Drop forgets the records that may be marked.
func (q *MarkQueue[T]) Drop() { q.settled, q.numbers = nil, nil }

// Take removes the first records that may be marked, for one call, with their numbers if
// anybody asks for them.
func (q *MarkQueue[T]) Take() (records []T, numbers []uint64) {
	n := min(len(q.settled), q.batch)
	if q.number {
		numbers, q.numbers = q.numbers[:n:n], q.numbers[n:]
	}
	if n == len(q.settled) { // with all its memory, for reuse
		records, q.settled = q.settled, nil
		return records, numbers
	}
	records, q.settled = q.settled[:n:n], q.settled[n:]
	return records, numbers
}

// PutBack returns records that could not be marked to their place.
func (q *MarkQueue[T]) PutBack(records []T, numbers []uint64) {
	q.settled, q.numbers = append(records, q.settled...), append(numbers, q.numbers...)
}

// Reuse takes the memory of records that are marked.
func (q *MarkQueue[T]) Reuse(records []T) {
	if q.spare == nil && cap(records) >= q.batch {
		clear(records)
		q.spare = records[:0]
	}
}
