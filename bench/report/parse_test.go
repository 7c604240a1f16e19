package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse_CollectsTheRounds(t *testing.T) {
	t.Parallel()
	got, err := parse(strings.NewReader(output))
	require.NoError(t, err)
	require.Equal(t, []string{"Loop", "Ours", "Batch/10"}, got.order)
	require.Equal(t, []float64{7, 9}, got.values["Ours"]["ns/record"])
	require.Equal(t, []float64{0.001, 0.003}, got.values["Ours"]["allocs/record"])
	require.Equal(t, []float64{40, 60}, got.values["Batch/10"]["ns/record"])
	require.Equal(t, "Some CPU @ 3.00GHz", got.config["cpu"])
	require.Equal(t, 2, got.rounds())
}

func TestParse_SaysWhichValueIsNoNumber(t *testing.T) {
	t.Parallel()
	_, err := parse(strings.NewReader("BenchmarkLoop-2 100 fast ns/record\n"))
	require.ErrorContains(t, err, `BenchmarkLoop-2: the value "fast"`)
}

func TestParse_ReportsAReadError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	_, err := parse(io.MultiReader(strings.NewReader(output), errReader{broken}))
	require.ErrorIs(t, err, broken)
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
