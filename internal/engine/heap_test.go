package engine_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// A heap has its items in order, and in the memory of those that left nothing stays.
func TestHeapAgainstASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := engine.Heap[*int]{Before: func(a, b **int) bool { return **a < **b }}
		var model []int
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				n := rapid.IntRange(0, 20).Draw(t, "item")
				h.Push(&n)
				model = append(model, n)
				slices.Sort(model)
			},
			"pop": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip("it is empty")
				}
				require.Equal(t, model[0], *h.Pop())
				model = model[1:]
				require.Nil(t, h.Items[:len(model)+1][len(model)])
			},
			"keep": func(t *rapid.T) {
				from := rapid.IntRange(0, 20).Draw(t, "from")
				h.Keep(func(n *int) bool { return *n >= from })
				model = slices.DeleteFunc(model, func(n int) bool { return n < from })
			},
			"": func(t *rapid.T) {
				require.Len(t, h.Items, len(model))
				if len(model) > 0 {
					require.Equal(t, model[0], *h.Items[0])
				}
			},
		})
	})
}
