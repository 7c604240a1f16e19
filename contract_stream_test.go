package courier_test

// The delivery contract by number, for the streaming coordinator.

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestD1_Stream_EndsWhenAllIsSettled(t *testing.T) {
	for _, workers := range []int{1, 4} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var marked collector
				ch := stream(1000)
				s := &sink[int]{fail: func(_ context.Context, _, call int) error {
					if call%7 == 0 {
						return errTest
					}
					return nil
				}}
				c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.WithRetry[int](s), courier.WithStreamWorkers(workers), quiet)
				require.NoError(t, c.Start(t.Context()))
				require.ElementsMatch(t, numbers(1000), s.got())
				require.ElementsMatch(t, numbers(1000), marked.all())
			})
		})
	}
}

func TestD3_Stream_AFailedRecordIsTriedAgainAndHoldsBackNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int)
		var marked collector
		s := &sink[int]{fail: func(_ context.Context, r, call int) error {
			if r == 1 && call < 10 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), s, quiet))
		for i := range 4 {
			ch <- i
		}
		synctest.Wait()
		require.Equal(t, []int{0, 2, 3}, marked.all())
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 2, 3, 1}, marked.all())
	})
}

func TestD3_Stream_AFailedRecordIsReleasedToASourceThatTakesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(3)...)
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, call int) error {
			if r == 1 && call < 3 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, [][]int{{1}}, source.released)
		require.ElementsMatch(t, numbers(3), source.marked())
	})
}

func TestD4_Stream_OneWorkerAppliesInOrder(t *testing.T) {
	var marked collector
	ch := stream(1000)
	var applied []int // no lock
	c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(_ context.Context, r int) error {
		applied = append(applied, r)
		return nil
	}), quiet)
	require.NoError(t, c.Start(t.Context()))
	require.Equal(t, numbers(1000), applied)
}

func TestD6_Stream_AnOutagePausesIntakeAndParksOnlyPoison(t *testing.T) {
	for _, workers := range []int{1, 8} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var marked collector
				ch := stream(100)
				began := time.Now()
				var during atomic.Int32
				applier, dlq := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					if time.Since(began) < time.Hour {
						during.Add(1)
						return errTest
					}
					if r == 13 {
						return errors.New("poison")
					}
					return nil
				}), nil)
				c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), applier, courier.WithStreamWorkers(workers), quiet)
				require.NoError(t, c.Start(t.Context()))
				parked, _ := dlq.Receive(t.Context(), 100)
				require.Len(t, parked, 1)
				require.Equal(t, 13, parked[0].Record)
				require.ElementsMatch(t, numbers(100), marked.all())
				// 5 failures open the breaker (as many more may be under way), then
				// one probe for each period of at least 48 s, the first few less.
				require.LessOrEqual(t, int(during.Load()), 5+workers+8+75)
			})
		})
	}
}

func TestD7_Stream_AFailedMarkIsRetriedAndNothingIsAppliedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := stream(50)
		s := &sink[int]{}
		calls := 0
		var marked []int
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, func(ctx context.Context, r []int) error {
			if calls++; calls <= 3 {
				return errTest
			}
			marked = append(marked, r...)
			return nil
		}), s, courier.WithBatchSize(10), quiet)
		require.NoError(t, c.Start(t.Context()))
		require.Equal(t, numbers(50), s.got())
		require.Equal(t, numbers(50), marked)
	})
}

func TestD7_Stream_NothingIsFetchedWhileAMarkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(0)
		source.wait = true
		var failing atomic.Bool
		failing.Store(true)
		source.markErr = func(int) error {
			if failing.Load() {
				return errTest
			}
			return nil
		}
		s := &sink[int]{}
		stop := start(t, courier.NewStreamingCoordinator(source, s, courier.WithBatchSize(10), quiet))
		for i := range 6 {
			time.Sleep(time.Second)
			source.add(1 + i)
		}
		time.Sleep(time.Hour)
		// The fetch that was waiting when the mark failed brings one record more.
		require.Equal(t, []int{0, 1}, s.got())
		failing.Store(false)
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, numbers(7), s.got())
		require.Equal(t, numbers(7), source.marked())
	})
}

func TestD8_Stream_AStopFinishesWhatIsInWorkAndReleasesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(10)...)
		source.wait = true
		ctx, cancel := context.WithCancel(t.Context())
		c := courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(ctx context.Context, r int) error {
			if r == 3 {
				cancel()
				time.Sleep(time.Second)
			}
			return ctx.Err()
		}), quiet)
		require.NoError(t, c.Start(ctx))
		require.Equal(t, []int{0, 1, 2, 3}, source.marked())
		require.ElementsMatch(t, []int{4, 5, 6, 7, 8, 9}, slices.Concat(source.released...))
	})
}

func TestD8_Stream_AChannelIsWorkedOffAtAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int, 10)
		for i := range 10 {
			ch <- i
		}
		var marked collector
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(ctx context.Context, _ int) error {
			time.Sleep(100 * time.Millisecond)
			return ctx.Err()
		}), quiet))
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, stop())
		require.Equal(t, numbers(10), marked.all(), "a channel takes nothing back")
	})
}

func TestD8_Stream_WhatTheDrainTimeoutLeavesIsHandedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		ch := make(chan int, 3)
		ch <- 0
		ch <- 1
		ch <- 2
		var marked collector
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(ctx context.Context, r int) error {
			if r == 0 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}), courier.WithDrainTimeout(3*time.Second), courier.WithLogger(textLogger(&logged))))
		synctest.Wait()
		before := time.Now()
		err := stop()
		require.Equal(t, 3*time.Second, time.Since(before))
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.ErrorIs(t, err, courier.ErrUnsettled)
		require.ElementsMatch(t, []int{1, 2}, left.Records)
		require.Equal(t, []int{0}, marked.all())
		require.Contains(t, logged.String(), "cannot be given back")
	})
}

func TestD8_Stream_AStopWhilePausedReturnsAtOnce(t *testing.T) { // C-5
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(5)...)
		source.wait = true
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), nil)
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet))
		time.Sleep(time.Minute)
		synctest.Wait()
		before := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(before))
		require.ElementsMatch(t, numbers(5), source.left())
		require.Empty(t, source.out, "all is released")
	})
}

func TestD8_Stream_AMarkThatFailsUntilTheEndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int, 1)
		ch <- 0
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, func(context.Context, []int) error { return errTest }), &sink[int]{}, quiet))
		synctest.Wait()
		before := time.Now()
		err := stop()
		require.ErrorIs(t, err, courier.ErrMark)
		require.ErrorIs(t, err, errTest)
		require.LessOrEqual(t, time.Since(before), 10*time.Second)
	})
}

func TestD9_Stream_UserCodeMayPanicOrExit(t *testing.T) {
	for name, end := range map[string]func(){
		"panic":  func() { panic("boom") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newLeasing(numbers(20)...)
				source.wait = true
				var fetches, marks, applies atomic.Int32
				wrapped := &userCode{leasing: source, before: func(n *atomic.Int32) {
					if n.Add(1) <= 2 {
						end()
					}
				}, fetchN: &fetches, markN: &marks}
				stop := start(t, courier.NewStreamingCoordinator(wrapped, courier.ProcessFunc(func(context.Context, int) error {
					if applies.Add(1)%5 == 0 {
						end()
					}
					return nil
				}), courier.WithStreamWorkers(3), quiet))
				time.Sleep(10 * time.Minute)
				require.NoError(t, stop())
				require.ElementsMatch(t, numbers(20), source.marked())
			})
		})
	}
}

// userCode is a leasing source whose methods do something first.
type userCode struct {
	*leasing[int]
	before        func(*atomic.Int32)
	fetchN, markN *atomic.Int32
}

func (u *userCode) Fetch(ctx context.Context, limit int) ([]int, error) {
	u.before(u.fetchN)
	return u.leasing.Fetch(ctx, limit)
}

func (u *userCode) Mark(ctx context.Context, records []int) error {
	u.before(u.markN)
	return u.leasing.Mark(ctx, records)
}

func TestD11_Stream_NoMoreInHandThanTwoBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int)
		sent := 0
		go func() {
			for i := range 1000 {
				select {
				case ch <- i:
					sent++
				case <-t.Context().Done():
					return
				}
			}
		}()
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), courier.ProcessFunc(func(context.Context, int) error {
			<-release
			return nil
		}), courier.WithBatchSize(10), courier.WithStreamWorkers(4), quiet)
		go func() { ended <- c.Start(ctx) }()
		synctest.Wait()
		require.Equal(t, 20, sent)
		close(release)
		synctest.Wait()
		require.Equal(t, 1000, sent)
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestD12_Stream_ASourceThatDoesNotBlockKeepsNoProcessorBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf[int]()
		stop := start(t, courier.NewStreamingCoordinator(source, &sink[int]{}, quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Less(t, source.fetchCount(), 1500)
	})
}
