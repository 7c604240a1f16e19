package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrint(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	found := read(t, output+"BenchmarkMemory-2 1 1530000 kept-B 50 ns/record 1 allocs/record\nBenchmarkStray-2 1 12345 ns/record\n")
	require.NoError(t, printTable(&out, tabulate(small, found)))
	require.Equal(t, `| case       |      cost |    ± | allocs | records/s | ratio | to           | goal           | met |
| ---------- | --------: | ---: | -----: | --------: | ----: | ------------ | -------------- | --- |
| **Passes** |||||||||
| plain loop |    2.0 ns |  0 % |      0 |     500 M |       |              |                |     |
| Courier    |    8.0 ns |  6 % |      0 |     125 M | 4.00× | plain loop   | ≤ 3×, 0 allocs | no  |
| **By batch** |||||||||
| 10         |     50 ns | 10 % |        |      20 M | 1.00× | the cheapest | ≤ 2×           | yes |
| **Memory** |||||||||
| all of it  |    1.5 MB |  0 % |        |           |       |              |                |     |
| **Not in the plan** |||||||||
| Stray      | 12,345 ns |  0 % |        |      81 k |       |              |                |     |

medians of 2 rounds · go1.26.8 · linux/amd64 · Some CPU @ 3.00GHz
Cost and allocations are of one record; ± is half the distance of the quartiles.
1 of 2 goals met.
- missed: Passes: Courier is 4.00×, goal ≤ 3×, 0 allocs
`, out.String())
}

func TestSignificant(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]float64{
		"0.0042": 0.0042, "0.048": 0.048, "0.48": 0.48, "1.0": 0.996, "4.2": 4.16, "9.9": 9.94, "10": 9.96, "999": 999.4, "1,000": 999.6, "1,234,567": 1234567,
	} {
		require.Equal(t, want, significant(v))
	}
}

func TestAmount(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct {
		value float64
		unit  string
	}{
		"12 ns": {12, perRecord}, "34 ns": {34, "cpu-" + perRecord}, "1.5 kB": {1500, "kept-B"}, "2.0 MB": {2e6, "kept-B"}, "0.70 ms": {0.7, "p50-ms"}, "0.95": {0.95, "transactions"},
	} {
		require.Equal(t, want, amount(c.value, c.unit))
	}
}
