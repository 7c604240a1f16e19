package courier_test

// What hostile or unlucky user code does to the contract: errors that cannot be
// looked into, calls that hang at the wrong moment, sources that do not do as
// they are told. Each was found by attack or by chance.

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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

// fetchFunc is a source with another Fetch.
type fetchFunc[T any] struct {
	courier.Source[T]
	fetch func(context.Context, int) ([]T, error)
}

func (f *fetchFunc[T]) Fetch(ctx context.Context, limit int) ([]T, error) { return f.fetch(ctx, limit) }

// misnamed is a shelf that names its records, badly.
type misnamed struct {
	*shelf[int]
	end func()
}

func (m *misnamed) Identity(int) string {
	m.end()
	return "never"
}

func TestD9_AnIdentityThatPanicsOrExits(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), outage: time.Minute, poison: 3, applied: map[int]int{}}
				stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
				source := &misnamed{newShelf(numbers(10)...), end}
				stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
				for i := range 10 {
					time.Sleep(time.Minute)
					source.add(10 + i)
				}
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				parked, _ := dlq.Receive(t.Context(), 10)
				require.Len(t, parked, 1)
			})
		})
	}
}

// The attempts of one retry are not another's: a process function that retries
// something of its own starts at none.
func TestP2_AttemptsBelongToTheRetryThatCountedThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &batchSink[int]{}
		var innerFailures int
		inner.fail = func(context.Context, int, int) error {
			if innerFailures++; innerFailures < 3 {
				return errTest
			}
			return nil
		}
		policy := plain
		policy.MaxAttempts = 3
		items := courier.NewRetryableApplier[int](inner, policy)
		began := time.Now()
		stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
			if time.Since(began) < time.Minute {
				return errTest
			}
			if r != 0 { // not the one with attempts behind it
				return nil
			}
			if err := asBatch(items).ApplyBatch(ctx, []int{1, 2, 3}); err != nil {
				return err
			}
			return items.Apply(ctx, 1)
		}), nil)
		source := newShelf(0, 1)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
		require.Empty(t, source.left())
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

func TestP2_PoisonInAFanOutBranchIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), poison: 7, applied: map[int]int{}}
		a, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		source := newShelf(numbers(50)...)
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewFanOutApplier[int](a, &sink[int]{}), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Equal(t, 7, parked[0].Record)
		require.Empty(t, source.left())
	})
}

func TestP3_ABreakerThatWantsSeveralSuccessesClosesBesideAPoisonRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), outage: time.Minute, poison: 0, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: 3}})
		source := newShelf(numbers(1000)...)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(15 * time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Empty(t, source.left())
	})
}

// A breaker that wants several successes gets them from records that come now
// and then, and not undone by the poison that is due between them.
func TestP3_SuspectsWaitWhileTheBreakerWantsMoreSuccesses(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
				stack, dlq := courier.ResilientApplier(courier.Applier[int](d), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: 2, MaxOpenFor: 10 * time.Second}})
				source := newLeasing(0)
				source.wait = true
				var c interface{ Start(context.Context) error } = courier.NewPollingCoordinator(source.shelf, stack, quiet)
				if shape == "streaming" {
					c = courier.NewStreamingCoordinator(source, stack, quiet)
				}
				stop := start(t, c)
				for i := range 60 {
					time.Sleep(40 * time.Second)
					source.add(1 + i)
				}
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				parked, _ := dlq.Receive(t.Context(), 10)
				require.Len(t, parked, 1)
				require.Empty(t, source.left())
			})
		})
	}
}

// A suspect that somebody else has settled is not looked for for ever: the fetch
// for a probe asks for one record more than there are suspects.
func TestP2_ASuspectThatIsGoneIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			if down.Load() {
				return errTest
			}
			return nil
		}), nil)
		source := newShelf[int]()
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet, courier.WithIdentity(strconv.Itoa)))
		firstProbe := func(records ...int) int {
			down.Store(true)
			source.add(records...)
			before := source.fetchCount()
			time.Sleep(time.Minute)
			source.mu.Lock()
			defer source.mu.Unlock()
			for _, limit := range source.limits[before:] {
				if limit != 100 {
					return limit
				}
			}
			return 0
		}
		require.Equal(t, 2, firstProbe(0, 1))
		require.NoError(t, source.Mark(t.Context(), []int{0, 1})) // by another process
		down.Store(false)
		time.Sleep(time.Minute)
		source.add(2) // the probe that shows the destination to be well
		time.Sleep(3 * time.Hour)
		require.Empty(t, source.left())
		require.Equal(t, 2, firstProbe(3, 4), "and no suspects of three hours ago")
		require.NoError(t, stop())
	})
}

// A source that hides what it has handed out for a while does not show a
// suspect in every fetch.
func TestP2_ASuspectIsRememberedWhileItsSourceHidesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		source := newShelf(numbers(20)...)
		hidden := map[int]time.Time{}
		wrapped := &fetchFunc[int]{Source: source, fetch: func(_ context.Context, limit int) ([]int, error) {
			var records []int
			for _, r := range source.left() {
				if len(records) < limit && time.Now().After(hidden[r]) {
					hidden[r] = time.Now().Add(30 * time.Second)
					records = append(records, r)
				}
			}
			return records, nil
		}}
		stop := start(t, courier.NewPollingCoordinator(wrapped, stack, quiet))
		for i := range 30 {
			time.Sleep(time.Minute)
			source.add(100 + i)
		}
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Equal(t, 0, parked[0].Record)
	})
}

func TestD10_Stream_TheEndHandsALonePoisonRecordBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		d := &destination{began: began, poison: 9, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		var marked collector
		err := courier.NewStreamingCoordinator(courier.NewChannelSource(stream(10), marked.mark), stack, quiet).Start(t.Context())
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.Equal(t, []int{9}, left.Records)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, numbers(9), marked.all())
		require.Less(t, time.Since(began), 10*time.Minute)
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
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
