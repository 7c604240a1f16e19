package backoff_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// whatever the arguments, a delay is within [0, Max].
func TestR2_TheDelayIsWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SampledFrom([]time.Duration{0, 1, time.Millisecond, time.Hour, math.MaxInt64})
		p := backoff.Policy{
			Base:       d.Draw(t, "base"),
			Max:        d.Draw(t, "max"),
			Multiplier: rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{2, 1e9, math.Inf(1), math.NaN(), 0, -3})).Draw(t, "multiplier"),
			Jitter:     backoff.Jitter(rapid.IntRange(0, 3).Draw(t, "jitter")),
		}
		attempt := rapid.OneOf(rapid.IntRange(1, 100), rapid.SampledFrom([]int{1000, math.MaxInt32})).Draw(t, "attempt")
		got := p.Delay(attempt, d.Draw(t, "previous"), rapid.Float64Range(0, 0.999999999).Draw(t, "random"))
		if got < 0 || got > p.Max {
			t.Fatalf("%v is outside [0, %v]", got, p.Max)
		}
	})
}

func TestR3_Sequences(t *testing.T) {
	p := backoff.Policy{Base: 100, Max: 1000, Multiplier: 2, Jitter: backoff.None}
	var got []time.Duration
	for attempt := 1; attempt <= 6; attempt++ {
		got = append(got, p.Delay(attempt, 0, 0.5))
	}
	require.Equal(t, []time.Duration{100, 200, 400, 800, 1000, 1000}, got)

	for _, test := range []struct {
		jitter    backoff.Jitter
		previous  time.Duration
		low, high time.Duration // of the third delay
	}{
		{backoff.Full, 0, 0, 400},
		{backoff.Equal, 0, 200, 400},
		{backoff.Decorrelated, 200, 100, 600},
		{backoff.Decorrelated, 900, 100, 1000},
		{backoff.None, 0, 400, 400},
	} {
		p.Jitter = test.jitter
		require.Equal(t, test.low, p.Delay(3, test.previous, 0))
		require.InDelta(t, float64(test.high), float64(p.Delay(3, test.previous, math.Nextafter(1, 0))), 1)
		require.InDelta(t, float64(test.low+test.high)/2, float64(p.Delay(3, test.previous, 0.5)), 1)
	}
}
