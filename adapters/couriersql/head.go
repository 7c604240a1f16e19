package couriersql

import (
	"math"
	"sync"
	"time"
)

// head is where the fetches of a source begin. Each begins at the first number as
// long as that costs nothing. Rows that were delivered while something holds an old
// snapshot stay in the index, millions of them during a dump, and each fetch walks
// past them all: then a fetch begins at the lowest number that the last one found,
// and at the first every so often, for rows that were committed late or that another
// relay gave back.
//
// Rows that failed are fetched by their time, whatever their number. A coordinator
// gives the others back that it does not settle; plain functions do not, and begin
// at the first number always.
type head struct {
	mu    sync.Mutex
	on    bool
	seq   int64     // the lowest number that the last fetch found
	until time.Time // when to begin at the first again
	moves int       // how often rows were given back
}

const (
	headCheap = 20 * time.Millisecond // what a fetch from the first number may take
	headShare = 20                    // else it may be one part in so many of the time
	headLate  = 10 * time.Second      // and rows wait for no longer than this
)

// begin is a new run of a coordinator.
func (h *head) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on, h.until = true, time.Time{}
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
		if took > headCheap {
			h.until = now.Add(min(headShare*took, headLate))
		}
	}
	for _, row := range rows {
		if row.Attempts == 0 {
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
