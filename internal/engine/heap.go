package engine

// Heap is a binary heap: items of which the first is known, by some order. What comes in
// order, as most does, costs no more than to append it.
type Heap[E any] struct {
	Items  []E // the first is the first by Before, the others come as the heap has them
	Before func(a, b *E) bool
}

// Push adds an item.
func (h *Heap[E]) Push(item E) {
	h.Items = append(h.Items, item)
	for i := len(h.Items) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.Before(&h.Items[i], &h.Items[parent]) {
			return
		}
		h.Items[i], h.Items[parent] = h.Items[parent], h.Items[i]
		i = parent
	}
}

// Pop removes the first item.
func (h *Heap[E]) Pop() E {
	first, last := h.Items[0], len(h.Items)-1
	h.Items[0] = h.Items[last]
	clear(h.Items[last:])
	h.Items = h.Items[:last]
	for i, child := 0, 1; child < last; child = 2*i + 1 {
		if child+1 < last && h.Before(&h.Items[child+1], &h.Items[child]) {
			child++
		}
		if !h.Before(&h.Items[child], &h.Items[i]) {
			break
		}
		h.Items[i], h.Items[child] = h.Items[child], h.Items[i]
		i = child
	}
	return first
}

// Keep removes all items but those that keep reports true for.
func (h *Heap[E]) Keep(keep func(item E) bool) {
	items := h.Items
	h.Items = nil
	for _, item := range items {
		if keep(item) {
			h.Push(item)
		}
	}
}
