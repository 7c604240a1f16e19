package courier_test

// Streams at their end, in their pauses, and what they tell.

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

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

// RecordStarted and RecordEnded "are called for every record".
func TestObserver_PerRecordEventsOfABatchApplier(t *testing.T) {
	told := courierttest.ObserverRecorder{PerRecord: true}
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, &batchSink[int]{}, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context()))
	require.Len(t, courierttest.EventsOf[courierttest.RecordStarted](&told), 2)
	require.Len(t, courierttest.EventsOf[courierttest.RecordEnded](&told), 2)
}
