package courier_test

// Wake and Lag.

import (
	"context"
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
