package main

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

var small = []section{
	{title: "Passes", plot: true, cases: []benchmark{
		{name: "Loop", title: "plain loop", kind: floor},
		{name: "Ours", title: "Courier", kind: ours, to: "Loop", goal: atMostFree(3)},
		{name: "Absent", title: "not run", kind: rival, to: "Loop"},
	}},
	{title: "By batch", cases: []benchmark{
		{name: "Batch/1", title: "1", to: cheapest},
		{name: "Batch/10", title: "10", to: cheapest, goal: atMost(2)},
		{name: "Batch/100", title: "100", to: cheapest, goal: atMost(2)},
	}},
	{title: "Memory", unit: "kept-B", cases: []benchmark{{name: "Memory", title: "all of it"}}},
}

func TestLeastOf(t *testing.T) {
	t.Parallel()
	found := read(t, "BenchmarkA-2 1 4 ns/record\nBenchmarkB-2 1 8 ns/record\nBenchmarkB-2 1 10 ns/record\n")
	for name, c := range map[string]struct {
		of    string
		cases []benchmark
		want  float64
	}{
		"no goals":     {cheapest, []benchmark{{name: "B"}, {name: "A"}, {name: "not run"}}, 4},
		"one goal":     {cheapest, []benchmark{{name: "A"}, {name: "B", goal: atMost(2)}}, 9},
		"goal not run": {cheapest, []benchmark{{name: "A"}, {name: "not run", goal: atMost(2)}}, math.NaN()},
		"a floor":      {bestFloor, []benchmark{{name: "A", kind: ours}, {name: "B", kind: floor}}, 9},
		"a rival":      {bestRival, []benchmark{{name: "A", kind: rival}, {name: "B", kind: rival}}, 4},
		"no rival":     {bestRival, []benchmark{{name: "A", kind: floor}}, math.NaN()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := leastOf(section{unit: perRecord, cases: c.cases}, c.of, found)
			require.True(t, got == c.want || math.IsNaN(got) && math.IsNaN(c.want), got)
		})
	}
}

func TestTabulate(t *testing.T) {
	t.Parallel()
	found := read(t, output+"BenchmarkBatch/1-2 1 500 ns/record\nBenchmarkBatch/100-2 1 20 ns/record\nBenchmarkStray-2 1 3 ns/record\n")
	got := tabulate(small, found)

	require.Len(t, got.parts, 2, "a section of which nothing was run is left out")
	passes, batches := got.parts[0].lines, got.parts[1].lines
	require.Len(t, passes, 2, "and so is a case")
	require.True(t, math.IsNaN(passes[0].base))
	require.InDelta(t, 8, passes[1].value, 1e-9)
	require.InDelta(t, 4, passes[1].ratio(), 1e-9)
	require.Equal(t, "plain loop", passes[1].toName)
	require.InDelta(t, 25, batches[0].ratio(), 1e-9, "the cheapest is one that has a goal")
	require.InDelta(t, 2.5, batches[1].ratio(), 1e-9)
	require.Equal(t, 3, got.set)
	require.Equal(t, 1, got.met, "of 4×, 2.5× and 1×")
	require.Len(t, got.unknown, 1)
	require.Equal(t, "Stray", got.unknown[0].title)
}
