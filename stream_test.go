package courier_test

// What a stream does besides the contract: shares, flushes, the order of marks.

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// A record that takes long keeps no other waiting while a worker is idle.
func TestD3_Stream_WhatIsBehindASlowRecordGoesToIdleWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				time.Sleep(time.Hour)
			}
			time.Sleep(time.Millisecond)
			return nil
		}}
		var marked collector
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(100, false), marked.mark), courier.Applier[int](s), courier.WithStreamWorkers(2), courier.WithDrainTimeout(2*time.Hour), quiet))
		time.Sleep(time.Second)
		require.Len(t, s.got(), 99)
		require.Len(t, marked.all(), 99, "and they are marked")
		require.NoError(t, stop())
		require.Len(t, marked.all(), 100)
	})
}

// What a worker has applied is marked in time, though its share is not through.
func TestStream_FlushesWhatABusyWorkerHasApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		s := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Second); return nil })
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(60, false), marked.mark), s, courier.WithFlushInterval(2*time.Second), courier.WithDrainTimeout(time.Hour), quiet))
		time.Sleep(20500 * time.Millisecond)
		require.GreaterOrEqual(t, len(marked.all()), 16)
		require.NoError(t, stop())
		require.Equal(t, numbers(60), marked.all())
	})
}

// The flush interval counts from when a record was applied, not from when the
// stream came to know of it.
func TestStream_NoRecordWaitsLongerThanTheFlushInterval(t *testing.T) {
	for name, c := range map[string]struct {
		workers         int
		apply, interval time.Duration
	}{
		"a worker in the middle of its share":          {1, 1500 * time.Millisecond, 2 * time.Second},
		"a worker that others have nothing to do with": {2, 3 * time.Millisecond, 2 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				applied := map[int]time.Time{}
				var longest time.Duration
				s := courier.ProcessFunc(func(_ context.Context, r int) error {
					time.Sleep(c.apply)
					mu.Lock()
					defer mu.Unlock()
					applied[r] = time.Now()
					return nil
				})
				mark := func(_ context.Context, records []int) error {
					mu.Lock()
					defer mu.Unlock()
					for _, r := range records {
						longest = max(longest, time.Since(applied[r]))
					}
					return nil
				}
				require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(20, true), mark), s, courier.WithFlushInterval(c.interval), courier.WithStreamWorkers(c.workers), quiet).Start(t.Context()))
				require.Len(t, applied, 20)
				require.LessOrEqual(t, longest, c.interval)
			})
		})
	}
}

// A mark that failed does not wait for the flush interval once more.
func TestStream_AFailedMarkIsTriedAgainWhenItIsSaidToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var again time.Time // as the observer was told
		var marks []time.Time
		mark := func(context.Context, []int) error {
			if marks = append(marks, time.Now()); len(marks) == 1 {
				return errTest
			}
			return nil
		}
		s := courier.ProcessFunc(func(_ context.Context, r int) error { time.Sleep(time.Duration(r) * 10 * time.Hour); return nil })
		told := courier.Observer{Marked: func(_ context.Context, e courier.MarkEvent) {
			if e.Err != nil {
				again = time.Now().Add(e.RetryIn)
			}
		}}
		require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, true), mark), s, courier.WithFlushInterval(time.Hour), courier.WithObserver(told), quiet).Start(t.Context()))
		require.Len(t, marks, 3)
		require.Equal(t, again, marks[1])
	})
}

func TestD4_Stream_MarksInTheOrderFetchedWhenAsked(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		t.Run(fmt.Sprint(ordered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var marked collector
				var once atomic.Bool
				s := courier.ProcessFunc(func(_ context.Context, r int) error {
					time.Sleep(time.Duration(r*7%13) * time.Second)
					if r == 5 && once.CompareAndSwap(false, true) {
						return errTest
					}
					return nil
				})
				opts := []courier.Option{courier.WithStreamWorkers(8), courier.WithBatchSize(20), quiet}
				if ordered {
					opts = append(opts, courier.WithOrderedMarks())
				}
				require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(200, true), marked.mark), s, opts...).Start(t.Context()))
				require.ElementsMatch(t, numbers(200), marked.all())
				require.Equal(t, ordered, slices.IsSorted(marked.all()))
			})
		})
	}
}

// D11: what is not settled holds up the marks behind it, and then the stream.
func TestD11_Stream_OrderedMarksHoldUpTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		release := make(chan struct{})
		s := courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 3 {
				<-release
			}
			return nil
		})
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(200, true), marked.mark), s,
			courier.WithStreamWorkers(4), courier.WithBatchSize(10), courier.WithOrderedMarks(), courier.WithPrefetch(2), quiet)
		ended := make(chan error, 1)
		go func() { ended <- c.Start(t.Context()) }()
		time.Sleep(time.Hour)
		require.Equal(t, []int{0, 1, 2}, marked.all())
		require.EqualValues(t, 30, c.Stats().InHand, "three batches")
		close(release)
		require.NoError(t, <-ended)
		require.Equal(t, numbers(200), marked.all())
	})
}

// The producer of a channel waits when nothing is taken off it.
func TestD11_Stream_BackPressureReachesTheProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int)
		var sent atomic.Int64
		go func() {
			defer close(ch)
			for i := range 1000 {
				ch <- i
				sent.Add(1)
			}
		}()
		hold := make(chan struct{})
		s := courier.ProcessFunc(func(context.Context, int) error { <-hold; return nil })
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), s, courier.WithBatchSize(10), quiet)
		ended := make(chan error, 1)
		go func() { ended <- c.Start(t.Context()) }()
		time.Sleep(time.Minute)
		require.EqualValues(t, 20, sent.Load())
		close(hold)
		require.NoError(t, <-ended)
		require.EqualValues(t, 1000, sent.Load())
	})
}
