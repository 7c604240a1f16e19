package courier

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// DefaultDLQCapacity is the default capacity of a [MemoryDLQ].
const DefaultDLQCapacity = 10_000

// MemoryDLQ is a bounded queue in memory, safe for concurrent use. What is in
// it is lost when the process ends, while its records are marked at their
// source: keep it for records whose loss after a logged failure is acceptable,
// and use a durable [DLQ] otherwise.
//
// It returns the errors of its letters unchanged, and is a [KeyedDLQ]. The zero
// value is an empty queue of the default capacity. It must not be copied, and its
// fields must not be changed once it is in use.
type MemoryDLQ[T any] struct {
	// Capacity is the largest number of letters. 0 or less is [DefaultDLQCapacity].
	Capacity int

	// Identity names a record. With it the queue keeps one letter of a record for each
	// branch, however often the record is parked; records named "" are never the same.
	// It must be safe for concurrent use and always return the same name for a record.
	// If it is nil, a record that is parked twice has two letters.
	Identity func(record T) string

	mu     sync.Mutex
	slots  []memorySlot[T] // in the order of their places, gaps included
	live   int
	places uint64              // given so far
	byName map[inBranch]uint64 // the place of a record's letter, with an identity
	keys   map[inBranch]int    // letters of each key
}

// inBranch is a record's name, or a key, in a branch: each branch of a fan-out
// owes a record, and keeps the order of a key, by itself.
type inBranch struct{ branch, name string }

// memorySlot is a place with its letter, or where one was deleted.
type memorySlot[T any] struct {
	place, version uint64 // version 0 is a gap
	name           string
	letter         DeadLetter[T]
}

// Send stores a record, or returns [ErrDLQFull]. It replaces the letter of the same
// record and branch even if the queue is full.
func (q *MemoryDLQ[T]) Send(_ context.Context, letter DeadLetter[T]) error {
	name := ""
	if q.Identity != nil {
		name = q.Identity(letter.Record)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	id := inBranch{letter.Branch, name}
	if place, parked := q.byName[id]; parked && name != "" {
		i, _ := q.find(place)
		old := &q.slots[i].letter
		if letter.Reason == ReasonKeyParked {
			return nil
		}
		letter.FirstFailedAt, letter.FailedRedrives = old.FirstFailedAt, max(old.FailedRedrives, letter.FailedRedrives)
		q.set(i, letter)
		return nil
	}
	if q.live >= or(max(0, q.Capacity), DefaultDLQCapacity) {
		return ErrDLQFull
	}
	q.places++
	q.slots = append(q.slots, memorySlot[T]{place: q.places, name: name})
	q.live++
	if name != "" {
		if q.byName == nil {
			q.byName = make(map[inBranch]uint64)
		}
		q.byName[id] = q.places
	}
	q.set(len(q.slots)-1, letter)
	return nil
}

// Receive returns up to max of the oldest letters, in a slice that belongs to the caller,
// and removes none. The error is always nil.
func (q *MemoryDLQ[T]) Receive(ctx context.Context, max int) ([]DeadLetter[T], error) {
	return q.List(ctx, "", max)
}

// List returns up to max of the letters after a place. The error is nil unless after is
// neither empty nor an ID that this queue could have given.
func (q *MemoryDLQ[T]) List(_ context.Context, after string, max int) ([]DeadLetter[T], error) {
	var place uint64
	if after != "" {
		var ok bool
		if place, _, ok = parseID(after); !ok {
			return nil, fmt.Errorf("courier: the dead letter queue has no place %q to list from: pass the ID of one of its letters, or an empty one", after)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i, found := q.find(place)
	if found {
		i++
	}
	var letters []DeadLetter[T]
	for ; i < len(q.slots) && len(letters) < max; i++ {
		if q.slots[i].version > 0 {
			letters = append(letters, q.slots[i].letter)
		}
	}
	return letters, nil
}

// Update sets all but the ID, the place, the Record and the Branch of a letter.
// The error is always nil.
func (q *MemoryDLQ[T]) Update(_ context.Context, letter DeadLetter[T]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i, ok := q.current(letter.ID); ok {
		old := &q.slots[i].letter
		letter.Record, letter.Branch = old.Record, old.Branch
		q.set(i, letter)
	}
	return nil
}

// Delete removes letters by ID. The error is always nil.
func (q *MemoryDLQ[T]) Delete(_ context.Context, ids ...string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		i, ok := q.current(id)
		if !ok {
			continue
		}
		slot := &q.slots[i]
		q.uncount(&slot.letter)
		if slot.name != "" {
			delete(q.byName, inBranch{slot.letter.Branch, slot.name})
		}
		*slot = memorySlot[T]{place: slot.place}
		q.live--
	}
	q.compact()
	return nil
}

// Count returns the number of letters. The error is always nil.
func (q *MemoryDLQ[T]) Count(context.Context) (int, error) { return q.count(), nil }

func (q *MemoryDLQ[T]) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.live
}

// itself is how a queue in memory is known, also inside one of the user's.
func (q *MemoryDLQ[T]) itself() any { return q }

// inMemory counts the letters that decorators have parked in a [MemoryDLQ], each of
// those once.
func inMemory(parkers []*parker) (letters int) {
	counted := make(map[any]bool)
	for _, p := range parkers {
		q, ok := p.queue.(interface {
			itself() any
			count() int
		})
		var ignored error // of a queue that is none
		isolate(&ignored, func() error {
			if ok && !counted[q.itself()] {
				counted[q.itself()] = true
				letters += q.count()
			}
			return nil
		})
	}
	return letters
}

// ParkedKeys returns those of the keys that letters of the branch have. The error
// is always nil.
func (q *MemoryDLQ[T]) ParkedKeys(_ context.Context, branch string, keys []string) ([]string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var parked []string
	for _, key := range keys {
		if q.keys[inBranch{branch, key}] > 0 {
			parked = append(parked, key)
		}
	}
	return parked, nil
}

// set puts a letter into a slot, under a new ID.
func (q *MemoryDLQ[T]) set(i int, letter DeadLetter[T]) {
	slot := &q.slots[i]
	if slot.version > 0 {
		q.uncount(&slot.letter)
	}
	if letter.Key != "" {
		if q.keys == nil {
			q.keys = make(map[inBranch]int)
		}
		q.keys[inBranch{letter.Branch, letter.Key}]++
	}
	slot.version++
	letter.ID = strconv.FormatUint(slot.place, 10) + "." + strconv.FormatUint(slot.version, 10)
	slot.letter = letter
}

func (q *MemoryDLQ[T]) uncount(letter *DeadLetter[T]) {
	if letter.Key == "" {
		return
	}
	key := inBranch{letter.Branch, letter.Key}
	if q.keys[key]--; q.keys[key] == 0 {
		delete(q.keys, key)
	}
}

// find returns where a place is, or would be.
func (q *MemoryDLQ[T]) find(place uint64) (int, bool) {
	return slices.BinarySearchFunc(q.slots, place, func(s memorySlot[T], place uint64) int {
		switch {
		case s.place < place:
			return -1
		case s.place > place:
			return 1
		}
		return 0
	})
}

// current returns the slot of the letter that has the ID now.
func (q *MemoryDLQ[T]) current(id string) (int, bool) {
	place, version, ok := parseID(id)
	if !ok {
		return 0, false
	}
	i, found := q.find(place)
	return i, found && version > 0 && q.slots[i].version == version
}

// compact drops the gaps once they are as many as the letters, so that deleting
// costs the same however full the queue is.
func (q *MemoryDLQ[T]) compact() {
	if gaps := len(q.slots) - q.live; gaps > 0 && gaps >= q.live {
		q.slots = slices.DeleteFunc(q.slots, func(s memorySlot[T]) bool { return s.version == 0 })
	}
}

// parseID splits an ID of the form place.version.
func parseID(id string) (place, version uint64, ok bool) {
	first, second, found := strings.Cut(id, ".")
	place, err1 := strconv.ParseUint(first, 10, 64)
	version, err2 := strconv.ParseUint(second, 10, 64)
	return place, version, found && err1 == nil && err2 == nil
}
