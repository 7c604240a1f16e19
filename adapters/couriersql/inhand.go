package couriersql

import (
	"maps"
	"slices"
	"sync"
)

// inHand is what a source has handed out that holds nothing in the database, so
// that a coordinator which fetches ahead is not given the same rows again. A
// coordinator settles all that it fetches; plain functions do not, and are given
// them again.
type inHand struct {
	parked parkedRows

	mu  sync.Mutex
	on  bool
	ids map[int64]string // by seq
}

// begin is a new run of a coordinator.
func (h *inHand) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on, h.ids = true, make(map[int64]string)
	h.parked.clear()
}

func (h *inHand) add(rows []Row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on {
		for _, row := range rows {
			h.ids[row.Seq] = row.ID
		}
	}
}

func (h *inHand) remove(n int, key func(int) rowKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on {
		for i := range n {
			if k := key(i); h.ids[k.seq] == k.id {
				delete(h.ids, k.seq)
			}
		}
	}
}

// park is remove for a row that became a letter.
func (h *inHand) park(row Row) {
	h.removeRows([]Row{row})
	h.mu.Lock()
	on := h.on
	h.mu.Unlock()
	if on {
		h.parked.add(row.key())
	}
}

func (h *inHand) removeRows(rows []Row) {
	h.remove(len(rows), func(i int) rowKey { return rows[i].key() })
}

func (h *inHand) removeFailed(rows []failure) {
	h.remove(len(rows), func(i int) rowKey { return rows[i].key() })
}

// seqs are the numbers in hand, and the first and the last of them; the first is
// behind the last when there is none. Between them there may be rows that are not in
// hand: one that was committed late, or that failed. Such a row comes before later
// ones of its key.
func (h *inHand) seqs() (seqs []int64, first, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seqs = slices.AppendSeq(make([]int64, 0, len(h.ids)), maps.Keys(h.ids))
	if len(seqs) == 0 {
		return seqs, 1, 0
	}
	return seqs, slices.Min(seqs), slices.Max(seqs)
}

func (h *inHand) bounds() (first, last int64) {
	_, first, last = h.seqs()
	return first, last
}

// parkedRows are rows that were marked with their letter, and have not come to mark yet.
// That mark leaves them alone: if one is pending again, a failover to a replica that missed
// its letter took both back.
type parkedRows struct {
	mu   sync.Mutex
	keys map[rowKey]bool
}

func (p *parkedRows) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = make(map[rowKey]bool)
}

func (p *parkedRows) add(key rowKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys == nil {
		p.keys = make(map[rowKey]bool)
	}
	p.keys[key] = true
}

func (p *parkedRows) remove(rows ...Row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range rows {
		delete(p.keys, row.key())
	}
}

func (p *parkedRows) has(key rowKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[key]
}

// others are the rows that a mark is for.
func (p *parkedRows) others(rows []Row) []Row {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.keys) == 0 {
		return rows
	}
	return slices.DeleteFunc(slices.Clone(rows), func(row Row) bool { return p.keys[row.key()] })
}
