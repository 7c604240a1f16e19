package courier_test

// Who is told of what, and when it is to be tried again.

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

type notTried struct{}

func (notTried) Error() string      { return "the queue is full" }
func (notTried) NotAttempted() bool { return true }

// Refused is "not attempted for a reason that is not a pause or a stop".
func TestObserver_Stream_WhatAStopInterruptsIsNotRefused(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(0)
				source.wait = streaming
				applier := courier.NewRetryableApplier[int](&sink[int]{fail: func(context.Context, int, int) error { return errTest }},
					courier.RetryPolicy{InitialDelay: time.Minute, MaxDelay: time.Hour, Jitter: courier.NoJitter})
				var c running = courier.NewPollingCoordinator(source, applier, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, applier, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				for _, e := range courierttest.EventsOf[courier.ApplyEvent](&told) {
					require.Zero(t, e.NotAttempted)
				}
			})
		})
	}
}

// WithOrderedMarks: "A record that is not settled holds up the marks of all
// behind it": to a source that keeps a position, a mark behind a record that was
// given back loses it.
func TestStream_OrderedMarksDoNotPassARecordThatWasGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(0, 1, 2, 3)
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, call int) error {
			if call == 1 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithOrderedMarks()))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 1, 2, 3}, source.marked())
	})
}
