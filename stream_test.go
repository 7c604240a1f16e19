package courier_test

// What a stream does besides the contract: shares, flushes, the order of marks.

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// full returns a channel with numbers 0…n-1 in it, closed if asked.
func full(n int, closed bool) chan int {
	ch := make(chan int, n)
	for i := range n {
		ch <- i
	}
	if closed {
		close(ch)
	}
	return ch
}

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
