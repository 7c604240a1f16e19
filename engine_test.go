package courier_test

// What the engine does with a batch, in the corners that no contract test looks
// into.

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// A record that pauses keeps the others from being begun.
func TestD6_NothingIsBegunBehindARecordThatPauses(t *testing.T) {
	for _, workers := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			source := newShelf(numbers(100)...)
			var calls atomic.Int64
			s := courier.ProcessFunc(func(_ context.Context, r int) error {
				calls.Add(1)
				time.Sleep(time.Second)
				if r == 0 {
					return &courier.OpenError{Until: time.Now().Add(time.Hour)}
				}
				return nil
			})
			_ = courier.NewPollingCoordinator(source, s, courier.WithWorkers(workers), quiet).RunOnce(t.Context())
			require.LessOrEqual(t, calls.Load(), int64(2*workers-1), "each of the others may have begun one more")
			require.Contains(t, source.left(), 99)
		})
	}
}

// Of several records that pause, the first in the order fetched has the say, not
// the last to return.
func TestPause_IsThatOfTheFirstRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var until time.Time
		o := courier.Observer{Paused: func(_ context.Context, e courier.PauseEvent) { until = e.Until }}
		s := courier.ProcessFunc(func(_ context.Context, r int) error {
			time.Sleep(time.Duration(r+1) * time.Second)
			return &courier.OpenError{Until: began.Add(time.Duration(r+1) * time.Hour)}
		})
		_ = courier.NewPollingCoordinator(newShelf(0, 1), s, courier.WithWorkers(2), courier.WithObserver(o), quiet).RunOnce(t.Context())
		require.Equal(t, began.Add(time.Hour), until)
	})
}

// Under the race detector: no look at the records that a batch applier is at.
func TestStream_ALookDoesNotTouchTheBatchInWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(40, false), marked.mark), courier.Applier[int](s),
			courier.WithApplyBatchSize(4), courier.WithDrainTimeout(time.Hour), quiet))
		time.Sleep(5500 * time.Millisecond)
		n := len(marked.all())
		require.NoError(t, stop())
		require.Equal(t, 20, n, "what five batches have applied is marked in time")
	})
}

// At the end of a stream, in an outage that does not end,
// records behind a suspect of their key do not keep Start for ever.
func TestStream_TheEndOfAnOrderedStreamInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error { return errTest }}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- courier.NewStreamingCoordinator(courier.NewChannelSource(full(4, true), nop[[]int]), applier, courier.WithOrderKey(byRest(1)), quiet).Start(ctx)
		}()
		time.Sleep(24 * time.Hour)
		select {
		case err := <-ended:
			require.ErrorIs(t, err, courier.ErrUnsettled)
		default:
			cancel()
			t.Fatal("it had not ended after a day, and then with", <-ended)
		}
	})
}
