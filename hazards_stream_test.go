package courier_test

// Streams at their end, in their pauses, and what they tell.

import (
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A fetch that lingers for a full batch and returns what it has when it is told
// to stop: "the others … are applied within the drain timeout".
func TestD8_Stream_WhatAFetchReturnsAtAStopIsAppliedWithinTheDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		first := true
		source := sourceFuncs{func(ctx context.Context, _ int) ([]int, error) {
			<-ctx.Done()
			if first {
				first = false
				time.Sleep(time.Millisecond)
				return []int{1, 2}, nil
			}
			return nil, ctx.Err()
		}, marked.mark}
		stop := start(t, courier.NewStreamingCoordinator(source, courier.Applier[int](&sink[int]{}), quiet))
		time.Sleep(time.Second)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 2}, marked.all())
	})
}

// At the end of a stream with an order key, what failed goes back to a source
// that takes it, and with it what waits behind.
func TestStream_TheEndGivesBackWhatFailedWithAnOrderKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &hazardousSource{leasing: newLeasing(0, 1, 2, 3)}
		done := false
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if done {
				return nil, io.EOF
			}
			done = true
			return source.leasing.Fetch(ctx, limit)
		}
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				return errTest
			}
			return nil
		}}
		err := courier.NewStreamingCoordinator(source, s, quiet, courier.WithOrderKey(byRest(2))).Start(t.Context())
		require.NoError(t, err, "the source takes records back")
		require.ElementsMatch(t, []int{0, 2}, slices.Concat(source.released...))
	})
}

// FailEvent.Class of a permanent failure.
func TestObserver_Stream_FailEventHasTheClass(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(1)
				source.wait = streaming
				s := &sink[int]{fail: func(_ context.Context, _, call int) error {
					if call == 1 {
						return courier.Permanent(errTest)
					}
					return nil
				}}
				var c running = courier.NewPollingCoordinator(source, s, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				require.Equal(t, courier.ClassPermanent, courierttest.EventsOf[courier.FailEvent](&told)[0].Class)
			})
		})
	}
}

// ApplyEvent.DrainTimedOut at the end of a stream.
func TestObserver_Stream_ApplyEventTellsOfTheDrainTimeout(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(1)
				source.wait = streaming
				s := &sink[int]{fail: func(ctx context.Context, _, _ int) error { <-ctx.Done(); return ctx.Err() }}
				var c running = courier.NewPollingCoordinator(source, s, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				require.True(t, courierttest.EventsOf[courier.ApplyEvent](&told)[0].DrainTimedOut)
			})
		})
	}
}

// No alarm every 5 ms for as long as a batch is with the applier.
func TestStream_ABatchThatTakesLongIsNotLookedAtAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
			if len(records) > 1 {
				time.Sleep(time.Hour)
			}
			return nil
		}}
		var c counting
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(3, false), nop[[]int]), courier.Applier[int](s),
			courier.WithStreamWorkers(2), courier.WithClock(&c), courier.WithDrainTimeout(2*time.Hour), quiet))
		time.Sleep(time.Minute)
		n := c.n.Load()
		require.NoError(t, stop())
		require.Less(t, n, int64(1000), "in a minute")
	})
}

// Pause and breaker: one of them over is not both over.
func TestPause_Stream_ResumedIsToldWhenThePauseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		fail := true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if fail {
				fail = false
				return &courier.OpenError{Until: time.Now().Add(time.Minute)}
			}
			return nil
		}}
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, false), nop[[]int]), courier.Applier[int](s), courier.WithObserver(told.Observer()), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Pause()
		time.Sleep(2 * time.Minute) // the breaker closes meanwhile
		require.ErrorIs(t, c.Ready(), courier.ErrPaused)
		early := courierttest.EventsOf[courier.ResumeEvent](&told)
		c.Resume()
		synctest.Wait()
		require.NoError(t, stop())
		require.Empty(t, early, "in the middle of Pause")
		require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), 1)
	})
}

// And the other way round.
func TestPause_Stream_ResumeDoesNotTellThatABreakersPauseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		s := &sink[int]{fail: func(context.Context, int, int) error { return &courier.OpenError{Until: time.Now().Add(time.Hour)} }}
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, false), nop[[]int]), courier.Applier[int](s), courier.WithObserver(told.Observer()), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Pause()
		time.Sleep(time.Second)
		c.Resume()
		time.Sleep(time.Second)
		early := courierttest.EventsOf[courier.ResumeEvent](&told)
		_ = stop()
		require.Empty(t, early, "an hour too early")
	})
}

// A fetch that the stop or a pause cancels has not succeeded.
func TestReady_ACancelledFetchIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		source := sourceFuncs{func(ctx context.Context, _ int) ([]int, error) {
			if n++; n == 1 {
				return nil, errTest
			}
			<-ctx.Done() // the connection hangs
			return nil, ctx.Err()
		}, nop[[]int]}
		c := courier.NewStreamingCoordinator(source, courier.Applier[int](&sink[int]{}), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Ready(), errTest)
		c.Pause()
		synctest.Wait()
		c.Resume()
		synctest.Wait()
		err := c.Ready()
		require.NoError(t, stop())
		require.ErrorIs(t, err, errTest, "no fetch has succeeded since")
	})
}

// RecordStarted and RecordEnded "are called for every record".
func TestObserver_PerRecordEventsOfABatchApplier(t *testing.T) {
	told := courierttest.ObserverRecorder{PerRecord: true}
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, &batchSink[int]{}, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context()))
	require.Len(t, courierttest.EventsOf[courierttest.RecordStarted](&told), 2)
	require.Len(t, courierttest.EventsOf[courierttest.RecordEnded](&told), 2)
}
