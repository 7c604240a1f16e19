package engine

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Leases is the records in hand of a source that has their leases renewed, from the fetch
// until they are marked or given back. It knows them by their numbers, which grow from
// fetch to fetch. Its methods may be called by many goroutines; nil holds none.
type Leases[T any] struct {
	some atomic.Bool // spares the lock while nothing in hand is lost

	mu     sync.Mutex
	list   []lease[T] // by number
	next   int        // where find probably finds the next one, as records are asked for in order
	left   int        // how many of these have left
	lost   int        // how many are lost
	missed bool       // what enters next was not in hand when a renewal was asked for
}

type lease[T any] struct {
	record   T
	number   uint64
	state    leaseState
	regained bool // since the last renewal was asked for: it tells of the lease before
}

type leaseState uint8

const (
	leaseOpen leaseState = iota
	leaseSettled
	leaseLost
	leaseLeft
)

// find returns the record with a number, nil where it is not in hand.
func (l *Leases[T]) find(number uint64) *lease[T] {
	i := l.next
	if i >= len(l.list) || l.list[i].number != number {
		var ok bool
		i, ok = slices.BinarySearchFunc(l.list, number, func(one lease[T], n uint64) int { return cmp.Compare(one.number, n) })
		if !ok {
			return nil
		}
	}
	l.next = i + 1
	if l.list[i].state == leaseLeft {
		return nil
	}
	return &l.list[i]
}

// Enter has the records of a fetch in hand, of which the first has a number and the others
// those after it. It reports whether a renewal was asked for that has missed them.
func (l *Leases[T]) Enter(first uint64, records []T) (missed bool) {
	if l == nil || len(records) == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, record := range records {
		l.list = append(l.list, lease[T]{record: record, number: first + uint64(i)})
	}
	missed, l.missed = l.missed, false
	return missed
}

// Settle notes that n records, from one with a number on, have their verdicts: they are
// renewed until they leave, and cannot be lost any more.
func (l *Leases[T]) Settle(first uint64, n int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		if one := l.find(first + uint64(i)); one != nil && one.state == leaseOpen {
			one.state = leaseSettled
		}
	}
}

// Leave has records out of hand.
func (l *Leases[T]) Leave(numbers ...uint64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, number := range numbers {
		one := l.find(number)
		if one == nil {
			continue
		}
		if one.state == leaseLost {
			l.lost--
		}
		*one = lease[T]{number: number, state: leaseLeft}
		l.left++
	}
	if l.left > len(l.list)/2 {
		l.list = slices.DeleteFunc(l.list, func(one lease[T]) bool { return one.state == leaseLeft })
		l.left = 0
	}
	l.some.Store(l.lost > 0)
}

// Regain notes that the source has handed a record out again that is in hand.
func (l *Leases[T]) Regain(number uint64, record T) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.find(number); one != nil {
		if one.state == leaseLost {
			l.lost--
			one.state = leaseOpen
		}
		one.record, one.regained = record, true
	}
	l.some.Store(l.lost > 0)
}

// Ask notes that a renewal was asked for at once, which may miss what is being fetched.
func (l *Leases[T]) Ask() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missed = true
}

// Renewable returns what is to be renewed, in the order fetched: all that is in hand. What is
// lost is named until it has left: by that a source knows what is still in work.
func (l *Leases[T]) Renewable() (records []T, numbers []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.list {
		one := &l.list[i]
		if one.regained = false; one.state != leaseLeft {
			records, numbers = append(records, one.record), append(numbers, one.number)
		}
	}
	return records, numbers
}

// Lose notes that a renewal found that somebody else has a record, and reports whether that
// matters: one that was settled meanwhile may be found gone, and one that the source has
// handed out again meanwhile has another lease.
func (l *Leases[T]) Lose(number uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.find(number)
	if one == nil || one.state != leaseOpen || one.regained {
		return false
	}
	one.state = leaseLost
	l.lost++
	l.some.Store(true)
	return true
}

// Some reports whether anything in hand is lost.
func (l *Leases[T]) Some() bool { return l != nil && l.some.Load() }

// Lost reports whether a record in hand is lost.
func (l *Leases[T]) Lost(number uint64) bool {
	if !l.Some() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.find(number)
	return one != nil && one.state == leaseLost
}
