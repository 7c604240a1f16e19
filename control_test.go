package courier_test

// Wake and Lag.

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestWake_FetchesWithoutWaitingTheIntervalOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf[int]()
		c := courier.NewPollingCoordinator(source, &sink[int]{}, courier.WithInterval(time.Hour), quiet)
		stop := start(t, c)
		synctest.Wait()
		source.add(1)
		c.Wake()
		synctest.Wait()
		require.Equal(t, []int{1}, source.marked())
		require.Equal(t, 2, source.fetchCount(), "and not once more for a wake-up that was used")
		require.NoError(t, stop())
	})
}

// waking is a source that says when there is work.
type waking struct {
	*shelf[int]
	wake chan struct{}
}

func (w *waking) Wake() <-chan struct{} { return w.wake }

func TestWake_TheSourceMayDoIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &waking{newShelf[int](), make(chan struct{}, 1)}
		stop := start(t, courier.NewPollingCoordinator(source, &sink[int]{}, courier.WithInterval(time.Hour), quiet))
		synctest.Wait()
		source.add(1)
		source.wake <- struct{}{}
		synctest.Wait()
		require.Equal(t, []int{1}, source.marked())
		close(source.wake) // a source that has given up waking leaves the interval, and no busy loop
		fetches := source.fetchCount()
		time.Sleep(2*time.Hour + time.Minute)
		require.LessOrEqual(t, source.fetchCount()-fetches, 4)
		require.NoError(t, stop())
	})
}

// slowWaking takes a second for a fetch.
type slowWaking struct{ *waking }

func (w slowWaking) Fetch(ctx context.Context, limit int) ([]int, error) {
	time.Sleep(time.Second)
	return w.waking.Fetch(ctx, limit)
}

// Two wake-ups at once, of which either may be met first, are for one fetch.
func TestWake_TheSourceAndTheCallerDoItAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := slowWaking{&waking{newShelf[int](), make(chan struct{}, 1)}}
		c := courier.NewPollingCoordinator(source, &sink[int]{}, courier.WithInterval(time.Hour), quiet)
		stop := start(t, c)
		synctest.Wait()
		for n := 1; n < 40; n++ { // while a fetch is under way
			source.wake <- struct{}{}
			c.Wake()
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, n, source.fetchCount())
		}
		time.Sleep(time.Minute)
		require.Equal(t, 40, source.fetchCount(), "and none for a wake-up that was used")
		require.NoError(t, stop())
	})
}

func TestStats_CountWhatWasDone(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(10)...)
		source.markErr = func(n int) error {
			if n == 1 {
				return errTest
			}
			return nil
		}
		retried := atomic.Bool{}
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(_ context.Context, r, _ int) error {
			switch {
			case r == 3:
				return courier.Permanent(errTest)
			case r == 4:
				return courier.Skip(errTest)
			case r == 5 && retried.CompareAndSwap(false, true):
				return errTest
			}
			return nil
		}}, nil)
		c := make(applier)
		require.Equal(t, courier.Stats{Breakers: []courier.BreakerStats{{BreakerMetrics: courier.BreakerMetrics{State: courier.BreakerClosed}}}}, c.Stats())
		stop := start(t, c)
		time.Sleep(time.Minute)
		s := c.Stats()
		require.NoError(t, stop())
		require.ErrorIs(t, s.LastError, errTest)
		require.False(t, s.LastErrorAt.IsZero())
		s.LastError, s.LastErrorAt = nil, time.Time{}
		require.Equal(t, courier.Stats{
			Fetched: 10, Applied: 10, Skipped: 1, Parked: 1, Retried: 1, Marked: 10,
			MarkFailures: 1,
			Breakers:     []courier.BreakerStats{{BreakerMetrics: courier.BreakerMetrics{State: courier.BreakerClosed}}},
		}, s)
	})
}

func TestStats_FailuresAndReleases(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(4)...)
		c := make(&sink[int]{fail: func(_ context.Context, r, call int) error {
			if r == 2 && call < 10 {
				return errTest
			}
			return nil
		}})
		stop := start(t, c)
		time.Sleep(time.Second)
		s := c.Stats()
		require.Positive(t, s.Failed)
		require.Equal(t, s.Failed, s.Released)
		require.Equal(t, s.Applied, s.Marked)
		require.Equal(t, s.Fetched, s.Marked+s.Released+s.InHand)
		require.NoError(t, stop())
		require.Zero(t, c.Stats().InHand)
	})
}

// lagging is a source that knows how far behind it is.
type lagging struct{ *shelf[int] }

func (l lagging) Lag(context.Context) (courier.Lag, error) {
	if len(l.left()) > 5 {
		panic("too many to count")
	}
	return courier.Lag{Pending: len(l.left()), Oldest: time.Minute}, nil
}

func TestLag_IsTheSourcesToTell(t *testing.T) {
	source := lagging{newShelf(1, 2, 3)}
	c := courier.NewPollingCoordinator(source, &sink[int]{}, quiet)
	lag, err := c.Lag(t.Context())
	require.NoError(t, err)
	require.Equal(t, courier.Lag{Pending: 3, Oldest: time.Minute}, lag)
	source.add(4, 5, 6)
	_, err = c.Lag(t.Context())
	require.ErrorIs(t, err, courier.ErrPanic)
	_, err = courier.NewPollingCoordinator(source.shelf, &sink[int]{}, quiet).Lag(t.Context())
	require.ErrorIs(t, err, courier.ErrNoLag)
}
