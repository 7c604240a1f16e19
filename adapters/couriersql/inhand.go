package couriersql

import "sync"

// inHand is what a source has handed out that holds nothing in the database, so
// that a coordinator which fetches ahead is not given the same rows again. A
// coordinator settles all that it fetches; plain functions do not, and are given
// them again.
type inHand struct {
	mu  sync.Mutex
	on  bool
	ids map[int64]string // by seq
}

// begin is a new run of a coordinator.
func (h *inHand) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on, h.ids = true, make(map[int64]string)
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

func (h *inHand) removeRows(rows []Row) {
	h.remove(len(rows), func(i int) rowKey { return rows[i].key() })
}

func (h *inHand) removeFailed(rows []failure) {
	h.remove(len(rows), func(i int) rowKey { return rows[i].key() })
}

// bounds are the first and the last in hand; the first is behind the last when
// there is none. A row between them that was committed late is handed out once
// they are settled.
func (h *inHand) bounds() (first, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, last = 1, 0
	for seq := range h.ids {
		if first > last {
			first, last = seq, seq
		}
		first, last = min(first, seq), max(last, seq)
	}
	return first, last
}
