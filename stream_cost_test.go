//go:build unix && !race

package courier_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// What a stream costs in which everything fails grows with the number of records
// in hand, and not with its square: four times as many take some four to five
// times the processor's time, where the square would be 16.

func TestStream_FailuresCostTheSameHoweverManyWait(t *testing.T) {
	for name, keys := range map[string]int{"no order": 0, "a key for each record": 1 << 20, "one key": 1} {
		t.Run(name, func(t *testing.T) {
			growsWith(t, func(t *testing.T, n int) {
				tries := make([]int, n)
				var calls atomic.Int64
				opts := []courier.Option{quiet, courier.WithBatchSize(n), courier.WithStreamWorkers(4)}
				if keys > 0 {
					opts = append(opts, courier.WithOrderKey(func(r int) string { return strconv.Itoa(r % keys) }))
				}
				source := courier.NewChannelSource(full(n, false), func(context.Context, []int) error { return nil })
				stop := start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
					calls.Add(1)
					if tries[r]++; tries[r] <= 3 { // one worker at a time has it
						return errTest
					}
					return nil
				}), opts...))
				time.Sleep(10 * time.Second)
				_ = stop() // it tells of those that are not through
				require.GreaterOrEqual(t, int(calls.Load()), 3*min(n, max(1, keys)), "the heads of the keys have failed")
			})
		})
	}
}

// givenBack is a source that records are given back to for good.
type givenBack struct {
	*courier.ChannelSource[int]
	calls int
}

func (g *givenBack) Release(context.Context, []int, time.Duration) error {
	g.calls++
	return nil
}

func TestStream_ReleasesCostTheSameHoweverManyWait(t *testing.T) {
	growsWith(t, func(t *testing.T, n int) {
		source := &givenBack{ChannelSource: courier.NewChannelSource(full(n, false), func(context.Context, []int) error { return nil })}
		stop := start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			return courier.RetryAfter(errTest, time.Minute+time.Duration(r)*time.Second)
		}), quiet, courier.WithBatchSize(n)))
		time.Sleep(10 * time.Second)
		require.NoError(t, stop())
		require.Equal(t, n, source.calls, "each has a time of its own")
	})
}

// growsWith runs a scenario with 2,000 and with 8,000 records, several times if
// need be: the least of some is what was disturbed the least.
func growsWith(t *testing.T, scenario func(t *testing.T, n int)) {
	t.Helper()
	cost := func(n int) time.Duration {
		began := processorTime(t)
		synctest.Test(t, func(t *testing.T) { scenario(t, n) })
		return processorTime(t) - began
	}
	few, many := cost(2000), cost(8000)
	for range 4 {
		if many < 9*few {
			return
		}
		few, many = min(few, cost(2000)), min(many, cost(8000))
	}
	if many >= 9*few {
		t.Errorf("2,000 records cost %v, and 8,000 cost %v", few, many)
	}
}

func processorTime(t *testing.T) time.Duration {
	var used syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
