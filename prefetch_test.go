package courier_test

// Batches that are fetched ahead, and everything that may end them.

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// D11: as many batches ahead as were asked for, of a source that leases.
func TestD11_BatchesAreFetchedAhead(t *testing.T) {
	for _, ahead := range []int{0, 1, 3} {
		synctest.Test(t, func(t *testing.T) {
			source := newLeasing(numbers(100)...)
			var mu sync.Mutex
			inHand, most := 0, 0
			watched := courier.WithObserver(courier.Observer{Marked: func(_ context.Context, e courier.MarkEvent) {
				mu.Lock()
				defer mu.Unlock()
				inHand -= e.Records
			}})
			s := &sink[int]{fail: func(context.Context, int, int) error {
				time.Sleep(time.Millisecond)
				source.mu.Lock()
				out := len(source.out)
				source.mu.Unlock()
				mu.Lock()
				defer mu.Unlock()
				most = max(most, out+inHand)
				return nil
			}}
			stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(ahead), watched))
			time.Sleep(time.Minute)
			require.NoError(t, stop())
			require.Equal(t, numbers(100), s.got())
			require.Empty(t, source.left())
			require.LessOrEqual(t, most, 10*(1+ahead))
			if ahead > 0 {
				require.Greater(t, most, 10)
			}
		})
	}
}

func TestD8_WhatWasFetchedAheadIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(40)...)
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(2)))
		time.Sleep(2500 * time.Millisecond)
		require.NoError(t, stop())
		require.Equal(t, numbers(3), s.got())
		require.ElementsMatch(t, numbers(30)[3:], slices.Concat(source.released...))
	})
}

// D8: a stop gives back what was fetched ahead.
func TestD8_AStopReleasesWhatWasFetchedAhead(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := records.LeasingSource(time.Hour, numbers(20)...)
		sink := records.Applier(courierttest.MustParse(`delay 1s`))
		courierttest.RunFor(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet), 4500*time.Millisecond)
		require.Empty(t, source.InHand())
		require.Equal(t, numbers(5), records.Records(courierttest.Marked))
		require.Equal(t, numbers(20)[5:], source.Pending())
	})
}

// A poller that is stopped while it marks gives back what it has fetched ahead,
// though the stop is seen behind the settling of the batch.
func TestD8_AStopDuringAMarkGivesBackWhatWasFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newDesk(6)
		source.slow = time.Second
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- courier.NewPollingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error { return nil }),
				courier.WithBatchSize(2), courier.WithPrefetch(1), quiet).Start(ctx)
		}()
		time.Sleep(1500 * time.Millisecond) // in the second mark
		cancel()
		require.NoError(t, <-ended)
		require.Empty(t, source.out, "not given back")
	})
}

// D8: a stop that comes while a batch is marked has what was fetched ahead given
// back too.
func TestD8_AStopDuringTheMarkReleasesWhatWasFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(numbers(40)...), markFor: time.Second}
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
		source := &renewable{leasing: newLeasing(0, 1)}
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
		source := &renewable{leasing: newLeasing(0, 1)}
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
				source := &renewable{leasing: newLeasing(numbers(100)...)}
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

// A fetch ahead that fails while a breaker opens is not told as one that went well.
func TestPrefetch_AFailedFetchIsToldWhenItIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1)}
		fetches := 0
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if fetches++; fetches == 2 {
				return nil, errTest
			}
			return source.leasing.Fetch(ctx, limit)
		}
		s := &sink[int]{fail: func(context.Context, int, int) error {
			time.Sleep(time.Second)
			return &courier.OpenError{Until: time.Now().Add(time.Hour)}
		}}
		c := courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithPrefetch(1))
		stop := start(t, c)
		time.Sleep(time.Minute)
		n := c.Stats().FetchFailures
		require.NoError(t, stop())
		require.EqualValues(t, 1, n)
	})
}

// Fetching ahead for hours costs no memory (D11).
func TestD11_PrefetchKeepsNothingOfEarlierBatches(t *testing.T) {
	const batches = 40_000
	for _, prefetch := range few(1, 2, 5) {
		t.Run(fmt.Sprint("prefetch ", prefetch), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var early, late runtime.MemStats
			source := &endless{at: map[int]func(){
				batches / 10: func() { runtime.GC(); runtime.ReadMemStats(&early) },
				batches:      func() { runtime.GC(); runtime.ReadMemStats(&late); cancel() },
			}}
			c := courier.NewPollingCoordinator[int](source, courier.ProcessFunc(func(context.Context, int) error { return nil }), quiet, courier.WithBatchSize(2), courier.WithPrefetch(prefetch))
			require.NoError(t, c.Start(ctx))
			require.Less(t, float64(late.HeapAlloc)-float64(early.HeapAlloc), 1e6)
		})
	}
}

// What was asked for ahead may not be fetched after all, as the source had no more. If
// waiting records fill the hand by then, nothing is fetched, and the coordinator says so.
func TestD11_AFullHandFetchesNothingInPlaceOfABatchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(3)...)
		var fetches []int // the records that were waiting
		var told courierttest.ObserverRecorder
		var c *courier.PollingCoordinator[int]
		watched := courier.WithObserver(courier.Observer{Fetched: func(context.Context, courier.FetchEvent) {
			fetches = append(fetches, c.Stats().Waiting)
		}})
		c = courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r < 2 && len(fetches) < 10 {
				return courier.Later(errTest, 8*time.Second)
			}
			return nil
		}), quiet, watched, courier.WithObserver(told.Observer()), courier.WithBatchSize(2), courier.WithPrefetch(3), courier.WithWorkers(2), courier.WithInterval(time.Second))
		stop := start(t, c)
		time.Sleep(7 * time.Second)
		require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), 1)
		require.Equal(t, []int{0, 2}, fetches)
		require.NoError(t, stop())
	})
}

// endless is a leasing source that always has a full batch, and calls at after so
// many fetches.
type endless struct {
	fetches int
	at      map[int]func()
}

func (e *endless) Fetch(_ context.Context, limit int) ([]int, error) {
	e.fetches++
	if f := e.at[e.fetches]; f != nil {
		f()
	}
	return make([]int, limit), nil
}

func (*endless) Mark(context.Context, []int) error                   { return nil }
func (*endless) Release(context.Context, []int, time.Duration) error { return nil }

// A queue that refuses records stops the intake. What was fetched ahead by then is in
// hand, and its healthy records wait for nothing.
func TestD3_AFullQueueHoldsUpNothingFetchedAhead(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		queue := &outOfOrder{DLQ: &courier.MemoryDLQ[int]{Capacity: 100}}
		queue.down.Store(true)
		a := courier.NewDLQApplier(courier.ProcessFunc(func(_ context.Context, i int) error {
			if i != 7 {
				return courier.Permanent(errors.New("poison"))
			}
			return nil
		}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
		source := r.LeasingSource(time.Hour)
		for i := range 1000 {
			source.Add(i)
		}
		fetched := 0
		c := courier.NewPollingCoordinator[int](source, a, quiet, courier.WithBatchSize(1), courier.WithPrefetch(9), courier.WithInterval(time.Second),
			courier.WithObserver(courier.Observer{Fetched: func(context.Context, courier.FetchEvent) { fetched++ }}))
		run := courierttest.Start(t, c)
		time.Sleep(10 * time.Millisecond)
		require.False(t, slices.Contains(source.Pending(), 7))
		time.Sleep(time.Minute)
		require.NoError(t, run.Stop())
		require.Less(t, fetched, 40) // of a source that is not drained
	})
}
