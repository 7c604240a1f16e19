package couriersql

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"sync"
)

// rowKeys are rows in the order of their numbers.
type rowKeys struct {
	keys []rowKey
	next int // where find probably finds the next one, as rows are asked for in order
}

func (r *rowKeys) find(key rowKey) (i int, found bool) {
	if r.next < len(r.keys) && r.keys[r.next] == key {
		i = r.next
	} else if i, found = slices.BinarySearchFunc(r.keys, key, compareKeys); !found {
		return i, false
	}
	r.next = i + 1
	return i, true
}

// add adds rows that are in order.
func (r *rowKeys) add(rows []Row) {
	r.keys = slices.Grow(r.keys, len(rows))
	ordered := len(r.keys) == 0 || len(rows) == 0 || r.keys[len(r.keys)-1].seq < rows[0].Seq
	for _, row := range rows {
		r.keys = append(r.keys, row.key())
	}
	if !ordered {
		slices.SortFunc(r.keys, compareKeys)
		r.keys = slices.Compact(r.keys)
	}
}

// remove removes n rows, which are most often neighbours.
func (r *rowKeys) remove(n int, key func(int) rowKey) {
	var first, end int
	var rest map[rowKey]bool
	for i := range n {
		k := key(i)
		switch j, found := r.find(k); {
		case !found:
		case first == end:
			first, end = j, j+1
		case j == end:
			end++
		default:
			if rest == nil {
				rest = make(map[rowKey]bool)
			}
			rest[k] = true
		}
	}
	r.keys = slices.Delete(r.keys, first, end)
	if rest != nil {
		r.keys = slices.DeleteFunc(r.keys, func(k rowKey) bool { return rest[k] })
	}
}

// bounds are the first and the last number, the first behind the last when there is none.
func (r *rowKeys) bounds() (first, last int64) {
	if len(r.keys) == 0 {
		return 1, 0
	}
	return r.keys[0].seq, r.keys[len(r.keys)-1].seq
}

// run is the longest run of neighbours, the first number behind the last when there is
// none, and the other numbers.
func (r *rowKeys) run() (first, last int64, others []int64) {
	begin, end := 0, 0
	for i, from := 1, 0; i <= len(r.keys); i++ {
		if i == len(r.keys) || r.keys[i].seq > r.keys[i-1].seq+1 {
			if i-from > end-begin {
				begin, end = from, i
			}
			from = i
		}
	}
	others = make([]int64, 0, len(r.keys)-(end-begin))
	for i, key := range r.keys {
		if i < begin || i >= end {
			others = append(others, key.seq)
		}
	}
	if begin == end {
		return 1, 0, others
	}
	return r.keys[begin].seq, r.keys[end-1].seq, others
}

// multirange is the numbers in the words of PostgreSQL, in runs of neighbours of which
// each has at least so many.
func (r *rowKeys) multirange(least int) string {
	text := []byte("{")
	for i, first := 0, 0; i < len(r.keys); i++ {
		if i+1 < len(r.keys) && r.keys[i].seq+1 == r.keys[i+1].seq {
			continue
		}
		if i+1-first >= least {
			if len(text) > 1 {
				text = append(text, ',')
			}
			text = strconv.AppendInt(append(text, '['), r.keys[first].seq, 10)
			text = append(text, ',')
			if last := r.keys[i].seq; last < math.MaxInt64 { // to which the server would add one
				text = strconv.AppendInt(text, last, 10)
			}
			text = append(text, ']')
		}
		first = i + 1
	}
	return string(append(text, '}'))
}

func compareKeys(a, b rowKey) int {
	if c := cmp.Compare(a.seq, b.seq); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}

// inHand is what a source has handed out that holds nothing in the database, so
// that a coordinator which fetches ahead is not given the same rows again. A
// coordinator settles all that it fetches; plain functions do not, and are given
// them again.
type inHand struct {
	parked parkedRows

	mu   sync.Mutex
	on   bool
	rows rowKeys
}

// begin is a new run of a coordinator.
func (h *inHand) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on, h.rows = true, rowKeys{}
	h.parked.clear()
}

func (h *inHand) add(rows []Row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on {
		h.rows.add(rows)
	}
}

func (h *inHand) remove(n int, key func(int) rowKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on {
		h.rows.remove(n, key)
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

// busy reports whether a coordinator has a row in hand.
func (h *inHand) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.rows.keys) > 0
}

// run is the longest run of neighbours in hand, the first number behind the last when
// nothing is, and the other numbers. Between these there may be rows that are not in hand:
// one that was committed late, or that failed. Such a row comes before later ones of its
// key.
func (h *inHand) run() (first, last int64, others []int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rows.run()
}

func (h *inHand) bounds() (first, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rows.bounds()
}

// ranges are the numbers in hand in the words of PostgreSQL, and of them the long runs
// without a gap, which a fetch jumps over.
func (h *inHand) ranges() (all, long string, first, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, last = h.rows.bounds()
	return h.rows.multirange(1), h.rows.multirange(worthJump), first, last
}

// worthJump is how many rows in hand a fetch jumps over: to find a place in an index
// takes as long as to walk past some dozens.
const worthJump = 100

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
