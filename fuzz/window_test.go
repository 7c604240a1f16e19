package fuzz

import (
	"testing"

	"github.com/erfanmomeniii/courier/window"
)

// FuzzWindow: whatever is read and settled in any order, a window's position is never
// beyond a record that is not settled, and behind none of the settled ones before that.
func FuzzWindow(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 2, 1})
	f.Add([]byte{0, 128, 0, 1, 1, 129, 0, 2, 255, 7, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		const skips = 128
		w := window.New(0)
		end := 0
		next := []int{} // the position after each record
		settled := make(map[int]bool)
		var tickets []window.Ticket
		for _, step := range steps {
			switch {
			case step == 0:
				end++
				next = append(next, end)
				tickets = append(tickets, w.Add(end))
			case step >= skips:
				end += int(step-skips) + 1
				w.Skip(end)
			case len(tickets) > 0:
				i := int(step) % len(tickets)
				settled[i] = true
				w.Settle(tickets[i])
			}
			first := 0
			for first < len(next) && settled[first] {
				first++
			}
			low, high := 0, end // where the position has to be
			if first > 0 {
				low = next[first-1]
			}
			if first < len(next) {
				high = next[first] - 1
			}
			if p := w.Position(); p < low || p > high {
				t.Fatalf("after %v: the position is %d, want one from %d to %d", steps, p, low, high)
			}
			if w.Len() != len(next)-first || w.Pending() != len(next)-len(settled) {
				t.Fatalf("after %v: %d records, %d of them not settled; want %d and %d", steps, w.Len(), w.Pending(), len(next)-first, len(next)-len(settled))
			}
		}
	})
}
