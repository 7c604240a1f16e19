package main

import "slices"

// median is the middle value: on a machine that does other work too, some
// rounds are far too slow and none is too fast. There must be a value.
func median(values []float64) float64 {
	return quantile(values, 0.5)
}

// spread is how far the middle half of the values is from the median, as a part
// of it.
func spread(values []float64) float64 {
	m := median(values)
	if m == 0 {
		return 0
	}
	return (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / m
}

// quantile is the value below which a part of the values lies, interpolated.
func quantile(values []float64, part float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := part * float64(len(sorted)-1)
	below := int(at)
	if below == len(sorted)-1 {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}
