package couriersql

import (
	"math"
	"slices"
	"sync"
	"time"
)

// head is where the fetches of a source begin. Each begins at the first number as
// long as that costs nothing. Rows that were delivered while something holds an old
// snapshot stay in the index, millions of them during a dump, and each fetch walks
// past them all: when two in a row took long, a fetch begins at the lowest number that the last one found,
// and at the first every so often, for rows that were committed late or that another
// relay gave back.
//
// Rows that failed are fetched by their time, whatever their number. A coordinator
// gives the others back that it does not settle; plain functions do not, and begin
// at the first number always.
type head struct {
	mu    sync.Mutex
	on    bool
	seq   int64         // the lowest number that the last fetch found
	until time.Time     // when to begin at the first again
	moves int           // how often rows were given back
	took  time.Duration // the last fetch from the first number
}

const (
	headCheap = 20 * time.Millisecond // what a fetch from the first number may take
	headShare = 20                    // else it may be one part in so many of the time
	headLate  = 5 * time.Second       // and rows wait for no longer than this
)

// begin is a new run of a coordinator.
func (h *head) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on, h.until, h.took = true, time.Time{}, 0
	h.moves++
}

// from is the number that a fetch begins at, and what sees wants to know.
func (h *head) from(now time.Time) (seq int64, moves int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if left := h.until.Sub(now); !h.on || left <= 0 || left > headLate { // the clock may have been set back
		return math.MinInt64, h.moves
	}
	return h.seq, h.moves
}

// sees notes what a fetch returned, in order.
func (h *head) sees(rows []Row, from int64, moves int, now time.Time, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if moves != h.moves {
		return
	}
	if from == math.MinInt64 {
		h.seq, h.until = from, time.Time{}
		// A single one may have been slow for an outage, after which rows that others
		// had in hand come free at lower numbers.
		if costs := min(took, h.took); costs > headCheap {
			h.until = now.Add(min(headShare*costs, headLate))
		}
		h.took = took
	}
	for _, row := range rows {
		if row.attempts() == 0 {
			h.seq = row.Seq
			return
		}
	}
}

// back has the next fetch begin at the first number.
func (h *head) back() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = time.Time{}
	h.moves++
}

// floor is where the fetches of an elected relay begin. In strict order a row that
// waits for an earlier one of its key, and one that is committed late, comes before the
// later ones of its key: fetches begin at a number only when no pending row has a lower
// one, and no transaction is left that could commit one.
//
// To know that takes two looks, once fetches are dear. The first finds the lowest pending
// number, and after it the transactions that write to the table: a lower number was given
// before, so that whoever has not committed it is among them. The second finds those
// transactions ended, and after that no lower number. Rows below the floor that came to be
// there in another way, such as by hand, wait for the next fetch from the first number.
type floor struct {
	seq   int64     // where to begin
	until time.Time // when to begin at the first number again
	look  time.Time // when a look is due; zero is never

	last    int64    // the highest number handed out
	noted   bool     // of the first look:
	lower   int64    // nothing pending was below it
	writers []string // the transactions
}

// A relay looks for a floor once a fetch has taken longer than floorCheap, and floorRow
// more for each row that it returned. A look costs as much as a fetch of one row.
const (
	floorCheap = 5 * time.Millisecond
	floorRow   = 10 * time.Microsecond
)

func newFloor() floor { return floor{seq: math.MinInt64, last: math.MinInt64} }

// from is the number that a fetch begins at.
func (f *floor) from(now time.Time) int64 {
	if left := f.until.Sub(now); left <= 0 || left > headLate { // the clock may have been set back
		return math.MinInt64
	}
	return f.seq
}

// sees notes what a fetch returned, and what it took. It reports whether a look is due.
func (f *floor) sees(rows []Row, from int64, now time.Time, took time.Duration) (look bool) {
	for _, row := range rows {
		f.last = max(f.last, row.Seq)
		if row.attempts() == 0 && row.Seq < f.seq {
			f.seq = math.MinInt64
		}
	}
	if from < f.seq { // the fetch was one of all
		f.until = now.Add(headLate)
		return false
	}
	if took <= floorCheap+time.Duration(len(rows))*floorRow {
		f.noted = false
		return false
	}
	due := f.look.Sub(now)
	return due <= 0 || due > headLate
}

// looked notes the result of a look: the lowest pending number, nil if there is none, and
// the transactions that wrote before it was looked for, and after that.
func (f *floor) looked(lowest *int64, before, after []string, now time.Time, took time.Duration) {
	f.look = now.Add(min(headShare*took, headLate))
	lower := f.last + 1
	if lowest != nil {
		lower = min(lower, *lowest)
	}
	switch {
	case f.last == math.MinInt64: // no number is known that was given
	case !f.noted:
		f.noted, f.lower, f.writers = true, lower, after
		f.look = now
	case !slices.ContainsFunc(f.writers, func(writer string) bool { return slices.Contains(before, writer) }):
		f.seq, f.until = min(f.lower, lower), now.Add(headLate)
		f.lower, f.writers = lower, after
	}
}
