package courier_test

// Wake and Lag.

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestD8_StopEndsTheRunAndWaitsForIt(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(5)...)
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		c := make(s)
		require.NoError(t, c.Stop(t.Context()), "nothing runs")
		ended := false
		result := error(nil)
		go func() {
			result = c.Start(t.Context())
			ended = true
		}()
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, c.Stop(t.Context()))
		synctest.Wait()
		require.True(t, ended)
		require.NoError(t, result)
		require.Equal(t, []int{0, 1}, s.got())
		require.Equal(t, []int{0, 1}, source.marked())
		require.Equal(t, []int{2, 3, 4}, source.left())

		// Start after Stop works.
		stop := start(t, c)
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
	})
}

func TestD8_StopReturnsWhenItsOwnContextEnds(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(1)
		c := make(&sink[int]{fail: func(context.Context, int, int) error { time.Sleep(5 * time.Second); return nil }})
		ended := start(t, c)
		time.Sleep(time.Second)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Stop(impatient), context.DeadlineExceeded)
		require.NoError(t, c.Stop(t.Context()), "the stop goes on")
		require.NoError(t, ended())
		require.Equal(t, []int{1}, source.marked())
	})
}

func TestPause_NothingIsFetchedUntilResume(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		s := &sink[int]{}
		c := make(s)
		c.Pause() // before Start too
		c.Pause()
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Ready(), courier.ErrPaused)
		source.add(1, 2)
		time.Sleep(time.Hour)
		require.Empty(t, s.got())
		c.Resume()
		synctest.Wait()
		require.NoError(t, c.Ready())
		require.Equal(t, []int{1, 2}, s.got())

		c.Pause()
		synctest.Wait()
		source.add(3)
		time.Sleep(time.Hour)
		require.Equal(t, []int{1, 2}, s.got(), "a fetch that blocks is called back")
		c.Resume()
		synctest.Wait()
		require.Equal(t, []int{1, 2, 3}, s.got())
		require.NoError(t, stop())
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
	})
}

// What is in hand when Pause is called is worked off and marked.
func TestPause_WorksOffWhatIsInHand(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(10)...)
		c := make(&sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }})
		stop := start(t, c)
		time.Sleep(1500 * time.Millisecond)
		c.Pause()
		time.Sleep(time.Minute)
		require.Equal(t, numbers(10), source.marked())
		require.NoError(t, stop())
	})
}

func TestPause_AStopEndsIt(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		c := make(&sink[int]{})
		c.Pause()
		stop := start(t, c)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(began))
	})
}

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

func TestReady_SaysWhatStandsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1)
		var fetchErr, markErr, applyErr fault
		source.fetchErr = func(int) error { return fetchErr.get() }
		source.markErr = func(int) error { return markErr.get() }
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error { return applyErr.get() }}, nil)
		c := courier.NewPollingCoordinator(source, applier, courier.WithFastPolling(), quiet)
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)

		refused, readOnly := errors.New("connection refused"), errors.New("read-only")
		fetchErr.set(refused)
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Ready(), refused)
		fetchErr.set(nil)
		markErr.set(readOnly)
		time.Sleep(time.Minute)
		require.ErrorIs(t, c.Ready(), readOnly)
		markErr.set(nil)
		time.Sleep(time.Minute)
		require.NoError(t, c.Ready())

		applyErr.set(errTest)
		source.add(2, 3, 4)
		time.Sleep(time.Minute)
		require.ErrorIs(t, c.Ready(), courier.ErrOpen)
		require.Len(t, c.Stats().Breakers, 1)
		require.Equal(t, courier.BreakerOpen, c.Stats().Breakers[0].State)
		require.ErrorIs(t, c.Stats().Breakers[0].Cause, errTest)
		applyErr.set(nil)
		time.Sleep(2 * time.Minute)
		require.NoError(t, c.Ready())
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

// A resume is one fetch: the wake-up that it is does not end the rest behind that.
func TestPause_AResumeFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int32
		source := courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { fetches.Add(1); return nil, nil },
			MarkFunc:  nop[[]int],
		}
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(nop[int]), quiet, courier.WithInterval(time.Minute))
		c.Pause()
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Resume()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, fetches.Load())
		require.NoError(t, stop())
	})
}
