package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Two rounds on two processors, with what else is in such output.
const output = `go: go1.26.8
-test.shuffle 1795510000000000000
goos: linux
goarch: amd64
pkg: example.com/bench
cpu: Some CPU @ 3.00GHz
BenchmarkLoop-2    	   25098	         0 allocs/record	         2.000 ns/record
BenchmarkOurs-2    	    6428	         0.001000 allocs/record	         7.000 ns/record
BenchmarkBatch/10-2	     100	        40.00 ns/record
PASS
BenchmarkOurs-2    	    6428	         0.003000 allocs/record	         9.000 ns/record
BenchmarkLoop-2    	   25098	         0 allocs/record	         2.000 ns/record
BenchmarkBatch/10-2	     100	        60.00 ns/record
ok  	example.com/bench	1.234s
`

func read(t *testing.T, text string) *results {
	t.Helper()
	found, err := parse(strings.NewReader(text))
	require.NoError(t, err)
	return found
}
