package courier_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
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

func TestD9_AStreamWhoseOrderKeyPanicsHoldsUpThatRecordAlone(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		key := func(r int) string {
			if r == 2 {
				panic("no key")
			}
			return fmt.Sprint(r % 2)
		}
		var records courierttest.Recorder[int]
		source := records.StreamSource(numbers(6)...)
		var told courierttest.ObserverRecorder
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, records.Applier(nil), courier.WithOrderKey(key), courier.WithStreamWorkers(2), courier.WithObserver(told.Observer()), quiet), time.Minute)
		require.ElementsMatch(t, []int{0, 1, 3, 4, 5}, records.Records(courierttest.Marked))
		require.Equal(t, []int{2}, source.Pending())
		failed := courierttest.EventsOf[courier.FailEvent](&told)
		require.NotEmpty(t, failed)
		for _, e := range failed {
			require.ErrorContains(t, e.Err, "the record's order key is not known")
			require.ErrorIs(t, e.Err, courier.ErrPanic)
		}
	})
}

// A batch of one record of each key is with a worker as a whole: nothing of it
// can be taken away for an idle one.
func TestD4_NothingIsTakenBackFromABatchInWork(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.BatchApplier(courierttest.MustParse(`delay 1s`))
		source := records.StreamSource(numbers(6)...)
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, courier.Applier[int](sink), courier.WithOrderKey(byRest(3)), courier.WithStreamWorkers(2), quiet), time.Minute)
		courierttest.AssertDeliveredOnce(t, &records)
		courierttest.AssertOrder(t, &records, byRest(3))
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

// A record whose key is "" is in no order: it waits for no other one.
func TestD4_RecordsWithoutAKeyAreInNoOrder(t *testing.T) {
	for _, shape := range []string{"polling", "leasing", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var mu sync.Mutex
				var order []int
				a := courier.ProcessFunc(func(_ context.Context, n int) error {
					if n == 0 || n == 1 { // without a key, and with one
						return errTest
					}
					time.Sleep(time.Second)
					mu.Lock()
					defer mu.Unlock()
					order = append(order, n)
					return nil
				})
				key := courier.WithOrderKey(func(n int) string {
					if n%2 == 0 {
						return ""
					}
					return "odd"
				})
				var r courierttest.Recorder[int]
				began := time.Now()
				c := map[string]courierttest.Starter{
					"polling":   courier.NewPollingCoordinator[int](r.Source(numbers(18)...), a, quiet, key, courier.WithWorkers(8)),
					"leasing":   courier.NewPollingCoordinator[int](r.LeasingSource(time.Hour, numbers(18)...), a, quiet, key, courier.WithWorkers(8)),
					"streaming": courier.NewStreamingCoordinator[int](r.StreamSource(numbers(18)...), a, quiet, key, courier.WithStreamWorkers(8)),
				}[shape]
				run := courierttest.Start(t, c)
				time.Sleep(1500 * time.Millisecond)
				mu.Lock()
				require.ElementsMatch(t, []int{2, 4, 6, 8, 10, 12, 14, 16}, order, "%v", time.Since(began))
				mu.Unlock()
				time.Sleep(time.Minute)
				require.NoError(t, run.Stop())
				require.Len(t, order, 8, "the later ones of the key wait")
			})
		})
	}
}
