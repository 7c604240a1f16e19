package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGoal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		goal          goal
		ratio, allocs float64
		met           bool
		text, shown   string
	}{
		"within":               {atMost(4), 3.96, 9, true, "≤ 4×", "3.96×"},
		"beyond":               {atMost(4), 4.04, 0, false, "≤ 4×", "4.04×"},
		"without allocations":  {atMostFree(1.5), 1.2, 0.02, true, "≤ 1.5×, 0 allocs", "1.20×"},
		"with an allocation":   {atMostFree(1.5), 1.2, 1, false, "≤ 1.5×, 0 allocs", "1.20×"},
		"nearly the limit":     {shareOf(98), 1.02, 0, true, "≥ 98 %", "98.0 %"},
		"not nearly the limit": {shareOf(98), 2, 0, false, "≥ 98 %", "50.0 %"},
		"cheap":                {cheaper(100), 0.005, 0, true, "≥ 100× cheaper", "200× cheaper"},
		"not cheap":            {cheaper(100), 0.02, 0, false, "≥ 100× cheaper", "50× cheaper"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.met, c.goal.met(c.ratio, c.allocs))
			require.Equal(t, c.text, c.goal.text)
			require.Equal(t, c.shown, c.goal.show(c.ratio))
		})
	}
	require.False(t, goal{}.set())
}
