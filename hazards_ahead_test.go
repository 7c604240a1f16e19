package courier_test

// What is fetched ahead, and all that may end meanwhile.

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// D8: a stop that comes while a batch is marked has what was fetched ahead given
// back too.
func TestD8_AStopDuringTheMarkReleasesWhatWasFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &hazardousSource{leasing: newLeasing(numbers(40)...), markFor: time.Second}
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(2)))
		time.Sleep(10500 * time.Millisecond) // the first ten are being marked
		require.NoError(t, stop())
		require.Equal(t, numbers(10), source.marked())
		free, err := source.leasing.Fetch(t.Context(), 100)
		require.NoError(t, err)
		require.ElementsMatch(t, numbers(40)[10:], free)
	})
}

// When a breaker opens, marks do not wait for a Fetch that is under way ahead: here
// one that polls long, as of SQS.
func TestPrefetch_AnOpenBreakerDoesNotHaveMarksWaitForAFetchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &hazardousSource{leasing: newLeasing(0, 1)}
		fetches := 0
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if fetches++; fetches > 1 {
				select {
				case <-time.After(20 * time.Second):
				case <-ctx.Done():
				}
			}
			return source.leasing.Fetch(ctx, limit)
		}
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 1 {
				return &courier.OpenError{Until: time.Now().Add(time.Second)}
			}
			return nil
		}}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithPrefetch(1)))
		time.Sleep(time.Second)
		marked := source.marked()
		require.NoError(t, stop())
		require.Equal(t, []int{0}, marked)
	})
}

// The same at a stop, with a Fetch that does not heed its context for longer
// than the drain timeout: what was applied in time is marked.
func TestD8_AStopDoesNotHaveMarksWaitForAFetchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &hazardousSource{leasing: newLeasing(0, 1)}
		fetches := 0
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if fetches++; fetches > 1 {
				time.Sleep(time.Minute)
			}
			return source.leasing.Fetch(ctx, limit)
		}
		source.markErr = nil
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithPrefetch(1)))
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, stop())
		for _, err := range source.markCtx {
			require.NoError(t, err, "Mark was called under a context that had ended")
		}
	})
}

// Nothing is fetched after Pause, after a stop, or while a breaker is open, the
// fetches ahead included that were asked for before.
func TestPrefetch_NothingIsFetchedAheadAfterAStopOrAPause(t *testing.T) {
	for _, how := range []string{"stop", "pause", "breaker"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &hazardousSource{leasing: newLeasing(numbers(100)...)}
				var fetches, after int
				var over atomic.Bool
				source.fetch = func(ctx context.Context, limit int) ([]int, error) {
					if over.Load() {
						after++
					}
					if fetches++; fetches > 1 {
						time.Sleep(2 * time.Second)
					}
					return source.leasing.Fetch(ctx, limit)
				}
				s := &sink[int]{fail: func(context.Context, int, int) error {
					time.Sleep(time.Second)
					if how == "breaker" {
						over.Store(true)
						return &courier.OpenError{Until: time.Now().Add(time.Hour)}
					}
					return nil
				}}
				c := courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(3))
				stop := start(t, c)
				time.Sleep(1500 * time.Millisecond) // the first of three is under way
				switch how {
				case "pause":
					c.Pause()
				case "stop":
					go func() { _ = c.Stop(t.Context()) }()
				}
				over.Store(true)
				time.Sleep(50 * time.Minute)
				n := after
				require.NoError(t, stop())
				require.Zero(t, n)
			})
		})
	}
}

// FetchEvent.Elapsed of a batch fetched ahead is its own.
func TestPrefetch_TheElapsedTimeOfAFetchIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(newLeasing(numbers(20)...), s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(1), courier.WithObserver(told.Observer())))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		for _, e := range courierttest.EventsOf[courier.FetchEvent](&told) {
			require.Zero(t, e.Elapsed)
		}
	})
}

// A waiting record that comes again with a batch that was fetched ahead is known.
func TestPrefetch_AWaitingRecordThatComesAgainIsKnown(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		source := newLeasing(numbers(40)...)
		destination := newBusy(10*time.Second, 0)
		applier := courier.ProcessFunc(func(ctx context.Context, r int) error {
			time.Sleep(time.Second)
			return destination.Apply(ctx, r)
		})
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithBatchSize(4), courier.WithPrefetch(1)))
		time.Sleep(3500 * time.Millisecond)
		source.mu.Lock()
		delete(source.out, 0) // its lease runs out
		source.mu.Unlock()
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Len(t, destination.called(0), 2)
	})
}
