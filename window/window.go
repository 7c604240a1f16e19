// Package window tells how far a source has come that keeps a position instead of a mark
// for each record: the offset of a partition, the token of a page, a row's number.
//
// Records are settled out of order, and a position says only that everything before it is
// settled. A [Window] holds the records between the two: it takes them in the order in
// which the source reads them, and moves its position over those at the front that are
// settled. A source commits that position in Mark, one window for each partition:
//
//	ticket := w.Add(offset + 1) // in Fetch, for each record
//
//	w.Settle(ticket) // in Mark, for each record
//	if at := w.Position(); at != committed {
//		if err := commit(at); err != nil {
//			return err
//		}
//		committed = at
//	}
//
// Compare the position with the last one whose commit succeeded, as above. If the commit
// fails, the coordinator calls Mark again with the same records. They are settled by then,
// and the position moves no further, but it still has to be committed.
//
// A record that is given back stays in the window, and nothing beyond it is committed.
// After a crash the source reads again from the committed position, so that records
// settled beyond it are delivered a second time. [Window.Len] is how many records that
// can be at most: a source stops reading when it reaches a bound.
package window

import "iter"

// Window is the records of one partition that were read and are not behind its position.
// Make one with [New]. It is not safe for concurrent use.
//
// P is a position. Positions are not compared: their order is the order of the calls.
type Window[P any] struct {
	position P
	entries  []entry[P] // a ring, a power of two long
	first    uint64     // ticket of the oldest entry
	next     uint64     // ticket of the entry to come
	pending  int        // entries that are not settled
}

type entry[P any] struct {
	next    P
	settled bool
}

// Ticket names a record in its window. A ticket is given once.
type Ticket uint64

// New returns a window without records. from is the position that the source reads from.
func New[P any](from P) *Window[P] {
	return &Window[P]{position: from}
}

// Add notes a record that was read. next is the position to read from once this record
// and all before it are settled. For an offset that is the offset plus one; whether
// offsets are missing between two records makes no difference. For a page of which only
// the beginning has a position, next is the page's own position for every record but the
// last, and the position of the next page for the last record.
func (w *Window[P]) Add(next P) Ticket {
	w.grow()
	*w.at(w.next) = entry[P]{next: next}
	w.next++
	w.pending++
	return Ticket(w.next - 1)
}

// Skip notes that there is nothing to settle before next: the records up to there are
// deleted, or are of no interest to the source.
func (w *Window[P]) Skip(next P) {
	if w.first == w.next {
		w.position = next
		return
	}
	w.at(w.next - 1).next = next // a gap is over when the record before it is
}

// Settle notes that a record is done. Settling a record again changes nothing.
func (w *Window[P]) Settle(t Ticket) {
	if uint64(t) < w.first || uint64(t) >= w.next || w.at(uint64(t)).settled {
		return
	}
	w.at(uint64(t)).settled = true
	w.pending--
	for w.first < w.next && w.at(w.first).settled {
		oldest := w.at(w.first)
		w.position = oldest.next
		*oldest = entry[P]{}
		w.first++
	}
}

// Position is where the source would have to read on if the process ended now:
// everything before it is settled.
func (w *Window[P]) Position() P { return w.position }

// Len returns how many records the window holds: those that are not settled, and the
// settled ones after the first of these.
func (w *Window[P]) Len() int { return int(w.next - w.first) }

// Pending returns how many records are not settled.
func (w *Window[P]) Pending() int { return w.pending }

// Oldest returns the position that was given for the oldest record that is not settled,
// and false if all are.
func (w *Window[P]) Oldest() (next P, ok bool) {
	if w.first == w.next {
		return next, false
	}
	return w.at(w.first).next, true
}

// Beyond ranges over the positions given for the records that are settled after the first
// one that is not. A source that can keep them durably beside its position delivers only
// the others again.
func (w *Window[P]) Beyond() iter.Seq[P] {
	return func(yield func(P) bool) {
		for t := w.first; t < w.next; t++ {
			if e := w.at(t); e.settled && !yield(e.next) {
				return
			}
		}
	}
}

func (w *Window[P]) at(ticket uint64) *entry[P] {
	return &w.entries[ticket&uint64(len(w.entries)-1)]
}

// grow makes room for one more entry, and gives memory back that one slow record took.
func (w *Window[P]) grow() {
	const (
		least = 16
		spare = 1024 // is kept, so that batches do not take it anew each time
	)
	size := w.Len()
	switch {
	case size == len(w.entries):
		w.resize(max(least, 2*size))
	case len(w.entries) > spare && size < len(w.entries)/8:
		w.resize(len(w.entries) / 4)
	}
}

func (w *Window[P]) resize(size int) {
	old := *w
	w.entries = make([]entry[P], size)
	for t := w.first; t < w.next; t++ {
		*w.at(t) = *old.at(t)
	}
}
