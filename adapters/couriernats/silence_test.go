package couriernats

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A connection is dead once nothing has come for as long as its sink has patience. What
// came in between counts: silences do not add up.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{patience: 4 * time.Second}
		silent := func(d time.Duration) (dead bool) {
			since := time.Now()
			time.Sleep(d)
			return l.dead(since)
		}
		for range 5 {
			require.False(t, silent(3*time.Second))
			l.heard()
		}
		require.False(t, silent(3*time.Second))
		require.True(t, silent(time.Second), "4 seconds, by two calls")
		require.False(t, silent(3*time.Second), "another connection begins anew")
		require.True(t, silent(time.Second))
	})
}
