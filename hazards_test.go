package courier_test

// What hostile or unlucky user code does to the contract: errors that cannot be
// looked into, calls that hang at the wrong moment, sources that do not do as
// they are told. Each was found by attack or by chance.

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestD8_AStopBoundsTheMarkAndTheReleaseInFlight(t *testing.T) {
	for name, hang := range map[string]func(*hanging){
		"mark":    func(h *hanging) { h.mark = true },
		"release": func(h *hanging) { h.release = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &hanging{leasing: newLeasing(1, 2)}
				hang(source)
				s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
					if r == 2 {
						return errTest
					}
					return nil
				}}
				stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithDrainTimeout(time.Second)))
				time.Sleep(time.Minute)
				before := time.Now()
				_ = stop()
				require.LessOrEqual(t, time.Since(before), time.Second)
			})
		})
	}
}

// hanging is a source whose calls heed nothing but their context.
type hanging struct {
	*leasing[int]
	mark, release bool
}

func (h *hanging) Mark(ctx context.Context, records []int) error {
	if h.mark {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.leasing.Mark(ctx, records)
}

func (h *hanging) Release(ctx context.Context, records []int, after time.Duration) error {
	if h.release {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.leasing.Release(ctx, records, after)
}

func TestD8_AStopReleasesWhatCameBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &greedy{newLeasing(numbers(10)...)}
		ctx, cancel := context.WithCancel(t.Context())
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 1 {
				cancel()
			}
			return nil
		}), quiet, courier.WithBatchSize(3))
		require.NoError(t, c.Start(ctx))
		require.Equal(t, []int{0, 1}, source.marked())
		require.ElementsMatch(t, []int{2, 3, 4, 5, 6, 7, 8, 9}, slices.Concat(source.released...))
	})
}

// greedy returns all it has, whatever the limit.
type greedy struct{ *leasing[int] }

func (g *greedy) Fetch(ctx context.Context, _ int) ([]int, error) { return g.leasing.Fetch(ctx, 1000) }

func TestD8_Stream_ARecordThatArrivesWithTheStop(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			ch := make(chan int)
			var marked collector
			stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return ctx.Err()
			}), quiet, courier.WithDrainTimeout(time.Second)))
			synctest.Wait()
			go func() {
				select {
				case ch <- 1:
				case <-t.Context().Done():
				}
			}()
			before := time.Now()
			_ = stop() // the record is in the channel, or comes back as unsettled
			require.LessOrEqual(t, time.Since(before), 2*time.Second)
		})
	}
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

func TestD3_ARetryableErrorWithATimePausesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(10)...)
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return errTest }}
		s.fail = func(_ context.Context, r, _ int) error {
			if r == 0 {
				return &tooMany{time.Now().Add(time.Minute)}
			}
			return nil
		}
		stop := start(t, courier.NewPollingCoordinator(source, courier.WithRetry[int](s), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Equal(t, []int{0}, source.left())
	})
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

func TestD8_AQueueThatHangsIsAskedOnceABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
			var e courier.BatchError
			for i := range records {
				e.Add(i, courier.Permanent(errTest))
			}
			return &e
		}}
		source := newShelf(numbers(100)...)
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewDLQApplier[int](s, courier.DLQ[int](store), courier.DLQPolicy[int]{}), quiet))
		synctest.Wait()
		before := time.Now()
		require.NoError(t, stop())
		require.LessOrEqual(t, time.Since(before), 20*time.Second)
		require.Len(t, source.left(), 100)
	})
}

// The log names the record, and shows where a panic came from.
func TestLog_NamesTheRecord(t *testing.T) {
	var logged strings.Builder
	source := newShelf(name("a"), name("b"))
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, n name) error {
		if n == "b" {
			panic("boom")
		}
		return nil
	}), courier.WithLogger(textLogger(&logged))).RunOnce(t.Context())
	require.ErrorIs(t, err, courier.ErrPanic)
	require.Contains(t, logged.String(), `record="order b"`)
	require.Contains(t, logged.String(), "hazards_test.go")

	logged.Reset()
	synctest.Test(t, func(t *testing.T) {
		stop := start(t, courier.NewPollingCoordinator(newShelf(1, 2), courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}), courier.WithLogger(textLogger(&logged))))
		synctest.Wait()
		require.NoError(t, stop())
	})
	require.Contains(t, logged.String(), "the drain timeout cut the work short")
}

type name string

func (n name) String() string { return "order " + string(n) }
