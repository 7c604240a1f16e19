package courier_test

// The streaming coordinator: shares, flushes, marks, and the end of a stream.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// A record that takes long keeps no other waiting while a worker is idle.
func TestD3_Stream_WhatIsBehindASlowRecordGoesToIdleWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				time.Sleep(time.Hour)
			}
			time.Sleep(time.Millisecond)
			return nil
		}}
		var marked collector
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(100, false), marked.mark), courier.Applier[int](s), courier.WithStreamWorkers(2), courier.WithDrainTimeout(2*time.Hour), quiet))
		time.Sleep(time.Second)
		require.Len(t, s.got(), 99)
		require.Len(t, marked.all(), 99, "and they are marked")
		require.NoError(t, stop())
		require.Len(t, marked.all(), 100)
	})
}

// What a worker has applied is marked in time, though its share is not through.
func TestStream_FlushesWhatABusyWorkerHasApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		s := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Second); return nil })
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(60, false), marked.mark), s, courier.WithFlushInterval(2*time.Second), courier.WithDrainTimeout(time.Hour), quiet))
		time.Sleep(20500 * time.Millisecond)
		require.GreaterOrEqual(t, len(marked.all()), 16)
		require.NoError(t, stop())
		require.Equal(t, numbers(60), marked.all())
	})
}

// The flush interval counts from when a record was applied, not from when the
// stream came to know of it.
func TestStream_NoRecordWaitsLongerThanTheFlushInterval(t *testing.T) {
	for name, c := range map[string]struct {
		workers         int
		apply, interval time.Duration
	}{
		"a worker in the middle of its share":          {1, 1500 * time.Millisecond, 2 * time.Second},
		"a worker that others have nothing to do with": {2, 3 * time.Millisecond, 2 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				applied := map[int]time.Time{}
				var longest time.Duration
				s := courier.ProcessFunc(func(_ context.Context, r int) error {
					time.Sleep(c.apply)
					mu.Lock()
					defer mu.Unlock()
					applied[r] = time.Now()
					return nil
				})
				mark := func(_ context.Context, records []int) error {
					mu.Lock()
					defer mu.Unlock()
					for _, r := range records {
						longest = max(longest, time.Since(applied[r]))
					}
					return nil
				}
				require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(20, true), mark), s, courier.WithFlushInterval(c.interval), courier.WithStreamWorkers(c.workers), quiet).Start(t.Context()))
				require.Len(t, applied, 20)
				require.LessOrEqual(t, longest, c.interval)
			})
		})
	}
}

// A mark that failed does not wait for the flush interval once more.
func TestStream_AFailedMarkIsTriedAgainWhenItIsSaidToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var again time.Time // as the observer was told
		var marks []time.Time
		mark := func(context.Context, []int) error {
			if marks = append(marks, time.Now()); len(marks) == 1 {
				return errTest
			}
			return nil
		}
		s := courier.ProcessFunc(func(_ context.Context, r int) error { time.Sleep(time.Duration(r) * 10 * time.Hour); return nil })
		told := courier.Observer{Marked: func(_ context.Context, e courier.MarkEvent) {
			if e.Err != nil {
				again = time.Now().Add(e.RetryIn)
			}
		}}
		require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, true), mark), s, courier.WithFlushInterval(time.Hour), courier.WithObserver(told), quiet).Start(t.Context()))
		require.Len(t, marks, 3)
		require.Equal(t, again, marks[1])
	})
}

func TestD4_Stream_MarksInTheOrderFetchedWhenAsked(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		t.Run(choose(ordered, "marks in order", "marks in any order"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var marked collector
				var once atomic.Bool
				s := courier.ProcessFunc(func(_ context.Context, r int) error {
					time.Sleep(time.Duration(r*7%13) * time.Second)
					if r == 5 && once.CompareAndSwap(false, true) {
						return errTest
					}
					return nil
				})
				opts := []courier.Option{courier.WithStreamWorkers(8), courier.WithBatchSize(20), quiet}
				if ordered {
					opts = append(opts, courier.WithOrderedMarks())
				}
				require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(200, true), marked.mark), s, opts...).Start(t.Context()))
				require.ElementsMatch(t, numbers(200), marked.all())
				require.Equal(t, ordered, slices.IsSorted(marked.all()))
			})
		})
	}
}

// D11: what is not settled holds up the marks behind it, and then the stream.
func TestD11_Stream_OrderedMarksHoldUpTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		release := make(chan struct{})
		s := courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 3 {
				<-release
			}
			return nil
		})
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(200, true), marked.mark), s,
			courier.WithStreamWorkers(4), courier.WithBatchSize(10), courier.WithOrderedMarks(), courier.WithPrefetch(2), quiet)
		ended := make(chan error, 1)
		go func() { ended <- c.Start(t.Context()) }()
		time.Sleep(time.Hour)
		require.Equal(t, []int{0, 1, 2}, marked.all())
		require.EqualValues(t, 30, c.Stats().InHand, "three batches")
		close(release)
		require.NoError(t, <-ended)
		require.Equal(t, numbers(200), marked.all())
	})
}

// The producer of a channel waits when nothing is taken off it.
func TestD11_Stream_BackPressureReachesTheProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int)
		var sent atomic.Int64
		go func() {
			defer close(ch)
			for i := range 1000 {
				ch <- i
				sent.Add(1)
			}
		}()
		hold := make(chan struct{})
		s := courier.ProcessFunc(func(context.Context, int) error { <-hold; return nil })
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), s, courier.WithBatchSize(10), quiet)
		ended := make(chan error, 1)
		go func() { ended <- c.Start(t.Context()) }()
		time.Sleep(time.Minute)
		require.EqualValues(t, 20, sent.Load())
		close(hold)
		require.NoError(t, <-ended)
		require.EqualValues(t, 1000, sent.Load())
	})
}

func TestStream_TheEndHandsBackWhatKeepsFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		ch := stream(3)
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 1 {
				return errTest
			}
			return nil
		}}
		err := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), s, quiet).Start(t.Context())
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.ErrorIs(t, err, errTest)
		require.Equal(t, []int{1}, left.Records)
		require.Equal(t, []int{0, 2}, marked.all())
		require.Equal(t, 2+3, s.called(), "it had three tries")
	})
}

func TestStream_FlushesByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int)
		var marked collector
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 3 {
				time.Sleep(time.Minute)
			}
			return nil
		}), courier.WithStreamWorkers(2), courier.WithFlushInterval(time.Second), quiet))
		ch <- 3 // keeps one worker busy
		synctest.Wait()
		ch <- 1
		ch <- 2
		synctest.Wait()
		require.Empty(t, marked.all())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, [][]int{{1, 2}}, marked.calls)
		require.NoError(t, stop())
		require.Equal(t, [][]int{{1, 2}, {3}}, marked.calls)
		require.Equal(t, []error{nil, nil}, marked.ctx, "a mark begins under a live context, however late")
	})
}

func TestStream_ASecondStartIsAClearError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(make(chan int), nop[[]int]), courier.ProcessFunc(nop[int]))
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Start(t.Context()), courier.ErrRunning)
		require.NoError(t, stop())
	})
}

func TestChannelSource(t *testing.T) {
	ch := make(chan int, 5)
	for i := range 5 {
		ch <- i
	}
	source := courier.NewChannelSource(ch, nop[[]int])
	got, err := source.Fetch(t.Context(), 3)
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 2}, got)
	close(ch)
	got, err = source.Fetch(t.Context(), 3)
	require.NoError(t, err)
	require.Equal(t, []int{3, 4}, got)
	_, err = source.Fetch(t.Context(), 3)
	require.ErrorIs(t, err, io.EOF)

	cause := errors.New("called off")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err = courier.NewChannelSource(make(chan int), nop[[]int]).Fetch(ctx, 1)
	require.ErrorIs(t, err, cause)
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

// With marks in order, what was applied behind a record that is handed back cannot
// be marked, and Start says so.
func TestD1_OrderedMarksThatAreHeldUpAtTheEndAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked []int
		source := courier.NewChannelSource(full(3, false), func(_ context.Context, r []int) error { marked = append(marked, r...); return nil })
		stop := start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 0 {
				return errTest
			}
			return nil
		}), courier.WithOrderedMarks(), quiet))
		time.Sleep(time.Minute)
		err := stop()
		var left *courier.UnsettledError[int]
		var unmarked *courier.MarkError
		require.ErrorAs(t, err, &left)
		n := len(left.Records) + len(marked)
		if errors.As(err, &unmarked) {
			n += unmarked.Records
		}
		require.Equal(t, 3, n, "each of three records is marked, handed back or told to be unmarked: %v", err)
	})
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

// At the end of a stream with an order key, what failed goes back to a source
// that takes it, and with it what waits behind.
func TestStream_TheEndGivesBackWhatFailedWithAnOrderKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2, 3)}
		done := false
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if done {
				return nil, io.EOF
			}
			done = true
			return source.leasing.Fetch(ctx, limit)
		}
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				return errTest
			}
			return nil
		}}
		err := courier.NewStreamingCoordinator(source, s, quiet, courier.WithOrderKey(byRest(2))).Start(t.Context())
		require.NoError(t, err, "the source takes records back")
		require.ElementsMatch(t, []int{0, 2}, slices.Concat(source.released...))
	})
}

// No alarm every 5 ms for as long as a batch is with the applier.
func TestStream_ABatchThatTakesLongIsNotLookedAtAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
			if len(records) > 1 {
				time.Sleep(time.Hour)
			}
			return nil
		}}
		var c counting
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(3, false), nop[[]int]), courier.Applier[int](s),
			courier.WithStreamWorkers(2), courier.WithClock(&c), courier.WithDrainTimeout(2*time.Hour), quiet))
		time.Sleep(time.Minute)
		n := c.n.Load()
		require.NoError(t, stop())
		require.Less(t, n, int64(1000), "in a minute")
	})
}

func TestD10_Stream_ReleasesDoNotStarveMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &slowRelease{leasing: newLeasing(0, 1)}
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r < 2 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet))
		for i := range 60 {
			time.Sleep(time.Minute)
			source.add(10 + i)
		}
		time.Sleep(time.Minute)
		require.Len(t, source.marked(), 60)
		require.NoError(t, stop())
	})
}

type slowRelease struct{ *leasing[int] }

func (s *slowRelease) Release(ctx context.Context, records []int, after time.Duration) error {
	err := s.leasing.Release(ctx, records, after)
	time.Sleep(10 * time.Second) // the records are back, and fail again, before it returns
	return err
}

func TestD1_Stream_AConnectionThatBreaksIsNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(1)
		source.wait = true
		fetches := 0
		wrapped := &fetchFunc[int]{Source: source, fetch: func(ctx context.Context, limit int) ([]int, error) {
			if fetches++; fetches == 1 {
				return nil, fmt.Errorf("Get: %w", io.EOF)
			}
			return source.Fetch(ctx, limit)
		}}
		stop := start(t, courier.NewStreamingCoordinator(wrapped, &sink[int]{}, quiet))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{1}, source.marked())
	})
}
