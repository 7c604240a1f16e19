package courier_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// What a pass tells of itself, and leaves behind, down to the numbers.

func TestObserver_AppliedTellsHowLongItTook(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		source.add(numbers(3)...)
		stop := start(t, make(s, courier.WithObserver(told.Observer())))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		var took time.Duration
		records := 0
		for _, e := range courierttest.EventsOf[courier.ApplyEvent](&told) {
			took, records = took+e.Elapsed, records+e.Records
		}
		require.Equal(t, 3*time.Second, took)
		require.Equal(t, 3, records)
	})
}

// A failure tells more than a refusal, and the first one the most.
func TestObserver_AppliedNamesTheFirstFailure(t *testing.T) {
	for name, c := range map[string]struct {
		errs []error // of the records from 0 on
		want string
	}{
		"behind a refusal": {[]error{notTried{}, errTest, errTest}, "order 1"},
		"before a refusal": {[]error{errTest, notTried{}, errTest}, "order 0"},
		"only refusals":    {[]error{nil, notTried{}, notTried{}}, "order 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			s := courier.ProcessFunc(func(_ context.Context, r int) error { return c.errs[r] })
			_ = courier.NewPollingCoordinator(namedShelf{newShelf(0, 1, 2)}, s, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context())
			applied := courierttest.EventsOf[courier.ApplyEvent](&told)
			require.Len(t, applied, 1)
			require.Equal(t, c.want, applied[0].Record)
			require.Equal(t, c.errs[int(c.want[len(c.want)-1]-'0')], applied[0].Err)
		})
	}
}

// A release that ends its goroutine is told as one that failed, and what it was to give
// back is not in hand any more.
func TestObserver_IsToldOfAReleaseThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := goneRelease{newLeasing(1)}
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			quiet, unspread, courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(time.Minute)
		require.Zero(t, c.Stats().InHand)
		require.NoError(t, stop())
		var events []courier.ReleaseEvent
		for _, e := range told.Events() {
			if e, ok := e.(courier.ReleaseEvent); ok {
				events = append(events, e)
			}
		}
		require.Len(t, events, 1)
		require.Equal(t, 1, events[0].Records)
		require.ErrorIs(t, events[0].Err, courier.ErrPanic)
	})
}

type goneRelease struct{ *leasing[int] }

func (goneRelease) Release(context.Context, []int, time.Duration) error {
	runtime.Goexit()
	return nil
}
