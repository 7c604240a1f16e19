package engine_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// Each record is given back once, for its own time, and with all that go back for the same
// time (D1).
func TestD1_ReleasesAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r engine.Releases[int]
		var order []time.Duration // of the groups
		model := map[time.Duration][]int{}
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				after := time.Duration(rapid.IntRange(0, 3).Draw(t, "after")) * time.Second
				r.Add(next, after)
				if model[after] == nil {
					order = append(order, after)
				}
				model[after] = append(model[after], next)
				next++
			},
			"take": func(t *rapid.T) {
				if len(order) == 0 {
					t.Skip("there is none")
				}
				records, after := r.Take()
				require.Equal(t, order[0], after)
				require.Equal(t, model[after], records)
				delete(model, after)
				order = order[1:]
			},
			"": func(t *rapid.T) {
				var all []int
				for _, after := range order {
					all = append(all, model[after]...)
				}
				require.Equal(t, all, r.All())
				require.Equal(t, len(all) > 0, r.Some())
			},
		})
	})
}
