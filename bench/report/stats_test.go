package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMedianAndSpread(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		values         []float64
		median, spread float64
	}{
		"one":                 {[]float64{4}, 4, 0},
		"two":                 {[]float64{6, 2}, 4, 0.25},
		"odd":                 {[]float64{9, 1, 4}, 4, 0.5},
		"an outlier":          {[]float64{10, 11, 10, 9, 500}, 10, 0.05},
		"nothing was counted": {[]float64{0, 0}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := append([]float64(nil), c.values...)
			require.InDelta(t, c.median, median(c.values), 1e-9)
			require.InDelta(t, c.spread, spread(c.values), 1e-9)
			require.Equal(t, before, c.values, "the values are not moved")
		})
	}
}
