package engine

import (
	"cmp"
	"slices"
	"time"
)

// Waiter is a record that waits in hand.
type Waiter[V any] struct {
	Value  V
	Key    string    // its order key, "" where no order was asked for
	Number uint64    // in the order in which the records came into hand
	Due    time.Time // when it is to be applied, see Hold; the zero time is at once
	turn   uint64    // among all that were held
}

// Waiting is the records in hand that are not to be applied now: those that are held until
// they are due, and those behind them, or behind one in work, in the order of their key.
// The zero value has none.
type Waiting[V any] struct {
	held   Heap[Waiter[V]] // the one that is due first is the first
	keys   map[string]*keyQueue[V]
	behind int // records in the queues
	turns  uint64
}

// keyQueue is an order key of which something is held or in work.
type keyQueue[V any] struct {
	inWork int
	held   []heldOne       // the records that are held, the first one first
	behind Heap[Waiter[V]] // by number
}

type heldOne struct {
	number uint64
	due    time.Time
}

// place returns where the record with a number is among those that are held, or has its
// place.
func (q *keyQueue[V]) place(number uint64) int {
	i, _ := slices.BinarySearchFunc(q.held, number, func(one heldOne, n uint64) int { return cmp.Compare(one.number, n) })
	return i
}

func (w *Waiting[V]) queue(key string) *keyQueue[V] {
	q := w.keys[key]
	if q == nil {
		if w.keys == nil {
			w.keys = make(map[string]*keyQueue[V])
		}
		q = &keyQueue[V]{behind: Heap[Waiter[V]]{Before: func(a, b *Waiter[V]) bool { return a.Number < b.Number }}}
		w.keys[key] = q
	}
	return q
}

// Hold has a record wait until it is due.
func (w *Waiting[V]) Hold(one Waiter[V]) {
	if w.held.Before == nil {
		w.held.Before = func(a, b *Waiter[V]) bool {
			c := a.Due.Compare(b.Due)
			return c < 0 || c == 0 && a.turn < b.turn
		}
	}
	if one.Key != "" {
		q := w.queue(one.Key)
		q.held = slices.Insert(q.held, q.place(one.Number), heldOne{one.Number, one.Due})
	}
	w.push(one)
}

func (w *Waiting[V]) push(one Waiter[V]) {
	w.turns++
	one.turn = w.turns
	w.held.Push(one)
}

// Behind has a record wait until no earlier one of its key is held, and none is in work.
func (w *Waiting[V]) Behind(one Waiter[V]) {
	w.queue(one.Key).behind.Push(one)
	w.behind++
}

// Begin notes that a record of a key is in work, and End that it is not any more. End
// returns the records behind it that are free now.
func (w *Waiting[V]) Begin(key string) { w.queue(key).inWork++ }

// End is the end of what Begin notes.
func (w *Waiting[V]) End(key string) (free []Waiter[V]) {
	w.keys[key].inWork--
	return w.open(key)
}

// open takes out the records of a key that nothing holds up any more.
func (w *Waiting[V]) open(key string) (free []Waiter[V]) {
	q := w.keys[key]
	if q == nil || q.inWork > 0 {
		return nil
	}
	for len(q.behind.Items) > 0 && (len(q.held) == 0 || q.behind.Items[0].Number < q.held[0].number) {
		free = append(free, q.behind.Pop())
		w.behind--
	}
	if len(q.held) == 0 {
		delete(w.keys, key)
	}
	return free
}

// Busy reports whether a record of a key is held or in work.
func (w *Waiting[V]) Busy(key string) bool {
	q := w.keys[key]
	return q != nil && (q.inWork > 0 || len(q.held) > 0)
}

// Len returns how many records wait, and Held how many of these are held until they are
// due.
func (w *Waiting[V]) Len() int { return len(w.held.Items) + w.behind }

// Held is a part of Len.
func (w *Waiting[V]) Held() int { return len(w.held.Items) }

// Next returns when the first record is due, and whether any is held.
func (w *Waiting[V]) Next() (due time.Time, some bool) {
	if some = len(w.held.Items) > 0; some {
		due = w.held.Items[0].Due
	}
	return due, some
}

// First returns the record that is due first, nil if none is held.
func (w *Waiting[V]) First() *Waiter[V] {
	if len(w.held.Items) == 0 {
		return nil
	}
	return &w.held.Items[0]
}

// AnyHeld reports whether there is a record, among those that are held until they are due,
// that is so.
func (w *Waiting[V]) AnyHeld(is func(value *V) bool) bool {
	for i := range w.held.Items {
		if is(&w.held.Items[i].Value) {
			return true
		}
	}
	return false
}

// TakeDue takes out the records that are due, in the order in which they were held, and
// those behind them that are free now. One that is due before an earlier one of its key
// waits for that.
func (w *Waiting[V]) TakeDue(now time.Time) (due, free []Waiter[V]) {
	for len(w.held.Items) > 0 && !now.Before(w.held.Items[0].Due) {
		one := w.held.Pop()
		if one.Key == "" {
			due = append(due, one)
			continue
		}
		q := w.keys[one.Key]
		if first := q.held[0]; first.number < one.Number {
			one.Due = first.due
			q.held[q.place(one.Number)].due = first.due // for those behind it
			w.push(one)
			continue
		}
		q.leave(one.Number)
		due = append(due, one)
		free = append(free, w.open(one.Key)...)
	}
	slices.SortFunc(due, func(a, b Waiter[V]) int { return cmp.Compare(a.turn, b.turn) })
	return due, free
}

func (q *keyQueue[V]) leave(number uint64) {
	i := q.place(number)
	q.held = slices.Delete(q.held, i, i+1)
}

// TakeHeld takes out all records that are held, in the order in which they were. Their
// keys stay as busy as they are: it is for the end of a run.
func (w *Waiting[V]) TakeHeld() []Waiter[V] {
	held := w.held.Items
	w.held.Items = nil
	slices.SortFunc(held, func(a, b Waiter[V]) int { return cmp.Compare(a.turn, b.turn) })
	return held
}

// TakeBehind takes out all records that wait for others of their key, in the order in
// which they came into hand.
func (w *Waiting[V]) TakeBehind() (behind []Waiter[V]) {
	for _, q := range w.keys {
		behind = append(behind, q.behind.Items...)
		q.behind.Items = nil
	}
	w.behind = 0
	byNumber(behind)
	return behind
}

// Remove takes out the records that are gone, and those behind them that are free now.
func (w *Waiting[V]) Remove(gone func(one *Waiter[V]) bool) (removed, free []Waiter[V]) {
	w.held.Keep(func(one Waiter[V]) bool {
		if !gone(&one) {
			return true
		}
		removed = append(removed, one)
		if one.Key != "" {
			w.keys[one.Key].leave(one.Number)
		}
		return false
	})
	for key, q := range w.keys {
		q.behind.Keep(func(one Waiter[V]) bool {
			if !gone(&one) {
				return true
			}
			removed = append(removed, one)
			w.behind--
			return false
		})
		free = append(free, w.open(key)...)
	}
	byNumber(removed)
	byNumber(free)
	return removed, free
}

// Each shows every record, in any order.
func (w *Waiting[V]) Each(show func(one *Waiter[V])) {
	for i := range w.held.Items {
		show(&w.held.Items[i])
	}
	for _, q := range w.keys {
		for i := range q.behind.Items {
			show(&q.behind.Items[i])
		}
	}
}

// All returns all records, in the order in which they came into hand.
func (w *Waiting[V]) All() (all []Waiter[V]) {
	w.Each(func(one *Waiter[V]) { all = append(all, *one) })
	byNumber(all)
	return all
}

func byNumber[V any](some []Waiter[V]) {
	slices.SortFunc(some, func(a, b Waiter[V]) int { return cmp.Compare(a.Number, b.Number) })
}
