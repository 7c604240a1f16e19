package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "1.5h": 90 * time.Minute, "7d": 7 * day, "1d12h": 36 * time.Hour, "1d12h30m": 36*time.Hour + 30*time.Minute,
		"0d": 0, "106751d23h": 106751*day + 23*time.Hour, "2d0s": 2 * day,
	} {
		var d duration
		require.NoError(t, d.Set(text), text)
		require.Equal(t, want, time.Duration(d))
		again := duration(1)
		require.NoError(t, again.Set(d.String()))
		require.Equal(t, d, again, "%s is printed as %s", text, d.String())
	}
	for _, text := range []string{"", "d", "1", "-1d", "-1h", "+1h", "1d-1h", "-0d", "1.5d", "1d2d", "d1", "1w", "1e3d", "106752d", "106751d24h", "99999999999d", "9999999999h", "1d+1h", " 1d", "0x1d", "1d "} {
		d := duration(7)
		require.Error(t, d.Set(text), text)
		require.EqualValues(t, 7, d, text)
	}
}
