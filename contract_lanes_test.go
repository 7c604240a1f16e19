package courier_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// What waits in a stream behind a failed record of its key, and what is done
// with it.

func fullChannel(records ...int) chan int {
	ch := make(chan int, len(records))
	for _, r := range records {
		ch <- r
	}
	return ch
}

func TestD1_AStopHandsBackWhatWaitsBehindAFailedRecord(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.Applier(courierttest.MustParse(`error if record "0"`))
		var marked []int
		source := courier.NewChannelSource(fullChannel(0, 1, 2, 3, 4, 5), func(_ context.Context, records []int) error {
			marked = append(marked, records...)
			return nil
		})
		run := courierttest.Start(t, courier.NewStreamingCoordinator(source, sink, courier.WithOrderKey(byRest(2)), courier.WithStreamWorkers(2), quiet))
		time.Sleep(time.Minute)
		err := run.Stop()
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.Equal(t, []int{0, 2, 4}, left.Records, "in the order fetched")
		require.ErrorIs(t, left.Err, courierttest.ErrInjected)
		require.Equal(t, []int{1, 3, 5}, marked)
	})
}

func TestD8_AStopReleasesWhatWaitsBehindAFailedRecord(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.Applier(courierttest.MustParse(`error if record "0"`))
		source := records.StreamSource(numbers(6)...)
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, sink, courier.WithOrderKey(byRest(2)), quiet), time.Minute)
		require.ElementsMatch(t, []int{0, 2, 4}, records.Records(courierttest.Released), "each once, at the stop")
		require.Empty(t, source.InHand())
		require.Equal(t, []int{1, 3, 5}, records.Records(courierttest.Marked))
	})
}
