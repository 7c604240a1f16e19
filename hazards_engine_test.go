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
