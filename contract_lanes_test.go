package courier_test

import (
	"context"
	"fmt"
	"slices"
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

// Leases of batches that were fetched ahead are renewed with those in work.
func TestRenewer_LeasesOfWhatIsFetchedAheadAreRenewed(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := records.LeasingSource(30*time.Second, numbers(20)...)
		sink := records.Applier(courierttest.MustParse(`delay 20s`))
		courierttest.RunFor(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet), 20*time.Minute)
		courierttest.AssertDeliveredOnce(t, &records)
		courierttest.AssertDrained(t, source)
		require.Empty(t, records.Records(courierttest.Stale))
		require.Len(t, records.Records(courierttest.Fetched), 20, "each was handed out once")
		require.Equal(t, numbers(20), records.Records(courierttest.Applied))
	})
}

// disowned is a leasing source that says of some records that they are lost.
type disowned struct {
	*courierttest.LeasingSource[int]
	lost []int
}

func (l *disowned) Renew(ctx context.Context, records []int) error {
	var lost courier.BatchError
	for i, r := range records {
		if slices.Contains(l.lost, r) {
			lost.Add(i, errTest)
		}
	}
	if err := l.LeasingSource.Renew(ctx, records); err != nil {
		return err
	}
	return lost.ErrorOrNil()
}

// D5: what was fetched ahead and whose lease is lost is not begun, and nothing is
// held against it.
func TestD5_WhatIsFetchedAheadAndLostIsLeftAlone(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := &disowned{records.LeasingSource(30*time.Second, numbers(9)...), []int{2, 3, 7}}
		sink := records.Applier(courierttest.MustParse(`delay 20s`))
		run := courierttest.Start(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet))
		time.Sleep(125 * time.Second)
		require.Equal(t, []int{0, 1, 4, 5, 6, 8}, records.Records(courierttest.Applied))
		require.Empty(t, records.Records(courierttest.Failed))
		require.NoError(t, run.Stop())
	})
}

// D8: a stop gives back what was fetched ahead.
func TestD8_AStopReleasesWhatWasFetchedAhead(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := records.LeasingSource(time.Hour, numbers(20)...)
		sink := records.Applier(courierttest.MustParse(`delay 1s`))
		courierttest.RunFor(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet), 4500*time.Millisecond)
		require.Empty(t, source.InHand())
		require.Equal(t, numbers(5), records.Records(courierttest.Marked))
		require.Equal(t, numbers(20)[5:], source.Pending())
	})
}

// D5: a stream lets go of what is lost wherever it is: in its queue, with a
// worker, or behind another record of its key.
func TestD5_WhatAStreamHasLostIsLeftAlone(t *testing.T) {
	for _, keys := range []int{0, 2} {
		t.Run(fmt.Sprint(keys, " keys"), func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var records courierttest.Recorder[int]
				source := &hasty{disowned{records.StreamSource(numbers(10)...), []int{2, 3, 6, 9}}}
				sink := records.Applier(courierttest.MustParse(`delay 20s`))
				opts := []courier.Option{courier.WithBatchSize(10), courier.WithStreamWorkers(2), quiet}
				if keys > 0 {
					opts = append(opts, courier.WithOrderKey(byRest(keys)))
				}
				courierttest.RunFor(t, courier.NewStreamingCoordinator(source, sink, opts...), 10*time.Minute)
				got := records.Records(courierttest.Applied)
				slices.Sort(got)
				require.Equal(t, []int{0, 1, 4, 5, 7, 8}, got)
				require.ElementsMatch(t, got, records.Records(courierttest.Marked))
				require.Equal(t, []int{2, 3, 6, 9}, source.Pending())
			})
		})
	}
}

// hasty is a source that wants its leases renewed often.
type hasty struct{ disowned }

func (*hasty) RenewEvery() time.Duration { return 10 * time.Second }
